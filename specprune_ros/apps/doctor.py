"""``specprune doctor``: whether an arm is ready for the nodes, and what to do where it is not.

Listens as the nodes do, for some seconds, and commands nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from geometry_msgs.msg import AccelStamped, PoseStamped, TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from specprune_ros.bounded_files import FileError, read_text
from specprune_ros.nodes.common.bounded_subscription import DESCRIPTION, subscribe
from specprune_ros.nodes.common.compat import dds_profile_variable
from specprune_ros.nodes.common.images import ImageError, compressed_to_rgb, to_rgb
from specprune_ros.nodes.common.qos import latched, newest
from specprune_ros.nodes.common.remapping import find_profile, load_profile, share
from specprune_ros.nodes.common.time import SECOND_NS, stamp_ns
from specprune_ros.nodes.executor_node.arm_ports import MissingMessages
from specprune_ros.nodes.executor_node.arm_ports import load as message_class
from specprune_ros.robot import checkup
from specprune_ros.robot import profile as profiles
from specprune_ros.robot.checkup import FAIL, OK, SKIP, WARN, Received, Row
from specprune_ros.robot.description import MAX_URDF, UrdfError, digest
from specprune_ros.robot.description_trial import try_out
from specprune_ros.robot.geometry import Pose
from specprune_ros.robot.profile import Profile, ProfileError
from specprune_ros.robot.speed import JointSpeed, JointStateError

DISCOVERY = 2.0  # s
LATCHED = ('observation.robot_description', 'driver.ready_topic')
ROOM = 32 << 20  # bytes of shared memory that large images want (config/fastdds.xml)
COMMANDS = {
    'twist': 'geometry_msgs/msg/TwistStamped',
    'pose': 'geometry_msgs/msg/PoseStamped',
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'cartesian_motion_force': 'flexiv_msgs/msg/CartesianMotionForce',
}
# Servers of a gripper's adapter, and the class without which nothing can be sent to them.
GRIPPERS = {
    'gripper_command': (('',), ('control_msgs', 'GripperCommand')),
    'parallel_gripper_command': (('',), ('control_msgs', 'ParallelGripperCommand')),
    'flexiv': (('/move', '/grasp'), ('flexiv_msgs', 'Move')),
}
STYLES = {OK: 'green', WARN: 'yellow', FAIL: 'red', SKIP: 'dim'}
ADVISE = 'source the workspace of the driver that has it'


@dataclass(frozen=True)
class DoctorOptions:
    """What ``specprune doctor`` was requested; see its help."""

    robot: str
    robot_sn: str
    namespace: str
    checkpoint: Path | None
    unnorm_key: str | None
    platform: str | None
    seconds: float
    json: Path | None


class Listener:
    """Hears every topic of a profile, with the nodes' own quality of service."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.node = rclpy.create_node('doctor')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.received: dict[str, Received] = {}
        self.quality: dict[str, QoSProfile] = {}
        self.description, self.ready = '', ''
        self.pose: Pose | None = None
        self.positions: dict[str, float] = {}
        self.missing: list[Row] = []
        self._arrived: dict[str, float] = {}  # when the newest message did, monotonic
        self._images: dict[str, Image | CompressedImage] = {}  # the newest
        observation = profile.observation
        reliable = observation.image_reliability == 'reliable'
        for name, camera in observation.cameras.items():
            kind = CompressedImage if camera.type == 'compressed' else Image
            self._listen(f'observation.cameras.{name}', camera.topic, kind, newest(reliable))
        self._listen('observation.joint_states', observation.joint_states, JointState)
        self._listen('observation.gripper_states', observation.gripper_states, JointState)
        self._listen('observation.ee_pose', observation.ee_pose, PoseStamped)
        twist = AccelStamped if observation.ee_twist_type == 'accel_stamped' else TwistStamped
        self._listen('observation.ee_twist', observation.ee_twist, twist)
        if profile.tool_link and not observation.robot_description_file:
            topic = observation.robot_description
            self._listen('observation.robot_description', topic, String, latched(), DESCRIPTION)
        driver = profile.driver
        if driver.ready_type == 'bool':
            from std_msgs.msg import Bool

            self._listen('driver.ready_topic', driver.ready_topic, Bool, latched())
        elif driver.ready_type == 'flexiv_operational_status':
            kind = self._class('flexiv_msgs', 'msg', 'OperationalStatus')
            if kind is not None:
                self._listen('driver.ready_topic', driver.ready_topic, kind)

    def close(self) -> None:
        """Unsubscribe from everything."""
        self._executor.shutdown()
        self.node.destroy_node()

    def run(self, seconds: float, shown: Callable[[float], None]) -> None:
        """Find publishers, then listen."""
        for length in (DISCOVERY, seconds):
            begin = time.monotonic()
            for received in self.received.values():
                if received.key not in LATCHED:  # those speak once
                    received.count, received.ages, received.stamps = 0, [], []
            while (passed := time.monotonic() - begin) < length:
                self._executor.spin_once(timeout_sec=0.05)
                shown(passed)
        for received in self.received.values():
            received.seconds = seconds
            if received.count:
                received.silent = time.monotonic() - self._arrived[received.key]
            self._look_up(received)
            image = self._images.get(received.key)
            if image is not None:
                try:
                    (to_rgb if isinstance(image, Image) else compressed_to_rgb)(image)
                except ImageError as error:
                    received.unreadable = str(error)

    def _class(self, package: str, kind: str, name: str) -> type | None:
        try:
            return message_class(package, kind, name)
        except MissingMessages as error:
            self.missing.append(Row(f'messages of {package}', FAIL, str(error), ADVISE))
            return None

    def _listen(
        self, key: str, topic: str, kind: type, quality: QoSProfile | None = None, most: int = 0
    ) -> None:
        if not topic:
            return
        package = kind.__module__.split('.')[0]
        received = Received(key, topic, f'{package}/msg/{kind.__name__}')
        self.received[key], self.quality[key] = received, quality or newest()
        callback = partial(self._on_message, received)
        refused = partial(setattr, received, 'note')
        subscribe(self.node, kind, topic, callback, self.quality[key], refused, most)

    def _look_up(self, received: Received) -> None:
        for info in self.node.get_publishers_info_by_topic(received.topic):
            received.publishers.append(
                f'{info.node_namespace}/{info.node_name}'.replace('//', '/')
            )
            received.kinds.append(info.topic_type)
            fits, reason = qos_check_compatible(info.qos_profile, self.quality[received.key])
            if fits == QoSCompatibility.ERROR:
                received.mismatch = reason.strip().rstrip(';')

    def _on_message(self, received: Received, message: Any) -> None:
        received.count += 1
        self._arrived[received.key] = time.monotonic()
        if isinstance(message, (Image, CompressedImage)):
            self._images[received.key] = message
        if hasattr(message, 'header'):
            stamp = stamp_ns(message)
            received.stamps.append(stamp)
            now = self.node.get_clock().now().nanoseconds
            received.ages.append((now - stamp) / SECOND_NS)
            received.frame = message.header.frame_id
        if isinstance(message, JointState):
            received.names |= set(message.name)
            self.positions |= dict(zip(message.name, message.position, strict=False))
        elif isinstance(message, PoseStamped):
            at, turn = message.pose.position, message.pose.orientation
            self.pose = Pose((at.x, at.y, at.z), (turn.x, turn.y, turn.z, turn.w))
        elif isinstance(message, Image):
            received.note = f'{message.width} x {message.height} {message.encoding}'
        elif isinstance(message, String):
            self.description = message.data
        elif received.key == 'driver.ready_topic':
            self.ready = _readiness(message)


