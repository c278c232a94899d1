"""Listens to a running policy: counts, latencies, images, and a recording."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import mode
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String

from specprune_ros.apps.gif import Frame, GifRecorder
from specprune_ros.msg import ActionChunk, PruneStats
from specprune_ros.nodes.common.images import to_rgb
from specprune_ros.nodes.common.messages import task_result_of
from specprune_ros.nodes.common.qos import every, latched, newest
from specprune_ros.nodes.common.rates import RateMeter
from specprune_ros.nodes.common.time import SECOND_NS, nanoseconds
from specprune_ros.sim.tasks.task_result import TaskResult

SCENES = 16  # images kept until the account of their query comes

MODES = {
    PruneStats.MODE_DENSE: 'dense',
    PruneStats.MODE_COARSE: 'coarse',
    PruneStats.MODE_FINE: 'fine',
    PruneStats.MODE_SKIPPED: 'skipped',
}


def seconds(stamp: Any) -> float:
    """A time message in seconds."""
    return nanoseconds(stamp) / SECOND_NS


@dataclass
class QueryStats:
    """What was received so far. Times in seconds; one entry per chunk.

    ``overhead`` is the latency less the policy's own time: what DDS, callbacks, threads and
    waiting add.
    """

    latency: list[float] = field(default_factory=list)
    query: list[float] = field(default_factory=list)
    overhead: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    pruned_tokens: list[float] = field(default_factory=list)
    flops_ratio: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    pruners: list[str] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    instructions: Counter[str] = field(default_factory=Counter)
    last: PruneStats | None = None
    chunks: int = 0
    obeyed: str = ''
    _received: dict[int, float] = field(default_factory=dict)

    def add_chunk(self, chunk: ActionChunk, now: float) -> None:
        """Count a chunk received at time ``now`` of the node clock, in seconds."""
        latency = now - seconds(chunk.header.stamp)
        self.latency.append(latency)
        self._received[chunk.sequence] = latency
        self.chunks += 1
        self.instructions[chunk.instruction] += 1
        self.obeyed = chunk.instruction

    def replace_latency(self, sequence: int, latency: float) -> None:
        """Correct the latency of the chunk added last (a replay knows better)."""
        self.latency[-1] = self._received[sequence] = latency

    def add_stats(self, stats: PruneStats) -> None:
        """Count a chunk's account."""
        self.query.append(stats.time_total)
        latency = self._received.pop(stats.sequence, None)
        if latency is not None:
            self.overhead.append(latency - stats.time_total)
        self.tokens.append(stats.tokens_mean)
        self.flops_ratio.append(stats.flops_ratio)
        self.pruners.append(stats.pruner)
        if stats.mode in (PruneStats.MODE_COARSE, PruneStats.MODE_FINE):
            self.pruned_tokens.append(stats.tokens_mean)
        if np.isfinite(stats.prior_recall):
            self.recall.append(stats.prior_recall)
        self.modes[MODES[stats.mode]] += 1
        self.last = stats

    def mark(self) -> int:
        """Where the account stands now; see :meth:`since`."""
        return len(self.query)

    def since(self, mark: int) -> dict[str, Any]:
        """What the queries after ``mark`` cost."""
        times = spread(self.query[mark:])
        return {
            'queries': len(self.query) - mark,
            'tokens_mean': mean(self.tokens[mark:]),
            'flops_ratio': mean(self.flops_ratio[mark:]),
            'query_ms_p50': times and times['p50'],
            'pruner': mode(self.pruners[mark:]) if times else None,
        }

    def numbers(self) -> dict[str, Any]:
        """The summary as plain numbers; ``None`` where nothing was received."""
        last = self.last
        return {
            'chunks': self.chunks,
            'tokens_in': last.tokens_in if last else 0,
            'tokens_mean': mean(self.tokens),
            'tokens_mean_pruned_queries': mean(self.pruned_tokens),
            'flops_ratio': mean(self.flops_ratio),
            'latency_ms': spread(self.latency),
            'query_ms': spread(self.query),
            'overhead_ms': spread(self.overhead),
            'prior_recall': mean(self.recall),
            'modes': dict(self.modes),
            'episodes': last.episode if last else 0,
            'instructions': dict(self.instructions),
            'device': last.device if last else '',
            'pruner': last.pruner if last else '',
        }


