import copy
import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from specprune_ros.robot import profile
from specprune_ros.robot.profile import ProfileError
from specprune_ros.robot.safety import JointLimit

ROBOTS = Path(__file__).parents[2] / 'config' / 'robots'
SIM = ROBOTS / 'sim_arm.yaml'
NAMES = (
    'cartesian_pose',
    'flexiv_rizon4',
    'franka',
    'joint_trajectory',
    'moveit_servo',
    'sim_arm',
)


def tree(**changes):
    """The simulated arm's profile with keys set (__ goes deeper) or, by ``...``, taken out."""
    out = copy.deepcopy(yaml.safe_load(SIM.read_text()))
    for path, value in changes.items():
        node, *rest = out, *path.split('__')
        for key in rest[:-1]:
            node = node.setdefault(key, {})
        if value is ...:
            node.pop(rest[-1])
        else:
            node[rest[-1]] = value
    return out


def test_all_the_profiles_of_the_package_load():
    assert sorted(p.stem for p in ROBOTS.glob('*.yaml')) == list(NAMES)
    for name in NAMES:
        arm = profile.load(ROBOTS / f'{name}.yaml', {'robot_sn': 'Rizon4-123456'})
        assert arm.robot == name
        # A profile for hardware never moves before somebody says so.
        assert arm.enabled_at_start == (name == 'sim_arm')
        assert arm.limits.workspace is not None
        assert arm.limits.translation_speed <= (0.4 if name == 'sim_arm' else 0.25)
        assert arm.simulated == (name == 'sim_arm')
        # Of the eight numbers that OpenVLA-OFT's policies read, six are the pose.
        assert len(arm.observation.gripper_joints) == 2


def test_the_documents_list_every_key():
    page = (ROBOTS.parents[1] / 'docs' / 'how-to' / 'robots.md').read_text()
    table = page[page.index('| key | default | meaning |') :]
    named = set(re.findall(r'`(?:[\w<>]+\.)*\.?(\w+)`', table))

    def keys(kind):
        for field in dataclasses.fields(kind):
            yield field.name
            inner = getattr(profile, str(field.type).split('.')[-1], None)
            if dataclasses.is_dataclass(inner):
                yield from keys(inner)

    parts = (profile.Profile, profile.Camera, JointLimit)
    known = {key for part in parts for key in keys(part)}
    # Written with others of their kind, or as a pair of numbers.
    aside = {'observation', 'command', 'gripper', 'limits', 'watchdog', 'driver', 'cameras'}
    aside |= {'workspace', 'lead', 'state_speed', 'joints', 'min', 'max'}
    assert len(known) > 60 and not known - named - aside, known - named - aside


def test_sim_arm_is_wired_as_agreed():
    arm = profile.load(SIM)
    assert (arm.command.adapter, arm.command.topic) == ('twist', '/sim_arm/cmd_twist')
    assert {n: c.topic for n, c in arm.observation.cameras.items()} == {
        'agent': '/sim_arm/agent/image_raw',
        'wrist': '/sim_arm/wrist/image_raw',
    }
    assert arm.observation.joint_states == '/sim_arm/joint_states'
    assert (arm.gripper.adapter, arm.gripper.name) == ('float64', '/sim_arm/gripper')


def test_serial_number_becomes_names_and_topics():
    arm = profile.load(ROBOTS / 'flexiv_rizon4.yaml', {'robot_sn': 'Rizon4-123456'})
    assert arm.joints[0] == 'Rizon4-123456_joint1'
    assert arm.observation.ee_pose == '/Rizon4_123456/tcp_pose'
    assert arm.tool_link == 'Rizon4-123456_flange'
    assert arm.observation.ee_twist_type == 'accel_stamped'
    assert 'driver_not_ready' in arm.watchdog.latched


def names_of(arm):
    """Every topic and action that the nodes share with the arm."""
    seen = arm.observation
    cameras = [
        name
        for camera in seen.cameras.values()
        for name in (camera.topic, camera.depth, camera.camera_info, camera.pose)
    ]
    states = (seen.robot_description, seen.joint_states, seen.gripper_states, seen.ee_pose)
    outputs = (arm.command.topic, arm.gripper.name, arm.driver.ready_topic)
    return {name for name in (*cameras, *states, seen.ee_twist, *outputs) if name}


@pytest.mark.parametrize('name', NAMES)
def test_arms_in_two_namespaces_share_no_topic(name):
    root, left, right = (
        names_of(
            profile.load(ROBOTS / f'{name}.yaml', {'robot_sn': 'X-1', 'namespace': namespace})
        )
        for namespace in ('', '/cell/left', '/cell/right')
    )
    assert left == {f'/cell/left{topic}' for topic in root}
    assert right == {f'/cell/right{topic}' for topic in root}