def _readiness(message: Any) -> str:
    """Why a driver is not ready; empty: it is."""
    if hasattr(message, 'data'):
        return '' if message.data else 'it says false'
    if message.driver_state == 1 and message.operational and not message.fault:
        return ''
    return f'{message.operational_status_name} {message.message}'.strip() or 'not operational'


def run_doctor(options: DoctorOptions) -> int:
    """Exit status 0 where nothing is red, else 1."""
    console = Console(soft_wrap=True)
    console.width = max(console.width, 140)  # a table in pieces helps nobody
    rows = examine(options, console)
    table = Table(title=f'specprune doctor: {options.robot}', title_justify='left')
    for name in ('', 'check', 'found', 'what to do'):
        table.add_column(name, overflow='fold')
    for row in rows:
        style = STYLES[row.state]
        table.add_row(
            f'[{style}]{row.state}[/]', escape(row.check), escape(row.found), escape(row.cure)
        )
    console.print(table)
    failed = [row for row in rows if row.state == FAIL]
    console.print(
        f'[red]{len(failed)} to mend before this arm may move[/]'
        if failed
        else '[green]nothing stands in the way of a dry run[/]: specprune jog --dry-run'
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        data = {'robot': options.robot, 'ok': not failed, 'rows': [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(data, indent=1), encoding='utf-8')
    return 1 if failed else 0


def examine(options: DoctorOptions, console: Console) -> list[Row]:
    """All checks, in the order in which they should be mended."""
    try:
        profile = load_profile(options.robot, options.robot_sn, options.namespace)
    except ProfileError as error:
        return [Row('profile', FAIL, str(error), 'docs/how-to/robots.md lists every key')]
    rows = [Row('profile', OK, str(find_profile(options.robot))), _dds(), *_gpu()]
    gpu = _gpu_memory()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    listener = Listener(profile)
    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task('listening', total=options.seconds)
            listener.run(options.seconds, lambda passed: progress.update(bar, completed=passed))
        rows += listener.missing + _topics(listener) + _commands(listener)
    except KeyboardInterrupt:
        return [*rows, Row('listening', FAIL, 'interrupted')]
    finally:
        listener.close()
        rclpy.try_shutdown()
    pose = listener.pose
    text, file = listener.description, profile.observation.robot_description_file
    if file:
        try:
            text = read_text(Path(file), MAX_URDF)
        except FileError as error:
            rows.append(Row('observation.robot_description_file', FAIL, str(error), 'correct it'))
    wanted = profile.observation.robot_description_sha256
    if text and wanted and digest(text) != wanted:
        rows.append(
            Row(
                'observation.robot_description_sha256',
                FAIL,
                f'the description has {digest(text)}',
                f'the profile takes {wanted} only: look what has changed, then correct it',
            )
        )
    if text:
        row, found = _kinematics(text, profile, listener.positions)
        rows.append(row)
        pose = pose or found
    rows += checkup.limits(profile, _shipped(profile), pose)
    if options.checkpoint is None:
        rows.append(Row('checkpoint', SKIP, 'none given', '--checkpoint FOLDER'))
    else:
        from specprune_ros.models.checkpoint.limited_inspection import inspect_limited

        overrides = {'platform': options.platform} if options.platform else None
        data = inspect_limited(options.checkpoint, options.unnorm_key, overrides)
        rows += checkup.checkpoint(data, profile, gpu)
    return rows


def _topics(listener: Listener) -> list[Row]:
    profile, received = listener.profile, listener.received
    known = [name for name, _ in listener.node.get_topic_names_and_types()]
    known = [name for name in known if listener.node.count_publishers(name)]
    state = {'slowest': 1.0 / profile.watchdog.state_age, 'oldest': profile.watchdog.state_age}
    image = {'slowest': checkup.IMAGE_RATE, 'oldest': checkup.IMAGE_AGE}
    rows = []
    for key, topic in received.items():
        limits = image if key.startswith('observation.cameras') else state
        rows.append(checkup.judge(topic, **limits, known=known, latched=key in LATCHED))
    cameras = {
        key.rpartition('.')[2]: topic
        for key, topic in received.items()
        if key.startswith('observation.cameras')
    }
    states = [received[k] for k in ('observation.joint_states', 'observation.gripper_states')
              if k in received]  # fmt: skip
    arm, prefix = states[:1], profile.joint_prefix
    extra = [
        checkup.skew(cameras),
        checkup.joints(profile.joints, prefix, arm, 'joints') if arm else None,
        checkup.joints(
            profile.observation.gripper_joints, prefix, states, 'observation.gripper_joints'
        )
        if states
        else None,
    ]
    if 'observation.ee_pose' in received:
        extra.append(checkup.frame(received['observation.ee_pose'], profile.base_frame))
    if 'driver.ready_topic' in received and received['driver.ready_topic'].count:
        ready = listener.ready
        cure = 'clear the fault, then deactivate and activate the controller' if ready else ''
        extra.append(Row('driver', FAIL if ready else OK, ready or 'ready', cure))
    return rows + [row for row in extra if row is not None]


def _commands(listener: Listener) -> list[Row]:
    node, profile = listener.node, listener.profile
    topic, kind = profile.command.topic, COMMANDS[profile.command.adapter]
    rows = []
    package = kind.split('/')[0]
    if listener._class(package, 'msg', kind.split('/')[-1]) is None:
        rows.append(listener.missing[-1])

    def names(infos: list[Any]) -> dict[str, str]:
        return {
            f'{i.node_namespace}/{i.node_name}'.replace('//', '/'): i.topic_type for i in infos
        }

    rows += checkup.command(
        topic,
        kind,
        names(node.get_subscriptions_info_by_topic(topic)),
        list(names(node.get_publishers_info_by_topic(topic))),
    )
    return rows + _gripper(listener)


def _gripper(listener: Listener) -> list[Row]:
    gripper = listener.profile.gripper
    name = f'gripper: {gripper.name}'
    if gripper.adapter == profiles.NO_GRIPPER:
        return [Row('gripper', SKIP, 'none in the profile')]
    if gripper.adapter == profiles.FLOAT64:
        found = listener.node.count_subscribers(gripper.name)
        return [
            Row(name, OK, 'its driver listens')
            if found
            else Row(name, FAIL, 'nobody listens', 'start its driver, or correct gripper.name')
        ]
    servers, (package, kind) = GRIPPERS[gripper.adapter]
    out = []
    if listener._class(package, 'action', kind) is None:
        out.append(listener.missing[-1])
    services = {service for service, _ in listener.node.get_service_names_and_types()}
    lost = [
        f'{gripper.name}{server}'
        for server in servers
        if f'{gripper.name}{server}/_action/send_goal' not in services
    ]
    if lost:
        out.append(
            Row(
                name,
                FAIL,
                f'no action server {", ".join(lost)}',
                "start the gripper's driver (load_gripper:=true, ...), or correct gripper.name",
            )
        )
    else:
        out.append(Row(name, OK, f'{gripper.adapter}: its server is there'))
    return out


def _kinematics(
    text: str, profile: Profile, positions: dict[str, float]
) -> tuple[Row, Pose | None]:
    """The robot description by the profile's links, and the tool's pose where joints are known."""
    name = 'robot_description'
    try:
        try_out(text, profile.tool_link, profile.base_frame, profile.joint_prefix)
        arm = JointSpeed(
            text, profile.tool_link, base_frame=profile.base_frame, prefix=profile.joint_prefix
        )
    except UrdfError as error:
        return Row(name, FAIL, str(error), 'correct tool_link, base_frame or joint_prefix'), None
    lacking = arm.lacks(profile.joints)
    if lacking and profile.command.adapter == profiles.JOINT_TRAJECTORY:
        has = f'no movable joint {", ".join(lacking)}; it has {", ".join(arm.joint_names)}'
        return Row(name, FAIL, has, 'correct joints or joint_prefix of the profile'), None
    limited = sum(1 for lower, upper, _ in arm.limits().values() if upper > lower)
    found = f'{len(arm.joint_names)} joints move {profile.tool_link}, {limited} with limits'
    pose = None
    bare = {n.removeprefix(profile.joint_prefix): v for n, v in positions.items()} | positions
    try:
        at = [
            bare[n] if n in bare else bare[n.removeprefix(profile.joint_prefix)]
            for n in arm.joint_names
        ]
        pose = arm.tool_pose(arm.joint_names, at)
    except (KeyError, JointStateError):
        pass  # said of the joint states already
    return Row(name, OK, found), pose


def _shipped(profile: Profile) -> bool:
    """Whether the workspace is the one that a profile of the package has."""
    boxes = []
    for file in (share() / 'config' / 'robots').glob('*.yaml'):
        try:
            boxes.append(profiles.load(file, {'robot_sn': 'x'}).limits.workspace)
        except ProfileError:
            continue
    return profile.limits.workspace in boxes


def _dds() -> Row:
    kind = os.environ.get('RMW_IMPLEMENTATION', '') or 'the default RMW'
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    variable = dds_profile_variable(os.environ.get('ROS_DISTRO', ''))
    given = os.environ.get(variable, '')
    found = f'{kind}, domain {domain}, profile {given or "none"}'
    if kind not in ('rmw_fastrtps_cpp', 'the default RMW'):
        return Row('DDS', OK, found)
    if not given:
        return Row(
            'DDS',
            WARN,
            found,
            f'large images get lost without config/fastdds.xml: set {variable} to it, for the '
            'camera drivers too',
        )
    if not Path(given).is_file():
        return Row('DDS', FAIL, f'{found}: no such file', 'correct the environment variable')
    try:
        disk = os.statvfs('/dev/shm')
        free = disk.f_bavail * disk.f_frsize
    except OSError:
        return Row('DDS', OK, found)
    if free < ROOM:
        return Row(
            'DDS', WARN, f'{found}, {free >> 20} MB of /dev/shm free', 'give containers --shm-size'
        )
    return Row('DDS', OK, found)


def _gpu() -> list[Row]:
    try:
        import torch
    except ImportError:
        return [Row('GPU', WARN, 'PyTorch is not installed', 'only model.server can be used here')]
    if torch.cuda.is_available():
        return [Row('GPU', OK, f'{torch.cuda.get_device_name()}, {_gpu_memory() / 1e9:.0f} GB')]
    cure = 'a released 7B policy takes seconds a query without one; model.server: another machine'
    return [Row('GPU', WARN, 'none', cure)]


def _gpu_memory() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0
