"""The page in the browser: shown, steered, refused, and safe; with real nodes and Chromium."""

import contextlib
import importlib
import json
import math
import re
import time
from pathlib import Path

import pytest
import yaml
from ros_processes import Process, new_domain

pytest.importorskip('viser', reason='viser is not installed: pip install -r requirements/view.txt')

pytestmark = [pytest.mark.ros, pytest.mark.timeout(580)]
ROOT = Path(__file__).parents[2]
WORDS = 'lift the green cube'
OUTCOME = re.compile('success|collision|time out')


def patient(profile, folder):
    """The profile, but a clock that a busy machine makes halt does not stop the arm."""
    values = yaml.safe_load(profile.read_text())
    values['watchdog']['clock_stall'] = 5.0
    file = folder / 'patient.yaml'
    file.write_text(yaml.safe_dump(values))
    return file


class Robot:
    """The simulated arm, the policy with the shipped weights, the executor and the page."""

    def __init__(self, folder):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
        from geometry_msgs.msg import TwistStamped
        from rclpy.executors import SingleThreadedExecutor
        from specprune_ros.msg import PruneStats
        from std_msgs.msg import String

        from specprune_ros.apps.demo.app import LATENCY_LIMIT, bundled_weights
        from specprune_ros.nodes.common.qos import every, latched
        from specprune_ros.nodes.common.remapping import (
            policy_parameters,
            policy_remappings,
            profile_path,
            ros_arguments,
        )
        from specprune_ros.robot.profile import load

        self.domain = new_domain()
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.node = rclpy.create_node('watcher', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.stats, self.results, self.moves, self.said = [], [], [], []
        self.diagnosed, self.clients = set(), {}

        def moved(message):
            linear = message.twist.linear
            speed = math.hypot(linear.x, linear.y, linear.z)
            self.moves.append((time.monotonic(), speed))

        listen = self.node.create_subscription
        listen(
            DiagnosticArray,
            '/diagnostics',
            lambda message: self.diagnosed.update(status.name for status in message.status),
            every(),
        )
        listen(PruneStats, '/specprune_node/prune_stats', self.stats.append, every())
        listen(DiagnosticStatus, '/sim_arm/verdict', self.results.append, latched())
        listen(TwistStamped, '/sim_arm/cmd_twist', moved, every())
        listen(String, '/specprune_node/instruction', self.said.append, latched())
        profile = load(profile_path('sim_arm'))
        # Simulated time, as in the demo: a busy machine makes it slow, and nothing else.
        follows = {'use_sim_time': True}
        policy = {
            **policy_parameters(profile),
            'model.path': bundled_weights(),
            'model.threads': 1,
            'query_when': 'chunk',
            'query_rate': 10.0,
            **follows,
        }
        self.processes = [
            self.start(name, arguments, folder)
            for name, arguments in (
                (
                    'sim_arm',
                    ros_arguments(
                        {
                            '~/instruction': '/specprune_node/instruction',
                            '~/prune_stats': '/specprune_node/prune_stats',
                        },
                        {
                            'scene_for': [WORDS],
                            'publish_clock': True,
                            'latency_limit': LATENCY_LIMIT,
                        },
                    ),
                ),
                ('specprune_node', ros_arguments(policy_remappings(profile), policy)),
                (
                    'chunk_executor',
                    ros_arguments(
                        {'~/action_chunk': '/specprune_node/action_chunk'},
                        {'profile': str(patient(profile_path('sim_arm'), folder)), **follows},
                    ),
                ),
                ('viewer_node', ros_arguments({}, {'port': 18080 + self.domain})),
            )
        ]

    def start(self, name, arguments, folder):
        return Process(name, arguments, self.domain, folder / f'{name}.log')

    @property
    def port(self) -> int:
        """Where the page is, once the log says so."""
        viewer = self.processes[-1]
        assert self.wait(lambda: 'page for' in viewer.text(), 120), viewer.text()
        return int(re.search(r'page for .*:(\d+)', viewer.text()).group(1))

    def listeners(self, topic) -> list[str]:
        """Nodes that subscribe to a topic, without the arm and this one."""
        found = self.node.get_subscriptions_info_by_topic(topic)
        return [n for n in (info.node_name for info in found) if n not in ('watcher', 'sim_arm')]

    def spin(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def wait(self, condition, seconds=30.0) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            self.executor.spin_once(timeout_sec=0.05)
        return True

    def round_trip(self) -> float:
        """Seconds that a call to the executor takes."""
        begin = time.monotonic()
        parameter(self, 'policy', '/chunk_executor')
        return time.monotonic() - begin

    def close(self):
        for process in reversed(self.processes):
            process.stop()
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture(scope='module')
def robot(tmp_path_factory):
    made = Robot(tmp_path_factory.mktemp('robot'))
    yield made
    made.close()


@pytest.fixture
def page(robot, tmp_path):
    from browser import BrowserPage, open_browser

    port = robot.port
    driver = open_browser(tmp_path / 'chromium')
    try:
        made = BrowserPage(driver, f'http://127.0.0.1:{port}')
        made.wait = lambda condition, seconds=90.0: robot.wait(condition, seconds)
        yield made
    finally:
        driver.quit()


@pytest.fixture
def client(robot):
    from page_client import PageClient

    made = PageClient(robot.port)
    yield made
    made.close()


def test_a_person_types_an_instruction_and_the_arm_does_it(robot, page):
    page.type('Instruction', WORDS)
    page.click('Send')
    assert page.wait(lambda: robot.said and robot.said[-1].data == WORDS)
    # The shipped policy does it nearly always, on a machine that is not too busy for it.
    for _ in range(3):
        assert page.wait(lambda: OUTCOME.search(page.text('banner')), 240), page.text('banner')
        if 'success' in page.text('banner'):
            break
        page.click('Reset')
        assert page.wait(lambda: 'waiting' in page.text('banner'))
        page.click('Enable')
        page.click('Send')
    assert 'success' in page.text('banner')
    assert page.wait(lambda: 'operations' in page.text('layers'))
    page.click('State')
    assert page.wait(lambda: 'watchdog' in page.text('state').lower() or page.text('state'))
    state = page.text('state')
    for word in ('Policy', 'Executor', 'pose age', 'parameters version', 'episode'):
        assert word in state
    assert not page.errors()

    # A slider: the next query runs with it.
    page.click('Pruning')
    page.unfold('Token budgets', 'alpha')
    before = robot.stats[-1].params_version
    page.type('alpha', '0.6')
    assert page.wait(lambda: robot.stats[-1].params_version > before)
    assert page.wait(lambda: abs(robot.stats[-1].alpha - 0.6) < 1e-6)
    assert page.wait(lambda: 'alpha = 0.6' in page.text('answer'))

    # What the node refuses is said, and the control goes back.
    page.type('camera_factor', '99')
    assert page.wait(lambda: 'refused' in page.text('answer')), page.text('answer')
    assert 'camera_factor' in page.text('answer')
    assert page.wait(lambda: page.field('camera_factor').get_attribute('value') != '99')

    # Dense against pruned at a click.
    page.click('dense')
    assert page.wait(lambda: robot.stats[-1].pruner == 'dense')
    page.click('pruned')
    assert page.wait(lambda: robot.stats[-1].pruner == 'specprune')

    # Hold, go on, disable: from 100 ms after the click on the arm only brakes, and then rests.
    page.click('Hold')
    assert page.wait(lambda: 'held' in page.text('banner'))
    page.click('Enable')
    assert page.wait(lambda: 'moving' in page.text('banner'))
    # A busy machine gets as much more time as one call to the executor takes it.
    limit = 0.1 + 2 * max(robot.round_trip() for _ in range(3))
    page.click('Disable')
    clicked = time.monotonic()
    robot.spin(limit + 1.5)
    after = [speed for at, speed in robot.moves if at > clicked + limit]
    assert all(later <= earlier + 1e-3 for earlier, later in zip(after, after[1:], strict=False))
    assert not after or after[-1] < 1e-3
    assert page.wait(lambda: 'disabled' in page.text('banner'))
    assert not page.errors()


def test_nobody_listens_while_no_page_is_open(robot):
    from page_client import PageClient

    topic = '/specprune_node/prune_stats'
    port = robot.port
    assert robot.wait(lambda: not robot.listeners(topic))
    first, second = PageClient(port), PageClient(port)
    assert robot.wait(lambda: robot.listeners(topic) == ['viewer_node'])
    first.close()
    robot.spin(0.5)
    assert robot.listeners(topic) == ['viewer_node']
    second.socket.socket.close()  # a browser that goes away without a word
    assert robot.wait(lambda: not robot.listeners(topic))


def test_a_flood_of_slider_events_becomes_a_few_changes_and_the_last_one_counts(robot, client):
    client.until('alpha')
    before = robot.stats[-1].params_version if robot.stats else 0
    for step in range(3000):
        client.set('alpha', 0.3 + 0.0001 * (step % 5000))
    client.set('alpha', 0.75)
    assert robot.wait(lambda: parameter(robot, 'pruning.alpha') == 0.75)
    robot.spin(1.0)
    assert parameter(robot, 'pruning.alpha') == 0.75
    log = robot.processes[1].text()
    versions = [int(v) for v in re.findall(r'parameters version (\d+)', log)]
    assert versions[-1] - before < 600, 'each event became a change'


def test_what_no_slider_can_send_is_refused_by_the_node(robot, client):
    before = parameter(robot, 'pruning.k_global')
    client.set('k_global', 100_000)
    texts = []

    def refused():
        for message in client.receive():
            texts.append(str(message.get('updates', {}).get('content', '')))
        return any('k_global = 100000 was refused' in text for text in texts)

    assert robot.wait(refused)
    assert parameter(robot, 'pruning.k_global') == before


@pytest.fixture
def alone(tmp_path):
    """The page of a policy that is a bare node with one list of integers, and that node."""
    import rclpy
    from page_client import PageClient
    from rclpy.executors import SingleThreadedExecutor

    from specprune_ros.nodes.common.remapping import ros_arguments

    domain = new_domain()
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node('specprune_node', context=context)
    node.declare_parameter('pruning.prune_layers', [2, 20])
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    process = Process(
        'viewer_node', ros_arguments({}, {'port': 18080 + domain}), domain, tmp_path / 'page.log'
    )
    client = None
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r'page for .*:(\d+)', process.text())):
            assert process.alive() and time.monotonic() < end, process.text()
            executor.spin_once(timeout_sec=0.1)
        client = PageClient(int(found.group(1)))
        yield node, executor, process, client
    finally:
        if client is not None:
            client.close()
        process.stop()
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def test_neither_absurd_messages_nor_a_huge_integer_end_the_page(alone, tmp_path):
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from rcl_interfaces.msg import Parameter, ParameterEvent, ParameterValue
    from specprune_ros.msg import PruneStats
    from std_msgs.msg import ColorRGBA, String
    from visualization_msgs.msg import Marker, MarkerArray
    from websockets.exceptions import ConnectionClosed

    from specprune_ros.nodes.common.qos import every, latched

    node, executor, process, client = alone
    publishers = {}

    def publish(kind, topic, message, quality=every):
        if topic not in publishers:
            publishers[topic] = node.create_publisher(kind, topic, quality())
        publisher = publishers[topic]
        assert shows(lambda: publisher.get_subscription_count()), topic
        publisher.publish(message)

    def shows(condition, seconds=90.0):
        end = time.monotonic() + seconds
        while not condition():
            if not process.alive() or time.monotonic() > end:
                return False
            executor.spin_once(timeout_sec=0.02)
            with contextlib.suppress(TimeoutError, ConnectionClosed):
                client.receive(0.02)
        return True

    def seen(text):
        return lambda: text in str(client.seen)

    assert shows(lambda: 'prune_layers' in client.parts), process.text()
    value = 99999999999999999999
    client.set('prune_layers', f'2, {value}')
    assert shows(seen('prune_layers was refused: an integer must fit in 64 bits')), process.text()

    stats, arm = '/specprune_node/prune_stats', '/sim_arm'
    publish(PruneStats, stats, PruneStats(mode=9, sequence=1, tokens_in=1, time_total=0.1))
    assert shows(seen('query 1, mode 9')), process.text()
    publish(PruneStats, stats, PruneStats(sequence=2))  # no tokens
    assert shows(seen('query 2, ')), process.text()
    absurd = {'time_total': math.inf, 'speed_translation': math.inf, 'tokens_mean': math.nan}
    for number in (3, 4):
        publish(PruneStats, stats, PruneStats(sequence=number, **absurd))
    for share in ('unknown', '5', 'nan'):
        status = DiagnosticStatus(
            name='specprune_node: policy',
            message=f'share {share}',
            values=[KeyValue(key='image share seen', value=share)],
        )
        publish(DiagnosticArray, '/diagnostics', DiagnosticArray(status=[status]))
        assert shows(seen(f'share {share}')), process.text()
    nothing = math.nan
    marker = Marker(type=Marker.CUBE, color=ColorRGBA(r=nothing, g=nothing, b=nothing, a=1.0))
    publish(MarkerArray, f'{arm}/objects', MarkerArray(markers=[marker]))
    for seconds in ('x', '1e999'):
        verdict = DiagnosticStatus(values=[KeyValue(key='seconds', value=seconds)])
        publish(DiagnosticStatus, f'{arm}/verdict', verdict, latched)
    mesh = tmp_path / 'arm.stl'
    mesh.write_bytes(b'solid' + bytes(range(256)))
    shape = f'<visual><geometry><mesh filename="file://{mesh}"/></geometry></visual>'
    broken = f'<robot name="r"><link name="l">{shape}</link></robot>'
    publish(String, f'{arm}/robot_description', String(data=broken), latched)
    event = ParameterEvent(node='/specprune_node')
    event.changed_parameters = [Parameter(name='pruning.prune_layers', value=ParameterValue())]
    publish(ParameterEvent, '/parameter_events', event, lambda: every(100))

    # What comes after all that is shown.
    assert shows(lambda: 'robot_description' in process.text()), process.text()
    publish(PruneStats, stats, PruneStats(sequence=77, tokens_in=256, tokens_mean=100.0))
    assert shows(seen('query 77, ')), process.text()
    assert process.alive() and 'Traceback' not in process.text(), process.text()


