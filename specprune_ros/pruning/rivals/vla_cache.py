"""VLA-Cache (NeurIPS 2025, arXiv 2502.02175): reuse keys and values where nothing happens.

A patch is reusable if it looks as it did at the previous query and the text did not attend to it
then. At four depths a share of the reusable patches stops being computed; their keys and values of
the previous query stand in. The share follows the previous query's attention entropy per layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specprune_ros.pruning.budget import ceil_count, scale_layer, scale_layers
from specprune_ros.pruning.interface import (
    Mode,
    PassOutcome,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import REFERENCE_GRID, PruningParams, layers, param, share
from specprune_ros.pruning.rivals.base import BasePrunePass
from specprune_ros.pruning.scores import image_to_text, ranks
from specprune_ros.pruning.specprune import rows_or_action


def proportions(entropies: Tensor, damping: float) -> Tensor:
    """Share of the reusable patches per layer, ``[depth]`` from mean entropies ``[depth]``.

    1 - entropy scaled to 0..1 over the layers; a rise from one layer to the next counts only by
    ``damping`` (section 3.3 and the released code). Host side: a recurrence of ``depth`` steps.
    """
    values = entropies.tolist()
    low, high = min(values), max(values)
    shares: list[float] = []
    for value in values:
        share = 1.0 - (value - low) / (high - low + 1e-10)
        if shares and share > shares[-1]:
            share = shares[-1] + damping * (share - shares[-1])
        shares.append(share)
    return torch.tensor(shares, dtype=torch.float32)


@dataclass(frozen=True)
class VLACacheParams:
    """Parameters of VLACache."""

    vla_cache_layers: tuple[int, ...] = layers(
        (2, 6, 9, 11), 'Layers after which VLA-Cache stops computing patches.', 'VLA-Cache code'
    )
    vla_cache_similarity: float = param(
        0.996,
        'Cosine from which a patch is static.',
        'VLA-Cache: 0.996',
        low=-1.0,
        high=1.0,
    )
    vla_cache_static: int = param(
        150,
        'Most static patches per camera.',
        'VLA-Cache: 150',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    vla_cache_relevant: int = param(
        100,
        'Patches per camera that the text attended to and that are always computed.',
        'VLA-Cache: 100',
        unit='tokens of 256',
        low=0,
        high=REFERENCE_GRID,
    )
    vla_cache_attention: int = param(
        16,
        'Layer whose attention says what is relevant.',
        'VLA-Cache: 15 counted from 0',
        unit='layer of 32',
        low=1,
        high=32,
    )
    vla_cache_damping: float = share(
        0.55, 'Factor on a rise of the reuse share from layer to layer.', 'VLA-Cache: 0.55'
    )


class VLACache:
    """Key/value reuse of static, task-irrelevant patches. Shapes depend on the data."""

    name = 'vla_cache'
    parameters = VLACacheParams
    uses_similarity = True

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Observe the text in every layer; stop computing at four boundaries."""
        group = rows_or_action(layout, 'text', [])
        observe = {layer: (group,) for layer in range(1, layout.depth + 1)}
        if mode is Mode.DENSE:
            return PruneSchedule(observe)
        layers = scale_layers(params.vla_cache_layers, layout.depth)
        prune = {layer: None for layer in layers if layer < layout.depth}
        return PruneSchedule(observe, prune, reuse=True)

    def begin(self, context: QueryContext) -> VLACachePass:
        """Start a pass; dense without a previous query and image to reuse."""
        why = ''
        if context.mode is not Mode.DENSE:
            if 'attention' not in context.carry:
                why = 'vla_cache: no previous query to reuse'
            elif context.similarity is None:
                why = 'vla_cache: no previous image'
        mode = Mode.DENSE if why else context.mode
        return VLACachePass(context, self.plan(context.layout, context.params, mode), why)


class VLACachePass(BasePrunePass):
    """One query of :class:`VLACache`.

    Carries ``attention`` float32 ``[V]`` and ``proportion`` float32 ``[depth]`` (on the host).
    """

    def __init__(self, context: QueryContext, schedule: PruneSchedule, dense_because: str) -> None:
        super().__init__(context, schedule)
        self.outcome.dense_because = dense_because
        self.entropies: list[Tensor] = []
        self.attention = context.carry.get('attention')
        self.relevance_layer = scale_layer(context.params.vla_cache_attention, self.layout.depth)
        self.reusable: Tensor | None = None

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Entropy of every layer; scores of one."""
        share = attention / attention.sum(-1, keepdim=True).clamp_min(1e-30)
        entropy = torch.special.entr(share).sum(-1).mean()
        # Over ln(n): in a reusing pass fewer columns are seen in deeper layers.
        self.entropies.append(entropy / math.log(max(2, attention.shape[-1])))
        if layer == self.relevance_layer:
            score = image_to_text(attention)
            if self.ids is None or self.attention is None:
                self.attention = self.spread(score)
            else:
                self.attention = self.attention.scatter(0, self.ids, score)

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """Stop computing a share of the reusable patches, in their order."""
        if self.reusable is None:
            self.reusable = self._reusable()
        proportion = float(self.context.carry['proportion'][boundary])
        total = self.reusable.sum()
        count = (proportion * total).floor().clamp_min(1)
        gone = self.reusable & (self.reusable.cumsum(0) <= count)
        here = gone if self.ids is None else gone[self.ids]
        return Selection((~here).nonzero().squeeze(1))

    def _reusable(self) -> Tensor:
        """Static patches (top per camera by cosine) that the text did not attend to."""
        layout, params, similarity = self.layout, self.params, self.context.similarity
        assert similarity is not None
        grid = (layout.cameras, layout.patches)
        scale = layout.patches / REFERENCE_GRID
        still = ranks(similarity.view(grid)) < ceil_count(params.vla_cache_static * scale)
        still &= similarity.view(grid) >= params.vla_cache_similarity
        before = self.context.carry['attention'].to(similarity.device)
        relevant = ranks(before.view(grid)) < ceil_count(params.vla_cache_relevant * scale)
        self.outcome.sets['relevant'] = relevant.view(-1)
        self.outcome.sets['moved'] = ~still.view(-1)
        return (still & ~relevant).view(-1)

    def finish(self) -> PassOutcome:
        """Close the pass."""
        assert self.attention is not None
        self.outcome.carry['attention'] = self.attention
        self.outcome.scores['attention'] = self.attention
        self.outcome.carry['proportion'] = proportions(
            torch.stack(self.entropies), self.params.vla_cache_damping
        )
        return self.outcome
