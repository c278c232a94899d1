"""TEAM-VLA (RA-L, arXiv 2512.09927): expand sparse matches early, merge in the middle.

Before layer 1 each word marks its most similar patch per camera; where marks are dense the mask
grows, and a regular sample of the rest gives context. In the middle the tokens that the actions
attend to least are averaged into the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specprune_ros.pruning.budget import ceil_count, scale_layer
from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import REFERENCE_GRID, ParamError, PruningParams, param, share
from specprune_ros.pruning.rivals.base import BasePrunePass
from specprune_ros.pruning.scores import image_to_text, positions
from specprune_ros.pruning.specprune import rows_or_action


def matched(vision: Tensor, text: Tensor, cameras: int) -> Tensor:
    """Mask ``[cameras, patches]``: for every word the patch of highest cosine in each camera."""
    words = F.normalize(text.float(), dim=-1)
    patches = F.normalize(vision.float(), dim=-1).view(cameras, -1, vision.shape[-1])
    best = (patches @ words.T).argmax(1)
    return torch.zeros(patches.shape[:2], dtype=torch.bool, device=vision.device).scatter(
        1, best, True
    )


def expanded(mask: Tensor, grid: tuple[int, int], kernel: int, density: float) -> Tensor:
    """The mask grown where at least ``density`` of a ``kernel`` x ``kernel`` window is marked.

    ``[cameras, patches]`` to the same; marks themselves stay. ``kernel`` is odd.
    """
    field = mask.float().view(-1, 1, *grid)
    window = field.new_ones(1, 1, kernel, kernel) / kernel**2
    filled = F.conv2d(field, window, padding=kernel // 2).view_as(mask)
    return mask | (filled >= density - 1e-6)


def bipartite_merge(rows: Tensor, anchors: Tensor) -> Tensor:
    """Weights ``[anchors, n]``: each other row joins its most similar anchor, in equal parts."""
    unit = F.normalize(rows.float(), dim=-1)
    home = (unit @ unit[anchors].T).argmax(-1)
    numbers = positions(anchors.shape[0], rows.device)
    home = home.scatter(0, anchors, numbers)
    weights = (home == numbers[:, None]).float()
    return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class TeamVLAParams:
    """Parameters of TeamVLA."""

    team_vla_kernel: int = param(
        3,
        'Odd width of the window that finds dense marks.',
        'ours; not found',
        unit='patches',
        low=1,
        high=15,
    )
    team_vla_density: float = share(
        0.2, 'Marked share of the window from which a patch is added.', 'ours; not found'
    )
    team_vla_sample: int = param(
        8,
        'Every n-th patch is kept as context.',
        'ours; not found',
        unit='patches',
        low=1,
        high=256,
    )
    team_vla_layer: int = param(
        16,
        'Layer after which TEAM-VLA merges.',
        'ours; the paper: in the middle',
        unit='layer of 32',
        low=1,
        high=31,
    )
    team_vla_anchors: int = param(
        80,
        'Tokens left after merging, both cameras.',
        'TEAM-VLA: about 80',
        unit='tokens of 512',
        low=1,
        high=512,
    )

    @staticmethod
    def check_together(params: PruningParams) -> None:
        """Raise :class:`ParamError` where values contradict each other."""
        if params.team_vla_kernel % 2 == 0:
            raise ParamError('team_vla_kernel', f'must be odd, got {params.team_vla_kernel}')


class TeamVLA:
    """Token expand and merge. The first size depends on the data."""

    name = 'team_vla'
    parameters = TeamVLAParams

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Expand before layer 1, merge in the middle."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        middle = scale_layer(params.team_vla_layer, layout.depth)
        if middle >= layout.depth:
            raise ParamError('team_vla_layer', f'the model has only {layout.depth} layers')
        group = rows_or_action(layout, RowGroup.ACTION, [])
        return PruneSchedule({middle: (group,)}, {0: None, middle: None})

    def begin(self, context: QueryContext) -> TeamVLAPass:
        """Start a pass."""
        return TeamVLAPass(context, self.plan(context.layout, context.params, context.mode))


class TeamVLAPass(BasePrunePass):
    """One query of :class:`TeamVLA`."""

    score: Tensor | None = None

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Attention of the action rows, or of what stands in for them."""
        self.score = image_to_text(attention)

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """Expand at the first boundary, merge at the second."""
        return self._merge(rows) if boundary else self._expand(rows)

    def _expand(self, rows: Tensor) -> Selection:
        layout, params, text = self.layout, self.params, self.context.text
        every = torch.zeros(layout.vision_tokens, dtype=torch.bool, device=rows.device)
        every[:: params.team_vla_sample] = True
        self.outcome.sets['context'] = every
        keep = every
        if text is None or not text.shape[0]:
            self.outcome.notes.append('team_vla: no words to match, only the sample stays')
        else:
            marks = matched(rows, text, layout.cameras)
            grown = expanded(marks, layout.grid, params.team_vla_kernel, params.team_vla_density)
            self.outcome.sets['matched'] = grown.view(-1)
            keep = keep | grown.view(-1)
        return Selection(keep.nonzero().squeeze(1))

    def _merge(self, rows: Tensor) -> Selection:
        layout, current = self.layout, rows.shape[0]
        scale = layout.vision_tokens / (2 * REFERENCE_GRID)
        anchors = max(1, ceil_count(self.params.team_vla_anchors * scale))
        if anchors >= current:
            return Selection(torch.arange(current, device=rows.device))
        assert self.score is not None
        order = torch.sort(self.score, descending=True, stable=True).indices
        chosen = order[:anchors].sort().values
        nothing = chosen[:0]
        return Selection(nothing, bipartite_merge(rows, chosen), chosen)
