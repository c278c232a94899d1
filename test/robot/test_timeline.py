import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from specprune_ros.robot import chunk as chunks
from specprune_ros.robot import geometry, timeline
from specprune_ros.robot.chunk import Chunk, ChunkError, ChunkRules, LateChunkError, check
from specprune_ros.robot.geometry import Pose
from specprune_ros.robot.timeline import ChunkTimeline

SECOND = 1_000_000_000
TICK = 10_000_000
JOINTS = ('a', 'b')
RULES = ChunkRules(frames=('base', 'tool'), joints=JOINTS)
XYZ_RV = ('x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper')


def chunk(rows=None, *, stamp=0, sequence=1, **fields):
    rows = np.zeros((8, 7)) if rows is None else np.asarray(rows, dtype=float)
    values = {
        'stamp_ns': stamp,
        'frame': 'base',
        'sequence': sequence,
        'episode': 1,
        'step_dt': 0.1,
        'horizon': len(rows),
        'dims': XYZ_RV,
        'kind': chunks.KIND_EE_DELTA,
        'rotation': chunks.ROTATION_VECTOR,
        'reference': chunks.REFERENCE_PREVIOUS_STEP,
        'data': rows,
        'gripper_dim': 6,
    }
    return Chunk(**(values | fields))


def along_x(*steps, gripper=1.0):
    return np.array([[step, 0, 0, 0, 0, 0, gripper] for step in steps])


class Arm:
    """Follows setpoints perfectly at 100 Hz."""

    def __init__(self, rule=timeline.LATEST, **options):
        self.line = ChunkTimeline(RULES, rule, **options)
        self.now = SECOND
        self.pose = Pose((0.0, 0.0, 0.0))
        self.speeds = []
        self.setpoints = []

    def add(self, c, **where):
        return self.line.add(c, self.now, **where)

    def run(self, seconds):
        for _ in range(round(seconds * 100)):
            out = self.line.sample(self.now)
            self.setpoints.append(out)
            if out.twist is not None:
                self.pose = geometry.integrate(self.pose, out.twist, 0.01)
                self.speeds.append(out.twist.linear[0])
            else:
                self.speeds.append(0.0)
            self.now += TICK
        return self.setpoints[-1] if self.setpoints else None


# What is refused.


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'kind': 9}, 'kind is 9; known are 0 to 3'),
        ({'step_dt': 0.0}, 'step_dt is 0.0 s; above 0'),
        ({'step_dt': -0.1}, 'step_dt is -0.1 s'),
        ({'step_dt': math.nan}, 'step_dt is nan'),
        ({'step_dt': 60.0}, 'at most 10.0 s'),
        ({'horizon': 0}, 'horizon is 0; 1 to 256'),
        ({'horizon': 1_000_000}, 'horizon is 1000000'),
        ({'horizon': 7}, 'data has 56 values; horizon 7 x dims 7 is 49'),
        ({'data': np.zeros(3)}, 'data has 3 values'),
        ({'data': np.full((8, 7), math.nan)}, 'data is not finite'),
        ({'data': np.full((8, 7), math.inf)}, 'data is not finite'),
        ({'data': np.full((8, 7), 1e6)}, 'data reaches 1e'),
        ({'data': np.full((8, 7), -1.0)}, 'gripper column runs from -1 to -1; 0.0 to 1.0'),
        ({'gripper_dim': 7}, 'gripper_dim is 7; -1 to 6'),
        ({'gripper_dim': -2}, 'gripper_dim is -2'),
        ({'gripper_dim': -1}, 'dims are x y z rx ry rz gripper; with this rotation form x y z'),
        ({'gripper_sense': 2}, 'gripper_sense is 2; 0 .open. or 1'),
        ({'rotation': 0}, 'rotation is 0; an end-effector row needs 1'),
        ({'rotation': 7}, 'rotation is 7'),
        ({'rotation': chunks.ROTATION_QUATERNION}, 'dims are x y z rx ry rz; .*qx qy qz qw'),
        ({'reference': 0}, 'reference is 0; ee_delta needs 1 or 2'),
        ({'kind': chunks.KIND_EE_POSE}, 'reference is 1; ee_pose needs 0'),
        ({'frame': 'camera'}, "frame_id is 'camera'; this robot knows base, tool"),
        ({'frame': ''}, "frame_id is ''"),
        ({'dims': ('y', 'x', 'z', 'rx', 'ry', 'rz', 'gripper')}, 'dims are y x z'),
        ({'dims': ('x', 'x', 'z', 'rx', 'ry', 'rz', 'gripper')}, 'dims holds a name twice'),
        ({'dims': ()}, 'data has 56 values'),
        ({'first_valid_step': 9}, 'first_valid_step is 9 of 8 rows'),
        ({'kind': chunks.KIND_JOINT_DELTA}, 'rotation is 1; a joint chunk has 0'),
        (
            {'kind': chunks.KIND_JOINT_DELTA, 'rotation': 0},
            'dims name the joints rx, ry, rz, x, y, z; this robot has a, b',
        ),
    ],
)
def test_a_chunk_that_cannot_be_read_is_refused_by_field(fields, message):
    check(chunk(), RULES)
    with pytest.raises(ChunkError, match=message):
        check(chunk(**fields), RULES)


