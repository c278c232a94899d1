"""The ring of past images: by time, bounded, and never backwards."""

import time
from threading import Thread

import numpy as np
import pytest
import torch

from specprune_ros.policy.image_buffer import CAPACITY, Frame, ImageBuffer
from specprune_ros.policy.observation import CameraImage

SECOND = 10**9


def image(seconds):
    return CameraImage(np.zeros((2, 2, 3), np.uint8), round(seconds * SECOND))


def one(history, stamp_ns, before_ns, camera='agent'):
    """Stamp of the image found, ``None`` without one."""
    found = history.at(camera, stamp_ns, before_ns)
    return found and found.stamp_ns


def filled(*seconds, span=1.0):
    history = ImageBuffer(round(span * SECOND))
    for at in seconds:
        history.push('agent', image(at))
    return history


def test_the_newest_at_or_before_the_time_requested():
    history = filled(1.0, 1.1, 1.2, 1.3)
    assert one(history, round(1.25 * SECOND), 2 * SECOND) == 1.2 * SECOND
    assert one(history, round(1.2 * SECOND), 2 * SECOND) == 1.2 * SECOND


def test_the_oldest_where_the_past_is_short():
    assert one(filled(1.2, 1.3), SECOND, 2 * SECOND) == 1.2 * SECOND


def test_the_present_is_not_the_past():
    history = filled(1.3)
    assert one(history, round(1.3 * SECOND), round(1.3 * SECOND)) is None
    assert one(history, SECOND, 2 * SECOND, 'other') is None


def test_images_older_than_the_span_are_let_go_but_one_stays_to_reach_it():
    history = filled(*(0.1 * i for i in range(31)))
    assert one(history, 2 * SECOND, 9 * SECOND) == 2.0 * SECOND
    assert len(history) == 11


def test_the_number_is_bounded_whatever_the_rate():
    assert len(filled(*(1e-4 * i for i in range(500)))) == CAPACITY


def test_one_stamp_from_the_future_keeps_no_true_image_out():
    history = filled(1.0, 1.1, 3600.0, 1.2)
    assert one(history, 9 * SECOND, 9 * SECOND) == 1.2 * SECOND
    assert one(history, round(1.19 * SECOND), 9 * SECOND) is not None


def test_images_closer_than_requested_are_thinned_out():
    history = ImageBuffer(SECOND, apart_ns=round(0.02 * SECOND))
    for step in range(100):
        history.push('agent', image(0.01 * step))
    assert len(history) == 50


def test_a_query_on_an_older_image_lets_no_newer_one_go():
    history = ImageBuffer(SECOND, apart_ns=round(0.02 * SECOND))
    shown = [image(at) for at in (1.0, 1.01, 1.03, 1.06)]  # the second is thinned out
    for each in (*shown, shown[1]):
        history.push('agent', each)
    assert len(history) == 3
    assert history.of('agent', shown[-1]).source() is shown[-1]


def test_a_image_is_known_where_it_was_thinned_out_or_forgotten_and_as_nothing_else():
    history = ImageBuffer(SECOND, apart_ns=round(0.02 * SECOND))
    first, close = image(1.0), image(1.01)
    for shown in (first, close):
        history.push('agent', shown)
    assert len(history) == 1
    assert history.of('agent', first).source() is first
    assert history.of('agent', close).source() is close
    assert history.of('agent', image(1.0)) is None
    frame = history.of('agent', close)
    history.clear()
    assert history.of('agent', first) is None
    history.push('agent', close)
    assert history.of('agent', close) is frame
    assert len(history) == 1


def test_pushing_a_image_again_does_not_let_newer_ones_go():
    history = ImageBuffer(SECOND)
    early, late = image(1.0), image(1.1)
    for shown in (early, late, early):
        history.push('agent', shown)
    assert len(history) == 2
    assert history.of('agent', late).source() is late


def test_a_frame_is_prepared_by_whoever_looks_first_and_the_other_waits():
    frame, calls, seen = Frame(image(1.0)), [], []

    def preprocess(camera, shown):
        calls.append(shown)
        time.sleep(0.05)
        return torch.zeros(2, 2, 3, dtype=torch.uint8)

    threads = [
        Thread(target=lambda: seen.append(frame.get_preprocessed(preprocess, 'agent')))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len({id(tensor) for tensor in seen}) == 1
    assert frame.image is None


def test_a_frame_that_could_not_be_prepared_is_tried_again():
    frame = Frame(image(1.0))
    with pytest.raises(ZeroDivisionError):
        frame.get_preprocessed(lambda *shown: 1 / 0, 'agent')
    assert frame.get_preprocessed(lambda *shown: torch.ones(1), 'agent') == 1
