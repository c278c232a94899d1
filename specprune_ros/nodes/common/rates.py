"""Rates and latencies over a sliding window."""

from __future__ import annotations

from collections import deque

import numpy as np


class RateMeter:
    """Events per second over the last ``window`` seconds. Not thread-safe by itself."""

    def __init__(self, window: float = 5.0) -> None:
        self._window = window
        self._times: deque[float] = deque(maxlen=4096)

    def tick(self, now: float) -> None:
        """Count an event at time ``now`` (seconds, monotonic)."""
        self._times.append(now)

    def rate(self, now: float) -> float:
        """Events per second; 0 where fewer than two lie in the window."""
        while self._times and self._times[0] < now - self._window:
            self._times.popleft()
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-9)


class Percentiles:
    """Percentiles of the last ``size`` values."""

    def __init__(self, size: int = 256) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """Record a value."""
        self._values.append(value)

    def at(self, *percents: float) -> list[float]:
        """The values at these percentages; NaN while there are none."""
        values = tuple(self._values)
        if not values:
            return [float('nan')] * len(percents)
        return [float(v) for v in np.percentile(values, percents)]