def test_kinds_the_robot_does_not_take_are_refused():
    with pytest.raises(ChunkError, match='kind is ee_delta; this robot takes joint_position'):
        check(chunk(), ChunkRules(('base',), (), (chunks.KIND_JOINT_POSITION,)))


def test_quaternions_must_be_of_unit_length():
    dims = ('x', 'y', 'z', 'qx', 'qy', 'qz', 'qw')
    rows = np.tile([0, 0, 0, 0, 0, 0, 2.0], (2, 1))
    with pytest.raises(ChunkError, match='not of unit length'):
        check(chunk(rows, dims=dims, rotation=3, gripper_dim=-1), RULES)


def test_duplicates_reordered_and_future_chunks_are_late_not_wrong():
    arm = Arm()
    arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now, sequence=5))
    for stamp in (arm.now, arm.now - TICK):
        with pytest.raises(LateChunkError, match='duplicated or out of order'):
            arm.add(chunk(stamp=stamp, sequence=6))
    with pytest.raises(LateChunkError, match='3600.000 s in the future.*use_sim_time'):
        arm.add(chunk(stamp=arm.now + 3600 * SECOND, sequence=6))


def test_a_chunk_whose_steps_were_all_executed_is_late():
    arm = Arm()
    arm.run(0.05)
    arm.add(chunk(along_x(*[0.01] * 20), stamp=arm.now))
    arm.run(1.0)
    with pytest.raises(LateChunkError, match='all 8 steps lie in the past'):
        arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now - SECOND + 50_000_000, sequence=2))


# What is executed.


def test_a_chunk_moves_by_the_sum_of_its_rows():
    arm = Arm()
    rows = np.column_stack(
        [np.linspace(0.01, 0.03, 8), np.full(8, -0.01), np.zeros(8), np.zeros((8, 2)),
         np.full(8, 0.05), np.ones(8)]
    )  # fmt: skip
    arm.add(chunk(rows, stamp=arm.now))
    assert arm.run(1.0).done
    assert arm.pose.position == pytest.approx(rows[:, :3].sum(axis=0), abs=1e-3)
    assert geometry.rotation_vector(arm.pose.orientation)[2] == pytest.approx(0.4, abs=1e-2)


def test_nothing_is_skipped_from_standstill_however_long_the_query_took():
    arm = Arm()
    arm.run(6.0)  # the first query: six seconds of loading and warm-up
    joined = arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now - 6 * SECOND + TICK))
    assert joined.skipped == 0.0
    arm.run(1.0)
    assert arm.pose.position[0] == pytest.approx(0.08, abs=1e-6)


def test_a_pause_between_chunks_skips_nothing_either():
    arm = Arm()
    arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now))
    arm.run(3.0)  # 0.8 s of motion, then dry
    joined = arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now - SECOND, sequence=2))
    assert joined.skipped == 0.0
    arm.run(1.0)
    assert arm.pose.position[0] == pytest.approx(0.16, abs=1e-4)


