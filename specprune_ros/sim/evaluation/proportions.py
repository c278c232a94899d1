"""Statistics of success counts: intervals, and comparisons of the same episodes played twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

Z95 = 1.959964  # two-sided 95 % of a normal distribution


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval. Raises ``ValueError`` unless 0 <= successes <= trials."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f'successes: {successes} of {trials}, want 0..trials and trials > 0')
    found = binomtest(successes, trials).proportion_ci(0.95, method='wilson')
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Paired:
    """Two policies on the same episodes.

    ``gained`` episodes only the first solved, ``lost`` only the second. ``difference`` is the
    first's success rate less the second's, with its 95 % interval ``low`` to ``high`` (normal
    approximation for paired shares). ``p`` is McNemar's exact two-sided test.
    """

    episodes: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float


def compare(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare successes of the same episodes in the same order.

    Raises ``ValueError`` for lists of different lengths or without episodes.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f'{len(first)} and {len(second)} episodes: want the same, and some')
    gained = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    count, differing = len(first), gained + lost
    difference = (gained - lost) / count
    spread = Z95 * math.sqrt(max(0.0, differing - (gained - lost) ** 2 / count)) / count
    p = float(binomtest(gained, differing).pvalue) if differing else 1.0
    return Paired(count, gained, lost, difference, difference - spread, difference + spread, p)
