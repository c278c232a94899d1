"""``specprune eval``: closed-loop success of every pruner on the same episodes, with controls."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from specprune_ros.cli import options

FAMILIES = ('move', 'lift', 'put', 'two_step')


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'eval',
        parents=[options.param('a pruning parameter for every --pruner, e.g. alpha=0.6')],
        help='closed-loop success of every pruner on the same episodes, with controls',
    )
    parser.add_argument(
        '--bed',
        choices=('sim', 'libero'),
        default='sim',
        help='which tasks; libero takes no --first, --seeds, --families, --processes, --ray, '
        '--plot',
    )
    parser.add_argument('--suite', default='spatial', help='LIBERO suite: spatial, object, ...')
    parser.add_argument(
        '--checkpoint', type=Path, help='checkpoint folder (default: the weights that are shipped)'
    )
    parser.add_argument(
        '--table',
        default='main',
        help='main: dense, wrong colour, blind, SpecPrune, random at its layers and counts; '
        'pruners: every method; ablations: parts, refresh periods, alpha; curves: every method '
        'over its own retention knob',
    )
    parser.add_argument(
        '--pruner',
        default='',
        help='instead of a table, names separated by commas; NAME:PRESET starts from that preset',
    )
    parser.add_argument(
        '--episodes',
        type=int,
        default=20,
        help='per row and task family (LIBERO: per task, the authors play 50)',
    )
    parser.add_argument('--first', type=int, default=0, help='number of the first episode')
    parser.add_argument(
        '--seeds',
        choices=('report', 'tuning'),
        default='report',
        help='settings are chosen on tuning seeds and reported on the others',
    )
    parser.add_argument(
        '--executed', type=int, default=8, help='rows of a chunk played before the next query'
    )
    parser.add_argument(
        '--families',
        default=','.join(FAMILIES),
        help='separated by commas; the instructions of two_step have two parts',
    )
    parser.add_argument(
        '--deviation-episodes',
        type=int,
        default=20,
        help='of these many episodes of a row the action deviation from dense is measured too',
    )
    parser.add_argument('--device', default='auto', help='LIBERO: cpu, cuda, cuda:N or auto')
    parser.add_argument('--processes', type=int, default=0, help='0: one per core')
    parser.add_argument(
        '--ray',
        metavar='ADDRESS',
        help='play on a Ray cluster: its address, auto, or local (docs/how-to/scale.md)',
    )
    parser.add_argument(
        '--work',
        type=Path,
        default=Path('out/eval'),
        help='folder of the finished episodes; the same command goes on from it, and plays anew '
        'what other code of the method or of this package played',
    )
    parser.add_argument('--report-only', action='store_true', help='only what is there already')
    parser.add_argument('--json', type=Path, help='write the rows here')
    parser.add_argument('--plot', type=Path, help='image of success against FLOPs')
    parser.add_argument(
        '--page',
        type=Path,
        help='write the comparison as one HTML page: command, plot, tables with their intervals',
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit status 0, 1 where something is missing or wrong, 130 when interrupted."""
    from specprune_ros.cli.output import write_json
    from specprune_ros.pruning.params import ParamError
    from specprune_ros.sim.arm.render_backend import NoRenderer
    from specprune_ros.sim.libero.library import MissingLibero

    try:
        if args.episodes < 1 or args.first < 0:
            raise ValueError(f'--episodes {args.episodes} --first {args.first}: want 1 and 0 up')
        if args.executed < 1:
            raise ValueError(f'--executed {args.executed}: want 1 or more rows')
        report = _on_libero(args) if args.bed == 'libero' else _simulated(args)
    except KeyboardInterrupt:
        print(f'interrupted; the same command goes on from {args.work}', file=sys.stderr)
        return 130
    except (MissingLibero, NoRenderer, ParamError, ValueError, OSError) as error:
        print(f'specprune eval: {error}', file=sys.stderr)
        return 1
    if args.page:
        from specprune_ros.sim.evaluation.page import write_page

        write_page(args.page, report, _settings(args), curves=_is_curves(args))
        print(f'written: {args.page}')
    write_json(args.json, report)
    return 0


