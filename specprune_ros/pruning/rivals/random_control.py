"""Random tokens: what any method must beat at the same layers and counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specprune_ros.pruning.interface import (
    Mode,
    PrunePass,
    PruneSchedule,
    QueryContext,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import ParamError, PruningParams, param, share
from specprune_ros.pruning.registry import pruner
from specprune_ros.pruning.rivals.base import BasePrunePass, at_boundary, keep_count


@dataclass(frozen=True)
class RandomParams:
    """Parameters of Random."""

    random_layer: int = param(
        2, 'Layer after which random tokens go.', 'ours', unit='layer of 32', low=0, high=31
    )
    random_keep: float = share(0.4, 'Share of the vision tokens that random keeps.', 'ours')
    random_like: str = param(
        'share',
        'Where random drops how many: its own layer and share, or the layers and counts of the '
        'method named here.',
        'ours; the control of docs/explanation/fidelity.md',
        choices=('share',),
    )


class Random:
    """Drop vision tokens at random, at a layer of its own or where another method would.

    With ``random_like`` the other method's pass runs along (:func:`like`), so that the two prune
    the same queries.
    """

    name = 'random'
    parameters = RandomParams

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """One prune to a fixed share, or another method's prunes.

        Raises ``ParamError`` where SpecPrune's counts depend on the data (``exact``).
        """
        if mode is Mode.DENSE:
            return PruneSchedule()
        if params.random_like != 'share':
            schedule = pruner(params.random_like).plan(layout, params, mode)
            if params.random_like == 'specprune' and not schedule.static:
                raise ParamError('random_like', "specprune's counts are only known without exact")
            return schedule
        boundary = at_boundary(params.random_layer, layout, 'random_layer')
        return PruneSchedule(
            prune={boundary: keep_count(params.random_keep, layout.vision_tokens)}
        )

    def begin(self, context: QueryContext) -> PrunePass:
        """Start a pass; ``context.seed`` decides which tokens stay."""
        schedule = self.plan(context.layout, context.params, context.mode)
        if context.params.random_like in ('share', 'specprune'):
            # SpecPrune's schedule is the same for every query of a mode: it need not run along.
            return RandomPass(context, PruneSchedule(prune=schedule.prune))
        return like(pruner(context.params.random_like).begin(context), context)


def random_subset(context: QueryContext, boundary: int, rows: Tensor, count: int) -> Selection:
    """A uniform subset of ``count`` rows, the same for the same seed and boundary."""
    seed = context.seed * (context.layout.depth + 1) + boundary
    generator = torch.Generator(device=rows.device).manual_seed(seed)
    order = torch.rand(rows.shape[0], generator=generator, device=rows.device).argsort()
    return Selection(order[:count].sort().values)


class RandomPass(BasePrunePass):
    """One query of :class:`Random` at counts known beforehand."""

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """A uniform subset of the scheduled size."""
        return random_subset(self.context, boundary, rows, self.schedule.prune[boundary])


def like(pass_: PrunePass, context: QueryContext) -> PrunePass:
    """Another method's pass with its choice replaced by chance: its gates, memory and counts stay.
    A count that depends on the data is that of the choice it would have made.

    Raises :class:`ParamError` for a pass that is no :class:`BasePrunePass`.
    """
    if not isinstance(pass_, BasePrunePass):
        raise ParamError('random_like', f'{type(pass_).__name__} has no choice to replace')
    kind = type(pass_)

    def choose(self: BasePrunePass, boundary: int, rows: Tensor) -> Selection:
        count = self.schedule.prune[boundary]
        if count is None:
            # Its own course tells how many: it goes on from what it would have kept.
            mine, self.ids = self.ids, kept.get('ids')
            kept['ids'] = self.ids_after(kind.choose(self, boundary, rows))
            self.ids, count = mine, kept['ids'].shape[0]
        return random_subset(context, boundary, rows, count)

    kept: dict[str, Tensor] = {}
    pass_.__class__ = type(f'Random{kind.__name__}', (kind,), {'choose': choose})
    return pass_
