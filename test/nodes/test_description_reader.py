"""A robot description from a topic, which the machine may be too busy to try out."""

from __future__ import annotations

import time

import pytest

from specprune_ros.robot import description_trial
from specprune_ros.robot.description import UrdfError
from specprune_ros.robot.description_trial import UntriedError

pytestmark = pytest.mark.ros


def slow(*_):
    """The real child, which is given no time to answer."""
    description_trial.try_out('<robot name="r"><link name="l"/></robot>', 'l')


def no_process(*_, **__):
    raise OSError('Resource temporarily unavailable')


def refuse(*_):
    raise UrdfError('no such link')


@pytest.fixture
def read(ros, monkeypatch):
    """Reads one text that is said once, with one stand-in for ``try_out`` after another; returns
    the texts used and the reasons refused.
    """
    from specprune_ros.nodes.common import description

    ros.init()
    node = ros.create_node('reader')
    monkeypatch.setattr(description, 'LATER', 0.01)
    monkeypatch.setattr(description_trial, 'CHILD_SECONDS', 0.01)

    def run(*trials):
        left, used, refused = list(trials), [], []
        monkeypatch.setattr(description, 'try_out', lambda *words: left.pop(0)(*words))
        reader = description.DescriptionReader(
            node, '/robot_description', ('tcp', '', ''), used.append, refused.append, print
        )
        reader._on_text(description.String(data='<robot/>'))
        end = time.monotonic() + 60.0
        # Until nothing is under way or to come any more.
        while (reader._thread or reader._kept) and time.monotonic() < end:
            ros.spin_once(node, timeout_sec=0.1)
        reader.close()
        assert not left
        return used, refused

    yield run
    node.destroy_node()
    ros.try_shutdown()


@pytest.mark.parametrize('trouble', [slow, no_process])
def test_one_that_could_not_be_tried_out_is_tried_again(read, trouble):
    """robot_state_publisher says it once, so the arm waited for ever."""
    used, refused = read(trouble, trouble, lambda *_: None)
    assert used == ['<robot/>']
    assert len(refused) == 2 and all('it is tried again in' in reason for reason in refused)


def test_that_has_an_end(read):
    from specprune_ros.nodes.common.description import TRIALS

    used, refused = read(*[no_process] * TRIALS)
    assert not used and len(refused) == TRIALS and 'again' not in refused[-1]


def test_a_text_that_is_refused_is_not_tried_again(read):
    assert read(refuse) == ([], ['no such link'])


def test_a_child_that_cannot_be_started_is_no_fault_of_the_text(monkeypatch):
    monkeypatch.setattr('subprocess.Popen', no_process)
    with pytest.raises(UntriedError, match='temporarily unavailable'):
        description_trial.try_out('<robot/>', 'tcp')
