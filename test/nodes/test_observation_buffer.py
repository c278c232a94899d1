"""What adds up to an observation, and every reason why it does not."""

import threading
import time

import numpy as np
import pytest

from specprune_ros.nodes.policy_node.observation_buffer import Limits, NotReady, ObservationBuffer
from specprune_ros.policy.observation import CameraImage, ObservationError
from specprune_ros.pruning.controller import SpeedSample

SECOND = 10**9
PIXELS = np.zeros((32, 32, 3), np.uint8)


def ns(seconds):
    return round((1000 + seconds) * SECOND)


def observation_buffer(**limits):
    box = ObservationBuffer(('agent', 'wrist'), needs_state=True, limits=Limits(**limits))
    box.put_instruction('lift the red cube')
    return box


def show(box, seconds, cameras=('agent', 'wrist')):
    for camera in cameras:
        box.put_image(camera, CameraImage(PIXELS, ns(seconds)))
    box.put_state(np.zeros(8), ns(seconds))


def test_images_state_and_a_instruction_make_an_observation():
    box = observation_buffer()
    show(box, 0.0)
    box.put_speed(SpeedSample(0.1, 0.2, -0.1, 'twist'), ns(-0.1))
    observation = box.take(ns(0.01))
    assert list(observation.images) == ['agent', 'wrist']
    assert observation.stamp_ns == ns(0)
    assert observation.speed.age_s == pytest.approx(0.11)


def test_the_speed_of_a_chunk_has_no_age_while_the_chunk_is_played():
    box = observation_buffer(image_age=9.0, state_age=9.0)
    show(box, 0.0)
    speed = SpeedSample(0.1, 0.2, -0.1, 'action')
    ages = []
    for lasts in (0.0, 1.1):
        box.put_speed(speed, ns(0.0), lasts)
        ages += [box.take(ns(now), use=False).speed.age_s for now in (1.05, 1.2)]
    assert ages == pytest.approx([1.05, 1.2, 0.0, 1.2])


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (lambda b: show(b, 0.0, ['agent']), "camera 'wrist': no image yet"),
        (lambda b: show(b, -1.0), "camera 'agent': the newest image is 1.00 s old"),
        (lambda b: show(b, 3600.0), 'stamped 3600.00 s ahead'),
        (
            lambda b: (show(b, 0.0, ['agent']), show(b, -0.2, ['wrist'])),
            'the newest lie 0.20 s apart',
        ),
        (lambda b: (show(b, 0.0), b.lose_state('NaN in joint3')), 'proprioception: NaN in joint3'),
        (lambda b: (show(b, 0.0), b.fault('wrist', 'step is 3')), "camera 'wrist': step is 3"),
        (
            lambda b: (show(b, 0.0), b.put_state(np.zeros(8), ns(-2.0))),
            'proprioception: 2.00 s old',
        ),
    ],
)
def test_every_reason_is_named(spoil, reason):
    box = observation_buffer()
    spoil(box)
    with pytest.raises(NotReady, match=reason):
        box.take(ns(0.0))


def test_a_camera_that_stops_is_named_when_its_image_grows_old():
    box = observation_buffer()
    show(box, 0.0)
    box.take(ns(0.0))
    for step in range(1, 20):
        show(box, 0.033 * step, ['agent'])
    assert "camera 'wrist'" in box.unready(ns(0.627))


def test_without_a_instruction_there_is_nothing_to_obey():
    box = ObservationBuffer(('agent',), needs_state=False, limits=Limits())
    box.put_image('agent', CameraImage(PIXELS, ns(0)))
    with pytest.raises(NotReady, match='instruction: none was given yet'):
        box.take(ns(0))


@pytest.mark.parametrize('text', ['', '   ', 'x' * 10_000])
def test_a_bad_instruction_stops_the_old_one_too(text):
    box = observation_buffer()
    show(box, 0.0)
    with pytest.raises(ObservationError):
        box.put_instruction(text)
    with pytest.raises(NotReady, match='instruction'):
        box.take(ns(0.0))


def test_a_late_image_is_dropped_and_counted():
    box = observation_buffer()
    show(box, 0.0)
    assert not box.put_image('agent', CameraImage(PIXELS, ns(-0.1)))
    assert box.late == 1
    assert box.take(ns(0.0)).stamp_ns == ns(0)


def test_a_clock_that_goes_back_forgets_what_the_other_inputs_showed():
    box = observation_buffer()
    show(box, 100.0)
    box.put_image('agent', CameraImage(PIXELS, ns(0)))
    with pytest.raises(NotReady, match="camera 'wrist': no image yet"):
        box.take(ns(0.0))
    show(box, 0.03)
    assert box.take(ns(0.03)).stamp_ns == ns(0.03)


