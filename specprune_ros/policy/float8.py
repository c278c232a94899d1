"""A policy's decoder put in float8, and how far its actions move by that."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from specprune_ros.models.accel.fp8 import check_float8, convert
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.synthetic import observations
from specprune_ros.pruning.params import PruningParams

DRAWN = 3  # made-up observations, all of them dense


def to_float8(loaded: LoadedModel) -> np.ndarray:
    """Convert ``loaded`` in place and return its action deviation: the largest |difference| per
    dimension, in action units ``[action_dim]``, of the answers to the same observations before and
    after. A message about it joins ``loaded.notes``.

    Raises ``ValueError``, which names ``model.fp8``, where it cannot be, and ``PolicyError`` where
    an answer is not finite.
    """
    weight = loaded.model.decoder.norm.weight
    check_float8(weight.device, weight.dtype)
    before = _answers(loaded)
    left = convert(loaded.model.decoder)
    if weight.is_cuda:
        torch.cuda.empty_cache()  # the bfloat16 weights' memory, which graphs cannot use
    moved = np.abs(_answers(loaded) - before).max((0, 1))
    named = zip(loaded.config.action.dims, moved, strict=True)
    note = (
        f'decoder in float8 (model.fp8): on {DRAWN} made-up observations the actions differ from '
        f'bfloat16 by at most {", ".join(f"{name} {value:.2g}" for name, value in named)} '
        '(action units)'
    )
    if left:
        note += f'; {", ".join(left)} stayed in bfloat16, as float8 GEMMs take multiples of 16'
    if weight.device.type == 'cpu':
        note += '; on a CPU it is slower than bfloat16, and good to look at the numbers only'
    loaded.notes.append(note)
    return moved


def _answers(loaded: LoadedModel) -> np.ndarray:
    """Actions in action units, float64 ``[DRAWN, chunk, action_dim]``."""
    policy = Policy(loaded, PruningParams(pruner='dense'), max_normalised_action=np.inf)
    policy.wants_overlay = False
    scene = observations(policy, BENCH_INSTRUCTION, seed=0)
    return np.stack([policy.act(look).actions for look in itertools.islice(scene, DRAWN)])
