"""The simulated arm: commands in, state and images out. No ROS in here.

One frame for everything: ``base_link``, which is also the world (z up, table top at z = 0).
"""

from __future__ import annotations

import atexit
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specprune_ros.sim.arm import render_backend, rizon4, scene
from specprune_ros.sim.arm.layout import COLOURS, CUBE_HALF, PLATE_HEIGHT, Layout, random_layout

_NO_RENDERER = render_backend.prepare()  # MuJoCo binds its renderer when it is imported

import mujoco  # noqa: E402

START_POSITION = (0.56, -0.113, 0.24)  # m, tool centre point after a reset, pointing down
# Tool frame pointing down: x out of the tool, y along the fingers' motion, z forward.
TOOL_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
REACH = ((0.30, 0.80), (-0.45, 0.25), (0.008, 0.55))  # m, box the commanded tool point stays in
MAX_LINEAR, MAX_ANGULAR = 0.6, 2.0  # m/s and rad/s, the most any command is followed with
COLLISION_FORCE = 25.0  # N between the arm and what it should not press on

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
_DISTRACTOR_COLOURS = ((0.88, 0.88, 0.86), (0.36, 0.37, 0.40))
_PARKED = (0.0, 0.0, -5.0)

_SHAPES = {
    int(mujoco.mjtGeom.mjGEOM_BOX): 'box',
    int(mujoco.mjtGeom.mjGEOM_SPHERE): 'sphere',
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): 'cylinder',
}

