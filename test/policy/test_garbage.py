"""A query frees what it took when it ends. What is left to Python's collector (a cycle) stays till
some later query, in the middle of its tensors: a long run then grows, although nothing leaks.
"""

import gc

import numpy as np
import pytest
import torch

from specprune_ros.policy.build import build_policy
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import names

FAST = SpeedSample(v_t=1.0, v_r=0.0, dz=0.0, source='test', age_s=0.0)


def look(step):
    rng = np.random.default_rng(step)
    images = {
        camera: CameraImage(
            rng.integers(0, 255, (224, 224, 3), dtype=np.uint8), 10**12 + 50_000_000 * step
        )
        for camera in ('agent', 'wrist')
    }
    return Observation(
        images, 'lift the red cube', np.zeros(8), FAST, np.array([0.001 * step**2, 0.0, 0.2])
    )


@pytest.mark.parametrize(
    'name',
    [
        name if name == 'specprune' else pytest.param(name, marks=pytest.mark.slow)
        for name in names()
    ],
)
def test_a_query_leaves_no_tensor_to_the_collector(name):
    policy = build_policy(preset='tiny', device='cpu')
    policy.set_params(PruningParams().replace(pruner=name))
    for step in range(3):
        policy.act(look(step))
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for step in range(3, 6):
            policy.act(look(step))
        gc.collect()
        left = [type(item).__name__ for item in gc.garbage if isinstance(item, torch.Tensor)]
        owners = {type(item).__qualname__ for item in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left, f'{len(left)} tensors in cycles, among {sorted(owners)}'
