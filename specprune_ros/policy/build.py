"""A policy from a checkpoint's folder or a preset's name, on the device there is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import numpy as np
import torch

from specprune_ros.models.accel import fused
from specprune_ros.models.accel.fp8 import check_float8, convert
from specprune_ros.models.accel.packed import pack
from specprune_ros.models.load import (
    LoadedModel,
    is_released,
    load_policy_model,
    random_policy_model,
)
from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.engine.capture import graph_capturer_on
from specprune_ros.policy.engine.cuda_graph import CudaGraphEngine
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.synthetic_observations import observations
from specprune_ros.pruning.params import PruningParams

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
DRAWN = 3  # made-up observations that float8 is judged by, all of them dense
BFLOAT16_FROM = (8, 0)  # compute capability: Ampere


def resolve(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Device and number format for ``auto`` and explicit names. Raises ``ValueError``.

    ``auto`` is a GPU if there is one, with bfloat16 (float16 on one older than Ampere, which has
    no bfloat16 units); a CPU runs float32 (but see :func:`build_policy`).
    """
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"model.device '{device}' is no device: {error}") from error
    if place.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f"model.device '{device}': PyTorch finds no GPU here; use cpu or auto")
    if place.type == 'cuda' and place.index is None:
        # PyTorch's current device, by its number: `set_device` takes no other.
        place = torch.device('cuda', torch.cuda.current_device())
    if place.type == 'cuda' and place.index >= torch.cuda.device_count():
        raise ValueError(
            f"model.device '{device}': there are {torch.cuda.device_count()} GPUs, from cuda:0"
        )
    old = place.type == 'cuda' and torch.cuda.get_device_capability(place) < BFLOAT16_FROM
    if dtype == 'auto':
        half = torch.float16 if old else torch.bfloat16
        return place, half if place.type == 'cuda' else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype '{dtype}' is none of auto, {', '.join(DTYPES)}")
    if dtype == 'bfloat16' and old:
        raise ValueError(
            f"model.dtype 'bfloat16': {torch.cuda.get_device_name(place)} has no bfloat16 units; "
            'use float16 or auto'
        )
    return place, DTYPES[dtype]