_open_worlds: weakref.WeakSet[World] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Free the GL contexts before the interpreter tears EGL down."""
    for world in list(_open_worlds):
        world.close()


def _finite(value: Sequence[float] | np.ndarray, size: int, name: str) -> np.ndarray:
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


@dataclass(frozen=True)
class Shape:
    """One shape of the scene: ``kind`` is box, sphere or cylinder (along z), ``size`` its sides or
    diameters (m), ``rgba`` 0 to 1, and its pose in the base frame: m, quaternion x y z w.
    """

    number: int
    body: str
    kind: str
    size: tuple[float, ...]
    rgba: tuple[float, ...]
    position: np.ndarray
    quaternion: np.ndarray


class World:
    """A Rizon4-like arm at a table, seen by two cameras.

    Motion commands stay in force until the next one: ``command_twist`` keeps moving, so whoever
    drives it needs a watchdog that calls ``hold``. The same seed and the same commands give the
    same states. Not thread-safe: step and render from one thread.
    """

    def __init__(
        self,
        seed: int = 0,
        image_size: tuple[int, int] = (224, 224),
        cameras: Sequence[str] = scene.CAMERAS,
        timestep: float = 0.004,
    ) -> None:
        """``image_size`` is (height, width) in pixels; ``timestep`` the physics step in seconds.

        Rendering is set up by the first ``render``; without it no OpenGL is needed.
        """
        height, width = image_size
        if not (8 <= height <= scene.MAX_IMAGE and 8 <= width <= scene.MAX_IMAGE):
            raise ValueError(
                f'image_size: {image_size}, want height and width of 8..{scene.MAX_IMAGE}'
            )
        unknown = [name for name in cameras if name not in scene.CAMERAS]
        if unknown:
            raise ValueError(f'cameras: unknown {unknown}, the scene has {list(scene.CAMERAS)}')
        self.image_size, self.cameras = (int(height), int(width)), tuple(cameras)
        self._model = mujoco.MjModel.from_xml_string(scene.scene_xml(timestep))
        self._data = mujoco.MjData(self._model)
        self._plan = mujoco.MjData(self._model)  # where the joints are commanded to be
        self._renderer: mujoco.Renderer | None = None
        self._jacobian = np.empty((6, self._model.nv))
        self._site = self._model.site('tcp').id
        self._geom_names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        self._is_finger = np.array(
            [self._body_name(i).startswith('finger') for i in range(self._model.ngeom)]
        )
        self._is_robot = self._is_finger | np.array(
            [
                self._body_name(i).startswith(('link', 'hand', 'base'))
                for i in range(self._model.ngeom)
            ]
        )
        self._is_table = np.array(
            [self._geom_names[i] == 'table' for i in range(self._model.ngeom)]
        )
        self._nominal = {
            'cam_pos': self._model.cam_pos.copy(),
            'cam_quat': self._model.cam_quat.copy(),
            'light_pos': self._model.light_pos.copy(),
            'light_diffuse': self._model.light_diffuse.copy(),
            'ambient': np.array(self._model.vis.headlight.ambient),
            'contype': self._model.geom_contype.copy(),
            'conaffinity': self._model.geom_conaffinity.copy(),
        }
        ranges = self._model.jnt_range[:7]
        self._lower, self._upper = ranges[:, 0] + _JOINT_MARGIN, ranges[:, 1] - _JOINT_MARGIN
        self._speed = np.array([joint.velocity for joint in rizon4.JOINTS])
        self._lag = np.array(scene.damping()) / np.array(scene.stiffness())
        self._posture = self._start_posture()
        _open_worlds.add(self)
        self.reset(seed)

    def _body_name(self, geom: int) -> str:
        return self._model.body(self._model.geom_bodyid[geom]).name

    # --- episodes -----------------------------------------------------------------------------

    def reset(self, seed: int = 0, layout: Layout | None = None) -> Layout:
        """Start anew at time 0 with ``layout``, or with one drawn from ``seed``; returns it."""
        if layout is None:
            layout = random_layout(np.random.default_rng(seed), plates=2)
        self.layout = layout
        model, data = self._model, self._data
        mujoco.mj_resetData(model, data)
        self._dress(layout)
        arm = np.clip(self._posture + np.asarray(layout.joint_shift), self._lower, self._upper)
        data.qpos[:7], data.qpos[7:9] = arm, rizon4.FINGER_STROKE
        self._place_things(layout)
        self._target_joints, self._moving = arm.copy(), np.zeros(7)
        self._follow(arm)
        self._target_position = self._plan.site_xpos[self._site].copy()
        self._target_rotation = self._plan.site_xmat[self._site].reshape(3, 3).copy()
        data.ctrl[:7], data.ctrl[7:9] = arm, rizon4.FINGER_STROKE
        self._fingers = rizon4.FINGER_STROKE
        self._twist: np.ndarray | None = None
        self._goal: tuple[np.ndarray, np.ndarray] | None = None
        self.steps, self.collision, self._due = 0, '', 0.0
        mujoco.mj_forward(model, data)
        for _ in range(25):  # things settle on the table before the clock starts
            mujoco.mj_step(model, data)
        data.time = 0.0
        return layout

    def _dress(self, layout: Layout) -> None:
        """Colours, lamps and camera of this episode."""
        model, nominal = self._model, self._nominal
        model.geom_contype[:], model.geom_conaffinity[:] = (
            nominal['contype'],
            nominal['conaffinity'],
        )
        model.geom('table').rgba[:3] = np.clip(layout.tint, 0, 1)
        for group, things in (('cube', layout.cubes), ('plate', layout.plates)):
            for index, thing in enumerate(things):
                model.geom(f'{group}{index}').rgba[:3] = COLOURS[thing.colour]
                if group == 'plate':
                    rim = 0.25 + 0.75 * np.array(COLOURS[thing.colour])
                    model.geom(f'plate{index}_rim').rgba[:3] = np.clip(rim, 0, 1)
        for index, colour in enumerate(_DISTRACTOR_COLOURS):
            model.geom(f'distractor{index}').rgba[:3] = colour
        model.light_pos[:] = nominal['light_pos']
        model.light_diffuse[:] = np.clip(nominal['light_diffuse'] * layout.light, 0, 1)
        model.vis.headlight.ambient[:] = np.clip(nominal['ambient'] * layout.light, 0, 1)
        lamp = nominal['light_pos'][0] + np.asarray(layout.light_shift)
        toward = np.array(scene.AGENT_TARGET) - lamp
        model.light_dir[0] = toward / np.linalg.norm(toward)
        agent = model.camera('agent').id
        model.cam_pos[agent] = nominal['cam_pos'][agent] + np.asarray(layout.camera_shift)
        turn, turned = np.empty(4), np.empty(4)
        mujoco.mju_mat2Quat(turn, rotation_matrix(np.asarray(layout.camera_turn)).reshape(9))
        mujoco.mju_mulQuat(turned, nominal['cam_quat'][agent], turn)
        model.cam_quat[agent] = turned

    def _place_things(self, layout: Layout) -> None:
        """Put the layout's things on the table and the unused ones out of sight and contact."""
        model, data = self._model, self._data
        for group, things, height in (
            ('cube', layout.cubes, CUBE_HALF),
            ('distractor', layout.distractors, 0.03),
        ):
            for index in range(sum(name.startswith(group) for name in self._geom_names)):
                body = model.body(f'{group}{index}')
                address = model.jnt_qposadr[body.jntadr[0]]
                used = index < len(things)
                model.body_gravcomp[body.id] = 0.0 if used else 1.0
                if used:
                    thing = things[index]
                    level = 0.022 if group == 'distractor' and index % 2 == 0 else height
                    half = thing.yaw / 2
                    data.qpos[address : address + 7] = (
                        thing.x, thing.y, level + 5e-4, math.cos(half), 0, 0, math.sin(half)
                    )  # fmt: skip
                else:
                    spot = (_PARKED[0] + index, _PARKED[1], _PARKED[2])
                    data.qpos[address : address + 7] = (*spot, 1, 0, 0, 0)
                    geom = model.geom(f'{group}{index}').id
                    model.geom_contype[geom] = model.geom_conaffinity[geom] = 0
        for index in range(sum(name.startswith('plate') for name in self._geom_names) // 2):
            mocap = model.body_mocapid[model.body(f'plate{index}').id]
            if index < len(layout.plates):
                plate = layout.plates[index]
                data.mocap_pos[mocap] = plate.x, plate.y, PLATE_HEIGHT / 2
            else:
                data.mocap_pos[mocap] = _PARKED

    # --- commands -----------------------------------------------------------------------------

    def command_twist(
        self, linear: Sequence[float] | np.ndarray, angular: Sequence[float] | np.ndarray
    ) -> None:
        """Move the tool centre point with ``linear`` m/s and ``angular`` rad/s, base axes."""
        linear, angular = _finite(linear, 3, 'linear'), _finite(angular, 3, 'angular')
        self._twist, self._goal = np.concatenate([linear, angular]), None

    def command_pose(
        self, position: Sequence[float] | np.ndarray, quaternion: Sequence[float] | np.ndarray
    ) -> None:
        """Move the tool centre point to ``position`` (m), ``quaternion`` (x y z w), and stay."""
        position = _finite(position, 3, 'position')
        quaternion = _finite(quaternion, 4, 'quaternion')
        size = np.linalg.norm(quaternion)
        if size < 1e-6:
            raise ValueError('quaternion: all zero, want x y z w of unit size')
        x, y, z, w = quaternion / size
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, np.array([w, x, y, z]))
        self._goal, self._twist = (self._reachable(position), matrix.reshape(3, 3)), None

    def command_gripper(self, opening: float) -> None:
        """Move the fingers to ``opening``: 0 closed (on what is between them), 1 open (8 cm)."""
        value = float(_finite([opening], 1, 'opening')[0])
        if not 0.0 <= value <= 1.0:
            raise ValueError(f'opening: {value}, want 0 (closed) to 1 (open)')
        # A closed command aims past the middle, so that a held thing is squeezed.
        self._fingers = value * rizon4.FINGER_STROKE if value > 0.02 else -0.008

    def hold(self) -> None:
        """Stop where the arm is commanded to be now."""
        self._twist = self._goal = None
        self._target_position = self._plan.site_xpos[self._site].copy()
        self._target_rotation = self._plan.site_xmat[self._site].reshape(3, 3).copy()

    # --- time ---------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Step the physics by ``seconds``, rounded so that no time is lost over many calls."""
        span = float(_finite([seconds], 1, 'seconds')[0])
        if span < 0:
            raise ValueError(f'seconds: {span}, want 0 or more')
        step = self._model.opt.timestep
        self._due += span
        count = int(self._due / step + 1e-9)
        self._due -= count * step
        for _ in range(count):
            self._control(step)
            mujoco.mj_step(self._model, self._data)
            self._watch_contacts()
            self.steps += 1

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

    def _control(self, step: float) -> None:
        """One control step: move the target, let the planned joints follow it, ask the servos."""
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
        # The servo lags by damping/stiffness times its speed; ask that far ahead.
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

    def _watch_contacts(self) -> None:
        """Remember the first hard press of the arm on the table, or of its links on anything."""
        if self.collision or not self._data.ncon:
            return
        pairs = self._data.contact.geom
        robot = self._is_robot[pairs]
        hit = robot.any(1) & ~(self._is_finger[pairs].any(1) & ~self._is_table[pairs].any(1))
        force = np.empty(6)
        for index in np.flatnonzero(hit):
            mujoco.mj_contactForce(self._model, self._data, int(index), force)
            if abs(force[0]) > COLLISION_FORCE:
                first, second = (self._geom_names[g] or self._body_name(g) for g in pairs[index])
                self.collision = f'{first} on {second}, {abs(force[0]):.0f} N'
                return

    # --- state --------------------------------------------------------------------------------

    @property
    def time(self) -> float:
        """Simulated seconds since the reset."""
        return float(self._data.time)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Seven arm joints, then the two fingers; the order of the joint arrays."""
        return rizon4.JOINT_NAMES

    @property
    def joint_positions(self) -> np.ndarray:
        """Radians ``[7]`` then finger metres ``[2]``."""
        return self._data.qpos[:9].copy()

    @property
    def joint_velocities(self) -> np.ndarray:
        """Radians per second ``[7]`` then finger metres per second ``[2]``."""
        return self._data.qvel[:9].copy()

    def tcp_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Tool centre point in the base frame: position in metres, quaternion x y z w.

        The x axis points out of the tool, y is the direction the fingers move in.
        """
        self._refresh()
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, self._data.site_xmat[self._site])
        return self._data.site_xpos[self._site].copy(), np.roll(quaternion, -1)

    def tcp_rotation(self) -> np.ndarray:
        """Orientation of the tool centre point as a matrix ``[3, 3]`` in the base frame."""
        self._refresh()
        return self._data.site_xmat[self._site].reshape(3, 3).copy()

    def tcp_twist(self) -> tuple[np.ndarray, np.ndarray]:
        """Velocity of the tool centre point by MuJoCo: linear m/s, angular rad/s, base axes."""
        self._refresh()
        mujoco.mj_comVel(self._model, self._data)
        velocity = np.empty(6)
        mujoco.mj_objectVelocity(
            self._model, self._data, mujoco.mjtObj.mjOBJ_SITE, self._site, velocity, 0
        )
        return velocity[3:].copy(), velocity[:3].copy()

    def _refresh(self) -> None:
        """Kinematics of the present joints (a step leaves those of its beginning behind)."""
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)

    @property
    def gripper_opening(self) -> float:
        """0 closed to 1 open, as the fingers stand."""
        return float(np.clip(self._data.qpos[7:9].mean() / rizon4.FINGER_STROKE, 0.0, 1.0))

    @property
    def gripper_closing(self) -> bool:
        """Whether the last gripper command was to close."""
        return self._fingers < 0

    def thing_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position (m) and rotation matrix of ``cube0``.., ``plate0``.., ``distractor0``.."""
        self._refresh()
        body = self._data.body(name)
        return body.xpos.copy(), body.xmat.reshape(3, 3).copy()

    def objects(self) -> list[Shape]:
        """What is in sight besides the arm and the floor: the table and the things on it."""
        self._refresh()
        model, found = self._model, []
        for index in np.flatnonzero(~self._is_robot):
            kind = _SHAPES.get(int(model.geom_type[index]))
            position = self._data.geom_xpos[index]
            if kind is None or position[2] < _PARKED[2] / 2:
                continue
            quaternion = np.empty(4)
            mujoco.mju_mat2Quat(quaternion, self._data.geom_xmat[index])
            size = model.geom_size[index]
            if kind == 'sphere':
                size = size[[0, 0, 0]]
            elif kind == 'cylinder':
                size = size[[0, 0, 1]]
            found.append(
                Shape(
                    int(index),
                    self._body_name(index),
                    kind,
                    tuple(float(v) for v in 2 * size),
                    tuple(float(v) for v in model.geom_rgba[index]),
                    position.copy(),
                    np.roll(quaternion, -1),
                )
            )
        return found

    def touches(self, first: str, second: str) -> bool:
        """Whether two bodies or geoms, named by the start of their name, are in contact."""
        for pair in self._data.contact.geom:
            names = [(self._geom_names[g] or self._body_name(g)) for g in pair]
            if (names[0].startswith(first) and names[1].startswith(second)) or (
                names[1].startswith(first) and names[0].startswith(second)
            ):
                return True
        return False

    # --- images -----------------------------------------------------------------------------

    def render(self, camera: str) -> np.ndarray:
        """Image of ``camera`` now: uint8 ``[height, width, 3]`` RGB.

        Raises :class:`.render_backend.NoRenderer` where nothing can render.
        """
        self._aim(camera)
        return self._renderer.render()

    def render_depth(self, camera: str) -> np.ndarray:
        """Depth along the viewing direction now: float32 ``[height, width]``, metres."""
        self._aim(camera)
        self._renderer.enable_depth_rendering()
        try:
            return self._renderer.render()
        finally:
            self._renderer.disable_depth_rendering()

    def _aim(self, camera: str) -> None:
        if camera not in self.cameras:
            raise ValueError(f'camera: {camera!r}, this world has {list(self.cameras)}')
        if self._renderer is None:
            if _NO_RENDERER is not None:
                raise render_backend.NoRenderer(str(_NO_RENDERER))
            self._renderer = mujoco.Renderer(self._model, *self.image_size, max_geom=200)
            flags = self._renderer.scene.flags
            for flag in ('mjRND_SHADOW', 'mjRND_REFLECTION', 'mjRND_HAZE', 'mjRND_FOG'):
                flags[getattr(mujoco.mjtRndFlag, flag)] = 0
            self._options = mujoco.MjvOption()
            self._options.sitegroup[:] = 0
        self._refresh()
        self._renderer.update_scene(self._data, camera=camera, scene_option=self._options)

    def intrinsics(self, camera: str) -> tuple[float, float, float, float]:
        """Focal lengths and principal point fx, fy, cx, cy of a camera, pixels."""
        height, width = self.image_size
        half = math.radians(self._model.cam_fovy[self._model.camera(camera).id]) / 2
        focal = 0.5 * height / math.tan(half)
        return focal, focal, (width - 1) / 2, (height - 1) / 2

    def camera_pose(self, camera: str) -> tuple[np.ndarray, np.ndarray]:
        """Pose of a camera in the base frame: position (m), quaternion x y z w. Its z axis looks
        forward, x right and y down, as in ROS.
        """
        self._refresh()
        index = self._model.camera(camera).id
        rotation = self._data.cam_xmat[index].reshape(3, 3) * (1.0, -1.0, -1.0)
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, rotation.ravel())
        return self._data.cam_xpos[index].copy(), np.roll(quaternion, -1)

    def project(self, camera: str, point: Sequence[float] | np.ndarray) -> np.ndarray:
        """Where a point (m) appears in a camera's image: ``[2]``, right and down as shares 0..1.

        Outside 0..1, or NaN behind the camera, it is out of view.
        """
        index = self._model.camera(camera).id
        seen = self._data.cam_xmat[index].reshape(3, 3).T @ (
            np.asarray(point, np.float64) - self._data.cam_xpos[index]
        )
        if seen[2] >= 0:
            return np.full(2, np.nan)
        half = math.tan(math.radians(self._model.cam_fovy[index]) / 2)
        aspect = self.image_size[1] / self.image_size[0]
        right, up = seen[0] / -seen[2] / (half * aspect), seen[1] / -seen[2] / half
        return np.array([0.5 * (1 + right), 0.5 * (1 - up)])

    def close(self) -> None:
        """Free the renderer; the world can be used again (a new one is made when needed)."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
