"""SP-VLA's scheduler: while the hand glides, extrapolate instead of asking the model.

The policy may keep one :class:`RidgeScheduler` per episode. It is host side and knows nothing of
tokens.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class RidgeScheduler:
    """Decides whether the model must run, and predicts actions when it need not.

    arXiv 2506.12723 section 3.2: the light generator is used if the last action's translation
    speed lies in ``[v_min, v_max]`` (m/s) and more than ``share`` of the last ``size`` actions
    came from the model. The generator is a ridge regression of each action dimension on time over
    that buffer; ``strength`` penalises the slope only.
    """

    def __init__(
        self,
        size: int = 6,
        v_min: float = 0.1,
        v_max: float = 1.0,
        share: float = 0.5,
        strength: float = 1.0,
    ) -> None:
        if size < 2:
            raise ValueError(f'size must be at least 2 actions, got {size}')
        if not 0 <= v_min <= v_max:
            raise ValueError(f'need 0 <= v_min <= v_max, got {v_min} and {v_max}')
        if strength < 0 or not 0 <= share <= 1:
            raise ValueError(f'need strength >= 0 and share in 0..1, got {strength} and {share}')
        self.size, self.v_min, self.v_max = size, v_min, v_max
        self.share, self.strength = share, strength
        self._actions: deque[tuple[Tensor, bool]] = deque(maxlen=size)

    def reset(self) -> None:
        """Forget the buffer."""
        self._actions.clear()

    def record(self, action: Tensor, from_model: bool) -> None:
        """Add one executed action, ``[D]``."""
        self._actions.append((action.detach().double().cpu(), from_model))

    def skips_model(self, speed: float | None) -> tuple[bool, str]:
        """Whether the light generator may act at this translation speed (m/s), and why."""
        if len(self._actions) < self.size:
            return False, f'{len(self._actions)} of {self.size} actions seen'
        if speed is None or not self.v_min <= speed <= self.v_max:
            return False, f'speed {speed} outside {self.v_min:g} to {self.v_max:g} m/s'
        share = sum(from_model for _, from_model in self._actions) / self.size
        if share <= self.share:
            return False, f'only {share:.0%} of the last actions came from the model'
        return True, f'gliding at {speed:.3f} m/s'

    def predict(self, steps: int) -> Tensor:
        """The next ``steps`` actions, float64 ``[steps, D]``; ValueError on a short buffer."""
        if len(self._actions) < self.size:
            raise ValueError(f'{len(self._actions)} of {self.size} actions seen')
        y = torch.stack([action for action, _ in self._actions])
        t = torch.arange(self.size, dtype=torch.float64)
        centred = t - t.mean()
        slope = (centred @ (y - y.mean(0))) / (centred @ centred + self.strength)
        ahead = torch.arange(self.size, self.size + steps, dtype=torch.float64) - t.mean()
        return y.mean(0) + ahead[:, None] * slope
