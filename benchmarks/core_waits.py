"""Whether the machine itself held somebody up: how long threads were ready without a core."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

SECOND = 1_000_000_000
PERIOD = 0.02  # s between samples
STEAL = 'steal'  # time the machine's host gave to others, over all cores
TICK = 10_000_000  # ns, unit of /proc/stat (USER_HZ is 100 everywhere Linux runs)


class Waits:
    """Run delay of threads, sampled from ``/proc/PID/task/TID/schedstat``.

    ``threads`` gives (pid, tid) by name and may change. A sample that itself comes late loses
    nothing: the counters are sums.
    """

    def __init__(self, threads: Callable[[], dict[str, tuple[int, int]]]) -> None:
        self._threads = threads
        self._rows: deque[tuple[int, dict[str, tuple[int, int]]]] = deque(maxlen=6000)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sample no more."""
        self._ending.set()
        self._thread.join(5.0)

    def between(self, name: str, begin: int, end: int) -> float:
        """Seconds for which ``name`` waited for a core from ``begin`` to ``end`` (ns, system
        clock), by the samples around them: never too little while it lives, too much by what it
        waited within a sample's distance of either end.
        """
        rows = list(self._rows)
        inside = [i for i, (at, _) in enumerate(rows) if begin <= at <= end]
        first = (inside[0] if inside else len(rows)) - 1
        if not inside:
            first = max((i for i, (at, _) in enumerate(rows) if at <= begin), default=0)
        last = min((i for i, (at, _) in enumerate(rows) if at >= end), default=len(rows) - 1)
        total = 0
        before: tuple[int, int] | None = None
        for _, row in rows[max(first, 0) : last + 1]:
            now = row.get(name)
            if now is None:
                before = None
                continue
            if before is not None and before[0] == now[0]:
                total += now[1] - before[1]
            before = now
        return total / SECOND

    def _run(self) -> None:
        while not self._ending.wait(PERIOD):
            row = {STEAL: (0, _steal())}
            for name, (pid, tid) in self._threads().items():
                waited = run_delay(pid, tid)
                if waited is not None:
                    row[name] = (pid, waited)
            self._rows.append((time.time_ns(), row))


def run_delay(pid: int, tid: int) -> int | None:
    """Nanoseconds a thread has been ready to run without a core; ``None`` where unknown."""
    try:
        return int(Path(f'/proc/{pid}/task/{tid}/schedstat').read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _steal() -> int:
    with open('/proc/stat') as file:
        return int(file.readline().split()[8]) * TICK
