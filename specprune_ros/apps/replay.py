"""Plays a recording through a live policy node, with ``/clock``, and measures what comes out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import rclpy
from geometry_msgs.msg import AccelStamped, PoseStamped, TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from specprune_ros.apps.bag import BagError, BagReader, Recorded, own_weights
from specprune_ros.apps.monitor import Monitor
from specprune_ros.apps.processes import NodeDied, NodeProcess, end_on_signals, stop_all
from specprune_ros.bench.host_info import as_json, host_info
from specprune_ros.nodes.common.qos import every, latched
from specprune_ros.nodes.common.remapping import (
    ALLOWED,
    COMPRESSED,
    image_topic,
    policy_parameters,
    policy_remappings,
    ros_arguments,
)
from specprune_ros.nodes.common.time import stamp_ns
from specprune_ros.robot.profile import Profile

POLICY = 'specprune_node'
DISCOVERY = 2.0  # s until the nodes that run already are known
START_PATIENCE = 120.0  # s for the model to load
CLOCK_STEP = 0.01  # s of recorded time between two /clock messages
MOST_GAP = 60.0  # s of recorded time without a message that are waited for
DRAIN = 1.0  # s to wait for the last chunk


@dataclass(frozen=True)
class ReplayOptions:
    """Options of ``specprune replay``; see its help."""

    bag: Path
    profile: Profile
    parameters: Mapping[str, Any]
    rate: float
    json: Path | None
    log: Path
    header_clock: bool = False
    namespace: str = ''


def choose_topics(
    bag: BagReader, profile: Profile, namespace: str = ''
) -> tuple[dict[str, type], dict[str, Any]]:
    """Topics to play with their classes, and the policy's parameters that follow.

    Raises :class:`BagError` naming what the recording lacks.
    """
    seen, there = profile.observation, bag.topics()
    # A profile may name either form of an image topic, and so may the recording.
    cameras = [camera.topic.removesuffix(COMPRESSED) for camera in seen.cameras.values()]
    raw = [topic for topic in cameras if there.get(topic) == 'sensor_msgs/msg/Image']
    packed = [
        topic + COMPRESSED
        for topic in cameras
        if there.get(topic + COMPRESSED) == 'sensor_msgs/msg/CompressedImage'
    ]
    if len(raw) == len(cameras):
        chosen: dict[str, type] = dict.fromkeys(raw, Image)
        transport = 'raw'
    elif len(packed) == len(cameras):
        chosen = dict.fromkeys(packed, CompressedImage)
        transport = 'compressed'
    else:
        raise BagError(
            f'{bag.path}: needs images on {", ".join(cameras)} (sensor_msgs/msg/Image, or '
            f'CompressedImage on the same names with {COMPRESSED}); it has '
            f'{", ".join(sorted(there))}'
        )
    twist = AccelStamped if seen.ee_twist_type == 'accel_stamped' else TwistStamped
    for topic, kind in (
        (seen.joint_states, JointState),
        (seen.gripper_states, JointState),
        (seen.ee_pose, PoseStamped),
        (seen.ee_twist, twist),
        (seen.robot_description, String),
        (f'{namespace}/{POLICY}/instruction', String),
    ):
        if topic and topic in there:
            chosen[topic] = kind
    return chosen, {'image_transport': transport}


class Player(Monitor):
    """Publishes recorded messages in their own rhythm and listens to the policy."""

    def __init__(
        self, topics: Mapping[str, type], cameras: tuple[str, ...], namespace: str = ''
    ) -> None:
        super().__init__(f'{namespace}/{POLICY}'.lstrip('/'), cameras, name='replay')
        self._policy = _full(POLICY, namespace)
        # The same name as a live source: the policy cannot tell the difference.
        self._out = {
            topic: self.create_publisher(kind, topic, latched() if kind is String else every())
            for topic, kind in topics.items()
        }
        self._time = self.create_publisher(Clock, '/clock', every())
        self._images = [
            topic for topic, kind in topics.items() if kind in (Image, CompressedImage)
        ]
        self._sent: dict[int, float] = {}

    def received_by_policy(self) -> bool:
        """Whether the policy subscribes to every camera."""
        # By its name: a page or a recorder may listen, too.
        return all(
            self._policy in _names(self.get_subscriptions_info_by_topic(topic))
            for topic in self._images
        )

    def conflicts(self) -> list[str]:
        """What runs already and would mix with the recording, in words."""
        found = []
        nodes = self.get_node_names_and_namespaces()
        if self._policy in (_full(name, namespace) for name, namespace in nodes):
            found.append(f'a node {self._policy} runs already')
        instruction = f'{self._policy}/instruction'  # which a page publishes on, if asked to
        for topic in sorted({*self._out, '/clock'} - {instruction}):
            others = _names(self.get_publishers_info_by_topic(topic))
            if (own := self.get_fully_qualified_name()) in others:
                others.remove(own)
            if others:
                found.append(f'{topic} is published by {", ".join(others)}')
        return found

    def tick(self, nanoseconds: int) -> None:
        """Set the time."""
        self._time.publish(Clock(clock=Time(nanoseconds=nanoseconds).to_msg()))

    def send(self, recorded: Recorded) -> None:
        """Publish one message, and remember when its image went out."""
        if recorded.topic in self._images:
            self._sent[stamp_ns(recorded.message)] = time.monotonic()
            if len(self._sent) > 1000:
                self._sent.pop(next(iter(self._sent)))
        self._out[recorded.topic].publish(recorded.message)

    def _on_chunk(self, message: Any) -> None:
        super()._on_chunk(message)
        # Recorded time only moves in steps: the true latency is taken on this machine's clock.
        sent = self._sent.get(stamp_ns(message))
        latency = time.monotonic() - sent if sent is not None else float('nan')
        self.tally.replace_latency(message.sequence, latency)


def _full(name: str, namespace: str) -> str:
    return f'{namespace.rstrip("/")}/{name}'


def _names(endpoints: Iterable[Any]) -> list[str]:
    return [_full(info.node_name, info.node_namespace) for info in endpoints]


def run_replay(options: ReplayOptions) -> int:
    """Replay a recording. Returns the exit status: 0 if all of it was played and chunks came, 130
    where it was interrupted.
    """
    console = Console()
    try:
        bag = BagReader(options.bag)
    except BagError as error:
        console.print(f'[red]{error}[/]')
        return 2
    with bag:
        try:
            topics, parameters = choose_topics(bag, options.profile, options.namespace)
            options = with_policy(options, bag, console)
            first, messages = _first(bag, topics)
            if options.header_clock:
                ahead = header_offset(bag, topics)
                [first] = shifted(iter([first]), ahead)
                messages = shifted(messages, ahead)
        except BagError as error:
            console.print(f'[red]{error}[/]')
            return 2
        return _play(options, bag, topics, parameters, first, messages, console)


def with_policy(options: ReplayOptions, bag: BagReader, console: Console) -> ReplayOptions:
    """The options with the recording's own policy where none was named; says which one runs."""
    given = dict(options.parameters)
    if not given.get('model.path') and not given.get('model.server'):
        given['model.path'], why = own_weights(bag, options.profile.simulated)
        console.print(
            f'policy: {given["model.path"]} ({why})'
            if given['model.path']
            else f'[yellow]weights are random ({why}): rates and times are real, the actions mean '
            'nothing; give --checkpoint FOLDER[/]',
            highlight=False,
            soft_wrap=True,
        )
    return replace(options, parameters=given)


