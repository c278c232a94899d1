"""Every pruner against dense on one model, interleaved in one run, recorded with its machine.

    python benchmarks/pruners.py --json benchmarks/results/pruners_oft_medium_cpu.json

(after `. scripts/env.sh`). The same rows as `specprune bench --pruner all`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from record import write

from specprune_ros.bench.measure import bench
from specprune_ros.bench.report import print_tables


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='oft-medium')
    parser.add_argument('--pruner', default='all')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--threads', type=int, default=0)
    parser.add_argument('--repeats', type=int, default=11)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    result = bench(
        pruners=args.pruner,
        model=args.model,
        device=args.device,
        threads=args.threads,
        repeats=args.repeats,
        stock=False,
        progress=True,
    )
    print_tables(result)
    write(args.json, {'benchmark': 'pruners', 'rows': result.rows})
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
