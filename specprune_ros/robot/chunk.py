"""A chunk of actions: what it holds, whether this arm can execute it, and where it leads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specprune_ros.robot import geometry
from specprune_ros.robot.geometry import Pose, Twist

# Constants of ActionChunk.msg.
KIND_EE_DELTA, KIND_EE_POSE, KIND_JOINT_POSITION, KIND_JOINT_DELTA = range(4)
ROTATION_NONE, ROTATION_VECTOR, ROTATION_EULER_XYZ, ROTATION_QUATERNION = range(4)
REFERENCE_NONE, REFERENCE_PREVIOUS_STEP, REFERENCE_OBSERVATION = range(3)
GRIPPER_ONE_IS_OPEN, GRIPPER_ONE_IS_CLOSED = range(2)

KIND_NAMES = ('ee_delta', 'ee_pose', 'joint_position', 'joint_delta')

MAX_HORIZON = 256
MAX_STEP_DT = 10.0
_ABSURD = 1e3  # metres or radians: no arm reaches there

_ROTATION_NAMES = {
    ROTATION_VECTOR: (('rx', 'ry', 'rz'),),
    ROTATION_EULER_XYZ: (('roll', 'pitch', 'yaw'), ('rx', 'ry', 'rz')),
    ROTATION_QUATERNION: (('qx', 'qy', 'qz', 'qw'),),
}


class ChunkError(ValueError):
    """A chunk that is refused, and why."""


class LateChunkError(ChunkError):
    """A well-formed chunk that came too late, twice, out of order, or from another clock."""


@dataclass(frozen=True)
class Chunk:
    """The fields of ``ActionChunk.msg`` that motion depends on.

    ``data`` is float64 ``[horizon, len(dims)]`` or the same numbers row-major in one row;
    ``step_dt`` in seconds; ``stamp_ns`` is the observation time.
    """

    stamp_ns: int
    frame: str
    sequence: int
    episode: int
    step_dt: float
    horizon: int
    dims: tuple[str, ...]
    kind: int
    rotation: int
    reference: int
    data: np.ndarray
    gripper_dim: int = -1
    gripper_sense: int = GRIPPER_ONE_IS_OPEN
    first_valid_step: int = 0
    instruction: str = ''

    @property
    def rows(self) -> np.ndarray:
        """The data as ``[horizon, len(dims)]``."""
        return np.asarray(self.data, dtype=np.float64).reshape(self.horizon, len(self.dims))

    @property
    def motion(self) -> np.ndarray:
        """The rows without the gripper column."""
        rows = self.rows
        return rows if self.gripper_dim < 0 else np.delete(rows, self.gripper_dim, axis=1)

    @property
    def opening(self) -> np.ndarray | None:
        """Gripper opening per row, 0 closed to 1 open, ``[horizon]``, or ``None``."""
        if self.gripper_dim < 0:
            return None
        value = np.clip(self.rows[:, self.gripper_dim], 0.0, 1.0)
        return value if self.gripper_sense == GRIPPER_ONE_IS_OPEN else 1.0 - value


@dataclass(frozen=True)
class ChunkRules:
    """What this arm can interpret.

    ``frames`` are the frames end-effector rows may be written in; ``joints`` the joint names a
    joint chunk must have, in any order (empty: joint chunks are refused). Of those in
    ``continuous`` whole turns make no difference.
    """

    frames: tuple[str, ...]
    joints: tuple[str, ...] = ()
    kinds: tuple[int, ...] = (KIND_EE_DELTA, KIND_EE_POSE, KIND_JOINT_POSITION, KIND_JOINT_DELTA)
    continuous: frozenset[str] = frozenset()


def check(chunk: Chunk, rules: ChunkRules) -> None:
    """Raise ``ChunkError`` naming the field of a chunk that cannot be interpreted."""
    if chunk.kind not in range(len(KIND_NAMES)):
        raise ChunkError(f'kind is {chunk.kind}; known are 0 to {len(KIND_NAMES) - 1}')
    if chunk.kind not in rules.kinds:
        allowed = ', '.join(KIND_NAMES[k] for k in rules.kinds)
        raise ChunkError(f'kind is {KIND_NAMES[chunk.kind]}; this robot takes {allowed}')
    if not (math.isfinite(chunk.step_dt) and 0.0 < chunk.step_dt <= MAX_STEP_DT):
        raise ChunkError(f'step_dt is {chunk.step_dt} s; above 0 and at most {MAX_STEP_DT} s')
    if not 1 <= chunk.horizon <= MAX_HORIZON:
        raise ChunkError(f'horizon is {chunk.horizon}; 1 to {MAX_HORIZON} rows')
    if not 0 <= chunk.first_valid_step <= chunk.horizon:
        raise ChunkError(f'first_valid_step is {chunk.first_valid_step} of {chunk.horizon} rows')
    if len(set(chunk.dims)) != len(chunk.dims):
        raise ChunkError(f'dims holds a name twice: {", ".join(chunk.dims)}')
    expected = chunk.horizon * len(chunk.dims)
    data = np.asarray(chunk.data, dtype=np.float64)
    if not chunk.dims or data.size != expected:
        raise ChunkError(
            f'data has {data.size} values; horizon {chunk.horizon} x dims {len(chunk.dims)} '
            f'is {expected}'
        )
    if not np.isfinite(data).all():
        raise ChunkError('data is not finite')
    if np.abs(data).max() > _ABSURD:
        raise ChunkError(
            f'data reaches {np.abs(data).max():.3g}; no arm moves {_ABSURD:g} m or rad'
        )
    _check_gripper(chunk)
    if chunk.kind in (KIND_EE_DELTA, KIND_EE_POSE):
        _check_end_effector(chunk, rules)
    else:
        _check_joints(chunk, rules)


def _check_gripper(chunk: Chunk) -> None:
    if not -1 <= chunk.gripper_dim < len(chunk.dims):
        raise ChunkError(f'gripper_dim is {chunk.gripper_dim}; -1 to {len(chunk.dims) - 1}')
    if chunk.gripper_sense not in (GRIPPER_ONE_IS_OPEN, GRIPPER_ONE_IS_CLOSED):
        raise ChunkError(f'gripper_sense is {chunk.gripper_sense}; 0 (open) or 1 (closed)')
    if chunk.gripper_dim >= 0:
        column = chunk.rows[:, chunk.gripper_dim]
        # An un-clipped regression head overshoots a little; a scale of -1..1 is another
        # convention.
        if column.min() < -0.25 or column.max() > 1.25:
            raise ChunkError(
                f'gripper column runs from {column.min():.3g} to {column.max():.3g}; '
                '0.0 to 1.0 is needed'
            )


def _check_end_effector(chunk: Chunk, rules: ChunkRules) -> None:
    if chunk.rotation not in _ROTATION_NAMES:
        raise ChunkError(
            f'rotation is {chunk.rotation}; an end-effector row needs 1 (rotation vector), '
            '2 (Euler xyz) or 3 (quaternion)'
        )
    if chunk.frame not in rules.frames:
        raise ChunkError(
            f"frame_id is '{chunk.frame}'; this robot knows {', '.join(rules.frames)}"
        )
    _check_reference(chunk, chunk.kind == KIND_EE_DELTA)
    names = tuple(d for i, d in enumerate(chunk.dims) if i != chunk.gripper_dim)
    allowed = [('x', 'y', 'z', *rotation) for rotation in _ROTATION_NAMES[chunk.rotation]]
    if names not in allowed:
        raise ChunkError(
            f'dims are {" ".join(names)}; with this rotation form '
            f'{" or ".join(" ".join(a) for a in allowed)} and a gripper column are expected'
        )
    if chunk.rotation == ROTATION_QUATERNION:
        lengths = np.linalg.norm(chunk.motion[:, 3:7], axis=1)
        if np.abs(lengths - 1.0).max() > 1e-2:
            raise ChunkError('a quaternion in data is not of unit length')


def _check_joints(chunk: Chunk, rules: ChunkRules) -> None:
    if chunk.rotation != ROTATION_NONE:
        raise ChunkError(f'rotation is {chunk.rotation}; a joint chunk has 0 (none)')
    _check_reference(chunk, chunk.kind == KIND_JOINT_DELTA)
    names = {d for i, d in enumerate(chunk.dims) if i != chunk.gripper_dim}
    if names != set(rules.joints):
        raise ChunkError(
            f'dims name the joints {", ".join(sorted(names))}; this robot has '
            f'{", ".join(rules.joints) or "none to command"}'
        )


def _check_reference(chunk: Chunk, delta: bool) -> None:
    allowed = (REFERENCE_PREVIOUS_STEP, REFERENCE_OBSERVATION) if delta else (REFERENCE_NONE,)
    if chunk.reference not in allowed:
        raise ChunkError(
            f'reference is {chunk.reference}; {KIND_NAMES[chunk.kind]} needs '
            f'{" or ".join(str(a) for a in allowed)}'
        )


def quaternion_of(rotation: int, values: Sequence[float]) -> geometry.Quaternion:
    """The orientation that a row gives in one of the chunk's rotation forms."""
    if rotation == ROTATION_VECTOR:
        return geometry.from_rotation_vector(values)
    if rotation == ROTATION_EULER_XYZ:
        return geometry.from_euler_xyz(*(float(v) for v in values))
    return geometry.normalised(tuple(float(v) for v in values))


