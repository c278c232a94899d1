"""Whether a measured state can be the arm: reachable from the last one that could.

Drivers, second publishers and start-up code send zeros, other robots' joints and poses of other
frames. None of them is a place an arm can have reached since the message before, so each is
detected by distance over time. What cannot be true is not used, and the arm does not move while it
is reported (see ``Watchdog.implausible``). A place that is claimed alone and consistently for
``adopt_s`` is accepted in the end: arms are moved by hand, simulated ones are reset. Where
somebody says that the arm was put elsewhere, ``CONFIRM_S`` is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from specprune_ros.robot import geometry
from specprune_ros.robot.geometry import Pose

Value = TypeVar('Value')
ADOPT_S = 0.25
CONFIRM_S = 0.05  # s for which states must agree after somebody said that the arm is elsewhere
OLD = 'old'


@dataclass
class _Seen(Generic[Value]):
    value: Value
    stamp_ns: int


class PlausibleState(Generic[Value]):
    """The last state that can be true, and the test for the next one.

    ``distance`` gives how far two states lie apart, one number per part (m, rad); ``speeds`` are
    the highest speeds (m/s, rad/s) at which the arm can be moved at all, by anybody, and may be
    set anew; ``slack`` is what noise and jittering stamps may add.
    """

    def __init__(
        self,
        distance: Callable[[Value, Value], tuple[float, ...]],
        speeds: tuple[float, ...],
        slack: tuple[float, ...],
        units: tuple[str, ...],
        adopt_s: float = ADOPT_S,
    ) -> None:
        self._distance, self.speeds, self._slack = distance, speeds, slack
        self._units = units
        self._adopt_ns = round(adopt_s * 1e9)
        self.forget()

    def forget(self, since_ns: int = 0, confirm_s: float = 0.0) -> None:
        """Begin anew: the next state is believed; with ``confirm_s``, once states that are stamped
        from ``since_ns`` on have agreed for so long.
        """
        self._since_ns, self._confirm_ns = since_ns, round(confirm_s * 1e9)
        self._last: _Seen[Value] | None = None
        self._other: _Seen[Value] | None = None  # the newest of a run of states not believed
        self._other_since = 0

    @property
    def value(self) -> Value | None:
        """The last plausible state."""
        return None if self._last is None else self._last.value

    def offer(self, value: Value, stamp_ns: int) -> str:
        """Take a state in; an empty text, or why it cannot be true. ``'old'``: it does not count,
        as it is stamped before the last one, or still to be confirmed after :meth:`forget`.
        """
        last, patience_ns = self._last, self._adopt_ns
        if last is None:
            if stamp_ns < self._since_ns:
                return OLD
            wrong, patience_ns = OLD, self._confirm_ns
        else:
            wrong = self._jump(last, value, stamp_ns)
            if not wrong:
                self._accept(value, stamp_ns)
                return ''
        other = self._other
        if other is None or self._jump(other, value, stamp_ns):
            self._other_since = stamp_ns
        self._other = _Seen(value, stamp_ns)
        if stamp_ns - self._other_since >= patience_ns:
            self._accept(value, stamp_ns)
            return ''
        return wrong

    def _accept(self, value: Value, stamp_ns: int) -> None:
        self._last, self._other = _Seen(value, stamp_ns), None

    def _jump(self, before: _Seen[Value], value: Value, stamp_ns: int) -> str:
        seconds = (stamp_ns - before.stamp_ns) * 1e-9
        if seconds < 0.0:
            return OLD
        parts = zip(
            self._distance(before.value, value), self.speeds, self._slack, self._units,
            strict=True,
        )  # fmt: skip
        for far, speed, slack, unit in parts:
            if not far <= slack + speed * seconds:
                return (
                    f'jumps by {far:.3f} {unit} in {seconds:.3f} s; at {speed:g} {unit}/s '
                    f'{slack + speed * seconds:.3f} {unit} could be reached'
                )
        return ''


def pose_distance(a: Pose, b: Pose) -> tuple[float, float]:
    """Metres and radians between two poses."""
    return (
        geometry.norm(geometry.subtract(b.position, a.position)),
        geometry.norm(geometry.rotation_between(a.orientation, b.orientation)),
    )


def joint_distance(a: float, b: float) -> tuple[float]:
    """Radians between two positions of a joint with a range."""
    return (abs(b - a),)


def turn_distance(a: float, b: float) -> tuple[float]:
    """Radians between two positions of a continuous joint, the shorter way."""
    return (abs(math.remainder(b - a, math.tau)),)
