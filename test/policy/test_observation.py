"""Observations a policy must not act on are refused with the input named."""

import numpy as np
import pytest

from specprune_ros.models.presets import preset
from specprune_ros.policy.observation import CameraImage, Observation, ObservationError


def look(pixels=None, instruction='lift the red cube', proprio=None, cameras=('agent', 'wrist')):
    pixels = np.zeros((224, 224, 3), np.uint8) if pixels is None else pixels
    return Observation({c: CameraImage(pixels, 7) for c in cameras}, instruction, proprio)


def test_a_sound_observation_passes():
    look(proprio=np.zeros(8)).checked(preset('tiny'))


@pytest.mark.parametrize(
    ('observation', 'message'),
    [
        (look(np.zeros((0, 0, 3), np.uint8)), "camera 'agent'.*between 16 and 4096"),
        (look(np.zeros((4320, 7680, 3), np.uint8)), "camera 'agent': 7680 x 4320"),
        (look(np.zeros((224, 224), np.uint8)), 'expected uint8'),
        (look(np.zeros((224, 224, 3))), 'expected uint8'),
        (look(cameras=('agent',)), r'1 camera\(s\) given \(agent\), the model reads 2'),
        (look(instruction='  '), 'the instruction is empty'),
        (look(instruction='x' * 10_000), '10000 characters; at most 1000'),
        (look(), 'proprioception is missing'),
        (look(proprio=np.zeros(7)), r'shape \[7\], the model reads \[8\]'),
        (look(proprio=np.full(8, np.nan)), 'proprioception is not finite'),
    ],
)
def test_what_is_wrong_is_named(observation, message):
    with pytest.raises(ObservationError, match=message):
        observation.checked(preset('tiny'))
