"""Whether a query leaves anything behind in the process: objects, Python memory, resident memory.

    nice -n 15 python benchmarks/growth.py --json benchmarks/results/growth_tiny.json

Real queries of the real policy on changing images, counted at the start, after a warm-up and at
the end. After the warm-up every count must stay where it is. Two passes, because watching Python's
allocations slows a query and holds memory itself: one counts objects and resident memory, a second
and shorter one has tracemalloc on.
"""

from __future__ import annotations

import argparse
import gc
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from record import write

from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.observation import Observation
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.synthetic_observations import observations

OBJECTS = 200  # more of them after the warm-up is growth (10 000 queries would leave 10 000)
PYTHON_KIB = 64.0
RESIDENT = 0.02  # share


def look(queries: int) -> dict[str, float]:
    """What the process holds now."""
    gc.collect()
    fields = dict(
        line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines()
    )
    held = {
        'queries': queries,
        'gc_objects': len(gc.get_objects()),
        'resident_mib': round(int(fields['VmRSS'].split()[0]) / 1024, 2),
    }
    if tracemalloc.is_tracing():
        held['python_kib'] = round(tracemalloc.get_traced_memory()[0] / 1024, 1)
    return held


def run(policy: Policy, scene: Iterator[Observation], warm: int, queries: int) -> list[dict]:
    """``queries`` queries, measured before the first, after ``warm`` and ten times from there."""
    looks = [look(0)]
    every = max(1, (queries - warm) // 10)
    for number in range(1, queries + 1):
        policy.act(next(scene))
        if number == warm or (number > warm and (number - warm) % every == 0):
            looks.append(look(number))
            print(looks[-1], flush=True)
    return looks


def judge(looks: list[dict]) -> list[str]:
    """What grew after the warm-up, in words; empty is good."""
    warm, last = looks[1], looks[-1]
    wrong = []
    if last['gc_objects'] > warm['gc_objects'] + OBJECTS:
        wrong.append(f'objects went from {warm["gc_objects"]} to {last["gc_objects"]}')
    if 'python_kib' in warm and last['python_kib'] > warm['python_kib'] + PYTHON_KIB:
        wrong.append(f'Python memory went from {warm["python_kib"]} to {last["python_kib"]} KiB')
    if last['resident_mib'] > warm['resident_mib'] * (1 + RESIDENT):
        wrong.append(
            f'resident memory went from {warm["resident_mib"]} to {last["resident_mib"]} MiB'
        )
    return wrong


def main() -> int:
    """Run and report; exit status 0 where nothing grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='tiny')
    parser.add_argument('--queries', type=int, default=10_000)
    parser.add_argument('--warm', type=int, default=1_000, help='queries before the first count')
    parser.add_argument('--traced', type=int, default=1_000, help='queries under tracemalloc')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    if not 0 < args.warm < args.queries:
        parser.error('--warm must lie between 0 and --queries')
    policy = build_policy(preset=args.model, device=args.device, threads=1)
    scene = observations(policy, BENCH_INSTRUCTION, seed=0)
    begin = time.perf_counter()
    counted = run(policy, scene, args.warm, args.queries)
    took = time.perf_counter() - begin
    tracemalloc.start()
    traced = run(policy, scene, min(200, args.traced // 2), args.traced)
    tracemalloc.stop()
    # Starting to trace makes the first looks; resident memory holds the tracer's own books there.
    grew = judge(counted) + [text for text in judge(traced) if 'resident' not in text]
    print('GREW: ' + '; '.join(grew) if grew else 'NOTHING GREW')
    result = {
        'benchmark': 'growth',
        'model': args.model,
        'device': args.device,
        'queries': args.queries,
        'ms_per_query': round(1000 * took / args.queries, 2),
        'counted': counted,
        'traced': traced,
        'grew': grew,
    }
    write(args.json, result)
    return 1 if grew else 0


if __name__ == '__main__':
    raise SystemExit(main())
