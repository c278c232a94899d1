"""Token budgets and layer numbers of the paper, scaled to a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.params import REFERENCE_DEPTH, REFERENCE_GRID, ParamError, PruningParams


def ceil_count(value: float) -> int:
    """Smallest whole number of tokens not below ``value``, blind to float noise."""
    return math.ceil(value - 1e-6)


def floor_count(value: float) -> int:
    """Largest whole number of tokens not above ``value``, blind to float noise."""
    return math.floor(value + 1e-6)


def per_camera(values: Sequence[float], cameras: int) -> tuple[float, ...]:
    """One value per camera; the last one repeats."""
    return tuple(values[min(camera, len(values) - 1)] for camera in range(cameras))


def scale_layer(layer: int, depth: int) -> int:
    """Layer number for ``depth`` layers of a number written for 32, rounded half up, from 1."""
    return max(1, math.floor(layer * depth / REFERENCE_DEPTH + 0.5))


def scale_layers(layers: Sequence[int], depth: int, after: int = 0) -> tuple[int, ...]:
    """Layers written for 32, scaled to ``depth``, distinct, ascending and above ``after``.

    Numbers that fall together on a shallow model move up to the next free layer (the paper's first
    two layers stay two layers); those pushed beyond the model are left out.
    """
    scaled: list[int] = []
    for layer in layers:
        scaled.append(max(scale_layer(layer, depth), (scaled[-1] if scaled else after) + 1))
    return tuple(layer for layer in scaled if layer <= depth)


@dataclass(frozen=True)
class Budgets:
    """Tokens per camera that each set may request, and the size of the filled union."""

    local: tuple[int, ...]
    dynamic: tuple[int, ...]
    globals: tuple[int, ...]
    worst: int
    filled: int


def budgets(layout: TokenLayout, params: PruningParams, mode: Mode) -> Budgets:
    """K_eff = ceil(alpha K mode camera grid/256) per camera, and the bucket of the union.

    The size of V_global u V_dynamic u V_local depends on the data, but never exceeds the sum of
    what its members may request. That sum, rounded up to ``params.bucket``, is known before the
    pass: the union is filled up to it, so no shape waits for the data and no token of the union is
    lost. P2 scales all budgets by alpha; P1's 24 coarse, 40 fine give the mode factor.
    """
    scale = params.alpha * layout.patches / REFERENCE_GRID
    if mode is Mode.FINE:
        scale *= params.fine_factor
    wide = per_camera(params.camera_factor, layout.cameras)
    moving = per_camera(params.camera_factor_dynamic, layout.cameras)

    def count(k: int, factors: tuple[float, ...], name: str) -> tuple[int, ...]:
        counts = tuple(ceil_count(k * scale * factor) for factor in factors)
        if max(counts) > layout.patches:
            raise ParamError(
                name, f'requests {max(counts)} tokens, but a camera has {layout.patches}'
            )
        return counts

    local = count(params.k_local, wide, 'k_local')
    dynamic = count(params.k_dynamic, moving, 'k_dynamic')
    previous = count(params.k_global, wide, 'k_global')
    worst = 0
    for camera in range(layout.cameras):
        requested = (
            len(params.layers_local) * local[camera]
            + len(params.layers_global) * previous[camera]
            + dynamic[camera]
        )
        if camera in params.cameras_kept:
            requested = layout.patches
        worst += min(requested, layout.patches)
    worst = max(worst, least(layout, params))
    filled = min(-(-worst // params.bucket) * params.bucket, layout.vision_tokens)
    return Budgets(local, dynamic, previous, worst, filled)


def least(layout: TokenLayout, params: PruningParams) -> int:
    """Vision tokens that stay whatever the scores; ``keep_min`` is written for 512."""
    scaled = ceil_count(params.keep_min * layout.vision_tokens / (2 * REFERENCE_GRID))
    return min(max(1, scaled), layout.vision_tokens)


def free_count(count: int, layout: TokenLayout, params: PruningParams) -> int:
    """The most vision tokens that cost no more than ``count`` where the query runs; ``count``
    where that was not measured, or is not wanted.
    """
    if layout.latency_curve is None or not params.free_tokens or params.exact:
        return count
    others = layout.length - layout.vision_tokens
    return min(layout.latency_curve.free(count + others) - others, layout.vision_tokens)


def after_drop(current: int, layout: TokenLayout, params: PruningParams) -> int:
    """Vision tokens left after one layer-level prune of ``current``; whole cameras are spared."""
    locked = len(params.cameras_kept) * layout.patches
    others = layout.length - layout.vision_tokens
    if params.drop_of == 'sequence':
        left = floor_count((1 - params.drop_ratio) * (current + others)) - others
    else:
        left = current - floor_count(params.drop_ratio * (current - locked))
    return min(current, max(left, locked, least(layout, params)))