def test_steps_executed_since_the_observation_are_left_out():
    arm = Arm()
    arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now))
    arm.run(0.4)
    observed = arm.now
    arm.run(0.2)
    joined = arm.add(chunk(along_x(*[0.01] * 8), stamp=observed, sequence=2))
    assert joined.skipped == pytest.approx(2.0, abs=0.11)
    assert joined.overlap == pytest.approx(2.0, abs=0.2)
    arm.run(2.0)
    # Four steps before the image, eight after it: none twice, none lost.
    assert arm.pose.position[0] == pytest.approx(0.12, abs=0.002)


def test_a_stop_in_between_counts_only_what_was_executed():
    arm = Arm()
    arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now))
    arm.run(0.3)
    observed = arm.now
    arm.run(0.1)
    arm.line.stop()
    arm.now += 2 * SECOND
    joined = arm.add(chunk(along_x(*[0.01] * 8), stamp=observed, sequence=2))
    assert joined.skipped == pytest.approx(1.0, abs=0.11)


def test_a_held_up_loop_does_not_count_as_motion():
    arm = Arm()
    arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now))
    arm.run(0.1)
    arm.now += 5 * SECOND  # the process was suspended
    assert not arm.run(0.01).done
    assert arm.line.executed(arm.now) == pytest.approx(0.2, abs=0.02)


def test_a_new_episode_drops_the_old_motion():
    arm = Arm()
    arm.add(chunk(along_x(*[0.05] * 8), stamp=arm.now))
    arm.run(0.2)
    joined = arm.add(chunk(along_x(*[-0.01] * 8), stamp=arm.now, sequence=2, episode=2))
    assert joined.new_start
    arm.run(0.01)
    assert arm.speeds[-1] == pytest.approx(-0.1)
    assert arm.setpoints[-1].episode == 2


def test_a_restarted_policy_counting_from_one_is_taken():
    arm = Arm()
    arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now, sequence=900))
    arm.run(0.1)
    assert arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now, sequence=1)).new_start


@pytest.mark.parametrize('stopped', [False, True])
def test_a_clock_going_back_forgets_everything(stopped):
    arm = Arm()
    arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now))
    arm.run(0.2)
    if stopped:
        arm.line.stop()
    arm.now -= SECOND
    if not stopped:
        assert arm.run(0.01).done
    assert arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now, sequence=2)).skipped == 0.0


def test_gripper_opening_follows_rows_and_sense():
    arm = Arm()
    rows = along_x(*[0.0] * 8)
    rows[4:, 6] = 0.0
    arm.add(chunk(rows, stamp=arm.now))
    assert arm.run(0.3).gripper == 1.0
    assert arm.run(0.3).gripper == 0.0
    closed = chunk(rows, gripper_sense=chunks.GRIPPER_ONE_IS_CLOSED)
    assert closed.opening.tolist() == [0] * 4 + [1] * 4
    assert chunk(rows[:, :6], dims=XYZ_RV[:6], gripper_dim=-1).opening is None


# Joining.


@pytest.mark.parametrize('rule', timeline.JOINING_RULES)
@pytest.mark.parametrize('delay', [0.05, 0.25])
def test_seams_jump_no_more_than_the_inside(rule, delay):
    """A policy that plans 8 steps of a smooth motion with errors, queried every 0.4 s."""
    rng = np.random.default_rng(7)
    arm = Arm(rule)
    seams, since = [], 0
    for query in range(1, 20):
        observed, t0 = arm.now, (arm.now - SECOND) * 1e-9
        arm.run(delay)
        times = t0 + 0.1 * np.arange(8)
        bias = rng.normal(0, 0.002)  # m per step: chunks disagree by 2 cm/s
        steps = 0.02 * np.sin(1.5 * times) + bias + rng.normal(0, 0.003, 8)
        since = len(arm.speeds)
        arm.add(chunk(along_x(*steps), stamp=observed, sequence=query))
        seams.append(since)
        arm.run(0.4 - delay)
    jumps = np.abs(np.diff(arm.speeds))
    at_seams = jumps[[s - 1 for s in seams[1:]]]
    inside = np.delete(jumps, [s - 1 for s in seams])
    assert at_seams.max() <= inside.max()


