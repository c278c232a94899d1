"""Images prepared on arrival: once, the newest, in turns, and no result changes by it."""

import threading
import time

import numpy as np
import pytest
import torch

from specprune_ros.models.preprocess import Preprocessor
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.image_prefetcher import ImagePrefetcher
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.pruning.controller import SpeedSample

STEP = 50_000_000  # ns
CAMERAS = ('agent', 'wrist')
FAST = SpeedSample(v_t=1.0, v_r=0.0, dz=0.0, source='test', age_s=0.0)


def observe(step, start=10**12, side=320):
    rng = np.random.default_rng(step % 5)
    images = {
        camera: CameraImage(
            rng.integers(0, 255, (side, side, 3), dtype=np.uint8), start + step * STEP
        )
        for camera in CAMERAS
    }
    return Observation(
        images, 'lift the red cube', np.zeros(8), FAST, np.array([0.001 * step**2, 0.0, 0.2])
    )


class Watch:
    """What an arrival prepares, held up until told."""

    def __init__(self):
        self.seen, self.free, self.begun = [], threading.Event(), threading.Event()

    def __call__(self, camera, image):
        self.begun.set()
        assert self.free.wait(5.0)
        self.seen.append((camera, image.stamp_ns))
        if image.stamp_ns < 0:
            raise ValueError('an image of before\nthe beginning')


@pytest.fixture
def arrival_of():
    made = []

    def make(prepare):
        made.append(ImagePrefetcher(prepare, 'cpu'))
        made[-1].start()
        return made[-1]

    yield make
    for arrival in made:
        arrival.close()
        assert not arrival.is_alive()


def image(stamp):
    return CameraImage(np.zeros((2, 2, 3), np.uint8), stamp)


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


def test_only_the_newest_waits_and_cameras_take_turns(arrival_of):
    watch = Watch()
    arrival = arrival_of(watch)
    arrival.offer('agent', image(0))
    assert watch.begun.wait(5.0)
    # One camera that never pauses does not keep the other out.
    for stamp in range(1, 100):
        arrival.offer('agent', image(stamp))
        arrival.offer('wrist', image(stamp))
    watch.free.set()
    assert until(lambda: len(watch.seen) == 3)
    assert watch.seen == [('agent', 0), ('agent', 99), ('wrist', 99)]


def test_what_cannot_be_prepared_is_left_to_the_query_and_the_next_goes_well(arrival_of):
    watch = Watch()
    watch.free.set()
    arrival = arrival_of(watch)
    arrival.offer('agent', image(-1))
    assert until(lambda: arrival.trouble == 'agent: an image of before')
    arrival.offer('agent', image(1))
    assert until(lambda: not arrival.trouble)
    assert len(watch.seen) == 2


def test_closing_forgets_what_waits(arrival_of):
    watch = Watch()
    arrival = arrival_of(watch)
    arrival.offer('agent', image(0))
    arrival.offer('wrist', image(0))
    assert watch.begun.wait(5.0)
    threading.Timer(0.05, watch.free.set).start()
    arrival.close()
    assert watch.seen == [('agent', 0)]


def drive(policy, arrival, steps):
    """Real images at every step, asked about at every second; time goes back half-way, and a
    camera's size changes near the end.
    """
    results = []
    for step in range(steps):
        early = step < steps // 2
        side = 256 if step >= steps - 4 else 320
        seen = observe(step, 10**12 if early else 5 * 10**11, side)
        for camera, shown in seen.images.items():
            policy.history.push(camera, shown)
            if arrival is not None:
                arrival.offer(camera, shown)
        if step % 3 == 0:
            time.sleep(0.01)  # sometimes it is ready, sometimes not
        if step % 2 == 0:
            results.append(policy.act(seen))
    return results


def test_results_are_the_same_to_the_bit(arrival_of, monkeypatch):
    count, real = [], Preprocessor.image

    def watch(self, pixels, name='image'):
        count.append(id(pixels))
        kept.append(pixels)
        return real(self, pixels, name)

    kept = []
    monkeypatch.setattr(Preprocessor, 'image', watch)
    policy = build_policy(preset='tiny', device='cpu')
    plain = drive(policy, None, 24)
    policy = build_policy(preset='tiny', device='cpu')
    count.clear()
    prepared = drive(policy, arrival_of(policy.preprocess_image), 24)
    # However the threads met: no image was prepared twice.
    assert len(set(count)) == len(count)
    assert len(plain) == len(prepared) == 12
    for one, other in zip(plain, prepared, strict=True):
        assert np.array_equal(one.actions, other.actions)
        assert one.tokens == other.tokens
        assert (one.mode, one.reset, one.history_age) == (
            other.mode,
            other.reset,
            other.history_age,
        )
    assert sum(result.reset is not None for result in plain) == 3


def test_a_query_finds_ready_what_arrived_even_after_a_reset(arrival_of, monkeypatch):
    policy = build_policy(preset='tiny', device='cpu')
    arrival = arrival_of(policy.preprocess_image)
    policy.act(observe(0))
    seen = observe(1)
    for camera, shown in seen.images.items():
        policy.history.push(camera, shown)
        arrival.offer(camera, shown)
    frames = [policy.history.of(camera, shown) for camera, shown in seen.images.items()]
    assert until(lambda: all(frame.image is None for frame in frames))

    def never(*args):
        raise AssertionError('prepared in the query')

    monkeypatch.setattr(Preprocessor, 'image', never)
    policy.reset()
    assert policy.act(seen).reset == 'asked for'


@pytest.mark.gpu
def test_on_a_gpu_a_side_stream_prepares_and_the_results_are_the_same_to_the_bit(arrival_of):
    plain = drive(build_policy(preset='tiny', device='cuda'), None, 24)
    policy = build_policy(preset='tiny', device='cuda')
    arrival = ImagePrefetcher(policy.preprocess_image, 'cuda')
    arrival.start()
    try:
        prepared = drive(policy, arrival, 24)
    finally:
        arrival.close()
    assert not arrival.trouble
    torch.cuda.synchronize()
    for one, other in zip(plain, prepared, strict=True):
        assert np.array_equal(one.actions, other.actions)
        assert one.tokens == other.tokens
