"""What a dry run shows: where the commands would have brought the arm, on topics of its own."""

from __future__ import annotations

from typing import Any

from builtin_interfaces.msg import Time as TimeMessage
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header

from specprune_ros.nodes.common.qos import newest
from specprune_ros.nodes.executor_node.arm_ports import pose_message
from specprune_ros.robot.geometry import Pose
from specprune_ros.robot.motion import ArmMotion
from specprune_ros.robot.plausibility import pose_distance

TOPIC = '~/dry_run'
SPACING = (0.002, 0.02)  # m, rad between two points of the path
MOST = 1000  # points; beyond them every second one is left out
EVERY = 0.05  # s between two poses


class DryRunView:
    """Publishes ``~/dry_run/pose``, and ``~/dry_run/path`` since the last start at the arm."""

    def __init__(self, node: LifecycleNode, motion: ArmMotion) -> None:
        self._node, self._motion = node, motion
        self._frame = motion.profile.base_frame
        self._pose = node.create_publisher(PoseStamped, f'{TOPIC}/pose', newest(reliable=True))
        self._path = node.create_publisher(Path, f'{TOPIC}/path', newest(reliable=True))
        self._points: list[Pose] = []
        self._shown_ns = 0

    def close(self) -> None:
        """Give the publishers back."""
        for publisher in (self._pose, self._path):
            self._node.destroy_publisher(publisher)

    def show(self, now_ns: int, stamp: TimeMessage) -> None:
        """After a control period at ``now_ns``, ``stamp`` as a message."""
        at = self._motion.virtual_pose
        if at is None:
            self._points.clear()
            return
        if 0 <= now_ns - self._shown_ns < EVERY * 1e9:
            return
        self._shown_ns = now_ns
        header = Header(stamp=stamp, frame_id=self._frame)
        self._pose.publish(PoseStamped(header=header, pose=pose_message(at)))
        if self._points and all(
            near < most
            for near, most in zip(pose_distance(self._points[-1], at), SPACING, strict=True)
        ):
            return
        self._points.append(at)
        if len(self._points) > MOST:
            del self._points[1::2]
        if self._path.get_subscription_count():
            path = Path(header=header)
            path.poses = [PoseStamped(header=header, pose=pose_message(p)) for p in self._points]
            self._path.publish(path)

    def values(self) -> dict[str, Any]:
        """For the diagnostics: how far the arm would be by now."""
        at, measured = self._motion.virtual_pose, self._motion.measured
        if at is None or measured is None:
            return {'dry run: the arm would be': 'where it is'}
        far, turned = pose_distance(measured, at)
        shift = ', '.join(
            f'{axis} {b - a:+.3f}'
            for axis, a, b in zip('xyz', measured.position, at.position, strict=True)
        )
        return {
            'dry run: the arm would be': f'{far:.3f} m and {turned:.3f} rad from where it is '
            f'({shift} m in {self._frame})'
        }
