"""What an attack or an accident does to the executor: ``benchmarks/attacks.py --json FILE``.

Real processes over real DDS: an executor, and a rig that is arm, policy and attacker. Two parts:
``ends`` ends or halts the executor while the arm moves, for every adapter, and measures the time
to the stop command and how far the arm moved; ``floods`` sends large messages and measures the
control period.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
SECOND = 1_000_000_000
ADAPTERS = ('twist', 'pose', 'cartesian_motion_force', 'joint_trajectory')
ENDS = ('kill', 'segv', 'stop', 'blocked')
JOINTS = tuple(f'joint{i}' for i in range(1, 8))
START = (0.5, -0.1, 0.3)
READY = (0.0, -0.3, 0.0, 1.2, 0.0, 1.2, 0.0)  # rad, well inside the ranges
BLOCKED = 3.0  # s the interpreter is held for

# A signal makes the executor hold its interpreter, as a C function that keeps the lock does.
PROGRAM = f"""
import ctypes, signal, sys
def block(number, frame):
    ctypes.PyDLL(None).usleep(int({BLOCKED} * 1e6))
signal.signal(signal.SIGUSR1, block)
from specprune_ros.nodes.start import start
raise SystemExit(start(sys.argv.pop(1)))
"""
# flexiv_msgs is no dependency: a type of the same first fields stands in for it on the wire.
FLEXIV = 'from geometry_msgs.msg import PoseStamped as CartesianMotionForce\n'


def write_profile(folder: Path, adapter: str) -> Path:
    """The simulated arm's profile with another adapter."""
    tree = yaml.safe_load((ROOT / 'config' / 'robots' / 'sim_arm.yaml').read_text())
    tree['command'] = {
        'adapter': adapter,
        'topic': '/rig/command',
        'frame': 'base_link',
        'rate': 100.0,
    }
    tree['observation']['robot_description'] = '/rig/robot_description'
    tree['observation']['joint_states'] = '/rig/joint_states'
    tree['observation']['ee_pose'] = '/rig/tcp_pose'
    tree['gripper'] = {'adapter': 'none'}
    if adapter == 'joint_trajectory':
        tree['limits']['joints'] = {
            name: {'lower': -2.8, 'upper': 2.8, 'velocity': 1.5, 'acceleration': 8.0}
            for name in JOINTS
        }
    if adapter != 'twist':
        tree['stop_action'] = 'hold'
    file = folder / f'{adapter}.yaml'
    file.write_text(yaml.safe_dump(tree))
    return file


