"""Whether the arm may move at this moment, and the one moment at which it must be stopped.

A pure state machine: the caller brings the time. Asked at control rate, it answers within one
period after a limit has run out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from specprune_ros.validation import validated

DISABLED = 'disabled'
DRIVER = 'driver_not_ready'
POLICY_ERROR = 'policy_error'
SAFETY = 'safety'
CLOCK = 'clock_jump'
RESET = 'reset'
STALE_STATE = 'stale_state'
STALE_OBSERVATION = 'stale_observation'
STALE_CHUNK = 'stale_chunk'
DRY_QUEUE = 'dry_queue'
HELD = 'held'
GRIPPER = 'gripper'
IMPLAUSIBLE = 'implausible_state'
ENDED = 'ended'  # the node was deactivated, or its process ends
DESCRIPTION = 'description'
SUPERVISOR = 'supervisor'
REASONS = (
    DISABLED,
    DRIVER,
    POLICY_ERROR,
    SAFETY,
    CLOCK,
    RESET,
    STALE_STATE,
    STALE_OBSERVATION,
    STALE_CHUNK,
    DRY_QUEUE,
    HELD,
    GRIPPER,
    IMPLAUSIBLE,
    DESCRIPTION,
    SUPERVISOR,
)
DOUBT_S = 0.5  # s in which no impossible state may have come before the arm moves


class State(StrEnum):
    """What the executor does."""

    WAITING = 'waiting'  # nothing to execute yet, nothing was sent
    RUNNING = 'running'
    STOPPED = 'stopped'


Age = Annotated[float, Field(gt=0, le=3600)]


@validated()
class WatchdogLimits:
    """Ages in seconds after which the arm stops.

    ``observation_age``: since the image behind the motion under way was taken. ``chunk_age``:
    since the last chunk arrived. ``state_age``: since the newest of each measured state the
    command needs. ``dry_queue``: since the last row was executed; braking happens in this time.
    ``clock_stall``: how long the clock may stand still (simulated time) while real time goes on.
    ``latched`` names the reasons (:data:`REASONS`) after which the arm stays stopped until it is
    enabled again, whether they came while it moved, waited or was held.
    """

    observation_age: Age = 2.0
    chunk_age: Age = 2.0
    state_age: Age = 0.25
    dry_queue: Age = 0.1
    clock_stall: Age = 0.5
    latched: frozenset[Literal[REASONS]] = frozenset()


@dataclass(frozen=True)
class WatchdogDecision:
    """The answer for one control period.

    ``stop_now`` is true in exactly one verdict of a stop: then the stop action is due.
    ``latched``: only enabling brings the arm back.
    """

    state: State
    reason: str = ''
    detail: str = ''
    stop_now: bool = False
    latched: bool = False

    @property
    def may_move(self) -> bool:
        """Whether a motion command may be sent."""
        return self.state is State.RUNNING


class Watchdog:
    """Knows what arrived when, and judges.

    ``states`` are the names of the measured states (pose, joint states) that must be fresh before
    and while the arm moves. Motion begins when a chunk is available and nothing stands against it.
    Stamps older than a limit stop the arm, and so does one from the future by more than
    ``future`` seconds: the clocks then do not agree, and no age means anything.
    """

    def __init__(
        self,
        limits: WatchdogLimits,
        states: tuple[str, ...] = (),
        enabled: bool = True,
        future: float = 0.1,
    ) -> None:
        self.limits = limits
        self.enabled = enabled
        self._future = future
        self._driver = (True, '')
        self._error = self._unsafe = self._jumped = ''
        self._description = self._supervisor = ''
        self._error_judged = True
        self._held = False
        self._gripper = ''
        self._doubt: tuple[int, str] | None = None
        self._stamps: dict[str, int | None] = dict.fromkeys(states)
        self._anew = set(states)  # not measured since the start or a reset: no fault of the arm
        self._observation_ns: int | None = None
        self._chunk_ns: int | None = None
        self._dry_ns: int | None = None
        self._clock_ns: int | None = None
        self._went_ns: int | None = None  # real time at which the clock last went on
        self._state = State.WAITING
        self._reason = self._detail = ''
        self._latch = False
        self._ready = False  # whether there was a moment since the start when it might have moved

    def measured(self, name: str, stamp_ns: int) -> None:
        """A measured state arrived."""
        self._stamps[name] = stamp_ns
        self._anew.discard(name)

    def forget_states(self) -> None:
        """Nothing is measured yet, and what cannot be true was of before."""
        self._stamps = dict.fromkeys(self._stamps)
        self._anew = set(self._stamps)
        self._doubt = None

    def chunk(self, observation_ns: int, now_ns: int) -> None:
        """A chunk was taken in; it clears a reported policy error that has been judged."""
        self._observation_ns, self._chunk_ns, self._dry_ns = observation_ns, now_ns, None
        # One that came within this control period still has to stop the arm.
        if self._error_judged:
            self._error = ''

    def queue(self, dry: bool, now_ns: int) -> None:
        """Whether rows are left to execute."""
        if not dry:
            self._dry_ns = None
        elif self._dry_ns is None:
            self._dry_ns = now_ns

    def driver(self, ready: bool, detail: str = '') -> None:
        """What the driver says of itself."""
        self._driver = (ready, detail)

    def policy_error(self, detail: str) -> None:
        """The policy reported an error, or sent a chunk that had to be refused."""
        self._error, self._error_judged = detail, False

    def unsafe(self, detail: str) -> None:
        """The safety filter stopped the arm; holds until the next chunk (if latched, enable)."""
        self._unsafe = detail

    def implausible(self, detail: str, now_ns: int) -> None:
        """A measured state arrived that cannot be true: no motion while that goes on."""
        self._doubt = (now_ns, detail)

    def gripper(self, detail: str) -> None:
        """The gripper did not do what it was requested to; empty: it has."""
        self._gripper = detail

    def description(self, detail: str) -> None:
        """Another robot description came than the one in use: stops the arm once."""
        self._description = detail

    def supervisor(self, trouble: str) -> None:
        """Why nobody could stop the arm should this process end; empty: somebody can."""
        self._supervisor = trouble

    def hold(self, held: bool) -> None:
        """Pause in place, or go on."""
        self._held = held

    def stand_down(self) -> None:
        """The motion was ended from outside; nobody holds it any more."""
        self._state, self._held, self._ready = State.WAITING, False, False
        self._forget_motion()

    def enable(self, enabled: bool) -> None:
        """Enable or disable motion; enabling clears latched stops and forgets old chunks."""
        self.enabled = enabled
        if enabled:
            self._latch = False
            self._error = self._unsafe = self._jumped = self._gripper = ''
            self._forget_motion()

    def reset(self) -> None:
        """Forget chunks and errors; what latched stays latched."""
        self._error = self._unsafe = self._jumped = self._gripper = ''
        self._forget_motion()

    def age(self, name: str, now_ns: int) -> float | None:
        """Seconds since a measured state's stamp, ``None`` before the first."""
        stamp = self._stamps.get(name)
        return None if stamp is None else (now_ns - stamp) * 1e-9

    @property
    def observation_ns(self) -> int | None:
        """Stamp behind the motion under way."""
        return self._observation_ns

    def check(self, now_ns: int, real_ns: int | None = None) -> WatchdogDecision:
        """Judge this control period; ``real_ns`` is a steady clock, to notice a stalled one."""
        self._watch_clock(now_ns, real_ns)
        reason, detail = self._complaint(now_ns, real_ns)
        if self._state is State.RUNNING:
            if not reason and self._observation_ns is None:
                reason, detail = RESET, 'the motion under way was dropped'
            if reason:
                return self._halt(reason, detail)
            return WatchdogDecision(State.RUNNING)
        if self._state is State.STOPPED:
            if self._latch:
                self._forget_motion()
                return self._verdict()
            if reason:
                # The reason may change while stopped; a latching one still has to latch.
                self._reason, self._detail = reason, detail
                self._latch = self._latches(reason)
                self._forget_motion()
                return self._verdict()
            self._state = State.WAITING
        if reason and self._ready and self._latches(reason):
            # Nothing to stop, or it is being stopped: but a person has to enable it again.
            return self._halt(reason, detail, stop_now=False)
        if reason:
            # A chunk that came while something stood against moving is not kept for later.
            self._forget_motion()
            return WatchdogDecision(State.WAITING, reason, detail)
        self._ready = True
        if self._observation_ns is None:
            return WatchdogDecision(State.WAITING, detail='no chunk yet')
        self._state, self._reason, self._detail = State.RUNNING, '', ''
        return WatchdogDecision(State.RUNNING)

    def _halt(self, reason: str, detail: str, stop_now: bool = True) -> WatchdogDecision:
        self._state, self._reason, self._detail = State.STOPPED, reason, detail
        self._latch = self._latches(reason)
        # Whatever is queued was planned for a motion that has ended.
        self._forget_motion()
        return self._verdict(stop_now)

    def _latches(self, reason: str) -> bool:
        return reason in self.limits.latched and not (reason == STALE_STATE and self._anew)

    def _verdict(self, stop_now: bool = False) -> WatchdogDecision:
        return WatchdogDecision(self._state, self._reason, self._detail, stop_now, self._latch)

    def _forget_motion(self) -> None:
        self._observation_ns = self._chunk_ns = self._dry_ns = None

    def _watch_clock(self, now_ns: int, real_ns: int | None) -> None:
        if self._clock_ns is not None and now_ns < self._clock_ns:
            back = (self._clock_ns - now_ns) * 1e-9
            self._jumped = f'the clock went back by {back:.3f} s'
            self._stamps = dict.fromkeys(self._stamps)
        if now_ns != self._clock_ns:
            self._went_ns = real_ns
        self._clock_ns = now_ns

    def _stalled(self, real_ns: int | None) -> tuple[str, str]:
        if real_ns is None or self._went_ns is None:
            return '', ''
        stood = (real_ns - self._went_ns) * 1e-9
        if stood > self.limits.clock_stall:
            return CLOCK, f'the clock has stood still for {stood:.3f} s; is /clock published?'
        return '', ''

    def _complaint(self, now_ns: int, real_ns: int | None) -> tuple[str, str]:
        """What stands against moving: the first that latches, or else the most basic."""
        jumped, self._jumped = self._jumped, ''
        if not self.enabled:  # only enabling ends that, whatever else there is
            return DISABLED, 'motion is disabled'
        found = [
            complaint
            for complaint in (
                (HELD, 'paused by ~/hold') if self._held else ('', ''),
                (DRIVER, self._driver[1]) if not self._driver[0] else ('', ''),
                self._policy_error(),
                self._take_unsafe(),
                self._take_description(),
                (SUPERVISOR, self._supervisor) if self._supervisor else ('', ''),
                (CLOCK, jumped) if jumped else ('', ''),
                (CLOCK, 'no time yet; is /clock published?') if now_ns <= 0 else ('', ''),
                self._stalled(real_ns),
                self._doubted(now_ns),
                self._stale_state(now_ns),
                self._stale_motion(now_ns),
                (GRIPPER, self._gripper) if self._gripper else ('', ''),
            )
            if complaint[0]
        ]
        first = found[0] if found else ('', '')
        return next((complaint for complaint in found if self._latches(complaint[0])), first)

    def _policy_error(self) -> tuple[str, str]:
        self._error_judged = True
        return (POLICY_ERROR, self._error) if self._error else ('', '')

    def _take_unsafe(self) -> tuple[str, str]:
        # A command is judged anew with the next chunk, so this complaint is made once.
        detail, self._unsafe = self._unsafe, ''
        return (SAFETY, detail) if detail else ('', '')

    def _take_description(self) -> tuple[str, str]:
        detail, self._description = self._description, ''
        return (DESCRIPTION, f'robot_description: {detail}') if detail else ('', '')

    def _doubted(self, now_ns: int) -> tuple[str, str]:
        if self._doubt is None or not 0 <= now_ns - self._doubt[0] < DOUBT_S * 1e9:
            self._doubt = None
            return '', ''
        return IMPLAUSIBLE, self._doubt[1]

    def _stale_state(self, now_ns: int) -> tuple[str, str]:
        for name, stamp_ns in self._stamps.items():
            if stamp_ns is None:
                return STALE_STATE, f'no {name} yet'
            text = self._too_old(name, stamp_ns, now_ns, self.limits.state_age)
            if text:
                return STALE_STATE, text
        return '', ''

    def _stale_motion(self, now_ns: int) -> tuple[str, str]:
        if self._observation_ns is None or self._chunk_ns is None:
            return '', ''
        if self._dry_ns is not None:
            dry = (now_ns - self._dry_ns) * 1e-9
            if dry > self.limits.dry_queue:
                return DRY_QUEUE, f'the last action was executed {dry:.3f} s ago, no newer chunk'
        text = self._too_old(
            'observation', self._observation_ns, now_ns, self.limits.observation_age
        )
        if text:
            return STALE_OBSERVATION, text
        text = self._too_old('chunk', self._chunk_ns, now_ns, self.limits.chunk_age)
        return (STALE_CHUNK, text) if text else ('', '')

    def _too_old(self, name: str, stamp_ns: int, now_ns: int, limit: float) -> str:
        age = (now_ns - stamp_ns) * 1e-9
        if age > limit:
            return f'{name} is {age:.3f} s old; at most {limit:g} s'
        if age < -self._future:
            return f'{name} is stamped {-age:.3f} s in the future; the clocks disagree'
        return ''
