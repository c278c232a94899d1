"""Where arm commands go: one class per kind of controller, each with ``send`` and ``stop``.

Every command arrives here limited by the safety filter. ``stop`` is sent once: zero motion for
controllers that follow velocities, the measured place for those that follow places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from specprune_ros.robot.geometry import Pose, Twist
from specprune_ros.robot.safety import Command, JointLimit

BRAKE_S = 0.1  # s, shortest time a joint trajectory takes to come to rest after its last point


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

    def stop(self, stamp: TimeMessage, measured: Pose | None, joints: Mapping[str, float]) -> bool:
        """Send the stop action; false where there is no measured place to hold."""


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

    def stop(self, stamp: TimeMessage, measured: Pose | None, joints: Mapping[str, float]) -> bool:
        """Zero twist."""
        self.send(Command(twist=Twist()), stamp)
        return True


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

    def stop(self, stamp: TimeMessage, measured: Pose | None, joints: Mapping[str, float]) -> bool:
        """The measured pose."""
        if measured is None:
            return False
        self.send(Command(pose=measured), stamp)
        return True


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

    def stop(self, stamp: TimeMessage, measured: Pose | None, joints: Mapping[str, float]) -> bool:
        """The measured pose."""
        if measured is None:
            return False
        self.send(Command(pose=measured), stamp)
        return True


class TrajectoryPort:
    """JointTrajectory: where the joints are ``reach`` seconds on, and a second point at rest.

    Each message replaces the one before it, so the second point is reached only when the stream
    ends: the arm then comes to rest by itself, and controllers that refuse a trajectory ending in
    motion (``allow_nonzero_velocity_at_trajectory_end`` false) take it.
    """

    def __init__(
        self,
        node: LifecycleNode,
        topic: str,
        joints: Sequence[str],
        limits: Mapping[str, JointLimit],
        reach: float,
        period: float,
        positions_only: bool,
    ) -> None:
        self.publisher = node.create_publisher(JointTrajectory, topic, every())
        self._joints, self._limits = list(joints), limits
        self._reach, self._period = reach, period
        self._positions_only = positions_only

    def send(self, command: Command, stamp: TimeMessage) -> None:
        """Send the joints' motion from here on."""
        ahead = self._reach - self._period
        brake = BRAKE_S
        for name, v in zip(command.joints, command.velocities, strict=True):
            brake = max(brake, abs(v) / self._limits[name].acceleration)
        moving, resting = [], []
        for name, q, v in zip(command.joints, command.positions, command.velocities, strict=True):
            limit = self._limits[name]
            moving.append(min(max(q + v * ahead, limit.lower), limit.upper))
            resting.append(min(max(moving[-1] + 0.5 * v * brake, limit.lower), limit.upper))
        self._publish(
            (self._reach, moving, list(command.velocities)),
            (self._reach + brake, resting, [0.0] * len(resting)),
        )

    def stop(self, stamp: TimeMessage, measured: Pose | None, joints: Mapping[str, float]) -> bool:
        """The measured joints, at rest."""
        if any(name not in joints for name in self._joints):
            return False
        here = [joints[name] for name in self._joints]
        self._publish((BRAKE_S, here, [0.0] * len(here)))
        return True

    def _publish(self, *points: tuple[float, list[float], list[float]]) -> None:
        # A zero stamp means "now": controllers drop points that already lie in the past.
        message = JointTrajectory(joint_names=self._joints)
        for seconds, positions, velocities in points:
            whole, rest = divmod(round(seconds * SECOND_NS), SECOND_NS)
            message.points.append(
                JointTrajectoryPoint(
                    positions=positions,
                    velocities=[] if self._positions_only else velocities,
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
            profile.joints,
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
