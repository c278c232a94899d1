"""What the launch files share: their arguments as launch declares them, the nodes of an arm, what
brings these up and what follows when one of them dies. Needs launch and launch_ros.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from launch import LaunchContext
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
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState, StateTransition
from lifecycle_msgs.msg import Transition

from specprune_ros.apps.launch_arguments import (
    ARGUMENTS,
    EXECUTOR,
    KEEP,
    POLICY,
    SHUTDOWN,
    STOP,
    VIEWER,
    Argument,
    Arm,
)
from specprune_ros.nodes.common.compat import dds_profile_variable
from specprune_ros.nodes.common.parent_process import PARENT
from specprune_ros.nodes.common.remapping import ros_arguments, share

PACKAGE = 'specprune_ros'
SMALL_SHM = 256 * 2**20  # bytes of /dev/shm below which the smaller DDS profile is taken

# s from SIGINT, which our nodes obey, to SIGTERM: a query may be under way, and leaving an
# interpreter that holds torch takes seconds on a busy machine.
STOP_PATIENCE = '15'


def declare(*names: str, **own: Argument) -> list[DeclareLaunchArgument]:
    """Arguments of :data:`ARGUMENTS` by name, or all of them; ``own`` adds or replaces."""
    arguments = {name: ARGUMENTS[name] for name in names or ARGUMENTS} | own
    return [
        DeclareLaunchArgument(
            name,
            default_value=argument.default,
            description=argument.description,
            choices=argument.choices,
        )
        for name, argument in arguments.items()
    ]


def environment() -> list[Any]:
    """What every process of a launch file has: the id of the launch, at whose death nodes end and
    the arm stops, and room in DDS for large images.
    """
    return [SetEnvironmentVariable(PARENT, str(os.getpid())), OpaqueFunction(function=dds_profile)]


def dds_profile(context: LaunchContext) -> list[Any]:
    """Give Fast DDS room for large images, unless the user has a profile already.

    Stays set for what an including launch file starts afterwards: it is the sender, the camera
    driver, that needs it most.
    """
    name = dds_profile_variable(context.environment.get('ROS_DISTRO', ''))
    if context.environment.get(name):
        return []
    try:
        disk = os.statvfs('/dev/shm')
        small = disk.f_blocks * disk.f_frsize < SMALL_SHM
    except OSError:
        small = False
    file = 'fastdds_small.xml' if small else 'fastdds.xml'
    return [SetEnvironmentVariable(name, str(share() / 'config' / file))]


def arm_nodes(arm: Arm) -> list[Any]:
    """The policy, the executor and the page of one arm, wired as its profile says."""
    for line in arm.remarks:
        get_logger('specprune.launch').warning(line)
    executor, failure = arm.on('executor'), arm.given['on_failure']
    remappings = dict(arm.remappings)
    if executor:
        remappings['~/executed'] = f'{EXECUTOR}/executed'
    # Without an executor nothing is left to report what the policy no longer does.
    policy_ends = failure == SHUTDOWN or (failure == STOP and not executor)
    actions = _node(arm, POLICY, arm.parameters, remappings, policy_ends)
    about = {
        'profile': str(arm.profile_file),
        'robot_sn': arm.given['robot_sn'],
        'policy': f'{arm.namespace}/{POLICY}',
    }
    if executor:
        actions += _node(
            arm,
            EXECUTOR,
            {**about, **({'dry_run': True} if arm.on('dry_run') else {})},
            {'~/action_chunk': f'{POLICY}/action_chunk'},  # relative: in the same namespace
            failure != KEEP,
        )
    if arm.on('view'):
        # Whoever looks on does not stop the arm.
        actions += _node(arm, VIEWER, {**about, **arm.page_parameters()}, {}, None)
    return actions


def enclave(given: Mapping[str, str], name: str) -> list[str]:
    """ROS arguments that put a node into its SROS2 enclave."""
    if not given['enclave']:
        return []
    leaf = {POLICY: 'policy', EXECUTOR: 'executor', VIEWER: 'viewer'}.get(name, name)
    return ['--enclave', f'{given["enclave"]}/{leaf}']


def _node(
    arm: Arm,
    name: str,
    parameters: Mapping[str, Any],
    remappings: Mapping[str, str],
    required: bool | None,
) -> list[Any]:
    """One lifecycle node, with what brings it up and watches over it.

    ``required``: whether its death ends the launch; ``False`` still does until it was active
    once, ``None`` never.
    """
    values = {**parameters, 'autostart': False}
    if arm.on('use_sim_time'):
        values['use_sim_time'] = True
    watched = required is not None and arm.given['on_failure'] != KEEP
    started = {'active': not arm.on('autostart')}

    def ended(event: ProcessExited, context: LaunchContext) -> None:
        if context.is_shutdown:
            return
        what = f'{event.process_name} ended with status {event.returncode}'
        if watched and (required or not started['active']):
            raise RuntimeError(what)
        then = (
            'the executor stops the arm and goes on reporting on /diagnostics'
            if name == POLICY and arm.on('executor')
            else 'the others go on'
        )
        get_logger('specprune.launch').error(f'{what}: {then}')

    action = LifecycleNode(
        package=PACKAGE,
        executable=name,
        name=name,
        namespace=arm.namespace or '/',
        # All in one list, because the order counts (the last value wins) and launch would read
        # texts such as '1e3' or 'pick: red' as YAML.
        ros_arguments=[
            *log_level(arm.given, name, arm.namespace),
            *enclave(arm.given, name),
            *(word for file in arm.params_files for word in ('--params-file', file)),
            *ros_arguments(remappings, values)[1:],
        ],
        output='screen',
        on_exit=ended,
        sigterm_timeout=STOP_PATIENCE,
    )
    if not arm.on('autostart'):
        return [action]
    return [action, *bring_up(action, name, watched, lambda: started.update(active=True))]


def bring_up(
    action: LifecycleNode, name: str, watched: bool, activated: Callable[[], None]
) -> list[Any]:
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

    def fail(context: LaunchContext) -> None:
        # Unlike a Shutdown event this makes `ros2 launch` return 1.
        raise RuntimeError(f'{name} could not start: see its log')

    def note(context: LaunchContext) -> None:
        activated()

    watch = EventHandler(matcher=refused, entities=OpaqueFunction(function=fail))
    handlers = [
        OnStateTransition(
            target_lifecycle_node=action,
            start_state='configuring',
            goal_state='inactive',
            handle_once=True,
            entities=[change(Transition.TRANSITION_ACTIVATE)],
        ),
        OnStateTransition(
            target_lifecycle_node=action,
            goal_state='active',
            handle_once=True,
            entities=[
                OpaqueFunction(function=note),
                *([UnregisterEventHandler(watch)] if watched else []),
            ],
        ),
        *([watch] if watched else []),
    ]
    return [
        *(RegisterEventHandler(handler) for handler in handlers),
        change(Transition.TRANSITION_CONFIGURE),
    ]


def helper(given: Mapping[str, str], name: str, namespace: str, **options: Any) -> Node:
    """A node of the package that starts by itself and whose death ends the launch."""
    options.setdefault('package', PACKAGE)
    if options['package'] is None:
        del options['package']
    options['ros_arguments'] = [
        *log_level(given, name, namespace),
        *enclave(given, name),
        *options.pop('ros_arguments', ()),
    ]
    return Node(
        name=name,
        namespace=namespace or '/',
        output='screen',
        on_exit=died,
        sigterm_timeout=STOP_PATIENCE,
        **options,
    )


def log_level(given: Mapping[str, str], name: str, namespace: str) -> list[str]:
    """Words for a node that shows what launch argument ``log_level`` says."""
    logger = f'{namespace}/{name}'.strip('/').replace('/', '.')
    return ['--log-level', f'{logger}:={given["log_level"]}']


def died(event: ProcessExited, context: LaunchContext) -> None:
    """A node ended although nobody requested it: end the launch with an error."""
    if not context.is_shutdown:
        raise RuntimeError(f'{event.process_name} ended with status {event.returncode}')
