"""A real policy node in a process of its own, and a node here that is its cameras and its user."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np

_held: deque[socket.socket] = deque(maxlen=12)


def new_domain() -> int:
    """A DDS domain (1 to 101) that no other test run on this machine holds.

    Each is held by an abstract socket of its name, which ends with the process whatever ends it,
    for this and the next 11 draws: what a test left behind is gone by then.
    """
    for number in random.SystemRandom().sample(range(1, 102), 101):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f'\0specprune_test_domain_{number}')
        except OSError:
            holder.close()
            continue
        if len(_held) == _held.maxlen:
            _held.popleft().close()
        _held.append(holder)
        return number
    raise RuntimeError('every ROS domain from 1 to 101 is held by a test run on this machine')


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f'/proc/{pid}/status').read_text()
    mask = next(line for line in status.splitlines() if line.startswith('SigCgt'))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def strict_messages() -> dict[str, str]:
    """Environment in which every field of a message is checked, as strictly as on Lyrical."""
    folders = [str(Path(__file__).parent / 'strict_messages'), os.environ.get('PYTHONPATH', '')]
    return {'ROS_PYTHON_CHECK_FIELDS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, folders))}


class Process:
    """A node's process with its output in a file."""

    def __init__(self, module: str, arguments: list[str], domain: int, log: Path, program=()):
        self.log = log
        self._file = log.open('wb')
        program = program or ('-m', 'specprune_ros.nodes.start', module)
        self._popen = subprocess.Popen(
            [sys.executable, *map(str, program), *arguments],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **strict_messages(), 'ROS_DOMAIN_ID': str(domain)},
        )

    def alive(self) -> bool:
        return self._popen.poll() is None

    def catches(self, number: int) -> bool:
        """Whether the process has a handler of its own for a signal."""
        return catches(self._popen.pid, number)

    def text(self) -> str:
        return self.log.read_text(errors='replace')

    def stop(self, number=signal.SIGINT, patience=10.0) -> int:
        if self.alive():
            self._popen.send_signal(number)
            try:
                self._popen.wait(patience)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        self._file.close()
        return self._popen.returncode


class Rig:
    """Cameras, joints, pose and user of one policy node, over real DDS."""

    name = 'specprune_node'

    def __init__(self, domain: int, cameras=('agent', 'wrist')):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import PoseStamped
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import Image, JointState
        from specprune_ros.msg import ActionChunk, PruneStats
        from std_msgs.msg import String

        from specprune_ros.nodes.common.qos import every, latched

        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node('rig', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.chunks, self.stats, self.diagnoses = [], [], []
        top = f'/{self.name}'
        subscribe = self.node.create_subscription
        subscribe(ActionChunk, f'{top}/action_chunk', self.chunks.append, every())
        subscribe(PruneStats, f'{top}/prune_stats', self.stats.append, every())
        subscribe(DiagnosticArray, '/diagnostics', self.diagnoses.append, every())
        publish = self.node.create_publisher
        self.images = {c: publish(Image, f'{top}/image/{c}', every()) for c in cameras}
        self.joints = publish(JointState, f'{top}/joint_states', every())
        self.pose = publish(PoseStamped, f'{top}/ee_pose', every())
        self.instruction = publish(String, f'{top}/instruction', latched())
        self.description = publish(String, f'{top}/robot_description', latched())
        self.frame = ''  # that the tool's pose names
        self.pixels = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), dtype=np.uint8)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def now(self) -> int:
        return self.node.get_clock().now().nanoseconds

    def stamp(self, nanoseconds=None):
        from rclpy.time import Time

        return Time(nanoseconds=self.now() if nanoseconds is None else nanoseconds).to_msg()

    def say(self, text: str):
        from std_msgs.msg import String

        self.instruction.publish(String(data=text))

    def show(self, cameras=None, stamp=None, change=None):
        """One image per camera; ``change`` edits a message before it is sent."""
        from specprune_ros.nodes.common.images import to_message

        stamp = stamp or self.stamp()
        for index, camera in enumerate(cameras or self.images):
            message = to_message(self.pixels[index])
            message.header.stamp = stamp
            if change:
                change(message)
            self.images[camera].publish(message)

    def move(self, stamp=None, names=None, positions=None, pose=True):
        """Joint states and tool pose, as an arm at rest has them."""
        import array

        from sensor_msgs.msg import JointState

        stamp = stamp or self.stamp()
        names = names or [*(f'joint{i}' for i in range(1, 8)), 'finger_joint1', 'finger_joint2']
        positions = [0.1] * len(names) if positions is None else positions
        joints = JointState(name=names)
        joints.position = array.array('d', positions)
        joints.velocity = array.array('d', [0.0] * len(names))
        joints.header.stamp = stamp
        self.joints.publish(joints)
        if pose:
            self.pose_alone(stamp, self.frame)

    def pose_alone(self, stamp=None, frame=''):
        """The tool pose without joint states, in a frame it may name."""
        from geometry_msgs.msg import PoseStamped

        message = PoseStamped()
        message.header.stamp = stamp or self.stamp()
        message.header.frame_id = frame
        message.pose.position.x = 0.5
        message.pose.orientation.w = 1.0
        self.pose.publish(message)

    def spin(self, seconds: float):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def feed(self, seconds: float, rate=20.0, until=None, **show):
        """Live input for a while, or until something is true; returns whether it became so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.move()
            self.show(**show)
            self.spin(1.0 / rate)
            if until is not None and until():
                return True
        return until is None

    def wait(self, condition, seconds=20.0) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            self.spin(0.05)
        return bool(condition())

    def call(self, kind, service: str, request, seconds=30.0):
        client = self.node.create_client(kind, service)
        assert client.wait_for_service(timeout_sec=seconds), f'no service {service}'
        future = client.call_async(request)
        self.executor.spin_until_future_complete(future, timeout_sec=seconds)
        self.node.destroy_client(client)
        assert future.done(), f'{service} did not answer'
        return future.result()

    def set(self, together=False, **values):
        """Set parameters (names with ``__`` for dots); the results' (successful, reason)."""
        from rcl_interfaces.srv import SetParameters, SetParametersAtomically
        from rclpy.parameter import Parameter

        messages = [
            Parameter(name.replace('__', '.'), value=value).to_parameter_msg()
            for name, value in values.items()
        ]
        if together:
            request = SetParametersAtomically.Request(parameters=messages)
            answer = self.call(
                SetParametersAtomically, f'/{self.name}/set_parameters_atomically', request
            )
            return answer.result.successful, answer.result.reason
        request = SetParameters.Request(parameters=messages)
        answer = self.call(SetParameters, f'/{self.name}/set_parameters', request)
        return [(r.successful, r.reason) for r in answer.results]

    def get(self, name: str):
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        answer = self.call(
            GetParameters, f'/{self.name}/get_parameters', GetParameters.Request(names=[name])
        )
        return parameter_value_to_python(answer.values[0])

    def transition(self, number: int) -> bool:
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(transition=Transition(id=number))
        return self.call(ChangeState, f'/{self.name}/change_state', request).success

    def state(self) -> str:
        from lifecycle_msgs.srv import GetState

        return self.call(
            GetState, f'/{self.name}/get_state', GetState.Request()
        ).current_state.label

    def health(self) -> str:
        """What the newest diagnostics say."""
        return self.diagnoses[-1].status[0].message if self.diagnoses else ''

    def diagnostic(self, key: str) -> str:
        """One value of the newest diagnostics."""
        return {v.key: v.value for v in self.diagnoses[-1].status[0].values}[key]