def test_weighted_overlap_goes_over_more_slowly_than_latest():
    paths = {}
    for rule in timeline.JOINING_RULES:
        arm = Arm(rule)
        arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now))
        arm.run(0.2)
        arm.add(chunk(along_x(*[0.03] * 8), stamp=arm.now, sequence=2))
        arm.run(0.7)
        paths[rule] = np.array(arm.speeds[20:])
    latest, weighted = paths[timeline.LATEST], paths[timeline.WEIGHTED_OVERLAP]
    assert latest[11] == pytest.approx(0.3) and latest[0] == pytest.approx(0.1, abs=0.03)
    middle = len(weighted[:60]) // 2
    assert weighted[middle] == pytest.approx(0.2, abs=0.02)
    assert np.all(np.diff(weighted[:60]) >= -1e-9)


@pytest.mark.parametrize('horizon', [2, 7])
def test_the_adaptive_ensemble_runs_what_cogacts_runs(horizon):
    """One query per step of 0.1 s; in the middle of each step, its algorithm written out."""
    rng = np.random.default_rng(3)
    arm = Arm(timeline.ADAPTIVE_ENSEMBLE, ensemble=horizon)
    history = []
    for query in range(12):
        rows = np.hstack([rng.normal(0, 0.02, (8, 6)), rng.uniform(0, 1, (8, 1))])
        history = [*history, rows][-horizon:]
        arm.add(chunk(rows, stamp=arm.now, sequence=query + 1))
        # The first sample of a motion stands at its beginning, every other a tick further.
        first = query == 0
        found = [arm.run(0.01) for _ in range(10 + first)][4 + first]
        now = np.array([past[age] for age, past in enumerate(history[::-1])])[::-1]
        cos = now @ now[-1] / (np.linalg.norm(now, axis=1) * np.linalg.norm(now[-1]) + 1e-7)
        weights = np.exp(0.1 * cos)
        expected = (weights / weights.sum()) @ now
        np.testing.assert_allclose(found.twist.six, expected[:6] / 0.1, atol=1e-9)
        assert found.gripper == float(expected[6] > 0.5)


def test_an_ensemble_does_not_mix_chunks_of_other_columns():
    arm = Arm(timeline.ADAPTIVE_ENSEMBLE)
    arm.add(chunk(np.full((8, 6), 0.01), stamp=arm.now, dims=XYZ_RV[:6], gripper_dim=-1))
    arm.run(0.1)
    arm.add(chunk(along_x(*[0.02] * 8), stamp=arm.now, sequence=2))
    arm.run(0.1)
    assert arm.setpoints[-1].gripper == 1.0
    assert arm.speeds[-1] == pytest.approx(0.2)


def test_chunks_begun_on_different_turns_of_a_joint_are_mixed_on_one():
    """After a pause one began where the driver said, -2.78, the next where the commands were,
    3.5: their mean lay on the far side, and the arm swung out and back.
    """
    rules = ChunkRules(('base',), JOINTS, (chunks.KIND_JOINT_POSITION,), frozenset('a'))
    line = ChunkTimeline(rules, timeline.WEIGHTED_OVERLAP)
    rows = np.tile([3.5 - math.tau, 0.0], (8, 1))
    form = {
        'dims': JOINTS, 'kind': chunks.KIND_JOINT_POSITION, 'gripper_dim': -1,
        'rotation': chunks.ROTATION_NONE, 'reference': chunks.REFERENCE_NONE, 'frame': '',
    }  # fmt: skip
    now, far = SECOND, []
    for sequence, start in enumerate((3.5 - math.tau, 3.5), 1):
        line.add(chunk(rows, stamp=now, sequence=sequence, **form), now, joints=(start, 0.0))
        for _ in range(40):
            now += TICK
            at = line.sample(now).joint_positions[0]
            far.append(abs(math.remainder(at - 3.5, math.tau)))
    assert max(far) < 1e-9