# What a panel or display can show.
FOXGLOVE_3D = {
    'nav_msgs/msg/Path',
    'geometry_msgs/msg/PoseStamped',
    'sensor_msgs/msg/PointCloud2',
    'visualization_msgs/msg/MarkerArray',
}
RVIZ = {
    'RobotModel': 'std_msgs/msg/String',
    'Path': 'nav_msgs/msg/Path',
    'Pose': 'geometry_msgs/msg/PoseStamped',
    'PointCloud2': 'sensor_msgs/msg/PointCloud2',
    'MarkerArray': 'visualization_msgs/msg/MarkerArray',
    'Image': 'sensor_msgs/msg/Image',
}


@pytest.fixture(scope='module')
def types(robot, tmp_path_factory):
    """Type by topic of everything that is published, the patch cloud included."""
    cloud = robot.start('patch_cloud', [], tmp_path_factory.mktemp('cloud'))
    assert robot.wait(lambda: robot.node.count_publishers('/patch_cloud/points'), 60)
    yield {
        topic: kinds[0]
        for topic, kinds in robot.node.get_topic_names_and_types()
        if robot.node.count_publishers(topic)
    }
    cloud.stop()


def number_at(kind, field):
    """The value of a field such as ``twist.linear.x`` in a message of a type."""
    package, _, name = kind.split('/')
    value = getattr(importlib.import_module(f'{package}.msg'), name)()
    for part in field.split('.'):
        value = getattr(value, part)
    return value


