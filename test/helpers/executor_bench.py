"""An arm, a policy and an executor in one process, over real DDS."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from ros_processes import new_domain

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000_000
START = (0.5, -0.1, 0.3)
REST = 0.15  # s from 0.1 m/s to rest: speed / acceleration, the window of jerk, and this machine


@pytest.fixture(scope='module')
def ros():
    """rclpy in a domain of its own."""
    import rclpy

    before = os.environ.get('ROS_DOMAIN_ID')
    os.environ['ROS_DOMAIN_ID'] = str(new_domain())
    yield rclpy
    rclpy.try_shutdown()
    if before is None:
        os.environ.pop('ROS_DOMAIN_ID')
    else:
        os.environ['ROS_DOMAIN_ID'] = before


def write_profile(folder, **changes):
    """The simulated arm's profile with other values; double underscores go deeper."""
    tree = yaml.safe_load((ROOT / 'config' / 'robots' / 'sim_arm.yaml').read_text())
    for path, value in changes.items():
        node, *rest = tree, *path.split('__')
        for key in rest[:-1]:
            node = node.setdefault(key, {})
        if value is ...:
            node.pop(rest[-1])
        else:
            node[rest[-1]] = value
    file = folder / 'robot.yaml'
    file.write_text(json.dumps(tree))  # YAML without aliases, which are not read
    return file


