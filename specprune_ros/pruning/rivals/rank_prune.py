"""FastV and ADP: keep the top of one attention score, once."""

from __future__ import annotations

import torch
from torch import Tensor

from specprune_ros.pruning.budget import ceil_count
from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.rivals.base import BasePrunePass, at_boundary, keep_count
from specprune_ros.pruning.scores import constant, image_to_text, ranks
from specprune_ros.pruning.specprune import rows_or_action


def keep_top(score: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` highest scores, ascending; of equals the earlier."""
    order = torch.sort(score, descending=True, stable=True).indices
    return order[:count].sort().values


class FastV:
    """FastV (ECCV 2024, arXiv 2403.06764): after layer K drop the R least attended tokens.

    Attention received is averaged over the query rows (the paper; the released code takes the last
    row only: ``fastv_rows = last``).
    """

    name = 'fastv'
    pure = True

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Listen at layer K, prune behind it."""
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


class ADP:
    """Action-aware dynamic pruning (ICLR 2026, arXiv 2509.22093): prune before layer 1, or not.

    Tokens are ranked per camera by the attention layer 1 would give them from the text, on the
    bare embeddings. A gate on the last moves decides: slower than in the whole window means dense,
    so does a run of ``adp_run`` pruned queries. Carries the window of displacements on the host.
    """

    name = 'adp'

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """One prune before the first layer; a pass whose gate is shut has none."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        return PruneSchedule(prune={0: sum(self.counts(layout, params))})

    def counts(self, layout: TokenLayout, params: PruningParams) -> tuple[int, ...]:
        """Tokens kept per camera: ``adp_keep`` of all, split by ``adp_split`` or evenly."""
        kept = params.adp_keep * layout.vision_tokens
        split = params.adp_split
        if len(split) != layout.cameras:
            split = (1.0,) * layout.cameras
        return tuple(
            max(1, min(layout.patches, ceil_count(kept * part / sum(split)))) for part in split
        )

    def begin(self, context: QueryContext) -> ADPPass:
        """Start a pass; reads the gate's memory, which lives on the host."""
        return ADPPass(context, self)


class ADPPass(BasePrunePass):
    """One query of :class:`ADP`."""

    def __init__(self, context: QueryContext, method: ADP) -> None:
        self.method = method
        window = [float(d) for d in context.carry.get('displacements', torch.empty(0))]
        run = int(context.carry.get('run', torch.zeros((), dtype=torch.int64)))
        open_, why = gate(context.displacement, window, run, context.params)
        mode = context.mode if open_ else Mode.DENSE
        super().__init__(context, method.plan(context.layout, context.params, mode))
        self.outcome.notes.append(f'adp gate: {why}')
        if context.displacement is not None:
            window = [*window, context.displacement][-context.params.adp_window :]
        pruned = bool(self.schedule.prune)
        self.outcome.carry['displacements'] = torch.tensor(window, dtype=torch.float64)
        self.outcome.carry['run'] = torch.tensor(run + 1 if pruned else 0)

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """Per camera, the tokens the text would attend to most in layer 1."""
        layout = self.layout
        assert self.context.probe is not None, 'ADP needs the probe of the decoder'
        group = rows_or_action(layout, 'text', self.outcome.notes)
        score = image_to_text(self.context.probe(1, group))
        self.outcome.scores['attention'] = score
        counts = constant(self.method.counts(layout, self.params), torch.int64, rows.device)
        kept = ranks(score.view(layout.cameras, layout.patches)) < counts.unsqueeze(-1)
        # A mask of known size, sorted to the front: no waiting for the data.
        order = torch.sort(kept.view(-1), descending=True, stable=True).indices
        return Selection(order[: self.schedule.prune[boundary]])


def gate(
    displacement: float | None, window: list[float], run: int, params: PruningParams
) -> tuple[bool, str]:
    """Whether ADP prunes this query, and why."""
    if displacement is None:
        return False, 'displacement unknown, dense'
    if len(window) < params.adp_window:
        return False, f'{len(window)} of {params.adp_window} moves known, dense'
    if run >= params.adp_run:
        return False, f'{run} pruned queries in a row, dense'
    if displacement < min(window):
        return False, f'{displacement:.3f} m is below the window, dense'
    return True, f'{displacement:.3f} m is not below the window, pruned'
