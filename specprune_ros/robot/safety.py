"""The last look at every command: finite, and within every limit of speed, step and place.

Nothing passes after this. What is within the limits is passed on unchanged; what is beyond them is
brought back to them, or the arm is stopped where that would be guessing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from specprune_ros.robot import geometry
from specprune_ros.robot.geometry import Pose, Twist, Vector
from specprune_ros.robot.plausibility import pose_distance
from specprune_ros.robot.stop_motion import (
    AXIS_SHARE,
    INSIDE,
    JerkWindow,
    MotionState,
    brake,
    reach,
    window_length,
)
from specprune_ros.validation import validated

SHARES = 6  # halvings in search of how much of a joint command a wall lets through
WALL_SLACK = 1e-9  # m, rounding
TURNS_OUTSIDE = 0.01  # m outside the workspace where turning the tool has faded out
# 1/s: jerk over acceleration where a profile names no jerk. The acceleration then builds up over
# 40 ms, and a command comes 15 ms later than without a limit (at 100 Hz).
JERK_RATIO = 50.0
# m and rad between the place held and the measured one within which motion goes on from the former
# (a compliant controller does not go all the way). Further off, somebody has moved the arm.
HELD = (0.02, 0.1)
STAYED = (0.001, 0.01)  # m, rad that an arm nobody moves may seem to move while it is at rest


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0)]
FinitePositive = Annotated[Finite, Field(gt=0)]
Corner = tuple[Finite, Finite, Finite]


class Workspace(NamedTuple):
    """A box by its lowest and highest corner, metres in the base frame."""

    min: Corner
    max: Corner


@validated()
class JointLimit:
    """One joint: range in rad, speed in rad/s, acceleration in rad/s^2, jerk in rad/s^3.

    Infinite means no limit; ``jerk`` ``None`` is :data:`JERK_RATIO` times the acceleration. A
    joint without a range is a continuous one: whole turns make no difference.
    """

    lower: float = -math.inf
    upper: float = math.inf
    velocity: Positive = math.inf
    acceleration: Positive = math.inf
    jerk: Positive | None = None

    def __post_init__(self) -> None:
        if not self.lower < self.upper:
            raise ValueError(f'lower: {self.lower:g} must be below upper {self.upper:g}')

    @property
    def continuous(self) -> bool:
        """Whether the joint has no range."""
        return math.isinf(self.lower) and math.isinf(self.upper)

    @property
    def jerk_limit(self) -> float:
        """The jerk in force, rad/s^3."""
        return JERK_RATIO * self.acceleration if self.jerk is None else self.jerk


@validated()
class SafetyLimits:
    """What a command may never exceed.

    Speeds in m/s and rad/s, accelerations in m/s^2 and rad/s^2, jerks in m/s^3 and rad/s^3
    (``None``: :data:`JERK_RATIO` times the acceleration), steps (motion of one control period) in
    m and rad. ``workspace`` is the box the tool point stays in; ``reaction_s`` is how long the arm
    moves on after a command, and what it covers in that time is kept from the walls as well.
    ``lead_...`` is how far the commanded pose may run ahead of the measured one (m, rad) before
    the arm counts as not following. ``state_..._speed`` is how fast the arm can be moved at all,
    by anybody (m/s, rad/s): a measured pose that it cannot have reached is rejected. Infinite
    means no limit.
    """

    translation_speed: FinitePositive = 0.25
    rotation_speed: FinitePositive = 1.0
    translation_acceleration: FinitePositive = 2.0
    rotation_acceleration: FinitePositive = 8.0
    translation_jerk: Positive | None = None
    rotation_jerk: Positive | None = None
    translation_step: Positive = math.inf
    rotation_step: Positive = math.inf
    workspace: Workspace | None = None
    reaction_s: Annotated[float, Field(ge=0, le=1)] = 0.0
    lead_translation: Positive = math.inf
    lead_rotation: Positive = math.inf
    state_translation_speed: Positive = 2.0
    state_rotation_speed: Positive = 8.0
    joints: dict[str, JointLimit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.workspace is not None:
            low, high = self.workspace
            if not all(a < b for a, b in zip(low, high, strict=True)):
                raise ValueError(f'workspace: min {low} must be below max {high} in every axis')

    @property
    def jerks(self) -> tuple[float, float]:
        """The jerks in force, m/s^3 and rad/s^3."""
        pairs = (
            (self.translation_jerk, self.translation_acceleration),
            (self.rotation_jerk, self.rotation_acceleration),
        )
        return tuple(JERK_RATIO * a if jerk is None else jerk for jerk, a in pairs)


@dataclass(frozen=True)
class Command:
    """One control period's command.

    Either ``twist`` (base-frame axes) or ``velocities`` of ``joints`` (rad/s). On the way out,
    ``pose`` or ``positions`` is the place the commanded motion has reached. ``gripper`` is the
    opening, 0 to 1.
    """

    twist: Twist | None = None
    pose: Pose | None = None
    joints: tuple[str, ...] = ()
    velocities: tuple[float, ...] | None = None
    positions: tuple[float, ...] | None = None
    gripper: float | None = None


@dataclass(frozen=True)
class JointTool:
    """The tool that joints carry, both in the base frame and of joint positions in rad, in the
    order of the command: its ``position`` in m, and its ``jacobian`` ``[6, n]``, linear rows (m)
    first.
    """

    position: Callable[[Sequence[float]], Vector]
    jacobian: Callable[[Sequence[float]], np.ndarray]


@dataclass(frozen=True)
class Stop:
    """The arm must not move: ``reason`` of :data:`STOP_REASONS`, ``detail`` in words."""

    reason: str
    detail: str


NOT_FINITE = 'not_finite'
NO_POSE = 'no_pose'
NOT_FOLLOWING = 'not_following'
UNKNOWN_JOINT = 'unknown_joint'
STOP_REASONS = (NOT_FINITE, NO_POSE, NOT_FOLLOWING, UNKNOWN_JOINT)


class SafetyFilter:
    """Filters one command per control period, and brakes.

    Speeds and steps bound the norm of the output; accelerations and jerks bound the norms of its
    changes from the outputs before, starting from rest (:mod:`.stop_motion` says how). At a wall
    of the workspace the outward speed falls with the distance left, so that the arm can brake;
    should it be nearer than that (it was pushed), it brakes as hard as allowed. A tool already
    outside may only move inwards, and turns less the further out it is. Joint commands beyond a
    speed limit are scaled together, so that the tool keeps its direction; ranges, accelerations
    and jerks hold joint by joint. A joint outside its range may only move inwards; it is never
    thrown back. Where a :class:`JointTool` is given they are also scaled to the tool's speeds, and
    so far that :meth:`brake` would end within the workspace: at a wall all joints stand still.

    ``tracked`` integrates the commanded pose (pose outputs), and looks at the walls from there;
    otherwise the measured pose counts, and how far commands have led since. ``joints`` makes it a
    filter of their velocities. ``joint_limits`` replaces those of ``limits`` and may be tightened
    while the filter runs.

    After a ``Stop`` the motion goes on from where it is, by :meth:`brake` or by a good command.
    """

    def __init__(
        self,
        limits: SafetyLimits,
        period_s: float,
        *,
        tracked: bool = False,
        joints: Sequence[str] = (),
        joint_limits: Mapping[str, JointLimit] | None = None,
    ) -> None:
        if not (math.isfinite(period_s) and period_s > 0.0):
            raise ValueError(f'period is {period_s} s; a number above 0 is needed')
        self.limits = limits
        self.period_s = period_s
        self.joints = tuple(joints)
        self.joint_limits = limits.joints if joint_limits is None else joint_limits
        self._tracked = tracked
        self._blind_s = period_s + limits.reaction_s
        if self.joints:
            table = self.joint_limits
            known = [table[name] for name in self.joints if name in table]
            pairs = [(limit.acceleration, limit.jerk_limit) for limit in known]
        else:
            accelerations = (limits.translation_acceleration, limits.rotation_acceleration)
            pairs = list(zip(accelerations, limits.jerks, strict=True))
        # One window for all parts, or they would not move together.
        length = max((window_length(a, j, period_s) for a, j in pairs), default=1)
        self._window = JerkWindow(length, len(self.joints) or 6)
        self.forget()

    @property
    def pose(self) -> Pose | None:
        """The pose the commanded motion has reached, where it is tracked."""
        return self._pose

    @property
    def positions(self) -> dict[str, float]:
        """The joint positions the commanded motion has reached, rad."""
        return self._positions

    @property
    def at_rest(self) -> bool:
        """Whether the last command was one of standing still, for good."""
        return self._window.at_rest

    @property
    def state(self) -> MotionState:
        """All that is needed to bring the motion to rest from here."""
        limits = self.limits
        place: np.ndarray | None = None
        if self.joints:
            accelerations = [self._acceleration(name) for name in self.joints]
            if self._positions:
                place = np.array([self._positions[name] for name in self.joints])
        else:
            accelerations = [limits.translation_acceleration, limits.rotation_acceleration]
            if self._pose is not None:
                place = np.array([*self._pose.position, *self._pose.orientation])
        return MotionState(
            self._window.rows, np.array(accelerations), self.period_s, place, joints=self.joints
        )

    def rest(self) -> None:
        """The motion has ended: the next one starts at the place held, or where the arm is then
        if somebody has moved it. Tell it by :meth:`stand` meanwhile.
        """
        self._window.clear()
        self._held = self._pose or self._held
        self._held_joints = self._positions or self._held_joints
        self._stood: Pose | dict[str, float] | None = None
        self._pose: Pose | None = None
        self._positions: dict[str, float] = {}

    def forget(self) -> None:
        """As :meth:`rest`, and the next motion starts where the arm is measured then."""
        self._window.clear()
        self._pose, self._positions = None, {}
        self._held: Pose | None = None
        self._held_joints: dict[str, float] = {}
        self._stood = None

    def stand(self, measured: Pose | None, measured_joints: dict[str, float]) -> None:
        """One control period at rest: the place held is forgotten once the arm has left the one
        where it came to rest, be it ever so slowly.

        ``measured`` and ``measured_joints`` as for :meth:`filter`.
        """
        held = self._held_joints if self.joints else self._held
        here = measured_joints if self.joints else measured
        if not held or not here or (self.joints and not here.keys() >= held.keys()):
            return
        # It may still be on the way to the place held, as it lags behind its command.
        if self._stood is None or self._apart(held, here) < self._apart(held, self._stood):
            self._stood = here
        elif self._apart(self._stood, here) > 1.0:
            self._held, self._held_joints = None, {}

    def _apart(self, a: Pose | dict[str, float], b: Pose | dict[str, float]) -> float:
        """How far from each other two places are, in units of :data:`STAYED`."""
        if isinstance(a, Pose):
            return max(far / most for far, most in zip(pose_distance(a, b), STAYED, strict=True))
        table, unlimited = self.joint_limits, JointLimit()
        return max(
            _turned(a[name], b.get(name, math.nan), table.get(name, unlimited)) / STAYED[1]
            for name in self.joints
        )

    def brake(self) -> Command:
        """One control period's command on the way to rest, from the last command on."""
        dt, inner = self.period_s, self._window.inner
        if self.joints:
            slower = [
                brake((v,), self._acceleration(name) * dt)[0]
                for name, v in zip(self.joints, inner, strict=True)
            ]
            return self._send_joints(slower)
        limits = self.limits
        linear = brake(inner[:3], limits.translation_acceleration * dt)
        angular = brake(inner[3:], limits.rotation_acceleration * dt)
        return self._send_twist((*linear, *angular))

    def filter(
        self,
        command: Command,
        measured: Pose | None = None,
        measured_joints: dict[str, float] | None = None,
        tool: JointTool | None = None,
        led: Vector = (0.0, 0.0, 0.0),
    ) -> Command | Stop:
        """The command brought within the limits, or the stop it leads to.

        ``measured`` is the tool pose in the base frame, and ``led`` how far the commands since its
        stamp have led, in m; ``measured_joints`` are the positions in rad; ``tool`` is what a
        joint command is to be held to as well.
        """
        gripper = command.gripper
        if gripper is not None:
            if not math.isfinite(gripper):
                return Stop(NOT_FINITE, f'gripper command is {gripper}')
            gripper = min(1.0, max(0.0, gripper))
        if measured is not None and not measured.finite():
            return Stop(NOT_FINITE, f'measured pose is not finite: {measured}')
        if command.velocities is not None:
            out = self._joint_motion(command, measured_joints or {}, tool)
        else:
            out = self._tool_motion(command.twist or Twist(), measured, led)
        return out if isinstance(out, Stop) else replace(out, gripper=gripper)

    def _tool_motion(self, twist: Twist, measured: Pose | None, led: Vector) -> Command | Stop:
        if not twist.finite():
            return Stop(NOT_FINITE, f'commanded twist is not finite: {twist}')
        limits, dt = self.limits, self.period_s
        at = measured
        if self._tracked:
            at = self._pose or self._start(measured)
        if at is None and (limits.workspace is not None or self._tracked):
            return Stop(NO_POSE, 'no measured tool pose to check the workspace from')
        if self._tracked and measured is not None:
            stop = self._following(at, measured)
            if stop is not None:
                return stop
        if self._tracked:
            self._pose = at
        speeds = self._tool_speeds
        linear, angular = _clip(twist.linear, speeds[0]), _clip(twist.angular, speeds[1])
        before = self._window.inner
        walls = (math.inf,) * 3
        if limits.workspace is not None:
            # What has been let through already is still to come.
            ahead = geometry.add(at.position, self._window.pending(dt)[:3])
            between = (ahead, ahead)
            if not self._tracked:
                # Nobody has seen yet whether it went where it was led: it may be at either end.
                ends = tuple(zip(ahead, geometry.add(ahead, led), strict=True))
                between = tuple(map(min, ends)), tuple(map(max, ends))
            linear, walls = self._slow_at_walls(linear, before[:3], *between)
            angular = geometry.scale(angular, self._turning_share(*between))
        linear = _towards(before[:3], linear, limits.translation_acceleration * dt, walls)
        angular = _towards(before[3:], angular, limits.rotation_acceleration * dt)
        return self._send_twist((*linear, *angular))

    @property
    def _tool_speeds(self) -> tuple[float, float]:
        """The speeds in force, m/s and rad/s."""
        limits, dt = self.limits, self.period_s
        return (
            min(limits.translation_speed, limits.translation_step / dt),
            min(limits.rotation_speed, limits.rotation_step / dt),
        )

    def _send_twist(self, inner: tuple[float, ...]) -> Command:
        out = Twist.of(self._window.push(inner))
        if self._pose is not None:
            self._pose = geometry.integrate(self._pose, out, self.period_s)
        return Command(twist=out, pose=self._pose)

    def _start(self, measured: Pose | None) -> Pose | None:
        """Where a motion starts: at the place held, unless the arm was moved from there."""
        self.stand(measured, {})
        held = self._held
        if held is None or measured is None:
            return measured
        near = zip(pose_distance(held, measured), HELD, strict=True)
        return held if all(far <= most for far, most in near) else measured

    def _following(self, at: Pose, measured: Pose) -> Stop | None:
        far, turned = pose_distance(measured, at)
        if far > self.limits.lead_translation or turned > self.limits.lead_rotation:
            return Stop(
                NOT_FOLLOWING,
                f'the tool is {far:.3f} m and {turned:.3f} rad behind its command; at most '
                f'{self.limits.lead_translation:g} m and {self.limits.lead_rotation:g} rad',
            )
        return None

    def _slow_at_walls(
        self, linear: Vector, before: Sequence[float], lowest: Vector, highest: Vector
    ) -> tuple[Vector, Vector]:
        """The wish brought below what the walls allow, and the most each axis may have outward
        in its present direction. The tool is between ``lowest`` and ``highest``.
        """
        low, high = self.limits.workspace
        # Three walls at once may each claim their share of the acceleration.
        braking = self.limits.translation_acceleration * AXIS_SHARE
        out, walls = [], []
        for v, u, p, q, a, b in zip(linear, before, lowest, highest, low, high, strict=True):
            outward = b - q if v > 0.0 else p - a
            out.append(math.copysign(min(abs(v), self._wall_speed(braking, outward)), v))
            walls.append(self._wall_speed(braking, b - q if u > 0.0 else p - a))
        return (out[0], out[1], out[2]), (walls[0], walls[1], walls[2])

    def _wall_speed(self, braking: float, distance: float) -> float:
        return _braking_speed(braking, distance, self._blind_s)

    def _turning_share(self, lowest: Vector, highest: Vector) -> float:
        """How much of a turn is let through: an arm near the ends of its joints cannot turn the
        tool about its point without dragging the point along.
        """
        low, high = self.limits.workspace
        depth = max(
            max(a - p, q - b, 0.0) for p, q, a, b in zip(lowest, highest, low, high, strict=True)
        )
        return max(0.0, 1.0 - depth / TURNS_OUTSIDE)

    def _acceleration(self, name: str) -> float:
        limit = self.joint_limits.get(name)
        return math.inf if limit is None else limit.acceleration

    def _joint_motion(
        self, command: Command, measured: dict[str, float], tool: JointTool | None
    ) -> Command | Stop:
        names, wanted = command.joints, command.velocities
        if len(names) != len(wanted):
            return Stop(UNKNOWN_JOINT, f'{len(wanted)} joint velocities for {len(names)} joints')
        if names != self.joints:
            return Stop(
                UNKNOWN_JOINT,
                f'joints are {", ".join(names)}; this robot has {", ".join(self.joints)}',
            )
        if not geometry.all_finite(wanted):
            return Stop(NOT_FINITE, f'commanded joint velocities are not finite: {wanted}')
        limits, at = [], {}
        start = self._positions or self._joint_start(measured)
        for name in names:
            limit = self.joint_limits.get(name)
            if limit is None:
                return Stop(UNKNOWN_JOINT, f"joint '{name}' has no limits in the robot profile")
            real = measured.get(name, math.nan)
            position = start.get(name, math.nan)
            if not math.isfinite(position):
                return Stop(NO_POSE, f"no measured position of joint '{name}'")
            behind = _turned(real, position, limit) if math.isfinite(real) else 0.0
            if behind > self.limits.lead_rotation:
                return Stop(
                    NOT_FOLLOWING,
                    f"joint '{name}' is {behind:.3f} rad from its command; at most "
                    f'{self.limits.lead_rotation:g} rad',
                )
            at[name] = position
            limits.append(limit)
        self._positions = at
        # One factor for all joints keeps the direction of the tool.
        share = 1.0
        for v, limit in zip(wanted, limits, strict=True):
            if abs(v) > limit.velocity:
                share = min(share, limit.velocity / abs(v) * INSIDE)
        wanted = [v * share for v in wanted]
        pending = self._window.pending(self.period_s)
        ahead = [at[name] + way for name, way in zip(names, pending, strict=True)]
        if tool is None:
            inner = self._joint_speeds(wanted, ahead, limits)
        else:
            inner = self._held_to_tool(wanted, ahead, limits, tool)
        return self._send_joints(inner)

    def _joint_start(self, measured: dict[str, float]) -> dict[str, float]:
        self.stand(None, measured)
        held, limits = self._held_joints, self.joint_limits
        near = all(
            name in held
            and _turned(held[name], measured.get(name, math.nan), self.joint_limits[name])
            <= HELD[1]
            for name in self.joints
            if name in limits
        )
        return held if near and held else measured

    def _held_to_tool(
        self,
        wanted: Sequence[float],
        at: Sequence[float],
        limits: Sequence[JointLimit],
        tool: JointTool,
    ) -> list[float]:
        """As :meth:`_joint_speeds`, with the tool held to its limits."""
        before = self._window.inner
        # What a joint at its end will not do cannot make up for what another one does.
        wanted = [
            self._in_range(v, place, limit)
            for v, place, limit in zip(wanted, at, limits, strict=True)
        ]
        tool_velocity = (tool.jacobian(at) @ np.array(wanted)).tolist()
        most = 1.0
        parts = (tool_velocity[:3], tool_velocity[3:])
        for part, speed in zip(parts, self._tool_speeds, strict=True):
            size = math.hypot(*part)
            if not size <= speed:  # numbers too large to add give nan
                most = min(most, speed / size * INSIDE if math.isfinite(size) else 0.0)

        def towards(share: float) -> list[float]:
            # All joints go the same part of the way: where the tool is within its speed at both
            # ends, it is so in between.
            change = [share * v - b for v, b in zip(wanted, before, strict=True)]
            part = 1.0
            for c, limit in zip(change, limits, strict=True):
                furthest = limit.acceleration * self.period_s
                if abs(c) > furthest:
                    part = min(part, furthest / abs(c))
            target = [b + part * c for b, c in zip(before, change, strict=True)]
            return self._joint_speeds(target, at, limits)

        # Not where it is now: what the window still holds would count as a way inwards.
        here = tool.position(at)
        best = towards(most)
        if self.limits.workspace is None or self._ends_inside(best, at, limits, tool, here):
            return best
        best = towards(0.0)
        if not self._ends_inside(best, at, limits, tool, here):
            return self._joint_speeds([0.0] * len(at), at, limits)  # as brake() does
        low, high = 0.0, most
        for _ in range(SHARES):
            share = 0.5 * (low + high)
            inner = towards(share)
            if self._ends_inside(inner, at, limits, tool, here):
                low, best = share, inner
            else:
                high = share
        return best

    def _ends_inside(
        self,
        inner: Sequence[float],
        at: Sequence[float],
        limits: Sequence[JointLimit],
        tool: JointTool,
        here: Vector,
    ) -> bool:
        """Whether a stop after this inner velocity leads the tool from ``here`` (m, of ``at``)
        through no wall, or through none any further.
        """
        low, high = self.limits.workspace
        dt = self.period_s
        changes = [limit.acceleration * dt for limit in limits]
        longest = max(int(abs(v) / change) for v, change in zip(inner, changes, strict=True))
        # The next period's way, on which no step outwards may hide behind a way back, and the
        # stop's, which is curved, as some joints are at rest before others.
        blind = self._blind_s
        ways = ((dt, 0), *((blind, third * longest // 3) for third in range(1, 4)))
        for moving, braking in ways:
            there = tool.position(
                [
                    p + v * moving + math.copysign(_braked(abs(v), change, braking) * dt, v)
                    for p, v, change in zip(at, inner, changes, strict=True)
                ]
            )
            for p, q, a, b in zip(there, here, low, high, strict=True):
                if not min(a, q) - WALL_SLACK <= p <= max(b, q) + WALL_SLACK:
                    return False
        return True

    def _joint_speeds(
        self, wanted: Sequence[float], at: Sequence[float], limits: Sequence[JointLimit]
    ) -> list[float]:
        """The inner velocities, joint by joint, ``at`` where each has been let go to."""
        return [
            self._joint_speed(v, before, place, limit)
            for v, before, place, limit in zip(wanted, self._window.inner, at, limits, strict=True)
        ]

    def _in_range(self, v: float, at: float, limit: JointLimit) -> float:
        """A velocity from which the joint can stop before its end."""
        dt = self.period_s
        outward = limit.upper - at if v > 0.0 else at - limit.lower
        if math.isinf(limit.acceleration):
            return math.copysign(min(abs(v), max(0.0, outward) / dt * INSIDE), v)
        if math.isfinite(outward):
            allowed = _braking_speed(limit.acceleration, outward, dt)
            v = math.copysign(min(abs(v), allowed), v)
        return v

    def _joint_speed(self, v: float, before: float, at: float, limit: JointLimit) -> float:
        v = self._in_range(v, at, limit)
        change = limit.acceleration * self.period_s
        if abs(v - before) > change:
            v = before + math.copysign(change * INSIDE, v - before)
        return v

    def _send_joints(self, inner: Sequence[float]) -> Command:
        velocities = self._window.push(inner)
        for name, v in zip(self.joints, velocities, strict=True):
            if name in self._positions:
                self._positions[name] += v * self.period_s
        positions = tuple(self._positions.get(name, math.nan) for name in self.joints)
        return Command(joints=self.joints, velocities=velocities, positions=positions)


def _turned(a: float, b: float, limit: JointLimit) -> float:
    """Radians between two positions of a joint; of a continuous one the shorter way."""
    return abs(math.remainder(b - a, math.tau) if limit.continuous else b - a)


def _braking_speed(acceleration: float, distance: float, blind_s: float) -> float:
    """Highest speed from which ``distance`` suffices to stop, ``blind_s`` of moving on included.

    Moving on for T at v and then braking takes v T + v^2 / (2 a) <= d.
    """
    if distance <= 0.0:
        return 0.0
    if not math.isfinite(acceleration):
        return math.inf
    lost = acceleration * blind_s
    return math.sqrt(lost * lost + 2.0 * acceleration * distance) - lost


def _braked(speed: float, change: float, most: int) -> float:
    """The sum of the speeds, rad/s, of up to ``most`` periods that brake by ``change`` each."""
    periods = min(int(speed / change), most)
    return periods * speed - 0.5 * change * periods * (periods + 1) if periods else 0.0


def _clip(vector: Vector, longest: float) -> Vector:
    length = geometry.norm(vector)
    if length <= longest:
        return vector
    if math.isinf(length):  # components too large to square
        biggest = max(abs(c) for c in vector)
        vector = geometry.scale(vector, 1.0 / biggest)
        length = geometry.norm(vector)
    return geometry.scale(vector, longest / length * INSIDE)


def _towards(
    before: Sequence[float],
    wanted: Vector,
    furthest: float,
    walls: Sequence[float] = (math.inf,) * 3,
) -> Vector:
    """``before`` changed towards ``wanted`` by at most ``furthest`` in norm.

    Axes faster than ``walls`` brake first, each by up to its share of the change.
    """
    change = tuple(w - b for w, b in zip(wanted, before, strict=True))
    if geometry.norm(change) <= furthest:
        return wanted
    least = furthest * AXIS_SHARE * INSIDE
    first = tuple(
        -math.copysign(min(max(abs(b) - wall, 0.0), least), b)
        for b, wall in zip(before, walls, strict=True)
    )
    rest = geometry.subtract(change, first)
    share = reach(first, rest, furthest * INSIDE)
    return tuple(b + f + share * r for b, f, r in zip(before, first, rest, strict=True))


def joint_limits(
    names: Sequence[str],
    urdf: dict[str, tuple[float, float, float]],
    profile: dict[str, JointLimit],
) -> dict[str, JointLimit]:
    """Limits of the named joints: the tighter of URDF ``(lower, upper, velocity)`` and profile."""
    out = {}
    for name in names:
        own = profile.get(name, JointLimit())
        lower, upper, velocity = urdf.get(name, (-math.inf, math.inf, math.inf))
        out[name] = JointLimit(
            max(own.lower, lower),
            min(own.upper, upper),
            min(own.velocity, velocity if velocity > 0.0 else math.inf),
            own.acceleration,
            own.jerk,
        )
    return out
