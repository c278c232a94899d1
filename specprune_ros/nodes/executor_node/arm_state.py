"""What the executor knows of the arm: tool pose, joints, and whether the driver is ready."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool

from specprune_ros.nodes.common.bounded_subscription import subscribe
from specprune_ros.nodes.common.description import DescriptionReader, read_file
from specprune_ros.nodes.common.qos import both_durabilities, newest
from specprune_ros.nodes.common.time import stamp_ns
from specprune_ros.nodes.executor_node.arm_ports import load
from specprune_ros.robot.description import digest
from specprune_ros.robot.geometry import Pose
from specprune_ros.robot.motion import POSE, ArmMotion
from specprune_ros.robot.profile import Profile
from specprune_ros.robot.speed import JointSpeed, UrdfError

_FLEXIV_DRIVER_READY = 1  # flexiv_msgs/OperationalStatus DRIVER_READY


def description_of_file(profile: Profile) -> str:
    """The URDF of the file that a profile names, tried out; empty where it names none. Raises
    ``FileError`` or ``UrdfError``.
    """
    return read_file(profile.observation.robot_description_file, _frames(profile))


def _frames(profile: Profile) -> tuple[str, str, str]:
    """Tip, base and joint prefix to read a description by. Without a tool, the joints up to the
    last one: their limits count all the same.
    """
    if profile.tool_link or not profile.joints:
        return profile.tool_link, profile.base_frame, profile.joint_prefix
    return profile.joints[-1], '', profile.joint_prefix


class ArmState:
    """Subscribes on construction and tells the motion; :meth:`close` unsubscribes.

    The tool pose comes from the profile's pose topic, or from joint states and
    ``robot_description`` where the arm has none. What arrives wrong is complained about and does
    not count as arrived, so that the watchdog's age runs on. ``urdf`` is a description that came
    from a file, ``sha256`` the only one that is taken from the topic; ``described`` gets which
    one is in use.
    """

    def __init__(
        self,
        node: LifecycleNode,
        motion: ArmMotion,
        complain: Callable[[str, str], None],
        described: Callable[[str], None],
        urdf: str = '',
        sha256: str = '',
    ) -> None:
        self._node, self._motion, self._complain = node, motion, complain
        self._profile, self._watchdog = motion.profile, motion.watchdog
        self._urdf, self._sha256, self._described = urdf, sha256, described
        self._description: DescriptionReader | None = None
        self._subscriptions: list[Any] = []
        try:
            self._subscribe()
        except BaseException:
            self.close()  # nobody else can: there is no object yet
            raise

    def close(self) -> None:
        """Unsubscribe from everything."""
        if self._description is not None:
            self._description.close()
            self._description = None
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _subscribe(self) -> None:
        seen, driver = self._profile.observation, self._profile.driver
        commands_joints = self._motion.commands_joints
        if seen.ee_pose:
            self._listen(PoseStamped, seen.ee_pose, self._on_pose, newest())
        if seen.joint_states and (commands_joints or not seen.ee_pose):
            self._listen(JointState, seen.joint_states, self._on_joints, newest())
            self._describe()
        if driver.ready_type == 'bool':
            self._watchdog.driver(False, f'nothing on {driver.ready_topic} yet')
            for durable in both_durabilities():
                self._listen(Bool, driver.ready_topic, self._on_ready, durable)
        elif driver.ready_type == 'flexiv_operational_status':
            self._watchdog.driver(False, f'nothing on {driver.ready_topic} yet')
            kind = load('flexiv_msgs', 'msg', 'OperationalStatus')
            self._listen(kind, driver.ready_topic, self._on_status, newest())

    def _describe(self) -> None:
        if self._urdf:
            self._use_description(self._urdf)
            return
        topic = self._profile.observation.robot_description
        if not topic:
            return
        self._description = DescriptionReader(
            self._node,
            topic,
            _frames(self._profile),
            use=self._use_description,
            refused=partial(self._complain, 'robot_description'),
            another=self._on_another_description,
            busy=lambda: 'is not read while the arm moves' if self._motion.moving else '',
            sha256=self._sha256,
        )

    def _listen(self, kind: type, topic: str, callback: Callable[[Any], None], qos: Any) -> None:
        refused = partial(self._complain, topic)
        self._subscriptions.append(subscribe(self._node, kind, topic, callback, qos, refused))

    def _on_pose(self, message: PoseStamped) -> None:
        frame = message.header.frame_id
        if frame and frame != self._profile.base_frame:
            self._complain(
                POSE, f"is in frame '{frame}', but the profile's base_frame is "
                f"'{self._profile.base_frame}'",
            )  # fmt: skip
            return
        at, turn = message.pose.position, message.pose.orientation
        pose = Pose((at.x, at.y, at.z), (turn.x, turn.y, turn.z, turn.w))
        self._motion.measured_pose(pose, stamp_ns(message), self._now_ns())

    def _on_joints(self, message: JointState) -> None:
        self._motion.measured_joints(
            message.name, message.position, stamp_ns(message), self._now_ns()
        )

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def _use_description(self, text: str) -> None:
        tip, base, prefix = _frames(self._profile)
        kinematics = JointSpeed(text, tip, base_frame=base, prefix=prefix)
        try:
            self._motion.described(kinematics, moves_tool=bool(self._profile.tool_link))
        except UrdfError:
            raise
        except ValueError as error:
            raise UrdfError(f'and the profile leave no range: {error}') from error
        self._described(digest(text))

    def _on_another_description(self, reason: str) -> None:
        self._complain('robot_description', reason)
        self._watchdog.description(reason)

    def _on_ready(self, message: Bool) -> None:
        topic = self._profile.driver.ready_topic
        self._watchdog.driver(message.data, '' if message.data else f'{topic} says false')

    def _on_status(self, message: Any) -> None:
        ready = message.driver_state == _FLEXIV_DRIVER_READY and message.operational
        ready = ready and not message.fault
        detail = f'{message.operational_status_name} {message.message}'.strip()
        self._watchdog.driver(ready, '' if ready else detail or 'not operational')
