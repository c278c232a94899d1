"""``specprune demo``: the simulated arm, the policy and the executor on real ROS 2."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_INSTRUCTIONS = (
    'move above the red cube',
    'lift the blue cube',
    'put the green cube on the orange plate',
)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'demo', help='run the simulated arm, the policy and the executor over ROS 2'
    )
    parser.add_argument(
        '--seconds',
        type=float,
        default=75.0,
        help='at most so long; it ends when the instructions are done (default 75)',
    )
    parser.add_argument(
        '--stay', action='store_true', help='keep running until Ctrl-C, to be talked to'
    )
    parser.add_argument('--no-view', action='store_true', help='without the page in the browser')
    parser.add_argument('--out', type=Path, default=Path('out'), help='folder for the results')
    parser.add_argument('--json', type=Path, help='summary file (default OUT/demo.json)')
    parser.add_argument(
        '--checkpoint', default='', help='checkpoint folder instead of the shipped weights'
    )
    parser.add_argument(
        '--random', action='store_true', help='seeded random weights instead of the shipped ones'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the scene and random weights')
    parser.add_argument(
        '--instruction',
        action='append',
        help='instruction to obey, pruned and dense; give several (default: three tasks)',
    )
    parser.add_argument(
        '--query-when',
        choices=('rate', 'chunk'),
        default='chunk',
        help='query once per chunk (default), as the shipped policy was evaluated '
        '(docs/explanation/fidelity.md), or at a rate',
    )
    parser.add_argument(
        '--query-rate', type=float, default=10.0, help='most queries a second (default 10)'
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    # ROS is imported only here, so that the other commands work without it.
    from specprune_ros.apps.demo.app import DemoOptions, run_demo

    return run_demo(
        DemoOptions(
            seconds=args.seconds,
            out=args.out,
            json=args.json or args.out / 'demo.json',
            checkpoint=args.checkpoint,
            random=args.random,
            seed=args.seed,
            instructions=tuple(args.instruction or DEFAULT_INSTRUCTIONS),
            query_rate=args.query_rate,
            query_when=args.query_when,
            stay=args.stay,
            view=not args.no_view,
        )
    )
