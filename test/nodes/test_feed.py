"""What the page listens to and makes of it, without a browser."""

import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

pytest.importorskip('viser', reason='viser is not installed: requirements/view.txt')
pytestmark = pytest.mark.ros
EXECUTOR, POLICY = '/left/chunk_executor', '/left/specprune_node'


@pytest.fixture
def feed():
    """A feed, and the page it draws on."""
    from specprune_ros.nodes.common.remapping import load_profile
    from specprune_ros.nodes.viewer_node.feed import Feed

    page = Mock()
    return Feed(page, load_profile('sim_arm'), POLICY, EXECUTOR), page


def report(node, message):
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

    status = DiagnosticStatus(name=f'{node.strip("/")}: state', message=message)
    return DiagnosticArray(status=[status])


def test_a_node_that_is_not_heard_any_more_is_not_shown_as_it_last_was(feed, monkeypatch):
    from specprune_ros.nodes.viewer_node import feed as module
    from specprune_ros.nodes.viewer_node.page import BAD, GOOD

    feed, page = feed
    now = 100.0
    monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda: now))

    def banner(live=True):
        feed.draw_text(now if live else None)
        return page.banner.call_args.args[:3]

    feed.take('diagnostics', report(EXECUTOR, 'moving'))
    feed.take('diagnostics', report(POLICY, 'querying'))
    assert banner()[:2] == ('moving', GOOD)
    now += 30.0
    silent = [
        f'no word from left/{name} for 30 s' for name in ('chunk_executor', 'specprune_node')
    ]
    assert banner() == ('; '.join(silent), BAD, '')
    assert page.show_state.call_args.args[0]['Executor']['status'] == silent[0]
    # A recording is shown as it was at a moment, however long ago.
    feed.take('diagnostics', report(POLICY, 'querying'))
    assert banner(live=False)[:2] == ('moving', GOOD)

    feed.take('diagnostics', report(EXECUTOR, 'held'))
    assert banner()[:2] == ('held', GOOD)
    now += 2.0
    feed.take('diagnostics', report(EXECUTOR, 'held'))
    now += 2.0
    assert banner() == ('no word from left/specprune_node for 4 s', BAD, 'held')


def test_the_page_listens_to_the_form_of_images_that_the_nodes_have():
    from sensor_msgs.msg import CompressedImage, Image

    from specprune_ros.apps.launch_arguments import check, wire
    from specprune_ros.nodes.common.remapping import load_profile
    from specprune_ros.nodes.viewer_node.feed import sources

    profile = load_profile('sim_arm')
    for transport, kind in (
        ('profile', Image),
        ('raw', Image),
        ('compressed', CompressedImage),
    ):
        remappings, _ = wire(profile, transport)
        shown = check({'image_transport': transport}).page_parameters()['image_transport']
        found = {source.role: source for source in sources(profile, POLICY, '', shown)}
        for camera in profile.observation.cameras:
            source = found[f'image {camera}']
            assert (source.topic, source.kind) == (remappings[f'~/image/{camera}'], kind)


@pytest.fixture
def viewer(ros):
    """The node, not configured."""
    from specprune_ros.nodes.viewer_node.node import ViewerNode

    ros.init()
    node = ViewerNode()
    yield node
    node.destroy_node()
    ros.try_shutdown()


def test_a_long_description_is_read_as_the_other_nodes_read_it(viewer):
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    from specprune_ros.nodes.common.qos import latched
    from specprune_ros.nodes.viewer_node.feed import Source

    viewer._feed = Mock()
    viewer._listen(Source('robot', '/robot_description', String, latched=True))
    text = 'x' * 500_000
    publisher = viewer.create_publisher(String, '/robot_description', latched())
    publisher.publish(String(data=text))
    executor = SingleThreadedExecutor()
    executor.add_node(viewer)
    end = time.monotonic() + 60.0
    while not viewer._feed.take.called and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.05)
    executor.remove_node(viewer)
    viewer._feed.take.assert_called_once_with('robot', String(data=text))


def test_a_page_that_is_closed_says_its_last_instruction_no_more(viewer):
    from rclpy.lifecycle import TransitionCallbackReturn
    from rclpy.parameter import Parameter

    viewer.set_parameters([Parameter('port', value=19300)])
    assert viewer.trigger_configure() == TransitionCallbackReturn.SUCCESS
    topic = '/specprune_node/instruction'
    assert viewer.count_publishers(topic) == 1
    assert viewer.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    end = time.monotonic() + 30.0
    while viewer.count_publishers(topic) and time.monotonic() < end:
        time.sleep(0.05)
    assert viewer.count_publishers(topic) == 0
