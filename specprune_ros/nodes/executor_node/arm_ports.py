"""Where arm commands go: one class per kind of controller.

Every command arrives here limited by the safety filter, those of a stop included. The last one of
a stop is one of rest: zero motion for controllers that follow velocities, the place reached for
those that follow places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol

from builtin_interfaces.msg import Duration
from builtin_interfaces.msg import Time as TimeMessage
from geometry_msgs.msg import Pose as PoseMessage
from geometry_msgs.msg import PoseStamped, TwistStamped
from geometry_msgs.msg import Twist as TwistMessage
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from specprune_ros.nodes.common.qos import every
from specprune_ros.nodes.common.time import SECOND_NS
from specprune_ros.robot import profile as profiles
from specprune_ros.robot import trajectory
from specprune_ros.robot.geometry import Pose, Twist
from specprune_ros.robot.safety import Command, JointLimit


class MissingMessages(RuntimeError):
    """A package of messages that an adapter needs is not installed."""


def load(package: str, kind: str, name: str) -> Any:
    """Class ``name`` of ``package.kind``, or an error that says what to install.

    Drivers' message packages are no dependency of this package: most arms need none of them.
    """
    try:
        return getattr(import_module(f'{package}.{kind}'), name)
    except (ImportError, AttributeError) as error:
        raise MissingMessages(
            f"the robot profile needs {package}/{kind}/{name}, but '{package}' is not installed "
            f'or not sourced: {error}'
        ) from error


class ArmPort(Protocol):
    """What the executor sends its commands to."""

    publisher: Any

    def send(self, command: Command, stamp: TimeMessage) -> None:
        """Send one control period's command."""


def twist_message(twist: Twist) -> TwistMessage:
    """A twist as a message."""
    out = TwistMessage()
    out.linear.x, out.linear.y, out.linear.z = twist.linear
    out.angular.x, out.angular.y, out.angular.z = twist.angular
    return out


def pose_message(pose: Pose) -> PoseMessage:
    """A pose as a message."""
    out = PoseMessage()
    out.position.x, out.position.y, out.position.z = pose.position
    turn = out.orientation
    turn.x, turn.y, turn.z, turn.w = pose.orientation
    return out


class TwistPort:
    """TwistStamped: MoveIt Servo, velocity controllers, the simulated arm."""

    def __init__(self, node: LifecycleNode, topic: str, frame: str) -> None:
        self.publisher = node.create_publisher(TwistStamped, topic, every())
        self._frame = frame

    def send(self, command: Command, stamp: TimeMessage) -> None:
        """Send one control period's twist."""
        self.publisher.publish(
            TwistStamped(
                header=Header(stamp=stamp, frame_id=self._frame),
                twist=twist_message(command.twist),
            )
        )


class PosePort:
    """PoseStamped: controllers that follow a target pose and hold it."""

    def __init__(self, node: LifecycleNode, topic: str, frame: str) -> None:
        self.publisher = node.create_publisher(PoseStamped, topic, every())
        self._frame = frame

    def send(self, command: Command, stamp: TimeMessage) -> None:
        """Send the pose the commanded motion has reached."""
        self.publisher.publish(
            PoseStamped(
                header=Header(stamp=stamp, frame_id=self._frame), pose=pose_message(command.pose)
            )
        )


class MotionForcePort:
    """Flexiv's CartesianMotionForce: a pose in the world frame, wrench and velocity zero.

    Its controller never times out (it holds the last command for ever).
    """

    def __init__(self, node: LifecycleNode, topic: str, frame: str) -> None:
        self._type = load('flexiv_msgs', 'msg', 'CartesianMotionForce')
        self.publisher = node.create_publisher(self._type, topic, every())
        self._frame = frame

    def send(self, command: Command, stamp: TimeMessage) -> None:
        """Send the pose the commanded motion has reached."""
        message = self._type()
        message.header = Header(stamp=stamp, frame_id=self._frame)
        message.pose = pose_message(command.pose)
        self.publisher.publish(message)


class TrajectoryPort:
    """JointTrajectory: see :mod:`specprune_ros.robot.trajectory`."""

    def __init__(
        self,
        node: LifecycleNode,
        topic: str,
        limits: Mapping[str, JointLimit],
        reach: float,
        period: float,
        positions_only: bool,
    ) -> None:
        self.publisher = node.create_publisher(JointTrajectory, topic, every())
        self._limits, self._reach, self._period = limits, reach, period
        self._positions_only = positions_only

    def send(self, command: Command, stamp: TimeMessage) -> None:
        """Send the joints' motion from here on, brought to rest."""
        self.send_points(
            command.joints, trajectory.points(command, self._limits, self._reach, self._period)
        )

    def coast(self, command: Command, silent: float) -> None:
        """Keep to what the controller does with the last command, ``silent`` seconds after it."""
        last = trajectory.points(command, self._limits, self._reach, self._period)[-1]
        left = max(last.seconds - silent, self._period)
        self.send_points(command.joints, (replace(last, seconds=left),))

    def send_points(self, joints: Sequence[str], points: Sequence[trajectory.Point]) -> None:
        """Send points as they are."""
        # A zero stamp means "now": controllers drop points that already lie in the past.
        message = JointTrajectory(joint_names=joints)
        for point in points:
            whole, rest = divmod(round(point.seconds * SECOND_NS), SECOND_NS)
            message.points.append(
                JointTrajectoryPoint(
                    positions=point.positions,
                    velocities=[] if self._positions_only else point.velocities,
                    time_from_start=Duration(sec=whole, nanosec=rest),
                )
            )
        self.publisher.publish(message)


def make_port(
    node: LifecycleNode, profile: profiles.Profile, limits: Mapping[str, JointLimit], topic: str
) -> ArmPort:
    """The adapter the profile names, publishing on ``topic``. Raises ``MissingMessages``."""
    command = profile.command
    if command.adapter == profiles.JOINT_TRAJECTORY:
        return TrajectoryPort(
            node,
            topic,
            limits,
            command.reach_s,
            1.0 / command.rate,
            command.positions_only,
        )
    kind = {
        profiles.TWIST: TwistPort,
        profiles.POSE: PosePort,
        profiles.MOTION_FORCE: MotionForcePort,
    }[command.adapter]
    return kind(node, topic, command.frame)
