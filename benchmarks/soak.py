"""A long run of the whole system: does anything grow, slow down or pause?

    python benchmarks/soak.py --minutes 60 --json benchmarks/results/soak.json

(after `. scripts/env.sh`). The simulated arm, the policy (tiny, random weights, 10 queries a
second) and the executor run as processes; memory, handles and threads of each are sampled from
/proc, latency and the gaps between chunks are measured here, where a robot's executor would be.
The first tenth of the run (at least 30 s, at most 5 minutes) is warm-up and does not count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from harness import percentiles
from record import write
from specprune_ros.msg import ActionChunk
from system import ARM, EXECUTOR, POLICY, System
from topic_listener import TopicListener

from specprune_ros.apps.processes import NodeDied, wait_until

# What counts as steady: the second half of the run against the first, warm-up left out.
MEMORY_GROWTH = 0.05  # share of resident memory
LATENCY_DRIFT = 0.25  # share of the median
HANDLES, THREADS = 2, 1  # more at the end than after warm-up
LONGEST_GAP = 1.0  # s between two chunks
PLACES = 200_000  # chunks kept: a bound on this script's own memory
PICTURE_RATE = 20.0  # Hz


class Listener(TopicListener):
    """Chunks and the executor's periods."""

    def __init__(self) -> None:
        super().__init__('soak')
        self.latency: list[tuple[float, float]] = []
        self.received: list[float] = []
        self.count = 0
        self.periods: list[float] = []
        self.subscribe(ActionChunk, f'/{POLICY}/action_chunk', self._on_chunk)
        self.subscribe(DiagnosticArray, '/diagnostics', self._on_report)
        self.begin()

    def _on_chunk(self, message: ActionChunk) -> None:
        now = self.node.get_clock().now().nanoseconds / 1e9
        stamp = message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec
        self.count += 1
        if len(self.received) < PLACES:
            self.latency.append((time.monotonic(), now - stamp))
            self.received.append(time.monotonic())

    def _on_report(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(EXECUTOR):
                for pair in status.values:
                    if pair.key == 'period p99 (ms)':
                        self.periods.append(float(pair.value))


def sample(pid: int) -> dict[str, float]:
    """Resident memory in MiB, open handles, threads and CPU seconds of a process."""
    status = Path(f'/proc/{pid}/status').read_text()
    fields = dict(line.split(':', 1) for line in status.splitlines() if ':' in line)
    times = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return {
        'memory_mib': int(fields['VmRSS'].split()[0]) / 1024,
        'handles': len(os.listdir(f'/proc/{pid}/fd')),
        'threads': int(fields['Threads']),
        'cpu_s': (int(times[11]) + int(times[12])) / os.sysconf('SC_CLK_TCK'),
    }


def halves(values: list[float]) -> tuple[float, float]:
    """Medians of the first and of the second half."""
    middle = len(values) // 2
    return float(np.median(values[:middle])), float(np.median(values[middle:]))


def judge(samples: dict[str, list[dict]], latency: list[float], gaps: list[float]) -> list[str]:
    """What was not steady, in words; empty is good."""
    wrong = []
    for name, rows in samples.items():
        first, second = halves([row['memory_mib'] for row in rows])
        if second > first * (1.0 + MEMORY_GROWTH):
            wrong.append(f'{name}: memory went from {first:.1f} to {second:.1f} MiB')
        for key, most in (('handles', HANDLES), ('threads', THREADS)):
            if rows[-1][key] > rows[0][key] + most:
                wrong.append(f'{name}: {key} went from {rows[0][key]} to {rows[-1][key]}')
    if len(latency) < 20:
        return [*wrong, f'only {len(latency)} chunks came']
    first, second = halves(latency)
    if second > first * (1.0 + LATENCY_DRIFT):
        wrong.append(f'latency went from {1e3 * first:.1f} to {1e3 * second:.1f} ms')
    if max(gaps) > LONGEST_GAP:
        wrong.append(f'longest gap between chunks {max(gaps):.2f} s')
    return wrong


def soak(minutes: float, rate: float, period: float) -> dict:
    """Run, sample, judge."""
    seconds = 60.0 * minutes
    warm = min(max(0.1 * seconds, 30.0), 300.0, 0.5 * seconds)
    listener = Listener()
    died = ''
    samples: dict[str, list[dict]] = {}
    statuses: dict[str, int] = {}
    begin = counted_from = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        system = System(
            Path(folder), {POLICY: {'query_rate': rate}, ARM: {'image_rate': PICTURE_RATE}}
        )
        try:
            with system:
                if not wait_until(lambda: listener.count > 0, 30.0):
                    raise NodeDied(f'no chunk came:\n{system.processes[POLICY].tail()}')
                begin = counted_from = time.monotonic()
                counting = False
                while (gone := time.monotonic() - begin) < seconds:
                    time.sleep(min(period, seconds - gone))
                    for process in system.processes.values():
                        process.check()
                    if not counting and time.monotonic() - begin >= warm:
                        counting, counted_from = True, time.monotonic()
                    if counting:
                        for name, process in system.processes.items():
                            samples.setdefault(name, []).append(
                                {'at_s': time.monotonic() - begin, **sample(process.process.pid)}
                            )
                        row = {n: rows[-1] for n, rows in samples.items()}
                        print(
                            f'{gone / 60:5.1f} min  {listener.count} chunks  '
                            + '  '.join(f'{n} {r["memory_mib"]:.0f} MiB' for n, r in row.items()),
                            flush=True,
                        )
                statuses = system.stop()
        except (NodeDied, TimeoutError) as error:
            died = str(error)
        finally:
            listener.close()
    latency = [value for at, value in listener.latency if at >= counted_from]
    received = [at for at in listener.received if at >= counted_from]
    gaps = [float(g) for g in np.diff(received)]
    wrong = [died] if died else judge(samples, latency, gaps)
    wrong += [f'{name} ended with status {s}' for name, s in statuses.items() if s]
    tenths = np.array_split(np.array(latency), 10) if len(latency) >= 20 else []
    return {
        'benchmark': 'soak',
        'minutes': minutes,
        'warm_up_s': warm,
        'query_rate': rate,
        'chunks': len(latency),
        'chunk_rate': len(latency) / max(received[-1] - received[0], 1e-9)
        if len(received) > 1
        else 0.0,
        'latency_ms': {k: 1e3 * v for k, v in percentiles(latency).items()},
        'latency_median_by_tenth_ms': [1e3 * float(np.median(part)) for part in tenths],
        'chunk_gap_ms': {k: 1e3 * v for k, v in percentiles(gaps).items()},
        'executor_period_p99_ms': percentiles(listener.periods[30:]),
        'processes': {
            name: {
                key: {
                    'first': rows[0][key],
                    'last': rows[-1][key],
                    'most': max(row[key] for row in rows),
                }
                for key in ('memory_mib', 'handles', 'threads', 'cpu_s')
            }
            for name, rows in samples.items()
        },
        'exit_status': statuses,
        'not_steady': wrong,
        'steady': not wrong,
    }


def main() -> int:
    """Run and report; exit status 0 where everything was steady."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=60.0, help='length of the run')
    parser.add_argument('--rate', type=float, default=10.0, help='queries a second')
    parser.add_argument('--every', type=float, default=10.0, help='seconds between samples')
    parser.add_argument('--json', type=Path, help='write the result to this file')
    args = parser.parse_args()
    if not 0.0 < args.minutes <= 24 * 60:
        parser.error(f'--minutes is {args.minutes}; above 0 and at most a day')
    result = soak(args.minutes, args.rate, args.every)
    print(f'{"process":16s}{"memory MiB":>18s}{"handles":>12s}{"threads":>12s}{"CPU s":>9s}')
    for name, row in result['processes'].items():
        memory, handles, threads = row['memory_mib'], row['handles'], row['threads']
        print(
            f'{name:16s}{memory["first"]:8.1f} > {memory["last"]:7.1f}'
            f'{handles["first"]:6d} > {handles["last"]:3d}'
            f'{threads["first"]:6d} > {threads["last"]:3d}{row["cpu_s"]["last"]:9.1f}'
        )
    late, gap = result['latency_ms'], result['chunk_gap_ms']
    if late and gap:
        print(
            f'latency p50 {late["p50"]:.1f} p99 {late["p99"]:.1f} ms, by tenth '
            + ' '.join(f'{v:.1f}' for v in result['latency_median_by_tenth_ms'])
            + f'; chunks {result["chunk_rate"]:.2f}/s, gap p99 {gap["p99"]:.0f} max '
            f'{gap["max"]:.0f} ms'
        )
    print('STEADY' if result['steady'] else 'NOT STEADY: ' + '; '.join(result['not_steady']))
    write(args.json, result)
    return 0 if result['steady'] else 1


if __name__ == '__main__':
    raise SystemExit(main())
