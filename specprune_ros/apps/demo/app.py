"""The demo: simulated arm, policy and executor as processes over DDS, watched and recorded."""

from __future__ import annotations

import math
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.live import Live
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from visualization_msgs.msg import MarkerArray

from specprune_ros.apps.bag import SHIPPED, WEIGHTS, BagWriter, bundled_weights, jpeg
from specprune_ros.apps.demo import report as demo_report
from specprune_ros.apps.demo.demo_sequence import DemoSequence
from specprune_ros.apps.monitor import Monitor
from specprune_ros.apps.processes import NodeDied, NodeProcess, end_on_signals, stop_all
from specprune_ros.msg import ActionChunk, PruneStats
from specprune_ros.nodes.common.qos import every, latched, newest
from specprune_ros.nodes.common.remapping import (
    load_profile,
    policy_parameters,
    policy_remappings,
    profile_path,
    ros_arguments,
)
from specprune_ros.nodes.common.time import stamp_ns
from specprune_ros.robot.profile import Profile
from specprune_ros.sim.arm.render_backend import prepare

POLICY, ARM, EXECUTOR = 'specprune_node', 'sim_arm', 'chunk_executor'
PORT = 8080  # of the page, or the next free one
# s of simulated time that a query may take: far less than a chunk lasts, so that it is in time.
LATENCY_LIMIT = 0.1
LEAST = 3.0  # s; fewer chunks than one in this time is no success
RECORD_RATE = 10.0  # images a second in the recording
STATUS_RATE = 4.0  # Hz
REPORT_PERIOD = 10.0  # s between lines where the output is no terminal


@dataclass(frozen=True)
class DemoOptions:
    """Options of ``specprune demo``; see its help.

    ``checkpoint`` is a folder; empty takes the weights that come with the package, or random ones
    with ``random`` and where none came. With ``stay`` it ends only when it is stopped, and
    ``seconds`` do not count. ``view``: the page in the browser too.
    """

    seconds: float
    out: Path
    json: Path
    checkpoint: str
    random: bool
    seed: int
    instructions: tuple[str, ...]
    query_rate: float
    query_when: str
    stay: bool = False
    view: bool = True


def bundled_recording() -> Path:
    """The small recording shipped with the package."""
    return Path(__file__).parents[2] / 'sim' / 'recording'


def weights_folder(options: DemoOptions) -> str:
    """Folder of the checkpoint to run, empty for random weights.

    Raises ``RuntimeError`` naming the file where the shipped weights are not whole.
    """
    if options.checkpoint or options.random or not bundled_weights():
        return options.checkpoint
    from specprune_ros.sim.training.export import check_shipped

    folder = bundled_weights()
    check_shipped(Path(folder))
    return folder


class DemoRecorder:
    """Subscribes to what a replay needs and writes a bag, images as JPEG at a lower rate."""

    def __init__(self, node: Monitor, profile: Profile, path: Path, weights: str) -> None:
        """``weights``: the folder that the policy was loaded from, empty for random ones."""
        self._bag = BagWriter(path)
        self._bag.__enter__()
        shipped = weights == bundled_weights()
        self._bag.note(
            WEIGHTS, SHIPPED if shipped else str(Path(weights).resolve()) if weights else ''
        )
        self._node = node
        self._due: dict[str, int] = {}
        self._closed = False
        seen = profile.observation
        for number, camera in enumerate(seen.cameras.values()):
            # The first camera shows the scene.
            store = self._image(camera.topic, node.see if number == 0 else None)
            node.create_subscription(Image, camera.topic, store, newest())
        for kind, topic in (
            (JointState, seen.joint_states),
            (PoseStamped, seen.ee_pose),
            (TwistStamped, profile.command.topic),
            (ActionChunk, f'/{POLICY}/action_chunk'),
            (PruneStats, f'/{POLICY}/prune_stats'),
            (DiagnosticArray, '/diagnostics'),
            (MarkerArray, f'/{ARM}/objects'),
            *((Image, f'/{POLICY}/kept/{name}') for name in seen.cameras),
        ):
            node.create_subscription(kind, topic, self._message(topic), every())
        for topic in (seen.robot_description, f'/{POLICY}/instruction'):
            node.create_subscription(String, topic, self._message(topic), latched())
        topic = f'/{ARM}/verdict'
        node.create_subscription(DiagnosticStatus, topic, self._message(topic), latched())

    def say(self, instruction: str) -> None:
        """Record an instruction that goes to the policy as a parameter and not over the topic."""
        self._write(f'/{POLICY}/instruction', String(data=instruction))

    def close(self) -> None:
        """Finish the recording; what comes later is not written."""
        if not self._closed:
            self._closed = True
            self._bag.__exit__(None, None, None)

    def _write(self, topic: str, message: Any) -> None:
        if not self._closed:
            self._bag.write(topic, message, self._now())

    def _now(self) -> int:
        return self._node.get_clock().now().nanoseconds

    def _image(self, topic: str, see: Callable[[Image], None] | None) -> Any:
        def store(message: Image) -> None:
            if see is not None:
                see(message)
            stamp = stamp_ns(message)
            if self._closed or stamp < self._due.get(topic, 0):
                return
            # By stamp, so that the cameras of one moment are kept or left together.
            self._due[topic] = stamp + round(0.9e9 / RECORD_RATE)
            self._write(f'{topic}/compressed', jpeg(message))

        return store

    def _message(self, topic: str) -> Any:
        return partial(self._write, topic)


