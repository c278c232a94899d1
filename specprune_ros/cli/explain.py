"""``specprune explain``: one query as an image: what was kept, by which set, at what cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specprune_ros.cli import options

if TYPE_CHECKING:
    from specprune_ros.bench.explain import Record
    from specprune_ros.models.load import LoadedModel


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'explain',
        parents=[
            options.robot('sim_arm'),
            options.checkpoint(),
            options.device(),
            options.param('a pruning parameter, e.g. alpha=0.6'),
        ],
        help='draw what pruning kept in one query, and why',
    )
    parser.add_argument(
        'observation',
        type=Path,
        nargs='?',
        help='npz file with images, text and state (default: one of the simulated arm that comes '
        'with the package)',
    )
    parser.add_argument(
        '--previous',
        type=Path,
        help='an earlier observation; without it the first query sees the same images and '
        'nothing has moved',
    )
    parser.add_argument('--bag', type=Path, help='take the observation from this recording')
    parser.add_argument(
        '--at', type=float, default=3.0, metavar='T', help='seconds into --bag (default 3)'
    )
    parser.add_argument(
        '--live', action='store_true', help="take the observation from the arm's topics now"
    )
    parser.add_argument(
        '--instruction', default='', help='instruction, where --bag or --live have none'
    )
    parser.add_argument('--out', type=Path, default=Path('out/explain.png'), help='PNG or SVG')
    parser.add_argument('--pruner', default='specprune', help='pruning method')
    parser.add_argument('--preset', default='default', help='default, paper or authors')
    parser.add_argument('--mode', default='coarse', choices=('coarse', 'fine'), help='how hard')
    parser.add_argument(
        '--checkpoint',
        default='',
        help='checkpoint folder (default: the policy that comes with the package for what the '
        "simulated arm saw, a recording's own, else random weights)",
    )
    parser.add_argument('--model', default='', help='named sizes with random weights instead')
    parser.add_argument('--seed', type=int, default=0, help='seed of random weights')
    parser.add_argument('--json', type=Path, help='write the numbers here')
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit status 0, or 1 with the reason."""
    from specprune_ros.bench.explain import explain
    from specprune_ros.bench.explain_figure import draw
    from specprune_ros.cli.output import working, write_json
    from specprune_ros.policy.build import build_policy
    from specprune_ros.pruning.params import PruningParams

    try:
        if sum(map(bool, (args.observation, args.bag, args.live))) > 1:
            raise ValueError('take one of an observation file, --bag and --live')
        if args.checkpoint and args.model:
            raise ValueError('take one of --checkpoint and --model')
        if args.previous and not args.observation:
            raise ValueError('--previous goes with an observation file')
        params = PruningParams.preset_of(args.preset).replace(
            pruner=args.pruner, **options.parse_changes(args.param)
        )
        path = _weights(args)
        if not path:
            print('weights are random: what they attend to means nothing', file=sys.stderr)
        loaded = build_policy(
            path,
            args.model or 'tiny',
            args.seed,
            args.device,
            args.dtype,
            unnorm_key=args.unnorm_key or '',
            platform=args.platform or '',
            progress=True,
        ).loaded
        with working('waiting for an observation' if args.live else 'reading the observation'):
            before, now = _records(args, loaded)
        with working('querying the policy'):
            explanation = explain(loaded, now, before, params, args.mode)
    except (ValueError, OSError, RuntimeError) as error:
        print(f'specprune explain: {error}', file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(explanation, args.out)
    print(f'{explanation.summary()}\n{args.out}')
    write_json(args.json, explanation.numbers())
    return 0


def _weights(args: argparse.Namespace) -> str:
    """Folder of the checkpoint, empty for random weights."""
    if args.checkpoint or args.model:
        return args.checkpoint
    if args.bag:
        from specprune_ros.apps.bag import BagReader, own_weights

        with BagReader(args.bag) as bag:
            return own_weights(bag, _profile(args).simulated)[0]
    if args.observation or (args.live and not _profile(args).simulated):
        return ''
    from specprune_ros.sim.training.export import SHIPPED, check_shipped

    check_shipped()
    return str(SHIPPED)


def _records(args: argparse.Namespace, loaded: LoadedModel) -> tuple[Record, Record]:
    """The earlier observation and the one to explain."""
    from specprune_ros.bench.explain import read_record, shipped_records

    if args.bag:
        from specprune_ros.apps.observe import from_bag

        return from_bag(
            args.bag, _profile(args), args.at, loaded.config, args.instruction, args.namespace
        )
    if args.live:
        from specprune_ros.apps.observe import from_topics

        return from_topics(_profile(args), loaded.config, args.instruction, args.namespace)
    if not args.observation:
        return shipped_records()
    now = read_record(args.observation)
    return (read_record(args.previous) if args.previous else now), now


def _profile(args: argparse.Namespace) -> Any:
    from specprune_ros.nodes.common.remapping import load_profile

    return load_profile(args.robot, args.robot_sn, args.namespace)
