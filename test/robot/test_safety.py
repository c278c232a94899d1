"""The safety filter: whatever comes in, what goes out is finite and within limits."""

import math
import random

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


def check_twist(limits, before, out, measured):
    """Every limit of one Cartesian output. ``before`` is the last output."""
    assert out.finite()
    v, w = geometry.norm(out.linear), geometry.norm(out.angular)
    assert v <= limits.translation_speed * TIGHT and v * DT <= limits.translation_step * TIGHT
    assert w <= limits.rotation_speed * TIGHT and w * DT <= limits.rotation_step * TIGHT
    turned = geometry.norm(geometry.subtract(out.angular, before.angular))
    assert turned <= limits.rotation_acceleration * DT * TIGHT + 1e-12
    change = geometry.subtract(out.linear, before.linear)
    if limits.workspace is None:
        assert geometry.norm(change) <= limits.translation_acceleration * DT * TIGHT + 1e-12
        return
    for i, (p, low, high) in enumerate(zip(measured.position, *limits.workspace, strict=True)):
        ahead = p + out.linear[i] * (DT + limits.reaction_s)
        if low <= p <= high:
            assert low - 1e-12 <= ahead <= high + 1e-12
        else:  # outside: inwards or not at all
            assert out.linear[i] * (0.5 * (low + high) - p) >= 0.0
        # No axis speeds up faster than allowed; only a wall may slow it down faster.
        if abs(out.linear[i]) > abs(before.linear[i]) or out.linear[i] * before.linear[i] < 0.0:
            assert abs(change[i]) <= limits.translation_acceleration * DT * TIGHT + 1e-12


@settings(max_examples=400, deadline=None)
@given(
    limits_of_any_size,
    st.lists(st.tuples(any_vector, any_vector, some_vector), min_size=1, max_size=30),
)
def test_twists_of_any_kind_come_out_finite_and_within_limits(limits, commands):
    guard, before = SafetyFilter(limits, DT), Twist()
    for linear, angular, position in commands:
        measured = Pose(position)
        out = guard.filter(Command(twist=Twist(linear, angular)), measured)
        if isinstance(out, Stop):
            assert out.reason == safety.NOT_FINITE and not Twist(linear, angular).finite()
            before = Twist()
        else:
            assert Twist(linear, angular).finite()
            check_twist(limits, before, out.twist, measured)
            before = out.twist


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
def test_safe_input_passes_unchanged(speed, turn, linear, angular, gripper):
    limits = SafetyLimits(workspace=BOX)
    guard = SafetyFilter(limits, DT)

    def inside(vector, fastest, share):
        return geometry.scale(vector, share * fastest / max(1e-9, geometry.norm(vector)))

    # Within what one period may accelerate to from rest, which is less than the speed limit.
    safe = Twist(inside(linear, 2.0 * DT, speed), inside(angular, 8.0 * DT, turn))
    out = guard.filter(Command(twist=safe, gripper=gripper), MIDDLE)
    assert out == Command(twist=safe, gripper=gripper)
    assert guard.filter(out, MIDDLE) == out  # and again


@settings(max_examples=200, deadline=None)
@given(limits_of_any_size, st.lists(st.tuples(some_vector, some_vector), min_size=1, max_size=20))
def test_what_came_out_may_go_in_again(limits, commands):
    first, second = SafetyFilter(limits, DT), SafetyFilter(limits, DT)
    limits_free = limits.workspace is None
    for linear, angular in commands:
        once = first.filter(Command(twist=Twist(linear, angular)), MIDDLE)
        twice = second.filter(once, MIDDLE)
        if limits_free:
            assert twice.twist == once.twist


JOINTS = {
    'a': JointLimit(-1.0, 1.0, 2.0, 10.0),
    'b': JointLimit(-0.1, 3.0, 0.5, 100.0),
    'c': JointLimit(velocity=1.0),
}


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(anything, anything, anything), min_size=1, max_size=60),
    st.tuples(st.floats(-1.5, 1.5), st.floats(-1.0, 4.0), st.floats(-9.0, 9.0)),
)
def test_joint_commands_come_out_finite_and_within_limits(commands, start):
    guard = SafetyFilter(SafetyLimits(joints=JOINTS), DT)
    names = tuple(JOINTS)
    measured = dict(zip(names, start, strict=True))
    before, at = dict.fromkeys(names, 0.0), dict(measured)
    for wanted in commands:
        out = guard.filter(Command(joints=names, velocities=wanted), measured_joints=measured)
        if isinstance(out, Stop):
            assert out.reason == safety.NOT_FINITE and not geometry.all_finite(wanted)
            before, at = dict.fromkeys(names, 0.0), dict(measured)
            continue
        for name, v, q in zip(names, out.velocities, out.positions, strict=True):
            limit = JOINTS[name]
            assert math.isfinite(v) and abs(v) <= limit.velocity * TIGHT
            faster = abs(v) > abs(before[name]) or v * before[name] < 0.0
            assert not faster or abs(v - before[name]) <= limit.acceleration * DT * TIGHT
            if limit.lower <= at[name] <= limit.upper:
                assert limit.lower - 1e-12 <= q <= limit.upper + 1e-12
            else:
                assert abs(q - 0.5 * (limit.lower + limit.upper)) <= abs(
                    at[name] - 0.5 * (limit.lower + limit.upper)
                )
            before[name], at[name] = v, q


