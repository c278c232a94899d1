"""What the fault suite stands on: lanes between arm and policy that can be disturbed, and an ear
that records every command with the time at which the executor wrote it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from specprune_ros.msg import ActionChunk, PruneStats
from std_msgs.msg import String
from system import EXECUTOR, POLICY

from specprune_ros.nodes.common.messages import chunk_of
from specprune_ros.nodes.common.qos import every, latched, newest
from specprune_ros.nodes.common.remapping import profile_path
from specprune_ros.robot.chunk import Chunk, ChunkError, ChunkRules, check
from specprune_ros.robot.profile import Profile, load

SECOND = 1_000_000_000
CHUNKS = '/faults/action_chunk'  # as the executor receives them
INTRUDER = 'intruder'  # frame_id of commands the executor did not send
CLOCK_RATE = 200.0  # Hz
ALIKE = 0.02  # s by which this account may differ from the executor's own
PAUSE = 0.04  # s without commands after a stop action


@dataclass
class Sent:
    """A command of the executor: when it was written (ns, system clock) and by its own stamp
    decided (ns, the executor's clock), m/s and rad/s."""

    at: int
    decided: int
    linear: tuple[float, float, float]
    angular: tuple[float, float, float]
    braking: bool = False
    slowing: bool = False  # as hard as a stop does, and so hardly by what a chunk requests

    @property
    def zero(self) -> bool:
        """Whether it is the stop action of this arm."""
        return not any((*self.linear, *self.angular))


class Lane:
    """Passes a topic on. ``alter`` turns a message into what is sent instead: messages or bytes.

    ``passed`` holds (time just before it was sent, stamp) of the newest, ns: nobody can have had
    a message earlier. ``places`` are the positions of poses, with that time. ``late`` is how long
    messages took from their sender to here, ns, with the time.
    """

    def __init__(
        self,
        node: Any,
        kind: type,
        source: str,
        target: str,
        received: list[tuple[int, Any]] | None = None,
    ) -> None:
        self._node, self.kind, self._received = node, kind, received
        self.alter: Callable[[Any], list[Any]] | None = None
        self.passed: deque[tuple[int, int]] = deque(maxlen=4000)
        self.places: deque[tuple[int, tuple[float, float, float]]] = deque(maxlen=4000)
        self.late: deque[tuple[int, int]] = deque(maxlen=4000)
        self.last: Any = None
        quality = newest(reliable=True) if received is None else every()
        self.output = node.create_publisher(kind, target, quality)
        node.create_subscription(kind, source, self._on, every(2), raw=True)

    def _on(self, raw: bytes, info: dict) -> None:
        self.last = raw
        alter = self.alter
        now = time.time_ns()
        self.late.append((now, now - info['source_timestamp']))
        if alter is None:
            self.output.publish(raw)
            if self.kind is not Image:
                self._note(now, deserialize_message(raw, self.kind))
            return
        for message in alter(deserialize_message(raw, self.kind)):
            now = time.time_ns()
            self.output.publish(message)
            if not isinstance(message, bytes):
                self._note(now, message)

    def _note(self, at: int, message: Any) -> None:
        if self.kind is PoseStamped:
            tool = message.pose.position
            if not math.isfinite(tool.x):
                return  # does not count as arrived
            self.places.append((at, (tool.x, tool.y, tool.z)))
        if self._received is not None:
            self._received.append((at, message))
        stamp = message.header.stamp
        self.passed.append((at, stamp.sec * SECOND + stamp.nanosec))

    def newest_copy(self) -> Any:
        """The newest message that came in, as an object of its own."""
        return deserialize_message(self.last, self.kind)


@dataclass
class Received:
    """Everything recorded. Times are ns of the system clock, written by the sender."""

    commands: list[Sent] = field(default_factory=list)
    chunks: list[tuple[int, ActionChunk]] = field(default_factory=list)
    stats: list[tuple[int, PruneStats]] = field(default_factory=list)
    positions: list[tuple[int, tuple[float, float, float]]] = field(default_factory=list)
    speeds: list[tuple[int, float]] = field(default_factory=list)
    health: dict[str, tuple[int, str]] = field(default_factory=dict)
    said: list[tuple[int, str, str]] = field(default_factory=list)
    counted: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # by the executor


class Rig:
    """Lanes in one thread, the recorder in another, the clock in a third (if requested)."""

    def __init__(self, profile: Profile, sim_time: bool) -> None:
        self.profile = profile
        self.received = Received()
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('faults', context=self.context)
        self.ear = rclpy.create_node('faults_ear', context=self.context)
        seen = profile.observation
        lane = self._lane
        self.cameras = {
            name: lane(Image, camera.topic, f'/faults/{name}')
            for name, camera in seen.cameras.items()
        }
        self.joints = lane(JointState, seen.joint_states, '/faults/joint_states')
        self.pose = lane(PoseStamped, seen.ee_pose, '/faults/tcp_pose')
        # Chunks too: what a policy that is killed or starts has sent, and the executor has got,
        # is then known here.
        self.chunk_lane = lane(
            ActionChunk, f'/{POLICY}/action_chunk', CHUNKS, received=self.received.chunks
        )
        self.lanes = [*self.cameras.values(), self.joints, self.pose, self.chunk_lane]
        listen = self.ear.create_subscription
        # Deep enough that a busy second loses nothing.
        listen(TwistStamped, profile.command.topic, self._on_command, every(1000))
        listen(PruneStats, f'/{POLICY}/prune_stats', self._on_stats, every(100))
        listen(PoseStamped, seen.ee_pose, self._on_pose, newest())
        listen(TwistStamped, seen.ee_twist, self._on_speed, newest())
        listen(DiagnosticArray, '/diagnostics', self._on_health, every(100))
        publish = self.node.create_publisher
        self._chunks = publish(ActionChunk, CHUNKS, every())
        self.instruction = publish(String, f'/{POLICY}/instruction', latched())
        self.sim_offset_ns: int | None = 0 if sim_time else None
        self.clock_stands = False
        self._ending = threading.Event()
        self.lane_thread = 0  # the system's number of it
        self._threads = [
            threading.Thread(target=self._spin, args=(node,), daemon=True)
            for node in (self.node, self.ear)
        ]
        if sim_time:
            self._clock = publish(Clock, '/clock', every())
            self._threads.append(threading.Thread(target=self._tell_time, daemon=True))
        for thread in self._threads:
            thread.start()

    @staticmethod
    def remap_of(name: str) -> dict[str, str]:
        """The arm's topics to the lanes' outputs, for a robot profile."""
        seen = load(profile_path(name)).observation
        return {
            **{camera.topic: f'/faults/{name}' for name, camera in seen.cameras.items()},
            seen.joint_states: '/faults/joint_states',
            seen.ee_pose: '/faults/tcp_pose',
            f'/{POLICY}/action_chunk': CHUNKS,
        }

    def send_chunk(self, message: ActionChunk | bytes) -> None:
        """Send a chunk as another policy would: by a publisher of its own."""
        if not isinstance(message, bytes):
            self.received.chunks.append((time.time_ns(), message))
        self._chunks.publish(message)

    def close(self) -> None:
        """Leave the network."""
        self._ending.set()
        self.context.try_shutdown()
        for thread in self._threads:
            thread.join(5.0)

    def straight(self) -> None:
        """End every disturbance of the lanes."""
        for lane in self.lanes:
            lane.alter = None

    def call(self, kind: type, service: str, request: Any, seconds: float = 10.0) -> Any:
        """A service's answer, or ``None`` where none came."""
        client = self.node.create_client(kind, service)
        try:
            if not client.wait_for_service(timeout_sec=seconds):
                return None
            future = client.call_async(request)
            end = time.monotonic() + seconds
            while not future.done() and time.monotonic() < end:
                time.sleep(0.005)
            return future.result() if future.done() else None
        finally:
            self.node.destroy_client(client)

    @contextlib.contextmanager
    def publisher(self, kind: type, topic: str) -> Iterator[Any]:
        """A publisher for as long as it is needed."""
        made = self.node.create_publisher(kind, topic, every())
        try:
            yield made
        finally:
            self.node.destroy_publisher(made)

    def silent_for(self) -> float:
        """Seconds since the executor's last command."""
        commands = self.received.commands
        return (time.time_ns() - commands[-1].at) / SECOND if commands else math.inf

    def flowing(self, begin_ns: int) -> bool:
        """Whether commands have come steadily since ``begin_ns``, and still do."""
        now = time.time_ns()
        recent = 0
        for sent in reversed(self.received.commands):
            if sent.at < max(begin_ns, now - 200_000_000):
                break
            recent += 1
        return recent >= 8 and self.silent_for() < 0.1

    def _lane(self, kind: type, source: str, target: str, received: Any = None) -> Lane:
        return Lane(self.node, kind, source, target, received)

    def _spin(self, node: Any) -> None:
        if node is self.node:
            self.lane_thread = threading.get_native_id()
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(node)
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    def _tell_time(self) -> None:
        due = time.monotonic()
        while not self._ending.is_set():
            if not self.clock_stands:
                now = time.time_ns() + self.sim_offset_ns
                message = Clock()
                message.clock.sec, message.clock.nanosec = divmod(now, SECOND)
                try:
                    self._clock.publish(message)
                except Exception:  # the context ends under it
                    return
            due = max(due + 1.0 / CLOCK_RATE, time.monotonic() - 0.1)
            time.sleep(max(0.0, due - time.monotonic()))

    def _on_command(self, message: TwistStamped, info: dict) -> None:
        if message.header.frame_id == INTRUDER:
            return
        a, b, stamp = message.twist.linear, message.twist.angular, message.header.stamp
        self.received.commands.append(
            Sent(
                info['source_timestamp'],
                stamp.sec * SECOND + stamp.nanosec,
                (a.x, a.y, a.z),
                (b.x, b.y, b.z),
            )
        )

    def _on_stats(self, message: PruneStats, info: dict) -> None:
        self.received.stats.append((info['source_timestamp'], message))

    def _on_pose(self, message: PoseStamped, info: dict) -> None:
        at = message.pose.position
        self.received.positions.append((info['source_timestamp'], (at.x, at.y, at.z)))

    def _on_speed(self, message: TwistStamped, info: dict) -> None:
        at = message.twist.linear
        self.received.speeds.append((info['source_timestamp'], math.hypot(at.x, at.y, at.z)))

    def _on_health(self, message: DiagnosticArray) -> None:
        for status in message.status:
            name = status.name.split(':')[0]
            if name in (POLICY, EXECUTOR):
                self.received.health[name] = (time.time_ns(), status.message)
                self.received.said.append((time.time_ns(), name, status.message))
            if name == EXECUTOR:
                values = {pair.key: pair.value for pair in status.values}
                self.received.counted.append((time.time_ns(), values))
                del self.received.counted[:-200]


class Axis:
    """When the queue ran dry: an account of the executed time kept from the outside, from chunks
    received and commands sent, without the executor's own timeline.
    """

    def __init__(self, rules: ChunkRules, sim_time: bool) -> None:
        self._rules = rules
        self._stamped_otherwise = sim_time
        self.restart()

    def restart(self) -> None:
        """The executor is a new one."""
        self._at = self._end = 0.0
        self._step = 0.05
        self._last: int | None = None
        self._newest = -1
        self._log: deque[tuple[int, float]] = deque(maxlen=4000)
        self._dry: float | None = None  # ns
        self._rested = True

    def chunk(self, message: ActionChunk) -> None:
        """A chunk was sent."""
        chunk: Chunk = chunk_of(message)
        try:
            check(chunk, self._rules)
        except ChunkError:
            return
        if chunk.stamp_ns <= self._newest:
            return
        at = later = self._at
        for when, axis in reversed(self._log):
            if when <= chunk.stamp_ns:
                at = axis + min((chunk.stamp_ns - when) / SECOND, later - axis)
                break
            at = later = axis
        end = at + chunk.horizon * chunk.step_dt
        if end <= self._at - ALIKE:
            return
        self._newest, self._end, self._step, self._dry = chunk.stamp_ns, end, chunk.step_dt, None

    def command(self, sent: Sent) -> float | None:
        """A command was sent; for how long (s) there has been nothing left to execute.

        Motion is reckoned from when commands were decided, by their stamps, and lateness to when
        they were written: what held the executor up in between counts against it.
        """
        now = sent.at if self._stamped_otherwise else min(sent.decided, sent.at)
        # On the way to rest nothing of the queue is executed, nor where a stop began and a new
        # chunk took the motion up again.
        if sent.braking or sent.slowing:
            self._last, self._rested = now, sent.zero
            self._log.append((now, self._at))
            return None
        elapsed = 0.0 if self._last is None else (now - self._last) / SECOND
        left = self._end - self._at
        if self._rested and elapsed > PAUSE:
            # A motion that begins: what ran dry before was stopped.
            self._dry = None if left > 0.0 else now
        else:
            # An executor that was held up executes no more than a step of what it missed.
            moved = min(elapsed, self._step)
            if left <= moved and self._dry is None:
                self._dry = now - (moved - max(left, 0.0)) * SECOND
            self._at = min(self._at + moved, max(self._at, self._end))
        self._last, self._rested = now, sent.zero
        self._log.append((now, self._at))
        return None if self._dry is None else (sent.at - self._dry) / SECOND
