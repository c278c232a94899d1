"""SparseVLM (ICML 2025, arXiv 2410.04417): visually relevant words rate the tokens, thrice.

At each sparsification layer the best-rated tokens stay; of the dropped the better part is not
lost but clustered into a few averaged tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specprune_ros.pruning.budget import ceil_count, floor_count, scale_layers
from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import ParamError, PruningParams, layers, param, share
from specprune_ros.pruning.rivals.base import BasePrunePass
from specprune_ros.pruning.scores import positions
from specprune_ros.pruning.specprune import rows_or_action

LLAVA_TOKENS = 576  # the paper's numbers of tokens are out of this many


def raters(vision: Tensor, text: Tensor) -> Tensor:
    """Mask ``[P]`` of the words that rate: those above the mean share of vision's attention.

    ``vision`` ``[V, D]``, ``text`` ``[P, D]``: softmax over the words of their dot products, mean
    over the vision tokens (section 3.1).
    """
    share = (vision.float() @ text.float().T).softmax(-1).mean(0)
    return share >= share.mean()


def cluster(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Density-peak clustering (section 3.3): weights ``[count, n]`` of the averages, centres.

    Density is exp(-mean squared distance to the ``count`` nearest); a centre is dense and far from
    anything denser. Equal densities: the earlier counts as denser.
    """
    n, width = features.shape
    distance = torch.cdist(features.float(), features.float()) / width**0.5
    near = distance.topk(min(count, n), largest=False).values
    density = (-near.square().mean(-1)).exp()
    index = positions(n, features.device)
    denser = (density > density[:, None]) | (
        (density == density[:, None]) & (index < index[:, None])
    )
    away = torch.where(denser, distance, distance.amax()).amin(-1)
    order = torch.sort(away * density, descending=True, stable=True).indices
    centres = order[:count].sort().values
    nearest = distance[:, centres].argmin(-1)
    # A centre belongs to itself even if it lies on another one.
    numbers = positions(count, features.device)
    nearest = nearest.scatter(0, centres, numbers)
    members = (nearest == numbers[:, None]).float()
    return members / members.sum(-1, keepdim=True), centres


@dataclass(frozen=True)
class SparseVLMParams:
    """Parameters of SparseVLM."""

    sparsevlm_layers: tuple[int, ...] = layers(
        (2, 6, 15), 'Layers after which SparseVLM drops.', 'SparseVLM code'
    )
    sparsevlm_keep: tuple[int, ...] = param(
        (300, 200, 110),
        'Tokens SparseVLM keeps after each of its layers, without the recycled ones.',
        'SparseVLM code, 192 tokens on average',
        unit='tokens of 576',
        low=1,
        high=576,
    )
    sparsevlm_recycle: float = share(
        0.3, 'Share of the dropped tokens that are clustered.', 'SparseVLM: 30 %'
    )
    sparsevlm_merge: float = share(0.1, 'Clusters over clustered tokens.', 'SparseVLM: 1/10')

    @staticmethod
    def check_together(params: PruningParams) -> None:
        """Raise :class:`ParamError` where values contradict each other."""
        if len(params.sparsevlm_layers) != len(params.sparsevlm_keep):
            raise ParamError(
                'sparsevlm_keep',
                f'has {len(params.sparsevlm_keep)} numbers for the '
                f'{len(params.sparsevlm_layers)} layers of sparsevlm_layers',
            )


class SparseVLM:
    """Text-guided progressive sparsification with token recycling."""

    name = 'sparsevlm'
    parameters = SparseVLMParams
    pure = True

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Observe and prune at each sparsification layer; all sizes are known."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        stages = self.stages(layout, params)
        group = rows_or_action(layout, 'prompt', [])
        return PruneSchedule(
            {layer: (group,) for layer, _, _, _ in stages},
            {layer: kept + merged for layer, kept, _, merged in stages},
        )

    def stages(
        self, layout: TokenLayout, params: PruningParams
    ) -> list[tuple[int, int, int, int]]:
        """Per layer: (boundary, tokens kept, tokens recycled, tokens they become)."""
        layers = scale_layers(params.sparsevlm_layers, layout.depth)
        if not layers or layers[-1] >= layout.depth:
            raise ParamError('sparsevlm_layers', f'the model has only {layout.depth} layers')
        current, stages = layout.vision_tokens, []
        for layer, tokens in zip(layers, params.sparsevlm_keep, strict=False):
            kept = min(current, max(1, ceil_count(tokens * layout.vision_tokens / LLAVA_TOKENS)))
            recycled = floor_count(params.sparsevlm_recycle * (current - kept))
            merged = ceil_count(recycled * params.sparsevlm_merge)
            stages.append((layer, kept, recycled, merged))
            current = kept + merged
        return stages

    def begin(self, context: QueryContext) -> SparseVLMPass:
        """Start a pass."""
        return SparseVLMPass(context, self)


class SparseVLMPass(BasePrunePass):
    """One query of :class:`SparseVLM`."""

    def __init__(self, context: QueryContext, method: SparseVLM) -> None:
        super().__init__(context, method.plan(context.layout, context.params, context.mode))
        self.score: Tensor | None = None
        self.rating: Tensor | None = None
        self.stages = {}
        if not self.schedule.prune:
            return
        self.stages = {
            layer: rest for layer, *rest in method.stages(context.layout, context.params)
        }
        if rows_or_action(context.layout, 'prompt', self.outcome.notes) is RowGroup.PROMPT:
            if context.vision is not None and context.text is not None:
                self.rating = raters(context.vision, context.text)
            else:
                self.outcome.notes.append('no embeddings to choose raters by: every word rates')

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Mean attention of the raters."""
        if self.rating is None:
            self.score = attention.mean(0)
        else:
            weights = self.rating.float()
            self.score = (weights @ attention) / weights.sum()

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """Keep the best, recycle the better of the rest."""
        kept, recycled, merged = self.stages[boundary]
        assert self.score is not None
        order = torch.sort(self.score, descending=True, stable=True).indices
        keep = order[:kept].sort().values
        if not merged:
            return Selection(keep)
        pool = order[kept : kept + recycled].sort().values
        weights, centres = cluster(rows[pool], merged)
        merge = weights.new_zeros(merged, rows.shape[0]).index_copy(1, pool, weights)
        return Selection(keep, merge, pool[centres])