def _simulated(args: argparse.Namespace) -> dict[str, Any]:
    """Play what is missing on the simulated arm, print the table, draw the plot."""
    from specprune_ros.sim.arm.render_backend import choose
    from specprune_ros.sim.evaluation.evaluate import REPORT_SEED, TUNING_SEED
    from specprune_ros.sim.evaluation.report import print_rows
    from specprune_ros.sim.evaluation.results import table_rows
    from specprune_ros.sim.evaluation.trials import (
        TrialFile,
        checkpoint_hash,
        jobs,
        play_all,
        weights_hash,
    )
    from specprune_ros.sim.training.export import SHIPPED, check_shipped

    checkpoint = args.checkpoint or SHIPPED
    if not args.checkpoint:
        check_shipped()
    families = _families(args.families)
    settings = _settings(args)
    begin = (REPORT_SEED if args.seeds == 'report' else TUNING_SEED) + args.first
    seeds = range(begin, begin + args.episodes)
    weights = checkpoint_hash(checkpoint)
    done = TrialFile(args.work / 'trials.jsonl')
    executed, deviation = args.executed, args.deviation_episodes
    todo = list(jobs(settings, families, seeds, done, weights, executed, deviation))
    missing = sum(len(job.seeds) for job in todo)
    wanted = len({s.key(weights, executed) for s in settings}) * len(families) * len(seeds)
    started = time.monotonic()
    if todo and not args.report_only:
        _fits(checkpoint, settings)
        choose()
        bar = _bar(missing)
        if args.ray:
            from specprune_ros.sim.evaluation.on_ray import play_all_on_ray

            play_all_on_ray(args.ray, todo, done, checkpoint, args.processes, executed, bar.update)
        else:
            play_all(todo, done, checkpoint, args.processes, executed, bar.update)
        bar.close()
    played = 0 if args.report_only else missing
    seconds = time.monotonic() - started
    print(f'reused {wanted - missing}, played {played} episodes in {seconds:.0f} s')
    rows = table_rows(settings, families, seeds, done, weights, executed, deviation)
    if not rows:
        raise ValueError(f'{done.path}: holds no episode of these rows; leave out --report-only')
    print_rows(rows)
    if args.plot:
        from specprune_ros.sim.evaluation.plot import draw, draw_curves

        (draw_curves if _is_curves(args) else draw)(rows, args.plot)
        print(f'written: {args.plot}')
    return {
        'benchmark': 'fidelity',
        'table': args.table if not args.pruner else args.pruner,
        'seeds': f'{args.seeds}, {seeds.start} to {seeds.stop - 1}',
        'weights': weights_hash(checkpoint),
        'executed': executed,
        'reused': wanted - missing,
        'played': played,
        'rows': rows,
        **_circumstances(args),
    }


def _on_libero(args: argparse.Namespace) -> dict[str, Any]:
    """Play what is missing of a LIBERO suite and print the table over all its tasks."""
    from specprune_ros.cli.eval_libero import evaluate
    from specprune_ros.sim.evaluation.report import print_rows
    from specprune_ros.sim.evaluation.results import ALL

    for name in ('plot', 'ray'):
        if getattr(args, name):
            raise ValueError(f'--{name}: not with --bed libero')
    found = evaluate(args, _settings(args))
    if not found['rows']:
        raise ValueError(f'{args.work}: holds no episode of these rows; leave out --report-only')
    print_rows([row for row in found['rows'] if row['task'] == ALL])
    for note in found['libero']:
        print(note)
    table = args.pruner or f'{args.table}, LIBERO {args.suite}'
    return {'benchmark': 'libero', 'table': table, 'executed': args.executed, **found,
            **_circumstances(args)}  # fmt: skip


def _settings(args: argparse.Namespace) -> list[Any]:
    return chosen(args.table, args.pruner, args.param)


def _is_curves(args: argparse.Namespace) -> bool:
    return not args.pruner and args.table == 'curves'


def chosen(name: str, pruners: str, params: list[str]) -> list[Any]:
    """The rows requested. Raises ``ValueError`` or ``ParamError`` naming a wrong one."""
    from specprune_ros.pruning.params import PruningParams
    from specprune_ros.sim.evaluation.settings import DENSE, EvaluationSetting, table, with_control

    if not pruners:
        if params:
            raise ValueError('--param: goes with --pruner; a table has its own parameters')
        return table(name)
    changes = options.parse_changes(params)
    rows = [DENSE]
    for item in filter(None, (part.strip() for part in pruners.split(','))):
        method, _, preset = item.partition(':')
        if method == 'dense':
            continue
        base = PruningParams.preset_of(preset or 'default').replace(pruner=method, **changes)
        label = ' '.join([item, *params])
        rows += with_control(EvaluationSetting(label, base))
    return rows


def _families(text: str) -> list[str]:
    found = [part.strip() for part in text.split(',') if part.strip()]
    for family in found:
        if family not in FAMILIES:
            raise ValueError(f'--families {family}: want some of {", ".join(FAMILIES)}')
    if not found:
        raise ValueError(f'--families: want some of {", ".join(FAMILIES)}')
    return found


def _fits(checkpoint: Path, settings: list[Any]) -> None:
    """Load the policy once here, so that a bad checkpoint or parameter is said before the work."""
    from specprune_ros.policy.build import build_policy

    policy = build_policy(str(checkpoint), device='cpu', threads=1)
    for setting in settings:
        policy.check_params(setting.params)


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc='episodes', mininterval=1.0, file=sys.stderr)


def _circumstances(args: argparse.Namespace) -> dict[str, Any]:
    """Where and how the numbers were made."""
    import torch

    from specprune_ros.bench.host_info import host_info
    from specprune_ros.sim.evaluation.settings import method_hash, package_hash
    from specprune_ros.sim.training.export import revision

    methods = sorted({setting.params.pruner for setting in _settings(args)})
    code = ', '.join(f'{name} {method_hash(name)}' for name in methods)

    return {
        'machine': host_info(),
        'torch': torch.__version__,
        'revision': revision(),
        'code': f'package {package_hash()}, {code}',
        'date': time.strftime('%Y-%m-%d'),
        'command': shlex.join(['specprune', *getattr(args, 'words', sys.argv[1:])]),
    }
