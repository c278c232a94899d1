"""``specprune bench``: every pruner on one model, interleaved, against dense in the same run."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specprune_ros.policy.observation import Observation
    from specprune_ros.policy.policy import Policy
    from specprune_ros.pruning.interface import PruneSchedule, TokenLayout

STEPS_PER_QUERY = 8
WARM_QUERIES = 5  # dense first, then until every method's memory is full


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser(
        'bench', help='time every pruner on one model, interleaved, against dense'
    )
    parser.add_argument(
        '--pruner',
        default='all',
        help='names separated by commas, or all; NAME:PRESET starts from that preset '
        '(all adds specprune:paper and specprune:authors)',
    )
    parser.add_argument('--model', default='oft-medium', help='named sizes, random weights')
    parser.add_argument('--checkpoint', default='', help='checkpoint folder instead of --model')
    parser.add_argument('--device', default='auto', help='cpu, cuda, cuda:N or auto')
    parser.add_argument('--dtype', default='auto', help='float32, bfloat16, float16 or auto')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (0: PyTorch chooses)')
    parser.add_argument('--repeats', type=int, default=11, help='timed queries of each pruner')
    parser.add_argument('--seed', type=int, default=0, help='seed of the weights and pictures')
    parser.add_argument(
        '--param',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a pruning parameter for every pruner, e.g. alpha=0.6 (VALUE as in YAML)',
    )
    parser.add_argument('--json', type=Path, help='write the rows here')
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    rows = bench(
        pruners=args.pruner,
        model=args.model,
        checkpoint=args.checkpoint,
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        repeats=args.repeats,
        seed=args.seed,
        changes=parse_changes(args.param),
        progress=True,
    )
    print_table(rows)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=2) + '\n')
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
class Contestant:
    """One pruner with a policy of its own; the weights are shared."""

    label: str
    policy: Policy
    seconds: list[float] = field(default_factory=list)
    decoder: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    decoder_ratio: list[float] = field(default_factory=list)
    full_size: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    tokens_in: int = 0
    deviation: float | None = None


def bench(
    pruners: str = 'all',
    model: str = 'oft-medium',
    checkpoint: str = '',
    device: str = 'auto',
    dtype: str = 'auto',
    threads: int = 0,
    repeats: int = 11,
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Time the pruners and return one row each, dense first.

    Every round asks every pruner once, in turning order, with the same observation; the speed-up
    is the median over rounds of dense time over this pruner's time in the same round, with its
    quartiles. ``flops_ratio`` counts the whole query; ``flops_ratio_decoder`` the language model
    alone, as the papers do, and ``flops_ratio_7b`` the same at OpenVLA-OFT's size (where the model
    has its depth). Raises ParamError and the loader's errors.
    """
    from specprune_ros.models.presets import BENCH_INSTRUCTION
    from specprune_ros.policy.build import build_policy
    from specprune_ros.policy.policy import Policy

    first = build_policy(
        checkpoint, model, seed, device, dtype, threads=threads, progress=progress
    )
    contestants = [
        Contestant(label, Policy(first.loaded, params))
        for label, params in contestants_of(pruners, dict(changes or {}))
    ]
    instruction = BENCH_INSTRUCTION
    for contestant in contestants:
        contestant.policy.check_params(contestant.policy.params)
    scene = observations(first, instruction, seed)
    for _ in range(WARM_QUERIES):
        observation = next(scene)
        for contestant in contestants:
            contestant.policy.act(observation)
    for number in _progress(range(repeats), 'timing', progress):
        observation = next(scene)
        turn = number % len(contestants)
        for contestant in contestants[turn:] + contestants[:turn]:
            _measure(contestant, observation, first.layout(instruction))
    _deviations(contestants, next(scene))
    dtype_name = str(next(first.loaded.model.parameters()).dtype).removeprefix('torch.')
    name = checkpoint or model
    return [_row(c, contestants[0], name, dtype_name) for c in contestants]


