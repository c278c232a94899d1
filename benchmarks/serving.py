"""What a policy server costs and gains: parity through the wire, and several arms on one server.

    python benchmarks/serving.py parity --episodes 50 --json benchmarks/results/serving_parity.json
    python benchmarks/serving.py arms --json benchmarks/results/serving_arms.json

(after `. scripts/env.sh`). ``parity`` plays the same episodes of the simulated arm with the policy
in this process and with one behind a server in another, and compares every action. ``arms`` lets
several arms ask without a pause, on a server with batches and on one without, in turns.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from record import write
from tqdm import tqdm

FAMILIES = ('move', 'lift', 'put')


@contextmanager
def server(*arguments: str):
    """``specprune serve`` with the shipped policy in a process; its address."""
    command = [sys.executable, '-m', 'specprune_ros.cli.main', 'serve', '--port', '0']
    process = subprocess.Popen(
        [*command, '--device', 'cpu', '--threads', '1', *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield re.match(r'\S+(?=:)', process.stdout.readline())[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


class Recorder:
    """A policy for the simulated episodes that keeps what was answered."""

    def __init__(self, policy) -> None:
        from specprune_ros.sim.arm.world import World
        from specprune_ros.sim.evaluation.policy_runner import PolicyRunner

        self.results, self.seconds = [], []
        policy.wants_overlay = False
        act = policy.act

        def timed(observation):
            begin = time.monotonic()
            result = act(observation)
            self.seconds.append(time.monotonic() - begin)
            return result

        policy.act = timed
        self._runner = PolicyRunner(policy, self.results.append)
        self._world = World(cameras=policy.config.cameras)

    def play(self, seed: int):
        """One episode: its result and the policy's."""
        from specprune_ros.sim.evaluation.evaluate import play_control
        from specprune_ros.sim.tasks.tasks import make_episode

        self.results.clear()
        episode = make_episode(seed, FAMILIES[seed % len(FAMILIES)])
        return play_control(self._world, self._runner, episode, ''), list(self.results)


def parity(episodes: int) -> dict:
    """The same episodes here and through the wire."""
    import torch

    from specprune_ros.policy.build import build_policy
    from specprune_ros.serving.client import RemotePolicy
    from specprune_ros.sim.training.export import SHIPPED

    torch.set_num_threads(1)
    found = {'queries': 0, 'actions': 0, 'differing_queries': 0, 'largest_difference': 0.0}
    outcomes = {'in process': [], 'through the wire': []}
    took = {name: [] for name in outcomes}
    with server() as url:
        here = Recorder(build_policy(str(SHIPPED), device='cpu', threads=1))
        there = Recorder(RemotePolicy(url, timeout=60.0))
        for seed in tqdm(range(episodes), desc='episodes'):
            ours, mine = here.play(seed)
            theirs, other = there.play(seed)
            outcomes['in process'].append(ours.outcome)
            outcomes['through the wire'].append(theirs.outcome)
            assert len(mine) == len(other), f'seed {seed}: {len(mine)} and {len(other)} queries'
            for a, b in zip(mine, other, strict=True):
                largest = float(np.abs(a.actions - b.actions).max())
                found['queries'] += 1
                found['actions'] += a.actions.size
                found['differing_queries'] += bool(largest or a.tokens != b.tokens)
                found['largest_difference'] = max(found['largest_difference'], largest)
        took['in process'], took['through the wire'] = here.seconds, there.seconds
    return {
        'benchmark': 'serving_parity',
        'episodes': episodes,
        'same_outcomes': outcomes['in process'] == outcomes['through the wire'],
        'successes': {name: each.count('success') for name, each in outcomes.items()},
        **found,
        'query_ms': {name: percentiles(each) for name, each in took.items()},
    }


def percentiles(seconds: list[float]) -> dict:
    """p50 and p99 in milliseconds."""
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return {'p50': round(float(p50), 1), 'p99': round(float(p99), 1)}


