"""The safety filter: whatever comes in, what goes out is finite and within limits."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specprune_ros.robot import geometry, safety
from specprune_ros.robot.geometry import Pose, Twist
from specprune_ros.robot.safety import (
    Command,
    JointLimit,
    SafetyFilter,
    SafetyLimits,
    Stop,
    joint_limits,
)
from specprune_ros.robot.stop_motion import window_length

DT = 0.01
BOX = ((0.2, -0.3, 0.0), (0.8, 0.3, 0.6))
MIDDLE = Pose((0.5, 0.0, 0.3))
TIGHT = 1.0 + 1e-9

anything = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-2.0, 2.0),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e308, -1e308, 5e-324]),
)
any_vector = st.tuples(anything, anything, anything)
some_vector = st.tuples(*[st.floats(-2.0, 2.0)] * 3)
positive = st.floats(1e-3, 1e3)
limits_of_any_size = st.builds(
    SafetyLimits,
    translation_speed=positive,
    rotation_speed=positive,
    translation_acceleration=positive,
    rotation_acceleration=positive,
    translation_step=st.one_of(st.just(math.inf), st.floats(1e-5, 1.0)),
    rotation_step=st.one_of(st.just(math.inf), st.floats(1e-5, 1.0)),
    workspace=st.sampled_from([None, BOX]),
    reaction_s=st.sampled_from([0.0, 0.05]),
)


def check_twist(limits, sent, out):
    """Every limit of one Cartesian output on speed, acceleration and jerk.

    ``sent`` are the outputs before, from two of rest on.
    """
    assert out.finite()
    v, w = geometry.norm(out.linear), geometry.norm(out.angular)
    assert v <= limits.translation_speed * TIGHT and v * DT <= limits.translation_step * TIGHT
    assert w <= limits.rotation_speed * TIGHT and w * DT <= limits.rotation_step * TIGHT
    rows = np.array([twist.six for twist in (*sent[-2:], out)])
    changes = np.diff(rows, axis=0) / DT
    jerk = np.diff(changes, axis=0)[0] / DT
    tiny = 1e-9 * np.abs(rows).max() / DT  # rounding of differences
    for part, acceleration, most in (
        (slice(0, 3), limits.translation_acceleration, limits.jerks[0]),
        (slice(3, 6), limits.rotation_acceleration, limits.jerks[1]),
    ):
        assert np.linalg.norm(changes[1][part]) <= acceleration * TIGHT + tiny
        assert np.linalg.norm(jerk[part]) <= most * TIGHT + tiny / DT


@settings(max_examples=400, deadline=None)
@given(
    limits_of_any_size,
    st.lists(st.tuples(any_vector, any_vector, some_vector), min_size=1, max_size=30),
)
def test_twists_of_any_kind_come_out_finite_and_within_limits(limits, commands):
    guard, sent = SafetyFilter(limits, DT), [Twist(), Twist()]
    for linear, angular, position in commands:
        out = guard.filter(Command(twist=Twist(linear, angular)), Pose(position))
        if isinstance(out, Stop):
            assert out.reason == safety.NOT_FINITE and not Twist(linear, angular).finite()
            out = guard.brake()
        else:
            assert Twist(linear, angular).finite()
        check_twist(limits, sent, out.twist)
        sent.append(out.twist)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(some_vector, some_vector), min_size=1, max_size=80))
def test_a_tracked_pose_never_leaves_the_box(commands):
    limits = SafetyLimits(workspace=BOX, translation_speed=2.0, translation_acceleration=20.0)
    guard = SafetyFilter(limits, DT, tracked=True)
    before = MIDDLE
    for linear, angular in commands:
        out = guard.filter(Command(twist=Twist(linear, angular)), MIDDLE)
        assert (
            all(a <= p <= b for p, a, b in zip(out.pose.position, *BOX, strict=True))
            and out.pose.finite()
        )
        moved = geometry.norm(geometry.subtract(out.pose.position, before.position))
        assert moved <= 2.0 * DT * TIGHT
        before = out.pose


@given(
    st.floats(0.0, 0.999), st.floats(0.0, 0.999), some_vector, some_vector, st.floats(0.0, 0.999)
)
def test_safe_input_passes_unchanged_after_the_window(speed, turn, linear, angular, gripper):
    limits = SafetyLimits(workspace=BOX)
    guard = SafetyFilter(limits, DT)

    def inside(vector, fastest, share):
        return geometry.scale(vector, share * fastest / max(1e-9, geometry.norm(vector)))

    # Within what one period may accelerate to from rest, which is less than the speed limit.
    safe = Twist(inside(linear, 2.0 * DT, speed), inside(angular, 8.0 * DT, turn))
    for _ in range(window_length(2.0, limits.jerks[0], DT)):
        out = guard.filter(Command(twist=safe, gripper=gripper), MIDDLE)
    assert out.twist.six == pytest.approx(safe.six) and out.gripper == gripper


JOINTS = {
    'a': JointLimit(-1.0, 1.0, 2.0, 10.0),
    'b': JointLimit(-0.1, 3.0, 0.5, 100.0),
    'c': JointLimit(velocity=1.0, acceleration=5.0, jerk=1e4),
}


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(anything, anything, anything), min_size=1, max_size=60),
    st.tuples(st.floats(-1.5, 1.5), st.floats(-1.0, 4.0), st.floats(-9.0, 9.0)),
)
def test_joint_commands_come_out_finite_and_within_limits(commands, start):
    names = tuple(JOINTS)
    guard = SafetyFilter(SafetyLimits(joints=JOINTS), DT, joints=names)
    measured = dict(zip(names, start, strict=True))
    sent, at = [(0.0,) * 3] * 2, dict(measured)
    for wanted in commands:
        out = guard.filter(Command(joints=names, velocities=wanted), measured_joints=measured)
        if isinstance(out, Stop):
            assert out.reason == safety.NOT_FINITE and not geometry.all_finite(wanted)
            out = guard.brake()
        rows = np.array([*sent[-2:], out.velocities])
        changes = np.diff(rows, axis=0) / DT
        for i, name in enumerate(names):
            limit, v = JOINTS[name], out.velocities[i]
            assert math.isfinite(v) and abs(v) <= limit.velocity * TIGHT
            assert abs(changes[1][i]) <= limit.acceleration * TIGHT
            assert abs(changes[1][i] - changes[0][i]) <= limit.jerk_limit * DT * TIGHT + 1e-9
            if not guard.positions:
                continue
            q = guard.positions[name]
            if limit.lower <= at[name] <= limit.upper:
                assert limit.lower - 1e-12 <= q <= limit.upper + 1e-12
            else:  # outside: inwards or not at all
                assert abs(q - 0.5 * (limit.lower + limit.upper)) <= 1e-12 + abs(
                    at[name] - 0.5 * (limit.lower + limit.upper)
                )
            at[name] = q
        sent.append(out.velocities)


def test_joints_beyond_a_speed_limit_keep_their_proportion():
    joints = {'a': JointLimit(velocity=1.0), 'b': JointLimit(velocity=9.0)}
    guard = SafetyFilter(SafetyLimits(joints=joints), DT, joints=('a', 'b'))
    out = guard.filter(
        Command(joints=('a', 'b'), velocities=(4.0, 2.0)), measured_joints={'a': 0.0, 'b': 0.0}
    )
    assert out.velocities == pytest.approx((1.0, 0.5))


def test_the_arm_brakes_before_the_wall():
    """Driven at a wall at full speed it comes to rest inside, braking no harder than allowed."""
    limits = SafetyLimits(
        workspace=BOX, translation_speed=0.5, translation_acceleration=2.0, reaction_s=0.02
    )
    guard, x, before, hardest = SafetyFilter(limits, DT), 0.3, 0.0, 0.0
    for _ in range(500):
        out = guard.filter(Command(twist=Twist((1.0, 0.0, 0.0))), Pose((x, 0.0, 0.3)))
        v = out.twist.linear[0]
        hardest = max(hardest, (before - v) / DT)
        x, before = x + v * DT, v
    assert 0.79 < x <= 0.8 and before < 1e-3
    assert hardest <= 2.0 * TIGHT


@pytest.mark.parametrize(
    ('height', 'led', 'fastest'),
    [
        (0.03, 0.0, 0.2),
        (0.03, -0.03, 0.0),  # it may be at the wall by now
        (0.0, 0.03, 0.0),  # or still be there: nobody has seen it follow
    ],
)
def test_a_tool_may_be_where_it_was_seen_or_where_it_was_led(height, led, fastest):
    guard = SafetyFilter(SafetyLimits(workspace=BOX), DT)
    command, at = Command(twist=Twist((0.0, 0.0, -0.25))), Pose((0.5, 0.0, height))
    for _ in range(50):
        out = guard.filter(command, at, led=(0.0, 0.0, led))
    assert out.twist.linear[2] == 0.0 if not fastest else out.twist.linear[2] < -fastest


def test_sliding_along_a_wall_is_allowed():
    guard = SafetyFilter(SafetyLimits(workspace=BOX), DT)
    for _ in range(100):
        out = guard.filter(Command(twist=Twist((0.1, 0.0, -0.1))), Pose((0.5, 0.0, 0.0)))
    assert out.twist.linear == pytest.approx((0.1, 0.0, 0.0))


def test_a_tool_that_was_dragged_outside_stops_turning():
    turn = Twist((0.0, 0.05, 0.0), (0.0, 1.0, 0.0))
    low = BOX[0]
    for depth, share in ((-0.1, 1.0), (0.0, 1.0), (0.005, 0.5), (0.01, 0.0), (0.1, 0.0)):
        guard = SafetyFilter(SafetyLimits(workspace=BOX), DT)
        middle = [0.5 * (a + b) for a, b in zip(*BOX, strict=True)]
        at = Pose((low[0] - depth, middle[1], middle[2]))
        for _ in range(50):
            out = guard.filter(Command(twist=turn), at)
        assert out.twist.angular == pytest.approx((0.0, share, 0.0))
        assert out.twist.linear == pytest.approx(turn.linear)  # along the wall it may go on


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_nothing_unfinite_passes(bad):
    guard = SafetyFilter(SafetyLimits(joints=JOINTS), DT)
    joint_guard = SafetyFilter(SafetyLimits(joints=JOINTS), DT, joints=('a',))
    for filter_, command in (
        (guard, Command(twist=Twist((bad, 0, 0)))),
        (guard, Command(twist=Twist((0, 0, 0), (0, bad, 0)))),
        (guard, Command(twist=Twist(), gripper=bad)),
        (joint_guard, Command(joints=('a',), velocities=(bad,))),
    ):
        assert filter_.filter(command, MIDDLE, {'a': 0.0}).reason == safety.NOT_FINITE
    assert guard.filter(Command(twist=Twist()), Pose((bad, 0, 0))).reason == safety.NOT_FINITE


def test_without_a_pose_there_is_no_motion_in_a_box():
    assert (
        SafetyFilter(SafetyLimits(workspace=BOX), DT).filter(Command(twist=Twist())).reason
        == safety.NO_POSE
    )
    assert (
        SafetyFilter(SafetyLimits(), DT, tracked=True).filter(Command(twist=Twist())).reason
        == safety.NO_POSE
    )
    assert (
        SafetyFilter(SafetyLimits(joints=JOINTS), DT, joints=('a',))
        .filter(Command(joints=('a',), velocities=(0.1,)))
        .reason
        == safety.NO_POSE
    )


def test_joints_without_limits_are_not_moved():
    guard = SafetyFilter(SafetyLimits(), DT, joints=('x',))
    out = guard.filter(Command(joints=('x',), velocities=(0.1,)), measured_joints={'x': 0.0})
    assert out.reason == safety.UNKNOWN_JOINT
    out = guard.filter(Command(joints=('x',), velocities=(0.1, 0.2)), measured_joints={'x': 0.0})
    assert out.reason == safety.UNKNOWN_JOINT


def test_an_arm_that_does_not_follow_is_stopped():
    limits = SafetyLimits(lead_translation=0.02, lead_rotation=0.2)
    guard = SafetyFilter(limits, DT, tracked=True)
    out = None
    for _ in range(50):  # blocked: the measured pose stays
        out = guard.filter(Command(twist=Twist((0.2, 0.0, 0.0))), MIDDLE)
        if isinstance(out, Stop):
            break
        assert out.pose.position[0] - MIDDLE.position[0] <= 0.02 + 0.25 * DT
    assert out.reason == safety.NOT_FOLLOWING and 'behind its command' in out.detail


def test_motion_goes_on_from_where_it_is_after_a_stop():
    guard = SafetyFilter(SafetyLimits(), DT)
    for _ in range(50):
        guard.filter(Command(twist=Twist((0.2, 0.0, 0.0))))
    assert isinstance(guard.filter(Command(twist=Twist((math.nan, 0.0, 0.0)))), Stop)
    speeds = [guard.brake().twist.linear[0] for _ in range(5)]
    assert 0.1 < speeds[-1] < 0.2 and speeds == sorted(speeds, reverse=True)
    again = [guard.filter(Command(twist=Twist((0.2, 0.0, 0.0)))).twist for _ in range(20)]
    assert min(t.linear[0] for t in again) > 0.05 and again[-1].linear[0] == pytest.approx(0.2)


@pytest.mark.parametrize('speed', [0.0, 0.2, -0.9])
def test_a_joint_outside_its_range_is_not_thrown_back(speed):
    """1.571 rad with an upper limit of 1.0 became 1.0 within 0.06 s."""
    joints = {'a': JointLimit(-1.0, 1.0, 1.0, 4.0)}
    guard = SafetyFilter(SafetyLimits(joints=joints), DT, joints=('a',))
    at = [1.571]
    for _ in range(200):
        out = guard.filter(Command(joints=('a',), velocities=(speed,)), None, {'a': at[-1]})
        at.append(out.positions[0])
    steps = np.diff(at)
    assert (steps <= 1e-12).all() and np.abs(steps).max() <= 1.0 * DT
    assert speed < 0.0 or at[-1] == 1.571  # inwards only where that was requested


def test_a_range_that_narrows_in_motion_is_braked_for():
    joints = {'a': JointLimit(-3.0, 3.0, 1.0, 4.0)}
    guard = SafetyFilter(SafetyLimits(), DT, joints=('a',), joint_limits=joints)
    out = []
    for i in range(200):
        if i == 80:
            joints['a'] = JointLimit(-0.5, 0.5, 0.3, 4.0)  # a later robot_description
        command = Command(joints=('a',), velocities=(0.9,))
        out.append(guard.filter(command, None, {'a': guard.positions.get('a', 0.0)}))
    speeds = np.array([0.0, *(c.velocities[0] for c in out)])
    changes = np.diff(speeds) / DT
    assert out[80].positions[0] > 0.5 and speeds[-1] == 0.0
    assert np.abs(changes).max() <= 4.0 * TIGHT
    assert np.abs(np.diff(changes)).max() / DT <= joints['a'].jerk_limit * TIGHT


def test_a_continuous_joint_follows_across_pi():
    joints = {'a': JointLimit(velocity=1.0, acceleration=4.0)}
    guard = SafetyFilter(
        SafetyLimits(joints=joints, lead_translation=0.05, lead_rotation=0.3), DT, joints=('a',)
    )
    at = 3.0
    for _ in range(60):
        measured = {'a': math.remainder(at, math.tau)}
        out = guard.filter(Command(joints=('a',), velocities=(0.5,)), None, measured)
        assert not isinstance(out, Stop), out
        at = out.positions[0]
    assert at > math.pi


def test_after_rest_motion_goes_on_from_the_place_held_unless_the_arm_was_moved():
    guard = SafetyFilter(SafetyLimits(), DT, tracked=True)
    for _ in range(20):
        held = guard.filter(Command(twist=Twist((0.2, 0.0, 0.0))), MIDDLE).pose
    while not guard.at_rest:
        held = guard.brake().pose
    guard.rest()
    sagged = Pose((held.position[0], 0.0, 0.295))
    still = Command(twist=Twist())
    assert guard.filter(still, sagged).pose.position == held.position
    guard.rest()
    moved = Pose((0.4, 0.1, 0.3))
    assert guard.filter(still, moved).pose == moved
    guard.forget()
    assert guard.filter(still, sagged).pose == sagged


HELD = Pose((0.53, 0.0, 0.3))


def _held(tracked: bool) -> SafetyFilter:
    """At rest, with a place held: ``HELD``, or 0.5 rad."""
    if tracked:
        guard = SafetyFilter(SafetyLimits(), DT, tracked=True)
        guard.filter(Command(twist=Twist()), HELD)
    else:
        guard = SafetyFilter(SafetyLimits(joints=JOINTS), DT, joints=('c',))
        guard.filter(Command(joints=('c',), velocities=(0.0,)), None, {'c': 0.5})
    guard.rest()
    return guard


def _at(height: float, turn: float = 0.0) -> Pose:
    return Pose((0.53, 0.0, height), geometry.from_rotation_vector((turn, 0.0, 0.0)))


@pytest.mark.parametrize(
    ('seen', 'kept'),
    [
        ([0.295] * 50, True),  # sagged
        ([0.2952, 0.2948, 0.2951, 0.2949] * 10, True),  # noise
        ([0.285, 0.290, 0.293, 0.295, 0.295], True),  # it came after
        ([0.295, 0.2945, 0.294, 0.2935], False),  # slowly down by pendant
        ([0.295, 0.290, 0.285, 0.295], False),  # and up again
        ([0.295, 0.297, 0.299, 0.301, 0.3025], False),  # up past the place held
        ([0.295, 0.27], False),
    ],
)
def test_a_place_held_is_kept_only_while_the_arm_stays(seen, kept):
    guard = _held(True)
    for height in seen[:-1]:
        guard.stand(_at(height), {})
    out = guard.filter(Command(twist=Twist()), _at(seen[-1]))
    assert out.pose == (HELD if kept else _at(seen[-1]))
    # The same of a joint, ten times as far in rad: 0.45 is 0.05 from the 0.5 held.
    guard = _held(False)
    for height in seen[:-1]:
        guard.stand(None, {'c': 0.5 - 10.0 * (0.3 - height)})
    at = 0.5 - 10.0 * (0.3 - seen[-1])
    out = guard.filter(Command(joints=('c',), velocities=(0.0,)), None, {'c': at})
    assert out.positions == pytest.approx((0.5 if kept else at,))


def test_a_tool_that_was_turned_at_rest_has_not_stayed():
    guard = _held(True)
    guard.stand(_at(0.3), {})
    assert guard.filter(Command(twist=Twist()), _at(0.3, 0.05)).pose == _at(0.3, 0.05)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        ({'translation_speed': 0.0}, 'translation_speed: is 0.0; it should be greater than 0'),
        ({'rotation_acceleration': math.nan}, 'rotation_acceleration: is NaN'),
        ({'workspace': ((0, 0, 0), (1, 0, 1))}, 'min .* must be below max'),
        (
            {'workspace': ((0, 0, 0), (1, math.inf, 1))},
            r'workspace\[1\]\[1\]: is Infinity; it should be a finite',
        ),
        ({'lead_rotation': 0.0}, 'lead_rotation: is 0.0'),
        ({'reaction_s': -1.0}, 'reaction_s: is -1.0'),
        ({'translation_jerk': 0.0}, 'translation_jerk: is 0.0'),
        ({'state_rotation_speed': 0.0}, 'state_rotation_speed: is 0.0'),
    ],
)
def test_limits_must_make_sense(bad, message):
    with pytest.raises(ValueError, match=message):
        SafetyLimits(**bad)
    with pytest.raises(ValueError, match='period is 0'):
        SafetyFilter(SafetyLimits(), 0.0)


def test_the_tighter_of_urdf_and_profile_counts():
    out = joint_limits(
        ('a', 'b'),
        {'a': (-2.0, 2.0, 3.0), 'b': (-math.inf, math.inf, 0.0)},
        {'a': JointLimit(-1.0, 5.0, 9.0, 7.0)},
    )
    assert out['a'] == JointLimit(-1.0, 2.0, 3.0, 7.0)
    assert out['b'] == JointLimit()


def storm(count, seed):
    """Random commands: most plausible, some absurd, some not finite; the arm goes along."""
    rng = random.Random(seed)
    limits = SafetyLimits(
        translation_speed=0.3,
        rotation_speed=1.0,
        translation_acceleration=2.0,
        rotation_acceleration=6.0,
        translation_step=0.0025,
        workspace=BOX,
        reaction_s=0.02,
    )
    guard, sent, position = SafetyFilter(limits, DT), [Twist(), Twist()], (0.5, 0.0, 0.3)
    stops = moved = 0
    for _ in range(count):
        kind = rng.random()
        size = 0.2 if kind < 0.8 else 1e9 if kind < 0.9 else 3.0
        six = [rng.gauss(0.0, size) for _ in range(6)]
        if kind > 0.999:
            six[rng.randrange(6)] = rng.choice([math.nan, math.inf, -math.inf])
        measured = Pose(position)
        out = guard.filter(Command(twist=Twist.of(six)), measured)
        if isinstance(out, Stop):
            assert not geometry.all_finite(six)
            out, stops = guard.brake(), stops + 1
        else:
            moved += 1
        check_twist(limits, sent, out.twist)
        sent = [sent[-1], out.twist]
        position = geometry.add(position, geometry.scale(out.twist.linear, DT))
        assert all(a <= p <= b for p, a, b in zip(position, *BOX, strict=True))
    return stops, moved


def test_a_storm_of_commands():
    stops, moved = storm(20_000, 1)
    assert stops > 5 and moved > 19_000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_commands():
    stops, moved = storm(1_000_000, 2)
    assert stops + moved == 1_000_000 and stops > 500
