"""Each fault of an arm's topics and settings is one red row that says what to do."""

from pathlib import Path

import pytest

from specprune_ros.robot import checkup
from specprune_ros.robot.checkup import FAIL, OK, WARN, Received
from specprune_ros.robot.geometry import Pose
from specprune_ros.robot.profile import load

ROBOTS = Path(__file__).parents[2] / 'config' / 'robots'
POSE = 'geometry_msgs/msg/PoseStamped'


def received(**changes):
    """Two seconds of a pose at 50 Hz, 3 ms old."""
    values = {
        'key': 'observation.ee_pose', 'topic': '/arm/tcp_pose', 'kind': POSE, 'seconds': 2.0,
        'publishers': ['/driver'], 'kinds': [POSE], 'count': 100, 'ages': [0.003] * 100,
        'stamps': [10**9 + i * 20_000_000 for i in range(100)], 'frame': 'base_link',
    }  # fmt: skip
    return Received(**{**values, **changes})


def judge(known=(), **changes):
    return checkup.judge(received(**changes), slowest=10.0, oldest=0.1, known=known)


def test_a_topic_that_is_well():
    row = judge()
    assert row.state == OK and not row.cure and '50.0 Hz, 3 ms old' in row.found


@pytest.mark.parametrize(
    'changes, found, cure',
    [
        ({'publishers': [], 'count': 0}, 'nobody publishes', 'is /arm/tcp_poses meant'),
        ({'kinds': ['geometry_msgs/msg/Pose']}, 'is geometry_msgs/msg/Pose', 'ee_pose'),
        ({'count': 0, 'mismatch': 'ERROR: best effort'}, 'best effort', 'quality of service'),
        ({'count': 0}, 'nothing arrives in 2 s', 'config/fastdds.xml'),
        ({'stamps': [0] * 100}, 'without a stamp', 'must stamp'),
        ({'ages': [-0.8] * 100}, '0.80 s ahead', 'chrony'),
        ({'ages': [0.7] * 100}, '700 ms old; at most 0.1 s', 'clocks'),
        ({'stamps': [10**9 + i * 10**9 for i in range(3)], 'count': 3}, 'at least 10 Hz', 'rate'),
        # Two of a stream that gets lost, in order; one that ended; one that is not read.
        ({'stamps': [10**9, 10**9 + 33 * 10**6], 'count': 2}, '1.5 Hz', 'get lost'),
        ({'silent': 1.6}, 'nothing for the last 1.6 s', 'still there'),
        ({'unreadable': "encoding 'bayer_rggb8'"}, "encoding 'bayer_rggb8'", 'set the encoding'),
    ],
)
def test_a_topic_that_is_not(changes, found, cure):
    row = judge(known=['/arm/tcp_poses', '/other'], **changes)
    assert row.state == FAIL and found in row.found and cure in row.cure, row


def test_frames_joints_and_skew():
    assert checkup.frame(received(), 'base_link').state == OK
    row = checkup.frame(received(frame='world'), 'base_link')
    assert row.state == FAIL and "base_frame of the profile is 'base_link'" in row.cure
    assert checkup.frame(received(frame=''), 'base_link').state == WARN
    arm, hand = received(names={'R-1_joint1'}), received(topic='/hand', names={'width'})
    assert checkup.joints(['R-1_joint1'], 'R-1_', [arm], 'joints').state == OK
    assert checkup.joints(['joint1'], 'R-1_', [arm], 'joints').state == OK
    row = checkup.joints(['finger'], '', [arm, hand], 'observation.gripper_joints')
    assert row.state == FAIL and 'no joint named finger; there are R-1_joint1, width' in row.found
    assert 'observation.gripper_states' in row.cure
    late = received(stamps=[s + 9_000_000 for s in received().stamps])
    assert checkup.skew({'a': received(), 'b': late}).state == OK
    apart = received(stamps=[10**9 + i * 200_000_000 + 90_000_000 for i in range(10)])
    slow = received(stamps=[10**9 + i * 200_000_000 for i in range(10)])
    row = checkup.skew({'a': slow, 'b': apart})
    assert row.state == FAIL and '90 ms apart' in row.found


def test_the_command_topic():
    kind = 'geometry_msgs/msg/TwistStamped'
    assert checkup.command('/cmd', kind, {'/servo': kind}, [])[0].state == OK
    assert checkup.command('/cmd', kind, {}, [])[0].found == 'nobody listens'
    assert checkup.command('/cmd', kind, {'/servo': POSE}, [])[0].state == FAIL
    assert checkup.command('/cmd', kind, {'/servo': kind}, ['/joystick'])[1].state == WARN


def test_limits():
    arm = load(ROBOTS / 'franka.yaml')
    inside, under = Pose((0.5, 0.0, 0.3)), Pose((0.5, 0.0, -0.1))
    states = [row.state for row in checkup.limits(arm, True, inside)]
    assert states == [WARN, OK, OK]  # the shipped box is not that of this table
    row = checkup.limits(arm, False, under)[1]
    assert row.state == FAIL and 'z is -0.100, not 0.02 to 0.7' in row.found


def test_what_a_checkpoint_needs_of_the_arm():
    data = {
        'problems': [], 'family': 'openvla-oft', 'memory': {'bfloat16': 15_000_000_000},
        'meaning': [{'name': 'metres per unit', 'value': '0.05', 'source': 'libero'}],
        'config': {
            'cameras': ['third_person', 'wrist'], 'proprio_dim': 8,
            'action': {'kind': 'ee_delta'},
        },
    }  # fmt: skip
    arm = load(ROBOTS / 'franka.yaml')
    rows = {row.check: row for row in checkup.checkpoint(data, arm, 0)}
    assert {row.state for row in rows.values()} == {OK, WARN}
    assert rows['checkpoint: proprioception'].found.endswith('proprio.layout pose_gripper')
    assert 'model.server' in rows['checkpoint: memory'].cure
    small = {row.check: row for row in checkup.checkpoint(data, arm, 8_000_000_000)}
    assert small['checkpoint: memory'].state == FAIL
    data['config'] |= {'cameras': ['one'], 'proprio_dim': 9, 'action': {'kind': 'joint_position'}}
    wrong = [row for row in checkup.checkpoint(data, arm, 0) if row.state == FAIL]
    assert [row.check.split()[-1] for row in wrong] == ['cameras', 'proprioception', 'actions']
    assert all(row.cure for row in wrong)
    data['config']['proprio_dim'] = 0  # franka.yaml names no joints
    rows = {row.check: row for row in checkup.checkpoint(data, arm, 0)}
    assert rows['checkpoint: proprioception'].found.endswith('proprio.layout none')
    data['problems'] = ['x is absent']
    assert [row.state for row in checkup.checkpoint(data, arm, 0)] == [FAIL]
