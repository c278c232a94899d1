"""Greedy max-min choice of tokens that differ from each other (DivPrune, VLA-Pruner's filter)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import PruningParams, share
from specprune_ros.pruning.rivals.base import BasePrunePass, keep_count


def cosine_distances(features: Tensor) -> Tensor:
    """``1 - cosine`` of every pair of rows: ``[n, D]`` to float32 ``[n, n]``."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1, eps=1e-6)
    return 1.0 - unit @ unit.T


def max_min(distances: Tensor, count: int, candidates: Tensor | None = None) -> Tensor:
    """``count`` rows, each as far as possible from those before it; int64 ``[count]`` in that
    order.

    The first is the one whose nearest neighbour is farthest. ``distances`` float32 ``[n, n]``;
    ``candidates`` bool ``[n]`` restricts the choice (at least ``count`` of them must be true).
    Max-min diversity, DivPrune (arXiv 2503.02175) section 3. No host synchronisation: ``count``
    rounds of four small kernels.
    """
    count = min(count, distances.shape[0])
    others = distances.clone()
    others.fill_diagonal_(torch.inf)
    barred = None if candidates is None else ~candidates
    if barred is not None:
        others = others.masked_fill(barred, torch.inf)
    nearest = others.amin(1)
    if barred is not None:
        nearest = nearest.masked_fill(barred, -torch.inf)
    chosen = [nearest.argmax().view(1)]
    # Distances to the chosen set; minus infinity where a token cannot be chosen (any more).
    closed = nearest.new_full((1,), -torch.inf)
    far = distances.index_select(0, chosen[0])[0]
    if barred is not None:
        far = far.masked_fill(barred, -torch.inf)
    far = far.scatter(0, chosen[0], closed)
    for _ in range(count - 1):
        following = far.argmax().view(1)
        chosen.append(following)
        far = torch.minimum(far, distances.index_select(0, following)[0])
        far = far.scatter(0, following, closed)
    return torch.cat(chosen)


@dataclass(frozen=True)
class DivPruneParams:
    """Parameters of DivPrune."""

    divprune_keep: float = share(
        0.098, 'Share of the vision tokens DivPrune keeps.', 'DivPrune: 9.8 %'
    )


class DivPrune:
    """Max-min diversity over cosine distances of the projected vision tokens."""

    name = 'divprune'
    parameters = DivPruneParams
    pure = True

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """One prune before layer 1."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        return PruneSchedule(prune={0: keep_count(params.divprune_keep, layout.vision_tokens)})

    def begin(self, context: QueryContext) -> DivPrunePass:
        """Start a pass."""
        return DivPrunePass(context, self.plan(context.layout, context.params, context.mode))


class DivPrunePass(BasePrunePass):
    """One query of :class:`DivPrune`."""

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """The diverse subset; before layer 1 the rows are the projected tokens themselves."""
        order = max_min(cosine_distances(rows), self.schedule.prune[boundary])
        return Selection(order.sort().values)
