"""What the method itself costs: controller and set logic on OpenVLA-OFT's layout, no model.

Times the host side (controller, plan) and the tensors (sets, scores, drops) of coarse queries on
made-up attention, and counts the kernels a GPU would launch. On a GPU the tensors are timed with
events, eager and inside a CUDA graph.

    python benchmarks/set_logic.py [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specprune_ros.policy.engine.capture import CudaGraphCapturer
from specprune_ros.pruning.controller import (
    Controller,
    ControllerState,
    SpeedSample,
    history_offset,
)
from specprune_ros.pruning.interface import Mode, QueryContext, TokenLayout
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner

OFT = TokenLayout(
    cameras=2,
    grid=(16, 16),
    vision_start=1,
    text=tuple(range(524, 543)),
    prompt=tuple(range(514, 548)),
    action=(547, 603),
    length=605,
    depth=32,
)
VIEWS = {
    'view', 'expand', 'unsqueeze', 'squeeze', 'select', 'slice', 'transpose', 'permute', 't',
    'detach', 'alias', 'as_strided', '_unsafe_view', 'split', 'empty', 'empty_like', 'reshape',
}  # fmt: skip


class Kernels(TorchDispatchMode):
    """Counts operators that launch at least one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


class Query:
    """The pruner's part of one coarse query, on fixed made-up attention."""

    def __init__(self, params: PruningParams, device: torch.device) -> None:
        self.params, self.method, self.carry = params, pruner('specprune'), {}
        self.similarity = (1 - 0.05 * torch.rand(512)).to(device)
        self.heard, self.rows, current = {}, {}, 512
        schedule = self.method.plan(OFT, params, Mode.COARSE)
        for layer in range(1, 33):
            for group in schedule.observed_layers.get(layer, ()):
                shape = (len(OFT.rows(group)), current)
                self.heard[layer, group] = (torch.rand(shape) / current).to(device)
            self.rows[layer] = torch.empty(current, 1, device=device)
            current = schedule.prune.get(layer, current)
        self.carry = {
            'prior': torch.rand(2, 512, device=device),
            'confidence': torch.rand(4, device=device) + 1,
        }

    def __call__(self) -> None:
        """Run it once."""
        running = self.method.begin(
            QueryContext(OFT, self.params, Mode.COARSE, self.similarity, self.carry)
        )
        for layer in range(1, 33):
            for group in running.schedule.observed_layers.get(layer, ()):
                running.observe(layer, group, self.heard[layer, group])
            if layer in running.schedule.prune:
                running.select(layer, self.rows[layer])
        running.finish()


def host(params: PruningParams) -> None:
    """What runs on the host before the model: the controller, the reference frame, the plan."""
    decision = Controller().decide(
        SpeedSample(0.4, 0.5, 0.01, 'twist', 0.01), params, ControllerState()
    )
    history_offset(0.02, params)
    pruner('specprune').plan(OFT, params, decision.mode)


def timed(call: Callable[[], None], repeats: int, wait: Callable[[], None]) -> dict[str, float]:
    """Milliseconds, median and quartiles."""
    for _ in range(20):
        call()
    wait()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        wait()
        times.append(1000 * (time.perf_counter() - begin))
    low, middle, high = statistics.quantiles(times, n=4)
    return {'ms_p50': round(middle, 4), 'ms_p25': round(low, 4), 'ms_p75': round(high, 4)}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--repeats', type=int, default=200)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    gpu = device.type == 'cuda'
    wait = torch.cuda.synchronize if gpu else (lambda: None)
    machine = torch.cuda.get_device_name() if gpu else _cpu()
    rows = []
    with torch.no_grad():
        for preset in ('paper', 'default'):
            params = PruningParams.preset_of(preset)
            query = Query(params, device)
            query()
            with Kernels() as kernels:
                query()
            row = {'preset': preset, 'device': f'{device} ({machine})', 'kernels': kernels.count}
            row['host'] = timed(lambda p=params: host(p), args.repeats, lambda: None)
            row['sets'] = timed(query, args.repeats, wait)
            if gpu:
                row['sets_in_a_graph'] = timed(
                    CudaGraphCapturer(device).record(query), args.repeats, wait
                )
            rows.append(row)
            print(json.dumps(row))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=2) + '\n')


def _cpu() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


if __name__ == '__main__':
    main()
