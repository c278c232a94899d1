"""What openpi's code for a robot changes between the robot's numbers and the model's.

States on the way in, actions on the way out; both apply to raw values, outside the scales.
"""

from __future__ import annotations

import numpy as np

from specprune_ros.models.config import FlowConfig

# ALOHA: joints that turn the other way in pi's own runtime, and the two grippers.
_FLIPPED = [1, 2, 8, 9]
_GRIPPERS = [6, 13]
_FINGERS = 0.01844, 0.05800  # m between the fingers, closed and open, that 0 and 1 stand for
_ARM, _HORN = 0.036, 0.022  # m, the linkage behind the fingers (Interbotix)
_ANGLES_IN = 0.5476, 1.6296  # rad that become 0 and 1 in the model
_ANGLES_OUT = -0.6213, 1.4910  # rad that the arm's driver takes for 0 and 1


def model_state(flow: FlowConfig | None, state: np.ndarray) -> np.ndarray:
    """The robot's state ``[P]`` as the model was trained on it."""
    if flow is None or flow.robot != 'aloha':
        return state
    state = np.array(state, np.float64)
    state[_FLIPPED] *= -1
    apart = _FINGERS[0] + state[_GRIPPERS] * (_FINGERS[1] - _FINGERS[0])
    sine = (_HORN**2 + apart**2 - _ARM**2) / (2 * _HORN * apart)
    angle = np.arcsin(np.clip(sine, -1, 1))
    state[_GRIPPERS] = (angle - _ANGLES_IN[0]) / (_ANGLES_IN[1] - _ANGLES_IN[0])
    return state


def robot_actions(
    flow: FlowConfig | None, actions: np.ndarray, state: np.ndarray | None
) -> np.ndarray:
    """Un-normalised actions ``[K, D]`` as the robot takes them; ``state`` is the model's,
    ``[P]``, which relative columns are offsets to.
    """
    if flow is None:
        return actions
    actions = np.array(actions, np.float64)
    if flow.relative:
        columns = list(flow.relative)
        actions[:, columns] += state[columns]
    if flow.robot == 'aloha':
        actions[:, _FLIPPED] *= -1
        low, high = _ANGLES_OUT
        actions[:, _GRIPPERS] = (actions[:, _GRIPPERS] + _ANGLES_IN[0] - low) / (high - low)
    return actions


def model_actions(
    flow: FlowConfig | None, actions: np.ndarray, state: np.ndarray | None
) -> np.ndarray:
    """Inverse of :func:`robot_actions`."""
    if flow is None:
        return actions
    actions = np.array(actions, np.float64)
    if flow.robot == 'aloha':
        actions[:, _FLIPPED] *= -1
        low, high = _ANGLES_OUT
        actions[:, _GRIPPERS] = low + actions[:, _GRIPPERS] * (high - low) - _ANGLES_IN[0]
    if flow.relative:
        columns = list(flow.relative)
        actions[:, columns] -= state[columns]
    return actions
