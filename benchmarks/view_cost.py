"""What the page in the browser costs a query: without a viewer, with one that nobody looks at, and
with a page open.

    python benchmarks/view_cost.py --json benchmarks/results/view_cost.json

(after `. scripts/env.sh`). The simulated arm, the policy with the shipped weights and the executor
run all the time; the viewer is started and stopped, in turns. The open page is a client that reads
everything and draws nothing: a browser's own work is done by whoever looks, with their processor.

Wall times are compared within a round, since a shared machine changes from round to round; the
processor time that a query takes in the policy's process hardly depends on what else runs.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import rclpy
from harness import percentiles
from rclpy.executors import SingleThreadedExecutor
from record import write
from specprune_ros.msg import ActionChunk, PruneStats

from specprune_ros.apps.demo.app import bundled_weights
from specprune_ros.apps.processes import NodeProcess, stop_all
from specprune_ros.nodes.common.qos import every
from specprune_ros.nodes.common.remapping import (
    policy_parameters,
    policy_remappings,
    profile_path,
    ros_arguments,
)
from specprune_ros.robot.profile import load

sys.path.insert(0, str(Path(__file__).parents[1] / 'test' / 'helpers'))
from page_client import PageClient

WORDS = 'lift the green cube'
CASES = ('none', 'idle', 'open')
SETTLE = 3.0  # s before measuring
TICK = os.sysconf('SC_CLK_TCK')


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Listener:
    """Chunks and statistics as they are received."""

    def __init__(self) -> None:
        rclpy.init()
        self._node = rclpy.create_node('view_cost')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self.query: list[float] = []
        self.latency: list[float] = []
        top = '/specprune_node'
        self._node.create_subscription(
            PruneStats,
            f'{top}/prune_stats',
            lambda m: self.query.append(1e3 * m.time_total),
            every(),
        )
        self._node.create_subscription(ActionChunk, f'{top}/action_chunk', self._chunk, every())

    def _chunk(self, message: ActionChunk) -> None:
        taken = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        self.latency.append((self._node.get_clock().now().nanoseconds - taken) / 1e6)

    def spin(self, seconds: float) -> None:
        """Listen for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def forget(self) -> None:
        """Start measuring."""
        self.query.clear()
        self.latency.clear()


def read_all(client: PageClient) -> None:
    """Read until the page is closed."""
    try:
        while True:
            client.socket.recv()
    except Exception:  # closed from the other thread
        return


def segment(case: str, seconds: float, listener: Listener, policy: int, log: Path) -> dict:
    """One turn of one case."""
    viewer = client = None
    if case != 'none':
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        viewer = NodeProcess('viewer_node', ros_arguments({}, {'port': port}), log / 'viewer.log')
        while 'page for' not in viewer.tail():
            viewer.check()
            listener.spin(0.2)
    if case == 'open':
        client = PageClient(port)
        threading.Thread(target=read_all, args=(client,), daemon=True).start()
    listener.spin(SETTLE)
    listener.forget()
    before = processor_seconds(viewer.process.pid) if viewer else 0.0
    working = processor_seconds(policy)
    listener.spin(seconds)
    working = processor_seconds(policy) - working
    used = (processor_seconds(viewer.process.pid) - before) / seconds if viewer else 0.0
    row = {
        'case': case,
        'query_ms': percentiles(listener.query),
        'image_to_chunk_ms': percentiles(listener.latency),
        'policy_processor_ms': 1e3 * working / max(len(listener.query), 1),
        'viewer_processor_share': used,
    }
    if client is not None:
        client.close()
    if viewer is not None:
        viewer.stop()
    return row


def summarise(rows: list[dict], case: str) -> dict:
    """Medians over the rounds, of ratios within a round."""
    rounds = [rows[i : i + len(CASES)] for i in range(0, len(rows), len(CASES))]
    pairs = [
        (next(r for r in turn if r['case'] == case), next(r for r in turn if r['case'] == 'none'))
        for turn in rounds
    ]
    return {
        'query_over_none': statistics.median(
            mine['query_ms']['p50'] / base['query_ms']['p50'] for mine, base in pairs
        ),
        'processor_over_none': statistics.median(
            mine['policy_processor_ms'] / base['policy_processor_ms'] for mine, base in pairs
        ),
        'viewer_processor_share': statistics.median(
            mine['viewer_processor_share'] for mine, _ in pairs
        ),
    }


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=20.0, help='of each turn')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    profile = load(profile_path('sim_arm'))
    log = Path(tempfile.mkdtemp())
    processes = [
        NodeProcess(
            'sim_arm',
            ros_arguments(
                {'~/instruction': '/specprune_node/instruction'}, {'scene_for': [WORDS]}
            ),
            log / 'sim_arm.log',
        ),
        NodeProcess(
            'specprune_node',
            ros_arguments(
                policy_remappings(profile),
                {
                    **policy_parameters(profile),
                    'model.path': bundled_weights(),
                    'model.threads': 1,
                    'query_rate': 10.0,
                    'instruction': WORDS,
                },
            ),
            log / 'policy.log',
        ),
        NodeProcess(
            'chunk_executor',
            ros_arguments({'~/action_chunk': '/specprune_node/action_chunk'}, {}),
            log / 'executor.log',
        ),
    ]
    listener = Listener()
    rows = []
    try:
        while not listener.query:
            for process in processes:
                process.check()
            listener.spin(0.2)
        listener.spin(3.0)
        for turn in range(args.rounds):
            # Another order each time, so that no case always follows the same one.
            for case in CASES[turn % 3 :] + CASES[: turn % 3]:
                rows.append(segment(case, args.seconds, listener, processes[1].process.pid, log))
                times = rows[-1]['query_ms']
                print(
                    f'{case:5} query p50 {times["p50"]:.2f} ms, image to chunk p50 '
                    f'{rows[-1]["image_to_chunk_ms"]["p50"]:.2f} ms, viewer '
                    f'{rows[-1]["viewer_processor_share"]:.1%} of a core',
                    flush=True,
                )
    finally:
        stop_all(list(reversed(processes)))
    summary = {case: summarise(rows, case) for case in CASES}
    for case, numbers in summary.items():
        print(
            f'{case:5} query {numbers["query_over_none"]:.3f}, processor time of a query '
            f'{numbers["processor_over_none"]:.3f} of that without a viewer; the viewer '
            f'{numbers["viewer_processor_share"]:.1%} of a core'
        )
    write(args.json, {'benchmark': 'view_cost', 'summary': summary, 'rows': rows})
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
