"""What the node benchmarks share: a policy node in a process, cameras here, recorded results."""

from __future__ import annotations

import argparse
import array
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image, JointState
from specprune_ros.msg import ActionChunk, PruneStats
from std_msgs.msg import String
from topic_listener import TopicListener

from specprune_ros.apps.processes import NodeProcess
from specprune_ros.nodes.common.images import to_message
from specprune_ros.nodes.common.qos import latched, newest
from specprune_ros.nodes.common.remapping import ALLOWED, ros_arguments
from specprune_ros.sim.arm.rizon4 import JOINTS
from specprune_ros.sim.arm.urdf import urdf

PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
TOP = '/specprune_node'


def add_common(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Options every benchmark has."""
    parser.add_argument('--seconds', type=float, default=seconds, help='measured time of each run')
    parser.add_argument('--json', type=Path, help='write the result to this file')


def environment(profile: bool) -> dict[str, str]:
    """This environment with the package's Fast DDS profile or with stock settings."""
    if profile:
        return dict(os.environ)
    return {name: value for name, value in os.environ.items() if name not in PROFILE_VARIABLES}


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 and maximum."""
    if not values:
        return {}
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {'p50': float(p50), 'p90': float(p90), 'p99': float(p99), 'max': max(values)}


class Run:
    """One policy node in its own process, subscribed to from here. Use as a context manager."""

    def __init__(self, parameters: dict, program: Sequence[str] = ()) -> None:
        self._program = program
        self._parameters = {
            'instruction': 'lift the red cube',
            'model.random_weights': ALLOWED,
            **parameters,
        }
        self.chunks: list[tuple[ActionChunk, float]] = []
        self.stats: list[PruneStats] = []
        self.diagnoses: list = []

    def __enter__(self) -> Run:
        log = Path(tempfile.mkdtemp()) / 'node.log'
        self.process = NodeProcess(
            'specprune_node', ros_arguments({}, self._parameters), log, self._program
        )
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        # Sending and receiving in nodes and threads of their own: neither delays the other.
        self.node = rclpy.create_node('cameras', context=self.context)
        self._topics = TopicListener('benchmark')
        self._topics.subscribe(ActionChunk, f'{TOP}/action_chunk', self._on_chunk)
        self._topics.subscribe(PruneStats, f'{TOP}/prune_stats', self.stats.append)
        self._topics.subscribe(
            DiagnosticArray, '/diagnostics', lambda m: self.diagnoses.extend(m.status)
        )
        self._topics.begin()
        end = time.monotonic() + 240
        while 'active:' not in self.process.log.read_text():
            self.process.check()
            if time.monotonic() > end:
                raise TimeoutError(self.process.tail())
            time.sleep(0.1)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stop()
        self._topics.close()
        self.node.destroy_node()
        self.context.try_shutdown()

    def forget(self) -> None:
        """Begin to measure."""
        self.chunks.clear()
        self.stats.clear()
        self.diagnoses.clear()

    def _on_chunk(self, message: ActionChunk) -> None:
        self.chunks.append((message, self._topics.node.get_clock().now().nanoseconds / 1e9))


class Cameras:
    """Two cameras and an arm at rest, published from this process at fixed rates."""

    def __init__(self, run: Run, width: int, height: int, rate: float, state_ticks: int) -> None:
        self._run = run
        self._period = 1.0 / rate / state_ticks
        self._ticks = state_ticks
        rng = np.random.default_rng(0)
        # A few different images, so that the frame comparison has something to see.
        self._images = [
            [
                to_message(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
                for _ in range(4)
            ]
            for _ in range(2)
        ]
        node = run.node
        self._outputs = [
            node.create_publisher(Image, f'{TOP}/image/{name}', newest())
            for name in ('agent', 'wrist')
        ]
        self._joints = node.create_publisher(JointState, f'{TOP}/joint_states', newest())
        self._pose = node.create_publisher(PoseStamped, f'{TOP}/ee_pose', newest())
        description = node.create_publisher(String, f'{TOP}/robot_description', latched())
        description.publish(String(data=urdf()))
        self._description = description
        self._names = [joint.name for joint in JOINTS] + ['finger_joint1', 'finger_joint2']
        self.sent = 0

    def play(self, seconds: float) -> None:
        """Publish for a while, as evenly as sleeping allows."""
        self.sent = 0
        begin = time.monotonic()
        for tick in range(round(seconds / self._period)):
            left = begin + tick * self._period - time.monotonic()
            if left > 0:
                time.sleep(left)
            self._publish(tick)

    def _publish(self, tick: int) -> None:
        stamp = self._run.node.get_clock().now().to_msg()
        joints = JointState(name=self._names)
        joints.position = array.array('d', [0.1] * len(self._names))
        joints.velocity = array.array('d', [0.0] * len(self._names))
        joints.header.stamp = stamp
        self._joints.publish(joints)
        pose = PoseStamped()
        pose.header.stamp = stamp
        pose.pose.orientation.w = 1.0
        self._pose.publish(pose)
        if tick % self._ticks == 0:
            messages = [images[self.sent % 4] for images in self._images]
            stamp = self._run.node.get_clock().now().to_msg()
            for message, output in zip(messages, self._outputs, strict=True):
                message.header.stamp = stamp
                output.publish(message)
            self.sent += 1
