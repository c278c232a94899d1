"""A pass that stops at every boundary and drops nothing: the check that pruning is exact."""

from __future__ import annotations

import torch
from torch import Tensor

from specprune_ros.pruning.interface import (
    PassOutcome,
    PruneSchedule,
    RowGroup,
    Selection,
    TokenLayout,
)


class KeepAll:
    """Its result must equal the dense pass bit for bit."""

    def __init__(self, layout: TokenLayout) -> None:
        v = layout.vision_tokens
        self.schedule = PruneSchedule(prune=dict.fromkeys(range(layout.depth), v))

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Nothing is listened to."""

    def select(self, boundary: int, rows: Tensor) -> Selection:
        """Every row."""
        return Selection(torch.arange(rows.shape[0], device=rows.device))

    def finish(self) -> PassOutcome:
        """Nothing to report."""
        return PassOutcome()
