"""How fast a policy moves, from the statistics of its training data, and how far a chunk goes."""

from __future__ import annotations

import numpy as np

from specprune_ros.models.config import ActionConfig
from specprune_ros.models.load import LoadedModel
from specprune_ros.pruning.controller import MotionRange


def motion_range(loaded: LoadedModel) -> MotionRange:
    """The fastest motion along any axis, in SI, that ``loaded``'s statistics allow.

    From the larger of ``|q01|`` and ``|q99|`` (or of the extremes, or 2.5 standard deviations from
    the mean) of the translation and the rotation columns, times their SI scale and the control
    rate. LIBERO's full command where that is not known: without statistics, where actions are no
    steps, or where the statistics are of what is left of them without the state (pi0's
    ``flow.relative``).
    """
    action, flow = loaded.config.action, loaded.config.flow
    unknown, largest = MotionRange(), loaded.statistics.largest_action
    steps = action.kind == 'ee_delta' and action.reference == 'previous_step'
    if largest is None or not steps or (flow is not None and flow.relative):
        return unknown
    largest = largest * np.abs(action.scale)

    def of(names: tuple[str, ...]) -> float:
        return max(
            (float(v) for v, d in zip(largest, action.dims, strict=True) if d in names),
            default=0.0,
        )

    step, turn, rate = of(('x', 'y', 'z')), of(('rx', 'ry', 'rz')), loaded.config.control_hz
    return MotionRange(
        v_t=step * rate or unknown.v_t, v_r=turn * rate or unknown.v_r, step=step or unknown.step
    )


def net_translation(action: ActionConfig, actions: np.ndarray) -> float | None:
    """Net translation of a chunk ``[K, D]`` of steps, metres; ``None`` where actions are none."""
    if action.kind != 'ee_delta' or action.reference != 'previous_step':
        return None
    axes = [i for i, name in enumerate(action.dims) if name in ('x', 'y', 'z')]
    return float(np.linalg.norm((actions * np.asarray(action.scale))[:, axes].sum(0)))
