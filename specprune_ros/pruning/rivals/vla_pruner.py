"""VLA-Pruner (arXiv 2511.16449): what the words look at now, what the actions attended to before.

Per camera the r best by attention of the rows before the actions, joined with the r best by
action attention of the past queries; of the union the r most different by embedding stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specprune_ros.pruning.budget import scale_layer
from specprune_ros.pruning.interface import (
    Mode,
    PassOutcome,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import PruningParams, param, share
from specprune_ros.pruning.rivals.base import BasePrunePass, at_boundary, keep_count
from specprune_ros.pruning.rivals.divprune import cosine_distances, max_min
from specprune_ros.pruning.scores import ranks


def smoothed(history: Tensor, decay: float) -> Tensor:
    """Decay-weighted mean of past action attention: ``[w, V]``, newest last, to ``[V]``."""
    age = torch.arange(history.shape[0] - 1, -1, -1, device=history.device)
    weights = decay**age
    return (weights.float() @ history) / weights.sum()


@dataclass(frozen=True)
class VLAPrunerParams:
    """Parameters of VLAPruner."""

    vla_pruner_layer: int = param(
        3,
        'Layer after which VLA-Pruner drops.',
        'VLA-Pruner: 3',
        unit='layer of 32',
        low=1,
        high=31,
    )
    vla_pruner_keep: float = share(
        0.5, 'Share of the vision tokens VLA-Pruner keeps.', 'VLA-Pruner: 50, 25 or 12.5 %'
    )
    vla_pruner_action_layer: int = param(
        16,
        'Layer whose action attention is remembered.',
        'VLA-Pruner code: 15 counted from 0',
        unit='layer of 32',
        low=1,
        high=32,
    )
    vla_pruner_window: int = param(
        3,
        'Queries of action attention remembered; dense until they are.',
        'VLA-Pruner: 3',
        unit='queries',
        low=1,
        high=100,
    )
    vla_pruner_decay: float = share(
        0.8, 'Weight of each older query over the newer.', 'VLA-Pruner: 0.8'
    )


class VLAPruner:
    """Dual-level token choice; dense until enough queries have been seen."""

    name = 'vla_pruner'
    parameters = VLAPrunerParams
    pure = True

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Observe all rows at the pruning layer, to the action rows in the middle."""
        middle = scale_layer(params.vla_pruner_action_layer, layout.depth)
        observe: dict[int, tuple[RowGroup, ...]] = {middle: (RowGroup.ACTION,)}
        if mode is Mode.DENSE:
            return PruneSchedule(observe)
        boundary = max(1, at_boundary(params.vla_pruner_layer, layout, 'vla_pruner_layer'))
        observe[boundary] = (*observe.get(boundary, ()), RowGroup.ALL)
        kept = layout.cameras * keep_count(params.vla_pruner_keep, layout.patches)
        return PruneSchedule(dict(sorted(observe.items())), {boundary: kept})

    def begin(self, context: QueryContext) -> VLAPrunerPass:
        """Start a pass; dense until the window of past attention is full."""
        history = context.carry.get('history')
        mode, why = context.mode, ''
        window = context.params.vla_pruner_window
        if mode is not Mode.DENSE and (history is None or history.shape[0] < window):
            mode, why = Mode.DENSE, f'vla_pruner: fewer than {window} past queries'
        return VLAPrunerPass(context, self.plan(context.layout, context.params, mode), why)


class VLAPrunerPass(BasePrunePass):
    """One query of :class:`VLAPruner`. Carries ``history``, float32 ``[window, V]``."""

    def __init__(self, context: QueryContext, schedule: PruneSchedule, dense_because: str) -> None:
        super().__init__(context, schedule)
        self.outcome.dense_because = dense_because
        self.score: Tensor | None = None
        self.action: Tensor | None = None

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Prefill attention at one layer, action attention at another."""
        if group is RowGroup.ALL:
            # All rows are there: this layer comes before the only prune.
            self.score = attention[: self.layout.action[0]].mean(0)
            self.outcome.scores['attention'] = self.score
        else:
            self.action = self.spread(attention.mean(0), layer)
            self.outcome.scores['action'] = self.action

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """Combine, then filter, per camera."""
        layout = self.layout
        vision = self.context.vision
        assert self.score is not None and vision is not None
        count = keep_count(self.params.vla_pruner_keep, layout.patches)
        past = smoothed(self.context.carry['history'], self.params.vla_pruner_decay)
        grid = (layout.cameras, layout.patches)
        semantic = ranks(self.score.view(grid)) < count
        acting = ranks(past.view(grid)) < count
        self.outcome.sets['local'] = semantic.view(-1)
        self.outcome.sets['global'] = acting.view(-1)
        kept = []
        for camera in range(layout.cameras):
            first = camera * layout.patches
            features = vision[first : first + layout.patches]
            union = semantic[camera] | acting[camera]
            kept.append(max_min(cosine_distances(features), count, union) + first)
        return Selection(torch.cat(kept).sort().values)

    def finish(self) -> PassOutcome:
        """Close the pass; the window moves on by one."""
        assert self.action is not None
        history = self.context.carry.get('history')
        newest = self.action[None]
        joined = newest if history is None else torch.cat([history, newest])
        self.outcome.carry['history'] = joined[-self.params.vla_pruner_window :]
        return self.outcome
