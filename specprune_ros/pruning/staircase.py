"""What rows cost on a device, measured: a staircase, not a ramp.

A pass takes as long as reading the weights takes, however few rows there are; above that, GEMM
kernels cut the rows into tiles (605 rows cost what 640 do, with tiles of 128). So some tokens are
free: dropping them saves no time. Which ones is measured (``specprune_ros.policy.calibration``).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

# What costs this share more still counts as costing nothing: the noise of a median of replays is
# about half a per cent, and inside a tile attention and norms go on growing a little with the
# rows. It is also the most that the decoder can lose by keeping free tokens.
FREE = 0.02


@dataclass(frozen=True)
class Staircase:
    """``rows`` of a whole sequence, ascending, and the time ``ms`` of the decoder over each.

    Raises ``ValueError`` unless there is one positive, finite time for each of at least one number
    of rows.
    """

    rows: tuple[int, ...]
    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        rows, ms = self.rows, self.ms
        if not rows or len(rows) != len(ms):
            raise ValueError(f'{len(ms)} times for {len(rows)} numbers of rows')
        if rows[0] < 1 or any(b <= a for a, b in zip(rows, rows[1:], strict=False)):
            raise ValueError(f'rows must be positive and ascend, are {list(rows)}')
        if not all(math.isfinite(time) and time > 0 for time in ms):
            raise ValueError(f'times must be positive, are {list(ms)}')

    def free(self, rows: int) -> int:
        """The most rows measured to cost no more than ``rows`` do; never fewer than ``rows``.

        A count costs what the cheapest of those not below it costs (a slower one in between is
        noise or a bad kernel, and there is a way around it), so the curve never falls. Between two
        measured counts the lower one's cost is all that is certain: more is free only where it
        costs no more than that. Below the least and above the most measured nothing is claimed.
        The answer never falls when ``rows`` rises.
        """
        place = bisect_right(self.rows, rows) - 1
        if place < 0:
            return rows
        limit = (1 + FREE) * min(self.ms[place:])
        last = max(i for i in range(place, len(self.ms)) if self.ms[i] <= limit)
        return max(rows, self.rows[last])