def test_a_missing_argument_is_requested():
    with pytest.raises(ProfileError, match=r"flexiv_rizon4.yaml: .*give the argument 'robot_sn'"):
        profile.load(ROBOTS / 'flexiv_rizon4.yaml')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'command__adapter': 'servo'},
            'command.adapter: is "servo"; it should be .twist., .pose., .joint_',
        ),
        ({'command__adapter': ...}, 'command.adapter: is missing'),
        ({'command__adapter': 3}, 'command.adapter: is 3; it should be .twist., .pose.'),
        (
            {'comand': {}},
            'comand: is unknown; did you mean command. known here are base_frame, command',
        ),
        ({'limits__translation_speeed': 1}, 'limits.translation_speeed: is unknown'),
        (
            {'limits__translation_speed': -1},
            'limits.translation_speed: is -1; it should be greater than 0',
        ),
        (
            {'limits__translation_speed': 0},
            'limits.translation_speed: is 0; it should be greater than 0',
        ),
        (
            {'limits__translation_speed': 'fast'},
            'limits.translation_speed: is "fast"; it should be a valid number',
        ),
        (
            {'limits__translation_speed': float('nan')},
            'limits.translation_speed: is NaN; it should be a finite',
        ),
        (
            {'limits__translation_speed': float('inf')},
            'limits.translation_speed: is Infinity; it should be a finite',
        ),
        (
            {'limits__translation_speed': True},
            'limits.translation_speed: is true; it should be a valid number',
        ),
        (
            {'limits__workspace': {'min': [0, 0, 0], 'max': [1, 0, 1]}},
            r'limits.workspace: min .* must be below max \(1.0, 0.0, 1.0\)',
        ),
        (
            {'limits__workspace': {'min': [0, 0], 'max': [1, 1, 1]}},
            r'limits.workspace.min\[2\]: is missing',
        ),
        ({'limits__workspace': {'min': [0, 0, 0]}}, 'limits.workspace.max: is missing'),
        (
            {'limits__joints': {'joint1': {'lower': 1, 'upper': 0}}},
            'limits.joints.joint1.lower: 1 must be below upper 0',
        ),
        (
            {'command__rate': 5000},
            'command.rate: is 5000; it should be less than or equal to 1000',
        ),
        ({'command__topic': '/bad topic'}, "command.topic: '/bad topic' is no ROS name"),
        ({'command__topic': '/Rizon4-1/cmd'}, 'command.topic: .* is no ROS name'),
        ({'command': 'twist'}, 'command: is "twist"; it should be an object'),
        (
            {'command__frame': 'tcp'},
            "command.frame: is 'tcp'; commands are sent along the axes of base_frame 'base_link'",
        ),
        ({'observation__cameras': {}}, 'observation.cameras: names no camera'),
        ({'observation__cameras': None}, 'observation.cameras: is missing'),
        (
            {
                'observation__cameras': {
                    'a': {'topic': '/a', 'type': 'compressed'},
                    'b': {'topic': '/b'},
                }
            },
            'observation.cameras: mixes raw and compressed',
        ),
        (
            {'observation__speed_source': 'lidar'},
            'observation.speed_source: is "lidar"; it should be .joint_states., .twist. or .act',
        ),
        (
            {'observation__speed_source': 'twist', 'observation__ee_twist': ...},
            "observation.ee_twist: is needed for speed_source 'twist'",
        ),
        ({'tool_link': ...}, "tool_link: is needed for speed_source 'joint_states'"),
        (
            {'watchdog__latched': ['boredom']},
            r'watchdog.latched\[0\]: is "boredom"; it should be .disabl',
        ),
        (
            {'watchdog__latched': 'safety'},
            'watchdog.latched: is "safety"; it should be a valid array',
        ),
        ({'stop_action': 'brake'}, 'stop_action: is "brake"; it should be .zero. or .hold.'),
        ({'command__adapter': 'pose'}, "stop_action: must be 'hold' with command.adapter 'pose'"),
        ({'command__adapter': 'joint_trajectory'}, 'limits.joints: lacks joint1'),
        (
            {'command__adapter': 'joint_trajectory', 'joints': []},
            'joints: must name each joint to command, once',
        ),
        (
            {'command__adapter': 'joint_trajectory', 'joints': ['joint1', 'joint1']},
            'joints: must name each joint to command, once',
        ),
        (
            {'command__adapter': 'joint_trajectory', 'command__rate': 10},
            'command.reach_s: is 0.05, below one period of command.rate 10',
        ),
        (
            {
                'observation__speed_source': 'action',
                'observation__ee_pose': ...,
                'observation__joint_states': ...,
            },
            'observation.joint_states: is needed to find tool_link',
        ),
        (
            {'observation__ee_pose': ..., 'observation__robot_description': ''},
            'observation.robot_description: is needed to find tool_link',
        ),
        ({'stop_action': 'hold'}, "stop_action: must be 'zero' with command.adapter 'twist'"),
        (
            {'gripper__adapter': 'claw'},
            'gripper.adapter: is "claw"; it should be .none., .float64.',
        ),
        ({'gripper__name': ...}, 'gripper.name: is missing'),
        ({'gripper__close_below': 0.9}, 'gripper.close_below: is 0.9, above open_above'),
        ({'driver__ready_type': 'bool'}, 'driver.ready_topic: is missing'),
        ({'joints': [1, 2]}, r'joints\[0\]: is 1; it should be a valid string; joints\[1\]: is 2'),
        ({'enabled_at_start': 'yes'}, 'enabled_at_start: is "yes"; it should be a valid boolean'),
        (
            {'joining': 'newest'},
            'joining: is "newest"; it should be .latest., .weighted_overlap. or .adaptive_',
        ),
    ],
)
def test_an_error_names_file_key_and_what_is_allowed(changes, message):
    with pytest.raises(ProfileError, match='robot.yaml: .*' + message):
        profile.parse(tree(**changes), 'robot.yaml')


def test_files_that_are_no_profile(tmp_path):
    with pytest.raises(ProfileError, match='none.yaml: cannot be read'):
        profile.load(tmp_path / 'none.yaml')
    bad = tmp_path / 'bad.yaml'
    bad.write_text('a: [1')
    with pytest.raises(ProfileError, match='bad.yaml: not valid YAML'):
        profile.load(bad)
    bad.write_text('- 1')
    with pytest.raises(ProfileError, match=r'bad.yaml: is \[1\]; it should be an object'):
        profile.load(bad)
    bad.write_text('!!python/object/apply:os.system ["true"]')
    with pytest.raises(ProfileError, match='not valid YAML'):
        profile.load(bad)
    bad.write_text('a: ' + 'x' * 200_000)
    with pytest.raises(ProfileError, match='at most'):
        profile.load(bad)
