"""The policy and the executor on one arm.

    ros2 launch specprune_ros specprune.launch.py robot:=flexiv_rizon4 robot_sn:=Rizon4-123456 \
      checkpoint:=/models/oft-spatial instruction:='pick up the red block' dry_run:=true

Include it from your own launch file with ``IncludeLaunchDescription``. What is set where: topics,
frames, joints and limits by the robot profile; everything else by ``params_file``; over both, the
arguments given here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    UnregisterEventHandler,
)
from launch.event_handler import EventHandler
from launch.events.matchers import matches_action
from launch.events.process import ProcessExited
from launch.logging import get_logger
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState, StateTransition
from launch_ros.utilities import make_namespace_absolute, prefix_namespace
from lifecycle_msgs.msg import Transition

from specprune_ros.nodes.common.parent import PARENT
from specprune_ros.nodes.common.remapping import (
    ALLOWED,
    REFUSED,
    policy_parameters,
    policy_remappings,
    profile_path,
    refuse_random_weights,
    ros_arguments,
    share,
)
from specprune_ros.robot.profile import Profile, ProfileError, load

PACKAGE, POLICY, EXECUTOR = 'specprune_ros', 'specprune_node', 'chunk_executor'
VIEWER = 'viewer_node'
COMPRESSED = '/compressed'  # how image_transport names the second topic
ROBOTS = sorted(path.stem for path in (share() / 'config' / 'robots').glob('*.yaml'))
SMALL_SHM = 256 * 2**20  # bytes of /dev/shm below which the smaller DDS profile is taken

# s from SIGINT, which our nodes obey, to SIGTERM: a query may be under way, and leaving an
# interpreter that holds torch takes seconds on a busy machine.
STOP_PATIENCE = '15'

SWITCH = ('true', 'false')
ARGUMENTS = (
    DeclareLaunchArgument(
        'robot',
        default_value='sim_arm',
        description=f'The arm: a profile that comes with the package ({", ".join(ROBOTS)}) or '
        'the path of your own YAML file.',
    ),
    DeclareLaunchArgument(
        'robot_sn',
        default_value='',
        description="The robot's serial number, e.g. Rizon4-123456, for profiles with {robot_sn}.",
    ),
    DeclareLaunchArgument(
        'checkpoint',
        default_value='',
        description='Folder of the model. Empty: model.path or model.server of params_file, or '
        'else, with the simulated arm, a tiny model with random weights.',
    ),
    DeclareLaunchArgument(
        'random_weights',
        default_value=REFUSED,
        choices=(REFUSED, ALLOWED),
        description='Whether a model with random weights may drive this arm. The simulated one '
        'allows it.',
    ),
    DeclareLaunchArgument(
        'instruction',
        default_value='',
        description='Instruction to begin with. Empty: that of params_file, or wait for the topic '
        '~/instruction.',
    ),
    DeclareLaunchArgument(
        'dry_run',
        default_value='false',
        choices=SWITCH,
        description='true: the executor publishes on ~/dry_run/... what it would send, and sends '
        'nothing to the arm.',
    ),
    DeclareLaunchArgument(
        'params_file',
        default_value='',
        description='Parameters of both nodes; config/specprune.yaml is one with every default. '
        'What the robot profile says comes before it. Empty: defaults.',
    ),
    DeclareLaunchArgument(
        'image_transport',
        default_value='profile',
        choices=('profile', 'raw', 'compressed'),
        description="Images: as the profile says, or its topics' other form (<topic>/compressed).",
    ),
    DeclareLaunchArgument(
        'executor',
        default_value='true',
        choices=SWITCH,
        description='false: only the policy, for an executor of your own.',
    ),
    DeclareLaunchArgument(
        'view',
        default_value='false',
        choices=SWITCH,
        description='true: a page in the browser that shows and steers both '
        '(docs/how-to/view.md); the log says where.',
    ),
    DeclareLaunchArgument(
        'view_host',
        default_value='127.0.0.1',
        description='Interface of the page; any but the loopback one needs the token of the log.',
    ),
    DeclareLaunchArgument(
        'view_port', default_value='8080', description='First port the page tries.'
    ),
    DeclareLaunchArgument(
        'namespace',
        default_value='',
        description='Namespace of both nodes. Topics that the profile writes with a leading / '
        'stay as they are.',
    ),
    DeclareLaunchArgument(
        'use_sim_time',
        default_value='false',
        choices=SWITCH,
        description='true: time comes from /clock (recordings, simulators).',
    ),
    DeclareLaunchArgument(
        'log_level',
        default_value='info',
        choices=('debug', 'info', 'warn', 'error', 'fatal'),
        description="Least severe message of both nodes' own loggers that is shown.",
    ),
    DeclareLaunchArgument(
        'autostart',
        default_value='true',
        choices=SWITCH,
        description='true: configure and activate both nodes. false: leave that to a lifecycle '
        'manager.',
    ),
    DeclareLaunchArgument(
        'on_failure',
        default_value='shutdown',
        choices=('shutdown', 'keep'),
        description='When a node cannot start or dies: end this launch with an error, or keep '
        'what still runs.',
    ),
)


def generate_launch_description() -> LaunchDescription:
    """What ``ros2 launch`` reads."""
    return LaunchDescription(
        [
            *ARGUMENTS,
            # Nodes end, and the arm stops, when this launch is killed outright.
            SetEnvironmentVariable(PARENT, str(os.getpid())),
            OpaqueFunction(function=dds_profile),
            OpaqueFunction(function=nodes),
        ]
    )


def dds_profile(context: LaunchContext) -> list[Any]:
    """Give Fast DDS room for large images, unless the user has a profile already.

    Stays set for what an including launch file starts afterwards: it is the sender, the camera
    driver, that needs it most.
    """
    old = context.environment.get('ROS_DISTRO') in ('humble', 'jazzy')
    # Fast DDS 2 reads one name; Fast DDS 3 reads the other and warns about the first.
    name = 'FASTRTPS_DEFAULT_PROFILES_FILE' if old else 'FASTDDS_DEFAULT_PROFILES_FILE'
    if context.environment.get(name):
        return []
    try:
        disk = os.statvfs('/dev/shm')
        small = disk.f_blocks * disk.f_frsize < SMALL_SHM
    except OSError:
        small = False
    file = 'fastdds_small.xml' if small else 'fastdds.xml'
    return [SetEnvironmentVariable(name, str(share() / 'config' / file))]


def nodes(context: LaunchContext) -> list[Any]:
    """Both nodes, wired as the profile says, and what brings them up."""
    given = dict(context.launch_configurations)
    profile, path = read_profile(given['robot'], given['robot_sn'])
    remappings, parameters = wire(profile, given['image_transport'])
    space = make_namespace_absolute(
        prefix_namespace(given.get('ros_namespace'), given['namespace']) or ''
    ).rstrip('/')
    actions: list[Any] = []
    files = []
    if given['params_file']:
        files = [str(params_file(given['params_file']))]
        for line in remarks(files[0], space, parameters):
            get_logger('specprune.launch').warning(line)

    if given['random_weights'] == ALLOWED:
        parameters['model.random_weights'] = ALLOWED
    if given['checkpoint']:
        parameters['model.path'] = str(Path(given['checkpoint']).expanduser().absolute())
    refuse_random_weights({**said(files, space), **parameters})
    if given['instruction']:
        parameters['instruction'] = given['instruction']
    if given['executor'] == 'true':
        remappings = {**remappings, '~/executed': f'{EXECUTOR}/executed'}
    actions += node(given, space, POLICY, files, parameters, remappings)
    if given['executor'] == 'true':
        actions += node(
            given,
            space,
            EXECUTOR,
            files,
            {
                'profile': str(path),
                'robot_sn': given['robot_sn'],
                'policy': f'{space}/{POLICY}',
                **({'dry_run': True} if given['dry_run'] == 'true' else {}),
            },
            {'~/action_chunk': f'{POLICY}/action_chunk'},  # relative: in the same namespace
        )
    if given['view'] == 'true':
        actions += node(
            # Whoever looks on does not stop the arm.
            {**given, 'on_failure': 'keep'},
            space,
            VIEWER,
            files,
            {
                'profile': str(path),
                'robot_sn': given['robot_sn'],
                'policy': f'{space}/{POLICY}',
                'executor': f'{space}/{EXECUTOR}',
                'host': given['view_host'],
                'port': int(given['view_port']),
            },
            {},
        )
    return actions


def read_profile(robot: str, serial: str) -> tuple[Profile, Path]:
    """The checked profile and its file. Raises ``ProfileError`` saying what would be right."""
    path = profile_path(robot).expanduser().absolute()
    if not path.is_file():
        raise ProfileError(
            f"robot:='{robot}': no file {path}; give the path of a profile (.yaml) or one of "
            f'{", ".join(ROBOTS)}'
        )
    return load(path, {'robot_sn': serial} if serial else {}), path


def wire(profile: Profile, transport: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The policy's remappings and parameters on this arm, images in the form asked for."""
    remappings, parameters = policy_remappings(profile), policy_parameters(profile)
    if transport not in ('profile', parameters['image_transport']):
        parameters['image_transport'] = transport
        for private, topic in remappings.items():
            if private.startswith('~/image/'):
                bare = topic.removesuffix(COMPRESSED)
                remappings[private] = bare + COMPRESSED if transport == 'compressed' else bare
    return remappings, parameters


