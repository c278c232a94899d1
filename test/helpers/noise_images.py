"""Observations of noise for tests of engines, alike for the same step."""

import numpy as np

from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.pruning.controller import SpeedSample

STEP = 50_000_000  # ns
FAST = SpeedSample(v_t=1.0, v_r=0.0, dz=0.0, source='test', age_s=0.0)
SLOW = SpeedSample(v_t=0.0, v_r=0.0, dz=0.0, source='test', age_s=0.0)


def look(step, instruction='lift the red cube', speed=FAST):
    """The observation of a step: the end effector moves ever faster."""
    rng = np.random.default_rng(step)
    images = {
        camera: CameraImage(
            rng.integers(0, 255, (224, 224, 3), dtype=np.uint8), 10**12 + step * STEP
        )
        for camera in ('agent', 'wrist')
    }
    position = np.array([0.5 + 0.001 * step**2, 0.0, 0.2])
    return Observation(images, instruction, rng.normal(size=8), speed, position)
