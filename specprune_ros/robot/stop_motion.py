"""Motion that starts, changes and ends within velocity, acceleration and jerk limits.

Two stages. The inner velocity changes by at most acceleration x period in each period; what is
sent is its mean over the last ``length`` periods. A mean is convex, so it keeps every limit on the
norm of velocity and acceleration and every convex workspace the inner motion keeps, and it adds a
bound on jerk: the sent acceleration changes by at most 2 x acceleration / length per period
(moving-average trajectory shaping; Biagiotti and Melchiorri, Trajectory Planning for Automatic
Machines and Robots, 2008, chapter 4).

Stopping is the same motion with the inner velocity braked to zero: it starts from the state of the
last command, so it never begins with a jump, and it ends at rest after
``speed / acceleration + length x period`` seconds at the latest (times sqrt(3) in the first term
for a diagonal end-effector velocity, see :func:`brake`).

Pure numpy: the executor brakes with it, and so does whatever outlives the executor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specprune_ros.robot import geometry
from specprune_ros.robot.geometry import Pose, Twist

# A scaled vector may come out a rounding error too long; aim this much inside.
INSIDE = 1.0 - 1e-9
AXIS_SHARE = 1.0 / math.sqrt(3.0)  # of the acceleration, kept for each axis to brake with

CARTESIAN = (slice(0, 3), slice(3, 6))  # the parts of a twist whose norms are limited


def window_length(acceleration: float, jerk: float, period_s: float) -> int:
    """Periods to average over: ``acceleration`` (m/s^2) then builds up within ``jerk`` (m/s^3)."""
    if not (math.isfinite(acceleration) and math.isfinite(jerk)):
        return 1
    return max(1, math.ceil(2.0 * acceleration / (jerk * period_s) - 1e-9))


def brake(velocity: Sequence[float], change: float) -> tuple[float, ...]:
    """The velocity one period later, braked by at most ``change`` in norm.

    Every axis brakes by at least ``change / sqrt(3)`` (or to zero), as the walls of a workspace
    count on; what is left of the change goes along the velocity.
    """
    size = math.hypot(*velocity)
    if size <= change:
        return (0.0,) * len(velocity)
    if len(velocity) == 1:
        return (velocity[0] - math.copysign(change * INSIDE, velocity[0]),)
    least = change * AXIS_SHARE * INSIDE
    first = [math.copysign(min(abs(v), least), v) for v in velocity]
    rest = [v - f for v, f in zip(velocity, first, strict=True)]
    share = reach(first, rest, change * INSIDE)
    return tuple((1.0 - share) * r for r in rest)


def reach(first: Sequence[float], rest: Sequence[float], longest: float) -> float:
    """Largest share (0 to 1) of ``rest`` with the norm of ``first + share x rest`` in bounds."""
    a = sum(r * r for r in rest)
    if a == 0.0:
        return 1.0
    b = sum(f * r for f, r in zip(first, rest, strict=True))
    c = sum(f * f for f in first) - longest * longest
    if c >= 0.0:
        return 0.0
    return min(1.0, (-b + math.sqrt(b * b - a * c)) / a)


class JerkWindow:
    """Mean of the last ``length`` inner velocities ``[size]``; all zero (at rest) at first."""

    def __init__(self, length: int, size: int) -> None:
        if length < 1:
            raise ValueError(f'window of {length} periods; at least 1 is needed')
        self.length, self.size = length, size
        self.clear()

    def clear(self) -> None:
        """At rest."""
        self._rows: list[tuple[float, ...]] = [(0.0,) * self.size] * self.length

    @property
    def rows(self) -> np.ndarray:
        """The inner velocities, oldest first, float64 ``[length, size]``."""
        return np.array(self._rows)

    @property
    def inner(self) -> tuple[float, ...]:
        """The newest inner velocity."""
        return self._rows[-1]

    @property
    def at_rest(self) -> bool:
        """Whether nothing is left to be sent but zeros."""
        return not any(any(row) for row in self._rows)

    def push(self, inner: Sequence[float]) -> tuple[float, ...]:
        """Take the next inner velocity in; the velocity to send."""
        self._rows = [*self._rows[1:], tuple(inner)]
        return tuple(math.fsum(column) / self.length for column in zip(*self._rows, strict=True))

    def pending(self, period_s: float) -> tuple[float, ...]:
        """How far the motion still goes (m, rad) if the inner velocity were zero from now on."""
        share = period_s / self.length
        return tuple(
            share * sum(i * value for i, value in enumerate(column))
            for column in zip(*self._rows, strict=True)
        )


@dataclass(frozen=True)
class MotionState:
    """Where commanded motion stands after a command: all that is needed to bring it to rest.

    ``rows`` are the inner velocities of the last periods, oldest first, float64 ``[length, n]``:
    ``n`` is 6 (m/s and rad/s, base-frame axes) or the number of joints (rad/s). ``place`` is the
    place last sent: position and quaternion ``[7]``, joint positions ``[n]``, or ``None`` where
    velocities are sent. ``accelerations`` are the limits, ``[2]`` (translation, rotation) or
    ``[n]``. ``plausible`` is the last measured place that can be true, as ``place``, or ``None``.
    """

    rows: np.ndarray
    accelerations: np.ndarray
    period_s: float
    place: np.ndarray | None = None
    plausible: np.ndarray | None = None
    joints: tuple[str, ...] = ()

    @property
    def at_rest(self) -> bool:
        """Whether the last command was one of standing still."""
        return not self.rows.any()


@dataclass(frozen=True)
class StopMotion:
    """Commands, one per period, that bring commanded motion to rest within its limits.

    ``velocities`` float64 ``[steps, n]``, the last row zero. ``places`` ``[steps, 7 or n]``: the
    place reached at the end of each period, ``None`` where velocities are sent and no place is
    known. At rest there is one step, which says to hold.
    """

    velocities: np.ndarray
    places: np.ndarray | None
    period_s: float

    @classmethod
    def of(cls, state: MotionState) -> StopMotion:
        """The braking motion from ``state``."""
        size = state.rows.shape[1]
        parts = [slice(i, i + 1) for i in range(size)] if state.joints else CARTESIAN
        changes = [float(a) * state.period_s for a in state.accelerations]
        window = JerkWindow(len(state.rows), size)
        for row in state.rows:
            window.push(tuple(float(v) for v in row))
        velocities: list[tuple[float, ...]] = []
        while not window.at_rest:
            inner = [
                v
                for part, change in zip(parts, changes, strict=True)
                for v in brake(window.inner[part], change)
            ]
            velocities.append(window.push(inner))
        velocities = velocities or [(0.0,) * size]
        places = None
        if state.place is not None:
            places = np.array(_places(state, velocities))
        return cls(np.array(velocities), places, state.period_s)

    @property
    def seconds(self) -> float:
        """Time until rest."""
        return len(self.velocities) * self.period_s

    @property
    def twists(self) -> list[Twist]:
        """The velocities of an end effector."""
        return [Twist.of(row) for row in self.velocities.tolist()]

    @property
    def poses(self) -> list[Pose]:
        """The places of an end effector."""
        return [_pose(row) for row in self.places.tolist()]


def _places(state: MotionState, velocities: list[tuple[float, ...]]) -> list[list[float]]:
    out: list[list[float]] = []
    if state.joints:
        at = state.place.astype(float)
        for row in velocities:
            at = at + np.array(row) * state.period_s
            out.append(at.tolist())
        return out
    pose = _pose(state.place.tolist())
    for row in velocities:
        pose = geometry.integrate(pose, Twist.of(row), state.period_s)
        out.append([*pose.position, *pose.orientation])
    return out


def _pose(row: Sequence[float]) -> Pose:
    return Pose(tuple(row[:3]), geometry.normalised(tuple(row[3:7])))