def test_the_foxglove_layout_fits_what_is_published(robot, types):
    layout = json.loads((ROOT / 'config' / 'foxglove.json').read_text())
    plotted = 0
    for name, panel in layout['configById'].items():
        kind = name.split('!')[0]
        if kind == 'Image':
            assert types[panel['imageMode']['imageTopic']] == 'sensor_msgs/msg/Image'
        for path in panel.get('paths', ()):
            topic, _, field = path['value'].partition('.')
            assert isinstance(number_at(types[topic], field), (int, float)), path
            plotted += 1
        if kind == '3D':
            assert {types[topic] for topic in panel['topics']} <= FOXGLOVE_3D
            for layer in panel['layers'].values():
                if layer['layerId'] == 'foxglove.Urdf':
                    assert types[layer['topic']] == 'std_msgs/msg/String'
        if 'topicToRender' in panel:
            assert types[panel['topicToRender']] == 'diagnostic_msgs/msg/DiagnosticArray'
        if kind == 'DiagnosticStatusPanel':
            assert robot.wait(lambda panel=panel: panel['selectedName'] in robot.diagnosed)
    assert plotted > 15


def test_the_rviz_configuration_fits_what_is_published(robot, types):
    from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

    tree = yaml.safe_load((ROOT / 'config' / 'specprune.rviz').read_text())
    shown = 0
    for display in tree['Visualization Manager']['Displays']:
        topic = display.get('Topic', display.get('Description Topic'))
        if topic is None:
            continue
        shown += 1
        assert types[topic['Value']] == RVIZ[display['Class'].split('/')[1]], display['Name']
        for info in robot.node.get_publishers_info_by_topic(topic['Value']):
            offered = info.qos_profile
            if topic['Reliability Policy'] == 'Reliable':
                assert offered.reliability == ReliabilityPolicy.RELIABLE, display['Name']
            if topic['Durability Policy'] == 'Transient Local':
                assert offered.durability == DurabilityPolicy.TRANSIENT_LOCAL, display['Name']
    assert shown > 6


def parameter(robot, name, node='/specprune_node'):
    from rcl_interfaces.srv import GetParameters
    from rclpy.parameter import parameter_value_to_python

    client = robot.clients.get(node)
    if client is None:
        client = robot.node.create_client(GetParameters, f'{node}/get_parameters')
        robot.clients[node] = client
    assert client.wait_for_service(30)
    future = client.call_async(GetParameters.Request(names=[name]))
    robot.executor.spin_until_future_complete(future, timeout_sec=30)
    return parameter_value_to_python(future.result().values[0])
