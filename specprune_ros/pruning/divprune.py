"""DivPrune (CVPR 2025, arXiv 2503.02175): keep a diverse subset, before the language model."""

from __future__ import annotations

from torch import Tensor

from specprune_ros.pruning.baselines import KeepingPass, keep_count
from specprune_ros.pruning.diversity import cosine_distances, max_min
from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import PruningParams


class DivPrune:
    """Max-min diversity over cosine distances of the projected vision tokens."""

    name = 'divprune'
    pure = True

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """One prune before layer 1."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        return PruneSchedule(prune={0: keep_count(params.divprune_keep, layout.vision_tokens)})

    def begin(self, context: QueryContext) -> DivPrunePass:
        """Start a pass."""
        return DivPrunePass(context, self.plan(context.layout, context.params, context.mode))


class DivPrunePass(KeepingPass):
    """One query of :class:`DivPrune`."""

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """The diverse subset; before layer 1 the rows are the projected tokens themselves."""
        order = max_min(cosine_distances(rows), self.schedule.prune[boundary])
        return Selection(order.sort().values)
