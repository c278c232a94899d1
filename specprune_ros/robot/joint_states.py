"""What is known of each joint, from messages that may name some and not others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from specprune_ros.robot.plausibility import OLD, PlausibleState, joint_distance, turn_distance
from specprune_ros.robot.safety import JointLimit
from specprune_ros.robot.speed import FASTER, JointStateError, check_joint_count

JOINT_SLACK = 0.05  # rad
LARGEST = 1e3  # rad or m: no joint is further, and differences of what is read stay finite
JOINT_SPEED = 20.0  # rad/s, of a joint whose speed limit nobody knows


@dataclass
class _Joint:
    state: PlausibleState[float]
    stamp_ns: int
    velocity: float | None = None


class JointStates:
    """The newest plausible position (rad or m) of each wanted joint, with its own stamp.

    Drivers publish arm and gripper apart, and others' joints on the same topic. ``wanted`` are
    ours; where a driver writes them with or without ``prefix``, both count. ``limit`` gives a
    joint's limits, which may become known later.
    """

    def __init__(
        self,
        wanted: Iterable[str],
        prefix: str = '',
        limit: Callable[[str], JointLimit] = lambda name: JointLimit(),
    ) -> None:
        self.wanted = set(wanted)
        self._prefix, self._limit = prefix, limit
        self._joints: dict[str, _Joint] = {}
        self._unconfirmed: dict[str, _Joint] = {}
        self.impossible = ''
        self.forget()

    def forget(self, since_ns: int = 0, confirm_s: float = 0.0) -> None:
        """Nothing is known of any joint; see :meth:`PlausibleState.forget`."""
        self._joints.clear()
        self._unconfirmed.clear()
        self._anew = since_ns, confirm_s

    def take(
        self,
        names: Sequence[str],
        positions: Sequence[float],
        velocities: Sequence[float],
        stamp_ns: int,
    ) -> tuple[list[str], list[str]]:
        """A message: the joints of ours it reported, and what is wrong with it, in words.

        ``impossible`` then says which of them cannot be true, if any. A message of other parts
        changes nothing; a joint that is not finite, or beyond ``LARGEST``, is not known until a
        better one comes. Raises ``JointStateError`` where nothing of it can be read.
        """
        self.impossible = ''
        check_joint_count(names)
        ours = [(i, mine) for i, name in enumerate(names) if (mine := self._ours(name))]
        if not ours or not len(positions):
            return [], []
        if len(positions) != len(names):
            raise JointStateError(f'{len(positions)} positions for {len(names)} names')
        reported, wrong = [], []
        for i, name in ours:
            moving = float(velocities[i]) if len(velocities) == len(names) else None
            reason = self._one(name, float(positions[i]), moving, stamp_ns)
            if not reason:
                reported.append(name)
            elif reason != OLD:  # out of order: its age runs on
                wrong.append(f'{name} {reason}')
        return reported, wrong

    def _one(self, name: str, position: float, velocity: float | None, stamp_ns: int) -> str:
        if not abs(position) <= LARGEST:
            # Unknown, but the next one is compared with the last one believed all the same.
            if name in self._joints:
                self._unconfirmed[name] = self._joints.pop(name)
            if not math.isfinite(position):
                return 'is not finite'
            return f'is at {position:g}; at most {LARGEST:g} rad or m are read'
        joint = self._joints.get(name) or self._unconfirmed.get(name)
        if joint is None:
            joint = self._unconfirmed[name] = _Joint(self._track(name), stamp_ns)
        joint.state.speeds = self._speeds(name)
        reason = joint.state.offer(position, stamp_ns)
        if not reason:
            self._joints[name] = self._unconfirmed.pop(name, joint)
            joint.stamp_ns, joint.velocity = stamp_ns, velocity
        elif reason != OLD:
            self.impossible = self.impossible or f'{name} {reason}'
        return reason

    def _speeds(self, name: str) -> tuple[float]:
        fastest = self._limit(name).velocity
        return (FASTER * fastest if math.isfinite(fastest) else JOINT_SPEED,)

    def _track(self, name: str) -> PlausibleState[float]:
        def distance(a: float, b: float) -> tuple[float]:
            return turn_distance(a, b) if self._limit(name).continuous else joint_distance(a, b)

        state = PlausibleState(distance, self._speeds(name), (JOINT_SLACK,), ('rad',))
        state.forget(*self._anew)
        return state

    def _ours(self, name: str) -> str:
        """Our name of a joint that is written with or without the prefix; empty: not ours."""
        prefix = self._prefix
        known = (name, prefix + name, name.removeprefix(prefix)) if prefix else (name,)
        return next((candidate for candidate in known if candidate in self.wanted), '')

    def missing(self, names: Sequence[str]) -> str:
        """Which of ``names`` are not known, in words; empty: all are."""
        lacking = [name for name in names if name not in self._joints]
        if not lacking:
            return ''
        known = ', '.join(self._joints) or 'none of ours'
        return f'no joint named {", ".join(lacking)} so far; known: {known}'

    @property
    def positions(self) -> dict[str, float]:
        """Positions by name."""
        return {
            name: joint.state.value
            for name, joint in self._joints.items()
            if joint.state.value is not None
        }

    def velocities(self, names: Sequence[str]) -> list[float] | None:
        """Velocities of known joints; ``None`` where a message had none."""
        found = [self._joints[name].velocity for name in names]
        return None if None in found else found

    def oldest(self, names: Sequence[str]) -> str:
        """The known joint reported longest ago."""
        return min(names, key=lambda name: self._joints[name].stamp_ns)

    def stamp_ns(self, names: Sequence[str]) -> int:
        """How old what is known of joints is: the stamp of the oldest."""
        return min(self._joints[name].stamp_ns for name in names)