def node(
    given: Mapping[str, str],
    space: str,
    name: str,
    files: list[str],
    parameters: Mapping[str, Any],
    remappings: Mapping[str, str],
) -> list[Any]:
    """One lifecycle node, with what brings it up and watches over it."""
    values = {**parameters, 'autostart': False}
    if given['use_sim_time'] == 'true':
        values['use_sim_time'] = True
    required = given['on_failure'] == 'shutdown'
    logger = f'{space}/{name}'.strip('/').replace('/', '.')
    action = LifecycleNode(
        package=PACKAGE,
        executable=name,
        name=name,
        namespace=given['namespace'],
        # All in one list, because the order counts (the last value wins) and launch would read
        # texts such as '1e3' or 'pick: red' as YAML.
        ros_arguments=[
            *('--log-level', f'{logger}:={given["log_level"]}'),
            *(word for file in files for word in ('--params-file', file)),
            *ros_arguments(remappings, values)[1:],
        ],
        output='screen',
        on_exit=died if required else None,
        sigterm_timeout=STOP_PATIENCE,
    )
    actions = [action]
    if given['autostart'] == 'true':
        actions += bring_up(action, name, required)
    return actions


def bring_up(action: LifecycleNode, name: str, required: bool) -> list[Any]:
    """Configure, then activate: once. Later transitions are the user's own.

    By events, because ``LifecycleNode(autostart=True)`` is not there before Kilted.
    """

    def change(transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(
                lifecycle_node_matcher=matches_action(action), transition_id=transition
            )
        )

    def refused(event: Any) -> bool:
        return (
            isinstance(event, StateTransition)
            and event.action is action
            and (
                event.goal_state == 'unconfigured'
                or (event.start_state, event.goal_state) == ('activating', 'inactive')
            )
        )

    watch = EventHandler(
        matcher=refused,
        entities=OpaqueFunction(function=fail, args=[f'{name} could not start: see its log']),
    )
    handlers = [
        OnStateTransition(
            target_lifecycle_node=action,
            start_state='configuring',
            goal_state='inactive',
            handle_once=True,
            entities=[change(Transition.TRANSITION_ACTIVATE)],
        )
    ]
    if required:
        handlers += [
            watch,
            OnStateTransition(
                target_lifecycle_node=action,
                goal_state='active',
                handle_once=True,
                entities=[UnregisterEventHandler(watch)],
            ),
        ]
    return [
        *(RegisterEventHandler(handler) for handler in handlers),
        change(Transition.TRANSITION_CONFIGURE),
    ]


