"""FastV (ECCV 2024, arXiv 2403.06764): keep the most attended tokens, once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import ROWS, PruningParams, param, share
from specprune_ros.pruning.rivals.base import BasePrunePass, at_boundary, keep_count, keep_top
from specprune_ros.pruning.scores import image_to_text
from specprune_ros.pruning.specprune import rows_or_action


@dataclass(frozen=True)
class FastVParams:
    """Parameters of FastV."""

    fastv_layer: int = param(
        2,
        'K: FastV drops after this layer.',
        'FastV: 2',
        unit='layer of 32',
        low=1,
        high=31,
    )
    fastv_ratio: float = share(0.5, 'R: share of the vision tokens FastV drops.', 'FastV: 50 %')
    fastv_rows: str = param(
        'all',
        'Rows whose attention FastV averages.',
        'FastV paper: all; its code: last',
        choices=ROWS,
    )


class FastV:
    """FastV (ECCV 2024, arXiv 2403.06764): after layer K drop the R least attended tokens.

    Attention received is averaged over the query rows (the paper; the released code takes the last
    row only: ``fastv_rows = last``).
    """

    name = 'fastv'
    parameters = FastVParams
    pure = True

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Observe at layer K, prune behind it."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        boundary = at_boundary(params.fastv_layer, layout, 'fastv_layer')
        kept = keep_count(1 - params.fastv_ratio, layout.vision_tokens)
        group = rows_or_action(layout, params.fastv_rows, [])
        return PruneSchedule({boundary: (group,)}, {boundary: kept})

    def begin(self, context: QueryContext) -> RankPass:
        """Start a pass."""
        return RankPass(context, self.plan(context.layout, context.params, context.mode))


class RankPass(BasePrunePass):
    """Keeps the tokens that the observed rows attend to most."""

    score: Tensor | None = None

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Score the current tokens."""
        self.score = image_to_text(attention)
        self.outcome.scores['attention'] = self.spread(self.score)

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """The best of the scheduled number."""
        assert self.score is not None
        return Selection(keep_top(self.score, self.schedule.prune[boundary]))