def test_a_late_chunk_of_another_episode_drops_nothing():
    arm = Arm()
    arm.add(chunk(along_x(*[0.02] * 8), stamp=arm.now))
    arm.run(0.5)
    with pytest.raises(LateChunkError, match='all 2 steps lie in the past'):
        arm.add(chunk(along_x(0.01, 0.01), stamp=SECOND + 1, sequence=2, episode=2))
    arm.run(0.1)
    assert arm.speeds[-1] == pytest.approx(0.2)


def test_the_adaptive_ensemble_joins_deltas_only():
    arm = Arm(timeline.ADAPTIVE_ENSEMBLE)
    rows = np.zeros((4, 7))
    absolute = chunk(rows, kind=chunks.KIND_EE_POSE, reference=chunks.REFERENCE_NONE)
    with pytest.raises(ChunkError, match='adaptive_ensemble joins deltas only; kind is ee_pose'):
        arm.add(absolute)
    with pytest.raises(ValueError, match='ensemble is 9; 1 to 8 chunks'):
        ChunkTimeline(RULES, timeline.ADAPTIVE_ENSEMBLE, ensemble=9)


def test_an_old_chunk_that_ends_while_fading_leaves_no_jump():
    arm = Arm()
    arm.add(chunk(along_x(0.02, 0.02), stamp=arm.now))
    arm.run(0.15)
    arm.add(chunk(along_x(*[0.02] * 8), stamp=arm.now, sequence=2))
    arm.run(0.3)
    assert arm.speeds == pytest.approx([0.2] * 45)


def test_the_queue_is_bounded():
    arm = Arm(timeline.WEIGHTED_OVERLAP)
    for i in range(1, 500):
        arm.add(chunk(along_x(*[0.01] * 8), stamp=arm.now, sequence=i))
        arm.run(0.01)
    assert len(arm.line._laid) <= 8 and len(arm.line._log_ns) < 2100


# Kinds, forms and references.


def test_euler_quaternion_and_vector_mean_the_same():
    turn = Rotation.from_euler('xyz', [0.02, -0.03, 0.05])
    forms = {
        chunks.ROTATION_VECTOR: (turn.as_rotvec(), ('rx', 'ry', 'rz')),
        chunks.ROTATION_EULER_XYZ: ([0.02, -0.03, 0.05], ('roll', 'pitch', 'yaw')),
        chunks.ROTATION_QUATERNION: (turn.as_quat(), ('qx', 'qy', 'qz', 'qw')),
    }
    twists = []
    for form, (values, names) in forms.items():
        arm = Arm()
        rows = np.tile([0.01, 0, 0, *values], (4, 1))
        dims = ('x', 'y', 'z', *names)
        arm.add(chunk(rows, stamp=arm.now, rotation=form, dims=dims, gripper_dim=-1))
        twists.append(arm.run(0.1).twist.six)
    assert twists[1] == pytest.approx(twists[0]) and twists[2] == pytest.approx(twists[0])
    assert twists[0][3:] == pytest.approx(turn.as_rotvec() / 0.1)


@pytest.mark.parametrize('frame', ['base', 'tool'])
def test_references_of_the_same_motion_agree(frame):
    """Chained steps and displacements from the observation describe one path."""
    rng = np.random.default_rng(3)
    steps = rng.normal(0, 0.05, (6, 6))
    poses, pose = [], Pose((0.0, 0.0, 0.0))
    for row in steps:
        turn = geometry.from_rotation_vector(row[3:])
        if frame == 'tool':
            moved = geometry.rotate(pose.orientation, tuple(row[:3]))
            pose = Pose(
                geometry.add(pose.position, moved), geometry.multiply(pose.orientation, turn)
            )
        else:
            pose = Pose(
                geometry.add(pose.position, tuple(row[:3])),
                geometry.multiply(turn, pose.orientation),
            )
        poses.append([*pose.position, *geometry.rotation_vector(pose.orientation)])
    twists = []
    for rows, reference in (
        (steps, chunks.REFERENCE_PREVIOUS_STEP),
        (np.array(poses), chunks.REFERENCE_OBSERVATION),
    ):
        arm = Arm(tool_frame='tool')
        arm.add(
            chunk(rows, stamp=arm.now, reference=reference, dims=XYZ_RV[:6], gripper_dim=-1,
                  frame=frame)
        )  # fmt: skip
        arm.run(0.6)
        twists.append([s.twist.six for s in arm.setpoints])
    assert np.allclose(twists[0], twists[1], atol=1e-9)