def died(event: ProcessExited, context: LaunchContext) -> None:
    """A node ended although nobody asked for it."""
    if not context.is_shutdown:
        fail(context, f'{event.process_name} ended with status {event.returncode}')


def fail(context: LaunchContext, why: str) -> None:
    """End the launch; unlike a Shutdown event this makes ``ros2 launch`` return 1."""
    raise RuntimeError(why)


# What a parameter file says that would surprise.


def params_file(text: str) -> Path:
    """The file, or an error that names the argument."""
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"params_file:='{text}': no file {path}")
    return path


def said(files: list[str], space: str) -> dict[str, Any]:
    """What parameter files say of the policy, by dotted name."""
    out: dict[str, Any] = {}
    for file in files:
        tree = yaml.safe_load(Path(file).read_text(encoding='utf-8'))
        for pattern, values in sections(tree):
            if applies(pattern, f'{space}/{POLICY}'):
                out |= values
    return out


def remarks(file: str, space: str, profile: Mapping[str, Any]) -> list[str]:
    """Name values that the profile overrules, and a file that speaks of other nodes."""
    tree = yaml.safe_load(Path(file).read_text(encoding='utf-8'))
    if not isinstance(tree, Mapping):
        raise ValueError(f'{file}: not a ROS 2 parameter file (node name, then ros__parameters)')
    found = list(sections(tree))
    mine = [values for pattern, values in found if applies(pattern, f'{space}/{POLICY}')]
    out = []
    if not any(applies(p, f'{space}/{n}') for p, _ in found for n in (POLICY, EXECUTOR)):
        names = ', '.join(pattern for pattern, _ in found) or 'none'
        out.append(
            f'{file}: no section for {space}/{POLICY} or {space}/{EXECUTOR} (it has {names}): '
            'none of its values is used; /** stands for every node'
        )
    overruled = [
        f'{name} is {profile[name]!r}, not {value!r}'
        for values in mine
        for name, value in values.items()
        if name in profile and value != profile[name]
    ]
    if overruled:
        out.append(f'the robot profile comes before {file}: {"; ".join(overruled)}')
    return out


def sections(tree: Mapping[str, Any], at: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Each node-name pattern of a parameter file with its values by dotted name."""
    for key, value in tree.items():
        if key == 'ros__parameters':
            yield at, dict(dotted(value))
        elif isinstance(value, Mapping):
            yield from sections(value, f'{at}/{str(key).strip("/")}')


def dotted(tree: Any, at: str = '') -> Iterator[tuple[str, Any]]:
    """Leaves of nested parameters."""
    for key, value in (tree or {}).items():
        if isinstance(value, Mapping):
            yield from dotted(value, f'{at}{key}.')
        else:
            yield f'{at}{key}', value


def applies(pattern: str, node_name: str) -> bool:
    """Whether a section counts for a node: ``*`` is one part of a name, ``**`` any number."""
    parts = {'**': '(/[^/]+)*', '*': '/[^/]+'}
    regex = ''.join(parts.get(p, '/' + re.escape(p)) for p in pattern.split('/') if p)
    return re.fullmatch(regex, node_name) is not None
