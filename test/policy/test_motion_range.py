"""The fastest motion of a policy, from its statistics and control rate."""

from dataclasses import replace

import numpy as np
import pytest

from specprune_ros.models.config import ActionConfig
from specprune_ros.models.load import random_policy_model
from specprune_ros.models.statistics import Statistics
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.motion_range import motion_range
from specprune_ros.pruning.controller import MotionRange
from specprune_ros.sim.training.export import SHIPPED


@pytest.fixture(scope='module')
def loaded():
    return random_policy_model('tiny')


def with_statistics(loaded, low, high, **changes):
    action = replace(ActionConfig(), **changes)
    scales = Statistics(np.array(low), np.array(high))
    return replace(loaded, statistics=scales, config=replace(loaded.config, action=action))


LOW = (-0.02, -0.015, -0.01, -0.03, -0.03, -0.1, 0.0)
HIGH = (0.01, 0.015, 0.02, 0.03, 0.03, 0.05, 1.0)


def test_the_largest_step_times_the_rate(loaded):
    made = with_statistics(loaded, LOW, HIGH)
    rate = made.config.control_hz
    found = motion_range(made)
    assert found.step == pytest.approx(0.02)
    assert found.v_t == pytest.approx(0.02 * rate) and found.v_r == pytest.approx(0.1 * rate)


def test_command_units_are_scaled_to_si(loaded):
    """LIBERO's: -1 to 1 of 5 cm and 0.5 rad a step."""
    scale = (0.05,) * 3 + (0.5,) * 3 + (1.0,)
    made = with_statistics(loaded, [-1.0] * 7, [1.0] * 7, scale=scale)
    found = motion_range(made)
    assert (found.step, found.v_t) == (pytest.approx(0.05), 0.05 * made.config.control_hz)


@pytest.mark.parametrize('changes', [{'kind': 'ee_pose'}, {'reference': 'observation'}])
def test_where_actions_are_no_steps_the_papers_units_stand(loaded, changes):
    assert motion_range(with_statistics(loaded, LOW, HIGH, **changes)) == MotionRange()


def test_of_a_mean_and_its_deviation_nearly_all_data_count(loaded):
    """One deviation from the mean was taken for the fastest motion: 2.5 times too slow."""
    made = with_statistics(loaded, LOW, HIGH)
    wide = replace(made, statistics=replace(made.statistics, action_reach=2.5))
    assert motion_range(wide).step == pytest.approx(0.005 + 2.5 * 0.015)
    state = Statistics(None, None, None, np.array([-1.0]), np.array([1.0]), proprio_reach=2.5)
    assert state.far_outside(np.array([4.0])) == ''
    assert '(training: -2.5 to 2.5)' in state.far_outside(np.array([8.0]))


def test_statistics_of_offsets_to_the_state_say_nothing_of_motion():
    """pi0 on LIBERO: 32 rad/s of a wrist that is turned by pi."""
    pi0 = random_policy_model('pi0-tiny')
    known = with_statistics(pi0, LOW, HIGH)
    assert motion_range(known).step == pytest.approx(0.02)
    relative = known.config.override({'flow': {'relative': [0, 1, 2, 3, 4, 5]}})
    assert motion_range(replace(known, config=relative)) == MotionRange()


def test_without_statistics_the_papers_units_stand(loaded):
    assert motion_range(loaded) == MotionRange()


def test_the_simulated_arm_has_coarse_queries():
    """It never moves at LIBERO's 0.35 m/s."""
    policy = build_policy(str(SHIPPED), device='cpu', threads=1)
    assert 0.05 < policy.motion.v_t < 0.3 and policy.motion.v_r < 3.0
    threshold = policy.thresholds
    assert threshold.v_t == pytest.approx(0.35 * policy.motion.v_t)
    assert threshold.history_unit == policy.motion.step
