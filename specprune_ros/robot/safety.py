"""The last look at every command: finite, and within every limit of speed, step and place.

Nothing passes after this. What is within the limits is passed on unchanged; what is beyond them is
brought back to them, or the arm is stopped where that would be guessing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from specprune_ros.robot import geometry
from specprune_ros.robot.geometry import Pose, Twist, Vector

TURNS_OUTSIDE = 0.01  # m outside the workspace where turning the tool has faded out

# A scaled vector may come out a rounding error too long; aim this much inside.
_INSIDE = 1.0 - 1e-9


@dataclass(frozen=True)
class JointLimit:
    """One joint: range in rad, speed in rad/s, acceleration in rad/s^2 (infinite: no limit)."""

    lower: float = -math.inf
    upper: float = math.inf
    velocity: float = math.inf
    acceleration: float = math.inf

    def __post_init__(self) -> None:
        if not self.lower < self.upper:
            raise ValueError(f'joint limit: lower {self.lower} must be below upper {self.upper}')
        if not (self.velocity > 0.0 and self.acceleration > 0.0):
            raise ValueError('joint limit: velocity and acceleration must be above 0')


@dataclass(frozen=True)
class SafetyLimits:
    """What a command may never exceed.

    Speeds in m/s and rad/s, accelerations in m/s^2 and rad/s^2, steps (motion of one control
    period) in m and rad. ``workspace`` holds the lowest and highest corner of the box the tool
    point stays in, metres in the base frame; ``reaction_s`` is how long the arm moves on after a
    command, and what it covers in that time is kept from the walls as well. ``lead`` is how far
    the commanded pose may run ahead of the measured one (m, rad) before the arm counts as not
    following. ``latched`` names the stop reasons that hold until :meth:`SafetyFilter.enable`; the
    others clear with the next good command. Infinite means no limit.
    """

    translation_speed: float = 0.25
    rotation_speed: float = 1.0
    translation_acceleration: float = 2.0
    rotation_acceleration: float = 8.0
    translation_step: float = math.inf
    rotation_step: float = math.inf
    workspace: tuple[Vector, Vector] | None = None
    reaction_s: float = 0.0
    lead: tuple[float, float] = (math.inf, math.inf)
    joints: dict[str, JointLimit] = field(default_factory=dict)
    latched: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in (
            'translation_speed',
            'rotation_speed',
            'translation_acceleration',
            'rotation_acceleration',
            'translation_step',
            'rotation_step',
        ):
            if not getattr(self, name) > 0.0:
                raise ValueError(f'{name} is {getattr(self, name)}; a number above 0 is needed')
        if not (math.isfinite(self.reaction_s) and self.reaction_s >= 0.0):
            raise ValueError(f'reaction_s is {self.reaction_s}; 0 or more seconds are needed')
        if not all(x > 0.0 for x in self.lead):
            raise ValueError(f'lead is {self.lead}; two numbers above 0 are needed')
        if self.workspace is not None:
            low, high = self.workspace
            if not (geometry.all_finite(low) and geometry.all_finite(high)):
                raise ValueError('workspace: corners must be finite')
            if not all(a < b for a, b in zip(low, high, strict=True)):
                raise ValueError(f'workspace: lowest corner {low} must be below highest {high}')


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
    """Filters one command per control period.

    Speeds and steps bound the norm of the output; accelerations bound the norm of its change
    against the last output, starting from rest. At a wall of the workspace the outward speed
    falls with the distance left, so that the arm can brake; should the arm be nearer than that
    (it was pushed), the outward part is cut at once and the acceleration limit yields. A tool
    already outside may only move inwards, and turns less the further out it is. Joint commands
    beyond a speed limit are scaled together, so that the tool keeps its direction; position and
    acceleration limits hold joint by joint.

    ``tracked`` integrates the commanded pose (pose outputs), and looks at the walls from there;
    otherwise the measured pose counts.
    """

    def __init__(self, limits: SafetyLimits, period_s: float, *, tracked: bool = False) -> None:
        if not (math.isfinite(period_s) and period_s > 0.0):
            raise ValueError(f'period is {period_s} s; a number above 0 is needed')
        self.limits = limits
        self.period_s = period_s
        self._tracked = tracked
        self._blind_s = period_s + limits.reaction_s
        self._stop: Stop | None = None
        self.rest()

    @property
    def stopped(self) -> Stop | None:
        """The latched stop in force, if any."""
        return self._stop

    @property
    def pose(self) -> Pose | None:
        """The pose the commanded motion has reached, where it is tracked."""
        return self._pose

    @property
    def positions(self) -> dict[str, float]:
        """The joint positions the commanded motion has reached, rad."""
        return self._positions

    def enable(self) -> None:
        """Clear a latched stop; motion starts from rest."""
        self._stop = None
        self.rest()

    def rest(self) -> None:
        """Take the arm to stand still where it is measured next: after a stop action."""
        self._twist = Twist()
        self._velocities: dict[str, float] = {}
        self._pose: Pose | None = None
        self._positions: dict[str, float] = {}

    def filter(
        self,
        command: Command,
        measured: Pose | None = None,
        measured_joints: dict[str, float] | None = None,
    ) -> Command | Stop:
        """The command brought within the limits, or the stop it leads to.

        ``measured`` is the tool pose in the base frame; ``measured_joints`` the positions in rad.
        """
        if self._stop is not None:
            return self._stop
        out = self._apply(command, measured, measured_joints or {})
        if isinstance(out, Stop):
            self.rest()
            if out.reason in self.limits.latched:
                self._stop = out
        return out

    def _apply(
        self, command: Command, measured: Pose | None, measured_joints: dict[str, float]
    ) -> Command | Stop:
        gripper = command.gripper
        if gripper is not None:
            if not math.isfinite(gripper):
                return Stop(NOT_FINITE, f'gripper command is {gripper}')
            gripper = min(1.0, max(0.0, gripper))
        if measured is not None and not measured.finite():
            return Stop(NOT_FINITE, f'measured pose is not finite: {measured}')
        if command.twist is not None:
            out = self._cartesian(command.twist, measured)
        elif command.velocities is not None:
            out = self._joints(command, measured_joints)
        else:
            out = Command()
        if isinstance(out, Stop):
            return out
        return Command(
            out.twist, out.pose, out.joints, out.velocities, out.positions, gripper=gripper
        )

    def _cartesian(self, twist: Twist, measured: Pose | None) -> Command | Stop:
        if not twist.finite():
            return Stop(NOT_FINITE, f'commanded twist is not finite: {twist}')
        limits, dt = self.limits, self.period_s
        where = measured
        if self._tracked:
            if self._pose is None:
                self._pose = measured
            where = self._pose
        if where is None and (limits.workspace is not None or self._tracked):
            return Stop(NO_POSE, 'no measured tool pose to check the workspace from')
        if self._tracked and measured is not None:
            stop = self._following(measured)
            if stop is not None:
                return stop
        linear = _clip(twist.linear, min(limits.translation_speed, limits.translation_step / dt))
        angular = _clip(twist.angular, min(limits.rotation_speed, limits.rotation_step / dt))
        if limits.workspace is not None:
            linear = self._slow_at_walls(linear, where.position)
            angular = geometry.scale(angular, self._turning_share(where.position))
        linear = _towards(self._twist.linear, linear, limits.translation_acceleration * dt)
        angular = _towards(self._twist.angular, angular, limits.rotation_acceleration * dt)
        if limits.workspace is not None:
            linear = self._keep_inside(linear, where.position)
        out = Twist(linear, angular)
        self._twist = out
        if self._tracked:
            self._pose = geometry.integrate(self._pose, out, dt)
        return Command(twist=out, pose=self._pose)

    def _following(self, measured: Pose) -> Stop | None:
        far = geometry.norm(geometry.subtract(self._pose.position, measured.position))
        turned = geometry.norm(
            geometry.rotation_between(measured.orientation, self._pose.orientation)
        )
        if far > self.limits.lead[0] or turned > self.limits.lead[1]:
            return Stop(
                NOT_FOLLOWING,
                f'the tool is {far:.3f} m and {turned:.3f} rad behind its command; at most '
                f'{self.limits.lead[0]:g} m and {self.limits.lead[1]:g} rad',
            )
        return None

    def _slow_at_walls(self, linear: Vector, position: Vector) -> Vector:
        low, high = self.limits.workspace
        # Three walls at once may each claim their share of the acceleration.
        braking = self.limits.translation_acceleration / math.sqrt(3.0)
        out = []
        for v, p, a, b in zip(linear, position, low, high, strict=True):
            outward = b - p if v > 0.0 else p - a
            allowed = _braking_speed(braking, outward, self._blind_s)
            out.append(math.copysign(min(abs(v), allowed), v))
        return (out[0], out[1], out[2])

    def _turning_share(self, position: Vector) -> float:
        """How much of a turn is let through: an arm near the ends of its joints cannot turn the
        tool about its point without dragging the point along.
        """
        low, high = self.limits.workspace
        depth = max(max(a - p, p - b, 0.0) for p, a, b in zip(position, low, high, strict=True))
        return max(0.0, 1.0 - depth / TURNS_OUTSIDE)

    def _keep_inside(self, linear: Vector, position: Vector) -> Vector:
        low, high = self.limits.workspace
        out = []
        for v, p, a, b in zip(linear, position, low, high, strict=True):
            room = max(0.0, b - p) if v > 0.0 else max(0.0, p - a)
            if abs(v) * self._blind_s > room:
                v = math.copysign(room / self._blind_s * _INSIDE, v)
            out.append(v)
        return (out[0], out[1], out[2])

    def _joints(self, command: Command, measured: dict[str, float]) -> Command | Stop:
        names, wanted = command.joints, command.velocities
        if len(names) != len(wanted):
            return Stop(UNKNOWN_JOINT, f'{len(wanted)} joint velocities for {len(names)} joints')
        if not geometry.all_finite(wanted):
            return Stop(NOT_FINITE, f'commanded joint velocities are not finite: {wanted}')
        dt = self.period_s
        limits = []
        for name in names:
            limit = self.limits.joints.get(name)
            if limit is None:
                return Stop(UNKNOWN_JOINT, f"joint '{name}' has no limits in the robot profile")
            position = self._positions.get(name, measured.get(name, math.nan))
            if not math.isfinite(position):
                return Stop(NO_POSE, f"no measured position of joint '{name}'")
            self._positions.setdefault(name, position)
            real = measured.get(name, position)
            if abs(real - position) > self.limits.lead[1]:
                return Stop(
                    NOT_FOLLOWING,
                    f"joint '{name}' is {abs(real - position):.3f} rad from its command; at most "
                    f'{self.limits.lead[1]:g} rad',
                )
            limits.append(limit)
        # One factor for all joints keeps the direction of the tool.
        share = 1.0
        for v, limit in zip(wanted, limits, strict=True):
            if abs(v) > limit.velocity:
                share = min(share, limit.velocity / abs(v) * _INSIDE)
        velocities, positions = [], []
        for name, v, limit in zip(names, wanted, limits, strict=True):
            q = self._positions[name]
            v = v * share if share < 1.0 else v
            outward = limit.upper - q if v > 0.0 else q - limit.lower
            if math.isfinite(outward) and math.isfinite(limit.acceleration):
                allowed = _braking_speed(limit.acceleration, outward, dt)
                v = math.copysign(min(abs(v), allowed), v)
            before = self._velocities.get(name, 0.0)
            change = limit.acceleration * dt
            if abs(v - before) > change:
                v = before + math.copysign(change * _INSIDE, v - before)
            room = max(0.0, limit.upper - q) if v > 0.0 else max(0.0, q - limit.lower)
            if abs(v) * dt > room:
                v = math.copysign(room / dt * _INSIDE, v)
            velocities.append(v)
            positions.append(q + v * dt)
        self._velocities.update(zip(names, velocities, strict=True))
        self._positions.update(zip(names, positions, strict=True))
        return Command(joints=names, velocities=tuple(velocities), positions=tuple(positions))


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


def _clip(vector: Vector, longest: float) -> Vector:
    length = geometry.norm(vector)
    if length <= longest:
        return vector
    if math.isinf(length):  # components too large to square
        biggest = max(abs(c) for c in vector)
        vector = geometry.scale(vector, 1.0 / biggest)
        length = geometry.norm(vector)
    return geometry.scale(vector, longest / length * _INSIDE)


def _towards(before: Vector, wanted: Vector, furthest: float) -> Vector:
    change = geometry.subtract(wanted, before)
    length = geometry.norm(change)
    if length <= furthest:
        return wanted
    return geometry.add(before, geometry.scale(change, furthest / length * _INSIDE))


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
        )
    return out
