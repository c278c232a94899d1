"""What the node adds to the policy's own time: from the image really used to the chunk received.

    python benchmarks/node_overhead.py --json benchmarks/results/node_overhead.json

(after `. scripts/env.sh`). Two cameras of 224 x 224 at 30 Hz and joint states at 90 Hz are
published from this process, stamped when they are sent; the node runs in its own. For every chunk
the time from its header stamp (the newest image used) to its reception here, less the policy's
own time, is the overhead.
"""

from __future__ import annotations

import argparse
import time

from harness import Cameras, Run, add_common, percentiles
from record import write

RATE = 30.0  # images a second


def measure(seconds: float, query_rate: float, threads: int) -> dict:
    """One run; all times in milliseconds."""
    with Run(
        {'query_rate': query_rate, 'model.threads': threads, 'speed.source': 'joint_states'}
    ) as run:
        cameras = Cameras(run, width=224, height=224, rate=RATE, state_ticks=3)
        cameras.play(5.0)  # warm: the first queries reset, and DDS discovers
        run.forget()
        cameras.play(seconds)
        received = {chunk.sequence: (chunk, at) for chunk, at in run.chunks}
        overhead, published, policy = [], [], []
        for stats in run.stats:
            if stats.sequence not in received:
                continue
            chunk, at = received[stats.sequence]
            taken = chunk.header.stamp.sec + 1e-9 * chunk.header.stamp.nanosec
            end = chunk.inference_end.sec + 1e-9 * chunk.inference_end.nanosec
            overhead.append(1e3 * (at - taken - stats.time_total))
            published.append(1e3 * (end - taken - stats.time_total))
            policy.append(1e3 * stats.time_total)
        return {
            'query_rate': query_rate,
            'chunks': len(overhead),
            'sent_rate': cameras.sent / seconds,
            'overhead_to_reception_ms': percentiles(overhead),
            'overhead_to_publication_ms': percentiles(published),
            'policy_ms': percentiles(policy),
            'at': time.strftime('%Y-%m-%d'),
        }


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser, seconds=60.0)
    parser.add_argument('--threads', type=int, default=1, help="the model's CPU threads")
    args = parser.parse_args()
    rows = [measure(args.seconds, rate, args.threads) for rate in (10.0, 0.0)]
    for row in rows:
        times = row['overhead_to_reception_ms']
        print(
            f'query_rate {row["query_rate"]:4.0f} Hz: {row["chunks"]} chunks, overhead '
            f'p50 {times["p50"]:.2f} ms, p99 {times["p99"]:.2f} ms, max {times["max"]:.2f} ms '
            f'(policy p50 {row["policy_ms"]["p50"]:.1f} ms)'
        )
    write(args.json, {'benchmark': 'node_overhead', 'rows': rows})
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
