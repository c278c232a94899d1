"""Statistics of success counts: intervals, and comparisons of the same episodes played twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest


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
    first's success rate less the second's, with its 95 % interval ``low`` to ``high`` (Newcombe
    1998, paired data, method 10: Wilson's limits, and how the two go together). ``p`` is
    McNemar's exact two-sided test.
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
    both = sum(a and b for a, b in zip(first, second, strict=True))
    return paired(len(first), both, sum(first) - both, sum(second) - both)


def paired(episodes: int, both: int, gained: int, lost: int) -> Paired:
    """The comparison from counts: of ``episodes``, ``both`` were solved by both."""
    neither = episodes - both - gained - lost
    ones, twos = both + gained, both + lost
    first, second = ones / episodes, twos / episodes
    (low1, high1), (low2, high2) = wilson(ones, episodes), wilson(twos, episodes)
    together = both * neither - gained * lost
    if together > 0:
        together = max(0.0, together - episodes / 2)  # continuity
    rows = ones * (episodes - ones) * twos * (episodes - twos)
    phi = together / math.sqrt(rows) if rows else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    difference = first - second
    low = difference - reach(first - low1, high2 - second)
    high = difference + reach(high1 - first, second - low2)
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Paired(episodes, gained, lost, difference, low, high, p)
