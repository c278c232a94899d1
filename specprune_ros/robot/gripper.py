"""When a gripper command is worth sending, and whether it was done.

Gripper actions abort the running one when a new goal comes (Flexiv), so a command goes out on
change only, and a policy that hovers about the middle must not make the fingers chatter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

ANSWER_S = 2.0  # s within which an action server accepts or refuses a goal


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
        if now_ns < self._since_ns:  # the clock went back
            self._pending = None
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


class GoalState(StrEnum):
    """Where the gripper's present goal stands."""

    IDLE = 'idle'  # nothing was requested yet
    WAITING = 'waiting for the server'
    MOVING = 'moving'
    DONE = 'done'
    RETRYING = 'retrying'
    FAILED = 'failed'


@dataclass
class GripperGoal:
    """Sees one opening at a time through: sent again where it was refused, aborted or lost.

    ``retries`` times, ``retry_s`` seconds apart; then it has failed until another opening
    is requested or :meth:`forget` is called. A goal that nobody accepts or refuses within
    ``ANSWER_S`` counts as lost. A server that came back is sent the goal anew.
    With ``stall_is_success`` a closing goal (below ``closing``) that aborts counts as done: the
    driver means that an object stopped the fingers.

    The caller brings the time (ns) and whether a server is there; each goal sent has a number, so
    that answers to an earlier one do not count.
    """

    retries: int = 3
    retry_s: float = 0.5
    stall_is_success: bool = False
    closing: float = 0.5
    state: GoalState = field(default=GoalState.IDLE, init=False)
    opening: float | None = field(default=None, init=False)
    reason: str = field(default='', init=False)
    number: int = field(default=0, init=False)
    _tried: int = field(default=0, init=False)
    _after_ns: int = field(default=0, init=False)
    _unanswered_ns: int | None = field(default=None, init=False)  # since when

    def want(self, opening: float) -> None:
        """Another opening, 0 closed to 1 open."""
        self.opening = opening
        self.again()

    def forget(self) -> None:
        """Nothing is requested any more; an answer to what was does not count."""
        self.opening, self.state, self.reason = None, GoalState.IDLE, ''
        self.number += 1

    def again(self) -> None:
        """Try the present opening from the beginning: it is another, or the server is."""
        if self.opening is not None:
            self.state, self.reason = GoalState.WAITING, ''
            self._tried = self._after_ns = 0
            self.number += 1

    @property
    def trouble(self) -> str:
        """Why what was requested is not done or on its way; empty: it is."""
        if self.state in (GoalState.RETRYING, GoalState.FAILED):
            return f'{self.reason}, sent {self._tried} of {self.retries + 1} times'
        return ''

    def due(self, now_ns: int, ready: bool) -> float | None:
        """The opening to send now, if any; ``number`` is then the goal's."""
        if not ready:
            if self.state in (GoalState.MOVING, GoalState.DONE, GoalState.RETRYING):
                self.again()  # its server is gone, and with it the goal it received
            return None
        since_ns = self._unanswered_ns if self.state is GoalState.MOVING else None
        if since_ns is not None and now_ns - since_ns > ANSWER_S * 1e9:
            self.failed(self.number, 'goal not answered', now_ns)
        if self.state not in (GoalState.WAITING, GoalState.RETRYING) or now_ns < self._after_ns:
            return None
        self.state, self._unanswered_ns = GoalState.MOVING, now_ns
        self._tried += 1
        self.number += 1
        return self.opening

    def accepted(self, number: int) -> None:
        """The server has taken the goal on; how long it takes is its own affair."""
        if number == self.number:
            self._unanswered_ns = None

    def succeeded(self, number: int) -> None:
        """The server says it is done."""
        if number == self.number and self.state is GoalState.MOVING:
            self.state, self.reason = GoalState.DONE, ''

    def failed(self, number: int, reason: str, now_ns: int, stalled: bool = False) -> None:
        """The server refused or aborted; ``stalled``: it aborted a goal it had accepted."""
        if number != self.number or self.state is not GoalState.MOVING:
            return
        if stalled and self.stall_is_success and self.opening <= self.closing:
            self.state, self.reason = GoalState.DONE, ''
            return
        self.reason = reason
        self._after_ns = now_ns + round(self.retry_s * 1e9)
        left = self._tried <= self.retries
        self.state = GoalState.RETRYING if left else GoalState.FAILED
