import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprune_ros.robot.gripper import GripperHysteresis


def feed(gripper, openings, period_ns=10_000_000):
    return [gripper.update(x, i * period_ns) for i, x in enumerate(openings)]


def test_sent_on_change_only():
    assert feed(GripperHysteresis(), [1, 1, 0.9, 0, 0, 1]) == [1.0, None, None, 0.0, None, 1.0]


def test_hovering_about_the_middle_sends_nothing():
    gripper = GripperHysteresis()
    feed(gripper, [1.0])
    assert feed(gripper, [0.55, 0.45, 0.5, 0.41, 0.59] * 20) == [None] * 100
    assert gripper.sent == 1.0


@given(st.lists(st.floats(-1, 2), max_size=200))
def test_commands_alternate(openings):
    sent = [x for x in feed(GripperHysteresis(), openings) if x is not None]
    assert all(a != b for a, b in zip(sent, sent[1:], strict=False))
    assert set(sent) <= {0.0, 1.0}


def test_nothing_finite_nothing_sent():
    assert feed(GripperHysteresis(), [math.nan, math.inf, -math.inf]) == [None] * 3


def test_continuous_sends_beyond_the_deadband():
    gripper = GripperHysteresis(continuous=True, deadband=0.1)
    assert feed(gripper, [0.5, 0.55, 0.62, 0.6, 1.7]) == [0.5, None, 0.62, None, 1.0]


def test_dwell_waits_for_a_lasting_change():
    gripper = GripperHysteresis(dwell_s=0.05)
    feed(gripper, [1.0])
    assert feed(gripper, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]) == [None] * 6  # 10 ms apart
    assert gripper.update(0.0, 80_000_000) == 0.0


def test_reset_sends_again():
    gripper = GripperHysteresis()
    feed(gripper, [1.0])
    gripper.reset()
    assert gripper.update(1.0, 0) == 1.0


def test_thresholds_must_ascend():
    with pytest.raises(ValueError, match='must ascend'):
        GripperHysteresis(close_below=0.7, open_above=0.3)
