"""Which of a CPU's options pay: packed weights, bfloat16, channels-last images, torch.compile.

    python benchmarks/cpu_options.py --threads 2 --json benchmarks/results/cpu_options.json

(after `. scripts/env.sh`). Every option answers dense and pruned, all interleaved in one run, and
is compared with plain float32 in the same round. torch.compile needs a C++ compiler; what
compiling cost is counted, and after how many queries it is earned back.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write

from specprune_ros.models.accel.packed import pack
from specprune_ros.models.load import LoadedModel, random_policy_model
from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.device import device_name
from specprune_ros.policy.observation import Observation
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.synthetic_observations import observations
from specprune_ros.pruning.params import PruningParams

WARM = 4
OPTIONS = ('float32', 'packed', 'bfloat16', 'bfloat16_packed', 'channels_last', 'compile')


@dataclass
class Option:
    """One option with one pruner. ``first_s`` is what its warm-up took, compiling included."""

    name: str
    pruner: str
    policy: Policy
    first_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    decoder: list[float] = field(default_factory=list)
    vision: list[float] = field(default_factory=list)
    deviation: list[float] = field(default_factory=list)

    def query(self, observation: Observation) -> np.ndarray:
        """One timed query; its actions."""
        begin = time.perf_counter()
        result = self.policy.act(observation)
        self.seconds.append(time.perf_counter() - begin)
        self.decoder.append(result.times.decoder)
        self.vision.append(result.times.vision)
        return result.actions


def bfloat16(model: str, plain: LoadedModel) -> LoadedModel:
    """The same weights in half the bytes; units for it since Cooper Lake and Zen 4."""
    made = random_policy_model(model, dtype=torch.bfloat16)
    made.model.load_state_dict(plain.model.state_dict())
    return made


def packed(model: str, plain: LoadedModel) -> LoadedModel:
    """Weights laid out once as oneDNN reads them."""
    mine = copy.deepcopy(plain.model)
    if not pack(mine):
        raise SystemExit('this CPU is not one that packed weights are for')
    return replace(plain, model=mine)


def bfloat16_packed(model: str, plain: LoadedModel) -> LoadedModel:
    """Both."""
    return packed(model, bfloat16(model, plain))


def channels_last(model: str, plain: LoadedModel) -> LoadedModel:
    """Images laid out with their channels innermost."""
    mine = copy.copy(plain.preprocessor)

    def normalise(images: torch.Tensor) -> torch.Tensor:
        made = type(mine).normalise(mine, images)
        return made.to(memory_format=torch.channels_last)

    mine.normalise = normalise
    return replace(plain, preprocessor=mine)


def compiled(model: str, plain: LoadedModel) -> LoadedModel:
    """Towers, and what stands between the GEMMs of a decoder layer, through torch.compile."""
    mine = copy.deepcopy(plain.model)
    mine.vision.compile()
    for layer in mine.decoder.layers:
        layer.finish = torch.compile(layer.finish)
        layer.attn.project = torch.compile(layer.attn.project)
    return replace(plain, model=mine)


MAKE: dict[str, Callable[[str, LoadedModel], LoadedModel]] = {
    'packed': packed,
    'bfloat16': bfloat16,
    'bfloat16_packed': bfloat16_packed,
    'channels_last': channels_last,
    'compile': compiled,
}


def race(model: str, options: list[str], repeats: int) -> list[dict[str, Any]]:
    """One row per option and pruner."""
    plain = random_policy_model(model)
    made = {'float32': plain, **{n: MAKE[n](model, plain) for n in options if n in MAKE}}
    entered = [
        Option(name, pruner, Policy(loaded, PruningParams(pruner=pruner, mode='coarse')))
        for name, loaded in made.items()
        for pruner in ('dense', 'specprune')
    ]
    for option in entered:
        option.policy.wants_overlay = False
    scene = observations(entered[0].policy, BENCH_INSTRUCTION, seed=0)
    for _ in range(WARM):
        observation = next(scene)
        for option in entered:
            begin = time.perf_counter()
            option.policy.act(observation)
            option.first_s += time.perf_counter() - begin
    for number in range(repeats):
        observation = next(scene)
        turn = number % len(entered)
        actions = {}
        for option in entered[turn:] + entered[:turn]:
            actions[option.name, option.pruner] = option.query(observation)
        for option in entered:
            plain_actions = actions['float32', option.pruner]
            difference = np.abs(actions[option.name, option.pruner] - plain_actions).max()
            option.deviation.append(float(difference))
        latest = ', '.join(f'{o.name} {o.pruner} {1000 * o.seconds[-1]:.0f}' for o in entered)
        print(f'round {number + 1} of {repeats}, ms: {latest}', flush=True)
    by_name = {(option.name, option.pruner): option for option in entered}
    return [row(option, by_name['float32', option.pruner]) for option in entered]


def row(option: Option, plain: Option) -> dict[str, Any]:
    """Times and what the option gains over plain float32 with the same pruner."""
    ratios = np.array(plain.seconds) / np.array(option.seconds)
    saved = float(np.median(plain.seconds) - np.median(option.seconds))
    extra = option.first_s - plain.first_s
    speedup = float(np.median(ratios))
    low, high = (float(np.percentile(ratios, p)) for p in (25, 75))
    pays = low > 1.0 and option is not plain
    return {
        'option': option.name,
        'pruner': option.pruner,
        'ms_p50': round(1000 * float(np.median(option.seconds)), 2),
        'ms_decoder_p50': round(1000 * float(np.median(option.decoder)), 2),
        'ms_vision_p50': round(1000 * float(np.median(option.vision)), 2),
        'speedup': round(speedup, 3),
        'speedup_low': round(low, 3),
        'speedup_high': round(high, 3),
        'warm_up_s': round(option.first_s, 2),
        'earned_back_after_queries': round(max(0.0, extra) / saved) if saved > 0 else None,
        'action_deviation': round(float(np.median(option.deviation)), 6),
        'pays': pays,
    }


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='oft-medium')
    parser.add_argument('--options', default=','.join(OPTIONS))
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    requested = args.options.split(',')
    if unknown := sorted(set(requested) - set(OPTIONS)):
        parser.error(f'--options {unknown}: there are {", ".join(OPTIONS)}')
    torch.set_num_threads(args.threads)
    rows = race(args.model, requested, args.repeats)
    for item in rows:
        print(
            f'{item["option"]:16s}{item["pruner"]:10s}{item["ms_p50"]:9.1f} ms  '
            f'x{item["speedup"]:.2f} ({item["speedup_low"]:.2f}-{item["speedup_high"]:.2f})  '
            f'warm-up {item["warm_up_s"]:.1f} s  deviation {item["action_deviation"]:.2g}'
            + ('  pays' if item['pays'] else '')
        )
    result = {'benchmark': 'cpu_options', 'model': args.model, 'device': device_name('cpu')}
    write(args.json, {**result, 'queries': args.repeats, 'rows': rows})
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
