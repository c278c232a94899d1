"""Rates and latencies over a sliding window."""

from __future__ import annotations

from collections import deque

import numpy as np


class RateMeter(deque[float]):
    """Events per second over the last ``window`` seconds; append the time of each (s, monotonic).
    Not thread-safe by itself.
    """

    def __init__(self, window: float = 5.0) -> None:
        super().__init__(maxlen=4096)
        self._window = window

    def rate(self, now: float) -> float:
        """Events per second; 0 where fewer than two lie in the window."""
        while self and self[0] < now - self._window:
            self.popleft()
        if len(self) < 2:
            return 0.0
        return (len(self) - 1) / max(self[-1] - self[0], 1e-9)


class Percentiles(deque[float]):
    """Percentiles of the last ``size`` values; append each."""

    def __init__(self, size: int = 256) -> None:
        super().__init__(maxlen=size)

    def at(self, *percents: float) -> list[float]:
        """The values at these percentages; NaN while there are none."""
        values = tuple(self)
        if not values:
            return [float('nan')] * len(percents)
        return [float(v) for v in np.percentile(values, percents)]
