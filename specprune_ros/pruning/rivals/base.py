"""What the other methods build on, and the two passes that drop nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from specprune_ros.pruning.budget import ceil_count, scale_layer
from specprune_ros.pruning.interface import (
    Mode,
    PassOutcome,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
    ids_in,
)
from specprune_ros.pruning.params import ParamError, PruningParams


class BasePrunePass:
    """A pass that prunes nothing and observes nothing; others build on it."""

    def __init__(self, context: QueryContext, schedule: PruneSchedule) -> None:
        self.context = context
        self.layout = context.layout
        self.params = context.params
        self.schedule = schedule
        self.ids: Tensor | None = None  # patch ids of the current rows, -1 for merged ones
        self.outcome = PassOutcome()

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Nothing to remember."""

    def select(self, boundary: int, rows: Tensor) -> Selection:
        """Keep what :meth:`choose` answers, and note which patches those are."""
        selection = self.choose(boundary, rows)
        self.ids = self.ids_after(selection)
        self.outcome.kept.append((boundary, self.ids))
        return selection

    def ids_after(self, selection: Selection) -> Tensor:
        """Patch ids int64 ``[n]`` of the rows that a selection leaves, -1 for merged ones."""
        ids = selection.keep if self.ids is None else self.ids[selection.keep]
        if selection.merge is not None:
            ids = torch.cat([ids, ids.new_full((selection.merge.shape[0],), -1)])
        return ids

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """What stays; here everything."""
        return Selection(torch.arange(rows.shape[0], device=rows.device))

    def finish(self) -> PassOutcome:
        """Close the pass."""
        return self.outcome

    def spread(self, score: Tensor, layer: int | None = None) -> Tensor:
        """Scores of the current patches (or of those ``layer`` had) at their places ``[V]``, zero
        where a token is gone.
        """
        ids = self.ids if layer is None else ids_in(layer, self.outcome)
        if ids is None:
            return score
        return score.new_zeros(self.layout.vision_tokens).scatter_(0, ids, score)


def at_boundary(layer: int, layout: TokenLayout, name: str) -> int:
    """Boundary of this model for one written for 32 layers (0 stays 0); ParamError at the end."""
    boundary = scale_layer(layer, layout.depth) if layer else 0
    if boundary >= layout.depth:
        raise ParamError(
            name, f'layer {layer} of 32 is the last of the {layout.depth} of this model'
        )
    return boundary


def keep_count(share: float, total: int) -> int:
    """Tokens that stay of ``total``: the share rounded up, at least one."""
    return min(total, max(1, ceil_count(share * total)))


def keep_top(score: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` highest scores, ascending; of equals the earlier."""
    order = torch.sort(score, descending=True, stable=True).indices
    return order[:count].sort().values


class Dense:
    """No pruning at all."""

    name = 'dense'
    pure = True

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """An empty schedule."""
        return PruneSchedule()

    def begin(self, context: QueryContext) -> BasePrunePass:
        """Start a pass that keeps everything."""
        running = BasePrunePass(context, PruneSchedule())
        if context.mode is not Mode.DENSE:
            running.outcome.dense_because = 'pruner dense prunes nothing'
        return running


class KeepAll:
    """Its result must equal the dense pass bit for bit."""

    def __init__(self, layout: TokenLayout) -> None:
        v = layout.vision_tokens
        self.schedule = PruneSchedule(prune=dict.fromkeys(range(layout.depth), v))

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Nothing is observed."""

    def select(self, boundary: int, rows: Tensor) -> Selection:
        """Every row."""
        return Selection(torch.arange(rows.shape[0], device=rows.device))

    def finish(self) -> PassOutcome:
        """Nothing to report."""
        return PassOutcome()
