"""Queries answered without the model: SP-VLA's scheduler, kept in step with what was executed."""

from __future__ import annotations

import numpy as np
import torch

from specprune_ros.models.config import ActionConfig
from specprune_ros.policy.observation import Observation
from specprune_ros.pruning.controller import known_translation
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.pruning.rivals.sp_vla import RidgeScheduler


def check_extrapolation(action: ActionConfig) -> None:
    """Raise :class:`ParamError` where a line through rows is no motion: rows that count from
    another observation than the new one, poses whose rotation may wrap, grippers among the joints.
    """
    held = '' if action.gripper_dim < 0 else action.dims[action.gripper_dim]
    grippers = [name for name in action.dims if 'gripper' in name and name != held]
    steps = action.reference == 'previous_step' and action.rotation != 'quaternion'
    if not steps and action.kind != 'joint_position':
        why = f'rows of kind {action.kind} to reference {action.reference}, {action.rotation},'
    elif grippers:
        why = f'grippers among the columns ({", ".join(grippers)})'
    else:
        return
    raise ParamError('scheduler', f'{why} cannot be extrapolated: take none')


class ActionExtrapolator:
    """Knows which rows of the last chunk were executed since, and extrapolates them where it may.

    A row counts as executed once its step time has passed since the chunk's observation
    (arXiv 2506.12723 section 3.2 keeps a buffer of executed actions).
    """

    def __init__(self) -> None:
        self._settings: tuple[float, ...] = ()
        self._scheduler = RidgeScheduler()
        self._actions = np.empty((0, 0))
        self._stamp_ns = 0
        self._rows = 0
        self._last = np.empty(0)
        self._from_model = True

    def reset(self) -> None:
        """Forget what was executed, and the last chunk."""
        self._scheduler.reset()
        self._actions = np.empty((0, 0))

    def predict(
        self,
        observation: Observation,
        params: PruningParams,
        step_dt: float,
        gripper_dim: int = -1,
    ) -> tuple[np.ndarray | None, str]:
        """The next chunk ``[chunk, action_dim]`` without the model, or ``None``; and why.

        ``step_dt`` is in seconds; the column ``gripper_dim`` stays as it was.
        """
        settings = (
            params.scheduler_size,
            params.scheduler_v_min,
            params.scheduler_v_max,
            params.scheduler_share,
            params.scheduler_strength,
        )
        if settings != self._settings:
            self._settings, self._scheduler = settings, RidgeScheduler(*settings)
        since = (observation.stamp_ns - self._stamp_ns) / 1e9
        done = min(round(since / step_dt), len(self._actions))
        for row in self._actions[:done]:
            self._scheduler.record(torch.from_numpy(row), self._from_model)
            self._last = row
        self._actions = self._actions[done:]
        speed = known_translation(observation.speed, params)
        skips, reason = self._scheduler.skips_model(speed)
        if not skips:
            return None, reason
        actions = self._scheduler.predict(self._rows).numpy()
        if gripper_dim >= 0:
            # A gripper opens or closes when the model says so, not because a line leads there.
            actions[:, gripper_dim] = self._last[gripper_dim]
        return actions, reason

    def issued(self, actions: np.ndarray, stamp_ns: int, from_model: bool) -> None:
        """Remember the chunk that is executed from now on."""
        self._actions, self._stamp_ns, self._from_model = actions, stamp_ns, from_model
        self._rows = len(actions)
