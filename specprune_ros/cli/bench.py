"""``specprune bench``: stock, dense and pruned on one model, interleaved, against the device."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from specprune_ros.cli import options

SWEEP_STEP = 32  # rows


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'bench',
        parents=[
            options.device(),
            options.param('a pruning parameter for every pruner, e.g. alpha=0.6'),
        ],
        help='time stock, dense and pruned queries, interleaved, on one model',
    )
    parser.add_argument(
        '--pruner',
        default='specprune',
        help='names separated by commas, or all; NAME:PRESET starts from that preset '
        '(all adds specprune:paper and specprune:authors)',
    )
    parser.add_argument(
        '--model',
        default='oft-medium',
        help='shipped, or a preset with random weights, such as tiny, oft-medium, pi0-medium, '
        'openvla-oft-7b or pi05-3b (docs/how-to/bench.md)',
    )
    parser.add_argument('--checkpoint', default='', help='checkpoint folder instead of --model')
    parser.add_argument(
        '--fp8',
        action='store_true',
        help="the decoder's linear layers in float8 (Ada, Hopper or newer); no stock loop then",
    )
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (0: all but one)')
    parser.add_argument('--repeats', type=int, default=11, help='timed queries of each')
    parser.add_argument('--seed', type=int, default=0, help='seed of the weights and images')
    parser.add_argument('--no-stock', action='store_true', help='leave the stock loop out')
    parser.add_argument(
        '--no-graphs', action='store_true', help='leave the CUDA graphs out (a CPU has none)'
    )
    parser.add_argument(
        '--sweep',
        nargs='?',
        const=SWEEP_STEP,
        type=int,
        metavar='STEP',
        help='first time the decoder at every multiple of STEP rows and one row more (default '
        f'{SWEEP_STEP}), find which tokens cost nothing, and remember it for this device',
    )
    parser.add_argument('--json', type=Path, help='write the rows here')
    parser.add_argument('--plot', type=Path, help='draw the roofline here (png, svg, pdf)')
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from specprune_ros.bench.measure import bench
    from specprune_ros.bench.report import print_tables
    from specprune_ros.cli.output import write_json

    try:
        if args.model == 'shipped' and not args.checkpoint:
            # The other models need no simulator.
            from specprune_ros.sim.training.export import SHIPPED, check_shipped

            check_shipped()
            args.checkpoint = str(SHIPPED)
        result = bench(
            pruners=args.pruner,
            model=args.model,
            checkpoint=args.checkpoint,
            device=args.device,
            dtype=args.dtype,
            fp8=args.fp8,
            threads=args.threads,
            repeats=args.repeats,
            seed=args.seed,
            changes=options.parse_changes(args.param),
            stock=not args.no_stock,
            graphs=not args.no_graphs,
            sweep_step=args.sweep,
            progress=True,
        )
        print_tables(result)
        write_json(args.json, result.rows + result.sweep_rows)
        if args.plot:
            from specprune_ros.bench.report import draw_roofline

            draw_roofline(result.rows, args.plot)
    except (ValueError, OSError, RuntimeError) as error:
        print(f'specprune bench: {error}', file=sys.stderr)
        return 1
    return 0
