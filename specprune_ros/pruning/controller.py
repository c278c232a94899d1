"""Coarse or fine: the action-aware controller, on the host, and how far back to look."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import PruningParams


@dataclass(frozen=True)
class SpeedSample:
    """End-effector speed: m/s, rad/s, m/s upwards; ``age_s`` is its age at the query, seconds."""

    v_t: float
    v_r: float
    dz: float
    source: str = ''
    age_s: float = 0.0


@dataclass(frozen=True)
class MotionRange:
    """The fastest motion of a policy's training data along any axis: m/s, rad/s, and metres a
    control step.

    By default LIBERO's full command: 5 cm and 0.5 rad a step at 20 Hz (robosuite OSC_POSE).
    """

    v_t: float = 1.0
    v_r: float = 10.0
    step: float = 0.05


_SHARES = {
    'v_t_threshold': 'v_t', 'v_t_exit': 'v_t', 'v_r_threshold': 'v_r', 'v_r_exit': 'v_r',
    'dz_threshold': 'v_t', 'dz_exit': 'v_t', 'v_xy_threshold': 'v_t', 'history_unit': 'step',
}  # fmt: skip


@lru_cache(maxsize=64)
def in_si(params: PruningParams, motion: MotionRange) -> PruningParams:
    """``params`` with every speed that is a share of the fastest motion in m/s and rad/s.

    The paper's thresholds are shares of its policy's command range; a slower robot has slower
    ones. No exit is below its threshold.
    """
    found = {}
    for name, unit in _SHARES.items():
        value = getattr(params, name)
        found[name] = -value * getattr(motion, unit) if value < 0 else value
    for axis in ('v_t', 'v_r', 'dz'):
        found[f'{axis}_exit'] = max(found[f'{axis}_exit'], found[f'{axis}_threshold'])
    return replace(params, **found)


@dataclass(frozen=True)
class ControllerState:
    """What the controller remembers between queries: its hysteresis and its age."""

    fine: bool = False
    queries: int = 0


@dataclass(frozen=True)
class Decision:
    """The mode of one query, why, and the state for the next."""

    mode: Mode
    reason: str
    state: ControllerState


class Controller:
    """The action-aware controller (P1 section 4.4, P2).

    Fine where the end effector moves slowly and does not rise, coarse elsewhere. A speed that is
    unknown, stale or not a number means fine: less is pruned when less is known. ``motion`` is
    what thresholds given as shares are shares of.
    """

    def __init__(self, motion: MotionRange | None = None) -> None:
        self.motion = motion or MotionRange()

    def decide(
        self, speed: SpeedSample | None, params: PruningParams, state: ControllerState
    ) -> Decision:
        """Mode for one query."""
        params = in_si(params, self.motion)
        following = state.queries + 1
        if params.mode != 'auto':
            mode = Mode(params.mode)
            return Decision(
                mode, f'mode set to {params.mode}', ControllerState(mode is Mode.FINE, following)
            )
        doubt = _doubt(speed, params)
        if doubt:
            return Decision(Mode.FINE, f'fine: {doubt}', ControllerState(True, following))
        if state.queries < params.controller_warmup:
            reason = f'coarse: query {following} of {params.controller_warmup} of the warm-up'
            return Decision(Mode.COARSE, reason, ControllerState(False, following))
        assert speed is not None
        if state.fine:
            fast = _above(speed, v_t=params.v_t_exit, v_r=params.v_r_exit, dz=params.dz_exit)
            if fast:
                return Decision(Mode.COARSE, f'coarse: {fast}', ControllerState(False, following))
            return Decision(Mode.FINE, 'fine: still slow', ControllerState(True, following))
        slow, why = _slow(speed, params)
        mode = Mode.FINE if slow else Mode.COARSE
        return Decision(mode, f'{mode.value}: {why}', ControllerState(slow, following))


def known_translation(speed: SpeedSample | None, params: PruningParams) -> float | None:
    """The translation speed, m/s; ``None`` where the controller would not believe the sample."""
    return None if speed is None or _doubt(speed, params) else speed.v_t


def _doubt(speed: SpeedSample | None, params: PruningParams) -> str:
    if speed is None:
        return 'speed unknown'
    if not all(map(math.isfinite, (speed.v_t, speed.v_r, speed.dz))):
        return f'speed from {speed.source or "its source"} is not a number'
    if not speed.age_s <= params.speed_max_age:
        return f'speed is {speed.age_s:.2f} s old, more than {params.speed_max_age:g} s'
    if speed.v_t < 0 or speed.v_r < 0:
        return 'speed is negative'
    return ''


def _above(speed: SpeedSample, v_t: float, v_r: float, dz: float) -> str:
    if speed.v_t > v_t:
        return f'{speed.v_t:.3f} m/s > {v_t:g}'
    if speed.v_r > v_r:
        return f'{speed.v_r:.3f} rad/s > {v_r:g}'
    if speed.dz > dz:
        return f'rising at {speed.dz:.3f} m/s > {dz:g}'
    return ''


def _slow(speed: SpeedSample, params: PruningParams) -> tuple[bool, str]:
    if params.controller_rule == 'authors':
        planar = math.sqrt(max(0.0, speed.v_t**2 - speed.dz**2))
        slow = speed.v_t < params.v_t_threshold or (
            planar < params.v_xy_threshold
            and speed.dz < params.dz_threshold
            and speed.v_r < params.v_r_threshold
        )
        return slow, f'{speed.v_t:.3f} m/s, planar {planar:.3f} m/s, {speed.v_r:.3f} rad/s'
    if speed.v_t >= params.v_t_threshold:
        return False, f'{speed.v_t:.3f} m/s >= {params.v_t_threshold:g}'
    if speed.v_r >= params.v_r_threshold:
        return False, f'{speed.v_r:.3f} rad/s >= {params.v_r_threshold:g}'
    if speed.dz > params.dz_threshold:
        return False, f'rising at {speed.dz:.3f} m/s'
    return True, f'slow and not rising ({speed.v_t:.3f} m/s, {speed.v_r:.3f} rad/s)'


def history_offset(
    displacement: float | None, params: PruningParams, motion: MotionRange | None = None
) -> int:
    """Control steps back to the reference image, T = floor(b + k v) + c, clamped (P1, P2).

    ``displacement``: metres travelled since the previous query; one v is ``history_unit`` metres.
    Unknown or not finite: the largest T, since a longer look back sees more change.
    """
    if displacement is None or not math.isfinite(displacement):
        return params.history_max
    v = abs(displacement) / in_si(params, motion or MotionRange()).history_unit
    back = math.floor(params.history_intercept + params.history_slope * v) + params.history_offset
    return max(params.history_min, min(back, params.history_max))
