"""Robot profiles: which topics, frames, joints, adapters and limits an arm has, as YAML.

One file describes one arm for both nodes. Every key is checked; an error names the file, the key
and what it may hold. ``{robot_sn}`` and ``{robot_prefix}`` in a text are replaced by the launch
argument and by the same with ``-`` turned into ``_`` (ROS names cannot hold a dash).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specprune_ros.bounded_files import boundary, read_yaml
from specprune_ros.robot import safety, speed, timeline, watchdog
from specprune_ros.robot.geometry import Vector

TWIST, POSE, JOINT_TRAJECTORY, MOTION_FORCE = (
    'twist',
    'pose',
    'joint_trajectory',
    'cartesian_motion_force',
)
ADAPTERS = (TWIST, POSE, JOINT_TRAJECTORY, MOTION_FORCE)

NO_GRIPPER, FLOAT64, GRIPPER_COMMAND, PARALLEL_GRIPPER, FLEXIV_GRIPPER = (
    'none',
    'float64',
    'gripper_command',
    'parallel_gripper_command',
    'flexiv',
)
GRIPPER_ADAPTERS = (NO_GRIPPER, FLOAT64, GRIPPER_COMMAND, PARALLEL_GRIPPER, FLEXIV_GRIPPER)

STOP, CONTINUE = 'stop', 'continue'
ON_GRIPPER_FAILURE = (STOP, CONTINUE)

ZERO, HOLD = 'zero', 'hold'
STOP_ACTIONS = (ZERO, HOLD)

TWIST_TYPES = ('twist_stamped', 'accel_stamped')
IMAGE_TYPES = ('raw', 'compressed')
RELIABILITIES = ('best_effort', 'reliable')
READY_TYPES = ('none', 'bool', 'flexiv_operational_status')


class ProfileError(ValueError):
    """A robot profile that cannot be used: file, key, and what would be right."""


@dataclass(frozen=True)
class Camera:
    """A camera of the policy: topic, and whether that has ``raw`` or ``compressed`` images.

    For viewers, where they exist: its registered ``depth`` images, their ``camera_info``, and the
    camera's ``pose`` (PoseStamped, z forward) in the base frame. Without ``pose`` the frame of the
    depth images is looked for among the links of ``robot_description``.
    """

    topic: str
    type: str = 'raw'
    depth: str = ''
    camera_info: str = ''
    pose: str = ''


@dataclass(frozen=True)
class ObservationTopics:
    """What the nodes read: topics, an empty one where the arm does not have it.

    ``cameras`` go by the policy's camera names. ``gripper_joints`` are those that proprioception
    ends with, of ``joint_states`` or, where the gripper has joint states of its own, of
    ``gripper_states``. ``robot_description_file`` replaces the topic; ``robot_description_sha256``
    names the only one taken from it; empty: the first one counts.
    """

    cameras: dict[str, Camera]
    image_reliability: str = 'best_effort'
    robot_description: str = '/robot_description'
    robot_description_file: str = ''
    robot_description_sha256: str = ''
    joint_states: str = ''
    gripper_states: str = ''
    gripper_joints: tuple[str, ...] = ()
    ee_pose: str = ''
    ee_twist: str = ''
    ee_twist_type: str = 'twist_stamped'
    speed_source: str = speed.JOINT_STATES


@dataclass(frozen=True)
class CommandConfig:
    """What the executor sends. ``rate`` in Hz; ``reach_s`` is the horizon of a joint trajectory.

    ``positions_only`` leaves velocities out of a joint trajectory (for a controller that makes
    its own spline). ``gain`` in 1/s pulls towards absolute targets.
    """

    adapter: str
    topic: str
    frame: str
    rate: float = 100.0
    reach_s: float = 0.05
    positions_only: bool = False
    gain: float = 2.0


@dataclass(frozen=True)
class GripperConfig:
    """Where gripper commands go and what open and closed are there.

    ``open`` and ``closed`` are in the driver's unit (m, rad, or a share); ``effort`` in N or Nm
    and ``velocity`` in m/s where the driver takes them; ``joint`` for ParallelGripperCommand. A
    goal that is refused or aborted is sent again ``retries`` times, ``retry_s`` apart.
    ``stall_is_success``: the driver aborts a closing goal when an object stops the fingers.
    ``on_failure``: ``stop`` holds the arm until the gripper has done what it was asked to.
    """

    adapter: str = NO_GRIPPER
    name: str = ''
    open: float = 1.0
    closed: float = 0.0
    effort: float = 0.0
    velocity: float = 0.1
    joint: str = ''
    close_below: float = 0.4
    open_above: float = 0.6
    continuous: bool = False
    dwell_s: float = 0.0
    retries: int = 3
    retry_s: float = 0.5
    stall_is_success: bool = False
    on_failure: str = STOP


@dataclass(frozen=True)
class Driver:
    """How the driver says that it can take commands."""

    ready_topic: str = ''
    ready_type: str = 'none'


@dataclass(frozen=True)
class Profile:
    """One arm, checked."""

    name: str
    description: str
    base_frame: str
    tool_frame: str
    tool_link: str
    joints: tuple[str, ...]
    joint_prefix: str
    observation: ObservationTopics
    command: CommandConfig
    gripper: GripperConfig
    limits: safety.SafetyLimits
    watchdog: watchdog.WatchdogLimits
    stop_action: str
    driver: Driver
    joining: str = timeline.LATEST
    ensemble: int = 7
    enabled_at_start: bool = True


def load(path: str | Path, arguments: Mapping[str, str] | None = None) -> Profile:
    """Read and check a profile; ``arguments`` fill ``{...}``. Raises ``ProfileError``."""
    path = Path(path)
    with boundary(path, ProfileError):
        return parse(read_yaml(path), str(path), arguments)


def parse(tree: object, source: str, arguments: Mapping[str, str] | None = None) -> Profile:
    """Check a profile that was read already; ``source`` is what errors call it."""
    values = dict(arguments or {})
    if 'robot_sn' in values:
        values.setdefault('robot_prefix', re.sub('[^A-Za-z0-9_]', '_', values['robot_sn']))
    root = _Node(source, '', tree, values)
    profile = Profile(
        name=root.text('robot'),
        description=root.text('description', ''),
        base_frame=root.text('base_frame'),
        tool_frame=root.text('tool_frame', ''),
        tool_link=root.text('tool_link', ''),
        joints=root.texts('joints'),
        joint_prefix=root.text('joint_prefix', ''),
        observation=_observation(root.section('observation')),
        command=_command(root.section('command')),
        gripper=_gripper(root.section('gripper', {})),
        limits=_limits(root.section('limits')),
        watchdog=_watchdog(root.section('watchdog', {})),
        stop_action=root.text('stop_action', ZERO, choices=STOP_ACTIONS),
        driver=_driver(root.section('driver', {})),
        joining=root.text('joining', timeline.LATEST, choices=timeline.JOINING_RULES),
        ensemble=int(root.number('ensemble', 7, low=1, high=timeline.ENSEMBLE_MAX)),
        enabled_at_start=root.boolean('enabled_at_start', True),
    )
    root.finish()
    _cross_check(profile, root)
    return profile


def _observation(node: _Node) -> ObservationTopics:
    cameras_node = node.section('cameras')
    cameras = {}
    for name in cameras_node.names():
        camera = cameras_node.section(name)
        cameras[name] = Camera(
            camera.topic('topic'),
            camera.text('type', 'raw', choices=IMAGE_TYPES),
            *(camera.topic(name, '') for name in ('depth', 'camera_info', 'pose')),
        )
        camera.finish()
    if not cameras:
        raise cameras_node.error('', 'names no camera; at least one is needed')
    if len({camera.type for camera in cameras.values()}) > 1:
        raise cameras_node.error('', 'mixes raw and compressed; all cameras must be of one type')
    out = ObservationTopics(
        cameras=cameras,
        image_reliability=node.text('image_reliability', 'best_effort', choices=RELIABILITIES),
        robot_description=node.topic('robot_description', '/robot_description'),
        robot_description_file=node.text('robot_description_file', ''),
        robot_description_sha256=node.text('robot_description_sha256', ''),
        joint_states=node.topic('joint_states', ''),
        gripper_states=node.topic('gripper_states', ''),
        gripper_joints=node.texts('gripper_joints', ()),
        ee_pose=node.topic('ee_pose', ''),
        ee_twist=node.topic('ee_twist', ''),
        ee_twist_type=node.text('ee_twist_type', 'twist_stamped', choices=TWIST_TYPES),
        speed_source=node.text('speed_source', speed.JOINT_STATES, choices=speed.SOURCES),
    )
    node.finish()
    return out


def _command(node: _Node) -> CommandConfig:
    out = CommandConfig(
        adapter=node.text('adapter', choices=ADAPTERS),
        topic=node.topic('topic'),
        frame=node.text('frame'),
        rate=node.number('rate', 100.0, low=1.0, high=1000.0),
        reach_s=node.number('reach_s', 0.05, low=0.001, high=2.0),
        positions_only=node.boolean('positions_only', False),
        gain=node.number('gain', 2.0, low=0.0, high=100.0),
    )
    node.finish()
    return out


def _gripper(node: _Node) -> GripperConfig:
    adapter = node.text('adapter', NO_GRIPPER, choices=GRIPPER_ADAPTERS)
    out = GripperConfig(
        adapter=adapter,
        name=node.topic('name', '' if adapter == NO_GRIPPER else None),
        open=node.number('open', 1.0),
        closed=node.number('closed', 0.0),
        effort=node.number('effort', 0.0),
        velocity=node.number('velocity', 0.1, low=0.0),
        joint=node.text('joint', ''),
        close_below=node.number('close_below', 0.4, low=0.0, high=1.0),
        open_above=node.number('open_above', 0.6, low=0.0, high=1.0),
        continuous=node.boolean('continuous', False),
        dwell_s=node.number('dwell_s', 0.0, low=0.0, high=5.0),
        retries=round(node.number('retries', 3.0, low=0.0, high=100.0)),
        retry_s=node.number('retry_s', 0.5, low=0.0, exclusive=True, high=60.0),
        stall_is_success=node.boolean('stall_is_success', False),
        on_failure=node.text('on_failure', STOP, choices=ON_GRIPPER_FAILURE),
    )
    if out.close_below > out.open_above:
        raise node.error('close_below', f'is {out.close_below}, above open_above {out.open_above}')
    node.finish()
    return out


def _limits(node: _Node) -> safety.SafetyLimits:
    workspace = None
    box = node.section('workspace', None)
    if box is not None:
        workspace = (box.vector('min'), box.vector('max'))
        box.finish()
        if not all(a < b for a, b in zip(*workspace, strict=True)):
            raise box.error(
                'min', f'{workspace[0]} must be below max {workspace[1]} in every axis'
            )
    joints = {}
    table = node.section('joints', {})
    for name in table.names():
        row = table.section(name)
        lower, upper = row.number('lower', -math.inf), row.number('upper', math.inf)
        if lower >= upper:
            raise row.error('lower', f'{lower:g} must be below upper {upper:g}')
        joints[table.fill(name)] = safety.JointLimit(
            lower,
            upper,
            row.number('velocity', math.inf, low=0.0, exclusive=True),
            row.number('acceleration', math.inf, low=0.0, exclusive=True),
            _optional(row, 'jerk'),
        )
        row.finish()
    positive = {'low': 0.0, 'exclusive': True}
    out = safety.SafetyLimits(
        translation_speed=node.number('translation_speed', **positive),
        rotation_speed=node.number('rotation_speed', **positive),
        translation_acceleration=node.number('translation_acceleration', **positive),
        rotation_acceleration=node.number('rotation_acceleration', **positive),
        translation_jerk=_optional(node, 'translation_jerk'),
        rotation_jerk=_optional(node, 'rotation_jerk'),
        translation_step=node.number('translation_step', math.inf, **positive),
        rotation_step=node.number('rotation_step', math.inf, **positive),
        workspace=workspace,
        reaction_s=node.number('reaction_s', 0.0, low=0.0, high=1.0),
        lead=(
            node.number('lead_translation', math.inf, **positive),
            node.number('lead_rotation', math.inf, **positive),
        ),
        state_speed=(
            node.number('state_translation_speed', 2.0, **positive),
            node.number('state_rotation_speed', 8.0, **positive),
        ),
        joints=joints,
    )
    node.finish()
    return out


def _optional(node: _Node, key: str) -> float | None:
    """A number above 0 that may be left out."""
    value = node.number(key, math.inf, low=0.0, exclusive=True)
    return None if math.isinf(value) else value


def _watchdog(node: _Node) -> watchdog.WatchdogLimits:
    positive = {'low': 0.0, 'exclusive': True, 'high': 3600.0}
    latched = node.texts('latched', ())
    for i, reason in enumerate(latched):
        if reason not in watchdog.REASONS:
            raise node.error(
                f'latched[{i}]', f"'{reason}' is none of {', '.join(watchdog.REASONS)}"
            )
    out = watchdog.WatchdogLimits(
        observation_age=node.number('observation_age', 2.0, **positive),
        chunk_age=node.number('chunk_age', 2.0, **positive),
        state_age=node.number('state_age', 0.25, **positive),
        dry_queue=node.number('dry_queue', 0.1, **positive),
        clock_stall=node.number('clock_stall', 0.5, **positive),
        latched=frozenset(latched),
    )
    node.finish()
    return out


def _driver(node: _Node) -> Driver:
    kind = node.text('ready_type', 'none', choices=READY_TYPES)
    out = Driver(node.topic('ready_topic', '' if kind == 'none' else None), kind)
    node.finish()
    return out


def _cross_check(profile: Profile, root: _Node) -> None:
    """What one key means for another."""
    seen, command = profile.observation, profile.command
    if seen.speed_source == speed.TWIST and not seen.ee_twist:
        raise root.error('observation.ee_twist', "is needed for speed_source 'twist'")
    if seen.speed_source == speed.JOINT_STATES:
        if not seen.joint_states:
            raise root.error(
                'observation.joint_states', "is needed for speed_source 'joint_states'"
            )
        if not profile.tool_link:
            raise root.error('tool_link', "is needed for speed_source 'joint_states'")
    if command.adapter == JOINT_TRAJECTORY:
        if not seen.joint_states:
            raise root.error('observation.joint_states', 'is needed to command joints')
        missing = [j for j in profile.joints if j not in profile.limits.joints]
        if missing:
            raise root.error('limits.joints', f'lacks {", ".join(missing)}')
        for joint in profile.joints:
            if math.isinf(profile.limits.joints[joint].acceleration):
                raise root.error(f'limits.joints.{joint}.acceleration', 'is needed to brake with')
    if command.adapter in (POSE, MOTION_FORCE) and not (seen.ee_pose or profile.tool_link):
        raise root.error(
            'observation.ee_pose', f"is needed for command.adapter '{command.adapter}'"
        )
    if profile.stop_action == ZERO and command.adapter in (POSE, MOTION_FORCE):
        raise root.error('stop_action', f"must be 'hold' with command.adapter '{command.adapter}'")
    if profile.limits.workspace and not (seen.ee_pose or profile.tool_link):
        raise root.error('observation.ee_pose', 'is needed to keep the tool in limits.workspace')


_REQUIRED = object()


class _Node:
    """A mapping of the YAML tree that knows its place and which keys were read."""

    def __init__(
        self, source: str, path: str, value: object, arguments: Mapping[str, str]
    ) -> None:
        self._source, self._path, self._arguments = source, path, arguments
        if not isinstance(value, Mapping):
            raise self.error('', f'is {_kind(value)}; a mapping of keys is needed')
        self._value = value
        self._read: set[str] = set()

    def error(self, key: str, text: str) -> ProfileError:
        """An error that names file and key."""
        where = '.'.join(part for part in (self._path, key) if part) or 'the file'
        return ProfileError(f'{self._source}: {where}: {text}')

    def names(self) -> list[str]:
        """All keys, as text; reading them counts."""
        for key in self._value:
            if not isinstance(key, str):
                raise self.error(str(key), 'keys are texts')
            self._read.add(key)
        return list(self._value)

    def finish(self) -> None:
        """Refuse keys nobody asked for: a typo must not turn into a default."""
        unknown = [str(key) for key in self._value if key not in self._read]
        if unknown:
            raise self.error(
                unknown[0], f'is unknown; known here are {", ".join(sorted(self._read))}'
            )

    def section(self, key: str, default: object = _REQUIRED) -> _Node | None:
        """A mapping below this one."""
        value = self._get(key, default)
        if value is None and default is None:
            return None
        path = '.'.join(part for part in (self._path, key) if part)
        return _Node(self._source, path, value, self._arguments)

    def text(
        self, key: str, default: object = _REQUIRED, choices: tuple[str, ...] | None = None
    ) -> str:
        """A text, one of ``choices`` where given."""
        value = self._get(key, default)
        if not isinstance(value, str):
            what = f'one of {", ".join(choices)}' if choices else 'a text'
            raise self.error(key, f'is {_kind(value)}; {what} is needed')
        value = self.fill(value, key)
        if choices is not None and value not in choices:
            raise self.error(key, f"'{value}' is none of {', '.join(choices)}")
        return value

    def topic(self, key: str, default: object = _REQUIRED) -> str:
        """The name of a topic or action; empty only where the default is."""
        value = self.text(key, _REQUIRED if default is None else default)
        if value == '' and default == '':
            return ''
        if not re.fullmatch(
            r'[~/]?[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*', value
        ) and not (value.startswith('~/') and re.fullmatch(r'~(/[A-Za-z][A-Za-z0-9_]*)+', value)):
            raise self.error(
                key,
                f"'{value}' is no ROS name (letters, digits, _, /; no part begins with a digit)",
            )
        return value

    def texts(self, key: str, default: object = _REQUIRED) -> tuple[str, ...]:
        """A list of texts."""
        value = self._get(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise self.error(key, f'is {_kind(value)}; a list of texts is needed')
        return tuple(self.fill(v, key) for v in value)

    def number(
        self,
        key: str,
        default: object = _REQUIRED,
        low: float = -math.inf,
        high: float = math.inf,
        exclusive: bool = False,
    ) -> float:
        """A number from ``low`` (without it where ``exclusive``) to ``high``."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f'is {_kind(value)}; a number is needed')
        value = float(value)
        infinite = math.isinf(value) and key in self._value
        if (
            math.isnan(value)
            or infinite
            or not low <= value <= high
            or (exclusive and value == low)
        ):
            raise self.error(key, f'is {value:g}; {_range(low, high, exclusive)} is needed')
        return value

    def boolean(self, key: str, default: object = _REQUIRED) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f'is {_kind(value)}; true or false is needed')
        return value

    def vector(self, key: str) -> Vector:
        """Three finite numbers."""
        value = self._get(key, _REQUIRED)
        if (
            not isinstance(value, list)
            or len(value) != 3
            or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value)
            or not all(math.isfinite(v) for v in value)
        ):
            raise self.error(key, f'is {value!r}; a list of three numbers is needed')
        return (float(value[0]), float(value[1]), float(value[2]))

    def fill(self, text: str, key: str = '') -> str:
        """A text with its ``{...}`` replaced by arguments."""

        def argument(match: re.Match[str]) -> str:
            name = match.group(1)
            if not self._arguments.get(name):
                known = 'robot_sn' if name == 'robot_prefix' else name
                raise self.error(key or text, f"holds {{{name}}}: give the argument '{known}'")
            return self._arguments[name]

        return re.sub(r'\{(\w*)\}', argument, text)

    def _get(self, key: str, default: object) -> object:
        self._read.add(key)
        if key in self._value and self._value[key] is not None:
            return self._value[key]
        if default is _REQUIRED:
            raise self.error(key, 'is missing')
        return default


def _kind(value: object) -> str:
    if value is None:
        return 'empty'
    if isinstance(value, Mapping):
        return 'a mapping'
    if isinstance(value, list | tuple):
        return 'a list'
    if isinstance(value, bool):
        return 'true or false'
    return repr(value)


def _range(low: float, high: float, exclusive: bool) -> str:
    if math.isinf(low) and math.isinf(high):
        return 'a finite number'
    above = f'above {low:g}' if exclusive else f'at least {low:g}'
    if math.isinf(high):
        return f'a number {above}'
    if math.isinf(low):
        return f'a number up to {high:g}'
    return f'a number {above} and at most {high:g}'