class Monitor(Node):
    """See the module's text. ``policy`` is the policy node's name, ``cameras`` what it shows,
    ``arm`` the node that judges, if any.

    ``spoken`` collects instructions that others gave the policy. Frames are kept while
    ``recording_gif``, under ``caption``; :meth:`see` gives them the scene as a person would see
    it.
    """

    def __init__(
        self,
        policy: str,
        cameras: tuple[str, ...],
        name: str = 'monitor',
        arm: str = '',
        use_sim_time: bool = False,
    ) -> None:
        super().__init__(name, parameter_overrides=[Parameter('use_sim_time', value=use_sim_time)])
        self.tally = QueryStats()
        self.gif = GifRecorder()
        self.recording_gif = True
        self.caption: Callable[[], str] = lambda: ''
        self.verdict = TaskResult()
        self.spoken: list[str] = []
        self._own: list[str] = []
        self._scenes: deque[Image] = deque(maxlen=SCENES)
        self.diagnosis = ''
        self.image_rates: dict[str, str] = {}
        self._cameras = cameras
        self._overlays: dict[int, dict[str, Image]] = {}
        self._accounts: deque[PruneStats] = deque(maxlen=SCENES)
        self.chunk_rate = RateMeter()
        self.say_topic = f'/{policy}/instruction'
        self._say = self.create_publisher(String, self.say_topic, latched())
        self.create_subscription(String, self.say_topic, self._on_instruction, latched())
        if arm:
            self.create_subscription(
                DiagnosticStatus, f'/{arm}/verdict', self._on_verdict, latched()
            )
        self.create_subscription(ActionChunk, f'/{policy}/action_chunk', self._on_chunk, every())
        self.create_subscription(PruneStats, f'/{policy}/prune_stats', self._on_stats, every())
        self.create_subscription(
            DiagnosticArray, '/diagnostics', partial(self._on_diagnostics, policy), every()
        )
        for camera in cameras:
            self.create_subscription(
                Image,
                f'/{policy}/overlay/{camera}',
                partial(self._on_overlay, camera),
                newest(reliable=True),
            )

    @property
    def seconds(self) -> float:
        """Now, by the node's clock."""
        return self.get_clock().now().nanoseconds / SECOND_NS

    def say(self, instruction: str) -> None:
        """Give the policy an instruction."""
        self._own.append(instruction)
        self._say.publish(String(data=instruction))

    def see(self, image: Image) -> None:
        """A camera's image for the gif, as it was taken."""
        self._scenes.append(image)

    def _on_instruction(self, message: String) -> None:
        if message.data in self._own:
            self._own.remove(message.data)
        else:
            self.spoken.append(message.data)

    def _on_verdict(self, message: DiagnosticStatus) -> None:
        self.verdict = task_result_of(message)

    def _on_chunk(self, message: ActionChunk) -> None:
        # Received in this process: what a robot's executor would see, transport included.
        self.tally.add_chunk(message, self.seconds)
        self.chunk_rate.append(time.monotonic())

    def _on_stats(self, message: PruneStats) -> None:
        self.tally.add_stats(message)
        self._accounts.append(message)

    def _on_diagnostics(self, policy: str, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(policy):
                self.diagnosis = status.message
                self.image_rates = {
                    pair.key.removeprefix('image rate ').removesuffix(' (Hz)'): pair.value
                    for pair in status.values
                    if pair.key.startswith('image rate')
                }

    def _on_overlay(self, camera: str, message: Image) -> None:
        stamp = nanoseconds(message.header.stamp)
        shown = self._overlays.setdefault(stamp, {})
        shown[camera] = message
        for old in [key for key in self._overlays if key < stamp - SECOND_NS]:
            del self._overlays[old]
        stats = next((s for s in self._accounts if nanoseconds(s.header.stamp) == stamp), None)
        if stats is None or len(shown) < len(self._cameras):
            return
        if self.recording_gif and self.gif.due(stamp / SECOND_NS):
            self.gif.add(
                Frame(
                    {name: to_rgb(shown[name]) for name in self._cameras},
                    f'"{self.tally.obeyed}"',
                    f'{stats.pruner}, {MODES[stats.mode]}: {self._kept(stats)} vision tokens, '
                    f'{stats.flops_ratio:.0%} of the operations',
                    stamp / SECOND_NS,
                    self._scene(stats),
                    self.caption(),
                )
            )

    def _scene(self, stats: PruneStats) -> np.ndarray | None:
        """The image that was taken when those of the query were."""
        wanted = nanoseconds(stats.header.stamp)
        found = min(
            self._scenes, key=lambda m: abs(nanoseconds(m.header.stamp) - wanted), default=None
        )
        return None if found is None else to_rgb(found)

    @staticmethod
    def _kept(stats: PruneStats) -> str:
        steps = [stats.tokens_in, *stats.tokens_after]
        return ' > '.join(str(step) for step in steps)


def mean(values: Any) -> float | None:
    """The mean, or ``None`` of nothing."""
    return float(np.mean(values)) if len(values) else None


def spread(values: Any) -> dict[str, float] | None:
    """Percentiles in milliseconds of times in seconds, or ``None`` of nothing."""
    if not len(values):
        return None
    p50, p90, p99 = 1e3 * np.percentile(values, (50, 90, 99))
    return {'p50': float(p50), 'p90': float(p90), 'p99': float(p99), 'n': len(values)}
