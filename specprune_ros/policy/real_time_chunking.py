"""Real-time chunking: a chunk that goes on where the one before will be when it takes over.

While a query runs, the arm plays the first ``delay`` rows that the new chunk has for the same
time; they cannot be changed any more. The sampler is therefore pulled, in every step, towards
the previous chunk's rows: fully over the delay, less and less up to ``execution_horizon``, not at
all behind it (arXiv 2506.07339; without the Jacobian of the model, as lerobot runs it).
"""

from __future__ import annotations

import bisect
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from specprune_ros.models.families.pi0 import Guide

SCHEDULES = ('zeros', 'ones', 'linear', 'exp')


@dataclass(frozen=True)
class ChunkingRules:
    """How much the previous chunk counts.

    ``execution_horizon``: rows of the new chunk up to which it counts at all (lerobot's meaning of
    the word; the paper calls it H - s). ``schedule`` of its weight between the delay and there.
    ``max_guidance_weight``: the largest strength of the pull in a step.
    """

    execution_horizon: int = 10
    schedule: str = 'linear'
    max_guidance_weight: float = 10.0

    def __post_init__(self) -> None:
        if self.execution_horizon < 1:
            raise ValueError(
                f'rtc.execution_horizon must be at least 1, is {self.execution_horizon}'
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f'rtc.schedule must be one of {", ".join(SCHEDULES)}; is {self.schedule!r}'
            )
        if not self.max_guidance_weight > 0:
            raise ValueError(f'rtc.max_guidance_weight must be > 0, is {self.max_guidance_weight}')


@dataclass(frozen=True)
class Continuation:
    """What a query is to go on from.

    ``previous``: normalised actions float64 ``[n, D]``, the rows of the previous chunk that were
    not executed when the new query's images were taken, row 0 being the next one. ``delay``:
    control ticks that will have been executed before the new chunk takes over.
    """

    previous: np.ndarray
    delay: int
    rules: ChunkingRules = ChunkingRules()


def prefix_weights(delay: int, horizon: int, chunk: int, schedule: str) -> np.ndarray:
    """Weight of every row, float64 ``[chunk]``: 1 up to ``delay``, 0 from ``horizon`` on."""
    horizon = min(horizon, chunk)
    delay = min(delay, horizon)
    weights = np.zeros(chunk)
    weights[:delay] = 1.0
    between = horizon - delay
    ramp = np.linspace(1.0, 0.0, between + 2)[1:-1]
    if schedule == 'ones':
        ramp = np.ones(between)
    elif schedule == 'zeros':
        ramp = np.zeros(between)
    elif schedule == 'exp':
        ramp = ramp * np.expm1(ramp) / (math.e - 1)
    weights[delay:horizon] = ramp
    return weights


def guidance_strength(steps: int, largest: float) -> np.ndarray:
    """Strength of the pull in each step, float64 ``[steps]``: min(largest, (1 - tau) / (tau r^2)),
    r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2), tau from 0 (noise) up.
    """
    strength = np.full(steps, largest)
    for step in range(1, steps):
        tau = step / steps
        wanted = (1 - tau) / tau * ((1 - tau) ** 2 + tau**2) / (1 - tau) ** 2
        strength[step] = min(largest, wanted)
    return strength


def guide(
    continuation: Continuation, chunk: int, width: int, steps: int, device: torch.device
) -> Guide:
    """What the sampler takes, on its device. Rows and columns that the previous chunk lacks are
    zero; beyond its end nothing is pulled.
    """
    import torch

    from specprune_ros.models.families.pi0 import Guide

    previous = np.asarray(continuation.previous, np.float64)[:chunk]
    target = np.zeros((chunk, width))
    target[: len(previous), : previous.shape[1]] = previous
    rules = continuation.rules
    horizon = min(rules.execution_horizon, len(previous))
    weights = prefix_weights(continuation.delay, horizon, chunk, rules.schedule)
    strength = guidance_strength(steps, rules.max_guidance_weight)
    return Guide(*(torch.from_numpy(a).float().to(device) for a in (target, weights, strength)))


_REPORTS = 512  # of the executor kept, to look stamps up in
_WINDOW = 10  # chunks whose delays count: an outlier is forgotten after them
_NO_REPORT = 'the executor does not say what it has executed (~/executed)'


