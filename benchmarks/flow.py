"""A flow policy (pi0, pi0.5) dense, with half and a quarter of its vision tokens, and pruned.

    python benchmarks/flow.py --threads 2 --json benchmarks/results/flow_pi0_medium_cpu.json

(after `. scripts/env.sh`). As `specprune bench --model pi0-medium`, interleaved in one run, with
two contestants more that drop tokens at random before the first layer: what a share of them costs,
whoever chose it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from record import write

from specprune_ros.bench.measure import bench
from specprune_ros.bench.race import Contestant
from specprune_ros.bench.report import print_tables
from specprune_ros.models.load import LoadedModel
from specprune_ros.policy.policy import Policy
from specprune_ros.pruning.params import PruningParams

SHARES = (0.5, 0.25)


def shares(loaded: LoadedModel) -> list[Contestant]:
    """The contestants for :func:`bench`."""
    made = []
    for share in SHARES:
        params = PruningParams().replace(
            pruner='random', random_keep=share, random_layer=0, mode='coarse'
        )
        policy = Policy(loaded, params, max_normalised_action=math.inf)
        policy.wants_overlay = False
        made.append(Contestant(f'keep {share:.0%}', policy))
    return made


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='pi0-medium')
    parser.add_argument('--pruner', default='specprune,fastv,vla_pruner')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--dtype', default='auto')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--plot', type=Path)
    args = parser.parse_args()
    result = bench(
        pruners=args.pruner,
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        repeats=args.repeats,
        progress=True,
        more=shares,
    )
    print_tables(result)
    write(args.json, {'benchmark': 'flow', 'rows': result.rows})
    if args.plot:
        from specprune_ros.bench.report import draw_roofline

        draw_roofline(result.rows, args.plot)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
