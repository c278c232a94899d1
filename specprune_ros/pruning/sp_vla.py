"""SP-VLA (ICLR 2026, arXiv 2506.12723), its token part: edges and meaning, less when slow.

Spatial tokens lie on contours (Canny), semantic ones draw attention above a threshold that
relaxes when the hand moves slowly. The other half, the scheduler, is in ``ridge``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specprune_ros.pruning.baselines import KeepingPass, at_boundary
from specprune_ros.pruning.edges import edge_share
from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.scores import image_to_text
from specprune_ros.pruning.specprune import rows_or_action


def threshold(speed: float | None, params: PruningParams) -> float:
    """Attention share of the best token below which a token is not semantic.

    Full at ``sp_vla_speed`` m/s and above, a quarter of it at rest or where the speed is unknown.
    """
    share = 0.25
    if speed is not None and params.sp_vla_speed > 0:
        share = min(1.0, max(0.25, speed / params.sp_vla_speed))
    return params.sp_vla_threshold * share


class SPVLA:
    """Spatial and semantic tokens. Shapes depend on the data."""

    name = 'sp_vla'

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Listen to the text at one layer, prune behind it."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        boundary = max(1, at_boundary(params.sp_vla_layer, layout, 'sp_vla_layer'))
        group = rows_or_action(layout, 'text', [])
        return PruneSchedule({boundary: (group,)}, {boundary: None})

    def begin(self, context: QueryContext) -> SPVLAPass:
        """Start a pass."""
        return SPVLAPass(context, self.plan(context.layout, context.params, context.mode))


class SPVLAPass(KeepingPass):
    """One query of :class:`SPVLA`."""

    score: Tensor | None = None

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Attention of the text."""
        self.score = image_to_text(attention)
        self.outcome.scores['attention'] = self.score

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """Contours, and whatever draws enough attention; the best token always."""
        params, pictures = self.params, self.context.pictures
        assert self.score is not None
        limit = threshold(self.context.speed_xyz, params)
        keep = self.score >= limit * self.score.max()
        self.outcome.sets['semantic'] = keep
        if pictures is None:
            self.outcome.notes.append('sp_vla: no pictures, so no spatial tokens')
        else:
            share = edge_share(
                pictures.to(rows.device), self.layout.grid, params.sp_vla_low, params.sp_vla_high
            )
            spatial = share >= params.sp_vla_edges
            self.outcome.sets['spatial'] = spatial
            keep = keep | spatial
        return Selection(torch.nonzero(keep).squeeze(1))