def contestants_of(pruners: str, changes: dict[str, Any]) -> list[tuple[str, Any]]:
    """Labels and parameters from ``--pruner``; dense always comes first."""
    from specprune_ros.pruning.params import ParamError, PruningParams
    from specprune_ros.pruning.registry import names

    asked = [part.strip() for part in pruners.split(',') if part.strip()]
    if 'all' in asked:
        asked = [*names(), 'specprune:paper', 'specprune:authors']
    labels = ['dense', *(label for label in dict.fromkeys(asked) if label != 'dense')]
    result = []
    for label in labels:
        name, _, preset = label.partition(':')
        if name not in names():
            raise ParamError('pruner', f'{name!r} is none of {", ".join(names())}')
        # Coarse throughout: fine and dense queries would blur what is compared.
        start = PruningParams.preset_of(preset or 'default').replace(pruner=name, mode='coarse')
        result.append((label, start.replace(**changes)))
    return result


def observations(policy: Policy, instruction: str, seed: int) -> Iterator[Observation]:
    """A made-up scene: textured background, a block that moves, a wrist camera that drifts."""
    import numpy as np
    import torch

    from specprune_ros.policy.observation import Observation, Picture
    from specprune_ros.pruning.controller import SpeedSample

    size, config = policy.config.image_size, policy.config
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(len(config.cameras), 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=size // 4, mode='bilinear')
    big = smooth.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    proprio = np.zeros(config.proprio_dim) if config.proprio_dim else None
    step = 0
    while True:
        pictures = {}
        stamp = round(step * policy.step_dt * 1e9)
        for number, camera in enumerate(config.cameras):
            shift = 2 * step // STEPS_PER_QUERY % 64 if number else 0
            pixels = big[number, shift : shift + size, shift : shift + size].copy()
            left = 20 + step % (size // 2)
            pixels[size // 3 : size // 3 + 40, left : left + 40] = (200, 30, 30)
            pictures[camera] = Picture(pixels, stamp)
            policy.history.push(camera, pictures[camera])
        yield Observation(
            pictures=pictures,
            instruction=instruction,
            proprio=proprio,
            speed=SpeedSample(0.5, 0.5, 0.0, 'made up'),
            position=np.array([0.0005 * step * step, 0.0, 0.3]),
        )
        step += STEPS_PER_QUERY


def _measure(contestant: Contestant, observation: Observation, layout: TokenLayout) -> None:
    from specprune_ros.models.presets import preset

    policy = contestant.policy
    begin = time.perf_counter()
    result = policy.act(observation)
    contestant.seconds.append(time.perf_counter() - begin)
    contestant.decoder.append(result.times.decoder)
    contestant.flops.append(result.flops_ratio)
    contestant.tokens.append(result.tokens.mean)
    contestant.tokens_in = result.tokens.total
    after = dict(zip(result.tokens.layers, result.tokens.after, strict=True))
    contestant.decoder_ratio.append(decoder_ratio(policy, policy.config, layout, after))
    full = preset('openvla-oft-7b')
    if layout.depth == full.decoder.depth and not layout.causal:
        contestant.full_size.append(decoder_ratio(policy, full, layout, after))


def decoder_ratio(
    policy: Policy, config: Any, layout: TokenLayout, after: Mapping[int, int]
) -> float:
    """Decoder operations, side products included, over dense, from the tokens really left."""
    from specprune_ros.models.flops import Listened, count, dense_flops
    from specprune_ros.pruning.interface import Mode
    from specprune_ros.pruning.registry import pruner

    params = policy.params
    # A query that did not prune at all was dense, whatever the method announces for others.
    mode = Mode.COARSE if after else Mode.DENSE
    schedule = pruner(params.pruner).plan(layout, params, mode)
    work = layer_work(layout, schedule, after)
    listened = [
        Listened(layer, len(layout.rows(group)), work[layer - 1].keys)
        for layer, groups in schedule.listen.items()
        for group in groups
    ]
    spent = count(config, work, listened)
    return (spent.decoder + spent.listening) / dense_flops(config, layout).decoder


def layer_work(
    layout: TokenLayout, schedule: PruneSchedule, after: Mapping[int, int]
) -> list[Any]:
    """Rows each layer computes when ``after`` tokens are left behind each boundary."""
    from specprune_ros.models.flops import LayerRows

    others = layout.length - layout.vision_tokens
    current, work = after.get(0, layout.vision_tokens), []
    for layer in range(1, layout.depth + 1):
        rows = 0 if layer in schedule.skip else others + current
        keys = layout.length if schedule.reuse and rows else rows
        asked = layout.action[1] - layout.action[0] if layer == layout.depth else rows
        work.append(LayerRows(rows, min(rows, asked), keys))
        current = after.get(layer, current)
    return work


def _deviations(contestants: list[Contestant], observation: Observation) -> None:
    """How far each pruner's actions lie from dense on one more observation."""
    for contestant in contestants:
        contestant.policy.measure_deviation = True
        result = contestant.policy.act(observation)
        contestant.policy.measure_deviation = False
        if result.action_deviation is not None:
            contestant.deviation = float(result.action_deviation.max())


def _row(c: Contestant, dense: Contestant, model: str, dtype: str) -> dict[str, Any]:
    import numpy as np

    ratios = np.array(dense.seconds) / np.array(c.seconds)
    milliseconds = 1000 * np.array(c.seconds)
    return {
        'model': model,
        'pruner': c.label,
        'mode': 'eager',
        'device': device_name(str(next(c.policy.loaded.model.parameters()).device)),
        'dtype': dtype,
        'tokens_in': c.tokens_in,
        'tokens_mean': round(float(np.mean(c.tokens)), 2),
        'flops_ratio': round(float(np.mean(c.flops)), 4),
        'flops_ratio_decoder': round(float(np.mean(c.decoder_ratio)), 4),
        'flops_ratio_7b': round(float(np.mean(c.full_size)), 4) if c.full_size else None,
        'ms_p50': round(float(np.median(milliseconds)), 3),
        'ms_p99': round(float(np.percentile(milliseconds, 99)), 3),
        'ms_decoder_p50': round(1000 * float(np.median(c.decoder)), 3),
        'speedup': round(float(np.median(ratios)), 3),
        'speedup_low': round(float(np.percentile(ratios, 25)), 3),
        'speedup_high': round(float(np.percentile(ratios, 75)), 3),
        'action_deviation': c.deviation,
        'queries': len(c.seconds),
    }


def device_name(device: str) -> str:
    """The device and what it is, e.g. ``cpu (AMD EPYC ..., 2 threads)``."""
    import torch

    if device.startswith('cuda'):
        return f'{device} ({torch.cuda.get_device_name(device)})'
    name = platform.processor() or platform.machine()
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                name = line.split(':', 1)[1].strip()
                break
    except OSError:
        pass
    return f'{device} ({name}, {torch.get_num_threads()} threads)'


def print_table(rows: list[dict[str, Any]]) -> None:
    """The rows for people."""
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    table = Table(
        title=f'{first["model"]}, {first["dtype"]}, {first["device"]}, {first["queries"]} queries',
        caption='FLOPs and speed-up against dense in the same run; decoder: the language model '
        'alone, as the papers count; 7B: the same at OpenVLA-OFT-7B. Quartiles in brackets.',
    )
    table.add_column('pruner', no_wrap=True)
    for title in ('tokens', 'FLOPs', 'decoder', '7B', 'ms p50', 'ms p99', 'speed-up', 'deviation'):
        table.add_column(title, justify='right', no_wrap=True)
    for row in rows:
        full = row['flops_ratio_7b']
        deviation = row['action_deviation']
        table.add_row(
            row['pruner'],
            f'{row["tokens_mean"]:.0f}',
            f'{row["flops_ratio"]:.1%}',
            f'{row["flops_ratio_decoder"]:.1%}',
            '' if full is None else f'{full:.1%}',
            f'{row["ms_p50"]:.1f}',
            f'{row["ms_p99"]:.1f}',
            f'{row["speedup"]:.2f} ({row["speedup_low"]:.2f}-{row["speedup_high"]:.2f})',
            '' if deviation is None else f'{deviation:.3g}',
        )
    console = Console()
    console.width = max(console.width, 116)
    console.print(table)


def _progress(items: range, title: str, shown: bool) -> Any:
    if not shown:
        return items
    from rich.progress import track

    return track(items, description=title, transient=True)