class Arm:
    """One arm: what it sees, its session on a server, and what its queries took."""

    def __init__(self, url: str, number: int) -> None:
        from specprune_ros.serving.client import RemotePolicy

        self.begin(RemotePolicy(url, timeout=120.0), number)

    def begin(self, policy, number: int) -> None:
        """With any policy."""
        rng = np.random.default_rng(number)
        self.policy = policy
        self.frames = rng.integers(0, 255, (16, 2, 128, 128, 3), dtype=np.uint8)
        self.state = 0.1 * rng.standard_normal(8)
        self.took, self.resets, self.step = [], 0, 0

    def query(self) -> None:
        """One query."""
        from specprune_ros.policy.observation import CameraImage, Observation
        from specprune_ros.pruning.controller import SpeedSample

        step, stamp = self.step, 10**12 + self.step * 400_000_000
        images = {
            camera: CameraImage(self.frames[step % 16, index], stamp)
            for index, camera in enumerate(self.policy.config.cameras)
        }
        seen = Observation(
            images, 'lift the red cube', self.state, SpeedSample(0.5, 0.0, 0.0),
            self.state[:3] + [0.002 * step, 0.0, 0.0],
        )  # fmt: skip
        requested = time.monotonic()
        result = self.policy.act(seen)
        self.took.append(time.monotonic() - requested)
        self.resets += result.reset is not None
        self.step += 1

    def query_for(self, seconds: float) -> None:
        """Ask without a pause."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.query()


def arms(count: int, seconds: float, rounds: int) -> dict:
    """Arms that ask without a pause, on a server with batches and on one without: both are up, and
    the arms, threads of this process, ask the one and the other in turns.
    """
    ways = {'batches': ('--batch', str(count)), 'one by one': ('--batch', '1')}
    spent = dict.fromkeys(ways, 0.0)
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        there = {
            name: [Arm(stack.enter_context(server(*options)), 0)] for name, options in ways.items()
        }
        for each in there.values():
            each += [Arm(each[0].policy.url, number) for number in range(1, count)]
        for _ in range(rounds):
            for name, each in there.items():
                begin = time.monotonic()
                list(pool.map(Arm.query_for, each, [seconds] * count))
                spent[name] += time.monotonic() - begin
        for each in there.values():
            for arm in each:
                arm.policy.close()
    table = []
    for name, each in there.items():
        everything = [took for arm in each for took in arm.took]
        table.append(
            {
                'server': name,
                'arms': count,
                'queries': len(everything),
                'queries_per_second': round(len(everything) / spent[name], 1),
                **percentiles(everything),
                'resets': sum(arm.resets for arm in each),
                'sessions': count,
                'per_arm': [percentiles(arm.took) for arm in each],
            }
        )
    return {'benchmark': 'serving_arms', 'seconds': seconds, 'rounds': rounds, 'rows': table}


def batch(model: str, device: str, sizes=(2, 4, 8), repeats: int = 15) -> dict:
    """The model's part alone, in this process: queries one by one and as a batch, in turns; on a
    GPU one by one as CUDA graphs too.
    """
    import torch

    from specprune_ros.policy.build import build_policy, engine_for
    from specprune_ros.policy.device import device_name, settle
    from specprune_ros.policy.engine.eager import EagerEngine
    from specprune_ros.policy.policy import Policy

    checkpoint = ''
    if model == 'shipped':
        from specprune_ros.sim.training.export import SHIPPED

        checkpoint = str(SHIPPED)
    loaded = build_policy(checkpoint, model, device=device, threads=1).loaded
    place, requested = loaded.preprocessor.device, []

    class Watched(EagerEngine):
        def run(self, key, inputs, cancelled=None):
            requested.append((key, inputs))
            return super().run(key, inputs, cancelled)

    engine = Watched(loaded)
    for number in range(max(sizes)):
        arm = Arm.__new__(Arm)
        # Random weights, where they are, make actions of any size.
        arm.begin(Policy(loaded, engine=engine, max_normalised_action=np.inf), number)
        arm.query()
        arm.query()  # pruned, with a prior
    pruned = [one for one in requested if one[0].mode.value == 'coarse']
    key, rows = pruned[0][0], []
    graphs = None
    if place.type == 'cuda':
        graphs = engine_for(loaded, True)
        Policy(loaded, engine=graphs, max_normalised_action=np.inf).warm_up('lift the red cube')

    def took(run, inputs) -> float:
        settle(place)
        begin = time.monotonic()
        for one in inputs:
            run(key, one)
        return time.monotonic() - begin

    with torch.inference_mode():
        for size in sizes:
            inputs = [one for _, one in pruned[:size]]
            ways = {
                'alone': (lambda key, one: EagerEngine.run(engine, key, one), inputs),
                'together': (engine.run_batch, [inputs]),
                **({} if graphs is None else {'graphs': (graphs.run, inputs)}),
            }
            spent = {name: [] for name in ways}
            for _ in range(repeats):
                for name, (run, given) in ways.items():
                    spent[name].append(took(run, given))
            median = {name: float(np.median(each)) for name, each in spent.items()}
            row = {'batch': size, 'gain': round(median['alone'] / median['together'], 2)}
            row['ms'] = round(1e3 * median['together'] / size, 1)
            if graphs is not None:
                row['ms_graphs'] = round(1e3 * median['graphs'] / size, 1)
            rows.append(row)
    where = device_name(str(place))
    return {'benchmark': 'serving_batch', 'model': model, 'device': where, 'rows': rows}


def shipped_policy() -> str:
    """The sizes of the policy that the numbers are of."""
    from specprune_ros.models.config import PolicyConfig
    from specprune_ros.sim.training.export import SHIPPED

    tree = json.loads((SHIPPED / 'config.json').read_text())
    config = PolicyConfig.from_dict(tree['policy'])
    rows, columns = config.grid
    return (
        f'{config.decoder.depth} decoder layers, {len(config.cameras)} x {rows * columns} vision '
        'tokens'
    )


def markdown() -> str:
    """What was recorded, for docs/how-to/scale.md."""
    folder = Path(__file__).parent / 'results'
    wire = json.loads((folder / 'serving_parity.json').read_text())
    found = json.loads((folder / 'serving_arms.json').read_text())
    alone = json.loads((folder / 'serving_batch.json').read_text())
    gains = ', '.join(f'{row["gain"]}-fold for {row["batch"]}' for row in alone['rows'])
    count = found['rows'][0]['arms']
    lines = [
        f'Parity through the wire: {wire["episodes"]} closed-loop episodes of the shipped policy '
        f'({wire["policy"]}) in process and on a server, {wire["queries"]} queries, '
        f'{wire["actions"]} action values: '
        f'{wire["differing_queries"]} queries differ, {wire["successes"]["in process"]} and '
        f'{wire["successes"]["through the wire"]} successes.',
        '',
        f'{count} arms that ask without a pause, the shipped policy ({found["policy"]}) on one '
        f'thread, float32 ({found["machine"]["cpu"]}, no GPU, shared with other work: '
        f'compare the rows with one another only; {found["date"]}):',
        '',
        '| server | queries/s | p50 | p99 | slowest arm, p99 | resets after the first query |',
        '|---|---|---|---|---|---|',
    ]
    for row in found['rows']:
        slowest = max(arm['p99'] for arm in row['per_arm'])
        lines.append(
            f'| {row["server"]} | {row["queries_per_second"]} | {row["p50"]} ms | {row["p99"]} ms '
            f'| {slowest} ms | {row["resets"] - row["sessions"]} |'
        )
    lines += [
        '',
        f'The model alone ({alone["policy"]}), pruned queries in batches against one by one: '
        f'{gains}.',
    ]
    return '\n'.join(lines) + '\n'


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('parity', 'arms', 'batch'))
    parser.add_argument('--episodes', type=int, default=50)
    parser.add_argument('--arms', type=int, default=8)
    parser.add_argument('--seconds', type=float, default=5.0)
    parser.add_argument('--rounds', type=int, default=6)
    parser.add_argument('--model', default='shipped', help='of batch: shipped, or a preset')
    parser.add_argument('--device', default='cpu', help='of batch')
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    if args.what == 'parity':
        result = parity(args.episodes)
        print({name: value for name, value in result.items() if name != 'benchmark'})
    elif args.what == 'batch':
        result = batch(args.model, args.device)
        print(*result['rows'], sep='\n')
    else:
        result = arms(args.arms, args.seconds, args.rounds)
        for row in result['rows']:
            print({name: value for name, value in row.items() if name != 'per_arm'})
            print('  per arm (ms):', row['per_arm'])
    write(args.json, {**result, 'policy': shipped_policy()} if args.model == 'shipped' else result)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
