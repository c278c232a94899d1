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

from specprune_ros.sim.arm.arm_control import (  # noqa: E402
    START_POSITION,
    TOOL_DOWN,
    ArmController,
    finite,
    rotation_matrix,
    rotation_vector,
)

__all__ = ['START_POSITION', 'TOOL_DOWN', 'Shape', 'World', 'rotation_vector']

COLLISION_FORCE = 25.0  # N between the arm and what it should not press on
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
        self._renderer: mujoco.Renderer | None = None
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
        self._control = ArmController(self._model, self._data)
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
        arm = self._control.start(np.asarray(layout.joint_shift))
        data.qpos[:7], data.qpos[7:9] = arm, rizon4.FINGER_STROKE
        self._place_things(layout)
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
        self._control.command_twist(linear, angular)

    def command_pose(
        self, position: Sequence[float] | np.ndarray, quaternion: Sequence[float] | np.ndarray
    ) -> None:
        """Move the tool centre point to ``position`` (m), ``quaternion`` (x y z w), and stay."""
        self._control.command_pose(position, quaternion)

    def command_gripper(self, opening: float) -> None:
        """Move the fingers to ``opening``: 0 closed (on what is between them), 1 open (8 cm)."""
        self._control.command_gripper(opening)

    def hold(self) -> None:
        """Stop where the arm is commanded to be now."""
        self._control.hold()

    # --- time ---------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Step the physics by ``seconds``, rounded so that no time is lost over many calls."""
        span = float(finite([seconds], 1, 'seconds')[0])
        if span < 0:
            raise ValueError(f'seconds: {span}, want 0 or more')
        step = self._model.opt.timestep
        self._due += span
        count = int(self._due / step + 1e-9)
        self._due -= count * step
        for _ in range(count):
            self._control.step(step)
            mujoco.mj_step(self._model, self._data)
            self._watch_contacts()
            self.steps += 1

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
        return self._control.closing

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