def test_one_image_from_long_ago_stops_nothing_for_long():
    box = observation_buffer()
    show(box, 0.0)
    box.put_image('agent', CameraImage(PIXELS, ns(-3600)))
    with pytest.raises(NotReady):
        box.take(ns(0.0))
    show(box, 0.033)
    assert box.take(ns(0.033)).stamp_ns == ns(0.033)


def test_waiting_ends_when_all_cameras_have_shown_the_same_moment():
    box = observation_buffer()
    show(box, 0.0)
    box.take(ns(0.0))
    assert not box.wait(0.01)
    threading.Timer(0.05, lambda: show(box, 0.033, ['agent'])).start()
    threading.Timer(0.10, lambda: show(box, 0.033, ['wrist'])).start()
    begin = time.monotonic()
    assert box.wait(60.0)
    assert 0.09 < time.monotonic() - begin < 30.0


def test_a_newer_set_is_waited_for_but_not_for_ever():
    box = observation_buffer()
    show(box, 0.0)
    begin = time.monotonic()
    assert box.wait(60.0, newer_for=0.05)
    assert 0.04 < time.monotonic() - begin < 30.0
    threading.Timer(0.02, lambda: show(box, 0.033)).start()
    assert box.wait(60.0, newer_for=30.0)
    assert box.take(ns(0.033)).stamp_ns == ns(0.033)


def test_closing_ends_every_wait():
    box = observation_buffer()
    threading.Timer(0.05, box.close).start()
    assert not box.wait(5.0)


@pytest.mark.parametrize(('one', 'other'), [(30 / 4, 30 / 3), (30, 10), (15, 14.2)])
def test_cameras_of_different_rates_are_paired_by_nearest_stamps(one, other):
    """Newest with newest flapped between chunks and an error at 7.5 and 10 Hz."""
    box = observation_buffer()
    shown = sorted(
        [(i / one, 'agent') for i in range(1, int(6 * one))]
        + [(i / other, 'wrist') for i in range(1, int(6 * other))]
    )
    observations = []
    for seconds, camera in shown:
        show(box, seconds, [camera])
        if seconds > 0.5:
            assert box.unready(ns(seconds)) is None
            if box.wait(0.0):
                observations.append(box.take(ns(seconds)))
    for observation in observations:
        stamps = [image.stamp_ns for image in observation.images.values()]
        assert max(stamps) - min(stamps) <= 0.05 * SECOND
    assert len(observations) > 5 * min(one, other) * 0.5


@pytest.mark.parametrize('rate', [30, 90])
def test_a_camera_that_pauses_stops_nothing_before_its_image_is_too_old(rate):
    """Eight newer images of the other camera made a set vanish that was 0.1 s old."""
    box = observation_buffer()
    show(box, 0.0)
    for step in range(1, int(0.48 * rate)):
        show(box, step / rate, ['agent'])
        assert box.unready(ns(step / rate)) is None
    observation = box.take(ns(0.48))
    assert observation.images['wrist'].stamp_ns == ns(0.0)
    assert not box.wait(0.0)
    show(box, 0.48, ['wrist'])
    assert box.wait(0.0)
    stamps = [image.stamp_ns for image in box.take(ns(0.48)).images.values()]
    assert max(stamps) - min(stamps) <= 0.05 * SECOND


@pytest.mark.parametrize('rate', [30, 90])
def test_cameras_whose_images_take_differently_long_are_paired_by_their_stamps(rate):
    box, late = observation_buffer(), 0.4
    shown = sorted(
        [(i / rate, 'agent', i) for i in range(rate)]
        + [(i / rate + late, 'wrist', i) for i in range(rate)]
    )
    for now, camera, i in shown:
        show(box, i / rate, [camera])
        if late < now < 1.0:
            assert box.unready(ns(now)) is None
            assert ns(now) - box.take(ns(now)).stamp_ns <= (late + 1.01 / rate) * SECOND


def test_images_that_no_newer_set_can_use_are_let_go():
    box = observation_buffer()
    for step in range(100):
        show(box, step / 90)
    assert max(map(len, box._recent.values())) <= 6  # within the skew
    for step in range(100, 500):
        show(box, step / 90, ['agent'])
    assert len(box._recent['agent']) <= 64


def test_a_smaller_skew_holds_for_the_set_that_is_there():
    box = observation_buffer()
    show(box, 0.0, ['agent'])
    show(box, 0.04, ['wrist'])
    assert box.unready(ns(0.04)) is None
    box.limits = Limits(sync=0.01)
    show(box, 0.08, ['agent'])
    assert 'no images within 0.01 s' in box.unready(ns(0.08))
