"""When the next query is due."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specprune_ros.nodes.common.rates import Percentiles

LONGEST_WAIT = 0.05  # s that waiting for an image counts as part of a query's reaction


@dataclass(frozen=True)
class QuerySchedule:
    """What the user wants: at least ``period`` seconds between two queries, waiting up to
    ``newer_for`` seconds for a newer image than the newest one; ``by_chunk``: and no sooner
    than the chunk before is played.
    """

    period: float
    newer_for: float
    by_chunk: bool = False


class QueryScheduler:
    """A query once per chunk: so late that the next chunk is there just as the motion of the one
    before ends.

    Times are seconds of the node's clock. When the motion ends is derived from what this package's
    executor does (``robot/timeline.py``): of a chunk it leaves out what it has executed since the
    chunk's images were taken, and from a standstill nothing.
    """

    def __init__(self) -> None:
        self._reaction = Percentiles(64)  # s from when a query was due until its chunk was there
        self.reset()

    def reset(self) -> None:
        """Nothing moves: a query is due at once."""
        self._due = self._end = self._delivered = -math.inf

    def early(self, now: float) -> float:
        """Seconds until a query is due; none or less: it is."""
        if now < self._delivered:  # the clock went back
            self.reset()
        reaction = self._reaction.at(95)[0]
        self._due = self._end - (0.0 if math.isnan(reaction) else reaction)
        return self._due - now

    def delivered(self, observed: float, now: float, seconds: float) -> None:
        """A chunk of so many seconds, made of images of the time ``observed``, is there."""
        since = observed if self._due == -math.inf else max(self._due, observed - LONGEST_WAIT)
        # Never so long that chunks are replaced before half of them is played.
        self._reaction.append(min(max(now - since, 0.0), seconds / 2))
        executed = max(min(self._end, now) - observed, 0.0)
        self._end, self._delivered = now + max(seconds - executed, 0.0), now
