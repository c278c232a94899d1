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
from pathlib import Path
from statistics import fmean

import torch
from record import write
from torch import Tensor

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
from specprune_ros.policy.policy import Policy
from specprune_ros.pruning.budget import scale_layers
from specprune_ros.pruning.interface import RowGroup
from specprune_ros.pruning.metrics import recall
from specprune_ros.pruning.scores import ema, image_to_text, shares, top_k
from specprune_ros.sim.arm.render_backend import choose
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.evaluate import TUNING_SEED, play_control
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.evaluation.trials import weights_hash
from specprune_ros.sim.tasks.tasks import make_episode
from specprune_ros.sim.training.export import SHIPPED

GROUPS = (RowGroup.TEXT, RowGroup.ACTION)
COUNTS = (12, 24, 30, 40)  # tokens per camera


@register_pruner
class Watcher:
    """Drops nothing; ``queries`` holds every layer's scores, float32 ``[layers, 2, V]`` each."""

    name = 'watcher'
    queries: list[Tensor] = []

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """All layers, both groups of rows."""
        return PruneSchedule(dict.fromkeys(range(1, layout.depth + 1), GROUPS))

    def begin(self, context: QueryContext) -> WatcherPass:
        """Start a query."""
        return WatcherPass(context, self.plan(context.layout, context.params, context.mode))


class WatcherPass(BasePrunePass):
    """One query."""

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Mean over the rows, ``[rows, V]`` to ``[V]``."""
        if layer == 1 and group is GROUPS[0]:
            shape = (self.layout.depth, len(GROUPS), self.layout.vision_tokens)
            Watcher.queries.append(torch.zeros(shape))
        Watcher.queries[-1][layer - 1, GROUPS.index(group)] = image_to_text(attention)


def top(scores: Tensor, k: int, cameras: int) -> Tensor:
    """Mask of the k highest of each camera: ``[layers, V]`` to bool ``[V]``, over the layers."""
    return top_k(scores.unflatten(1, (cameras, -1)), torch.tensor(k)).any(0).flatten()


def measure(
    episodes: list[Tensor], layers: list[int], group: int, k: int, cameras: int, keep: float = 0.0
) -> tuple[float, float]:
    """Recall and mass, means over the queries but each episode's first.

    ``keep``: share of the older queries in the prior.
    """
    recalls, masses = [], []
    for queries in episodes:
        seen = shares(queries[:, [layer - 1 for layer in layers], group])
        prior = seen[0]
        for now in seen[1:]:
            named, wanted = top(prior, k, cameras), top(now, k, cameras)
            recalls.append(recall(named, wanted) or 0.0)
            masses.append(float(now[:, named].sum() / now[:, wanted].sum()))
            prior = ema(prior, now, 1 - keep)
    return fmean(recalls), fmean(masses)


def play(policy: Policy, families: list[str], count: int) -> list[Tensor]:
    """``[queries, layers, 2, V]`` of each episode."""
    choose()
    runner, world = PolicyRunner(policy), World(cameras=policy.config.cameras)
    episodes = []
    for family in families:
        for seed in range(TUNING_SEED, TUNING_SEED + count):
            Watcher.queries.clear()
            played = play_control(world, runner, make_episode(seed, family), 'instructed')
            episodes.append(torch.stack(Watcher.queries))
            print(f'{family} {seed}: {played.outcome}, {played.queries} queries')
    world.close()
    return episodes


def main() -> None:
    """Play, measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--families', default='lift,put', help='separated by commas')
    parser.add_argument('--episodes', type=int, default=3, help='of each family')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    params = PruningParams(pruner='watcher')
    policy = build_policy(str(SHIPPED), device='cpu', params=params)
    episodes = play(policy, options.families.split(','), options.episodes)
    depth, cameras = policy.config.decoder.depth, len(policy.config.cameras)
    globals_ = list(scale_layers(params.layers_global, depth))
    chosen = [globals_, *([layer] for layer in range(1, depth + 1))]
    rows = []
    for index, group in enumerate(GROUPS):
        for layers in chosen:
            row: dict[str, object] = {'rows': group.value, 'layers': layers}
            for k in COUNTS:
                row[f'recall_{k}'], row[f'mass_{k}'] = measure(episodes, layers, index, k, cameras)
            row['averaged_30'] = measure(episodes, layers, index, 30, cameras, 0.5)[0]
            rows.append(row)
            found = '  '.join(
                f'k {k}: {row[f"recall_{k}"]:.0%} ({row[f"mass_{k}"]:.0%})' for k in COUNTS
            )
            name = ' and '.join(map(str, layers))
            print(f'{group.value:7} layer {name:7} {found}  averaged {row["averaged_30"]:.0%}')
    counts = {'episodes': len(episodes), 'queries': sum(map(len, episodes))}
    write(options.json, {'weights': weights_hash(SHIPPED), **counts, 'rows': rows})


if __name__ == '__main__':
    main()