def test_absolute_poses_are_reached():
    arm = Arm()
    goals = [[0.1 + 0.02 * i, 0.2, 0.3, 0.0, 0.0, 0.1 * i, 1.0] for i in range(5)]
    arm.pose = Pose((0.1, 0.2, 0.3))
    arm.add(chunk(goals, stamp=arm.now, kind=chunks.KIND_EE_POSE, reference=0), pose=arm.pose)
    last = arm.run(0.6)
    assert last.pose.position == pytest.approx(goals[-1][:3])
    assert geometry.rotation_vector(last.pose.orientation)[2] == pytest.approx(0.4)
    assert arm.pose.position == pytest.approx(goals[-1][:3], abs=3e-3)  # by the twist


def test_absolute_poses_in_the_tool_frame_mean_nothing():
    arm = Arm(tool_frame='tool')
    with pytest.raises(ChunkError, match="tool's own frame 'tool' mean nothing"):
        arm.add(chunk(stamp=arm.now, kind=chunks.KIND_EE_POSE, reference=0, frame='tool'))


@pytest.mark.parametrize('reference', [1, 2])
def test_joint_deltas_in_the_robots_order(reference):
    steps = np.array([[0.02, 0.01]] * 4)  # columns b, a
    rows = steps if reference == 1 else np.cumsum(steps, axis=0)
    arm = Arm()
    arm.add(
        chunk(rows, stamp=arm.now, kind=chunks.KIND_JOINT_DELTA, rotation=0,
              reference=reference, dims=('b', 'a'), gripper_dim=-1)
    )  # fmt: skip
    assert arm.run(0.2).joint_velocities == pytest.approx((0.1, 0.2))


def test_joint_positions_are_interpolated_from_where_the_arm_is():
    arm = Arm()
    arm.add(
        chunk([[0.1, 0.2, 1], [0.2, 0.4, 1]], stamp=arm.now, kind=chunks.KIND_JOINT_POSITION,
              rotation=0, reference=0, dims=('a', 'b', 'gripper'), gripper_dim=2),
        joints=(0.0, 0.0),
    )  # fmt: skip
    out = arm.run(0.11)
    assert out.joint_positions == pytest.approx((0.1, 0.2))
    assert out.joint_velocities == pytest.approx((1.0, 2.0))
    assert out.gripper == 1.0
    assert arm.run(0.2).joint_positions == pytest.approx((0.2, 0.4))


def test_a_rule_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="'newest' is none of latest, weighted_overlap"):
        ChunkTimeline(RULES, 'newest')


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 0.9),  # delay of the query, s
            st.integers(1, 12),  # horizon
            st.floats(-0.05, 0.05),  # step, m
            st.booleans(),  # stop afterwards
            st.integers(1, 40),  # ticks until the next
        ),
        max_size=15,
    ),
    st.sampled_from(timeline.JOINING_RULES),
)
def test_velocity_never_exceeds_what_a_row_requested(queries, rule):
    arm = Arm(rule)
    fastest = 0.0
    for i, (delay, horizon, step, stop, ticks) in enumerate(queries, 1):
        observed = arm.now
        arm.run(round(delay, 2))
        try:
            arm.add(chunk(along_x(*[step] * horizon), stamp=observed, sequence=i))
            fastest = max(fastest, abs(step) / 0.1)
        except LateChunkError:
            continue
        arm.run(ticks / 100)
        if stop:
            arm.line.stop()
        assert np.isfinite(arm.speeds).all()
        assert max(map(abs, arm.speeds), default=0.0) <= fastest + 1e-9
