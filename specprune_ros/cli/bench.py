"""``specprune bench``: stock, dense and pruned on one model, interleaved, against the device."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specprune_ros.models.load import LoadedModel
    from specprune_ros.policy.bench.ceilings import Ceilings
    from specprune_ros.policy.bench.race import Contestant
    from specprune_ros.policy.calibration import Sweep

SWEEP_STEP, SWEEP_ROUNDS = 32, 5


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'bench', help='time stock, dense and pruned queries, interleaved, on one model'
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
        help='tiny, oft-medium, openvla-oft-7b, db-oft-7b or cogact-7b; random weights',
    )
    parser.add_argument('--checkpoint', default='', help='checkpoint folder instead of --model')
    parser.add_argument('--device', default='auto', help='cpu, cuda, cuda:N or auto')
    parser.add_argument('--dtype', default='auto', help='float32, bfloat16, float16 or auto')
    parser.add_argument(
        '--fp8',
        action='store_true',
        help="the decoder's linear layers in float8 (Ada, Hopper or newer); no stock loop then",
    )
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (0: all but one)')
    parser.add_argument('--repeats', type=int, default=11, help='timed queries of each')
    parser.add_argument('--seed', type=int, default=0, help='seed of the weights and pictures')
    parser.add_argument(
        '--param',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a pruning parameter for every pruner, e.g. alpha=0.6 (VALUE as in YAML)',
    )
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
    from specprune_ros.cli.bench_tables import print_tables

    try:
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
            changes=parse_changes(args.param),
            stock=not args.no_stock,
            graphs=not args.no_graphs,
            sweep_step=args.sweep,
            progress=True,
        )
        print_tables(result)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result.rows + result.sweep_rows, indent=2) + '\n')
        if args.plot:
            from specprune_ros.cli.roofline import draw

            draw(result.rows, args.plot)
    except (ValueError, OSError) as error:
        print(f'specprune bench: {error}', file=sys.stderr)
        return 1
    return 0


def parse_changes(items: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` items to parameters; VALUE is read as JSON, else taken as text."""
    changes: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition('=')
        if not equals:
            raise SystemExit(f'--param {item}: must be NAME=VALUE')
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


@dataclass
class Result:
    """``rows`` of the race, dense first; ``sweep`` (measured now or remembered) if there is one,
    and its rows where it was measured now. ``peak_mib`` of device memory and ``weights_mib`` of
    the model; the first is ``None`` on a CPU.
    """

    rows: list[dict[str, Any]]
    sweep: Sweep | None = None
    sweep_rows: list[dict[str, Any]] = field(default_factory=list)
    peak_mib: float | None = None
    weights_mib: float = 0.0