def shifted(messages: Iterator[Recorded], by_ns: int) -> Iterator[Recorded]:
    """The messages with their times of receipt moved onto the clock of their headers, which may
    have begun later than the recorder: not before its beginning.
    """
    return (replace(m, stamp_ns=max(1, m.stamp_ns + by_ns)) for m in messages)


def header_offset(bag: BagReader, topics: Mapping[str, type]) -> int:
    """How far the headers' clock is ahead of the recorder's, ns, by the first message with one."""
    for recorded in bag.messages(dict(topics)):
        if hasattr(recorded.message, 'header') and stamp_ns(recorded.message):
            return stamp_ns(recorded.message) - recorded.stamp_ns
    raise BagError(f'{bag.path}: no message with a stamp in its header')


def _first(bag: BagReader, topics: Mapping[str, type]) -> tuple[Recorded, Iterator[Recorded]]:
    messages = bag.messages(dict(topics))
    first = next(messages, None)
    if first is None:
        raise BagError(f'{bag.path}: holds no message on {", ".join(topics)}')
    return first, chain([first], messages)


def _play(
    options: ReplayOptions,
    bag: BagReader,
    topics: Mapping[str, type],
    parameters: Mapping[str, Any],
    first: Recorded,
    messages: Iterator[Recorded],
    console: Console,
) -> int:
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    end_on_signals()
    player = Player(topics, tuple(options.profile.observation.cameras), options.namespace)
    executor = SingleThreadedExecutor()
    executor.add_node(player)
    transport = parameters['image_transport']
    remappings = {
        private: image_topic(topic, transport) if private.startswith('~/image/') else topic
        for private, topic in policy_remappings(options.profile).items()
    }
    end = time.monotonic() + DISCOVERY
    while (left := end - time.monotonic()) > 0:
        executor.spin_once(timeout_sec=left)
    if conflicts := player.conflicts():
        console.print(
            f'[red]{"; ".join(conflicts)}[/]: a recording is played to a policy of its own, and '
            'not among live topics. End these, or take another ROS_DOMAIN_ID',
            highlight=False,
        )
        player.destroy_node()
        rclpy.try_shutdown()
        return 1
    process = NodeProcess(
        POLICY,
        ros_arguments(
            {'__ns': options.namespace or '/', **remappings},
            {
                **policy_parameters(options.profile),
                'model.random_weights': ALLOWED,  # nothing is moved here
                **parameters,
                **options.parameters,
                'use_sim_time': True,
            },
        ),
        options.log / 'specprune_node.log',
    )
    broken = 0
    try:
        _wait_for_policy(player, executor, process, first.stamp_ns)
        _stream(options, bag, player, executor, process, first.stamp_ns, messages, console)
    except (NodeDied, BagError) as error:
        broken = 1
        console.print(f'[red]{error}[/]')
    except KeyboardInterrupt:
        broken = 130
        console.print('stopped')
    finally:
        ended = stop_all([process])[POLICY]
        executor.remove_node(player)
        player.destroy_node()
        rclpy.try_shutdown()
    if ended != 0:
        console.print(f'[red]{POLICY} ended with status {ended}[/]:\n{process.tail()}')
    _report(options, bag, player, console, complete=not broken)
    if not player.tally.chunks:
        console.print(f'[red]no chunk came: {player.diagnosis or "no diagnostics"}[/]')
        console.print(process.tail())
    return broken or int(ended != 0 or not player.tally.chunks)


