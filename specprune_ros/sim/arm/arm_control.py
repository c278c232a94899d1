"""The controller of the simulated arm: from commands to joint targets at every physics step.

Import it after ``world``, which chooses MuJoCo's renderer before MuJoCo is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from specprune_ros.sim.arm import rizon4, scene

START_POSITION = (0.56, -0.113, 0.24)  # m, tool centre point after a reset, pointing down
# Tool frame pointing down: x out of the tool, y along the fingers' motion, z forward.
TOOL_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
REACH = ((0.30, 0.80), (-0.45, 0.25), (0.008, 0.55))  # m, box the commanded tool point stays in
MAX_LINEAR, MAX_ANGULAR = 0.6, 2.0  # m/s and rad/s, the most any command is followed with

_POSE_GAIN = 8.0  # 1/s, how fast a pose command's target closes on its goal
_ERROR_GAIN = 20.0  # 1/s, how fast the planned joints close on the target
_JOINT_ACCELERATION = 25.0  # rad/s^2
_LEAD = 0.03  # m, how far the commanded point may run ahead of what the joints can follow
_WIND_UP = 0.1  # rad a joint's servo may be commanded ahead of where the joint is
_LEAD_TURN = 0.3  # rad, the same for its rotation
_PLACE_FIRST = np.array([1.0, 1.0, 1.0, 0.1, 0.1, 0.1])  # weights of a twist that cannot be had
_DAMPING = 0.02  # of the least squares
_POSTURE_GAIN = 0.6  # 1/s, pull of the redundant joint towards the start posture
_JOINT_MARGIN = 0.02  # rad kept to the joint limits


def finite(value: Sequence[float] | np.ndarray, size: int, name: str) -> np.ndarray:
    """``value`` as float64 ``[size]``; raises ``ValueError``, which names it."""
    array = np.asarray(value, dtype=np.float64)
    if array.shape != (size,):
        raise ValueError(f'{name}: want {size} numbers, got shape {array.shape}')
    if not np.isfinite(array).all():
        raise ValueError(f'{name}: not finite: {array.tolist()}')
    return array


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle, radians ``[3]``, of a rotation matrix ``[3, 3]``."""
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, rotation.reshape(9))
    vector = np.empty(3)
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix ``[3, 3]`` of an axis times angle vector in radians."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    quaternion, matrix = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quaternion, np.asarray(vector) / angle, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def _bounded(twist: np.ndarray) -> np.ndarray:
    """A twist ``[6]`` no faster than the arm moves, m/s and rad/s; changed in place."""
    for part, most in ((twist[:3], MAX_LINEAR), (twist[3:], MAX_ANGULAR)):
        part *= min(1.0, most / max(float(np.linalg.norm(part)), 1e-9))
    return twist


