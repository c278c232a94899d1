"""An image is prepared once, however often it is compared with, and kept as it was seen."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from specprune_ros.models.preprocess import Preprocessor
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.pruning.controller import SpeedSample

STEP = 50_000_000  # ns
CAMERAS = ('agent', 'wrist')
FAST = SpeedSample(v_t=1.0, v_r=0.0, dz=0.0, source='test', age_s=0.0)


@pytest.fixture
def policy():
    return build_policy(preset='tiny', device='cpu')


@pytest.fixture
def prepared(monkeypatch):
    """The arrays that were prepared, in order (held, so that no two share an identity)."""
    arrays = []
    real = Preprocessor.image

    def watch(self, image, name='image'):
        arrays.append(image)
        return real(self, image, name)

    monkeypatch.setattr(Preprocessor, 'image', watch)
    return arrays


def look(step, width=224, height=224):
    """What two cameras show at a control step."""
    rng = np.random.default_rng(step % 5)
    images = {}
    for camera in CAMERAS:
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        images[camera] = CameraImage(pixels, 10**12 + step * STEP)
    return Observation(
        images, 'lift the red cube', np.zeros(8), FAST, np.array([0.001 * step**2, 0.0, 0.2])
    )


def drive(policy, steps, every, width=224, height=224):
    """Every image reaches the history; each ``every``-th set is queried with."""
    results = []
    for step in range(steps):
        seen = look(step, width, height)
        for camera, image in seen.images.items():
            policy.history.push(camera, image)
        if step % every == 0:
            results.append(policy.act(seen))
    return results


@pytest.mark.parametrize('every', [1, 2, 3])
def test_no_image_is_prepared_twice(policy, prepared, every):
    results = drive(policy, 18, every)
    assert sum(result.history_age is not None for result in results) == len(results) - 1
    assert len({id(array) for array in prepared}) == len(prepared)
    # One set for every query; queried at every step, the past ones are all known already.
    assert len(prepared) >= 2 * len(results)
    if every == 1:
        assert len(prepared) == 2 * len(results)


def test_the_history_keeps_what_the_policy_saw_and_not_what_came(policy):
    drive(policy, 8, 1, width=640, height=480)
    newest = 10**12 + 7 * STEP
    for camera in CAMERAS:
        frame = policy.history.at(camera, newest, newest + 1)
        assert frame.stamp_ns == newest
        assert frame.image is None
        seen = frame.get_preprocessed(lambda *image: pytest.fail('prepared twice'), camera)
        assert seen.shape == (224, 224, 3)


def test_what_was_kept_gives_the_actions_that_preparing_anew_gives(policy, prepared):
    kept = drive(policy, 10, 2, width=320, height=240)
    count = len(prepared)
    prepared.clear()
    policy.reset()
    policy.act(look(0, 320, 240))
    policy.reset()
    anew = []
    for step in range(10):
        seen = look(step, 320, 240)
        for camera, image in seen.images.items():
            # A copy: the image queried with is not the one the history holds.
            policy.history.push(camera, CameraImage(image.pixels.copy(), image.stamp_ns))
        if step % 2 == 0:
            anew.append(policy.act(seen))
    assert len(prepared) - 2 >= count
    for one, other in zip(kept, anew, strict=True):
        assert np.array_equal(one.actions, other.actions)
        assert one.tokens == other.tokens
        assert one.history_age == other.history_age


def test_a_image_thinned_out_of_the_history_is_prepared_for_its_query_alone(policy, prepared):
    policy.act(look(0))
    close = look(0)
    for camera, image in close.images.items():
        close.images[camera] = CameraImage(image.pixels, image.stamp_ns + 1)
    policy.act(close)
    assert len(prepared) == 4
    assert len(policy.history) == 2


def test_pixels_as_they_came_are_let_go_after_the_query(policy):
    """A server remembers hundreds of robots, and an image may have 4096 x 4096 pixels."""
    seen = look(0)
    seen = replace(
        seen, past={c: replace(i, stamp_ns=i.stamp_ns - STEP) for c, i in seen.images.items()}
    )
    pixels = [weakref.ref(image.pixels) for image in seen.images.values()]
    policy.act(seen)
    del seen
    gc.collect()
    assert [held() for held in pixels] == [None, None]
