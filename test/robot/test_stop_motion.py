"""The stop: braking from any commanded motion within velocity, acceleration and jerk limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specprune_ros.robot.stop_motion import (
    JerkWindow,
    MotionState,
    StopMotion,
    brake,
    window_length,
)

DT = 0.01
SLACK = 1.0 + 1e-6
speeds = st.floats(-1.0, 1.0)


@settings(max_examples=300, deadline=None)
@given(st.tuples(speeds, speeds, speeds), st.floats(1e-4, 0.5))
def test_braking_keeps_the_change_and_brakes_every_axis(velocity, change):
    after = brake(velocity, change)
    assert math.dist(velocity, after) <= change * SLACK
    for before, now in zip(velocity, after, strict=True):
        assert now * before >= 0.0
        least = min(abs(before), change / math.sqrt(3.0))
        assert abs(now) <= abs(before) - least * (1.0 - 1e-6) + 1e-15


def _inner(rng: np.random.Generator, steps: int, size: int, speed: float, change: float):
    """Inner velocities that change by at most ``change`` and stay within ``speed``."""
    at = np.zeros(size)
    for _ in range(steps):
        goal = rng.normal(size=size)
        goal *= speed * rng.random() / np.linalg.norm(goal)
        step = goal - at
        far = np.linalg.norm(step)
        at = goal if far <= change else at + step * (change / far)
        yield at.copy()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 120), st.sampled_from([20.0, 80.0, 200.0]))
def test_a_stop_from_any_motion_keeps_speed_acceleration_and_jerk(seed, steps, jerk):
    speed, acceleration = 0.4, 4.0
    window = JerkWindow(window_length(acceleration, jerk, DT), 6)
    rng = np.random.default_rng(seed)
    turns = _inner(rng, steps, 3, 1.0, 8.0 * DT)
    sent = [np.zeros(6)] * 2
    for linear, angular in zip(
        _inner(rng, steps, 3, speed, acceleration * DT), turns, strict=True
    ):
        sent.append(np.array(window.push((*linear, *angular))))
    place = np.array([0.5, 0.0, 0.3, 0.0, 0.0, 0.0, 1.0])
    state = MotionState(window.rows, np.array([acceleration, 8.0]), DT, place)
    stop = StopMotion.of(state)
    assert not stop.velocities[-1].any()
    sent = np.array([*sent, *stop.velocities, np.zeros(6)])
    linear = sent[:, :3]
    assert np.linalg.norm(linear, axis=1).max() <= speed * SLACK
    changes = np.diff(linear, axis=0) / DT
    assert np.linalg.norm(changes, axis=1).max() <= acceleration * SLACK
    assert np.linalg.norm(np.diff(changes, axis=0) / DT, axis=1).max() <= jerk * SLACK
    assert stop.seconds <= math.sqrt(3.0) * speed / acceleration + 0.3 + (window.length + 2) * DT
    # The places are those the velocities lead to, and start where the last command was.
    ends = place[:3] + np.cumsum(stop.velocities[:, :3], axis=0) * DT
    assert np.abs(stop.places[:, :3] - ends).max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_joints_brake_each_within_its_own_limit(seed):
    rng = np.random.default_rng(seed)
    accelerations, jerk = np.array([2.0, 5.0, 10.0]), np.array([100.0, 250.0, 500.0])
    window = JerkWindow(window_length(2.0, 100.0, DT), 3)
    at = np.zeros(3)
    for _ in range(50):
        at = np.clip(at + rng.uniform(-1, 1, 3) * accelerations * DT, -1.0, 1.0)
        last = window.push(at)
    before = window.push(at)
    state = MotionState(window.rows, accelerations, DT, np.zeros(3), joints=('a', 'b', 'c'))
    stop = StopMotion.of(state)
    sent = np.array([last, before, *stop.velocities, np.zeros(3)])
    changes = np.diff(sent, axis=0) / DT
    assert (np.abs(changes) <= accelerations * SLACK).all()
    assert (np.abs(np.diff(changes, axis=0)) / DT <= jerk * SLACK).all()
    assert np.allclose(stop.places[-1], stop.velocities.sum(axis=0) * DT)


def test_at_rest_the_stop_is_one_command_to_hold():
    place = np.array([0.5, 0.0, 0.3, 0.0, 0.0, 0.0, 1.0])
    stop = StopMotion.of(MotionState(np.zeros((4, 6)), np.array([1.0, 1.0]), DT, place))
    assert len(stop.velocities) == 1
    assert stop.poses[0].position == (0.5, 0.0, 0.3)


def test_what_is_pending_is_what_is_still_sent_when_nothing_new_is_requested():
    window = JerkWindow(5, 1)
    for v in (0.1, 0.2, 0.3):
        window.push((v,))
    pending = window.pending(DT)[0]
    assert pending == pytest.approx(sum(window.push((0.0,))[0] for _ in range(5)) * DT)
    assert window.at_rest


def test_without_a_jerk_limit_nothing_is_averaged():
    assert window_length(4.0, math.inf, DT) == 1
    assert window_length(4.0, 200.0, DT) == 4
