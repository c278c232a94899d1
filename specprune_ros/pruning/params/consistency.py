"""Parameters that contradict each other on every model are refused, with what would do.

``p`` is a ``PruningParams`` throughout.
"""

from __future__ import annotations

import math
from typing import Any

from specprune_ros.pruning.params.schema import (
    METHODS,
    REFERENCE_DEPTH,
    REFERENCE_GRID,
    ParamError,
    ParamSpec,
)


def check_together(p: Any, specs: tuple[ParamSpec, ...]) -> None:
    """Raise :class:`ParamError` where parameters contradict each other on every model."""
    _check_budgets(p)
    _check_layers(p, specs)
    for method in METHODS.values():
        for declared in method.checks:
            declared.check_together(p)
    if p.fine_factor < 1 and not p.fine_may_shrink:
        raise ParamError(
            'fine_factor',
            f'{p.fine_factor:g} would keep fewer tokens in fine mode than in coarse mode; '
            'take at least 1, or set fine_may_shrink',
        )
    if p.scheduler_v_min > p.scheduler_v_max:
        raise ParamError(
            'scheduler_v_min',
            f'{p.scheduler_v_min:g} is above scheduler_v_max = {p.scheduler_v_max:g}',
        )
    if p.history_unit == 0:
        raise ParamError('history_unit', 'must not be 0')
    if p.history_min > p.history_max:
        raise ParamError('history_min', f'{p.history_min} is above history_max = {p.history_max}')
    for enter, leave in (
        ('v_t_threshold', 'v_t_exit'),
        ('v_r_threshold', 'v_r_exit'),
        ('dz_threshold', 'dz_exit'),
    ):
        low, high = getattr(p, enter), getattr(p, leave)
        # A share and an SI value are compared where the policy is known.
        if low * high >= 0 and abs(high) < abs(low):
            raise ParamError(
                leave,
                f'{high:g} is below {enter} = {low:g}: fine mode would end where it begins',
            )
    if p.dynamic_rule == 'complement' and not p.exact:
        raise ParamError(
            'dynamic_rule',
            'complement has no bound on its size, so it needs exact = true',
        )


def _check_budgets(p: Any) -> None:
    for name in ('camera_factor', 'camera_factor_dynamic', 'tau'):
        if not getattr(p, name):
            raise ParamError(name, 'must name at least one camera')
    for name, factors in (
        ('k_global', p.camera_factor),
        ('k_local', p.camera_factor),
        ('k_dynamic', p.camera_factor_dynamic),
    ):
        budget = getattr(p, name) * p.alpha * max(1.0, p.fine_factor) * max(factors)
        if math.ceil(budget - 1e-6) > REFERENCE_GRID:
            raise ParamError(
                name,
                f'{getattr(p, name)} x alpha {p.alpha:g} x fine_factor {p.fine_factor:g} x camera '
                f'factor {max(factors):g} = {budget:.0f} tokens, but a camera has '
                f'{REFERENCE_GRID} (budgets are written for a 16 x 16 grid)',
            )


def _check_layers(p: Any, specs: tuple[ParamSpec, ...]) -> None:
    for spec in specs:
        if spec.unit == 'layer of 32' and spec.type == 'int[]' or spec.name == 'cameras_kept':
            values = getattr(p, spec.name)
            if any(b <= a for a, b in zip(values, values[1:], strict=False)):
                raise ParamError(spec.name, f'must ascend, got {list(values)}')
    if not p.layers_local:
        raise ParamError('layers_local', 'must name at least one layer: the static prune follows')
    static = p.layers_local[-1]
    if static >= REFERENCE_DEPTH:
        raise ParamError('layers_local', 'nothing is left to save after the last layer')
    if p.prune_layers and p.prune_layers[0] <= static:
        raise ParamError(
            'prune_layers',
            f'{p.prune_layers[0]} is not after the static prune at layer {static} (layers_local)',
        )
    if p.prune_layers and not p.prune_unscored:
        first = p.update_layers[0] if p.update_layers else None
        if first is None or p.prune_layers[0] < first:
            raise ParamError(
                'prune_layers',
                f'{p.prune_layers[0]} prunes before the first score (update_layers = '
                f'{list(p.update_layers)}): all tokens would tie there; add an update at or '
                'before it, or set prune_unscored',
            )
    if p.prefilter and len(p.layers_local) < 2:
        raise ParamError('prefilter', 'needs two layers in layers_local')