@dataclass(frozen=True)
class _Issued:
    """A chunk that was sent off: its observation stamp, and what it does in both units."""

    stamp_ns: int
    episode: int
    instruction: str
    normalised: np.ndarray
    actions: np.ndarray


class ChunkFollower:
    """What a node keeps to let every query go on from the chunk before. Any thread.

    The executor reports how many seconds it has executed, at which time of the node's clock
    (:meth:`executed`), and where it stood when it took a chunk in (:meth:`joined`). Delays and
    what is left of a chunk are counted in that, never from latency: an arm that stands still
    executes nothing. ``reason`` says why the last query started anew, empty where it did not.
    """

    def __init__(self, step_dt: float) -> None:
        self._step = step_dt
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget chunks and delays; the warm-up's are not the next episode's."""
        with self._lock:
            self._stamps: deque[int] = deque(maxlen=_REPORTS)
            self._axis: deque[float] = deque(maxlen=_REPORTS)
            self._delays: deque[float] = deque(maxlen=_WINDOW)
            self._issued: deque[_Issued] = deque(maxlen=_WINDOW)
            self._first = True
            self.reason = 'no chunk before'

    @property
    def delay(self) -> int:
        """Control ticks to allow for: the most of the last few chunks."""
        with self._lock:
            return math.ceil(max(self._delays, default=0.0) - 1e-6)

    def executed(self, stamp_ns: int, seconds: float) -> None:
        """The executor had executed ``seconds`` at ``stamp_ns``."""
        with self._lock:
            again = self._axis and (seconds < self._axis[-1] or stamp_ns < self._stamps[-1])
            if again:  # it was reset, or the clock went back
                self._stamps.clear()
                self._axis.clear()
            if not self._stamps or stamp_ns > self._stamps[-1]:
                self._stamps.append(stamp_ns)
                self._axis.append(seconds)

    def joined(self, stamp_ns: int, seconds: float) -> None:
        """The executor took the chunk of the observation ``stamp_ns`` in when it had executed
        ``seconds``.
        """
        with self._lock:
            known = any(chunk.stamp_ns == stamp_ns for chunk in self._issued)
            begun = self._at(stamp_ns) if known else None
            if begun is None:
                return
            if self._first:  # the warm-up: loading and capturing took their time in it
                self._first = False
                return
            self._delays.append(max(0.0, seconds - begun) / self._step)

    def issued(
        self,
        stamp_ns: int,
        episode: int,
        instruction: str,
        normalised: np.ndarray,
        actions: np.ndarray,
    ) -> None:
        """A chunk was sent off."""
        with self._lock:
            self._issued.append(_Issued(stamp_ns, episode, instruction, normalised, actions))

    def go_on(
        self,
        stamp_ns: int,
        episode: int,
        instruction: str,
        rules: ChunkingRules,
        seen_from_here: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> Continuation | None:
        """What a query on images of ``stamp_ns`` is to go on from, ``None`` for nothing.

        ``seen_from_here`` makes the robot's actions ``[n, D]`` normalised ones relative to the new
        observation, for policies whose actions are offsets to the state.
        """
        delay = self.delay
        with self._lock:
            if not self._issued:
                self.reason = 'no chunk before'
                return None
            last = self._issued[-1]
            if last.episode != episode or last.instruction != instruction:
                self.reason = 'another episode or instruction'
                return None
            begun, now = self._at(last.stamp_ns), self._at(stamp_ns)
            if begun is None or now is None:
                self.reason = _NO_REPORT
                return None
            done = round((now - begun) / self._step)
            left = last.normalised[done:]
            if not len(left):
                self.reason = 'nothing is left of the chunk before'
                return None
            self.reason = ''
            if seen_from_here is not None:
                left = seen_from_here(last.actions[done:])
            return Continuation(left, min(delay, len(left)), rules)

    def _at(self, stamp_ns: int) -> float | None:
        """Seconds executed at a stamp; beyond the newest report that one's, as in a standstill."""
        if not self._stamps:
            return None
        i = bisect.bisect_right(self._stamps, stamp_ns)
        if i == 0:
            return self._axis[0]
        if i == len(self._stamps):
            return self._axis[-1]
        t0, t1 = self._stamps[i - 1], self._stamps[i]
        x0, x1 = self._axis[i - 1], self._axis[i]
        return x0 + (x1 - x0) * (stamp_ns - t0) / (t1 - t0)
