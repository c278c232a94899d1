"""What each fix of SpecPrune changes, one at a time, on one model over one moving scene.

For every variation a policy of its own answers the same sequence of images; a dense pass on the
same observation says what would have been looked at and done. Columns: vision tokens after the
static prune and averaged over layers; recall of the prior (V_{t-1} against V_t); recall of the
kept set against the dense pass's 30 best tokens; largest action deviation from dense, median over
queries; dense queries. Weights are random unless a checkpoint is given: differences between rows
say what a mechanism does, not what it does to success.

    python benchmarks/fixes.py [--checkpoint DIR] [--queries 24] [--json FILE]
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write

from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.device import device_name
from specprune_ros.policy.synthetic import observations
from specprune_ros.pruning.interface import Mode, QueryContext
from specprune_ros.pruning.metrics import action_deviation, kept_recall
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner
from specprune_ros.pruning.similarity import patch_cosine

BEST = 30  # tokens, as in P2's recall figures

VARIATIONS: dict[str, dict[str, Any]] = {
    'paper': {},
    'first query pruned': {'first_dense': False},
    'memory of unseen tokens': {'prior_fill': 'memory'},
    'dense refresh every 8': {'refresh_period': 8},
    'memory and refresh every 8': {'prior_fill': 'memory', 'refresh_period': 8},
    'fine, enlarged 5/3': {'mode': 'fine'},
    'fine, shrunk 5/8': {'mode': 'fine', 'fine_factor': 5 / 8, 'fine_may_shrink': True},
    'wrist budget full': {'camera_factor': [1.0, 1.0], 'camera_factor_dynamic': [1.0, 1.0]},
    'wrist never pruned': {'cameras_kept': [1]},
    'slope 1 per rank, ties by position': {
        'slope': 1.0,
        'slope_per_rank': True,
        'tie_break': 'index',
    },
    'slope 1 per rank, ties by attention': {'slope': 1.0, 'slope_per_rank': True},
    'pruned before the first update': {
        'prune_layers': [10, 15, 20, 25],
        'update_layers': [14, 19, 24],
        'prune_unscored': True,
        'tie_break': 'index',
    },
    'drop a share of all rows': {'drop_of': 'sequence'},
    'layer weight at every query': {'confidence_when': 'every'},
    'bare union': {'exact': True},
}


class Asker:
    """One variation's memory between queries."""

    def __init__(self, params: PruningParams) -> None:
        self.params, self.method = params, pruner('specprune')
        self.carry: dict[str, Any] = {}
        self.queries = self.dense = 0
        self.rows: list[dict[str, float | None]] = []

    def ask(self, model: Any, embedded: Any, similarity: Any, truth: dict[str, Any]) -> None:
        """One query, judged against the dense one in ``truth``."""
        params, mode = self.params, Mode(self.params.mode)
        due = params.refresh_period and self.queries % params.refresh_period == 0
        if (self.queries == 0 and params.first_dense) or (self.queries and due):
            mode = Mode.DENSE
        running = self.method.begin(
            QueryContext(
                layout=embedded.layout,
                params=params,
                mode=mode,
                similarity=similarity,
                carry=self.carry,
                vision=embedded.vision,
                text=embedded.text,
                probe=partial(model.decoder.probe, embedded.hidden, embedded.layout),
            )
        )
        output = model.decoder(
            embedded.hidden, embedded.layout, running, None, model.read(embedded.layout)
        )
        outcome = running.finish()
        self.carry = outcome.carry
        self.queries += 1
        if mode is Mode.DENSE:
            self.dense += 1
            return
        actions = model.head(output, embedded.layout)
        first = max(outcome.kept[:2], key=lambda kept: kept[0] <= 2)[1]
        self.rows.append(
            {
                'tokens_static': len(first),
                'tokens_mean': float(np.mean(output.layer_tokens)),
                'prior_recall': outcome.recall,
                'kept_recall': kept_recall(first, truth['prior'], BEST),
                'action_deviation': float(action_deviation(actions, truth['actions']).max()),
            }
        )


def median(rows: list[dict[str, float | None]], name: str) -> float | None:
    """Median of what is known."""
    known = [row[name] for row in rows if row[name] is not None]
    return round(float(np.median(known)), 4) if known else None


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='tiny')
    parser.add_argument('--checkpoint', default='')
    parser.add_argument('--queries', type=int, default=24)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    policy = build_policy(args.checkpoint, args.model, args.seed)
    loaded, scene = policy.loaded, observations(policy, BENCH_INSTRUCTION, args.seed)
    model, dense = loaded.model, pruner('specprune')
    paper = PruningParams.preset_of('paper').replace(mode='coarse')
    askers = {name: Asker(paper.replace(**change)) for name, change in VARIATIONS.items()}
    prompt, before = loaded.tokenizer.encode(BENCH_INSTRUCTION), None
    with torch.inference_mode():
        for _ in range(args.queries):
            observation = next(scene)
            pixels = loaded.preprocessor([p.pixels for p in observation.images.values()])
            images = torch.as_tensor(pixels.images)
            proprio = None
            if observation.proprio is not None:
                state = loaded.statistics.normalise_proprio(observation.proprio)
                proprio = torch.from_numpy(np.asarray(state, np.float32))
            embedded = model.embed(pixels.tensor, prompt, proprio)
            layout = embedded.layout
            similarity = None if before is None else patch_cosine(images, before, layout.grid)
            before = images
            listening = dense.begin(QueryContext(layout, paper, Mode.DENSE))
            output = model.decoder(embedded.hidden, layout, listening, None, model.read(layout))
            truth = {
                'prior': listening.finish().carry['prior'],
                'actions': model.head(output, layout),
            }
            for asker in askers.values():
                asker.ask(model, embedded, similarity, truth)
    rows = [
        {
            'variation': name,
            'model': args.checkpoint or f'{args.model} (random weights, seed {args.seed})',
            'device': device_name(str(next(model.parameters()).device)),
            'queries': asker.queries,
            'dense_queries': asker.dense,
            **{key: median(asker.rows, key) for key in asker.rows[0]},
        }
        for name, asker in askers.items()
    ]
    print(f'{"":36} static   mean  prior   kept  deviation  dense')
    for row in rows:
        print(
            f'{row["variation"]:36} {row["tokens_static"]:6.0f} {row["tokens_mean"]:6.1f} '
            f'{row["prior_recall"]:6.2f} {row["kept_recall"]:6.2f} '
            f'{row["action_deviation"]:10.3f} {row["dense_queries"]:6}'
        )
    write(args.json, {'benchmark': 'fixes', 'rows': rows})


if __name__ == '__main__':
    main()
