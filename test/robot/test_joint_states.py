"""Joint positions that are no numbers, or no joint's, change nothing of what is believed."""

from __future__ import annotations

import math

import pytest
from arm_profiles import ARM, HOME, NAMES, make_profile

from specprune_ros.robot import profile
from specprune_ros.robot.joint_states import JointStates
from specprune_ros.robot.motion import ArmMotion
from specprune_ros.robot.safety import JointLimit

MS = 1_000_000


def take(joints, position, at):
    return joints.take(['a'], [position], [], at)


def test_what_comes_after_nan_is_compared_with_what_was_believed_before():
    """One NaN switched the check off for the next message."""
    joints = JointStates(['a'])
    assert take(joints, 1.5, 0) == (['a'], [])
    assert take(joints, math.nan, 10 * MS) == ([], ['a is not finite'])
    assert joints.missing(['a']) and joints.positions == {}
    reported, wrong = take(joints, 0.0, 20 * MS)
    assert reported == [] and 'a jumps by 1.500 rad' in wrong[0] and joints.impossible
    assert take(joints, 1.51, 30 * MS) == (['a'], [])
    assert joints.positions == {'a': 1.51} and not joints.missing(['a'])


def test_zeros_after_nan_stop_the_arm():
    said = []
    motion = ArmMotion(
        make_profile(profile.JOINT_TRAJECTORY), complain=lambda source, text: said.append(text)
    )
    motion.described(ARM)
    now = 1000 * MS
    motion.begin()
    motion.enable(True)
    motion.measured_joints(NAMES, HOME, now, now)
    motion.measured_joints(NAMES, HOME * math.nan, now + 10 * MS, now + 10 * MS)
    motion.measured_joints(NAMES, 0.0 * HOME, now + 20 * MS, now + 20 * MS)
    assert motion.tick(now + 20 * MS).verdict.reason == 'implausible_state'
    assert any('is not finite' in text for text in said)


@pytest.mark.parametrize('continuous', [True, False])
def test_a_position_of_no_joint_is_said_and_not_used(continuous):
    """-1e308 and then 1.7e308 ended the executor: their difference is infinite."""
    limit = JointLimit() if continuous else JointLimit(-3.0, 3.0)
    joints = JointStates(['a'], limit=lambda name: limit)
    assert take(joints, -1e308, 0)[0] == []
    assert take(joints, 1.7e308, 10 * MS)[0] == []
    assert take(joints, 1.5, 20 * MS) == (['a'], [])
    reported, wrong = take(joints, 1e300, 30 * MS)
    assert reported == [] and 'a is at 1e+300' in wrong[0]
    assert 'jumps' in take(joints, -1.0, 40 * MS)[1][0]
    assert take(joints, 1.5, 50 * MS) == (['a'], [])


def test_a_speed_limit_that_becomes_known_counts_from_then_on():
    """The first message came before the description, and 20 rad/s counted for ever."""
    limit = JointLimit()
    joints = JointStates(['a'], limit=lambda name: limit)
    assert take(joints, 0.0, 0) == (['a'], [])
    assert take(joints, 1.0, 100 * MS) == (['a'], [])
    limit = JointLimit(velocity=1.0)
    assert 'jumps by 1.000 rad' in take(joints, 2.0, 200 * MS)[1][0]
    assert take(joints, 1.2, 300 * MS) == (['a'], [])
