"""When a gripper command is worth sending.

Gripper actions abort the running one when a new goal comes (Flexiv), so a command goes out on
change only, and a policy that hovers about the middle must not make the fingers chatter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class GripperHysteresis:
    """Turns an opening (0 closed to 1 open) into commands sent on change.

    Opens above ``open_above``, closes below ``close_below``, keeps in between. With
    ``continuous`` the opening itself is sent whenever it moved by more than ``deadband``. A
    change must hold for ``dwell_s`` before it counts.
    """

    close_below: float = 0.4
    open_above: float = 0.6
    continuous: bool = False
    deadband: float = 0.02
    dwell_s: float = 0.0
    _sent: float | None = field(default=None, init=False)
    _pending: float | None = field(default=None, init=False)
    _since_ns: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.close_below <= self.open_above <= 1.0:
            raise ValueError(
                f'gripper: close_below {self.close_below} and open_above {self.open_above} must '
                'ascend within 0 to 1'
            )

    @property
    def sent(self) -> float | None:
        """The opening last sent, ``None`` before the first."""
        return self._sent

    def reset(self) -> None:
        """Forget what was sent (the driver restarted): the next opening is sent again."""
        self._sent = self._pending = None

    def update(self, opening: float, now_ns: int) -> float | None:
        """The opening to send now, or ``None`` to send nothing. NaN sends nothing."""
        if not math.isfinite(opening):
            return None
        opening = min(1.0, max(0.0, opening))
        wanted = self._wanted(opening)
        if wanted is None:
            self._pending = None
            return None
        if self._sent is not None and self.dwell_s > 0.0:
            if self._pending is None or (not self.continuous and self._pending != wanted):
                self._pending, self._since_ns = wanted, now_ns
            if (now_ns - self._since_ns) * 1e-9 < self.dwell_s:
                return None
        self._sent, self._pending = wanted, None
        return wanted

    def _wanted(self, opening: float) -> float | None:
        if self.continuous:
            if self._sent is not None and abs(opening - self._sent) <= self.deadband:
                return None
            return opening
        if opening > self.open_above:
            state = 1.0
        elif opening < self.close_below:
            state = 0.0
        else:
            return None  # keep; and say nothing at all before the first clear wish
        return None if state == self._sent else state
