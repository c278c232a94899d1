"""The drivers of an arm that is not there, over real DDS: what a profile names, in a thread.

It publishes cameras, joint states, gripper and tool pose, and follows what is sent to its command
topic, unless it is commanded to stand still.
"""

from __future__ import annotations

import threading

import numpy as np

from specprune_ros.robot import geometry
from specprune_ros.robot.geometry import Pose
from specprune_ros.sim.arm import rizon4
from specprune_ros.sim.arm.urdf import urdf

START = Pose((0.5, -0.1, 0.3), (1.0, 0.0, 0.0, 0.0))


def description(profile):
    """The simulated arm's description with the names of a profile of seven joints."""
    text = urdf().replace('"base_link"', f'"{profile.base_frame}"')
    text = text.replace('"tcp"', f'"{profile.tool_link}"')
    for joint, name in zip(rizon4.JOINTS, profile.joints, strict=True):
        text = text.replace(f'"{joint.name}"', f'"{name}"')
    return text


class FakeArm:
    """Use as a context manager."""

    def __init__(self, domain, profile, follows=True, rate=50.0, cameras=True):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.profile, self.follows = profile, follows
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node('driver', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.pose, self.opening = START, 1.0
        self.commands, self.heights, self.grips = 0, [], []
        self.images = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
        self._make(cameras, rate)
        self.thread = threading.Thread(target=self.executor.spin, daemon=True)

    def _make(self, cameras, rate):
        from geometry_msgs.msg import PoseStamped, TwistStamped
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import Float64, String

        from specprune_ros.nodes.common.qos import every, latched

        profile, node = self.profile, self.node
        observation = profile.observation
        self.cameras = {
            name: node.create_publisher(Image, camera.topic, every())
            for name, camera in observation.cameras.items()
        }
        self.joints = node.create_publisher(JointState, observation.joint_states, every())
        self.grip_states = self.joints
        if observation.gripper_states:
            topic = observation.gripper_states
            self.grip_states = node.create_publisher(JointState, topic, every())
        self.poses = node.create_publisher(PoseStamped, observation.ee_pose, every())
        self.descriptions = node.create_publisher(String, observation.robot_description, latched())
        self.descriptions.publish(String(data=description(profile)))
        adapter, topic = profile.command.adapter, profile.command.topic
        kind = {'twist': TwistStamped, 'pose': PoseStamped}.get(adapter)
        if adapter == 'cartesian_motion_force':
            from flexiv_msgs.msg import CartesianMotionForce as kind
        if kind is not None:
            node.create_subscription(kind, topic, self._on_command, every())
        if profile.gripper.adapter == 'float64':
            node.create_subscription(Float64, profile.gripper.name, self._on_gripper, every())
        node.create_timer(1.0 / rate, self._state)
        if cameras:
            node.create_timer(0.1, self._look)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.executor.shutdown(1.0)
        self.thread.join(5.0)
        self.node.destroy_node()
        self.context.try_shutdown()

    def _stamp(self, message, frame=''):
        message.header.stamp = self.node.get_clock().now().to_msg()
        message.header.frame_id = frame
        return message

    def _look(self):
        from specprune_ros.nodes.common.images import to_message

        stamp = self.node.get_clock().now().to_msg()
        for pixels, publisher in zip(self.images, self.cameras.values(), strict=False):
            pixels[:8, :8] += 1  # no frozen image
            message = to_message(pixels)
            message.header.stamp = stamp
            publisher.publish(message)

    def _state(self):
        from geometry_msgs.msg import PoseStamped
        from sensor_msgs.msg import JointState

        profile = self.profile
        rest = [float(q) for q in rizon4.HOME]
        joints = JointState(name=list(profile.joints), position=rest, velocity=[0.0] * 7)
        names = list(dict.fromkeys(profile.observation.gripper_joints))
        fingers = JointState(name=names, position=[0.04 * self.opening] * len(names))
        self.joints.publish(self._stamp(joints))
        if names:
            self.grip_states.publish(self._stamp(fingers))
        message = PoseStamped()
        at, turn = message.pose.position, message.pose.orientation
        at.x, at.y, at.z = self.pose.position
        turn.x, turn.y, turn.z, turn.w = self.pose.orientation
        self.poses.publish(self._stamp(message, profile.base_frame))

    def _on_command(self, message):
        self.commands += 1
        if not self.follows:
            return
        if hasattr(message, 'twist'):
            v, w = message.twist.linear, message.twist.angular
            twist = geometry.Twist((v.x, v.y, v.z), (w.x, w.y, w.z))
            self.pose = geometry.integrate(self.pose, twist, 1.0 / self.profile.command.rate)
        else:
            at, turn = message.pose.position, message.pose.orientation
            self.pose = Pose((at.x, at.y, at.z), (turn.x, turn.y, turn.z, turn.w))
        self.heights.append(self.pose.position[2])

    def _on_gripper(self, message):
        self.grips.append(message.data)
        self.opening = message.data