def run_demo(options: DemoOptions) -> int:
    """Run the demo. Returns the exit status: 0 if chunks came and every node lived."""
    console = Console()
    try:
        weights = weights_folder(options)
    except RuntimeError as error:
        console.print(f'[red]The weights cannot be used: {error}[/]', highlight=False)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    profile = load_profile('sim_arm')
    missing = prepare()
    if missing:
        console.print(
            f'[yellow]{missing}[/]\nThe cameras are played from the recording that comes with the '
            'package instead; the arm is simulated without images, so no instruction can succeed.'
        )
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    monitor = Monitor(POLICY, tuple(profile.observation.cameras), arm=ARM, use_sim_time=True)
    executor = SingleThreadedExecutor()
    executor.add_node(monitor)
    recorder: DemoRecorder | None = None
    demo_sequence: DemoSequence | None = None
    processes: list[NodeProcess] = []
    end_on_signals()
    ok = False
    statuses: dict[str, int] = {}
    try:
        recorder = DemoRecorder(monitor, profile, _fresh_folder(options.out / 'bag'), weights)
        recorder.say(options.instructions[0])
        for process in _processes(options, weights, profile, renders=not missing):
            processes.append(process)
        address = _start_page(options, processes, console)
        console.print('starting ' + ', '.join(p.name for p in processes))
        if address:
            console.print(f'see it and steer it in the browser: {address}', highlight=False)
        console.print('say something else meanwhile:')
        console.print(f'  {demo_report.invitation()}', highlight=False, soft_wrap=True)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            display = _Display(options, monitor, console, live)
            demo_sequence = DemoSequence(
                monitor,
                executor,
                processes,
                (f'/{POLICY}', f'/{ARM}', f'/{EXECUTOR}'),
                display.show,
                lambda text: console.print(text, highlight=False, markup=False),
            )
            display.attempts = demo_sequence.attempts
            demo_sequence.run(
                options.instructions,
                math.inf if options.stay else options.seconds,
                options.stay,
                recorder.close,
            )
        ok = monitor.tally.chunks >= demo_sequence.elapsed / LEAST
    except NodeDied as error:
        console.print(f'[red]{error}[/]', highlight=False)
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
    memory = demo_sequence.memory if demo_sequence else {}
    demo_report.report(
        {
            'weights': weights or f'random, seed {options.seed}',
            'cameras': 'played from the bundled recording' if missing else 'rendered',
            'seconds': options.seconds,
            'exit_status': statuses,
            'memory': {name: demo_report.memory_growth(v) for name, v in memory.items()},
        },
        monitor,
        demo_sequence.attempts if demo_sequence else [],
        demo_sequence.not_reached if demo_sequence else [],
        options.out,
        options.json,
        console,
    )
    if not weights:
        console.print(demo_report.RANDOM_WEIGHTS)
    if not ok:
        console.print(
            f'[red]only {monitor.tally.chunks} chunk(s), fewer than one in {LEAST:g} s[/]'
        )
    return 0 if ok and not bad else 1


