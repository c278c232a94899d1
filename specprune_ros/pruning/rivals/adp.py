"""ADP (ICLR 2026, arXiv 2509.22093): prune before layer 1 where the motion allows it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specprune_ros.pruning.budget import ceil_count
from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import ParamError, PruningParams, param, share
from specprune_ros.pruning.rivals.base import BasePrunePass
from specprune_ros.pruning.scores import constant, image_to_text, ranks
from specprune_ros.pruning.specprune import rows_or_action


@dataclass(frozen=True)
class ADPParams:
    """Parameters of ADP."""

    adp_keep: float = share(
        0.75, 'Share of the vision tokens ADP keeps when it prunes.', 'ADP code: 0.75'
    )
    adp_split: tuple[float, ...] = param(
        (0.4, 0.6),
        'How the kept tokens are shared between the cameras.',
        'ADP code: 0.4 third person, 0.6 wrist',
        low=0.0,
        high=1.0,
    )
    adp_window: int = param(
        3, 'Past moves the gate compares with.', 'ADP: 3', unit='queries', low=1, high=100
    )
    adp_run: int = param(
        3,
        'Pruned queries in a row after which one is dense.',
        'ADP: 3',
        unit='queries',
        low=1,
        high=1000,
    )

    @staticmethod
    def check_together(params: PruningParams) -> None:
        """Raise :class:`ParamError` where values contradict each other."""
        if sum(params.adp_split) <= 0:
            raise ParamError('adp_split', 'must hold a positive share')


class ADP:
    """Action-aware dynamic pruning (ICLR 2026, arXiv 2509.22093): prune before layer 1, or not.

    Tokens are ranked per camera by the attention layer 1 would give them from the text, on the
    bare embeddings. A gate on the last moves decides: slower than in the whole window means dense,
    so does a run of ``adp_run`` pruned queries. Carries the window of displacements on the host.
    """

    name = 'adp'
    parameters = ADPParams

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
        why = gate(context.displacement, window, run, context.params)
        why = '' if context.mode is Mode.DENSE else why
        mode = Mode.DENSE if why else context.mode
        super().__init__(context, method.plan(context.layout, context.params, mode))
        self.outcome.dense_because = why
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


def gate(displacement: float | None, window: list[float], run: int, params: PruningParams) -> str:
    """Why ADP does not prune this query; empty where it does."""
    if displacement is None:
        return 'adp: displacement unknown'
    if len(window) < params.adp_window:
        return f'adp: {len(window)} of {params.adp_window} moves known'
    if run >= params.adp_run:
        return f'adp: {run} pruned queries in a row'
    if displacement < min(window):
        return f'adp: {displacement:.3f} m is below the window'
    return ''
