import math

import numpy as np
import pytest

from specprune_ros.robot import geometry
from specprune_ros.robot.speed import (
    MAX_JOINTS,
    ActionSpeed,
    JointSpeed,
    JointStateError,
    SpeedError,
    TwistSpeed,
    UrdfError,
)
from specprune_ros.sim.arm import rizon4
from specprune_ros.sim.arm.urdf import urdf

NAMES = [joint.name for joint in rizon4.JOINTS]
HOME = list(rizon4.HOME)
SECOND = 1_000_000_000


def wheel(joint='continuous', name='turn', base_yaw=0.0):
    """A one-metre arm about z on a base that is turned by ``base_yaw``."""
    limit = '<limit lower="-1" upper="1" effort="1" velocity="2"/>'
    return f"""<robot name="wheel"><link name="world"/><link name="base"/><link name="hand"/>
      <link name="tip"/>
      <joint name="mount" type="fixed"><parent link="world"/><child link="base"/>
        <origin rpy="0 0 {base_yaw}"/></joint>
      <joint name="{name}" type="{joint}"><parent link="base"/><child link="hand"/>
        <axis xyz="0 0 1"/>{limit if joint == 'revolute' else ''}</joint>
      <joint name="fix" type="fixed"><parent link="hand"/><child link="tip"/>
        <origin xyz="1 0 0"/></joint></robot>"""