class _Display:
    """A live table on a terminal, a line now and then elsewhere."""

    def __init__(
        self, options: DemoOptions, monitor: Monitor, console: Console, live: Live
    ) -> None:
        self._seconds = math.inf if options.stay else options.seconds
        self._monitor = monitor
        self._console, self._live = console, live
        self._drawn, self._reported = 0.0, time.monotonic()
        self.attempts: list[Any] = []

    def show(self, elapsed: float) -> None:
        """Called often; draws when it is time to."""
        now = time.monotonic()
        if self._console.is_terminal:
            if now - self._drawn >= 1.0 / STATUS_RATE:
                self._drawn = now
                self._live.update(
                    demo_report.status(self._monitor, self.attempts, elapsed, self._seconds),
                    refresh=True,
                )
        elif now - self._reported >= REPORT_PERIOD:
            self._reported = now
            self._console.print(demo_report.line(self._monitor, elapsed), highlight=False)


def _processes(
    options: DemoOptions, weights: str, profile: Profile, renders: bool
) -> Iterator[NodeProcess]:
    """Start the arm, the policy, the executor, and where nothing renders the recording."""
    log = options.out / 'log'
    arm = {
        'seed': options.seed,
        'render': renders,
        'scene_for': list(options.instructions),
        'publish_clock': True,
        'latency_limit': LATENCY_LIMIT,
    }
    follows = {'use_sim_time': True}  # all but the arm, whose time it is
    policy = {
        **policy_parameters(profile),
        'model.path': weights,
        'model.seed': options.seed,
        'query_rate': options.query_rate,
        'query_when': options.query_when,
        'instruction': options.instructions[0],
        **follows,
    }
    yield NodeProcess(
        'sim_arm',
        ros_arguments(
            {
                '~/instruction': f'/{POLICY}/instruction',
                '~/prune_stats': f'/{POLICY}/prune_stats',
            },
            arm,
        ),
        log / 'sim_arm.log',
    )
    if not renders:
        yield NodeProcess(
            'play',
            ros_arguments({}, {'recording': str(bundled_recording()), **follows}),
            log / 'play.log',
        )
    yield NodeProcess(
        'specprune_node',
        ros_arguments(
            {**policy_remappings(profile), '~/executed': '/chunk_executor/executed'}, policy
        ),
        log / 'specprune_node.log',
    )
    yield NodeProcess(
        'chunk_executor',
        ros_arguments(
            {'~/action_chunk': f'/{POLICY}/action_chunk'},
            {'profile': str(profile_path('sim_arm')), **follows},
        ),
        log / 'chunk_executor.log',
    )


def _start_page(options: DemoOptions, processes: list[NodeProcess], console: Console) -> str:
    """Start the page in the browser and add its process; returns its address, empty without."""
    if not options.view:
        return ''
    if find_spec('viser') is None:
        console.print('no page in the browser: viser is not installed (requirements/view.txt)')
        return ''
    port = _free_port(PORT)
    processes.append(
        NodeProcess(
            'viewer_node',
            ros_arguments({}, {'port': port, 'use_sim_time': True}),
            options.out / 'log' / 'viewer_node.log',
        )
    )
    return f'http://127.0.0.1:{port}'


def _free_port(first: int) -> int:
    """The first port from ``first`` on that nobody listens on."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(('127.0.0.1', port))
            except OSError:
                continue
            return port
    raise NodeDied(f'no free port from {first} on')


def _fresh_folder(path: Path) -> Path:
    """A path that does not exist yet: an earlier demo's recording, finished or not, is replaced.

    Raises :class:`NodeDied` where something else is there, such as a recording of ``ros2 bag``,
    whose files have other names.
    """
    if path.exists():
        strange = {f.name for f in path.iterdir()} - {f'{path.name}.mcap', 'metadata.yaml'}
        if strange:
            raise NodeDied(
                f'{path} holds {", ".join(sorted(strange))}, which no demo recorded; move it away'
            )
        shutil.rmtree(path)
    return path
