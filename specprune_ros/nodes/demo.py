"""The demo: simulated arm, policy and executor as processes over DDS, watched and recorded."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from specprune_ros.msg import ActionChunk, PruneStats
from specprune_ros.nodes.bag import BagWriter, jpeg
from specprune_ros.nodes.machine import as_json, machine
from specprune_ros.nodes.monitor import Monitor
from specprune_ros.nodes.processes import NodeDied, NodeProcess, end_on_signals, stop_all
from specprune_ros.nodes.quality import every, latched, newest
from specprune_ros.nodes.stamps import stamp_ns
from specprune_ros.nodes.wiring import (
    policy_parameters,
    policy_remappings,
    profile_path,
    ros_arguments,
)
from specprune_ros.robot.profile import Profile, load
from specprune_ros.sim.render_backend import prepare

POLICY, ARM, EXECUTOR = 'specprune_node', 'sim_arm', 'chunk_executor'
START_PATIENCE = 60.0  # s until the first chunk
LEAST = 3.0  # s; fewer chunks than one in this time is no success
RECORD_RATE = 10.0  # pictures a second in the recording
STATUS_RATE = 4.0  # Hz
REPORT_PERIOD = 10.0  # s between lines where the output is no terminal


@dataclass(frozen=True)
class DemoOptions:
    """What ``specprune demo`` was asked for; see its help."""

    seconds: float
    out: Path
    json: Path
    checkpoint: str
    seed: int
    instructions: tuple[str, ...]
    query_rate: float


def bundled_recording() -> Path:
    """The small recording shipped with the package."""
    return Path(__file__).parents[1] / 'sim' / 'recording'


class Recorder:
    """Subscribes to what a replay needs and writes a bag, pictures as JPEG at a lower rate."""

    def __init__(self, node: Monitor, profile: Profile, path: Path) -> None:
        self._bag = BagWriter(path)
        self._bag.__enter__()
        self._node = node
        self._due: dict[str, int] = {}
        seen = profile.observation
        for camera in seen.cameras.values():
            node.create_subscription(Image, camera.topic, self._picture(camera.topic), newest())
        for kind, topic in (
            (JointState, seen.joint_states),
            (PoseStamped, seen.ee_pose),
            (TwistStamped, profile.command.topic),
            (ActionChunk, f'/{POLICY}/action_chunk'),
            (PruneStats, f'/{POLICY}/prune_stats'),
        ):
            node.create_subscription(kind, topic, self._message(topic), every())
        for topic in (seen.robot_description, f'/{POLICY}/instruction'):
            node.create_subscription(String, topic, self._message(topic), latched())

    def say(self, instruction: str) -> None:
        """Record a sentence that goes to the policy as a parameter and not over the topic."""
        self._bag.write(f'/{POLICY}/instruction', String(data=instruction), self._now())

    def close(self) -> None:
        """Finish the recording."""
        self._bag.__exit__(None, None, None)

    def _now(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def _picture(self, topic: str) -> Any:
        def store(message: Image) -> None:
            stamp = stamp_ns(message)
            if stamp < self._due.get(topic, 0):
                return
            # By stamp, so that the cameras of one moment are kept or left together.
            self._due[topic] = stamp + round(0.9e9 / RECORD_RATE)
            self._bag.write(f'{topic}/compressed', jpeg(message), self._now())

        return store

    def _message(self, topic: str) -> Any:
        return lambda message: self._bag.write(topic, message, self._now())


def run_demo(options: DemoOptions) -> int:
    """Run the demo. Returns the exit status: 0 if chunks came and every node lived."""
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    profile = load(profile_path('sim_arm'))
    missing = prepare()
    if missing:
        console.print(
            f'[yellow]{missing}[/]\nThe cameras are played from the recording that comes with the '
            'package instead; the arm is simulated without pictures.'
        )
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    monitor = Monitor(POLICY, tuple(profile.observation.cameras))
    executor = SingleThreadedExecutor()
    executor.add_node(monitor)
    recorder: Recorder | None = None
    processes: list[NodeProcess] = []
    end_on_signals()
    ok = False
    statuses: dict[str, int] = {}
    memory: dict[str, list[int]] = {}
    try:
        recorder = Recorder(monitor, profile, _fresh_folder(options.out / 'bag'))
        recorder.say(options.instructions[0])
        for process in _processes(options, profile, renders=not missing):
            processes.append(process)
        memory = _watch(options, monitor, executor, processes, console)
        ok = monitor.tally.chunks >= options.seconds / LEAST
    except NodeDied as error:
        console.print(f'[red]{error}[/]')
    except KeyboardInterrupt:
        console.print('stopping')
        ok = monitor.tally.chunks > 0
    finally:
        # The executor first: it stops the arm while arm and policy still listen.
        statuses = stop_all(list(reversed(processes)))
        if recorder is not None:
            recorder.close()
        executor.remove_node(monitor)
        monitor.destroy_node()
        rclpy.try_shutdown()
    bad = {name: status for name, status in statuses.items() if status != 0}
    for name, status in bad.items():
        console.print(f'[red]{name} ended with status {status}[/] (see {options.out}/log)')
    _report(options, monitor, memory, statuses, console, rendered=not missing)
    if not ok:
        console.print(f'[red]only {monitor.tally.chunks} chunk(s) in {options.seconds:.0f} s[/]')
    return 0 if ok and not bad else 1


def _processes(options: DemoOptions, profile: Profile, renders: bool) -> Iterator[NodeProcess]:
    """Start the arm, the policy, the executor, and where nothing renders the recording."""
    log = options.out / 'log'
    arm = {'seed': options.seed, 'render': renders}
    policy = {
        **policy_parameters(profile),
        'model.path': options.checkpoint,
        'model.seed': options.seed,
        'query_rate': options.query_rate,
        'instruction': options.instructions[0],
    }
    yield NodeProcess('sim_arm', ros_arguments({}, arm), log / 'sim_arm.log')
    if not renders:
        yield NodeProcess(
            'play',
            ros_arguments({}, {'recording': str(bundled_recording())}),
            log / 'play.log',
        )
    yield NodeProcess(
        'specprune_node',
        ros_arguments(policy_remappings(profile), policy),
        log / 'specprune_node.log',
    )
    yield NodeProcess(
        'chunk_executor',
        ros_arguments(
            {'~/action_chunk': f'/{POLICY}/action_chunk'},
            {'profile': str(profile_path('sim_arm'))},
        ),
        log / 'chunk_executor.log',
    )


def _watch(
    options: DemoOptions,
    monitor: Monitor,
    executor: SingleThreadedExecutor,
    processes: list[NodeProcess],
    console: Console,
) -> dict[str, list[int]]:
    """Spin, change instructions, show what happens. Returns resident memory over time, bytes."""
    patience = time.monotonic() + START_PATIENCE
    console.print('starting ' + ', '.join(p.name for p in processes))
    console.print(f'say something else meanwhile: {_invitation()}', highlight=False)
    while not monitor.tally.chunks:
        executor.spin_once(timeout_sec=0.05)
        for process in processes:
            process.check()
        if time.monotonic() > patience:
            raise NodeDied(
                f'no chunk within {START_PATIENCE:.0f} s '
                f'({monitor.diagnosis or "no diagnostics"});\n'
                f'{next(p for p in processes if p.name == POLICY).tail()}'
            )
    memory: dict[str, list[int]] = {process.name: [] for process in processes}
    begin = time.monotonic()
    each = options.seconds / len(options.instructions)
    said, drawn, sampled, reported = 0, 0.0, 0.0, begin
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (now := time.monotonic()) - begin < options.seconds:
            executor.spin_once(timeout_sec=0.02)
            wanted = min(int((now - begin) / each), len(options.instructions) - 1)
            if wanted > said:
                said = wanted
                monitor.say(options.instructions[said])
            if now - sampled >= 1.0:
                sampled = now
                for process in processes:
                    process.check()
                    memory[process.name].append(process.memory() or 0)
            if now - drawn >= 1.0 / STATUS_RATE and console.is_terminal:
                drawn = now
                live.update(_status(options, monitor, now - begin), refresh=True)
            elif now - reported >= REPORT_PERIOD and not console.is_terminal:
                reported = now
                console.print(_line(monitor, now - begin))
    return memory


def _invitation() -> str:
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    return f'.venv/bin/specprune say --domain {domain} "lift the green cube"'


def _line(monitor: Monitor, elapsed: float) -> str:
    numbers = monitor.tally.numbers()
    return (
        f'{elapsed:5.0f} s  {numbers["chunks"]:4d} chunks  '
        f'latency {numbers["latency_ms"]["p50"]:.0f} ms  '
        f'tokens {numbers["tokens_mean"]:.0f} of {numbers["tokens_in"]}  {monitor.diagnosis}'
    )


def _status(options: DemoOptions, monitor: Monitor, elapsed: float) -> Group:
    """The live display."""
    numbers, last = monitor.tally.numbers(), monitor.tally.last
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row('instruction', next(reversed(monitor.tally.instructions), ''))
    table.add_row(
        'chunks', f'{numbers["chunks"]}, {monitor.chunk_rate.rate(time.monotonic()):.1f} a second'
    )
    if numbers['latency_ms'] and last is not None:
        latency, query = numbers['latency_ms'], numbers['query_ms']
        table.add_row('latency', f'p50 {latency["p50"]:.1f} ms, p99 {latency["p99"]:.1f} ms')
        table.add_row('policy', f'p50 {query["p50"]:.1f} ms, p99 {query["p99"]:.1f} ms')
        kept = ' > '.join(str(n) for n in (last.tokens_in, *last.tokens_after))
        table.add_row('vision tokens', kept)
        table.add_row('FLOPs', f'{last.flops_ratio:.0%} of dense')
        table.add_row('mode', last.reason)
        table.add_row('speed', f'{last.speed_translation:.3f} m/s from {last.speed_source}')
    rates = ', '.join(f'{name} {rate} Hz' for name, rate in monitor.picture_rates.items())
    table.add_row('pictures', rates or 'waiting')
    table.add_row('health', monitor.diagnosis)
    table.add_row('say something', _invitation())
    bar = ProgressBar(total=options.seconds, completed=elapsed, width=60)
    return Group(table, bar)


def _report(
    options: DemoOptions,
    monitor: Monitor,
    memory: dict[str, list[int]],
    statuses: dict[str, int],
    console: Console,
    rendered: bool,
) -> None:
    """Table, JSON, strip and GIF."""
    numbers = monitor.tally.numbers()
    numbers['weights'] = options.checkpoint or f'random, seed {options.seed}'
    numbers['cameras'] = 'rendered' if rendered else 'played from the bundled recording'
    numbers['seconds'] = options.seconds
    numbers['exit_status'] = statuses
    numbers['memory'] = {name: memory_growth(values) for name, values in memory.items()}
    numbers['machine'] = machine()
    if monitor.film.frames:
        numbers['strip'] = str(options.out / 'demo.png')
        numbers['gif'] = str(options.out / 'demo.gif')
        monitor.film.save_strip(options.out / 'demo.png')
        monitor.film.save_gif(options.out / 'demo.gif')
    numbers['recording'] = str(options.out / 'bag')
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(as_json(numbers))
    table = Table(title='What the demo did', show_header=False, title_justify='left')
    table.add_row('chunks', str(numbers['chunks']))
    if numbers['latency_ms']:
        for name, label in (
            ('latency_ms', 'picture taken to chunk received'),
            ('query_ms', "the policy's own time"),
            ('overhead_ms', 'the rest: DDS, callbacks, threads'),
        ):
            times = numbers[name]
            if times:
                table.add_row(label, f'p50 {times["p50"]:.1f} ms, p99 {times["p99"]:.1f} ms')
        pruned = numbers['tokens_mean_pruned_queries']
        table.add_row('vision tokens in', str(numbers['tokens_in']))
        table.add_row(
            'vision tokens, mean over layers',
            f'{numbers["tokens_mean"]:.0f}'
            + (f' ({pruned:.0f} in pruned queries)' if pruned is not None else ''),
        )
        table.add_row('FLOPs', f'{numbers["flops_ratio"]:.0%} of dense')
        table.add_row('modes', ', '.join(f'{k} {v}' for k, v in numbers['modes'].items()))
        table.add_row('episodes (memory resets)', str(numbers['episodes']))
    table.add_row('weights', numbers['weights'])
    table.add_row('machine', f'{numbers["device"]}, {numbers["machine"]["cpu"]}')
    console.print(table)
    if not options.checkpoint:
        console.print(
            '[yellow]The weights are seeded random numbers: the arm moves, but it does not do '
            'what the sentence says.[/] What is real here: ROS 2 and DDS, the cameras, the pruned '
            'forward pass and its costs.'
        )
    made = [options.json, *(Path(numbers[key]) for key in ('strip', 'gif') if key in numbers)]
    console.print('written: ' + ', '.join(str(path) for path in (*made, options.out / 'bag')))


def memory_growth(values: list[int]) -> dict[str, float] | None:
    """Resident memory in MiB at the first minute (or the middle of a short run) and at the end."""
    if len(values) < 4:
        return None
    start = min(60, len(values) // 2)
    first, last = values[start] / 2**20, values[-1] / 2**20
    return {'after_first_minute': first, 'end': last, 'growth': last / first - 1 if first else 0.0}


def _fresh_folder(path: Path) -> Path:
    """A path that does not exist yet: an earlier recording, finished or not, is replaced.

    Raises :class:`NodeDied` where something else is there.
    """
    if path.exists():
        strange = [f.name for f in path.iterdir() if f.suffix not in ('.mcap', '.yaml')]
        if strange:
            raise NodeDied(f'{path} holds {", ".join(strange)}, no recording; move it away')
        shutil.rmtree(path)
    return path
