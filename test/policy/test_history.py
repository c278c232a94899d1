"""The ring of past pictures: by time, bounded, and never backwards."""

import numpy as np

from specprune_ros.policy.history import CAPACITY, FrameHistory
from specprune_ros.policy.observation import Picture

SECOND = 10**9


def picture(seconds):
    return Picture(np.zeros((2, 2, 3), np.uint8), round(seconds * SECOND))


def filled(*seconds, span=1.0):
    history = FrameHistory(round(span * SECOND))
    for at in seconds:
        history.push('agent', picture(at))
    return history


def test_the_newest_at_or_before_the_time_asked_for():
    history = filled(1.0, 1.1, 1.2, 1.3)
    assert history.at('agent', round(1.25 * SECOND), 2 * SECOND).stamp_ns == 1.2 * SECOND
    assert history.at('agent', round(1.2 * SECOND), 2 * SECOND).stamp_ns == 1.2 * SECOND


def test_the_oldest_where_the_past_is_short():
    assert filled(1.2, 1.3).at('agent', SECOND, 2 * SECOND).stamp_ns == 1.2 * SECOND


def test_the_present_is_not_the_past():
    history = filled(1.3)
    assert history.at('agent', round(1.3 * SECOND), round(1.3 * SECOND)) is None
    assert history.at('other', SECOND, 2 * SECOND) is None


def test_pictures_older_than_the_span_are_let_go_but_one_stays_to_reach_it():
    history = filled(*(0.1 * i for i in range(31)))
    assert history.at('agent', 2 * SECOND, 9 * SECOND).stamp_ns == 2.0 * SECOND
    assert len(history) == 11


def test_the_number_is_bounded_whatever_the_rate():
    assert len(filled(*(1e-4 * i for i in range(500)))) == CAPACITY


def test_one_stamp_from_the_future_keeps_no_true_picture_out():
    history = filled(1.0, 1.1, 3600.0, 1.2)
    assert history.at('agent', 9 * SECOND, 9 * SECOND).stamp_ns == 1.2 * SECOND
    assert history.at('agent', round(1.19 * SECOND), 9 * SECOND) is not None


def test_pictures_closer_than_asked_are_thinned_out():
    history = FrameHistory(SECOND, apart_ns=round(0.02 * SECOND))
    for step in range(100):
        history.push('agent', picture(0.01 * step))
    assert len(history) == 50
