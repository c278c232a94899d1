"""How fast a simulated clock runs, where control periods are of real time."""

from __future__ import annotations

from collections import deque

WINDOW_NS = 1_000_000_000  # of real time
LEAST_NS = 200_000_000  # of real time before which nothing is known
FASTEST = 4.0  # times real time; more is a jump
STEP_NS = 100_000_000  # by which one message on /clock may take it on


class ClockRate:
    """Seconds of the clock per real second, over the last second of :meth:`tick`."""

    def __init__(self) -> None:
        self._ticks: deque[tuple[int, int]] = deque()

    def tick(self, now_ns: int, real_ns: int) -> float:
        """The rate at this control period, 0 to ``FASTEST``; 1 until it is known, and again after
        the clock jumped. ``real_ns`` is a steady clock.
        """
        ticks = self._ticks
        if ticks:
            passed, real = now_ns - ticks[-1][0], real_ns - ticks[-1][1]
            if not 0 <= passed <= FASTEST * real + STEP_NS:
                ticks.clear()
        ticks.append((now_ns, real_ns))
        while len(ticks) > 2 and real_ns - ticks[1][1] >= WINDOW_NS:
            ticks.popleft()
        real = real_ns - ticks[0][1]
        if real < LEAST_NS:
            return 1.0
        return min((now_ns - ticks[0][0]) / real, FASTEST)