def bench(
    pruners: str = 'specprune',
    model: str = 'oft-medium',
    checkpoint: str = '',
    device: str = 'auto',
    dtype: str = 'auto',
    fp8: bool = False,
    threads: int = 0,
    repeats: int = 11,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    stock: bool = True,
    graphs: bool = True,
    sweep_step: int | None = None,
    progress: bool = False,
    more: Callable[[LoadedModel], Sequence[Contestant]] | None = None,
) -> Result:
    """Time the policies (``race.table`` says what a row holds). ``more`` adds contestants.

    Where it is known which tokens cost nothing on this device, measured now (``sweep_step``) or
    before, SpecPrune keeps them, unless ``changes`` say otherwise; ``free_tokens`` of a row tells.
    With ``fp8`` the stock loop, which has no float8, is left out.

    Raises ``ParamError``, ``RoomError`` and the loader's errors, all of them ``ValueError``.
    """
    from specprune_ros.models.presets import BENCH_INSTRUCTION
    from specprune_ros.models.room import weight_bytes
    from specprune_ros.policy import calibration
    from specprune_ros.policy.bench.race import contestants, race
    from specprune_ros.policy.bench.scene import copies_ms, observations
    from specprune_ros.policy.bench.table import table
    from specprune_ros.policy.build import build_policy
    from specprune_ros.policy.engine.capture import recorder_on

    if repeats < 1:
        raise ValueError(f'--repeats {repeats}: at least 1')
    first = build_policy(
        checkpoint, model, seed, device, dtype, threads=threads, progress=progress, fp8=fp8
    )
    loaded = first.loaded
    name, counts = calibration.key(loaded), []
    if sweep_step is not None:  # a bad one is refused before anything is measured
        counts = calibration.edges(calibration.bench_layout(loaded), sweep_step)
    recorder = recorder_on(loaded.preprocessor.device) if graphs else None
    entered = contestants(loaded, pruners, dict(changes or {}), stock and not fp8, recorder)
    entered += [] if more is None else list(more(loaded))
    found = _sweep(loaded, name, counts, progress) if counts else calibration.known(name)
    if found is not None:
        loaded.model.staircase = found.staircase
    ceilings = _ceilings(loaded)
    scene = observations(first, BENCH_INSTRUCTION, seed)
    race(entered, scene, _progress(range(repeats), 'timing', progress))
    # Again at the end, and the better of both: other work on the machine only lowers a ceiling.
    ceilings = ceilings.best(_ceilings(loaded))
    rows = table(entered, checkpoint or model, ceilings)
    copied = round(copies_ms(first, next(scene)), 4)
    free = [_uses_free_tokens(contestant) for contestant in entered]
    rows = [
        {**row, 'ms_copies': copied, 'free_tokens': used}
        for row, used in zip(rows, free, strict=True)
    ]
    sweep_rows = _sweep_rows(found, rows[0]) if found and counts else []
    weights = round(weight_bytes(loaded.model) / 2**20, 1)
    return Result(rows, found, sweep_rows, _peak(loaded), weights)


def _sweep(loaded: LoadedModel, name: str, counts: Sequence[int], progress: bool) -> Sweep:
    """Measure and remember; a cache that cannot be written is only told of."""
    from specprune_ros.policy import calibration

    rounds = _progress(range(SWEEP_ROUNDS), 'sweep', progress)
    found = calibration.sweep(loaded, counts, rounds)
    try:
        calibration.keep(name, found)
    except OSError as error:
        print(f'the sweep cannot be remembered: {error}', file=sys.stderr)
    return found


def _uses_free_tokens(contestant: Contestant) -> bool:
    """Whether it keeps what costs nothing on this device."""
    from specprune_ros.policy.calibration import bench_layout
    from specprune_ros.pruning.interface import Mode
    from specprune_ros.pruning.specprune import free_tokens

    policy = contestant.policy
    return free_tokens(bench_layout(policy.loaded), policy.params, Mode.COARSE) is not None


def _ceilings(loaded: LoadedModel) -> Ceilings:
    from specprune_ros.models.fp8 import number_format
    from specprune_ros.policy.bench.ceilings import measure

    weight = loaded.model.decoder.norm.weight
    float8 = 'float8' in number_format(loaded.model.decoder)
    return measure(weight.device, weight.dtype, float8)


def _peak(loaded: LoadedModel) -> float | None:
    import torch

    device = next(loaded.model.parameters()).device
    if device.type != 'cuda':
        return None
    # What is reserved: a graph's memory counts as free between its replays, and is not.
    return round(torch.cuda.max_memory_reserved(device) / 2**20, 1)


def _sweep_rows(sweep: Sweep, dense: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sweep in the shape of the other rows; ``ms_p50`` is the decoder alone."""
    same = {key: dense[key] for key in ('model', 'device', 'dtype', 'tokens_in')}
    return [
        {
            **same,
            'pruner': 'keep',
            'mode': 'sweep',
            'tokens_mean': tokens,
            'rows': rows,
            'ms_p50': ms,
            'speedup': round(sweep.ms[-1] / ms, 3),
            'floor_rows': sweep.floor_rows,
            'floor_tokens': sweep.floor_tokens,
        }
        for tokens, rows, ms in zip(sweep.tokens, sweep.rows, sweep.ms, strict=True)
    ]


def _progress(items: range, title: str, shown: bool) -> Any:
    if not shown:
        return items
    from rich.progress import track

    return track(items, description=title, transient=True)
