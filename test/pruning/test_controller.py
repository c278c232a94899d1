"""Coarse or fine, and how far back to look."""

import math

import pytest

from specprune_ros.pruning.controller import (
    Controller,
    ControllerState,
    MotionRange,
    SpeedSample,
    history_offset,
    in_si,
)
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import PruningParams

PAPER = PruningParams.preset_of('paper')
OURS = PruningParams()
AUTHORS = PruningParams.preset_of('authors')


def decide(speed, params=OURS, state=None):
    return Controller().decide(speed, params, state or ControllerState())


def test_fine_needs_every_speed_below_its_threshold():
    assert decide(SpeedSample(0.1, 0.5, -0.05)).mode is Mode.FINE
    assert decide(SpeedSample(0.35, 0.5, -0.05)).mode is Mode.COARSE  # not below
    assert decide(SpeedSample(0.1, 2.0, -0.05)).mode is Mode.COARSE
    assert decide(SpeedSample(0.1, 0.5, 0.01)).mode is Mode.COARSE  # rising
    assert decide(SpeedSample(0.1, 0.5, 0.0)).mode is Mode.FINE  # dz <= 0


@pytest.mark.parametrize(
    ('speed', 'why'),
    [
        (None, 'speed unknown'),
        (SpeedSample(math.nan, 0.0, 0.0, 'twist'), 'twist is not a number'),
        (SpeedSample(1.0, 1.0, math.inf), 'not a number'),
        (SpeedSample(1.0, 1.0, 0.0, 'twist', age_s=0.8), '0.80 s old, more than 0.5 s'),
        (SpeedSample(1.0, 1.0, 0.0, 'twist', age_s=math.nan), 'old'),
        (SpeedSample(-1.0, 1.0, 0.0), 'negative'),
    ],
)
def test_less_is_pruned_when_less_is_known(speed, why):
    decision = decide(speed)
    assert decision.mode is Mode.FINE
    assert why in decision.reason


def test_fine_mode_has_hysteresis():
    state = ControllerState(fine=True)
    # Between threshold 0.35 and exit 0.42 nothing changes, in either direction.
    between = SpeedSample(0.4, 0.5, 0.0)
    assert decide(between, OURS, state).mode is Mode.FINE
    assert decide(between, OURS, ControllerState(fine=False)).mode is Mode.COARSE
    assert decide(SpeedSample(0.43, 0.5, 0.0), OURS, state).mode is Mode.COARSE
    assert decide(SpeedSample(0.1, 2.5, 0.0), OURS, state).mode is Mode.COARSE
    assert decide(SpeedSample(0.1, 0.5, 0.21), OURS, state).mode is Mode.COARSE
    assert decide(SpeedSample(0.1, 0.5, 0.1), OURS, state).mode is Mode.FINE


def test_paper_leaves_fine_mode_at_the_thresholds():
    state = ControllerState(fine=True)
    assert decide(SpeedSample(0.36, 0.5, 0.0), PAPER, state).mode is Mode.COARSE
    assert decide(SpeedSample(0.1, 0.5, 0.3), PAPER, state).mode is Mode.FINE


def test_a_slow_hover_at_the_threshold_does_not_chatter():
    state, modes = ControllerState(), []
    for step in range(40):
        decision = decide(SpeedSample(0.35 + 0.03 * (-1) ** step, 0.1, 0.0), OURS, state)
        state = decision.state
        modes.append(decision.mode)
    assert sum(a is not b for a, b in zip(modes, modes[1:], strict=False)) <= 1


def test_authors_rule_is_or_with_a_warm_up():
    fast_turn = SpeedSample(0.3, 5.0, 0.0)
    warm = ControllerState(queries=2)
    assert decide(fast_turn, AUTHORS, ControllerState()).mode is Mode.COARSE
    assert decide(fast_turn, AUTHORS, warm).mode is Mode.FINE  # translation alone is slow
    # v_t 0.36 is not below 0.35, but planar speed sqrt(0.36^2 - 0.35^2) = 0.084 < 0.1.
    assert decide(SpeedSample(0.36, 1.0, -0.35), AUTHORS, warm).mode is Mode.FINE
    assert decide(SpeedSample(0.36, 1.0, 0.0), AUTHORS, warm).mode is Mode.COARSE


def test_the_mode_can_be_forced():
    for mode in ('dense', 'coarse', 'fine'):
        decision = decide(SpeedSample(9.0, 9.0, 9.0), OURS.replace(mode=mode))
        assert decision.mode is Mode(mode)
        assert mode in decision.reason


def test_history_offset_follows_the_papers_line():
    # T = floor(7 - v) + 4, v = metres / 0.05; paper: at most 11.
    for metres, steps in [(0.0, 11), (0.02, 10), (0.05, 10), (0.3, 5), (0.5, 1), (5.0, 1)]:
        assert history_offset(metres, PAPER) == steps
    # Ours looks back six steps at most: 0.15 m is 8 by the line, 0.3 m is 5.
    assert [history_offset(m, OURS) for m in (0.0, 0.15, 0.3)] == [6, 6, 5]
    # Authors: floor(-16/18 v + 22/3) + 3, at most 6; v = 6 gives floor(2) + 3 = 5.
    assert [history_offset(m, AUTHORS) for m in (0.0, 0.3)] == [6, 5]


def test_history_offset_of_an_unknown_move_is_the_longest():
    assert history_offset(None, OURS) == 6
    assert history_offset(math.nan, PAPER) == 11
    assert history_offset(-0.3, OURS) == history_offset(0.3, OURS)


SLOW_ARM = MotionRange(v_t=0.12, v_r=1.0, step=0.006)


def test_thresholds_are_shares_of_the_policys_fastest_motion():
    """A robot that never moves faster than 0.12 m/s is coarse at 0.1 m/s and fine at 0.03."""
    slow = Controller(SLOW_ARM)
    assert slow.decide(SpeedSample(0.1, 0.0, 0.0), OURS, ControllerState()).mode is Mode.COARSE
    assert slow.decide(SpeedSample(0.03, 0.0, 0.0), OURS, ControllerState()).mode is Mode.FINE
    assert slow.decide(SpeedSample(0.03, 0.3, 0.0), OURS, ControllerState()).mode is Mode.COARSE
    rising = slow.decide(SpeedSample(0.03, 0.0, 0.03), OURS, ControllerState(fine=True))
    assert rising.mode is Mode.COARSE  # 0.2 of 0.12 m/s
    # The same chunk, as a share of what the arm can do, looks back as far.
    for units in (0.0, 1.0, 4.0, 7.0):
        assert history_offset(units * 0.006, PAPER, SLOW_ARM) == history_offset(
            units * 0.05, PAPER
        )


def test_explicit_si_values_win():
    params = OURS.replace(v_t_threshold=0.2, v_t_exit=0.25, history_unit=0.01)
    si = in_si(params, SLOW_ARM)
    assert (si.v_t_threshold, si.v_t_exit, si.history_unit) == (0.2, 0.25, 0.01)
    assert (si.v_r_threshold, si.dz_threshold) == (0.2, 0.0)
    fast = Controller(SLOW_ARM).decide(SpeedSample(0.19, 0.0, 0.0), params, ControllerState())
    assert fast.mode is Mode.FINE


def test_an_exit_given_as_a_share_never_lies_below_an_si_threshold():
    si = in_si(OURS.replace(v_t_threshold=0.2), SLOW_ARM)
    assert si.v_t_exit == si.v_t_threshold == 0.2
