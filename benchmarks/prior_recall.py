"""How much of what a query attends to the one before it foretold, layer by layer.

    python benchmarks/prior_recall.py --episodes 3 --json benchmarks/results/prior_recall.json

(after `. scripts/env.sh`). The shipped policy plays dense, so that neither query knows only what
was kept, and every layer's attention on the vision tokens is recorded, from the words and from
the action rows. `recall`: of the k tokens a camera attended to most, the share that was among the
k of the query before (paper: 75 to 88 % at 30, of layers 15 and 32). `mass`: the attention on the
query before's k tokens over that on this query's own k, which no choice can exceed. `averaged`
takes the mean of all earlier queries, each older one counting half as much.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from record import write

from specprune_ros import (
    BasePrunePass,
    Mode,
    PruneSchedule,
    PruningParams,
    QueryContext,
    TokenLayout,
    register_pruner,
)
from specprune_ros.policy.build import build_policy
from specprune_ros.pruning.interface import RowGroup
from specprune_ros.sim.arm.render_backend import choose
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.evaluate import TUNING_SEED, play_control
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.tasks.tasks import make_episode
from specprune_ros.sim.training.export import SHIPPED

GROUPS = (RowGroup.TEXT, RowGroup.ACTION)
COUNTS = (12, 24, 30, 40)  # tokens per camera


@register_pruner
class Watcher:
    """Drops nothing, observes every layer; ``queries`` holds float32 ``[layers, 2, V]`` each."""

    name = 'watcher'
    queries: list[np.ndarray] = []

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """All layers, both groups of rows."""
        return PruneSchedule(dict.fromkeys(range(1, layout.depth + 1), GROUPS))

    def begin(self, context: QueryContext) -> WatcherPass:
        """Start a query."""
        return WatcherPass(context, self.plan(context.layout, context.params, context.mode))


class WatcherPass(BasePrunePass):
    """One query."""

    def observe(self, layer: int, group: RowGroup, attention: torch.Tensor) -> None:
        """Mean over the rows, ``[rows, V]`` to ``[V]``."""
        if layer == 1 and group is GROUPS[0]:
            shape = (self.layout.depth, len(GROUPS), self.layout.vision_tokens)
            Watcher.queries.append(np.zeros(shape, np.float32))
        Watcher.queries[-1][layer - 1, GROUPS.index(group)] = attention.float().mean(0).numpy()


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Mask of the k highest of each camera: ``[layers, V]`` to bool ``[V]``, over the layers."""
    views = scores.reshape(len(scores), 2, -1)
    mask = np.zeros(views.shape, bool)
    np.put_along_axis(mask, np.argsort(-views, -1, kind='stable')[..., :k], True, -1)
    return mask.any(0).reshape(-1)


def measure(
    episodes: list[np.ndarray], layers: list[int], group: int, k: int, keep: float = 0.0
) -> tuple[float, float]:
    """Recall and mass, means over the queries but each episode's first.

    ``keep``: share of the older queries in the prior.
    """
    recalls, masses = [], []
    for queries in episodes:
        seen = queries[:, [layer - 1 for layer in layers], group]
        seen = seen / seen.sum(-1, keepdims=True)
        prior = seen[0]
        for now in seen[1:]:
            named, wanted = top(prior, k), top(now, k)
            recalls.append((named & wanted).sum() / wanted.sum())
            masses.append(now[:, named].sum() / now[:, wanted].sum())
            prior = keep * prior + (1 - keep) * now
    return float(np.mean(recalls)), float(np.mean(masses))


def play(families: list[str], count: int, report: Callable[[str], None]) -> list[np.ndarray]:
    """``[queries, layers, 2, V]`` of each episode."""
    choose()
    policy = build_policy(str(SHIPPED), device='cpu', params=PruningParams(pruner='watcher'))
    runner, world = PolicyRunner(policy), World(cameras=policy.config.cameras)
    episodes = []
    for family in families:
        for seed in range(TUNING_SEED, TUNING_SEED + count):
            Watcher.queries.clear()
            played = play_control(world, runner, make_episode(seed, family), 'instructed')
            episodes.append(np.stack(Watcher.queries))
            report(f'{family} {seed}: {played.outcome}, {played.queries} queries')
    world.close()
    return episodes


def main() -> None:
    """Play, measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--families', default='lift,put', help='separated by commas')
    parser.add_argument('--episodes', type=int, default=3, help='of each family')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    episodes = play(options.families.split(','), options.episodes, print)
    depth = episodes[0].shape[1]
    chosen = [[depth // 2, depth], *([layer] for layer in range(1, depth + 1))]
    rows = []
    for index, group in enumerate(GROUPS):
        for layers in chosen:
            row: dict[str, object] = {'rows': group.value, 'layers': layers}
            for k in COUNTS:
                row[f'recall_{k}'], row[f'mass_{k}'] = measure(episodes, layers, index, k)
            row['averaged_30'] = measure(episodes, layers, index, 30, 0.5)[0]
            rows.append(row)
            shares = '  '.join(
                f'k {k}: {row[f"recall_{k}"]:.0%} ({row[f"mass_{k}"]:.0%})' for k in COUNTS
            )
            name = ' and '.join(map(str, layers))
            print(f'{group.value:7} layer {name:7} {shares}  averaged {row["averaged_30"]:.0%}')
    queries = sum(map(len, episodes))
    write(options.json, {'episodes': len(episodes), 'queries': queries, 'rows': rows})


if __name__ == '__main__':
    main()