def random_motion(seed, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        q = rng.uniform([j.lower for j in rizon4.JOINTS], [j.upper for j in rizon4.JOINTS])
        yield q, rng.uniform(-1, 1, 7)


def test_velocity_is_the_derivative_of_the_pose():
    arm = JointSpeed(urdf(), 'tcp')
    h = 1e-6
    for q, v in random_motion(1, 50):
        speed = arm.update(NAMES, q, v, 0)
        a, b = arm.tool_pose(NAMES, q - h * v), arm.tool_pose(NAMES, q + h * v)
        twist = geometry.twist_between(a, b, 2 * h)
        assert np.allclose(speed.linear, twist.linear, atol=1e-6)
        assert np.allclose(speed.angular, twist.angular, atol=1e-6)
        assert speed.source == 'joint_states' and speed.frame == 'base_link'


def test_jacobian_maps_joint_to_tool_velocity():
    arm = JointSpeed(urdf(), 'tcp')
    for q, v in random_motion(2, 20):
        speed = arm.update(NAMES, q, v, 0)
        assert np.allclose(arm.jacobian(NAMES, q) @ v, speed.linear + speed.angular, atol=1e-9)


def test_joints_are_matched_by_name_not_order():
    arm = JointSpeed(urdf(), 'tcp')
    (q, v) = next(random_motion(3, 1))
    expected = arm.update(NAMES, q, v, 0)
    names = ['finger_left_joint', *NAMES[::-1], 'lamp']
    mixed = arm.update(names, [0.01, *q[::-1], 5.0], [0.3, *v[::-1], math.nan], 1)
    assert np.allclose(mixed.linear, expected.linear, atol=1e-12)
    assert np.allclose(mixed.angular, expected.angular, atol=1e-12)


@pytest.mark.parametrize('prefix_in_urdf', [True, False])
def test_prefix_is_accepted_on_either_side(prefix_in_urdf):
    text = wheel(name='Rizon4-1_turn' if prefix_in_urdf else 'turn')
    arm = JointSpeed(text, 'tip', prefix='Rizon4-1_')
    name = 'turn' if prefix_in_urdf else 'Rizon4-1_turn'
    assert arm.update([name], [0.0], [2.0], 0).linear == pytest.approx((0.0, 2.0, 0.0))


def test_missing_joints_are_listed():
    arm = JointSpeed(urdf(), 'tcp')
    with pytest.raises(JointStateError, match='lacks joint6, joint7; it has joint1'):
        arm.update(NAMES[:5], HOME[:5], None, 0)
    with pytest.raises(JointStateError, match='no names at all'):
        arm.update([], [], [], 0)
    with pytest.raises(JointStateError, match="'joint1' is named twice"):
        arm.update([*NAMES, 'joint1'], [*HOME, 0.0], None, 0)


def test_a_joint_state_may_name_so_many_joints_and_no_more():
    arm = JointSpeed(urdf(), 'tcp')
    more = [f'lamp{i}' for i in range(MAX_JOINTS - len(NAMES))]
    assert arm.update([*NAMES, *more], [*HOME, *([0.0] * len(more))], None, 0) is None
    for read in (arm.tool_pose, lambda n, q: arm.update(n, q, None, 0)):
        with pytest.raises(JointStateError, match=f'{MAX_JOINTS + 1} names; at most {MAX_JOINTS}'):
            read([*NAMES, *more, 'one'], [*HOME, *([0.0] * len(more)), 0.0])


def test_nan_and_lengths_are_refused_with_the_joint_named():
    arm = JointSpeed(urdf(), 'tcp')
    q = HOME.copy()
    q[2] = math.nan
    with pytest.raises(JointStateError, match="position of 'joint3' is nan"):
        arm.update(NAMES, q, None, 0)
    v = [0.0] * 7
    v[4] = math.inf
    with pytest.raises(JointStateError, match="velocity of 'joint5' is inf"):
        arm.update(NAMES, HOME, v, 0)
    with pytest.raises(JointStateError, match='6 positions for 7 names'):
        arm.update(NAMES, HOME[:6], None, 0)
    with pytest.raises(JointStateError, match='3 velocities for 7 names'):
        arm.update(NAMES, HOME, [0.0] * 3, 0)
    assert arm.update(NAMES, HOME, [0.1] * 7, 0) is not None  # and goes on afterwards


def swing(arm, rate, seconds, velocities=None, turn=None):
    """Feed a sine on every joint at ``rate`` Hz; yields (speed, true speed)."""
    names, centre = NAMES, np.array(HOME)
    for i in range(int(rate * seconds)):
        t = i / rate
        q = centre + 0.3 * np.sin(2.0 * t)
        v = 0.6 * np.cos(2.0 * t) * np.ones(7)
        yield arm.update(names, q, velocities, int(t * SECOND)), arm.jacobian(names, q) @ v


@pytest.mark.parametrize('velocities', [None, [], [math.nan] * 7])
def test_without_velocities_positions_are_differentiated(velocities):
    arm = JointSpeed(urdf(), 'tcp')
    pairs = list(swing(arm, 100.0, 3.0, velocities))
    assert pairs[0][0] is None
    error = [
        np.linalg.norm(np.array(s.linear) - true[:3]) / np.linalg.norm(true[:3])
        for s, true in pairs[30:]
        if np.linalg.norm(true[:3]) > 0.05
    ]
    # The low-pass of 10 Hz lags by 16 ms: 0.6 m/s changing at 2 rad/s.
    assert np.median(error) < 0.05 and max(error) < 0.6


def test_filter_takes_out_quantisation_noise():
    rng = np.random.default_rng(0)
    smooth, rough = JointSpeed(urdf(), 'tcp'), JointSpeed(urdf(), 'tcp', cutoff_hz=1e6)
    spread = {}
    for name, arm in (('smooth', smooth), ('rough', rough)):
        rng = np.random.default_rng(0)
        values = [
            arm.update(NAMES, np.array(HOME) + rng.normal(0, 1e-4, 7), None, i * 2_000_000)
            for i in range(500)
        ]
        spread[name] = np.mean([s.translation for s in values[50:]])
    assert spread['smooth'] < 0.3 * spread['rough']


def test_a_clock_jump_or_a_gap_gives_no_speed():
    arm = JointSpeed(wheel(), 'tip')
    arm.update(['turn'], [0.0], None, 10 * SECOND)
    assert arm.update(['turn'], [0.1], None, 10 * SECOND + SECOND // 10) is not None
    assert arm.update(['turn'], [0.1], None, 3 * SECOND) is None  # backwards
    assert arm.update(['turn'], [0.2], None, 3 * SECOND + SECOND // 10).linear[1] == pytest.approx(
        math.cos(0.2), rel=1e-6
    )
    assert arm.update(['turn'], [2.0], None, 9 * SECOND) is None  # a gap


def test_a_repeated_stamp_repeats_the_speed():
    arm = JointSpeed(wheel(), 'tip')
    arm.update(['turn'], [0.0], None, 0)
    first = arm.update(['turn'], [0.1], None, SECOND // 10)
    assert arm.update(['turn'], [0.3], None, SECOND // 10) == first


def test_a_continuous_joint_turns_past_pi_without_a_jump():
    arm = JointSpeed(wheel(), 'tip', cutoff_hz=1e6)
    speeds = []
    for i in range(100):
        turned = math.remainder(3.0 + 0.01 * i, 2 * math.pi)
        speeds.append(arm.update(['turn'], [turned], None, i * SECOND // 100))
    assert all(s.translation == pytest.approx(1.0, rel=1e-6) for s in speeds[1:])
    assert arm.limits()['turn'][:2] == (-math.inf, math.inf)


def test_speed_is_given_in_the_base_frame():
    world = JointSpeed(wheel(base_yaw=math.pi / 2), 'tip')
    base = JointSpeed(wheel(base_yaw=math.pi / 2), 'tip', base_frame='base')
    assert world.update(['turn'], [0.0], [1.0], 0).linear == pytest.approx((-1.0, 0.0, 0.0))
    speed = base.update(['turn'], [0.0], [1.0], 0)
    assert speed.linear == pytest.approx((0.0, 1.0, 0.0)) and speed.frame == 'base'
    assert base.tool_pose(['turn'], [0.0]).position == pytest.approx((1.0, 0.0, 0.0))
    assert base.jacobian(['turn'], [0.0])[:3, 0] == pytest.approx((0.0, 1.0, 0.0))


def test_downwards_is_negative():
    arm = JointSpeed(urdf(), 'tcp')
    down = np.linalg.pinv(arm.jacobian(NAMES, HOME)) @ [0, 0, -0.1, 0, 0, 0]
    speed = arm.update(NAMES, HOME, down, 5)
    assert speed.vertical == pytest.approx(-0.1) and speed.translation == pytest.approx(0.1)
    assert speed.rotation == pytest.approx(0.0, abs=1e-9)
    assert speed.age_s(5 + SECOND) == 1.0


def test_home_pose_is_where_the_published_kinematics_puts_it():
    pose = JointSpeed(urdf(), 'flange').tool_pose(NAMES, HOME)
    assert pose.position[1] == pytest.approx(-0.113, abs=1e-3)
    down = geometry.rotate(pose.orientation, (0.0, 0.0, 1.0))
    assert down == pytest.approx((0.0, 0.0, -1.0), abs=1e-6)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'robot_description is empty'),
        ('<robot name="x"', 'robot_description does not parse'),
        ('hello', 'robot_description does not parse'),
        ('<html/>', 'robot_description does not parse'),
        (' ' * 8_000_001 + 'x', 'has 8000002 characters'),
    ],
)
def test_an_unusable_description_says_why(text, message):
    with pytest.raises(UrdfError, match=message):
        JointSpeed(text, 'tip')


def test_frames_and_joints_that_do_not_exist_are_named():
    with pytest.raises(UrdfError, match="tip_frame: robot_description has no link 'tool'.*tip"):
        JointSpeed(wheel(), 'tool')
    with pytest.raises(UrdfError, match='no movable joint named elbow; it has turn'):
        JointSpeed(wheel(), 'tip', ['elbow'])
    with pytest.raises(UrdfError, match='no movable joint above'):
        JointSpeed(wheel(), 'base')


def test_limits_come_from_the_urdf():
    assert JointSpeed(wheel('revolute'), 'tip').limits() == {'turn': (-1.0, 1.0, 2.0)}


def test_twist_passes_on_what_is_measured():
    speed = TwistSpeed('base').update((0.3, 0.0, -0.4), (0, 0, 1), 7, 'base')
    assert (speed.translation, speed.vertical, speed.rotation) == (0.5, -0.4, 1.0)
    assert (speed.source, speed.frame, speed.stamp_ns) == ('twist', 'base', 7)
    with pytest.raises(SpeedError, match='not six finite'):
        TwistSpeed().update((math.nan, 0, 0), (0, 0, 0), 0)
    with pytest.raises(SpeedError, match="in frame 'tool', expected 'base'"):
        TwistSpeed('base').update((0, 0, 0), (0, 0, 0), 0, 'tool')


def test_action_speed_is_delta_over_step_time():
    rows = [[0.01, 0.0, -0.02, 0, 0, 0.1, 1.0], [0.03, 0.0, -0.02, 0, 0, 0.1, 1.0]]
    speed = ActionSpeed('base', 0.1).update(rows, 3)
    assert speed.linear == pytest.approx((0.2, 0.0, -0.2))
    assert speed.angular == pytest.approx((0.0, 0.0, 1.0))
    assert ActionSpeed('base', 0.1).update(rows[-1:], 3).linear[0] == pytest.approx(0.3)
    for bad in ([], [[1, 2]], [[math.nan] * 7]):
        with pytest.raises(SpeedError):
            ActionSpeed('base', 0.1).update(bad, 0)
    with pytest.raises(SpeedError, match='step_dt is 0'):
        ActionSpeed('base', 0.0)


def test_speed_agrees_with_the_simulators_own():
    """Issue "On the arm": relative error under 1 % above 2 cm/s against MuJoCo's TCP velocity."""
    pytest.importorskip('mujoco')
    from specprune_ros.sim.arm.world import World

    world = World()
    try:
        world.reset(0)
        arm = JointSpeed(urdf(), 'tcp')
        errors = []
        for i in range(200):
            phase = 0.05 * i
            world.command_twist(
                (0.15 * math.cos(phase), 0.12 * math.sin(phase), -0.05 * math.sin(2 * phase)),
                (0.0, 0.0, 0.3 * math.sin(phase)),
            )
            world.advance(0.02)
            speed = arm.update(
                world.joint_names,
                world.joint_positions,
                world.joint_velocities,
                int(world.time * SECOND),
            )
            linear, angular = world.tcp_twist()
            norm = np.linalg.norm(linear)
            if norm > 0.02:
                errors.append(np.linalg.norm(np.array(speed.linear) - linear) / norm)
            assert np.allclose(speed.angular, angular, atol=1e-3)
        assert len(errors) > 100 and max(errors) < 0.01
    finally:
        world.close()


def test_velocities_of_zero_are_not_believed_while_positions_move():
    arm = JointSpeed(wheel(), 'tip')
    speeds = [arm.update(['turn'], [0.005 * i], [0.0], i * SECOND // 100) for i in range(1, 40)]
    assert speeds[-1].translation == pytest.approx(0.5, rel=0.02)
    assert 'velocities are 0 while positions move at 0.50 rad/s' in arm.contradiction
    for i in range(40, 140):
        still = arm.update(['turn'], [0.005 * 39], [0.0], i * SECOND // 100)
    assert still.translation == 0.0 and not arm.contradiction


def test_joint_states_of_a_second_publisher_are_refused():
    """Zeros in between were believed at 50 m/s."""
    arm = JointSpeed(wheel(), 'tip')
    speeds = []
    for i in range(1, 100):
        if i % 2:
            speeds.append(arm.update(['turn'], [1.0], None, i * SECOND // 100))
        else:
            with pytest.raises(JointStateError, match='jumps by 1.000 rad in 0.010 s'):
                arm.update(['turn'], [0.0], None, i * SECOND // 100)
    assert max(speed.translation for speed in speeds[1:]) == 0.0
    with pytest.raises(JointStateError, match='is said to move at 50'):
        arm.update(['turn'], [1.0], [50.0], SECOND)
