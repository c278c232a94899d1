"""Chunks of actions on one time axis, and the motion they request now.

The axis counts *executed* seconds: it runs while setpoints are taken and stands still while the
arm is stopped. A chunk is laid down where the axis stood at its observation stamp, so that
exactly the steps the arm has made since that image are left out. From a standstill nothing has
been executed, hence nothing is skipped, however long the query (or the model's warm-up) took; a
wall-clock estimate of the delay would throw motion away there (known from LeRobot's real-time
chunking).

Row ``i`` of a delta chunk is motion spread over step ``i``: its velocity holds at the middle of
the step and is linear between middles, which keeps the displacement of the chunk and leaves no
jump at row boundaries. Chunks are cross-faded where they join.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specprune_ros.robot import geometry
from specprune_ros.robot.chunk import (
    KIND_EE_DELTA,
    KIND_EE_POSE,
    KIND_JOINT_DELTA,
    KIND_JOINT_POSITION,
    KIND_NAMES,
    REFERENCE_OBSERVATION,
    Chunk,
    ChunkError,
    ChunkRules,
    LateChunkError,
    check,
    delta_rates,
    mix,
    pose_of,
    pose_rates,
    quaternion_of,
    row_of,
)
from specprune_ros.robot.geometry import Pose, Twist

LATEST = 'latest'
WEIGHTED_OVERLAP = 'weighted_overlap'
ADAPTIVE_ENSEMBLE = 'adaptive_ensemble'
JOINING_RULES = (LATEST, WEIGHTED_OVERLAP, ADAPTIVE_ENSEMBLE)

_FUTURE_S = 0.05  # s that a stamp may lie ahead, for clocks of two machines
_LOG_S = 20.0  # s of the executed axis kept to look observation stamps up in
_QUEUE = 8  # chunks alive at once
ENSEMBLE_MAX = _QUEUE
_ENSEMBLE_ALPHA = 0.1  # CogACT: sim_cogact/cogact_policy.py


@dataclass(frozen=True)
class Setpoint:
    """What the chunks request at one moment.

    Either ``twist`` (end effector, along the axes of ``frame``) or ``joint_velocities`` (as
    ``ChunkRules.joints``); absolute chunks add ``pose`` or ``joint_positions``, the place to be
    at now. ``gripper`` is the opening, 0 closed to 1 open. ``done``: no row is left to execute,
    and the motion is zero. ``sequence`` and ``episode`` are those of the newest chunk taking
    part.
    """

    frame: str = ''
    twist: Twist | None = None
    pose: Pose | None = None
    joint_velocities: tuple[float, ...] | None = None
    joint_positions: tuple[float, ...] | None = None
    gripper: float | None = None
    done: bool = True
    sequence: int = 0
    episode: int = 0
    observation_ns: int = 0


@dataclass(frozen=True)
class AddResult:
    """How a chunk was taken in.

    ``skipped`` and ``overlap`` are steps of the chunk: executed since its observation, and shared
    with the motion still under way. ``new_start``: earlier chunks were dropped.
    """

    skipped: float
    overlap: float
    new_start: bool


@dataclass
class ScheduledChunk:
    """A chunk at its place on the executed axis (seconds)."""

    chunk: Chunk
    origin: float
    fade_begin: float
    fade: float  # s; 0 takes part fully at once
    rates: np.ndarray  # [horizon, 6 or joints], m/s and rad/s, or rad/s
    knots: np.ndarray | None  # absolute kinds: [horizon + 1, 7 or joints], at 0, dt, 2 dt, ...
    opening: np.ndarray | None
    end: float = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.origin + self.chunk.horizon * self.chunk.step_dt

    def share(self, at: float) -> float:
        """How far the chunk has faded in, 0 to 1."""
        if self.fade <= 0.0:
            return 1.0
        return min(1.0, max(0.0, (at - self.fade_begin) / self.fade))

    def rate(self, at: float) -> np.ndarray:
        """Velocity on the axis: linear between the middles of the steps.

        The last one holds past the end, so that a chunk which ends while it fades out leaves no
        jump.
        """
        if self.knots is not None:  # an absolute path is linear between its knots
            row = int((at - self.origin) / self.chunk.step_dt)
            return self.rates[min(max(row, 0), self.chunk.horizon - 1)]
        u = (at - self.origin) / self.chunk.step_dt - 0.5
        if u <= 0.0:
            return self.rates[0]
        low = int(u)
        if low >= self.chunk.horizon - 1:
            return self.rates[-1]
        share = u - low
        return (1.0 - share) * self.rates[low] + share * self.rates[low + 1]

    def place(self, at: float) -> np.ndarray:
        """Absolute kinds: the knots interpolated."""
        u = min(max((at - self.origin) / self.chunk.step_dt, 0.0), float(self.chunk.horizon))
        low = min(int(u), self.chunk.horizon - 1)
        a, b, share = self.knots[low], self.knots[low + 1], u - low
        if self.chunk.kind == KIND_JOINT_POSITION:
            return (1.0 - share) * a + share * b
        return row_of(geometry.blend(pose_of(a), pose_of(b), share))

    def grip(self, at: float) -> float | None:
        """Opening of the current row; the last one holds past the end."""
        return None if self.opening is None else float(self.opening[self._row(at)])

    def row(self, at: float) -> np.ndarray:
        """The numbers of the current row, ``[len(dims)]``."""
        return self.chunk.rows[self._row(at)]

    def _row(self, at: float) -> int:
        row = int((at - self.origin) / self.chunk.step_dt)
        return min(max(row, 0), self.chunk.horizon - 1)


def _form(chunk: Chunk) -> tuple[object, ...]:
    """What chunks must share to be mixed."""
    return chunk.kind, chunk.frame, chunk.rotation, chunk.gripper_dim, tuple(chunk.dims)


class ChunkTimeline:
    """Takes chunks in, gives setpoints out.

    ``rule`` says how a new chunk joins the motion under way: ``latest`` fades over one step, and
    ``weighted_overlap`` over all the steps both have, so that each is weighted by how recent it
    is. ``adaptive_ensemble`` (CogACT, arXiv 2411.19650, for a policy queried at every step) runs
    the mean of what the last ``ensemble`` chunks want now, each weighted by exp(0.1 cos) of its
    row and the newest one's; the gripper opens where the mean is above a half.

    Deltas are along the axes of the chunk's frame and about the tool point: a step adds ``dx dy
    dz`` to the position and turns the tool about the frame's axes. In the tool's own frame
    (``tool_frame``) those axes turn with the tool.
    """

    def __init__(
        self, rules: ChunkRules, rule: str = LATEST, tool_frame: str = '', ensemble: int = 7
    ) -> None:
        if rule not in JOINING_RULES:
            raise ValueError(f"joining rule '{rule}' is none of {', '.join(JOINING_RULES)}")
        if not 1 <= ensemble <= ENSEMBLE_MAX:
            raise ValueError(f'ensemble is {ensemble}; 1 to {ENSEMBLE_MAX} chunks')
        self._alive = ensemble if rule == ADAPTIVE_ENSEMBLE else _QUEUE
        self.rules = rules
        self.rule = rule
        self._tool_frame = tool_frame
        self.reset()

    def reset(self) -> None:
        """Forget everything, the executed axis and the newest stamp included."""
        self._laid: deque[ScheduledChunk] = deque(maxlen=self._alive)
        self._axis = 0.0
        self._clock_ns: int | None = None  # newest time seen at all
        self._last_ns: int | None = None  # last sample of a motion under way
        self._log_ns: deque[int] = deque()
        self._log_axis: deque[float] = deque()
        self._newest: Chunk | None = None

    def stop(self) -> None:
        """Drop the queued motion: the arm stands still until the next chunk."""
        self._laid.clear()
        self._last_ns = None

    @property
    def idle(self) -> bool:
        """Whether no row is left to execute."""
        return not self._laid or self._axis >= self._laid[-1].end

    @property
    def queued(self) -> float:
        """Seconds of motion left in the newest chunk."""
        return max(0.0, self._laid[-1].end - self._axis) if self._laid else 0.0

    @property
    def axis(self) -> float:
        """Seconds executed so far: what real-time chunking counts in, not the clock's."""
        return self._axis

    def executed(self, stamp_ns: int) -> float:
        """Where the executed axis stood at a stamp, in seconds."""
        if not self._log_ns:
            return self._axis
        i = bisect.bisect_right(self._log_ns, stamp_ns)
        if i == 0:
            return self._log_axis[0]
        if i == len(self._log_ns):
            return self._log_axis[-1]
        t0, t1 = self._log_ns[i - 1], self._log_ns[i]
        x0, x1 = self._log_axis[i - 1], self._log_axis[i]
        return x0 + (x1 - x0) * (stamp_ns - t0) / (t1 - t0)

    def add(
        self,
        chunk: Chunk,
        now_ns: int,
        pose: Pose | None = None,
        joints: Sequence[float] | None = None,
    ) -> AddResult:
        """Take a chunk in.

        ``pose`` or ``joints``, where the arm is now, begin the path of absolute chunks.

        Raises ``ChunkError`` where the chunk cannot be interpreted, its stamp lies in the future,
        it is not newer than the newest one, or all of its steps have been executed since its
        observation.
        """
        check(chunk, self.rules)
        if self.rule == ADAPTIVE_ENSEMBLE and chunk.kind not in (KIND_EE_DELTA, KIND_JOINT_DELTA):
            raise ChunkError(f'{self.rule} joins deltas only; kind is {KIND_NAMES[chunk.kind]}')
        self._watch_clock(now_ns)
        if (chunk.stamp_ns - now_ns) * 1e-9 > _FUTURE_S:
            raise LateChunkError(
                f'stamp lies {(chunk.stamp_ns - now_ns) * 1e-9:.3f} s in the future; '
                'do both nodes use the same clock (use_sim_time)?'
            )
        newest = self._newest
        if newest is not None and chunk.stamp_ns <= newest.stamp_ns:
            raise LateChunkError(
                f'observation is not newer than that of chunk {newest.sequence}: '
                'duplicated or out of order'
            )
        # A policy that was restarted counts from 1 again.
        new_start = newest is not None and (
            chunk.episode != newest.episode or chunk.sequence <= newest.sequence
        )
        moving = not self.idle and not new_start
        origin = self.executed(chunk.stamp_ns)
        skipped = (self._axis - origin) / chunk.step_dt
        if skipped >= chunk.horizon:
            raise LateChunkError(
                f'all {chunk.horizon} steps lie in the past: {skipped:.1f} were executed since '
                'its observation'
            )
        laid = self._lay(chunk, origin, pose, joints)
        overlap = 0.0
        if moving:
            previous = self._laid[-1]
            overlap = max(0.0, min(previous.end, laid.end) - self._axis) / chunk.step_dt
            laid.fade_begin = self._axis
            # In an ensemble a row counts in full at the middle of its step.
            steps = {LATEST: 1.0, ADAPTIVE_ENSEMBLE: 0.5}.get(self.rule, max(1.0, overlap))
            laid.fade = chunk.step_dt * steps
            if _form(previous.chunk) != _form(chunk):
                self._laid.clear()
                laid.fade = 0.0
            elif laid.knots is not None and chunk.kind == KIND_JOINT_POSITION:
                # Both along the same turn, or their mean lies on the far side.
                turns = (previous.place(self._axis) - laid.place(self._axis)) / math.tau
                turning = [j in self.rules.continuous for j in self.rules.joints]
                laid.knots[:, turning] += math.tau * np.round(turns[turning])
        else:
            # The axis starts with the first setpoint, not with the last one before the pause.
            self._laid.clear()
            self._last_ns = None
        self._laid.append(laid)
        self._newest = chunk
        return AddResult(skipped, overlap, new_start)

    def sample(self, now_ns: int) -> Setpoint:
        """Setpoint for the control period that begins now; runs the executed axis on.

        Call it once per period, and only while its motion is sent. A clock that went backwards
        resets the timeline.
        """
        self._watch_clock(now_ns)
        if self._laid:
            self._advance(now_ns)
        self._last_ns = now_ns
        self._remember(now_ns)
        if not self._laid:
            return Setpoint()
        return self._setpoint()

    def _watch_clock(self, now_ns: int) -> None:
        if self._clock_ns is not None and now_ns < self._clock_ns:
            self.reset()
        self._clock_ns = now_ns

    def _advance(self, now_ns: int) -> None:
        if self._last_ns is None:
            return
        elapsed = (now_ns - self._last_ns) * 1e-9
        # A control loop that was held up did not move the arm through all of that time.
        step = min(elapsed, self._laid[-1].chunk.step_dt)
        self._axis = min(self._axis + step, max(self._axis, self._laid[-1].end))
        if self.rule == ADAPTIVE_ENSEMBLE:
            while len(self._laid) > 1 and self._laid[0].end <= self._axis:
                self._laid.popleft()
            return
        # Everything before a chunk that has fully faded in takes no part any more.
        while len(self._laid) > 1 and any(
            self._laid[i].share(self._axis) >= 1.0 for i in range(1, len(self._laid))
        ):
            self._laid.popleft()

    def _remember(self, now_ns: int) -> None:
        if self._log_ns and now_ns <= self._log_ns[-1]:
            return
        # Only the two ends of a standstill matter.
        if len(self._log_ns) > 1 and self._log_axis[-1] == self._axis == self._log_axis[-2]:
            self._log_ns[-1] = now_ns
        else:
            self._log_ns.append(now_ns)
            self._log_axis.append(self._axis)
        while len(self._log_ns) > 2 and (now_ns - self._log_ns[1]) * 1e-9 > _LOG_S:
            self._log_ns.popleft()
            self._log_axis.popleft()

    def _setpoint(self) -> Setpoint:
        at = self._axis
        first, newest = self._laid[0], self._laid[-1]
        rate = first.rate(at)
        place = first.place(at) if first.knots is not None else None
        for laid in list(self._laid)[1:]:
            share = laid.share(at)
            rate = (1.0 - share) * rate + share * laid.rate(at)
            if place is not None:
                place = mix(newest.chunk.kind, place, laid.place(at), share)
        grip = newest.grip(at)
        if self.rule == ADAPTIVE_ENSEMBLE:
            weights = self._ensemble_weights(at)
            rate = np.sum([w * laid.rate(at) for w, laid in weights], axis=0)
            if grip is not None:
                grip = float(sum(w * laid.grip(at) for w, laid in weights) > 0.5)
        done = self.idle
        if done:
            rate = np.zeros_like(rate)
        values = tuple(float(x) for x in rate)
        chunk = newest.chunk
        common = {
            'gripper': grip,
            'done': done,
            'sequence': chunk.sequence,
            'episode': chunk.episode,
            'observation_ns': chunk.stamp_ns,
        }
        if chunk.kind in (KIND_EE_DELTA, KIND_EE_POSE):
            pose = pose_of(place) if place is not None else None
            return Setpoint(frame=chunk.frame, twist=Twist.of(values), pose=pose, **common)
        positions = tuple(float(x) for x in place) if place is not None else None
        return Setpoint(joint_velocities=values, joint_positions=positions, **common)

    def _ensemble_weights(self, at: float) -> list[tuple[float, ScheduledChunk]]:
        """Every chunk that has a row for now, and its weight; the weights sum to one."""
        alive = [laid for laid in self._laid if laid.end > at] or [self._laid[-1]]
        newest, weights = alive[-1].row(at), []
        for laid in alive:
            row = laid.row(at)
            alike = row @ newest / (np.linalg.norm(row) * np.linalg.norm(newest) + 1e-7)
            share = 1.0 if laid is alive[0] else laid.share(at)
            weights.append(share * math.exp(_ENSEMBLE_ALPHA * alike))
        total = sum(weights)
        return [(weight / total, laid) for weight, laid in zip(weights, alive, strict=True)]

    def _lay(
        self, chunk: Chunk, origin: float, pose: Pose | None, joints: Sequence[float] | None
    ) -> ScheduledChunk:
        if chunk.kind == KIND_EE_DELTA:
            rates, knots = delta_rates(chunk, chunk.frame == self._tool_frame), None
        elif chunk.kind == KIND_EE_POSE:
            knots = self._pose_knots(chunk, pose)
            rates = pose_rates(knots, chunk.step_dt)
        else:
            rows = self._in_order(chunk)
            if chunk.kind == KIND_JOINT_DELTA:
                if chunk.reference == REFERENCE_OBSERVATION:
                    rows = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1])))
                rates, knots = rows / chunk.step_dt, None
            else:
                start = rows[0] if joints is None else np.asarray(joints, dtype=np.float64)
                knots = np.vstack([start, rows])
                turning = [j in self.rules.continuous for j in self.rules.joints]
                knots[:, turning] = np.unwrap(knots[:, turning], axis=0)
                rates = np.diff(knots, axis=0) / chunk.step_dt
        return ScheduledChunk(chunk, origin, self._axis, 0.0, rates, knots, chunk.opening)

    def _in_order(self, chunk: Chunk) -> np.ndarray:
        names = [d for i, d in enumerate(chunk.dims) if i != chunk.gripper_dim]
        return chunk.motion[:, [names.index(j) for j in self.rules.joints]]

    def _pose_knots(self, chunk: Chunk, pose: Pose | None) -> np.ndarray:
        if chunk.frame == self._tool_frame:
            raise ChunkError(
                f"absolute poses in the tool's own frame '{chunk.frame}' mean nothing"
            )
        rows = [
            row_of(Pose(tuple(row[:3]), quaternion_of(chunk.rotation, row[3:])))
            for row in chunk.motion
        ]
        start = row_of(pose) if pose is not None else rows[0]
        return np.vstack([start, *rows])
