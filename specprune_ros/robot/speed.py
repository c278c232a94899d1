"""How fast the end effector moves: by joint states, a measured twist, or the last actions.

The paper judges by per-step norms of the previous action (arXiv 2509.05614, action-aware
controller); here every source gives SI units, m/s and rad/s, so that one threshold serves them
all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from specprune_ros.robot import geometry
from specprune_ros.robot.description import UrdfError
from specprune_ros.robot.description import check as check_description
from specprune_ros.robot.geometry import Pose, Twist, Vector

JOINT_STATES = 'joint_states'
TWIST = 'twist'
ACTION = 'action'
SOURCES = (JOINT_STATES, TWIST, ACTION)

STILL = 0.02  # rad/s by the positions, above which velocities of 0 are not believed
FASTER = 2.0  # times its limit a joint may move, by whomever
ANY_JOINT = 10.0  # rad/s, where a URDF has no limit
REACH_SLACK = 0.05  # rad: noise, and stamps that are not measurement times
MAX_JOINTS = 256  # names in a joint state; a humanoid with two hands has under 100


class JointStateError(ValueError):
    """A joint state that does not fit the robot: names missing, lengths differing, NaN."""


def check_joint_count(names: Sequence[str]) -> None:
    """Raises ``JointStateError`` where a joint state names more than ``MAX_JOINTS`` joints."""
    if len(names) > MAX_JOINTS:
        raise JointStateError(f'joint state: {len(names)} names; at most {MAX_JOINTS} are read')


class SpeedError(ValueError):
    """A twist or an action that gives no speed: not finite, no time step."""


@dataclass(frozen=True)
class Speed:
    """End-effector velocity at one moment.

    ``linear`` in m/s and ``angular`` in rad/s along the axes of ``frame``; ``stamp_ns`` is the
    measurement's stamp; ``source`` is one of :data:`SOURCES`.
    """

    linear: Vector
    angular: Vector
    stamp_ns: int
    source: str
    frame: str

    @property
    def translation(self) -> float:
        """Norm of the linear velocity, m/s."""
        return geometry.norm(self.linear)

    @property
    def rotation(self) -> float:
        """Norm of the angular velocity, rad/s."""
        return geometry.norm(self.angular)

    @property
    def vertical(self) -> float:
        """Velocity along z of ``frame``, m/s; negative is down where that z points up."""
        return self.linear[2]

    def age_s(self, now_ns: int) -> float:
        """Seconds from the measurement to ``now_ns``."""
        return (now_ns - self.stamp_ns) * 1e-9


class JointSpeed:
    """Tool velocity from joint states by forward kinematics (Pinocchio) on a URDF.

    Joints are matched by name; names the URDF does not move are ignored, so a message may hold
    the gripper as well. ``joint_names`` are the joints a message must name: by default all
    movable joints between the root and ``tip_frame``; the others stay at their neutral position.
    Where driver and URDF differ by a name prefix (Flexiv's serial number), ``prefix`` is accepted
    on either side.

    Velocities come from the message; where it has none (empty, or NaN for every joint, as
    joint_state_broadcaster writes a velocity nobody measures), or says 0 while the positions move
    (``contradiction`` then says so), they are differences of positions over stamps, smoothed by a
    first-order low-pass with ``cutoff_hz``.

    ``base_frame`` is the frame the speed is measured against and expressed in; by default the
    root.

    Raises ``UrdfError`` where the description does not parse or lacks a frame or joint.
    """

    def __init__(
        self,
        urdf_xml: str,
        tip_frame: str,
        joint_names: Sequence[str] | None = None,
        *,
        base_frame: str = '',
        prefix: str = '',
        cutoff_hz: float = 10.0,
        max_gap_s: float = 0.5,
    ) -> None:
        self.model = _parse(urdf_xml)
        self._data = self.model.createData()
        self._prefix = prefix
        self._tip = self._frame(tip_frame, 'tip_frame')
        self._base = self._frame(base_frame, 'base_frame') if base_frame else None
        self.tip_frame = tip_frame
        self.base_frame = base_frame or self._root_name()
        chain = self._chain()
        if not chain:
            raise UrdfError(f"robot_description: no movable joint above tip_frame '{tip_frame}'")
        if joint_names is not None:
            unknown = self.lacks(joint_names)
            if unknown:
                raise UrdfError(
                    f'robot_description: no movable joint named {", ".join(unknown)}; '
                    f'it has {", ".join(list(self.model.names)[1:])}'
                )
            wanted = {self._urdf_joint(n) for n in joint_names}
            chain = [j for j in chain if j in wanted]
            if not chain:
                raise UrdfError(
                    f"robot_description: none of {', '.join(joint_names)} moves '{tip_frame}'"
                )
        self._joints = chain
        for j in chain:
            if self.model.joints[j].nv != 1:
                raise UrdfError(
                    f"robot_description: joint '{self.model.names[j]}' has "
                    f'{self.model.joints[j].nv} degrees of freedom; only joints with one are read'
                )
        self.joint_names: tuple[str, ...] = tuple(self.model.names[j] for j in chain)
        self._tau = 1.0 / (2.0 * math.pi * cutoff_hz)
        self._max_gap_s = max_gap_s
        # Mapping of the last message layout seen: drivers repeat the same names a thousand times
        # a second.
        self._layout: tuple[tuple[str, ...], list[int]] | None = None
        self.reset()

    def lacks(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` that are no movable joint here, with or without the prefix."""
        return [name for name in names if self._urdf_joint(name) is None]

    def named(self, names: Sequence[str]) -> JointSpeed:
        """The same with ``joint_names``, the keys of :meth:`limits`, written as in ``names``;
        joints that ``names`` leaves out are called as here.
        """
        ours = {self._urdf_joint(name): name for name in names}
        other = copy.copy(self)
        other.joint_names = tuple(ours.get(j, self.model.names[j]) for j in self._joints)
        return other

    def reset(self) -> None:
        """Forget earlier positions, so that no difference spans a jump."""
        self._last_q: np.ndarray | None = None
        self._last_v: np.ndarray | None = None
        self._last_stamp: int | None = None
        self._last_speed: Speed | None = None
        self.contradiction = ''

    def update(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float] | None,
        stamp_ns: int,
    ) -> Speed | None:
        """Speed at ``stamp_ns``, or ``None`` while positions alone do not give one yet.

        Positions in radians (metres for sliding joints), velocities per second. A stamp before
        the last one, or more than ``max_gap_s`` after it, restarts the differences; an equal
        stamp returns the last speed. Raises ``JointStateError``, also for positions no joint can
        have reached since the last ones.
        """
        index = self._match(names)
        q = self._configuration(index, names, positions)
        v = self._velocities(index, names, velocities)
        self._check_reach(q, v, stamp_ns)
        moved = self._differentiate(q, stamp_ns)
        self.contradiction = ''
        if v is not None and not v.any() and moved is not None:
            fastest = float(np.abs(moved).max())
            if fastest > STILL:
                self.contradiction = (
                    f'velocities are 0 while positions move at {fastest:.2f} rad/s'
                )
        if v is None or self.contradiction:
            if moved is None:
                return self._last_speed if stamp_ns == self._last_stamp else None
            v = moved
        self._last_speed = self._speed(q, v, stamp_ns)
        return self._last_speed

    def _check_reach(self, q: np.ndarray, v: np.ndarray | None, stamp_ns: int) -> None:
        """Raises ``JointStateError`` for a state that no joint can have reached, or be passing."""
        limit = np.where(self.model.velocityLimit > 0.0, self.model.velocityLimit, np.inf)
        fastest = FASTER * np.minimum(limit, ANY_JOINT)
        names = list(self.model.names)[1:]
        if v is not None and (np.abs(v) > fastest).any():
            i = int(np.argmax(np.abs(v) / fastest))
            raise JointStateError(f"joint state: '{names[i]}' is said to move at {v[i]:.1f} rad/s")
        if self._last_q is None or self._last_stamp is None:
            return
        dt = (stamp_ns - self._last_stamp) * 1e-9
        if not 0.0 < dt <= self._max_gap_s:
            return
        far = np.abs(pin.difference(self.model, self._last_q, q))
        if (far > fastest * dt + REACH_SLACK).any():
            i = int(np.argmax(far - fastest * dt))
            raise JointStateError(
                f"joint state: '{names[i]}' jumps by {far[i]:.3f} rad in {dt:.3f} s"
            )

    def tool_pose(self, names: Sequence[str], positions: Sequence[float]) -> Pose:
        """Pose of ``tip_frame`` in ``base_frame``. Raises ``JointStateError``."""
        q = self._configuration(self._match(names), names, positions)
        pin.framesForwardKinematics(self.model, self._data, q)
        placement = self._data.oMf[self._tip]
        if self._base is not None:
            placement = self._data.oMf[self._base].actInv(placement)
        x, y, z, w = pin.Quaternion(placement.rotation).coeffs()
        t = placement.translation
        return Pose((float(t[0]), float(t[1]), float(t[2])), geometry.normalised((x, y, z, w)))

    def jacobian(self, names: Sequence[str], positions: Sequence[float]) -> np.ndarray:
        """Tool Jacobian ``[6, n]`` in the axes of ``base_frame``, columns as ``joint_names``.

        Rows are linear (m) then angular (rad); the base is taken as not moving with these joints.
        """
        q = self._configuration(self._match(names), names, positions)
        full = pin.computeFrameJacobian(
            self.model, self._data, q, self._tip, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        )
        pin.updateFramePlacements(self.model, self._data)
        columns = [self.model.joints[j].idx_v for j in self._joints]
        # Of a model with one joint Pinocchio returns a vector.
        out = full.reshape(6, -1)[:, columns].copy()
        if self._base is not None:
            turn = self._data.oMf[self._base].rotation.T
            out[:3], out[3:] = turn @ out[:3], turn @ out[3:]
        return out

    def limits(self) -> dict[str, tuple[float, float, float]]:
        """Lower and upper position (infinite where continuous) and speed limit by joint."""
        out = {}
        for name, j in zip(self.joint_names, self._joints, strict=True):
            joint = self.model.joints[j]
            speed = float(self.model.velocityLimit[joint.idx_v])
            if joint.nq == 2:
                out[name] = (-math.inf, math.inf, speed)
            else:
                out[name] = (
                    float(self.model.lowerPositionLimit[joint.idx_q]),
                    float(self.model.upperPositionLimit[joint.idx_q]),
                    speed,
                )
        return out

    def _frame(self, name: str, parameter: str) -> int:
        if not self.model.existFrame(name):
            joint = self._urdf_joint(name)
            if joint is not None:  # named as a joint is, but for the prefix
                return self.model.getFrameId(self.model.names[joint])
            bodies = [f.name for f in self.model.frames if f.type == pin.FrameType.BODY]
            raise UrdfError(
                f"{parameter}: robot_description has no link '{name}'; it has {', '.join(bodies)}"
            )
        return self.model.getFrameId(name)

    def _root_name(self) -> str:
        for frame in self.model.frames:
            if frame.type == pin.FrameType.BODY:
                return frame.name
        return 'world'

    def _chain(self) -> list[int]:
        joint = self.model.frames[self._tip].parentJoint
        chain = []
        while joint > 0:
            chain.append(joint)
            joint = self.model.parents[joint]
        return chain[::-1]

    def _urdf_joint(self, name: str) -> int | None:
        candidates = [name]
        if self._prefix:
            candidates.append(self._prefix + name)
            candidates.append(name.removeprefix(self._prefix))
        for candidate in candidates:
            if self.model.existJointName(candidate):
                return self.model.getJointId(candidate)
        return None

    def _match(self, names: Sequence[str]) -> list[int]:
        check_joint_count(names)
        key = tuple(names)
        if self._layout is not None and self._layout[0] == key:
            return self._layout[1]
        found: dict[int, int] = {}
        for i, name in enumerate(key):
            joint = self._urdf_joint(name)
            if joint is None:
                continue
            if joint in found:
                raise JointStateError(f"joint state: '{name}' is named twice")
            found[joint] = i
        missing = [self.model.names[j] for j in self._joints if j not in found]
        if missing:
            raise JointStateError(
                f'joint state lacks {", ".join(missing)}; it has '
                f'{", ".join(key) if key else "no names at all"}'
            )
        index = [found[j] for j in self._joints]
        self._layout = (key, index)
        return index

    def _configuration(
        self, index: list[int], names: Sequence[str], positions: Sequence[float]
    ) -> np.ndarray:
        if len(positions) != len(names):
            raise JointStateError(
                f'joint state: {len(positions)} positions for {len(names)} names'
            )
        q = pin.neutral(self.model)
        for j, i in zip(self._joints, index, strict=True):
            value = float(positions[i])
            if not math.isfinite(value):
                raise JointStateError(f"joint state: position of '{names[i]}' is {value}")
            joint = self.model.joints[j]
            if joint.nq == 2:  # continuous: Pinocchio keeps cosine and sine
                q[joint.idx_q] = math.cos(value)
                q[joint.idx_q + 1] = math.sin(value)
            else:
                q[joint.idx_q] = value
        return q

    def _velocities(
        self, index: list[int], names: Sequence[str], velocities: Sequence[float] | None
    ) -> np.ndarray | None:
        if velocities is None or len(velocities) == 0:
            return None
        if len(velocities) != len(names):
            raise JointStateError(
                f'joint state: {len(velocities)} velocities for {len(names)} names'
            )
        values = [float(velocities[i]) for i in index]
        if all(math.isnan(x) for x in values):
            return None
        v = np.zeros(self.model.nv)
        for j, i, value in zip(self._joints, index, values, strict=True):
            if not math.isfinite(value):
                raise JointStateError(f"joint state: velocity of '{names[i]}' is {value}")
            v[self.model.joints[j].idx_v] = value
        return v

    def _differentiate(self, q: np.ndarray, stamp_ns: int) -> np.ndarray | None:
        if self._last_stamp is None or self._last_q is None:
            self._last_q, self._last_v, self._last_stamp = q, None, stamp_ns
            return None
        dt = (stamp_ns - self._last_stamp) * 1e-9
        if dt == 0.0:
            return None
        if dt < 0.0 or dt > self._max_gap_s:
            self.reset()
            self._last_q, self._last_stamp = q, stamp_ns
            return None
        # pin.difference wraps continuous joints, so a turn past pi is no jump.
        raw = pin.difference(self.model, self._last_q, q) / dt
        if self._last_v is None:
            v = raw
        else:
            share = 1.0 - math.exp(-dt / self._tau)
            v = self._last_v + share * (raw - self._last_v)
        self._last_q, self._last_v, self._last_stamp = q, v, stamp_ns
        return v

    def _speed(self, q: np.ndarray, v: np.ndarray, stamp_ns: int) -> Speed:
        model, data = self.model, self._data
        pin.forwardKinematics(model, data, q, v)
        axes = pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        tip = pin.getFrameVelocity(model, data, self._tip, axes)
        linear, angular = tip.linear, tip.angular
        if self._base is not None:
            base = pin.getFrameVelocity(model, data, self._base, axes)
            pin.updateFramePlacement(model, data, self._tip)
            pin.updateFramePlacement(model, data, self._base)
            arm = data.oMf[self._tip].translation - data.oMf[self._base].translation
            turn = data.oMf[self._base].rotation.T
            linear = turn @ (linear - base.linear - np.cross(base.angular, arm))
            angular = turn @ (angular - base.angular)
        return Speed(
            (float(linear[0]), float(linear[1]), float(linear[2])),
            (float(angular[0]), float(angular[1]), float(angular[2])),
            stamp_ns,
            JOINT_STATES,
            self.base_frame,
        )


