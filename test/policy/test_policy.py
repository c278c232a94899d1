"""The policy as a whole: it prunes, remembers, forgets by the rules, and refuses to lie."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from specprune_ros.models.config import ActionConfig
from specprune_ros.policy.action_extrapolator import check_extrapolation
from specprune_ros.policy.build import build_policy, resolve
from specprune_ros.policy.forward_step import forward_step
from specprune_ros.policy.memory import gap_limit
from specprune_ros.policy.observation import CameraImage, Observation, ObservationError
from specprune_ros.policy.result import PolicyError
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.pruning.interface import Mode, PruneSchedule, Selection
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.pruning.registry import names
from specprune_ros.pruning.rivals.base import BasePrunePass

STEP = 50_000_000  # ns
FAST = SpeedSample(v_t=1.0, v_r=0.0, dz=0.0, source='test', age_s=0.0)
SLOW = SpeedSample(v_t=0.0, v_r=0.0, dz=0.0, source='test', age_s=0.0)


@pytest.fixture
def policy():
    return build_policy(preset='tiny', device='cpu')


def look(step, instruction='lift the red cube', size=224, speed=FAST, seed=0):
    rng = np.random.default_rng(seed)
    images = {}
    for camera in ('agent', 'wrist'):
        pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
        pixels[:40, : 8 * (step % 20 + 1)] = 255  # something moves
        images[camera] = CameraImage(pixels, 10**12 + step * STEP)
    return Observation(
        images, instruction, np.zeros(8), speed, np.array([0.5 + 0.001 * step**2, 0.0, 0.2])
    )


def test_the_first_query_is_dense_and_says_why(policy):
    result = policy.act(look(0))
    assert result.mode is Mode.DENSE
    assert result.reset == 'start'
    assert 'first query after a reset' in result.reason
    assert result.tokens.mean == result.tokens.total == 512
    assert result.flops_ratio == pytest.approx(1.0, abs=0.01)
    assert not result.prior_valid


def test_the_second_query_prunes_with_prior_and_history(policy):
    policy.act(look(0))
    result = policy.act(look(1))
    assert result.mode is Mode.COARSE
    assert result.reset is None
    assert result.prior_valid
    assert result.history_age == pytest.approx(0.05)
    assert set(result.tokens.sets) >= {'global', 'local', 'dynamic'}
    assert all(count > 0 for name, count in result.tokens.sets.items() if name != 'fill')
    assert list(result.tokens.after) == sorted(result.tokens.after, reverse=True)
    assert result.tokens.mean < result.tokens.total
    assert result.flops_ratio < 0.8
    assert result.actions.shape == (8, 7)
    assert np.isfinite(result.actions).all()


def test_slow_motion_keeps_more(policy):
    policy.act(look(0))
    coarse = policy.act(look(1, speed=FAST)).tokens.mean
    fine = policy.act(look(2, speed=SLOW)).tokens.mean
    assert fine > coarse


def test_keep_all_is_the_dense_policy_bit_for_bit(policy):
    # Budgets that request every token: the pruning machinery runs, and takes nothing.
    params = PruningParams().replace(
        k_global=0, k_dynamic=0, k_local=256, alpha=1.0, fine_factor=1.0, prune_layers=[]
    )
    policy.set_params(params)
    policy.act(look(0))
    pruned = policy.act(look(1))
    assert pruned.mode is Mode.COARSE
    assert pruned.tokens.after == (512,)
    policy.set_params(params.replace(mode='dense'))
    policy.reset()
    dense = policy.act(look(1))
    assert dense.mode is Mode.DENSE
    assert np.array_equal(pruned.actions, dense.actions)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (dict(instruction='lift the blue cube'), 'new instruction'),
        (dict(step=-100), 'time went back by 5.05 s'),
        (dict(step=2000), 'no query for 99.95 s'),
        (dict(size=256), "camera 'agent' changed its image size"),
    ],
)
def test_memory_is_forgotten_by_the_rules(policy, change, reason):
    policy.act(look(0))
    before = policy.act(look(1))
    result = policy.act(look(change.pop('step', 2), **change))
    assert result.reset == reason
    assert result.mode is Mode.DENSE
    assert result.episode == before.episode + 1


def test_the_time_that_was_planned_between_two_queries_is_no_pause(policy):
    policy.act(look(0))
    policy.query_period = 90.0
    assert policy.act(look(2000)).reset is None
    policy.query_period = 0.0
    assert policy.act(look(4000)).reset == 'no query for 100.00 s'
    # 16 rows at 3 Hz are 5.3 s; 8 at 20 Hz change nothing.
    params, slow = PruningParams(), replace(policy.config, control_hz=3.0, chunk=16)
    assert gap_limit(params, slow, 0.1, 0.0) == pytest.approx(8.0)
    assert gap_limit(params, policy.config, 0.1, 0.0) == params.reset_gap == 5.0
    assert gap_limit(params, policy.config, 2.0, 0.0) == 6.0


@pytest.mark.parametrize('skip', [(), (2,)])
def test_layers_without_a_vision_token_count_in_the_mean_and_skipped_ones_do_not(policy, skip):
    class Nothing(BasePrunePass):
        def choose(self, boundary, rows):
            return Selection(torch.arange(0))

    schedule = PruneSchedule(prune={1: None}, skip=frozenset(skip))
    found = policy.act(look(0), details=True).details
    with torch.inference_mode():
        outputs = forward_step(
            policy.loaded, found.key, found.inputs, begin=lambda c: Nothing(c, schedule)
        )
    layers = policy.config.decoder.depth - len(skip)
    assert outputs.metadata.mean == pytest.approx(512 / layers)


def test_a_requested_reset_happens_once(policy):
    policy.act(look(0))
    policy.reset('requested')
    assert policy.act(look(1)).reset == 'requested'
    assert policy.act(look(2)).reset is None


def test_a_new_instruction_keeps_the_images(policy):
    policy.act(look(0))
    policy.act(look(1, instruction='lift the blue cube'))
    result = policy.act(look(2, instruction='lift the blue cube'))
    assert result.history_age == pytest.approx(0.1)


def test_parameters_take_effect_on_the_next_query_and_are_counted(policy):
    policy.act(look(0))
    first = policy.act(look(1))
    version = policy.set_params(policy.params.replace(alpha=0.4))
    second = policy.act(look(2))
    assert second.params_version == version == first.params_version + 1
    assert second.alpha == 0.4
    assert second.tokens.mean < first.tokens.mean


def test_parameters_that_do_not_fit_the_model_are_refused_and_nothing_changes(policy):
    before = policy.params
    with pytest.raises(ParamError, match='cameras_kept.*the model has 2'):
        policy.set_params(before.replace(cameras_kept=[5]))
    assert policy.params is before


def test_refresh_period_makes_every_nth_query_dense(policy):
    policy.set_params(PruningParams().replace(refresh_period=3))
    modes = [policy.act(look(i)).mode for i in range(7)]
    assert [m is Mode.DENSE for m in modes] == [True, False, False] * 2 + [True]


def test_a_image_that_changes_a_lot_asks_for_a_dense_query(policy):
    policy.set_params(PruningParams().replace(refresh_change=0.5))
    policy.act(look(0))
    assert policy.act(look(1)).mode is Mode.COARSE
    result = policy.act(look(2, seed=1))
    assert result.mode is Mode.DENSE
    assert 'of the patches changed' in result.reason
    assert result.history_age is not None  # what it was compared with


def test_a_query_that_is_dense_anyway_compares_with_nothing(policy):
    policy.act(look(0))
    first = policy.act(look(1, instruction='lift the blue cube'))  # the images stay
    policy.set_params(PruningParams().replace(mode='dense', refresh_change=0.5))
    forced = policy.act(look(2, instruction='lift the blue cube', seed=1))
    assert forced.reason == 'mode set to dense'
    for result in (first, forced):
        assert result.mode is Mode.DENSE
        assert result.history_steps is None and result.history_age is None


def test_keys_and_values_are_used_again_where_it_looks_as_at_their_query(policy):
    """What had changed since that query, but not since a few steps ago, was taken as static."""
    policy.set_params(PruningParams().replace(pruner='vla_cache', first_dense=False))
    policy.act(look(0, seed=0))
    for step in range(1, 8):  # another scene, that stands still from then on
        for camera, image in look(step, seed=1).images.items():
            policy.history.push(camera, image)
    moved = policy.act(look(8, seed=1))
    assert moved.flops_ratio > 0.99 and moved.history_steps == 8
    assert moved.history_age == pytest.approx(8 * policy.step_dt)
    still = policy.act(look(16, seed=1))
    assert still.flops_ratio < 0.99


@pytest.mark.parametrize('name', names())
def test_every_pruner_runs_behind_the_same_door(policy, name):
    policy.set_params(PruningParams().replace(pruner=name))
    # Some prune only once they know a few moves (each longer than the last here) or passes.
    results = [policy.act(look(i)) for i in range(6)]
    assert all(np.isfinite(r.actions).all() for r in results)
    if name == 'dense':
        assert results[-1].flops_ratio == pytest.approx(1.0)
    else:
        assert results[-1].flops_ratio < 1.0


def test_actions_that_are_not_finite_never_leave(policy):
    with torch.no_grad():
        policy.loaded.model.action_head.fc2.bias[0] = float('nan')
    with pytest.raises(PolicyError, match='not finite'):
        policy.act(look(0))
    with torch.no_grad():
        policy.loaded.model.action_head.fc2.bias[0] = 0.0
    assert 'after an error' in policy.act(look(1)).reset


def test_absurd_actions_never_leave(policy):
    policy.max_normalised_action = 1e-6
    with pytest.raises(PolicyError, match='is not believed'):
        policy.act(look(0))


@pytest.mark.parametrize(
    ('name', 'why'),
    [
        ('adp', 'displacement unknown'),
        ('vla_cache', 'no previous query'),
        ('vla_pruner', 'fewer than 3 past queries'),
    ],
)
def test_a_pass_that_falls_back_to_dense_says_dense_and_counts_as_one(policy, name, why):
    policy.set_params(
        PruningParams().replace(pruner=name, first_dense=False, refresh_period=5, adp_run=20)
    )
    results = [policy.act(look(i)) for i in range(12)]
    assert results[0].mode is Mode.DENSE and why in results[0].reason
    # The mode reported is the one the pass ran in.
    assert all((r.mode is Mode.DENSE) == (r.tokens.layers == ()) for r in results)
    dense = [i for i, r in enumerate(results) if r.mode is Mode.DENSE]
    due = [i for i, r in enumerate(results) if r.reason == 'every 5 queries']
    fell_back = [i for i in dense if i not in due]
    assert fell_back[0] == 0 and due[0] - fell_back[-1] == 5
    # What is said of a fall-back is the reason, not one more note at every query.
    assert not any(result.notes for result in results)


def test_details_are_what_the_query_itself_computed(policy):
    policy.act(look(0))
    plain = policy.act(look(1))
    policy.reset()
    policy.act(look(0))
    checked = policy.act(look(1), details=True)
    assert plain.details is None
    assert checked.episode == plain.episode + 1
    details = checked.details
    assert details.key.mode is checked.mode is Mode.COARSE
    assert tuple(len(ids) for _, ids in details.outcome.kept) == checked.tokens.after
    assert {n: int(s.sum()) for n, s in details.outcome.sets.items()} == checked.tokens.sets
    assert details.similarity.shape == (512,)
    with torch.inference_mode():
        again = forward_step(policy.loaded, details.key, details.inputs, details=True)
    assert torch.equal(again.details.output.hidden, details.output.hidden)


def test_a_bad_observation_changes_nothing(policy):
    policy.act(look(0))
    bad = look(1)
    bad.images['wrist'].pixels.resize((0, 0, 3), refcheck=False)
    with pytest.raises(ObservationError):
        policy.act(bad)
    assert policy.act(look(2)).reset is None


def test_the_scheduler_answers_for_the_model_while_the_hand_glides(policy):
    policy.set_params(PruningParams().replace(scheduler='ridge', scheduler_v_max=2.0))
    results = [policy.act(look(4 * i)) for i in range(8)]  # four steps are executed in between
    modes = [r.mode for r in results]
    # Six executed actions are needed, and at most half of them may be extrapolated ones.
    assert modes[:2] == [Mode.DENSE, Mode.COARSE]
    assert Mode.SKIPPED in modes[2:]
    assert Mode.COARSE in modes[3:]
    skipped = results[modes.index(Mode.SKIPPED)]
    assert skipped.flops == 0.0 and skipped.tokens.mean == 0.0
    assert skipped.actions.shape == (8, 7) and np.isfinite(skipped.actions).all()
    # Slow motion is the model's alone.
    assert policy.act(look(36, speed=SLOW)).mode is Mode.FINE


def test_keys_and_values_are_compared_with_the_images_they_are_of(policy):
    """A query without the model leaves them as they were; its images are no longer theirs."""
    policy.set_params(
        PruningParams().replace(pruner='vla_cache', scheduler='ridge', scheduler_v_max=2.0)
    )
    ran, ages = 0, []
    for number in range(8):
        result = policy.act(look(4 * number))
        if result.mode is not Mode.SKIPPED:
            if number:
                assert result.history_age == pytest.approx(0.2 * (number - ran))
                ages.append(number - ran)
            ran = number
    assert max(ages) > 1


def test_a_stale_speed_lets_no_query_go_without_the_model(policy):
    policy.set_params(PruningParams().replace(scheduler='ridge', scheduler_v_max=2.0))
    old = replace(FAST, age_s=3.0)
    modes = {policy.act(look(4 * i, speed=old)).mode for i in range(8)}
    assert Mode.SKIPPED not in modes


def test_a_pruner_that_goes_by_speed_gets_none_that_is_stale(policy):
    policy.set_params(PruningParams().replace(pruner='sp_vla'))
    for age, seen in ((0.1, FAST.v_t), (3.0, None)):
        result = policy.act(look(0, speed=replace(FAST, age_s=age)), details=True)
        assert result.details.inputs.speed_xyz == seen


def test_actions_of_an_episode_that_is_over_are_not_extrapolated(policy):
    ridge = PruningParams().replace(scheduler='ridge', scheduler_v_max=2.0)
    policy.set_params(ridge)
    assert [policy.act(look(4 * i)).mode for i in range(3)][-1] is Mode.SKIPPED
    policy.set_params(ridge.replace(scheduler='none'))
    policy.reset()
    policy.act(look(12))
    policy.set_params(ridge)
    assert policy.act(look(16)).mode is Mode.COARSE  # four actions are known, not six
    assert policy.act(look(20)).mode is Mode.SKIPPED


JOINTS = dict(kind='joint_position', rotation='none', reference='none', gripper_dim=-1)


@pytest.mark.parametrize(
    ('action', 'refused'),
    [
        (ActionConfig(), ''),
        (ActionConfig(kind='joint_delta', rotation='none'), ''),
        (ActionConfig(**JOINTS, dims=('j1', 'j2')), ''),
        (ActionConfig(**JOINTS, dims=('j1', 'left_gripper')), r'grippers .*left_gripper'),
        (ActionConfig(gripper_dim=-1), 'grippers among the columns'),
        (ActionConfig(reference='observation'), 'ee_delta to reference observation'),
        (ActionConfig(kind='joint_delta', reference='observation'), 'joint_delta'),
        (ActionConfig(kind='ee_pose', reference='none'), 'ee_pose'),
        (ActionConfig(rotation='quaternion'), 'quaternion'),
    ],
)
def test_only_rows_that_a_line_leads_through_are_extrapolated(action, refused):
    if refused:
        with pytest.raises(ParamError, match=f'scheduler: .*{refused}'):
            check_extrapolation(action)
    else:
        check_extrapolation(action)


def test_extrapolation_is_refused_where_the_parameters_are_set(policy):
    ridge = PruningParams().replace(scheduler='ridge')
    policy.set_params(ridge)
    policy.config = replace(policy.config, action=ActionConfig(reference='observation'))
    with pytest.raises(ParamError, match='scheduler: rows of kind ee_delta'):
        policy.set_params(ridge)
    policy.set_params(PruningParams())


def test_moves_are_no_attention_and_scores_are(policy):
    for name, has in (('adp', False), ('vla_pruner', True)):
        policy.set_params(PruningParams().replace(pruner=name, first_dense=False))
        results = [policy.act(look(i)) for i in range(6)]
        pruned = [result.prior_valid for result in results if result.mode is not Mode.DENSE]
        assert set(pruned) == {has}, name


def test_unknown_words_are_said(policy):
    policy.act(look(0))
    result = policy.act(look(1, instruction='defenestrate the red cube'))
    assert any('defenestrate' in note for note in result.notes)


def test_deviation_from_dense_is_measured_when_requested(policy):
    policy.measure_deviation = True
    assert not policy.act(look(0)).action_deviation.any()  # dense against dense
    pruned = policy.act(look(1))
    assert pruned.action_deviation.shape == (7,)
    assert pruned.action_deviation.max() > 0


def test_devices_and_formats_are_resolved_or_named():
    assert resolve('cpu', 'auto') == (torch.device('cpu'), torch.float32)
    with pytest.raises(ValueError, match='is no device'):
        resolve('toaster', 'auto')
    with pytest.raises(ValueError, match='none of auto'):
        resolve('cpu', 'int3')


def test_bfloat16_is_refused_on_a_gpu_without_it(monkeypatch):
    """A Turing card, as PyTorch describes it."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'Tesla T4')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    with pytest.raises(ValueError, match='Tesla T4 has no bfloat16 units; use float16 or auto'):
        resolve('cuda', 'bfloat16')
    assert resolve('auto', 'auto') == (torch.device('cuda:0'), torch.float16)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    assert resolve('cuda:0', 'auto')[1] is torch.bfloat16
    with pytest.raises(ValueError, match='there are 1 GPUs'):
        resolve('cuda:1', 'auto')
