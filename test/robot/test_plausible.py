"""Measured states that no arm can have reached are distinguished from those it can."""

from __future__ import annotations

from specprune_ros.robot.geometry import Pose
from specprune_ros.robot.plausibility import (
    PlausibleState,
    joint_distance,
    pose_distance,
    turn_distance,
)

MS = 1_000_000


def _poses() -> PlausibleState[Pose]:
    return PlausibleState(pose_distance, (2.0, 8.0), (0.02, 0.1), ('m', 'rad'))


def test_a_pose_of_zeros_is_not_the_arm_and_the_next_true_one_is():
    gate = _poses()
    here = Pose((0.528, -0.1, 0.3))
    assert gate.offer(here, 0) == ''
    assert 'jumps by 0.615 m in 0.010 s' in gate.offer(Pose((0.0, 0.0, 0.0)), 10 * MS)
    assert gate.value == here
    assert gate.offer(Pose((0.53, -0.1, 0.3)), 20 * MS) == ''


def test_a_turned_pose_is_reported_too():
    gate = _poses()
    gate.offer(Pose((0.5, 0.0, 0.3)), 0)
    assert 'rad' in gate.offer(Pose((0.5, 0.0, 0.3), (1.0, 0.0, 0.0, 0.0)), 10 * MS)


def test_two_sources_in_turn_never_get_the_other_place_believed():
    gate = PlausibleState(joint_distance, (4.0,), (0.05,), ('rad',))
    gate.offer(1.5, 0)
    for i in range(1, 400):
        at = i * 10 * MS
        wrong = gate.offer(0.0 if i % 2 else 1.5, at)
        assert bool(wrong) == bool(i % 2)
    assert gate.value == 1.5


def test_a_place_claimed_alone_for_long_enough_is_believed():
    gate = _poses()
    gate.offer(Pose((0.5, 0.0, 0.3)), 0)
    answers = [gate.offer(Pose((0.1, 0.6, 0.9)), i * 10 * MS) for i in range(1, 40)]
    assert answers[0] and not answers[-1]
    assert sum(bool(a) for a in answers) == 25


def test_an_old_stamp_is_no_state_but_a_clock_set_back_is_followed():
    gate = PlausibleState(joint_distance, (4.0,), (0.05,), ('rad',))
    gate.offer(1.5, 5000 * MS)
    assert gate.offer(1.5, 4000 * MS) == 'old'
    assert [bool(gate.offer(1.5, (4000 + 10 * i) * MS)) for i in range(1, 30)][-1] is False


def test_a_continuous_joint_is_near_itself_across_pi():
    gate = PlausibleState(turn_distance, (4.0,), (0.05,), ('rad',))
    gate.offer(3.13, 0)
    assert gate.offer(-3.13, 10 * MS) == ''


def test_after_forgetting_the_next_state_is_believed():
    gate = _poses()
    gate.offer(Pose((0.5, 0.0, 0.3)), 0)
    gate.forget()
    assert gate.offer(Pose((0.0, 0.0, 0.0)), MS) == ''