def _parse(urdf_xml: str) -> pin.Model:
    check_description(urdf_xml)
    try:
        model = pin.buildModelFromXML(urdf_xml)
    except (ValueError, RuntimeError, IndexError) as error:
        raise UrdfError(f'robot_description does not parse: {error}') from error
    return model


class TwistSpeed:
    """Tool velocity as a driver measures it.

    TwistStamped, or the ``accel`` field of the AccelStamped that Flexiv publishes.
    """

    def __init__(self, frame: str = '') -> None:
        self._frame = frame

    def update(
        self, linear: Sequence[float], angular: Sequence[float], stamp_ns: int, frame: str = ''
    ) -> Speed:
        """Speed of one message; ``frame`` is its ``frame_id``. Raises ``SpeedError``."""
        values = [float(x) for x in (*linear, *angular)]
        if len(values) != 6 or not geometry.all_finite(values):
            raise SpeedError(f'twist is not six finite numbers: {values}')
        if self._frame and frame and frame != self._frame:
            raise SpeedError(f"twist is in frame '{frame}', expected '{self._frame}'")
        return Speed(
            (values[0], values[1], values[2]),
            (values[3], values[4], values[5]),
            stamp_ns,
            TWIST,
            frame or self._frame,
        )


class ActionSpeed:
    """The paper's source: how far the previous actions moved the tool, over the step time."""

    def __init__(self, frame: str, step_dt: float) -> None:
        if not (math.isfinite(step_dt) and step_dt > 0.0):
            raise SpeedError(f'step_dt is {step_dt}; a time step in seconds above 0 is needed')
        self._frame = frame
        self._step_dt = step_dt

    def update(self, deltas: Sequence[Sequence[float]], stamp_ns: int) -> Speed:
        """Mean velocity over rows of ``dx dy dz rx ry rz`` (metres, rotation vector in radians).

        One row is the paper's reading (the last action); the rows executed since the last query
        give the net motion. Further columns are ignored. Raises ``SpeedError``.
        """
        rows = np.asarray(deltas, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] < 6:
            raise SpeedError(f'actions have shape {rows.shape}; [rows, 6 or more] is needed')
        if not np.isfinite(rows[:, :6]).all():
            raise SpeedError('actions are not finite')
        mean = rows[:, :6].mean(axis=0) / self._step_dt
        return Speed(
            (float(mean[0]), float(mean[1]), float(mean[2])),
            (float(mean[3]), float(mean[4]), float(mean[5])),
            stamp_ns,
            ACTION,
            self._frame,
        )


def joint_velocities(
    jacobian: np.ndarray, twist: Twist, damping: float = 0.02
) -> tuple[float, ...]:
    """Damped least squares: rad/s ``[n]`` that move the tool with ``twist``.

    ``jacobian`` is ``[6, n]``, linear rows (m) first. The damping, in m or rad per rad, bounds the
    joint velocities near a singularity at the price of a tool velocity that falls behind there
    (Nakamura and Hanafusa 1986; Wampler 1986).
    """
    wanted = np.array(twist.six)
    inner = jacobian @ jacobian.T + damping**2 * np.eye(6)
    return tuple(float(v) for v in jacobian.T @ np.linalg.solve(inner, wanted))