def delta_rates(chunk: Chunk, in_tool_frame: bool) -> np.ndarray:
    """Velocities ``[horizon, 6]`` of a delta chunk, whichever way its deltas are referred."""
    rates = np.zeros((chunk.horizon, 6))
    before = Pose((0.0, 0.0, 0.0))
    for i, row in enumerate(chunk.motion):
        moved = tuple(float(v) for v in row[:3])
        turned = quaternion_of(chunk.rotation, row[3:])
        if chunk.reference == REFERENCE_OBSERVATION:
            after = Pose(moved, turned)
            moved = geometry.subtract(after.position, before.position)
            if in_tool_frame:
                back = geometry.inverse(before.orientation)
                moved = geometry.rotate(back, moved)
                turned = geometry.multiply(back, after.orientation)
            else:
                turned = geometry.multiply(turned, geometry.inverse(before.orientation))
            before = after
        rates[i, :3] = moved
        rates[i, 3:] = geometry.rotation_vector(turned)
    return rates / chunk.step_dt


def pose_rates(knots: np.ndarray, step_dt: float) -> np.ndarray:
    """Velocities ``[n, 6]`` between ``n + 1`` poses, ``step_dt`` apart."""
    return np.array(
        [
            geometry.twist_between(pose_of(a), pose_of(b), step_dt).six
            for a, b in zip(knots[:-1], knots[1:], strict=True)
        ]
    )


