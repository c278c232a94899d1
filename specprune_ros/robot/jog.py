"""A first motion without a policy: a little along z and back, and what it will come to.

Absolute poses, so that nothing depends on when a chunk arrives: the place at a time of the motion
is the same whoever plans. Time is that of the executor's axis of executed seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from specprune_ros.robot import chunk, timeline
from specprune_ros.robot.geometry import Pose, norm
from specprune_ros.robot.motion import ArmMotion
from specprune_ros.robot.profile import Profile
from specprune_ros.robot.speed import JointSpeed

FURTHEST = 0.05  # m: this is a first motion
STEP, ROWS = 0.05, 12  # s, rows of a chunk
EVERY = 0.1  # s between two chunks
PAUSE = 0.5  # s at the top
SETTLE = 0.8  # s after the way back, for the pull towards the last pose
SHARE = 0.5  # of the profile's speed and acceleration that the motion uses at most
_PEAK = (1.875, 5.774)  # of speed and acceleration over d / T and d / T^2: minimum jerk
_POSE = ('x', 'y', 'z', 'qx', 'qy', 'qz', 'qw')


@dataclass(frozen=True)
class Jog:
    """``height`` metres from ``start`` along +z of the base frame and back, ``seconds`` each.

    Raises ``ValueError`` where that is too far, or faster than half of the profile's limits.
    """

    profile: Profile
    start: Pose
    height: float = 0.02
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.height <= FURTHEST:
            raise ValueError(f'up is {self.height:g} m; above 0 and at most {FURTHEST:g} m')
        if not 0.5 <= self.seconds <= 20.0:
            raise ValueError(f'seconds is {self.seconds:g}; 0.5 to 20 s')
        limits = self.profile.limits
        if (
            _PEAK[0] * self.height / self.seconds > SHARE * limits.translation_speed
            or _PEAK[1] * self.height / self.seconds**2 > SHARE * limits.translation_acceleration
        ):
            raise ValueError(
                f'{self.height:g} m in {self.seconds:g} s is faster than half of '
                f'limits.translation_speed ({limits.translation_speed:g} m/s) or '
                f'.translation_acceleration ({limits.translation_acceleration:g} m/s^2); '
                'give more seconds'
            )

    @property
    def top(self) -> float:
        """Seconds after which the tool is at the top."""
        return self.seconds

    @property
    def duration(self) -> float:
        """Seconds from the start to rest at the start again."""
        return 2.0 * self.seconds + PAUSE + SETTLE

    def pose(self, at: float) -> Pose:
        """Where the tool should be ``at`` seconds into the motion."""
        up = at / self.seconds
        if at > self.seconds + PAUSE:
            up = 1.0 - (at - self.seconds - PAUSE) / self.seconds
        u = min(1.0, max(0.0, up))
        x, y, z = self.start.position
        rise = self.height * u**3 * (10.0 - 15.0 * u + 6.0 * u * u)
        return Pose((x, y, z + rise), self.start.orientation)

    def chunk(
        self, at: float, stamp_ns: int, sequence: int, opening: float | None = None
    ) -> chunk.Chunk:
        """The rows that follow ``at``; ``opening`` (0 closed to 1 open) also moves the gripper."""
        poses = [self.pose(at + STEP * (i + 1)) for i in range(ROWS)]
        rows = np.array([[*pose.position, *pose.orientation] for pose in poses])
        dims = _POSE
        if opening is not None:
            rows = np.hstack([rows, np.full((ROWS, 1), opening)])
            dims = (*dims, 'gripper')
        return chunk.Chunk(
            stamp_ns=stamp_ns,
            frame=self.profile.base_frame,
            sequence=sequence,
            episode=1,
            step_dt=STEP,
            horizon=ROWS,
            dims=dims,
            kind=chunk.KIND_EE_POSE,
            rotation=chunk.ROTATION_QUATERNION,
            reference=chunk.REFERENCE_NONE,
            data=rows.ravel(),
            gripper_dim=-1 if opening is None else len(_POSE),
            instruction='jog',
        )


@dataclass
class Preview:
    """What the executor will make of a motion: poses of the tool, the fastest speed in m/s, how
    long it takes in s, and why it would be stopped, or nothing.
    """

    path: list[Pose] = field(default_factory=list)
    fastest: float = 0.0
    seconds: float = 0.0
    stopped: str = ''

    @property
    def rise(self) -> float:
        """Metres between the lowest and the highest pose."""
        heights = [pose.position[2] for pose in self.path] or [0.0]
        return max(heights) - min(heights)


def outside(profile: Profile, pose: Pose) -> str:
    """How the tool lies outside of ``limits.workspace``, in words; empty: it does not."""
    if profile.limits.workspace is None:
        return ''
    parts = [
        f'{axis} is {value:.3f}, not {low:g} to {high:g}'
        for axis, value, low, high in zip(
            'xyz', pose.position, *profile.limits.workspace, strict=True
        )
        if not low <= value <= high
    ]
    return f'the tool is outside limits.workspace: {"; ".join(parts)}' if parts else ''


def preview(
    jog: Jog, kinematics: JointSpeed | None = None, joints: Mapping[str, float] | None = None
) -> Preview:
    """Run the motion through the executor's own limits, without an arm.

    ``kinematics`` and the joints' positions (rad) are needed where the profile commands joints or
    has no pose topic.
    """
    profile, out = jog.profile, Preview(path=[jog.start])
    out.stopped = outside(profile, jog.start) or outside(profile, jog.pose(jog.top))
    if out.stopped:
        return out
    motion = ArmMotion(profile, timeline.LATEST, virtual=True)
    if kinematics is not None:
        motion.described(kinematics)
    period = 1.0 / profile.command.rate
    now, sequence, next_chunk = 1_000_000_000, 0, 0.0
    motion.begin(now)
    motion.enable(True, now)
    for tick in range(round((jog.duration + 1.0) / period)):
        now += round(period * 1e9)
        _measure(motion, jog.start, joints or {}, now)
        if tick * period >= next_chunk:
            next_chunk += EVERY
            sequence += 1
            motion.chunk(jog.chunk(motion.timeline.axis, now, sequence), now)
        done = motion.tick(now)
        if done.verdict.stop_now or not done.verdict.may_move:
            out.stopped = f'{done.verdict.reason}: {done.verdict.detail}'
            break
        at = motion.virtual_pose
        if at is not None:
            moved = [b - a for a, b in zip(out.path[-1].position, at.position, strict=True)]
            out.fastest = max(out.fastest, norm(tuple(moved)) / period)
            out.path.append(at)
        out.seconds = motion.timeline.axis
        if out.seconds >= jog.duration:
            break
    return out


def _measure(motion: ArmMotion, pose: Pose, joints: Mapping[str, float], now: int) -> None:
    """An arm that stands still."""
    if motion.profile.observation.ee_pose:
        motion.measured_pose(pose, now, now)
    if joints:
        names: Sequence[str] = tuple(joints)
        motion.measured_joints(names, [joints[name] for name in names], now, now)
