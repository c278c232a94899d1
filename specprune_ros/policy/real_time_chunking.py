"""Real-time chunking: a chunk that goes on where the one before will be when it takes over.

While a query runs, the arm plays the first ``delay`` rows that the new chunk has for the same
time; they cannot be changed any more. The sampler is therefore pulled, in every step, towards
the previous chunk's rows: fully over the delay, less and less up to ``execution_horizon``, not at
all behind it (arXiv 2506.07339; without the Jacobian of the model, as lerobot runs it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
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
    previous = np.asarray(continuation.previous, np.float64)[:chunk]
    target = np.zeros((chunk, width))
    target[: len(previous), : previous.shape[1]] = previous
    rules = continuation.rules
    horizon = min(rules.execution_horizon, len(previous))
    weights = prefix_weights(continuation.delay, horizon, chunk, rules.schedule)
    strength = guidance_strength(steps, rules.max_guidance_weight)
    return Guide(*(torch.from_numpy(a).float().to(device) for a in (target, weights, strength)))
