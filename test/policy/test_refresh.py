"""Dense passes between queries: an unbiased prior off the critical path."""

import time

import numpy as np
import pytest
import torch

from specprune_ros.policy.build import build_policy
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.pruning.interface import Mode
from specprune_ros.pruning.params import PruningParams

STEP = 50_000_000  # ns
FAST = SpeedSample(v_t=1.0, v_r=0.0, dz=0.0, source='test', age_s=0.0)


def look(step, instruction='lift the red cube'):
    rng = np.random.default_rng(0)
    images = {}
    for camera in ('agent', 'wrist'):
        pixels = rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)
        pixels[:40, : 8 * (step % 20 + 1)] = 255  # something moves
        images[camera] = CameraImage(pixels, 10**12 + step * STEP)
    position = np.array([0.5 + 0.001 * step**2, 0.0, 0.2])
    return Observation(images, instruction, np.zeros(8), FAST, position)


def never():
    return False


@pytest.fixture
def policy():
    made = build_policy(
        preset='tiny', device='cpu', threads=1, params=PruningParams(refresh_when='slack')
    )
    made.act(look(0))
    made.act(look(8))
    return made


def dense_prior(observation):
    """What a policy that never prunes attends to at this observation."""
    dense = build_policy(preset='tiny', device='cpu', threads=1)
    dense.act(observation)
    return dense._memory.carry['prior']


def test_the_prior_becomes_that_of_a_dense_pass(policy):
    pruned = policy._memory.carry['prior'].clone()
    between = look(12)
    assert policy.refresh(between, never)
    prior = policy._memory.carry['prior']
    assert not torch.allclose(prior, pruned)
    torch.testing.assert_close(prior, dense_prior(between))


def test_the_next_query_accounts_for_it_apart(policy):
    assert policy.refresh(look(12), never)
    result = policy.act(look(16))
    assert result.mode is Mode.COARSE and result.prior_valid
    assert result.refreshes.done == 1 and result.refreshes.given_up == 0
    assert result.flops_ratio < 0.8  # the query's own
    assert result.refreshes.flops == pytest.approx(result.flops / result.flops_ratio, rel=0.01)
    assert result.refreshes.seconds > 0
    assert policy.act(look(24)).refreshes.done == 0


def test_it_is_given_up_as_soon_as_a_query_is_due(policy):
    prior = policy._memory.carry['prior']
    requested = []

    def due():
        requested.append(time.monotonic())
        return len(requested) > 2  # before the pass, before layer 1, before layer 2

    assert not policy.refresh(look(12), due)
    assert len(requested) == 3 < policy.config.decoder.depth
    assert policy._memory.carry['prior'] is prior
    result = policy.act(look(16))
    assert (result.refreshes.done, result.refreshes.given_up) == (0, 1)


def test_a_look_that_does_not_continue_the_last_query_is_left_alone(policy):
    prior = policy._memory.carry['prior']
    assert not policy.refresh(look(12, instruction='lift the blue cube'), never)
    assert not policy.refresh(look(4), never)  # before the last query
    policy.reset('requested')
    assert not policy.refresh(look(12), never)
    assert policy._memory.carry.get('prior') is prior


@pytest.mark.parametrize('changes', [{'refresh_when': 'query'}, {'refresh_when': 'never'}])
def test_only_where_requested_for(changes):
    policy = build_policy(
        preset='tiny', device='cpu', threads=1, params=PruningParams().replace(**changes)
    )
    policy.act(look(0))
    assert not policy.refreshes_in_slack and not policy.refresh(look(4), never)


def test_pruners_without_a_prior_are_left_alone():
    policy = build_policy(
        preset='tiny', device='cpu', threads=1,
        params=PruningParams(pruner='fastv', refresh_when='slack'),
    )  # fmt: skip
    policy.act(look(0))
    assert not policy.refreshes_in_slack and not policy.refresh(look(4), never)


@pytest.mark.parametrize('when', ['slack', 'never'])
def test_no_query_is_made_dense_for_the_prior(when):
    params = PruningParams(refresh_when=when, refresh_period=2, refresh_change=0.0)
    policy = build_policy(preset='tiny', device='cpu', threads=1, params=params)
    modes = [policy.act(look(8 * n)).mode for n in range(4)]
    assert modes[0] is Mode.DENSE and set(modes[1:]) == {Mode.COARSE}


def test_the_images_of_the_look_back_are_prepared_in_the_slack(policy):
    """The query then prepares its own images only, and compares the same ones."""
    other = build_policy(preset='tiny', device='cpu', threads=1)
    for step in (0, 8):
        other.act(look(step))
    for made in (policy, other):
        for step in range(9, 16):
            for camera, image in look(step).images.items():
                made.history.push(camera, image)
    following = look(16)
    # 0.2 m: this policy's own motion means nothing.
    policy.prepare_reference(following.stamp_ns, never, displacement=0.2)
    prepared = []
    for made in (policy, other):
        calls = []
        image = made.loaded.preprocessor.image
        made.loaded.preprocessor.image = lambda *a, i=image, c=calls: c.append(1) or i(*a)
        prepared.append((made.act(following).history_age, len(calls)))
    assert prepared[0][0] == prepared[1][0]
    assert prepared[0][1] == 2 < prepared[1][1] == 4


def test_one_slow_pass_does_not_keep_refreshes_off(policy):
    usual = policy.dense_seconds
    policy._refresher.took.appendleft(100.0)
    assert policy.dense_seconds == 100.0
    policy.skip_refresh()
    assert policy.dense_seconds == usual
    # A lone one is believed less and less.
    for _ in range(3):
        policy.skip_refresh()
    assert policy.dense_seconds == pytest.approx(0.8**3 * usual)
    assert policy.refresh(look(12), never)
    assert policy.dense_seconds == max(policy._refresher.took)


def test_a_pass_given_up_late_counts_as_that_long_at_least(policy):
    policy._refresher.took.clear()
    requested = []

    def due():
        time.sleep(0.01)
        requested.append(time.monotonic())
        return len(requested) > 2

    assert not policy.refresh(look(12), due)
    assert policy.dense_seconds > 0.01


def test_the_cold_pass_of_the_warm_up_does_not_count(policy):
    policy.warm_up()
    assert policy.dense_seconds == 0.0
    policy.act(look(0))
    assert policy.dense_seconds > 0.0


def test_where_no_prior_is_remembered_none_is_made():
    params = PruningParams().replace(
        refresh_when='slack', layers_global=[], confidence_when='first'
    )
    policy = build_policy(preset='tiny', device='cpu', threads=1, params=params)
    for step in (0, 8):
        policy.act(look(step))
    assert policy._memory.carry  # the layers' weights
    assert not policy.refreshes_in_slack and not policy.refresh(look(12), never)


def test_no_prior_is_made_for_a_query_that_will_forget_it(policy):
    prior = policy._memory.carry['prior']
    policy.set_params(policy.params.replace(layers_global=[]))
    assert not policy.refresh(look(12), never)
    assert policy._memory.carry['prior'] is prior


def test_no_prior_is_made_where_every_query_is_dense(policy):
    policy.set_params(policy.params.replace(mode='dense'))
    assert not policy.refreshes_in_slack and not policy.refresh(look(12), never)
