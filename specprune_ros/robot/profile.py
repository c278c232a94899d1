"""Robot profiles: which topics, frames, joints, adapters and limits an arm has, as YAML.

One file describes one arm for both nodes. Every key is checked; an error names the file, the key
and what it may hold. ``{robot_sn}`` and ``{robot_prefix}`` in a text are replaced by the launch
argument and by the same with ``-`` turned into ``_`` (ROS names cannot hold a dash);
``{namespace}`` by the nodes' namespace, such as ``/left``, and by nothing at the root.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from specprune_ros import validation
from specprune_ros.bounded_files import boundary, read_yaml
from specprune_ros.robot import speed, timeline
from specprune_ros.robot.safety import Finite, SafetyLimits
from specprune_ros.robot.watchdog import WatchdogLimits
from specprune_ros.validation import validated

ADAPTERS = ('twist', 'pose', 'joint_trajectory', 'cartesian_motion_force')
TWIST, POSE, JOINT_TRAJECTORY, MOTION_FORCE = ADAPTERS

GRIPPER_ADAPTERS = ('none', 'float64', 'gripper_command', 'parallel_gripper_command', 'flexiv')
NO_GRIPPER, FLOAT64, GRIPPER_COMMAND, PARALLEL_GRIPPER, FLEXIV_GRIPPER = GRIPPER_ADAPTERS

ON_GRIPPER_FAILURE = STOP, CONTINUE = ('stop', 'continue')
STOP_ACTIONS = ZERO, HOLD = ('zero', 'hold')

TWIST_TYPES = ('twist_stamped', 'accel_stamped')
IMAGE_TYPES = ('raw', 'compressed')
RELIABILITIES = ('best_effort', 'reliable')
READY_TYPES = ('none', 'bool', 'flexiv_operational_status')


class ProfileError(ValueError):
    """A robot profile that cannot be used: file, key, and what would be right."""


def _ros_name(value: str) -> str:
    part = '[A-Za-z][A-Za-z0-9_]*'
    if not re.fullmatch(f'(~/|/)?{part}(/{part})*', value):
        raise ValueError(
            f"'{value}' is no ROS name (letters, digits, _, /; no part begins with a digit)"
        )
    return value


Topic = Annotated[str, AfterValidator(_ros_name)]
OptionalTopic = Annotated[str, AfterValidator(lambda value: value and _ros_name(value))]


@validated(ProfileError)
class Camera:
    """A camera of the policy: topic, and whether that has ``raw`` or ``compressed`` images.

    For viewers, where they exist: its registered ``depth`` images, their ``camera_info``, and the
    camera's ``pose`` (PoseStamped, z forward) in the base frame. Without ``pose`` the frame of the
    depth images is searched for among the links of ``robot_description``.
    """

    topic: Topic
    type: Literal[IMAGE_TYPES] = 'raw'
    depth: OptionalTopic = ''
    camera_info: OptionalTopic = ''
    pose: OptionalTopic = ''


@validated(ProfileError)
class ObservationTopics:
    """What the nodes read: topics, an empty one where the arm does not have it.

    ``cameras`` go by the policy's camera names. ``gripper_joints`` are those that proprioception
    ends with, of ``joint_states`` or, where the gripper has joint states of its own, of
    ``gripper_states``; each is multiplied by its number in ``gripper_scales``, where given.
    ``robot_description_file`` replaces the topic; ``robot_description_sha256`` names the only one
    taken from it; empty: the first one counts.
    """

    cameras: dict[str, Camera]
    image_reliability: Literal[RELIABILITIES] = 'best_effort'
    robot_description: OptionalTopic = '/robot_description'
    robot_description_file: str = ''
    robot_description_sha256: str = ''
    joint_states: OptionalTopic = ''
    gripper_states: OptionalTopic = ''
    gripper_joints: tuple[str, ...] = ()
    gripper_scales: tuple[Finite, ...] = ()
    ee_pose: OptionalTopic = ''
    ee_twist: OptionalTopic = ''
    ee_twist_type: Literal[TWIST_TYPES] = 'twist_stamped'
    speed_source: Literal[speed.SOURCES] = speed.JOINT_STATES

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ValueError('cameras: names no camera; at least one is needed')
        if len(self.gripper_scales) not in (0, len(self.gripper_joints)):
            raise ValueError(
                f'gripper_scales: has {len(self.gripper_scales)} numbers for the '
                f'{len(self.gripper_joints)} of gripper_joints'
            )
        if len({camera.type for camera in self.cameras.values()}) > 1:
            raise ValueError('cameras: mixes raw and compressed; all must be of one type')
        if self.speed_source == speed.TWIST and not self.ee_twist:
            raise ValueError("ee_twist: is needed for speed_source 'twist'")
        if self.speed_source == speed.JOINT_STATES and not self.joint_states:
            raise ValueError("joint_states: is needed for speed_source 'joint_states'")


@validated(ProfileError)
class CommandConfig:
    """What the executor sends. ``rate`` in Hz; ``reach_s`` is the horizon of a joint trajectory.

    ``positions_only`` leaves velocities out of a joint trajectory (for a controller that makes
    its own spline). ``gain`` in 1/s pulls towards absolute targets.
    """

    adapter: Literal[ADAPTERS]
    topic: Topic
    frame: str
    rate: Annotated[float, Field(ge=1, le=1000)] = 100.0
    reach_s: Annotated[float, Field(ge=0.001, le=2)] = 0.05
    positions_only: bool = False
    gain: Annotated[float, Field(ge=0, le=100)] = 2.0


@validated(ProfileError)
class GripperConfig:
    """Where gripper commands go and what open and closed are there.

    ``open`` and ``closed`` are in the driver's unit (m, rad, or a share); ``effort`` in N or Nm
    and ``velocity`` in m/s where the driver takes them; ``joint`` for ParallelGripperCommand. A
    goal that is refused or aborted is sent again ``retries`` times, ``retry_s`` apart.
    ``stall_is_success``: the driver aborts a closing goal when an object stops the fingers.
    ``on_failure``: ``stop`` holds the arm until the gripper has reached its goal.
    """

    adapter: Literal[GRIPPER_ADAPTERS] = NO_GRIPPER
    name: OptionalTopic = ''
    open: Finite = 1.0
    closed: Finite = 0.0
    effort: Finite = 0.0
    velocity: Annotated[Finite, Field(ge=0)] = 0.1
    joint: str = ''
    close_below: Annotated[float, Field(ge=0, le=1)] = 0.4
    open_above: Annotated[float, Field(ge=0, le=1)] = 0.6
    continuous: bool = False
    dwell_s: Annotated[float, Field(ge=0, le=5)] = 0.0
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    retry_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    stall_is_success: bool = False
    on_failure: Literal[ON_GRIPPER_FAILURE] = STOP

    def __post_init__(self) -> None:
        if self.adapter != NO_GRIPPER and not self.name:
            raise ValueError(f"name: is missing; adapter '{self.adapter}' needs it")
        if self.close_below > self.open_above:
            raise ValueError(
                f'close_below: is {self.close_below}, above open_above {self.open_above}'
            )


@validated(ProfileError)
class Driver:
    """How the driver says that it can take commands."""

    ready_topic: OptionalTopic = ''
    ready_type: Literal[READY_TYPES] = 'none'

    def __post_init__(self) -> None:
        if self.ready_type != 'none' and not self.ready_topic:
            raise ValueError(f"ready_topic: is missing; ready_type '{self.ready_type}' needs it")


@validated(ProfileError)
class Profile:
    """One arm, checked; every field is a key of the file.

    ``simulated``: no real arm moves, so that random weights may drive it.
    """

    robot: str
    base_frame: str
    joints: tuple[str, ...]
    observation: ObservationTopics
    command: CommandConfig
    limits: SafetyLimits
    description: str = ''
    tool_frame: str = ''
    tool_link: str = ''
    joint_prefix: str = ''
    gripper: GripperConfig = GripperConfig()
    watchdog: WatchdogLimits = WatchdogLimits()
    stop_action: Literal[STOP_ACTIONS] = ZERO
    driver: Driver = Driver()
    joining: Literal[timeline.JOINING_RULES] = timeline.LATEST
    ensemble: Annotated[int, Field(ge=1, le=timeline.ENSEMBLE_MAX)] = 7
    enabled_at_start: bool = True
    simulated: bool = False

    def __post_init__(self) -> None:
        topics, adapter = self.observation, self.command.adapter
        cartesian = adapter in (POSE, MOTION_FORCE)
        if adapter != JOINT_TRAJECTORY and self.command.frame != self.base_frame:
            raise ValueError(
                f"command.frame: is '{self.command.frame}'; commands are sent along the axes of "
                f"base_frame '{self.base_frame}', so it must be that"
            )
        if self.tool_link and not (topics.ee_pose or topics.joint_states):
            raise ValueError('observation.joint_states: is needed to find tool_link')
        if self.tool_link and not (
            topics.ee_pose or topics.robot_description or topics.robot_description_file
        ):
            raise ValueError('observation.robot_description: is needed to find tool_link')
        if topics.speed_source == speed.JOINT_STATES and not self.tool_link:
            raise ValueError("tool_link: is needed for speed_source 'joint_states'")
        if adapter == JOINT_TRAJECTORY:
            if not topics.joint_states:
                raise ValueError('observation.joint_states: is needed to command joints')
            if not self.joints or len(set(self.joints)) < len(self.joints):
                raise ValueError('joints: must name each joint to command, once')
            if self.command.reach_s * self.command.rate < 1.0:
                raise ValueError(
                    f'command.reach_s: is {self.command.reach_s}, below one period of '
                    f'command.rate {self.command.rate:g}'
                )
            missing = [j for j in self.joints if j not in self.limits.joints]
            if missing:
                raise ValueError(f'limits.joints: lacks {", ".join(missing)}')
            for joint in self.joints:
                if math.isinf(self.limits.joints[joint].acceleration):
                    raise ValueError(f'limits.joints.{joint}.acceleration: is needed to brake')
        if cartesian and not self.measures_pose:
            raise ValueError(f"observation.ee_pose: is needed for command.adapter '{adapter}'")
        if cartesian and self.stop_action == ZERO:
            raise ValueError(f"stop_action: must be 'hold' with command.adapter '{adapter}'")
        if adapter == TWIST and self.stop_action == HOLD:
            raise ValueError(f"stop_action: must be 'zero' with command.adapter '{adapter}'")
        if self.limits.workspace and not self.measures_pose:
            raise ValueError('observation.ee_pose: is needed to keep limits.workspace')
        if self.tool_frame and not self.measures_pose:
            raise ValueError('observation.ee_pose: is needed to move along tool_frame')

    @property
    def measures_pose(self) -> bool:
        """Whether the tool pose is known: reported, or from the joints."""
        return bool(self.observation.ee_pose or self.tool_link)


def load(path: str | Path, arguments: Mapping[str, str] | None = None) -> Profile:
    """Read and check a profile; ``arguments`` fill ``{...}``. Raises ``ProfileError``."""
    path = Path(path)
    with boundary(path, ProfileError):
        return parse(read_yaml(path), str(path), arguments)


def parse(tree: object, source: str, arguments: Mapping[str, str] | None = None) -> Profile:
    """Check a profile that was read already; ``source`` is what errors call it."""
    values = {'namespace': '', **(arguments or {})}
    if 'robot_sn' in values:
        values.setdefault('robot_prefix', re.sub('[^A-Za-z0-9_]', '_', values['robot_sn']))
    try:
        tree = _filled(tree, '', values)
    except ValueError as error:
        raise ProfileError(f'{source}: {error}') from None
    if isinstance(tree, dict) and isinstance(tree.get('observation'), dict):
        tree['observation'].setdefault(
            'robot_description', f'{values["namespace"]}/robot_description'
        )
    return validation.parse(Profile, tree, ProfileError, source)


def _filled(tree: Any, path: str, arguments: Mapping[str, str]) -> Any:
    """The tree without empty keys and with every ``{...}`` replaced by its argument."""
    if isinstance(tree, Mapping):
        inner = {
            _filled(key, path, arguments): _filled(value, f'{path}.{key}', arguments)
            for key, value in tree.items()
        }
        return {key: value for key, value in inner.items() if value is not None}
    if isinstance(tree, list | tuple):
        return [_filled(item, f'{path}[{i}]', arguments) for i, item in enumerate(tree)]
    if not isinstance(tree, str):
        return tree

    def argument(match: re.Match[str]) -> str:
        name = match.group(1)
        if not arguments.get(name) and name != 'namespace':
            known = 'robot_sn' if name == 'robot_prefix' else name
            raise ValueError(f"{path.lstrip('.')}: holds {{{name}}}: give the argument '{known}'")
        return arguments[name]

    return re.sub(r'\{(\w*)\}', argument, tree)
