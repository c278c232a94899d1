"""Log lines on what others send: quoted, shortened, not more often than a person can read."""

from __future__ import annotations

import math
import time
from typing import Any

from specprune_ros.bounded_files import one_line

SAME, OTHER = 5.0, 1.0  # s between two lines of one source: the same text, and another one
MOST_SOURCES = 100


class Throttle:
    """One line per source and second at most; how many were left out is said with the next.

    Whoever floods a node with a thousand different faults a second then fills no disk.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._last: dict[str, tuple[str, float, int]] = {}

    # A logger remembers the severity of a calling line: each has a line of its own.

    def warning(self, source: str, reason: str, other: float = OTHER) -> bool:
        """Log a warning, another text of the same source after ``other`` seconds at the earliest.
        Returns whether it was not left out.
        """
        text = self._due(source, reason, other)
        if text:
            self._logger.warning(text)
        return bool(text)

    def info(self, source: str, text: str, other: float = OTHER) -> None:
        """Log what happened."""
        if text := self._due(source, text, other):
            self._logger.info(text)

    def _due(self, source: str, reason: str, other: float) -> str:
        last, at, more = self._last.get(source, ('', -math.inf, 0))
        now = time.monotonic()
        if now - at < (SAME if reason == last else other):
            self._last[source] = (last, at, more + 1)
            return ''
        if len(self._last) >= MOST_SOURCES:
            self._last.clear()
        self._last[source] = (reason, now, 0)
        left_out = f' ({more} left out)' if more else ''
        return f'{one_line(source)}: {one_line(reason)}{left_out}'