class Rig:
    """Arm, policy and attacker. The arm is where it was commanded to be (no lag)."""

    def __init__(self, adapter: str, folder: Path, domain: int) -> None:
        import rclpy
        from geometry_msgs.msg import PoseStamped, TwistStamped
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from sensor_msgs.msg import JointState
        from specprune_ros.msg import ActionChunk
        from std_msgs.msg import String
        from trajectory_msgs.msg import JointTrajectory

        self.adapter = adapter
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node('rig', context=self.context)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        publish = self.node.create_publisher
        self.pose = publish(PoseStamped, '/rig/tcp_pose', 1)
        self.joints = publish(JointState, '/rig/joint_states', 1)
        self.description = publish(String, '/rig/robot_description', latched)
        self.chunks = publish(ActionChunk, '/chunk_executor/action_chunk', 10)
        kind = {'twist': TwistStamped, 'joint_trajectory': JointTrajectory}.get(
            adapter, PoseStamped
        )
        self.commands: list[tuple[int, Any]] = []  # ns at which it was written, message
        self.health: list[str] = []
        self.node.create_subscription(kind, '/rig/command', self._on_command, 1000)
        from diagnostic_msgs.msg import DiagnosticArray

        # Not decoded where it is large: the rig must not suffer what it does to others.
        self.node.create_subscription(
            DiagnosticArray, '/diagnostics', self._on_health, 10, raw=True
        )
        self.position = list(START)
        self.configuration = list(READY)
        self.policy = True
        self.sequence = itertools.count(1)
        self._at: int | None = None
        self._ending = False
        stub = folder / 'stub' / 'flexiv_msgs'
        stub.mkdir(parents=True, exist_ok=True)
        (stub / '__init__.py').write_text('')
        (stub / 'msg.py').write_text(FLEXIV)
        self.log = folder / f'{adapter}.log'
        self._file = self.log.open('wb')
        self.process = subprocess.Popen(
            [sys.executable, '-c', PROGRAM, 'chunk_executor', '--ros-args']
            + ['-p', f'profile:={write_profile(folder, adapter)}', '-p', 'policy:=specprune_node'],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                'ROS_DOMAIN_ID': str(domain),
                'PYTHONPATH': f'{stub.parent}:{os.environ.get("PYTHONPATH", "")}',
            },
        )
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._threads = [
            threading.Thread(target=self._spin, daemon=True),
            threading.Thread(target=self._feed, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        if adapter == 'joint_trajectory':
            from specprune_ros.sim.arm.urdf import urdf

            self.describe(urdf())

    def describe(self, text: str) -> None:
        """Publish a robot_description."""
        from std_msgs.msg import String

        self.description.publish(String(data=text))

    def close(self) -> None:
        """End everything."""
        self._ending = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._threads[1].join(2.0)
        self._executor.shutdown()
        self._threads[0].join(2.0)
        self.node.destroy_node()
        self.context.try_shutdown()
        self._file.close()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except Exception:  # the context ends under it
            return

    def _on_command(self, message: Any, info: dict) -> None:
        at = info['source_timestamp']
        self.commands.append((at, message))
        if self.adapter == 'twist':
            if self._at is not None:
                dt = min((at - self._at) / SECOND, 0.1)
                v = message.twist.linear
                speed = (v.x, v.y, v.z)
                self.position = [p + dt * u for p, u in zip(self.position, speed, strict=True)]
        elif self.adapter == 'joint_trajectory':
            self.configuration = list(message.points[0].positions)
        else:
            p = message.pose.position
            self.position = [p.x, p.y, p.z]
        self._at = at

    def _on_health(self, raw: bytes) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.serialization import deserialize_message

        if len(raw) > 32_000 or b'chunk_executor' not in raw:
            return
        message = deserialize_message(raw, DiagnosticArray)
        for status in message.status:
            if status.name.startswith('chunk_executor'):
                self.health.append(status.message)

    def _feed(self) -> None:
        import array

        from builtin_interfaces.msg import Duration
        from geometry_msgs.msg import PoseStamped
        from sensor_msgs.msg import JointState
        from specprune_ros.msg import ActionChunk

        due, chunk_at = time.monotonic(), 0.0
        while not self._ending:
            try:
                stamp = self.node.get_clock().now().to_msg()
                pose = PoseStamped()
                pose.header.stamp, pose.header.frame_id = stamp, 'base_link'
                at = pose.pose.position
                at.x, at.y, at.z = self.position
                pose.pose.orientation.x, pose.pose.orientation.w = 1.0, 0.0
                self.pose.publish(pose)
                joints = JointState(name=list(JOINTS))
                joints.header.stamp = stamp
                joints.position = array.array('d', self.configuration)
                self.joints.publish(joints)
                if self.policy and time.monotonic() - chunk_at > 0.2:
                    chunk_at = time.monotonic()
                    # 0.1 m/s along y, there and back.
                    sign = 1.0 if int(chunk_at / 2.0) % 2 else -1.0
                    rows = np.tile([0.0, sign * 0.01, 0.0, 0.0, 0.0, 0.0, 1.0], (8, 1))
                    chunk = ActionChunk(
                        sequence=next(self.sequence),
                        episode=1,
                        step_dt=Duration(sec=0, nanosec=100_000_000),
                        horizon=8,
                        dims=['x', 'y', 'z', 'rx', 'ry', 'rz', 'gripper'],
                        kind=ActionChunk.KIND_EE_DELTA,
                        rotation=ActionChunk.ROTATION_VECTOR,
                        reference=ActionChunk.REFERENCE_PREVIOUS_STEP,
                        data=rows.ravel().tolist(),
                        gripper_dim=6,
                    )
                    chunk.header.stamp, chunk.header.frame_id = stamp, 'base_link'
                    self.chunks.publish(chunk)
            except Exception:  # the context ends under it
                return
            due = max(due + 0.01, time.monotonic() - 0.05)
            time.sleep(max(0.0, due - time.monotonic()))

    def moving(self, seconds: float = 40.0) -> bool:
        """Wait until commands have come for half a second, and are motion."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            recent = [m for at, m in self.commands if at > time.time_ns() - SECOND // 2]
            if len(recent) > 20 and self.speed(recent[-1]) > 0.05:
                return True
            time.sleep(0.02)
        return False

    def speed(self, message: Any) -> float:
        """How fast a command means to move, m/s or rad/s; poses by difference."""
        if self.adapter == 'twist':
            v = message.twist.linear
            return math.hypot(v.x, v.y, v.z)
        if self.adapter == 'joint_trajectory':
            return max((abs(v) for v in message.points[0].velocities), default=0.0)
        recent = self.commands[-10:]
        (t0, a), (t1, b) = recent[0], recent[-1]
        far = math.dist(_place(a), _place(b))
        return far / max((t1 - t0) / SECOND, 1e-3)

    def at_rest(self, index: int) -> bool:
        """Whether command ``index`` requests no motion any more."""
        message = self.commands[index][1]
        if self.adapter == 'twist':
            v, w = message.twist.linear, message.twist.angular
            return not any((v.x, v.y, v.z, w.x, w.y, w.z))
        if self.adapter == 'joint_trajectory':
            return not any(message.points[0].velocities)
        return index > 0 and math.dist(_place(message), _place(self.commands[index - 1][1])) < 1e-9


def _place(message: Any) -> tuple[float, float, float]:
    p = message.pose.position
    return (p.x, p.y, p.z)


def moved_after(rig: Rig, begin: int, watched: float) -> float:
    """How far the arm was sent after ``begin`` (ns) within ``watched`` s: m, or rad of a joint.

    The controller has no time-out of its own: a velocity holds until the next command.
    """
    end = begin + round(watched * SECOND)
    if rig.adapter == 'twist':
        total, before = 0.0, None
        for at, message in [*rig.commands, (end, None)]:
            if before is not None:
                lasted = (min(at, end) - max(before[0], begin)) / SECOND
                total += max(0.0, lasted) * rig.speed(before[1])
            before = (at, message)
        return total
    before = [m for at, m in rig.commands if at <= begin]
    after = [m for at, m in rig.commands if begin < at <= end]
    if rig.adapter == 'joint_trajectory':
        first = before[-1].points[0].positions
        # A trajectory is followed to its last point.
        ways = [before[-1].points[-1].positions] + [
            point.positions for message in after for point in message.points
        ]
        return max(max(abs(a - b) for a, b in zip(first, way, strict=True)) for way in ways)
    return max((math.dist(_place(before[-1]), _place(m)) for m in after), default=0.0)


def end_executor(
    adapter: str, how: str, folder: Path, domain: int, watch_s: float = 3.0
) -> dict[str, Any]:
    """Move, end or halt the executor, and watch what the arm is sent for ``watch_s`` seconds."""
    rig = Rig(adapter, folder, domain)
    try:
        if not rig.moving():
            return {'adapter': adapter, 'end': how, 'error': rig.log.read_text()[-2000:]}
        time.sleep(1.0)
        number = {
            'kill': signal.SIGKILL,
            'segv': signal.SIGSEGV,
            'stop': signal.SIGSTOP,
            'blocked': signal.SIGUSR1,
        }[how]
        while abs(time.monotonic() / 2.0 % 1.0 - 0.5) > 0.25:  # in the middle of a stroke
            time.sleep(0.01)
        begin = time.time_ns()
        os.kill(rig.process.pid, number)
        watched = min(watch_s, BLOCKED - 0.3)
        time.sleep(watched)
        count = len(rig.commands)
        rest = None
        first = next((i for i in range(count) if rig.commands[i][0] > begin), None)
        gap = None
        if first is not None:
            previous = rig.commands[first - 1][0] if first else begin
            # The first command after the longest silence is the supervisor's.
            late = max(
                range(first, count),
                key=lambda i: rig.commands[i][0] - (rig.commands[i - 1][0] if i else previous),
            )
            gap = (rig.commands[late][0] - begin) / SECOND
            for i in range(first, count):
                if rig.at_rest(i):
                    rest = (rig.commands[i][0] - begin) / SECOND
                    break
        return {
            'adapter': adapter,
            'end': how,
            'first_stop_command_s': gap,
            'at_rest_s': rest,
            'moved': moved_after(rig, begin, watched),
            'unit': 'rad' if adapter == 'joint_trajectory' else 'm',
            'commands_after': 0 if first is None else count - first,
        }
    finally:
        rig.close()


def floods() -> dict[str, Any]:
    """What is sent at the executor: name to (topic, type, message maker, rate Hz, seconds)."""
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from sensor_msgs.msg import JointState
    from specprune_ros.msg import ActionChunk
    from std_msgs.msg import String

    def diagnostics(pairs: int) -> Any:
        values = [KeyValue(key='k' * 8, value='v' * 8) for _ in range(pairs)]
        return DiagnosticArray(status=[DiagnosticStatus(name='x', values=values)])

    def joints(count: int) -> Any:
        names = [f'j{i}' for i in range(count)]
        return JointState(name=names, position=[0.0] * count)

    def chunk(count: int) -> Any:
        return ActionChunk(data=[0.0] * count, dims=['x'] * (count // 10))

    def flat(links: int) -> Any:
        rows = ''.join(
            f'<link name="l{i}"/><joint name="j{i}" type="fixed"><parent link="base_link"/>'
            f'<child link="l{i}"/></joint>'
            for i in range(links)
        )
        return String(data=f'<robot name="r"><link name="base_link"/>{rows}</robot>')

    return {
        'none': None,
        'diagnostics 335 kB 30 Hz': ('/diagnostics', DiagnosticArray, diagnostics(10500), 30.0),
        'diagnostics 6.7 MB 1 Hz': ('/diagnostics', DiagnosticArray, diagnostics(210000), 1.0),
        'diagnostics 16.8 MB 1 Hz': ('/diagnostics', DiagnosticArray, diagnostics(525000), 1.0),
        'joint states 200 kB 30 Hz': ('/rig/joint_states', JointState, joints(8000), 30.0),
        'chunk 8 MB 2 Hz': ('/chunk_executor/action_chunk', ActionChunk, chunk(800000), 2.0),
        'description 30000 links': ('/rig/robot_description', String, flat(30000), 0.5),
        'small diagnostics 1000 Hz': ('/diagnostics', DiagnosticArray, diagnostics(4), 1000.0),
    }


def flood_executor(name: str, adapter: str, folder: Path, domain: int, seconds: float) -> dict:
    """Control periods while a flood comes, from the times the commands were written."""
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from rclpy.serialization import serialize_message

    rig = Rig(adapter, folder, domain)
    try:
        if not rig.moving():
            return {'flood': name, 'error': rig.log.read_text()[-2000:]}
        flood = floods()[name]
        made = None
        if flood is not None:
            topic, kind, message, rate = flood
            qos = 10
            if 'description' in topic:
                qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            made = rig.node.create_publisher(kind, topic, qos)
            raw = serialize_message(message)
            time.sleep(1.5)
        begin = time.time_ns()
        end = time.monotonic() + seconds
        sent = 0
        while time.monotonic() < end:
            if made is None:
                time.sleep(0.1)
                continue
            made.publish(raw)
            sent += 1
            time.sleep(1.0 / rate)
        time.sleep(1.0)
        times = [at for at, _ in rig.commands if at >= begin]
        periods = np.diff([begin, *times, time.time_ns()]) / SECOND
        return {
            'flood': name,
            'adapter': adapter,
            'sent': sent,
            'bytes': 0 if made is None else len(raw),
            'commands': len(times),
            'period_p50_ms': round(1e3 * float(np.percentile(periods, 50)), 2),
            'period_p99_ms': round(1e3 * float(np.percentile(periods, 99)), 2),
            'period_max_ms': round(1e3 * float(periods.max()), 2),
            'alive': rig.process.poll() is None,
            'stops': [
                line[-160:] for line in rig.log.read_text().splitlines() if 'stop: ' in line
            ],
            'health': rig.health[-1][:200] if rig.health else '',
        }
    finally:
        rig.close()


def main() -> int:
    """Run what was requested and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--part', choices=('ends', 'floods', 'all'), default='all')
    parser.add_argument('--adapters', nargs='+', choices=ADAPTERS, default=ADAPTERS)
    parser.add_argument('--ends', nargs='+', choices=ENDS, default=ENDS)
    parser.add_argument('--floods', nargs='+')
    parser.add_argument('--seconds', type=float, default=8.0)
    arguments = parser.parse_args()
    domain = int(os.environ.get('ROS_DOMAIN_ID', '0'))
    rows: dict[str, list[dict]] = {'ends': [], 'floods': []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.part != 'floods':
            for adapter in arguments.adapters:
                for how in arguments.ends:
                    rows['ends'].append(end_executor(adapter, how, folder, domain))
                    print(json.dumps(rows['ends'][-1]), flush=True)
        if arguments.part != 'ends':
            for flood in arguments.floods or floods():
                adapter = 'joint_trajectory' if 'description' in flood else arguments.adapters[0]
                found = flood_executor(flood, adapter, folder, domain, arguments.seconds)
                rows['floods'].append(found)
                print(json.dumps(rows['floods'][-1]), flush=True)
    if arguments.json:
        from specprune_ros.bench.host_info import host_info

        about = {
            'date': time.strftime('%Y-%m-%d'),
            'machine': host_info(),
            'command': 'python benchmarks/attacks.py --json FILE',
        }
        arguments.json.write_text(json.dumps({**about, 'after': rows}, indent=2) + '\n')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
