"""Everything that is claimed of a GPU, measured on one.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json

For every model: `specprune bench` with the stock loop, dense and pruned, eager and as CUDA graphs,
interleaved, 200 queries each, after a sweep of the rows; the same graphs with the decoder in
float8; queries as a node asks them, with images prepared on arrival and nothing beside; a profile
of replays (how much of a query the device works, and at what); and, in a process of its own, the
memory that all graphs of a node take. On a CPU (`--device cpu --models tiny`) it runs what there
is, to be tried out: no graphs, no float8, no profile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write

from specprune_ros.bench.measure import bench
from specprune_ros.bench.report import draw_roofline, print_tables
from specprune_ros.bench.roofline import measure
from specprune_ros.models.accel.device_memory import weight_bytes
from specprune_ros.models.accel.fp8 import CAPABILITY
from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.device import device_name, settle
from specprune_ros.policy.synthetic_observations import observations
from specprune_ros.pruning.params import PruningParams

MODELS = 'openvla-oft-7b,db-oft-7b,cogact-7b'
PROFILED = 20  # replays
# Substrings of kernels' names that are matrix products or attention in PyTorch's libraries.
GEMM = ('gemm', 'nvjet', 'cutlass', 'xmma', 'cublas')
ATTENTION = ('flash', 'fmha', 'attention', 'sdpa')
FIGURES = {
    'dense_ms': 'dense graph p50 (ms)',
    'pruned_ms': 'pruned graph p50 (ms)',
    'over_dense': 'pruned over dense graph',
    'over_stock': 'pruned graph over stock eager',
    'node_dense_ms': 'dense graph, images prepared on arrival, p50 (ms)',
    'node_pruned_ms': 'pruned graph, images prepared on arrival, p50 (ms)',
    'node_over_dense': 'pruned over dense, images prepared on arrival',
    'tail': 'p99 over p50 of these, the worse',
    'fp8_ms': 'pruned graph in float8 p50 (ms)',
    'fp8_over_dense': 'pruned over dense graph, both in float8',
    'gemm_share': 'decoder GEMMs of the ceiling, dense',
    'memory_gib': 'memory beside the weights (GiB)',
}


def columns(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """One bench, as `specprune bench` prints it."""
    result = bench(
        pruners='specprune,specprune:paper',
        model=model,
        device=args.device,
        dtype=args.dtype,
        repeats=args.repeats,
        sweep_step=args.sweep,
        progress=True,
    )
    print_tables(result)
    if args.plots:
        draw_roofline(result.rows, args.plots / f'roofline_{model}.png')
    reported = result.sweep.summary() if result.sweep else ''
    return {'rows': result.rows, 'sweep': result.sweep_rows, 'sweep_says': reported}


def float8_columns(args: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """The rows of a bench in float8; none on a device without."""
    if args.device == 'cpu' or torch.cuda.get_device_capability() < CAPABILITY:
        return []
    result = bench(
        pruners='specprune',
        model=model,
        device=args.device,
        fp8=True,
        repeats=args.repeats,
        stock=False,
        progress=True,
    )
    print_tables(result)
    return result.rows


def node_queries(args: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """Milliseconds of queries whose images were prepared when they arrived."""
    if args.device == 'cpu':
        return []
    policy, found = graphed(args, model), []
    for mode in ('dense', 'coarse'):
        scene = in_mode(policy, mode)
        took = []
        for _ in range(args.repeats):
            observation = next(scene)
            for camera, image in observation.images.items():
                policy.history.preprocessed(camera, image)
            settle(policy.loaded.preprocessor.device)
            begin = time.perf_counter()
            policy.act(observation)
            took.append(1000 * (time.perf_counter() - begin))
        p50, p99 = np.percentile(took, [50, 99])
        spread = {'ms_p50': round(p50, 3), 'ms_p99': round(p99, 3), 'ms_max': round(max(took), 3)}
        found.append({'mode': mode, **spread, 'engine': policy.engine_status})
    policy.close()
    return found


def node_memory(args: argparse.Namespace, model: str) -> dict[str, Any] | None:
    """Device memory of a node's policy with all its graphs, in a process of its own."""
    if args.device == 'cpu':
        return None
    command = [sys.executable, __file__, '--memory', model, '--device', args.device]
    done = subprocess.run([*command, '--dtype', args.dtype], capture_output=True, text=True)
    if done.returncode:
        return {'trouble': (done.stderr.strip().splitlines() or ['failed'])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(args: argparse.Namespace) -> None:
    """In that process: build, warm up, ask, and print what is reserved."""
    policy = graphed(args, args.memory)
    device = policy.loaded.preprocessor.device
    # What loading and compiling took for a while is not what a node holds.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    scene = observations(policy, BENCH_INSTRUCTION, 0)
    for _ in range(10):
        policy.act(next(scene))
    print(
        json.dumps(
            {
                'weights_gib': weight_bytes(policy.loaded.model) / 2**30,
                'reserved_gib': torch.cuda.max_memory_reserved(device) / 2**30,
                'engine': policy.engine_status,
                'trouble': policy.engine_trouble,
            }
        )
    )
    policy.close()


def graphed(args: argparse.Namespace, model: str) -> Any:
    """A policy as the node makes it."""
    policy = build_policy('', model, 0, args.device, args.dtype, graphs=True)
    policy.wants_overlay = False
    policy.max_normalised_action = np.inf  # random weights make actions of any size
    policy.warm_up(BENCH_INSTRUCTION)
    return policy


def in_mode(policy: Any, mode: str) -> Any:
    """Have all queries run in ``mode``, ask the first few, and return the rest of the scene.

    Observations are drawn one by one: a later image in the history hides the earlier ones.
    """
    policy.set_params(PruningParams().replace(mode=mode))
    policy.warm_up(BENCH_INSTRUCTION)
    while 'capturing' in policy.engine_status:
        time.sleep(0.1)
    scene = observations(policy, BENCH_INSTRUCTION, 0)
    for _ in range(10):
        policy.act(next(scene))
    return scene


def profile(args: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """What the device does during a replayed query, dense and pruned."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    policy, found = graphed(args, model), []
    ceilings = measure(policy.loaded.preprocessor.device, policy.loaded.preprocessor.dtype)
    for mode in ('dense', 'coarse'):
        scene = in_mode(policy, mode)
        with record(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(PROFILED):
                result = policy.act(next(scene))
        kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        found.append(
            {
                'mode': mode,
                'engine': policy.engine_status,
                'trouble': policy.engine_trouble,
                'ceiling_tflops': ceilings.tflops,
                'tflop': result.flops / 1e12,
                **shares([(e.name, e.time_range.start, e.time_range.end) for e in kernels]),
            }
        )
    policy.close()
    return found


def shares(kernels: list[tuple[str, float, float]]) -> dict[str, Any]:
    """Milliseconds a query by kind of kernel, and what share of the time between first and last
    kernel of a query the device works.

    ``kernels``: name, start and end in microseconds, of ``PROFILED`` queries. Pauses of over a
    millisecond lie between queries, not in them.
    """
    spent: Counter[str] = Counter()
    names: Counter[str] = Counter()
    idle, busy, reached = 0.0, 0.0, None
    for name, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
        spent[kind(name)] += end - start
        names[name] += end - start
        # Kernels of two branches of a graph run at the same time.
        busy += end - start if reached is None else max(0.0, end - max(start, reached))
        if reached is not None and 0 < start - reached < 1000:
            idle += start - reached
        reached = end if reached is None else max(reached, end)
    return {
        'ms': {key: round(value / PROFILED / 1000, 4) for key, value in spent.most_common()},
        'busy': round(busy / (busy + idle), 4) if busy else None,
        'slowest': [
            {'kernel': name[:120], 'ms': round(value / PROFILED / 1000, 4)}
            for name, value in names.most_common(12)
        ],
    }


def kind(name: str) -> str:
    """What a kernel does, by its name."""
    low = name.lower()
    if any(part in low for part in ATTENTION):
        return 'attention'
    if any(part in low for part in GEMM):
        return 'gemm'
    return 'copy' if 'memcpy' in low or 'memset' in low else 'other'


def figures(found: dict[str, Any]) -> dict[str, float]:
    """The figures of one model's results; absent where it was not measured."""
    rows = {(row['pruner'], row['mode']): row for row in found['rows']}
    dense, pruned = rows.get(('dense', 'graph')), rows.get(('specprune', 'graph'))
    made: dict[str, float] = {}
    if dense and pruned and not dense['trouble'] and not pruned['trouble']:
        made = {
            'dense_ms': dense['ms_p50'],
            'pruned_ms': pruned['ms_p50'],
            'over_dense': pruned['speedup'],
        }
        if pruned['speedup_stock'] is not None:
            made['over_stock'] = pruned['speedup_stock']
    for row in found['profile']:
        if row['mode'] == 'dense' and not row['trouble'] and row['ms'].get('gemm'):
            # Almost all operations of a query are those of its GEMMs.
            rate = row['tflop'] / (row['ms']['gemm'] / 1000)
            made['gemm_share'] = rate / row['ceiling_tflops']
    if found['node']:
        dense, pruned = found['node']
        made['node_dense_ms'], made['node_pruned_ms'] = dense['ms_p50'], pruned['ms_p50']
        made['node_over_dense'] = dense['ms_p50'] / pruned['ms_p50']
        made['tail'] = max(row['ms_p99'] / row['ms_p50'] for row in (dense, pruned))
    for row in found['fp8']:
        if (row['pruner'], row['mode'], row['trouble']) == ('specprune', 'graph', ''):
            made['fp8_ms'], made['fp8_over_dense'] = row['ms_p50'], row['speedup']
    memory = found['memory']
    if memory and not memory['trouble']:
        made['memory_gib'] = memory['reserved_gib'] - memory['weights_gib']
    return made


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', default=MODELS)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', default='auto')
    parser.add_argument('--repeats', type=int, default=200)
    parser.add_argument('--sweep', type=int, default=32, metavar='STEP')
    parser.add_argument('--memory', default='', help='only print the memory of this model')
    parser.add_argument('--plots', type=Path, help='draw a roofline of each model here')
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    if args.memory:
        measure_memory(args)
        return 0
    found = {}
    for model in args.models.split(','):
        memory = node_memory(args, model)
        here = {**columns(args, model), 'memory': memory}
        here['fp8'] = float8_columns(args, model)
        here['node'] = node_queries(args, model)
        here['profile'] = [] if args.device == 'cpu' else profile(args, model)
        here['figures'] = figures(here)
        found[model] = here
        for name, value in here['figures'].items():
            print(f'{model}: {FIGURES[name]:60s}{value:>8.2f}')
        # After each model: a long run that is cut off keeps what it has.
        result = {'benchmark': 'gpu', 'device': device_name(args.device), 'models': found}
        write(args.json, result)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