def has_bfloat16() -> bool:
    """Whether this CPU has units for bfloat16: AVX-512 BF16, AMX, or those of Arm v8.6."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))


def usable_cores() -> int:
    """CPU cores that this process may run on: a container or ``taskset`` may leave it fewer than
    the machine has.
    """
    if hasattr(os, 'sched_getaffinity'):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build_policy(
    path: str = '',
    preset: str = 'tiny',
    seed: int = 0,
    device: str = 'auto',
    dtype: str = 'auto',
    unnorm_key: str = '',
    threads: int = 0,
    platform: str = '',
    fast_images: bool = False,
    params: PruningParams | None = None,
    progress: bool = False,
    graphs: bool = False,
    calibrate: Callable[[LoadedModel], object] | None = None,
    fp8: bool = False,
) -> Policy:
    """Load the checkpoint in ``path``, or build ``preset`` with random weights from ``seed``.

    ``threads`` bounds the CPU threads (0: all cores but one). ``platform`` and ``fast_images``
    are the loader's. With ``graphs`` a GPU answers by CUDA graphs. ``calibrate`` is called
    last with the loaded model, before an engine is made for it (``bench.calibration.calibrator``
    finds the tokens that cost nothing on this device). What a pruner keeps then depends on the
    device, so that comparisons across devices leave it out. With ``fp8`` the decoder's linear
    layers run in float8 (:func:`to_float8`).

    On a CPU with units for bfloat16, ``dtype`` ``auto`` takes it for a checkpoint of the models'
    authors, who run theirs in it; a policy of our own was judged in float32 and keeps that.
    Raises ``ValueError`` or the loader's errors, which name the file and the cure.
    """
    place, kind = resolve(device, dtype)
    on_cpu = place.type == 'cpu' and dtype == 'auto'
    if on_cpu and (fp8 or (path and is_released(path) and has_bfloat16())):
        kind = torch.bfloat16
    if fp8:
        check_float8(place, kind)  # before anything is loaded
    # Two threads that wait for each other on a core that cameras and DDS share are slower than
    # one.
    torch.set_num_threads(threads or max(1, usable_cores() - 1))
    if place.type == 'cuda':
        _settle_on(place)
    loaded: LoadedModel
    if path:
        loaded = load_policy_model(
            path,
            place,
            kind,
            unnorm_key=unnorm_key or None,
            progress=progress,
            overrides={'platform': platform} if platform else None,
            fast_images=fast_images,
        )
    else:
        loaded = random_policy_model(preset, seed, place, kind)
    if place.type == 'cuda':
        fused.use(loaded.model, fused.COMPILED)
    if fp8:
        to_float8(loaded)
    if place.type == 'cpu':
        pack(loaded.model)
    # Last: after everything that changes how fast the decoder runs.
    if calibrate is not None:
        calibrate(loaded)
    return Policy(loaded, params, engine=engine_for(loaded, graphs))


def _settle_on(place: torch.device) -> None:
    """What a thread that uses a GPU sets once."""
    # Events and streams belong to the current device, which is the first one unless said.
    torch.cuda.set_device(place)
    # cuDNN's attention, PyTorch's first choice on Hopper, makes a plan for every number of rows
    # and in every thread anew: half a second each time (FunASR issue 3704, on a B200).
    torch.backends.cuda.enable_cudnn_sdp(False)


def engine_for(loaded: LoadedModel, graphs: bool) -> EagerEngine | CudaGraphEngine:
    """CUDA graphs on a GPU, unless they are not wanted or cannot be had; else eager."""
    engine = EagerEngine(loaded)
    try:
        capturer = graph_capturer_on(engine.device) if graphs else None
    except RuntimeError as error:  # a driver without streams of priority or graphs
        engine.trouble = f'no CUDA graphs: {error}'
        return engine
    return engine if capturer is None else CudaGraphEngine(loaded, capturer)


def to_float8(loaded: LoadedModel) -> np.ndarray:
    """Convert ``loaded`` in place and return its action deviation: the largest |difference| per
    dimension, in action units ``[action_dim]``, for the same observations before and after. A
    message about it joins ``loaded.notes``.

    Raises ``ValueError``, which names ``model.fp8``, where it cannot be, and ``PolicyError`` where
    an action is not finite.
    """
    weight = loaded.model.decoder.embed_tokens.weight  # pi0's norms are float32 in any format
    check_float8(weight.device, weight.dtype)
    before = _dense_actions(loaded)
    left = convert(loaded.model.decoder)
    if weight.is_cuda:
        torch.cuda.empty_cache()  # the bfloat16 weights' memory, which graphs cannot use
    moved = np.abs(_dense_actions(loaded) - before).max((0, 1))
    named = zip(loaded.config.action.dims, moved, strict=True)
    note = (
        f'decoder in float8 (model.fp8): on {DRAWN} made-up observations the actions differ from '
        f'bfloat16 by at most {", ".join(f"{name} {value:.2g}" for name, value in named)} '
        '(action units)'
    )
    if left:
        note += f'; {", ".join(left)} stayed in bfloat16, as float8 GEMMs take multiples of 16'
    if weight.device.type == 'cpu':
        note += '; on a CPU it is slower than bfloat16, and good to see the numbers only'
    loaded.notes.append(note)
    return moved


def _dense_actions(loaded: LoadedModel) -> np.ndarray:
    """Actions in action units, float64 ``[DRAWN, chunk, action_dim]``."""
    policy = Policy(loaded, PruningParams(pruner='dense'), max_normalised_action=np.inf)
    policy.wants_overlay = False
    scene = observations(policy, BENCH_INSTRUCTION, seed=0)
    drawn = itertools.islice(scene, DRAWN)
    return np.stack([policy.act(observation).actions for observation in drawn])