class Bench:
    """An arm, a policy and an executor in one process, each message through DDS all the same."""

    def __init__(self, rclpy, profile, namespace='', **parameters):
        from geometry_msgs.msg import PoseStamped, TwistStamped
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import JointState
        from specprune_ros.msg import ActionChunk
        from std_msgs.msg import Float64, String

        from specprune_ros.nodes.common.qos import every, latched
        from specprune_ros.nodes.executor_node.node import ChunkExecutor

        # In this process it would outrank the tests themselves.
        arguments = ['--ros-args', '-p', f'profile:={profile}', '-p', 'realtime_priority:=0']
        # In this process nothing can be killed; test_supervisor does that to a real one.
        parameters = {'supervisor_limit': 0.0, **parameters}
        for name, value in parameters.items():
            arguments += ['-p', f'{name}:={value}']
        if namespace:
            arguments += ['-r', f'__ns:={namespace}']
        self.name = f'{namespace}/chunk_executor'
        self._rclpy = rclpy
        rclpy.init(args=arguments)
        self.node = rclpy.create_node('bench')
        self.dut = ChunkExecutor()
        self.executor = SingleThreadedExecutor()
        for node in (self.node, self.dut):
            self.executor.add_node(node)
        self.commands, self.gripper, self.other = [], [], []
        self._pose = self.node.create_publisher(PoseStamped, f'{namespace}/sim_arm/tcp_pose', 1)
        self._joints = self.node.create_publisher(
            JointState, f'{namespace}/sim_arm/joint_states', 1
        )
        self._urdf = self.node.create_publisher(
            String, f'{namespace}/sim_arm/robot_description', latched()
        )
        self._chunk = self.node.create_publisher(ActionChunk, f'{self.name}/action_chunk', 10)
        self.listen(TwistStamped, f'{namespace}/sim_arm/cmd_twist', self.commands)
        self.listen(Float64, f'{namespace}/sim_arm/gripper', self.gripper)
        self.every = every
        self.position = list(START)
        self.frame = 'base_link'
        self.alive = {'pose', 'chunks'}
        self.sequence = self.episode = 1
        self.row = [0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
        self.observed_ago = 0.03
        self._poses_at = self._chunks_at = 0.0
        self.closing = []  # what else is to be undone
        self._stalls = []  # (when, s) this process got no core, or did something else
        self.dut.autostart()

    def listen(self, kind, topic, into):
        self.node.create_subscription(
            kind, topic, lambda message: into.append((time.monotonic(), message)), 100
        )

    def describe(self, text):
        from std_msgs.msg import String

        self._urdf.publish(String(data=text))

    def now_ns(self):
        return self.node.get_clock().now().nanoseconds

    def publish_pose(self):
        from geometry_msgs.msg import PoseStamped

        message = PoseStamped()
        message.header.stamp = self.node.get_clock().now().to_msg()
        message.header.frame_id = self.frame
        at = message.pose.position
        at.x, at.y, at.z = self.position
        message.pose.orientation.x, message.pose.orientation.w = 1.0, 0.0
        self._pose.publish(message)

    def publish_joints(self, names, positions):
        from sensor_msgs.msg import JointState

        message = JointState(name=list(names), position=[float(p) for p in positions])
        message.header.stamp = self.node.get_clock().now().to_msg()
        self._joints.publish(message)

    def publish_chunk(self, rows=None, **fields):
        from builtin_interfaces.msg import Duration
        from rclpy.time import Time
        from specprune_ros.msg import ActionChunk

        rows = np.tile(self.row, (8, 1)) if rows is None else np.asarray(rows, float)
        message = ActionChunk(
            sequence=self.sequence,
            episode=self.episode,
            step_dt=Duration(sec=0, nanosec=100_000_000),
            horizon=len(rows),
            dims=['x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper'],
            kind=ActionChunk.KIND_EE_DELTA,
            rotation=ActionChunk.ROTATION_VECTOR,
            reference=ActionChunk.REFERENCE_PREVIOUS_STEP,
            data=rows.ravel().tolist(),
            gripper_dim=6,
        )
        stamp = self.now_ns() - round(self.observed_ago * SECOND)
        message.header.stamp = Time(nanoseconds=max(stamp, 0)).to_msg()
        message.header.frame_id = 'base_link'
        for name, value in fields.items():
            setattr(message, name, value)
        self.sequence += 1
        self._chunk.publish(message)

    def run(self, seconds, until=None):
        """Spin, feeding what is alive; returns whether ``until`` came true."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if 'pose' in self.alive and now - self._poses_at > 0.01:
                self._poses_at = now
                self.publish_pose()
            if 'chunks' in self.alive and now - self._chunks_at > 0.2:
                self._chunks_at = now
                self.publish_chunk()
            self.executor.spin_once(timeout_sec=0.002)
            if (took := time.monotonic() - now) > 0.02:
                self._stalls.append((now, took))
            if until is not None and until():
                return True
        return False

    def held_up(self, since):
        """Seconds that nothing in this process ran since a time: no fault of the executor."""
        return sum(took for at, took in self._stalls if at + took > since)

    def silent_for(self):
        """Seconds since the last command."""
        return time.monotonic() - self.commands[-1][0] if self.commands else math.inf

    def rested(self, stops=0, silent=0.1):
        """Wait for another stop than the first ``stops``, its end, and silence after it."""
        ended = self.run(20.0, until=lambda: self.stops() > stops and not self.dut._motion.moving)
        self.run(0.05)  # what was sent arrives
        return ended and self.run(20.0, until=lambda: self.silent_for() > silent)

    def moving(self):
        assert self.run(20.0, until=lambda: len(self.commands) > 30), self.health()

    def speeds(self, since=0.0):
        return [m.twist.linear.x for t, m in self.commands if t >= since]

    def call(self, kind, name, **fields):
        client = self.node.create_client(kind, f'{self.name}/{name}')
        assert client.wait_for_service(20.0)
        future = client.call_async(kind.Request(**fields))
        assert self.run(20.0, until=future.done), f'{name} did not answer'
        return future.result()

    def enable(self, value):
        from std_srvs.srv import SetBool

        return self.call(SetBool, 'enable', data=value)

    def health(self):
        return self.dut._health(self.dut._verdict)[1]

    def stops(self):
        return self.dut._counts['stops']

    def close(self):
        for undo in self.closing:
            undo()
        self.dut.stop()
        self.dut.teardown()
        self.executor.shutdown()
        self.dut.destroy_node()
        self.node.destroy_node()
        self._rclpy.try_shutdown()


@pytest.fixture
def bench(ros, tmp_path):
    made = []

    def make(parameters=None, **changes):
        made.append(Bench(ros, write_profile(tmp_path, **changes), **(parameters or {})))
        return made[-1]

    yield make
    for each in made:
        each.close()
