"""EfficientVLA (NeurIPS 2025, arXiv 2506.10100): fewer layers and a small mixed set of tokens.

Its third part caches features of a diffusion head and does not apply to single-pass heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specprune_ros.pruning.budget import ceil_count, floor_count, scale_layer
from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import (
    REFERENCE_DEPTH,
    REFERENCE_GRID,
    ParamError,
    PruningParams,
    layers,
    param,
    share,
)
from specprune_ros.pruning.rivals.base import BasePrunePass, at_boundary
from specprune_ros.pruning.scores import image_to_text
from specprune_ros.pruning.specprune import rows_or_action


def layer_importance(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Importance of a layer, 1 - mean cosine of its input and output rows (eq. 1), a scalar.

    ``[rows, D]`` each, over calibration data; the lowest are the ones to skip.
    """
    return 1.0 - torch.nn.functional.cosine_similarity(inputs.float(), outputs.float()).mean()


def mixed_choice(score: Tensor, rows: Tensor, total: int, key: int, task: float) -> Tensor:
    """``total`` tokens of one camera, a mask ``[n]`` (section 3.2).

    ``key`` tokens of the highest score; of the remaining places the share ``task`` by score and
    the rest by dissimilarity (lowest cosine to the nearest key token). ``rows`` ``[n, D]``.
    """
    order = torch.sort(score, descending=True, stable=True).indices
    by_score = key + floor_count(task * (total - key))
    unit = torch.nn.functional.normalize(rows.float(), dim=-1)
    alike = (unit @ unit[order[:key]].T).amax(-1)
    # Tokens already chosen go last in the order of dissimilarity.
    alike = alike.scatter(0, order[:by_score], torch.inf)
    diverse = torch.sort(alike, stable=True).indices[: total - by_score]
    mask = torch.zeros_like(score, dtype=torch.bool)
    return mask.scatter(0, torch.cat([order[:by_score], diverse]), True)


@dataclass(frozen=True)
class EfficientVLAParams:
    """Parameters of EfficientVLA."""

    efficientvla_layer: int = param(
        2,
        'Layer whose attention chooses tokens.',
        'ours; the paper says one layer',
        unit='layer of 32',
        low=1,
        high=31,
    )
    efficientvla_skip: tuple[int, ...] = layers(
        (4, 5, 6, 7),
        'Layers left out.',
        'a calibration on OFT found these most redundant; 28 layers as in P1',
    )
    efficientvla_keep: int = param(
        56,
        'Tokens kept per camera.',
        'EfficientVLA: 56',
        unit='tokens of 256',
        low=1,
        high=REFERENCE_GRID,
    )
    efficientvla_key: int = param(
        6,
        'Key tokens per camera that come first.',
        'EfficientVLA: a few (4 to 8)',
        unit='tokens of 256',
        low=1,
        high=REFERENCE_GRID,
    )
    efficientvla_task: float = share(
        0.5, 'Share of the remaining places filled by relevance, the rest by diversity.', 'ours'
    )

    @staticmethod
    def check_together(params: PruningParams) -> None:
        """Raise :class:`ParamError` where values contradict each other."""
        if params.efficientvla_key > params.efficientvla_keep:
            raise ParamError(
                'efficientvla_key',
                f'{params.efficientvla_key} is above efficientvla_keep = '
                f'{params.efficientvla_keep}',
            )


class EfficientVLA:
    """Layer skip and task-aware, diverse token choice."""

    name = 'efficientvla'
    parameters = EfficientVLAParams
    pure = True

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Skip the named layers; one prune to a fixed number per camera."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        boundary = max(1, at_boundary(params.efficientvla_layer, layout, 'efficientvla_layer'))
        group = rows_or_action(layout, 'text', [])
        skip = skipped_layers(params.efficientvla_skip, layout.depth) - {boundary}
        if boundary >= max(set(range(1, layout.depth + 1)) - skip, default=0):
            raise ParamError(
                'efficientvla_skip',
                f'no layer is left after the prune at layer {boundary} of {layout.depth}',
            )
        kept = layout.cameras * self.count(layout, params)
        return PruneSchedule({boundary: (group,)}, {boundary: kept}, skip=skip)

    def count(self, layout: TokenLayout, params: PruningParams) -> int:
        """Tokens kept per camera."""
        scale = layout.patches / REFERENCE_GRID
        return max(1, min(layout.patches, ceil_count(params.efficientvla_keep * scale)))

    def begin(self, context: QueryContext) -> EfficientVLAPass:
        """Start a pass."""
        return EfficientVLAPass(context, self)


def skipped_layers(layers: tuple[int, ...], depth: int) -> frozenset[int]:
    """Layers to skip of ``depth``: the same share, the deeper ones where few are left."""
    scaled = sorted({scale_layer(layer, depth) for layer in layers})
    count = floor_count(len(layers) * depth / REFERENCE_DEPTH)
    return frozenset(scaled[len(scaled) - min(count, len(scaled)) :])


class EfficientVLAPass(BasePrunePass):
    """One query of :class:`EfficientVLA`."""

    def __init__(self, context: QueryContext, method: EfficientVLA) -> None:
        super().__init__(context, method.plan(context.layout, context.params, context.mode))
        self.method = method
        self.score: Tensor | None = None

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Task relevance of each token."""
        self.score = image_to_text(attention)
        self.outcome.scores['attention'] = self.score

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """The mixed set of every camera."""
        layout, params = self.layout, self.params
        assert self.score is not None
        total = self.method.count(layout, params)
        key = min(total, ceil_count(params.efficientvla_key * layout.patches / REFERENCE_GRID))
        masks = [
            mixed_choice(score, part, total, key, params.efficientvla_task)
            for score, part in zip(
                self.score.view(layout.cameras, -1),
                rows.view(layout.cameras, layout.patches, -1),
                strict=True,
            )
        ]
        order = torch.sort(torch.cat(masks), descending=True, stable=True).indices
        return Selection(order[: self.schedule.prune[boundary]])
