"""How many images of 640 x 480 arrive of the 30 a second that each of two cameras sends.

    python benchmarks/image_rate.py --json benchmarks/results/image_rate.json

(after `. scripts/env.sh`). With the shared-memory profile of this package and with stock Fast DDS,
best effort. The node runs its policy meanwhile; the rate is the node's own, from its diagnostics.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from harness import Cameras, Run, add_common, environment
from record import write


def measure(seconds: float, profile: bool) -> dict:
    """One run: images received a second, by camera."""
    with Run({'query_rate': 10.0, 'model.threads': 1}) as run:
        cameras = Cameras(run, width=640, height=480, rate=30.0, state_ticks=3)
        cameras.play(4.0)
        run.forget()
        cameras.play(seconds)
        rates: dict[str, list[float]] = {'agent': [], 'wrist': []}
        for status in run.diagnoses:
            for pair in status.values:
                for camera, seen in rates.items():
                    if pair.key == f'image rate {camera} (Hz)':
                        seen.append(float(pair.value))
        return {
            'profile': 'config/fastdds.xml' if profile else 'stock',
            'sent_rate': cameras.sent / seconds,
            'received_rate_min': {name: min(seen, default=0.0) for name, seen in rates.items()},
            'received_rate_mean': {
                name: sum(seen) / len(seen) if seen else 0.0 for name, seen in rates.items()
            },
            'chunks': len(run.chunks),
        }


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser, seconds=20.0)
    parser.add_argument('--only', choices=('profile', 'stock'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.seconds, args.only == 'profile')))
        return 0
    rows = []
    for kind in ('profile', 'stock'):
        # A process each: Fast DDS reads its profile once.
        done = subprocess.run(
            [sys.executable, __file__, '--only', kind, '--seconds', str(args.seconds)],
            env=environment(profile=kind == 'profile'),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    for row in rows:
        means = ', '.join(f'{n} {r:.1f} Hz' for n, r in row['received_rate_mean'].items())
        print(
            f'{row["profile"]:>20}: sent {row["sent_rate"]:.1f} Hz, received {means}, '
            f'{row["chunks"]} chunks'
        )
    write(args.json, {'benchmark': 'image_rate', 'size': [640, 480], 'rows': rows})
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
