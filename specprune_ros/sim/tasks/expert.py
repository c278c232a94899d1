"""A reactive expert: from the simulator's state now, the next motion. It keeps no memory."""

from __future__ import annotations

import math

import numpy as np

from specprune_ros.sim.arm.layout import CUBE_HALF, PLATE_HEIGHT
from specprune_ros.sim.arm.world import TOOL_DOWN, World, rotation_vector
from specprune_ros.sim.tasks.tasks import HOVER, SLOW, Pace, Task

GRASP_HEIGHT = 0.02  # m, tool centre point when closing on a cube on the table
_HIGH = 0.10  # m above grasp or release height until the tool is well placed
_CARRY = 0.11  # m, tool height while a cube is carried
_LIFTED = 0.20  # m, tool height at the end of a lift
_CLEAR = 0.07  # m, tool above a placed cube before it goes for the next


def _funnel(goal: float, beside: float, slack: float, slope: float, high: float) -> float:
    """Height to aim at: ``goal`` when well placed, rising with the sideways error."""
    return goal + float(np.clip(slope * (beside - slack), 0.0, high))


class Expert:
    """The next action for a task: ``[7]`` = shift (m, 3), rotation vector (rad, 3), gripper."""

    def __init__(self, world: World, task: Task, pace: Pace = SLOW) -> None:
        self.world, self.task, self.pace = world, task, pace

    @property
    def step(self) -> tuple[int, int | None]:
        """Cube and plate of the present step: the first whose cube is not placed and left."""
        parts, (tool, _) = self.task.parts, self.world.tcp_pose()
        if len(parts) == 1:
            return parts[0]
        places = [self.world.thing_pose(f'cube{cube}')[0] for cube, _ in parts]
        for part, place in zip(parts, places, strict=True):
            if self.holds(tool, place, part[0]):
                return part
        for part, place in zip(parts[:-1], places, strict=False):
            over = math.hypot(*(place - tool)[:2]) < 0.04 and tool[2] < place[2] + _CLEAR
            if over or not self._placed(place, part[1]):
                return part
        return parts[-1]

    def __call__(self) -> np.ndarray:
        """Action for the world as it stands, in the base frame; gripper 1 is open."""
        world, task = self.world, self.task
        tool, _ = world.tcp_pose()
        number, plate = self.step
        cube, turn = world.thing_pose(f'cube{number}')
        if task.family == 'move':
            goal = cube + (0, 0, HOVER)
            beside = math.hypot(*(goal - tool)[:2])
            goal[2] = max(goal[2], min(tool[2], goal[2] + max(0.0, beside - 0.05)))
            return self._action(tool, goal, 0.0, 1.0)
        if self.holds(tool, cube, number):
            if plate is None:
                return self._action(tool, np.array([tool[0], tool[1], _LIFTED]), None, 0.0)
            return self._carry(tool, cube, plate)
        if plate is not None and self._placed(cube, plate):
            return self._leave(tool, cube)
        return self._approach(tool, cube, _yaw(turn))

    def _approach(self, tool: np.ndarray, cube: np.ndarray, yaw: float) -> np.ndarray:
        """Come down on the cube through a funnel, then close."""
        beside = math.hypot(*(cube - tool)[:2])
        away = abs(_wrap(yaw - self._tool_yaw()))
        grasp = cube[2] - CUBE_HALF + GRASP_HEIGHT
        # Once the fingers close they go on: who asks often must not waver at the limit.
        slack = 0.008 if self.world.gripper_opening < 0.85 else 0.0
        if beside < 0.012 + slack and tool[2] < grasp + 0.008 + slack:
            return self._action(tool, np.array([cube[0], cube[1], grasp]), yaw, 0.0)
        height = _funnel(grasp - 0.004, beside + 0.05 * max(0.0, away - 0.25), 0.006, 5.0, _HIGH)
        goal = np.array([cube[0], cube[1], height])
        if tool[2] < cube[2] + 0.03 and beside > 0.03:  # low beside it: up first
            goal[:2] = tool[:2]
        return self._action(tool, goal, yaw, 1.0)

    def _carry(self, tool: np.ndarray, cube: np.ndarray, number: int) -> np.ndarray:
        """Bring a held cube over the plate, down, and let go."""
        plate, _ = self.world.thing_pose(f'plate{number}')
        shift = plate - cube
        beside = math.hypot(*shift[:2])
        hang = tool[2] - cube[2]
        release = PLATE_HEIGHT + CUBE_HALF + hang + 0.003
        if beside < 0.02 and tool[2] < release + 0.006:
            return self._action(tool, tool, None, 1.0)
        height = _funnel(release - 0.004, beside, 0.012, 3.0, _CARRY - release)
        goal = tool + shift
        goal[2] = height
        if beside > 0.07:  # clear of what stands around before it travels
            goal[:2] = tool[:2] + shift[:2] * np.clip((tool[2] - 0.07) / 0.03, 0.0, 1.0)
        return self._action(tool, goal, None, 0.0)

    def _leave(self, tool: np.ndarray, cube: np.ndarray) -> np.ndarray:
        """Open, then rise straight up from a placed cube."""
        if self.world.gripper_opening < 0.8 and tool[2] < cube[2] + 0.04:
            return self._action(tool, tool, None, 1.0)
        return self._action(tool, np.array([tool[0], tool[1], 0.16]), None, 1.0)

    def holds(self, tool: np.ndarray, cube: np.ndarray, number: int) -> bool:
        """Whether the fingers are closed on cube ``number``, which is at ``cube``."""
        world = self.world
        return bool(
            np.linalg.norm(cube - tool) < 0.025
            and world.gripper_opening < 0.9
            and world.gripper_closing
            and world.touches(f'cube{number}', 'finger_left')
            and world.touches(f'cube{number}', 'finger_right')
        )

    def _placed(self, cube: np.ndarray, number: int) -> bool:
        """Whether a cube at ``cube`` lies on plate ``number`` (held or not)."""
        plate, _ = self.world.thing_pose(f'plate{number}')
        return (
            math.hypot(*(cube - plate)[:2]) < 0.045 and cube[2] < PLATE_HEIGHT + CUBE_HALF + 0.01
        )

    def _tool_yaw(self) -> float:
        """Rotation of the fingers about the vertical, 0 as at the start, radians."""
        _, (x, y, z, w) = self.world.tcp_pose()
        across = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z))  # the tool's y axis, in the base
        return math.atan2(-across[0], across[1])

    def _action(
        self, tool: np.ndarray, goal: np.ndarray, yaw: float | None, gripper: float
    ) -> np.ndarray:
        """One limited step towards ``goal`` and ``yaw`` (``None``: keep), tool kept vertical."""
        pace = self.pace
        shift = pace.gain * (goal - tool)
        size = float(np.linalg.norm(shift))
        shift *= min(1.0, pace.shift / max(size, 1e-9))
        now = self._tool_yaw()
        wanted = now if yaw is None else now + _wrap(yaw - now)
        c, s = math.cos(wanted), math.sin(wanted)
        rotation = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ TOOL_DOWN
        turn = pace.gain * rotation_vector(rotation @ self.world.tcp_rotation().T)
        turn *= min(1.0, pace.turn / max(float(np.linalg.norm(turn)), 1e-9))
        return np.concatenate([shift, turn, [gripper]])


def _yaw(rotation: np.ndarray) -> float:
    """A cube's rotation about the vertical, from whichever of its axes lies flat."""
    flat = int(np.argmin(np.abs(rotation[2])))
    return math.atan2(rotation[1, flat], rotation[0, flat])


def _wrap(angle: float) -> float:
    """To within an eighth of a turn: a cube looks the same after a quarter."""
    return (angle + math.pi / 4) % (math.pi / 2) - math.pi / 4
