"""What the page makes of messages, without a server behind it."""

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
