"""``specprune explain``: one query as an image: what was kept, by which set, at what cost."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser('explain', help='draw what pruning kept in one query, and why')
    parser.add_argument('observation', type=Path, help='npz file with images, text and state')
    parser.add_argument(
        '--previous',
        type=Path,
        help='an earlier observation; without it the first query sees the same images and '
        'nothing has moved',
    )
    parser.add_argument('--out', type=Path, default=Path('out/explain.png'), help='PNG or SVG')
    parser.add_argument('--pruner', default='specprune', help='pruning method')
    parser.add_argument('--preset', default='default', help='default, paper or authors')
    parser.add_argument('--mode', default='coarse', choices=('coarse', 'fine'), help='how hard')
    parser.add_argument('--model', default='tiny', help='named sizes, random weights')
    parser.add_argument('--checkpoint', default='', help='checkpoint folder instead of --model')
    parser.add_argument('--device', default='auto', help='cpu, cuda, cuda:N or auto')
    parser.add_argument('--dtype', default='auto', help='float32, bfloat16, float16 or auto')
    parser.add_argument('--seed', type=int, default=0, help='seed of random weights')
    parser.add_argument('--param', action='append', default=[], metavar='NAME=VALUE')
    parser.add_argument('--json', type=Path, help='write the numbers here')
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from specprune_ros.bench.explain import explain, read_record
    from specprune_ros.bench.explain_figure import draw
    from specprune_ros.cli.bench import parse_changes
    from specprune_ros.policy.build import build_policy
    from specprune_ros.pruning.params import PruningParams

    try:
        now = read_record(args.observation)
        before = read_record(args.previous) if args.previous else now
        params = PruningParams.preset_of(args.preset).replace(
            pruner=args.pruner, **parse_changes(args.param)
        )
        loaded = build_policy(
            args.checkpoint, args.model, args.seed, args.device, args.dtype
        ).loaded
        explanation = explain(loaded, now, before, params, args.mode)
    except (ValueError, OSError) as error:
        print(f'specprune explain: {error}', file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(explanation, args.out)
    print(f'{explanation.summary()}\n{args.out}')
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(explanation.numbers(), indent=2) + '\n')
    return 0
