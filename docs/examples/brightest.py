"""A pruning method in one file: keep the brightest patches after layer 2.

specprune bench --plugin docs/examples/brightest.py --pruner brightest
"""

from dataclasses import dataclass

import torch

from specprune_ros import (
    BasePrunePass,
    Mode,
    PruneSchedule,
    PruningParams,
    QueryContext,
    Selection,
    TokenLayout,
    param,
    register_pruner,
)


@dataclass(frozen=True)
class BrightestParams:
    """Names begin with the method's; they become ROS parameters ``pruning.brightest_keep``."""

    brightest_keep: float = param(
        0.5, 'Share of the vision tokens that stay.', 'an example', low=0.01, high=1.0
    )


@register_pruner
class Brightest:
    """Which layers are observed, where tokens go and how many stay is said before the pass."""

    name = 'brightest'
    parameters = BrightestParams
    pure = True  # nothing is decided on the host, so a CUDA graph can hold the pass

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Fixed shapes, said before the pass."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        return PruneSchedule(
            prune={2: max(1, round(params.brightest_keep * layout.vision_tokens))}
        )

    def begin(self, context: QueryContext) -> 'BrightestPass':
        """Start a query."""
        schedule = self.plan(context.layout, context.params, context.mode)
        return BrightestPass(context, schedule)


class BrightestPass(BasePrunePass):
    """One query."""

    def choose(self, boundary: int, rows: torch.Tensor) -> Selection:
        """``rows``: hidden states ``[V, D]``; images: uint8 ``[cameras, H, W, 3]``."""
        layout = self.layout
        images = self.context.images.float().mean(-1)
        height, width = images.shape[1] // layout.grid[0], images.shape[2] // layout.grid[1]
        patches = images.unfold(1, height, height).unfold(2, width, width).mean((-1, -2))
        score = patches.flatten()
        self.outcome.scores['brightness'] = score
        count = self.schedule.prune[boundary]
        return Selection(score.topk(count).indices.sort().values)