def row_of(pose: Pose) -> np.ndarray:
    """``[7]``: position and quaternion."""
    return np.array([*pose.position, *pose.orientation])


def pose_of(row: np.ndarray) -> Pose:
    """Inverse of :func:`row_of`."""
    values = tuple(float(x) for x in row)
    return Pose(values[0:3], geometry.normalised(values[3:7]))


def mix(kind: int, a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """A ``share`` of the way from ``a`` to ``b``; poses along the shortest arc."""
    if kind == KIND_EE_POSE:
        return row_of(geometry.blend(pose_of(a), pose_of(b), share))
    return (1.0 - share) * a + share * b


def path_of(chunk: Chunk, start: Pose, tool_frame: str = '') -> list[Pose]:
    """The poses a checked end-effector chunk leads through: ``start`` and one per row."""
    if chunk.kind == KIND_EE_POSE:
        return [start] + [
            Pose(tuple(float(v) for v in row[:3]), quaternion_of(chunk.rotation, row[3:]))
            for row in chunk.motion
        ]
    poses = [start]
    for rate in delta_rates(chunk, chunk.frame == tool_frame):
        twist, at = Twist.of(rate), poses[-1]
        if chunk.frame == tool_frame:
            twist = Twist(
                geometry.rotate(at.orientation, twist.linear),
                geometry.rotate(at.orientation, twist.angular),
            )
        poses.append(geometry.integrate(at, twist, chunk.step_dt))
    return poses
