"""Images preprocessed on arrival: once, the newest, in turns, and no result changes by it."""

import threading
import time

import numpy as np
import pytest
import torch

from specprune_ros.models.preprocess import Preprocessor
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.image_buffer import ImageBuffer
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
    """What is preprocessed on arrival, held up until released."""

    def __init__(self):
        self.seen, self.free, self.begun = [], threading.Event(), threading.Event()

    def __call__(self, camera, image):
        self.begun.set()
        assert self.free.wait(5.0)
        self.seen.append((camera, image.stamp_ns))
        if image.stamp_ns < 0:
            raise ValueError('an image of before\nthe beginning')
        return torch.zeros(2, 2, 3, dtype=torch.uint8)


@pytest.fixture
def buffer_with():
    made = []

    def make(preprocess):
        made.append(ImageBuffer(10**9, preprocess=preprocess))
        made[-1].prefetch('cpu')
        return made[-1]

    yield make
    for buffer in made:
        buffer.stop_prefetch()
    assert not any(thread.name == 'prefetch' for thread in threading.enumerate())


def image(stamp):
    return CameraImage(np.zeros((2, 2, 3), np.uint8), stamp)


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


def test_only_the_newest_waits_and_cameras_take_turns(buffer_with):
    watch = Watch()
    buffer = buffer_with(watch)
    shown = [image(0)]
    buffer.push('agent', shown[0])
    assert watch.begun.wait(5.0)
    # One camera that never pauses does not keep the other out.
    for stamp in range(1, 100):
        for camera in CAMERAS:
            shown.append(image(stamp))
            buffer.push(camera, shown[-1])
    watch.free.set()
    assert until(lambda: len(watch.seen) == 3)
    assert watch.seen == [('agent', 0), ('agent', 99), ('wrist', 99)]


def test_what_cannot_be_prepared_is_left_to_the_query_and_the_next_goes_well(buffer_with):
    watch = Watch()
    watch.free.set()
    buffer = buffer_with(watch)
    early, late = image(-1), image(1)
    buffer.push('agent', early)
    assert until(lambda: buffer.prefetch_trouble == 'agent: an image of before')
    buffer.push('agent', late)
    assert until(lambda: not buffer.prefetch_trouble)
    assert len(watch.seen) == 2
    with pytest.raises(ValueError, match='an image of before'):
        buffer.preprocessed('agent', early)
    buffer.preprocessed('agent', late)
    assert len(watch.seen) == 3


def test_stopping_forgets_what_waits(buffer_with):
    watch = Watch()
    buffer = buffer_with(watch)
    first, second = image(0), image(0)
    buffer.push('agent', first)
    buffer.push('wrist', second)
    assert watch.begun.wait(5.0)
    threading.Timer(0.05, watch.free.set).start()
    buffer.stop_prefetch()
    assert watch.seen == [('agent', 0)]
    assert buffer.prefetch_trouble is None


def drive(policy, steps):
    """Real images at every step, queried at every second; time goes back half-way, and a
    camera's size changes near the end.
    """
    results = []
    for step in range(steps):
        early = step < steps // 2
        side = 256 if step >= steps - 4 else 320
        seen = observe(step, 10**12 if early else 5 * 10**11, side)
        for camera, shown in seen.images.items():
            policy.history.push(camera, shown)
        if step % 3 == 0:
            time.sleep(0.01)  # sometimes it is ready, sometimes not
        if step % 2 == 0:
            results.append(policy.act(seen))
    return results


def with_prefetch(device):
    policy = build_policy(preset='tiny', device=device)
    policy.history.prefetch(device)
    return policy


def same(plain, prefetched):
    for one, other in zip(plain, prefetched, strict=True):
        assert np.array_equal(one.actions, other.actions)
        assert one.tokens == other.tokens
        assert (one.mode, one.reset, one.history_age) == (
            other.mode,
            other.reset,
            other.history_age,
        )


def test_results_are_the_same_to_the_bit(monkeypatch):
    count, real = [], Preprocessor.image

    def watch(self, pixels, name='image'):
        count.append(id(pixels))
        kept.append(pixels)
        return real(self, pixels, name)

    kept = []
    monkeypatch.setattr(Preprocessor, 'image', watch)
    plain = drive(build_policy(preset='tiny', device='cpu'), 24)
    policy = with_prefetch('cpu')
    count.clear()
    prefetched = drive(policy, 24)
    policy.close()
    # However the threads met: no image was preprocessed twice.
    assert len(set(count)) == len(count)
    assert len(plain) == 12
    same(plain, prefetched)
    assert sum(result.reset is not None for result in plain) == 3


def test_a_query_finds_ready_what_arrived_even_after_a_reset(monkeypatch):
    policy = with_prefetch('cpu')
    policy.act(observe(0))
    seen = observe(1)
    for camera, shown in seen.images.items():
        policy.history.push(camera, shown)
    frames = [policy.history.of(camera, shown) for camera, shown in seen.images.items()]
    assert until(lambda: all(frame.image is None for frame in frames))

    def never(*args):
        raise AssertionError('preprocessed in the query')

    monkeypatch.setattr(Preprocessor, 'image', never)
    policy.reset()
    assert policy.act(seen).reset == 'requested'
    policy.close()


@pytest.mark.gpu
def test_on_a_gpu_a_side_stream_preprocesses_and_the_results_are_the_same_to_the_bit():
    plain = drive(build_policy(preset='tiny', device='cuda'), 24)
    policy = with_prefetch('cuda')
    try:
        prefetched = drive(policy, 24)
        assert not policy.history.prefetch_trouble
    finally:
        policy.close()
    torch.cuda.synchronize()
    same(plain, prefetched)