def _wait_for_policy(
    player: Player, executor: SingleThreadedExecutor, process: NodeProcess, start_ns: int
) -> None:
    end = time.monotonic() + START_PATIENCE
    while not player.received_by_policy():
        process.check()
        player.tick(start_ns)
        executor.spin_once(timeout_sec=0.05)
        if time.monotonic() > end:
            raise NodeDied(
                f'the policy was not ready after {START_PATIENCE:.0f} s:\n{process.tail()}'
            )


def _stream(
    options: ReplayOptions,
    bag: BagReader,
    player: Player,
    executor: SingleThreadedExecutor,
    process: NodeProcess,
    start_ns: int,
    messages: Iterator[Recorded],
    console: Console,
) -> None:
    begin = time.monotonic()
    clock_ns = start_ns

    def pass_time(until_ns: int) -> None:
        """Spin and advance the clock until recorded time reaches ``until_ns``."""
        nonlocal clock_ns
        while clock_ns < until_ns:
            clock_ns = min(until_ns, clock_ns + round(CLOCK_STEP * 1e9))
            due = begin + (clock_ns - start_ns) / 1e9 / options.rate
            while (left := due - time.monotonic()) > 0:
                executor.spin_once(timeout_sec=left)
            executor.spin_once(timeout_sec=0)
            player.tick(clock_ns)

    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task('replaying', total=bag.duration)
        for recorded in messages:
            gap = (recorded.stamp_ns - clock_ns) / 1e9
            if gap > MOST_GAP:
                raise BagError(
                    f'{options.bag}: nothing was recorded for {gap:.0f} s after '
                    f'{(clock_ns - start_ns) / 1e9:.1f} s; at most {MOST_GAP:g} s are waited for'
                )
            pass_time(recorded.stamp_ns)
            player.send(recorded)
            process.check()
            progress.update(bar, completed=(recorded.stamp_ns - start_ns) / 1e9)
    pass_time(clock_ns + round(DRAIN * 1e9 * options.rate))


def _report(
    options: ReplayOptions, bag: BagReader, player: Player, console: Console, complete: bool
) -> None:
    numbers = player.tally.numbers()
    numbers['bag'] = str(options.bag)
    numbers['bag_seconds'], numbers['complete'] = bag.duration, complete
    numbers['rate'] = options.rate
    weights = options.parameters.get('model.path') or options.parameters.get('model.server')
    numbers['weights'] = weights or 'random'
    numbers['machine'] = host_info()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(as_json(numbers))
    table = Table(title=f'Replay of {options.bag}', show_header=False, title_justify='left')
    table.add_row('recorded', f'{bag.duration:.1f} s')
    table.add_row('weights', numbers['weights'])
    table.add_row('chunks', str(numbers['chunks']))
    for name, label in (('latency_ms', 'image sent to chunk received'), ('query_ms', 'policy')):
        times = numbers[name]
        if times:
            table.add_row(label, f'p50 {times["p50"]:.1f} ms, p99 {times["p99"]:.1f} ms')
    if numbers['tokens_mean'] is not None:
        table.add_row(
            'vision tokens',
            f'{numbers["tokens_mean"]:.0f} of {numbers["tokens_in"]} (mean over layers)',
        )
        table.add_row('FLOPs', f'{numbers["flops_ratio"]:.0%} of dense')
        table.add_row('modes', ', '.join(f'{k} {v}' for k, v in numbers['modes'].items()))
        table.add_row('episodes', str(numbers['episodes']))
    console.print(table)