class ArmController:
    """Moves the tool centre point as commanded, by resolved joint rates.

    Commands stay in force until the next one. ``data`` is the state whose servos it commands; it
    plans on a copy of its own, where the joints are commanded to be.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._model, self._data = model, data
        self._plan = mujoco.MjData(model)
        self._jacobian = np.empty((6, model.nv))
        self._site = model.site('tcp').id
        ranges = model.jnt_range[:7]
        self._lower, self._upper = ranges[:, 0] + _JOINT_MARGIN, ranges[:, 1] - _JOINT_MARGIN
        self._speed = np.array([joint.velocity for joint in rizon4.JOINTS])
        self._lag = np.array(scene.damping()) / np.array(scene.stiffness())
        self._posture = self._start_posture()

    def start(self, shift: np.ndarray) -> np.ndarray:
        """Begin at the start posture shifted by ``shift`` (rad ``[7]``), fingers open, with no
        command; returns the joints.
        """
        arm = np.clip(self._posture + shift, self._lower, self._upper)
        self._target_joints, self._moving = arm.copy(), np.zeros(7)
        self._follow(arm)
        self._fingers = rizon4.FINGER_STROKE
        self._data.ctrl[:7], self._data.ctrl[7:9] = arm, self._fingers
        self.hold()
        return arm

    @property
    def closing(self) -> bool:
        """Whether the last gripper command was to close."""
        return self._fingers < 0

    def command_twist(
        self, linear: Sequence[float] | np.ndarray, angular: Sequence[float] | np.ndarray
    ) -> None:
        """Move the tool centre point with ``linear`` m/s and ``angular`` rad/s, base axes."""
        linear, angular = finite(linear, 3, 'linear'), finite(angular, 3, 'angular')
        self._goal: tuple[np.ndarray, np.ndarray] | None = None
        self._twist: np.ndarray | None = np.concatenate([linear, angular])

    def command_pose(
        self, position: Sequence[float] | np.ndarray, quaternion: Sequence[float] | np.ndarray
    ) -> None:
        """Move the tool centre point to ``position`` (m), ``quaternion`` (x y z w), and stay."""
        position = finite(position, 3, 'position')
        quaternion = finite(quaternion, 4, 'quaternion')
        size = np.linalg.norm(quaternion)
        if size < 1e-6:
            raise ValueError('quaternion: all zero, want x y z w of unit size')
        x, y, z, w = quaternion / size
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, np.array([w, x, y, z]))
        self._goal, self._twist = (self._reachable(position), matrix.reshape(3, 3)), None

    def command_gripper(self, opening: float) -> None:
        """Move the fingers to ``opening``: 0 closed (on what is between them), 1 open (8 cm)."""
        value = float(finite([opening], 1, 'opening')[0])
        if not 0.0 <= value <= 1.0:
            raise ValueError(f'opening: {value}, want 0 (closed) to 1 (open)')
        # A closed command aims past the middle, so that a held thing is squeezed.
        self._fingers = value * rizon4.FINGER_STROKE if value > 0.02 else -0.008

    def hold(self) -> None:
        """Stop where the arm is commanded to be now."""
        self._twist = self._goal = None
        self._target_position = self._plan.site_xpos[self._site].copy()
        self._target_rotation = self._plan.site_xmat[self._site].reshape(3, 3).copy()

    def _reachable(self, position: np.ndarray) -> np.ndarray:
        low, high = np.array(REACH).T
        return np.clip(position, low, high)

    def _follow(self, joints: np.ndarray) -> None:
        """Kinematics of the planned arm, and its Jacobian (linear rows first)."""
        plan = self._plan
        plan.qpos[:7] = joints
        mujoco.mj_kinematics(self._model, plan)
        mujoco.mj_comPos(self._model, plan)
        mujoco.mj_jacSite(self._model, plan, self._jacobian[:3], self._jacobian[3:], self._site)

    def _rates(self, position: np.ndarray, rotation: np.ndarray, twist: np.ndarray) -> np.ndarray:
        """Joint rates for ``twist`` plus the closing of a pose error, within the speed limits.

        Damped least squares; what the task leaves free pulls towards the start posture.
        """
        error = np.empty(6)
        error[:3] = position - self._plan.site_xpos[self._site]
        error[3:] = rotation_vector(rotation @ self._plan.site_xmat[self._site].reshape(3, 3).T)
        jacobian = self._jacobian[:, :7]
        square = jacobian @ jacobian.T + _DAMPING**2 * np.eye(6)
        wanted = _bounded(twist + _ERROR_GAIN * error)
        posture = _POSTURE_GAIN * (self._posture - self._target_joints)
        rates = posture + jacobian.T @ np.linalg.solve(square, wanted - jacobian @ posture)
        blocked = (self._target_joints <= self._lower) & (rates < 0)
        blocked |= (self._target_joints >= self._upper) & (rates > 0)
        if blocked.any():
            # A joint at its end moves the tool no further: the others take over, and where they
            # cannot do all of it, the place of the tool comes before how it is turned.
            free = _PLACE_FIRST[:, None] * jacobian * ~blocked
            square = free @ free.T + _DAMPING**2 * np.eye(6)
            rates = free.T @ np.linalg.solve(square, _PLACE_FIRST * wanted)
        return rates / max(float(np.max(np.abs(rates) / (0.95 * self._speed))), 1.0)

    def _wanted_twist(self) -> np.ndarray:
        """Velocity of the target, m/s, rad/s ``[6]``: the commanded one, or towards the goal."""
        if self._twist is not None:
            twist = self._twist.copy()
        elif self._goal is not None:
            turn = rotation_vector(self._goal[1] @ self._target_rotation.T)
            twist = _POSE_GAIN * np.concatenate([self._goal[0] - self._target_position, turn])
        else:
            return np.zeros(6)
        return _bounded(twist)

    def step(self, step: float) -> None:
        """One control step of ``step`` seconds: move the target, let the planned joints follow it,
        command the servos.
        """
        twist = self._wanted_twist()
        before = self._target_position
        target = self._reachable(before + step * twist[:3])
        here = self._plan.site_xpos[self._site]
        lead = target - here
        # The target may not run away from what the joints can do.
        target = here + lead * min(1.0, _LEAD / max(float(np.linalg.norm(lead)), 1e-9))
        requested = float(np.linalg.norm(twist[:3]))
        twist[:3] = (target - before) / step
        # Nor may it be dragged along by an arm that slips: that would push the arm further.
        dragged = float(np.linalg.norm(twist[:3]))
        if dragged > requested + 1e-6:
            twist[:3] *= requested / dragged
        self._target_position = target
        self._target_rotation = self._turned(step * twist[3:])
        rates = self._rates(target, self._target_rotation, twist)
        most = _JOINT_ACCELERATION * step
        change = rates - self._moving
        # All joints by the same share, so that the tool does not swerve while they catch up.
        rates = self._moving + change * min(1.0, most / max(float(np.max(np.abs(change))), 1e-9))
        goal = np.clip(self._target_joints + step * rates, self._lower, self._upper)
        # Pressed against something, the servos must not wind up: they would fling the arm free.
        real = self._data.qpos[:7]
        goal = np.clip(goal, real - _WIND_UP, real + _WIND_UP)
        self._moving = (goal - self._target_joints) / step
        self._target_joints = goal
        self._follow(goal)
        # The servo lags by damping/stiffness times its speed; command that far ahead.
        self._data.ctrl[:7] = goal + self._lag * self._moving
        fingers, most = self._data.ctrl[7:9], rizon4.FINGER_SPEED * step
        fingers += np.clip(self._fingers - fingers, -most, most)

    def _turned(self, turn: np.ndarray) -> np.ndarray:
        """The target rotation turned by ``turn``, rad, but not far ahead of the joints."""
        here = self._plan.site_xmat[self._site].reshape(3, 3)
        target = rotation_matrix(turn) @ self._target_rotation
        lead = rotation_vector(target @ here.T)
        ahead = float(np.linalg.norm(lead))
        if ahead <= _LEAD_TURN:
            return target
        return rotation_matrix(lead * _LEAD_TURN / ahead) @ here

    def _start_posture(self) -> np.ndarray:
        """Joints near the home pose that put the tool at the start position, pointing down."""
        self._posture = self._target_joints = np.array(rizon4.HOME)
        start = np.array(START_POSITION)
        for _ in range(200):
            self._follow(self._target_joints)
            self._target_joints = self._target_joints + 0.02 * self._rates(
                start, TOOL_DOWN, np.zeros(6)
            )
        return self._target_joints.copy()