def test_joints_beyond_a_speed_limit_keep_their_proportion():
    guard = SafetyFilter(
        SafetyLimits(joints={'a': JointLimit(velocity=1.0), 'b': JointLimit(velocity=9.0)}), DT
    )
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
    for command in (
        Command(twist=Twist((bad, 0, 0))),
        Command(twist=Twist((0, 0, 0), (0, bad, 0))),
        Command(twist=Twist(), gripper=bad),
        Command(joints=('a',), velocities=(bad,)),
    ):
        assert guard.filter(command, MIDDLE, {'a': 0.0}).reason == safety.NOT_FINITE
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
        SafetyFilter(SafetyLimits(joints=JOINTS), DT)
        .filter(Command(joints=('a',), velocities=(0.1,)))
        .reason
        == safety.NO_POSE
    )


def test_joints_without_limits_are_not_moved():
    guard = SafetyFilter(SafetyLimits(), DT)
    out = guard.filter(Command(joints=('x',), velocities=(0.1,)), measured_joints={'x': 0.0})
    assert out.reason == safety.UNKNOWN_JOINT
    out = guard.filter(Command(joints=('x',), velocities=(0.1, 0.2)), measured_joints={'x': 0.0})
    assert out.reason == safety.UNKNOWN_JOINT


def test_an_arm_that_does_not_follow_is_stopped():
    limits = SafetyLimits(lead=(0.02, 0.2))
    guard = SafetyFilter(limits, DT, tracked=True)
    out = None
    for _ in range(50):  # blocked: the measured pose stays
        out = guard.filter(Command(twist=Twist((0.2, 0.0, 0.0))), MIDDLE)
        if isinstance(out, Stop):
            break
        assert out.pose.position[0] - MIDDLE.position[0] <= 0.02 + 0.25 * DT
    assert out.reason == safety.NOT_FOLLOWING and 'behind its command' in out.detail


@pytest.mark.parametrize('latched', [False, True])
def test_a_stop_holds_until_enabled_where_so_configured(latched):
    reasons = frozenset({safety.NOT_FINITE} if latched else ())
    guard = SafetyFilter(SafetyLimits(latched=reasons), DT)
    good = Command(twist=Twist((0.01, 0.0, 0.0)))
    assert guard.filter(good) == good
    assert isinstance(guard.filter(Command(twist=Twist((math.nan, 0, 0)))), Stop)
    for _ in range(10):
        assert isinstance(guard.filter(good), Stop) == latched
    guard.enable()
    assert guard.filter(good) == good


def test_motion_starts_from_rest_after_a_stop():
    guard = SafetyFilter(SafetyLimits(), DT)
    for _ in range(50):
        guard.filter(Command(twist=Twist((0.2, 0.0, 0.0))))
    guard.filter(Command(twist=Twist((math.nan, 0.0, 0.0))))
    out = guard.filter(Command(twist=Twist((0.2, 0.0, 0.0))))
    assert out.twist.linear[0] == pytest.approx(2.0 * DT)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        ({'translation_speed': 0.0}, 'translation_speed is 0.0'),
        ({'rotation_acceleration': math.nan}, 'rotation_acceleration is nan'),
        ({'workspace': ((0, 0, 0), (1, 0, 1))}, 'must be below highest'),
        ({'workspace': ((0, 0, 0), (1, math.inf, 1))}, 'corners must be finite'),
        ({'lead': (0.0, 1.0)}, 'lead is'),
        ({'reaction_s': -1.0}, 'reaction_s is -1.0'),
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
        latched=frozenset({safety.NOT_FINITE}),
    )
    guard, before, position = SafetyFilter(limits, DT), Twist(), (0.5, 0.0, 0.3)
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
            assert not geometry.all_finite(six) and guard.stopped is not None
            assert isinstance(guard.filter(Command(twist=Twist()), measured), Stop)
            guard.enable()
            stops, before = stops + 1, Twist()
            continue
        check_twist(limits, before, out.twist, measured)
        before, moved = out.twist, moved + 1
        position = geometry.add(position, geometry.scale(out.twist.linear, DT))
    return stops, moved


def test_a_storm_of_commands():
    stops, moved = storm(20_000, 1)
    assert stops > 5 and moved > 19_000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_commands():
    stops, moved = storm(1_000_000, 2)
    assert stops + moved == 1_000_000 and stops > 500
