"""``viewer_node``: shows the arm and the policy on a page in the browser, and steers them.

It listens to nothing while no page is open. What a person requests goes through the services,
topics and parameters that everybody else uses too: what those nodes refuse stays refused.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_packages_with_prefixes
from rcl_interfaces.msg import ParameterDescriptor, ParameterEvent, ParameterType
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    ListParameters,
    SetParameters,
)
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.parameter import Parameter as RosParameter
from rclpy.parameter import parameter_value_to_python
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from specprune_ros.bounded_files import reason
from specprune_ros.nodes.common.bounded_subscription import DESCRIPTION, subscribe
from specprune_ros.nodes.common.lifecycle import AutoLifecycleNode, run
from specprune_ros.nodes.common.log import Throttle
from specprune_ros.nodes.common.parameters import NodeParameters, ParameterSpec
from specprune_ros.nodes.common.qos import every, latched, newest
from specprune_ros.nodes.common.remapping import TRANSPORTS, load_profile
from specprune_ros.nodes.viewer_node.access import Access, is_loopback, serve
from specprune_ros.nodes.viewer_node.controls import Parameter
from specprune_ros.nodes.viewer_node.feed import Feed, Source, arm_node, sources
from specprune_ros.nodes.viewer_node.page import Actions, Page

ON, OFF = SetBool.Request(data=True), SetBool.Request(data=False)
PREFIX = 'pruning.'
INT64 = range(-(1 << 63), 1 << 63)  # what an integer parameter holds
ANSWER_PATIENCE = 2.0  # s for an answer about parameters; then the next request is sent
MOTION_PERIOD = 1 / 15  # s
IMAGES_EVERY, TEXT_EVERY = 3, 6  # motion periods
DEPTH = 16  # images waiting between two looks
KINDS = {
    ParameterType.PARAMETER_BOOL: 'bool',
    ParameterType.PARAMETER_INTEGER: 'int',
    ParameterType.PARAMETER_DOUBLE: 'float',
    ParameterType.PARAMETER_STRING: 'str',
    ParameterType.PARAMETER_INTEGER_ARRAY: 'int[]',
    ParameterType.PARAMETER_DOUBLE_ARRAY: 'float[]',
    ParameterType.PARAMETER_STRING_ARRAY: 'str[]',
}
TYPES = {
    'bool': RosParameter.Type.BOOL,
    'int': RosParameter.Type.INTEGER,
    'float': RosParameter.Type.DOUBLE,
    'str': RosParameter.Type.STRING,
    'int[]': RosParameter.Type.INTEGER_ARRAY,
    'float[]': RosParameter.Type.DOUBLE_ARRAY,
    'str[]': RosParameter.Type.STRING_ARRAY,
}

PARAMETERS = (
    ParameterSpec(
        'host',
        '127.0.0.1',
        'Interface the page listens on. Any but the loopback one needs a token, which the log '
        'shows (docs/how-to/view.md).',
    ),
    ParameterSpec('port', 8080, 'First port to try.', low=1, high=65535),
    ParameterSpec('profile', 'sim_arm', 'Robot profile: a YAML file, or a name in config/robots.'),
    ParameterSpec('robot_sn', '', "The robot's serial number, for profiles that hold {robot_sn}."),
    ParameterSpec(
        'image_transport',
        'profile',
        'Images: as the profile says, or the other form of its topics (<topic>/compressed).',
        choices=TRANSPORTS,
    ),
    ParameterSpec('policy', '/specprune_node', 'The policy node.'),
    ParameterSpec('executor', '/chunk_executor', 'The node that moves the arm.'),
    ParameterSpec(
        'arm',
        'auto',
        'The simulated arm, for its objects, its judgement and its reset; empty where there is '
        'none; auto is sim_arm beside the policy, with the profile of that name.',
    ),
)


class Polled(CallbackGroup):
    """Keeps an executor from waking for its subscriptions: somebody takes the messages later.

    A camera sends more than the page shows. So its messages wait in the middleware, and those that
    are passed over are never made into Python objects.
    """

    def can_execute(self, entity: Any) -> bool:
        """Never by the executor."""
        return False

    def beginning_execution(self, entity: Any) -> bool:
        """Never by the executor."""
        return False

    def ending_execution(self, entity: Any) -> None:
        """Nothing was begun."""


class ViewerNode(AutoLifecycleNode):
    """See the module's text, and docs/how-to/view.md."""

    def __init__(self, opened: Callable[[str], None] = lambda address: None) -> None:
        """``opened`` receives the page's address."""
        super().__init__('viewer_node')
        self._opened = opened
        self._settings = NodeParameters(self, PARAMETERS)
        self._throttle = Throttle(self.get_logger())
        self._server: Any = None
        self._page: Page | None = None
        self._instruction: Any = None
        self._feed: Feed | None = None
        self._sources: list[Source] = []
        self._listening: list[Any] = []
        self._polled: list[tuple[str, Any]] = []
        self._timer: Any = None
        self._ticks = 0
        self._described = False
        self._wanted: dict[str, Any] = {}  # parameter values requested and not yet sent
        self._sent_at: float | None = None  # monotonic s, of the request under way
        self._active = False
        self._jobs: deque[Callable[[], None]] = deque()
        self._group = Polled()
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        # The page lives in threads of its own; it leaves jobs here and wakes this one.
        self._wake = self.create_guard_condition(self._work)

    # Lifecycle.

    def setup(self) -> None:
        """Read the profile and open the page."""
        self._settings.check_now()
        values = self._settings.values()
        self._policy, self._mover = values['policy'], values['executor']
        space = self._policy.rpartition('/')[0]
        profile = load_profile(values['profile'], values['robot_sn'], space)
        self._arm = arm_node(values['arm'], profile, space)
        self._instruction = self.create_publisher(String, f'{self._policy}/instruction', latched())
        self._make_clients()
        access = Access(values['host'])
        self._server = serve(values['host'], values['port'], access)
        self._page = Page(
            self._server,
            profile.robot,
            Actions(
                say=self._say,
                enable=self._enable,
                hold=partial(self._call, 'hold', (f'{self._mover}/hold',), ON),
                disable=partial(self._call, 'disable', (f'{self._mover}/enable',), OFF),
                reset=self._reset,
                change=self._change,
            ),
        )
        self._feed = Feed(
            self._page,
            profile,
            self._policy,
            self._mover,
            package_folders(),
            self.get_logger(),
        )
        self._sources = sources(profile, self._policy, self._arm, values['image_transport'])
        follow = partial(self._later, self._follow)
        self._server.on_client_connect(lambda client: follow())
        self._server.on_client_disconnect(lambda client: follow())
        self._settings.frozen = True
        where = 'this machine only' if is_loopback(values['host']) else 'the network, with a token'
        address = access.address(values['host'], self._server.get_port())
        self.get_logger().info(f'page for {where}: {address}')
        self._opened(address)

    def start(self) -> None:
        """Follow the pages that are open."""
        self._active = True
        self._follow()

    def stop(self) -> None:
        """Listen to nothing."""
        self._active = False
        self._follow()

    def teardown(self) -> None:
        """Close the page."""
        if self._server is not None:
            self._server.stop()
            self._server = self._page = self._feed = None
        if self._instruction is not None:
            self.destroy_publisher(self._instruction)
            self._instruction = None
        for client in getattr(self, '_callers', {}).values():
            self.destroy_client(client)
        self._callers = {}
        self._described = False
        self._settings.frozen = False

    def _make_clients(self) -> None:
        make = self.create_client
        self._callers = {
            f'{self._mover}/enable': make(SetBool, f'{self._mover}/enable'),
            f'{self._policy}/enable': make(SetBool, f'{self._policy}/enable'),
            f'{self._mover}/hold': make(SetBool, f'{self._mover}/hold'),
            f'{self._mover}/reset': make(Trigger, f'{self._mover}/reset'),
            f'{self._policy}/reset': make(Trigger, f'{self._policy}/reset'),
            'list': make(ListParameters, f'{self._policy}/list_parameters'),
            'describe': make(DescribeParameters, f'{self._policy}/describe_parameters'),
            'get': make(GetParameters, f'{self._policy}/get_parameters'),
            'set': make(SetParameters, f'{self._policy}/set_parameters'),
        }
        if self._arm:
            self._callers[f'{self._arm}/reset'] = make(Trigger, f'{self._arm}/reset')

    # Jobs from the page's threads.

    def _later(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        self._wake.trigger()

    def _work(self) -> None:
        while self._jobs:
            self._guard('page', self._jobs.popleft())

    def _guard(self, what: str, act: Callable[..., None], *arguments: Any) -> None:
        """Whatever a person types or another node answers, the page stays."""
        try:
            act(*arguments)
        except Exception as error:  # of a callback it would end the process
            self._throttle.warning(what, reason(error))

    # Listening.

    def _follow(self) -> None:
        """Listen while somebody looks, and not otherwise."""
        looking = self._active and self._server is not None and bool(self._server.get_clients())
        if looking == (self._timer is not None):
            return
        if not looking:
            self.destroy_timer(self._timer)
            self._timer = None
            for subscription in self._listening:
                self.destroy_subscription(subscription)
            self._listening.clear()
            self._polled.clear()
            return
        self._feed.forget()
        for source in self._sources:
            self._listen(source)
        self._listening.append(
            self.create_subscription(
                ParameterEvent,
                '/parameter_events',
                partial(self._guard, 'parameter event', self._on_parameters),
                every(100),
            )
        )
        self._described = False
        self._timer = self.create_timer(MOTION_PERIOD, self._tick, clock=self._steady)

    def _listen(self, source: Source) -> None:
        take = partial(self._feed.take, source.role)
        if not source.newest_only:
            quality = latched() if source.latched else every()
            refused = partial(self._refused, source.topic)
            most = DESCRIPTION if source.role == 'robot' else 0
            self._listening.append(
                subscribe(self, source.kind, source.topic, take, quality, refused, most)
            )
            return
        quality = newest()
        if source.role.startswith('image '):
            quality.depth = DEPTH
        subscription = self.create_subscription(
            source.kind, source.topic, take, quality, callback_group=self._group
        )
        self._listening.append(subscription)
        self._polled.append((source.role, subscription))

    def _refused(self, topic: str, reason: str) -> None:
        self.get_logger().warning(f'{topic}: {reason}', throttle_duration_sec=5.0)

    def _tick(self) -> None:
        self._ticks += 1
        images, text = self._ticks % IMAGES_EVERY == 0, self._ticks % TEXT_EVERY == 0
        for role, subscription in self._polled:
            if not role.startswith(('image ', 'depth ', 'info ', 'camera ')) or images:
                self._guard(role, self._take_waiting, role, subscription)
        self._feed.draw_motion()
        if images:
            self._feed.draw_images()
        if text:
            self._feed.draw_text(time.monotonic())
            ready = self._callers['list'].service_is_ready()
            if ready and not self._described:
                self._describe()
            self._described = ready
            self._guard('parameters', self._send_changes)

    def _take_waiting(self, role: str, subscription: Any) -> None:
        while found := subscription.handle.take_message(subscription.msg_type, False):
            self._feed.take(role, found[0])

    # Steering.

    def _say(self, text: str) -> None:
        self._instruction.publish(String(data=text))
        self._page.answer(f'said: {text}', True)

    def _call(
        self,
        what: str,
        services: tuple[str, ...],
        request: Any,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Call services at once, from whatever thread, and show what they answer; ``then`` after
        each of them.
        """
        for service in services:
            client = self._callers[service]
            if not client.service_is_ready():
                self._page.answer(f'{what}: nobody offers {service}', False)
                then()
                continue
            client.call_async(request).add_done_callback(
                partial(self._guard, what, self._answered, what, then)
            )

    def _answered(self, what: str, then: Callable[[], None], future: Any) -> None:
        answer = future.result()
        if answer is not None and self._page is not None:
            self._page.answer(f'{what}: {answer.message}', answer.success)
            then()

    def _enable(self) -> None:
        """Enabled, and no longer on hold."""
        self._call('enable', (f'{self._policy}/enable', f'{self._mover}/enable'), ON)
        self._call('enable', (f'{self._mover}/hold',), OFF)

    def _reset(self) -> None:
        """Everything anew, and the arm disabled: a scene that starts anew moves its arm."""
        self._call('reset', (f'{self._mover}/enable',), OFF)
        services = (f'{self._mover}/reset', f'{self._policy}/reset')
        others = partial(self._call, 'reset', services, Trigger.Request())
        if self._arm:
            # The executor receives when the arm has been put where its scene begins.
            self._call('reset', (f'{self._arm}/reset',), Trigger.Request(), others)
        else:
            others()

    def _change(self, name: str, value: Any) -> None:
        self._wanted[name] = value
        self._later(self._send_changes)

    def _send_changes(self) -> None:
        """The newest value of each parameter, one request at a time: a slider sends many."""
        now = time.monotonic()
        waits = self._sent_at is not None and now - self._sent_at < ANSWER_PATIENCE
        if waits or not self._wanted:
            return
        wanted, self._wanted = self._wanted, {}
        for name in [name for name, value in wanted.items() if not _fits(value)]:
            del wanted[name]
            self._page.answer(f'{name} was refused: an integer must fit in 64 bits', False)
            self._page.controls.restore(name)
        if not wanted:
            return
        request = SetParameters.Request(
            parameters=[
                RosParameter(
                    PREFIX + name, TYPES[self._page.controls.kinds[name]], value
                ).to_parameter_msg()
                for name, value in wanted.items()
            ]
        )
        if not self._callers['set'].service_is_ready():
            self._page.answer(f'{self._policy} does not answer', False)
            return
        self._sent_at = now
        future = self._callers['set'].call_async(request)
        future.add_done_callback(partial(self._guard, 'parameters', self._changed, wanted))

    def _changed(self, wanted: dict[str, Any], future: Any) -> None:
        self._sent_at = None
        results = future.result().results
        controls = self._page.controls if self._page is not None else None
        for (name, value), result in zip(wanted.items(), results, strict=True):
            if result.successful:
                self._page.answer(f'{name} = {value}', True)
            else:
                self._page.answer(f'{name} = {value} was refused: {result.reason}', False)
                if controls is not None:
                    controls.restore(name)
        self._send_changes()

    # Parameters of the policy.

    def _describe(self) -> None:
        request = ListParameters.Request(prefixes=[PREFIX.rstrip('.')])
        self._callers['list'].call_async(request).add_done_callback(
            partial(self._guard, 'parameters', self._listed)
        )

    def _listed(self, future: Any) -> None:
        names = list(future.result().result.names)  # in the order they were declared
        describe = self._callers['describe'].call_async(DescribeParameters.Request(names=names))
        describe.add_done_callback(partial(self._guard, 'parameters', self._described_as, names))

    def _described_as(self, names: list[str], future: Any) -> None:
        get = self._callers['get'].call_async(GetParameters.Request(names=names))
        get.add_done_callback(
            partial(self._guard, 'parameters', self._got, future.result().descriptors)
        )

    def _got(self, descriptors: list[ParameterDescriptor], future: Any) -> None:
        values = [parameter_value_to_python(value) for value in future.result().values]
        found = [
            _parameter(descriptor, value)
            for descriptor, value in zip(descriptors, values, strict=True)
            if not descriptor.read_only and descriptor.type in KINDS
        ]
        self._page.show_parameters(found)

    def _on_parameters(self, event: ParameterEvent) -> None:
        if event.node != self._policy or self._page.controls is None:
            return
        values = {
            p.name.removeprefix(PREFIX): parameter_value_to_python(p.value)
            for p in (*event.new_parameters, *event.changed_parameters)
            if p.name.startswith(PREFIX)
        }
        self._page.controls.show(values)


def _fits(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(not isinstance(number, int) or number in INT64 for number in numbers)


def _parameter(descriptor: ParameterDescriptor, value: Any) -> Parameter:
    """What a descriptor says, for the page."""
    low = high = None
    step = 0.0
    for one in (*descriptor.floating_point_range, *descriptor.integer_range):
        low, high, step = one.from_value, one.to_value, one.step
    text = descriptor.additional_constraints
    choices = text.removeprefix('one of: ').split(', ') if text.startswith('one of: ') else []
    summary, _, group = descriptor.description.rpartition(' Group: ')
    return Parameter(
        descriptor.name.removeprefix(PREFIX),
        KINDS[descriptor.type],
        value if isinstance(value, (bool, int, float, str)) else list(value),
        summary or descriptor.description,
        group.rstrip('.') if summary else '',
        tuple(choices),
        low,
        high,
        step,
    )


def package_folders() -> list[Path]:
    """Folders that hold packages, for ``package://`` names of meshes."""
    prefixes = set(get_packages_with_prefixes().values()) | {
        prefix for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(':') if prefix
    }
    return sorted(Path(prefix) / 'share' for prefix in prefixes)


def main() -> int:
    """Entry point of ``ros2 run specprune_ros viewer_node``."""
    return run(ViewerNode)


if __name__ == '__main__':
    raise SystemExit(main())
