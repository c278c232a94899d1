"""What the executor knows of the arm: tool pose, joints, and whether the driver is ready."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String

from specprune_ros.nodes.common.qos import latched, newest
from specprune_ros.nodes.common.time import stamp_ns
from specprune_ros.nodes.executor_node.arm_ports import load
from specprune_ros.robot import profile as profiles
from specprune_ros.robot.geometry import Pose, normalised
from specprune_ros.robot.profile import Profile
from specprune_ros.robot.speed import JointSpeed, JointStateError, UrdfError, check_joint_count
from specprune_ros.robot.watchdog import Watchdog

POSE, JOINTS = 'tool pose', 'joint states'

_FLEXIV_DRIVER_READY = 1  # flexiv_msgs/OperationalStatus DRIVER_READY


def needed(profile: Profile) -> tuple[str, ...]:
    """The measured states that must be fresh while this arm moves."""
    states = []
    if profile.observation.ee_pose or profile.tool_link:
        states.append(POSE)
    if profile.command.adapter == profiles.JOINT_TRAJECTORY:
        states.append(JOINTS)
    return tuple(states)


class ArmState:
    """Subscribes on construction; :meth:`close` unsubscribes.

    The tool pose comes from the profile's pose topic, or from joint states and
    ``robot_description`` where the arm has none. What arrives wrong is complained about and does
    not count as arrived, so that the watchdog's age runs on. ``tighten`` takes the joint limits
    of ``robot_description`` where joints are commanded.
    """

    def __init__(
        self,
        node: LifecycleNode,
        profile: Profile,
        watchdog: Watchdog,
        complain: Callable[[str, str], None],
        tighten: Callable[[dict[str, tuple[float, float, float]]], None] = lambda limits: None,
    ) -> None:
        self._node, self._profile, self._watchdog = node, profile, watchdog
        self._complain, self._tighten = complain, tighten
        self.pose: Pose | None = None
        self.joints: dict[str, float] = {}
        self.kinematics: JointSpeed | None = None
        self._subscriptions: list[Any] = []
        self._subscribe()

    def close(self) -> None:
        """Unsubscribe from everything."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def forget(self) -> None:
        """Drop what was measured: after a jump of the clock."""
        self.pose, self.joints = None, {}

    def _subscribe(self) -> None:
        seen, driver = self._profile.observation, self._profile.driver
        commands_joints = self._profile.command.adapter == profiles.JOINT_TRAJECTORY
        if seen.ee_pose:
            self._listen(PoseStamped, seen.ee_pose, self._on_pose, newest())
        if commands_joints or not seen.ee_pose:
            self._listen(JointState, seen.joint_states, self._on_joints, newest())
            self._listen(String, seen.robot_description, self._on_description, latched())
        if driver.ready_type == 'bool':
            self._watchdog.driver(False, f'nothing on {driver.ready_topic} yet')
            self._listen(Bool, driver.ready_topic, self._on_ready, latched())
        elif driver.ready_type == 'flexiv_operational_status':
            self._watchdog.driver(False, f'nothing on {driver.ready_topic} yet')
            kind = load('flexiv_msgs', 'msg', 'OperationalStatus')
            self._listen(kind, driver.ready_topic, self._on_status, newest())

    def _listen(self, kind: type, topic: str, callback: Callable[[Any], None], qos: Any) -> None:
        self._subscriptions.append(self._node.create_subscription(kind, topic, callback, qos))

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
        if not pose.finite():
            self._complain(POSE, f'is not finite or its quaternion is not of unit length: {pose}')
            return
        self.pose = Pose(pose.position, normalised(pose.orientation))
        self._watchdog.measured(POSE, stamp_ns(message))

    def _on_joints(self, message: JointState) -> None:
        stamp = stamp_ns(message)
        try:
            check_joint_count(message.name)
        except JointStateError as error:
            self._complain(JOINTS, str(error))
            return
        if len(message.position) != len(message.name):
            self._complain(
                JOINTS, f'{len(message.position)} positions for {len(message.name)} names'
            )
            return
        at = dict(zip(message.name, message.position, strict=True))
        if self._profile.command.adapter == profiles.JOINT_TRAJECTORY:
            missing = [name for name in self._profile.joints if name not in at]
            if missing:
                self._complain(JOINTS, f'lack {", ".join(missing)}; they name {", ".join(at)}')
                return
            joints = {name: at[name] for name in self._profile.joints}
            wrong = [name for name, value in joints.items() if not math.isfinite(value)]
            if wrong:
                self._complain(JOINTS, f'position of {", ".join(wrong)} is not finite')
                return
            self.joints = joints
            self._watchdog.measured(JOINTS, stamp)
        if self._profile.observation.ee_pose or self.kinematics is None:
            return
        try:
            self.pose = self.kinematics.tool_pose(message.name, message.position)
        except JointStateError as error:
            self._complain(JOINTS, str(error))
            return
        self._watchdog.measured(POSE, stamp)

    def _on_description(self, message: String) -> None:
        profile = self._profile
        try:
            self.kinematics = JointSpeed(
                message.data,
                profile.tool_link,
                base_frame=profile.base_frame,
                prefix=profile.joint_prefix,
            )
            if profile.command.adapter == profiles.JOINT_TRAJECTORY:
                self._tighten(self.kinematics.limits())
        except UrdfError as error:
            self.kinematics = None
            self._complain('robot_description', str(error))
        except ValueError as error:
            self.kinematics = None
            self._complain('robot_description', f'and the profile leave no range: {error}')

    def _on_ready(self, message: Bool) -> None:
        topic = self._profile.driver.ready_topic
        self._watchdog.driver(message.data, '' if message.data else f'{topic} says false')

    def _on_status(self, message: Any) -> None:
        ready = message.driver_state == _FLEXIV_DRIVER_READY and message.operational
        ready = ready and not message.fault
        detail = f'{message.operational_status_name} {message.message}'.strip()
        self._watchdog.driver(ready, '' if ready else detail or 'not operational')
