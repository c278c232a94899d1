"""Flow policies in the loop: cameras that come and go, pruning of the prefix, robots, chunks that
go on from the one before.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import flow_packs

from specprune_ros.models.config import FlowConfig
from specprune_ros.models.families.pi0_robots import model_actions, model_state, robot_actions
from specprune_ros.models.load import load_policy_model, save_policy_model
from specprune_ros.models.presets import BENCH_INSTRUCTION, PI0_3B
from specprune_ros.models.statistics import Statistics
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.dense_pass import compare_with_dense
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.observation import CameraImage, Observation, ObservationError
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.real_time_chunking import (
    ChunkingRules,
    Continuation,
    guidance_strength,
    guide,
    prefix_weights,
)
from specprune_ros.pruning.interface import Mode, RowGroup
from specprune_ros.pruning.metrics import best_tokens
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.pruning.registry import names
from specprune_ros.pruning.rivals.base import KeepAll
from specprune_ros.pruning.specprune import rows_or_action

PACKS = flow_packs()
STEP = 50_000_000  # ns
CAMERAS = ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')


def load(name, **params):
    loaded = load_policy_model(PACKS / name / 'checkpoint', progress=False)
    return Policy(loaded, PruningParams().replace(**params), max_normalised_action=float('inf'))


@pytest.fixture
def policy():
    return load('pi0_openpi')  # 256 patches a camera, as the real ones


def look(step=0, cameras=CAMERAS[:2], state=None, instruction='open the microwave'):
    rng = np.random.default_rng(0)
    images = {}
    for camera in cameras:
        pixels = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
        pixels[: 4 + 4 * step, :40] = 255
        images[camera] = CameraImage(pixels, 10**12 + step * STEP)
    return Observation(images, instruction, np.full(8, 0.1) if state is None else state)


# Cameras.


def test_cameras_are_found_by_name_in_any_order(policy):
    there, back = look(), look(cameras=CAMERAS[1::-1])
    back = replace(back, images={name: there.images[name] for name in reversed(there.images)})
    noise = policy.loaded.model.noise(0).numpy()
    first = policy.act(there, noise=noise)
    policy.reset()
    assert np.array_equal(policy.act(back, noise=noise).actions, first.actions)
    assert first.tokens.total == 2 * 256


def test_an_absent_camera_costs_nothing(policy):
    one = policy.act(look(cameras=CAMERAS[:1]))
    policy.reset()
    three = policy.act(look(cameras=CAMERAS))
    assert (one.tokens.total, three.tokens.total) == (256, 768)
    assert one.flops < three.flops / 2
    assert one.flops_ratio == three.flops_ratio == pytest.approx(1.0)


def test_a_camera_that_comes_or_goes_is_a_new_start(policy):
    policy.act(look(0))
    assert policy.act(look(1, cameras=CAMERAS)).reset == 'other cameras'


def test_an_unknown_camera_is_refused_with_the_names(policy):
    with pytest.raises(ObservationError, match='cameras given: elbow; the model knows base_0_rgb'):
        policy.act(look(cameras=('elbow',)))
    with pytest.raises(ObservationError, match='cameras given: none'):
        policy.act(replace(look(), images={}))


def test_a_node_names_some_of_the_cameras_in_order(policy):
    policy.check_cameras(CAMERAS[::2])
    for wrong in (CAMERAS[1::-1], ('elbow',), ()):
        with pytest.raises(ValueError, match='some of them, by name and in this order'):
            policy.check_cameras(wrong)


# Pruning.


def test_keep_all_is_dense_bit_for_bit(policy):
    model, tokenizer = policy.loaded.model, policy.loaded.tokenizer
    prompt = tokenizer.encode('open the microwave')
    pixels = policy.loaded.preprocessor.normalise(torch.randint(0, 256, (2, 224, 224, 3)))
    state, noise = torch.zeros(8), model.noise(3)
    with torch.inference_mode():
        embedded = model.embed(pixels, prompt)
        results = []
        for prune in (None, KeepAll(embedded.layout)):
            output = model.decoder(
                embedded.hidden, embedded.layout, prune, read=model.read(embedded.layout)
            )
            results.append(model.sample(output, embedded.layout, noise, state, prune=prune))
    assert torch.equal(*results)


def test_budgets_that_ask_for_everything_are_dense_bit_for_bit(policy):
    params = PruningParams().replace(
        k_global=0, k_dynamic=0, k_local=256, alpha=1.0, fine_factor=1.0, prune_layers=[]
    )
    policy.set_params(params)
    noise = policy.loaded.model.noise(0).numpy()
    policy.act(look(0))
    pruned = policy.act(look(1), noise=noise)
    assert (pruned.mode, pruned.tokens.after) == (Mode.FINE, (512,))
    policy.set_params(params.replace(mode='dense'))
    policy.reset()
    assert np.array_equal(policy.act(look(1), noise=noise).actions, pruned.actions)


def test_the_second_query_is_pruned_with_the_experts_attention_as_its_prior(policy):
    first = policy.act(look(0))
    assert first.mode is Mode.DENSE
    second = policy.act(look(1))
    assert second.prior_valid
    assert second.history_age == pytest.approx(0.05)
    assert {'global', 'local', 'dynamic'} <= set(second.tokens.sets)
    assert all(second.tokens.sets[name] > 0 for name in ('global', 'local', 'dynamic'))
    assert second.tokens.mean < 512
    assert second.flops_ratio < 1
    assert second.prior_recall is not None
    assert np.isfinite(second.actions).all()


def test_the_prior_is_what_the_action_rows_attended_to_in_the_last_steps(policy):
    result = {}
    model = policy.loaded.model

    class Ear(KeepAll):
        def __init__(self, layout):
            super().__init__(layout)
            self.schedule = replace(self.schedule, observed_layers={2: (RowGroup.ACTION,)})

        def observe(self, layer, group, attention):
            result[layer, group] = attention

    prompt = policy.loaded.tokenizer.encode('open the microwave')
    pixels = policy.loaded.preprocessor.normalise(torch.randint(0, 256, (1, 224, 224, 3)))
    state, noise = torch.zeros(8), model.noise(3)
    with torch.inference_mode():
        embedded = model.embed(pixels, prompt)
        ear, trace = Ear(embedded.layout), []
        output = model.decoder(
            embedded.hidden, embedded.layout, ear, read=model.read(embedded.layout)
        )
        assert not result  # the prefix pass has no action rows
        model.sample(output, embedded.layout, noise, state, prune=ear, trace=trace)
        context, start = model.with_state(output.context, embedded.layout.length, state)
        steps = [
            model.velocity(trace[s - 1][None], model.codes(10)[s], context, start, {2: (0, 256)})
            for s in (7, 8, 9)
        ]
    expected = torch.stack([observed[2] for _, observed in steps]).mean(0)
    (found,) = result.values()
    assert found.shape == (policy.config.chunk, 256)
    assert torch.allclose(found, expected, atol=1e-6)


def test_change_is_judged_by_the_cameras_that_are_there():
    policy = load('pi0_openpi', refresh_change=0.9, first_dense=False)  # two of its three
    policy.act(look(0))
    assert policy.act(look(1)).mode is not Mode.DENSE
    policy.set_params(policy.params.replace(refresh_change=0.0))
    assert policy.act(look(3)).mode is Mode.DENSE


def test_what_a_dense_pass_attends_to_is_counted_by_the_grid():
    policy = load('pi0_lerobot')  # 4 x 4 patches: of K_G = 30 of 256 two a camera
    policy.act(look(0))
    result = policy.act(look(1), details=True)
    given, layout = result.details.inputs, result.details.key.layout
    plain = replace(given, reference_images=None, carry={})
    key = plain.graph_key(layout, policy.params, Mode.DENSE)
    with torch.inference_mode():
        dense = EagerEngine(policy.loaded).run(key, plain).device_outputs.carry['prior']
        wanted = best_tokens(dense, 2 * layout.cameras).nonzero().squeeze(1)
        _, kept = compare_with_dense(
            policy.loaded, given, layout, policy.params, look(1).proprio, result.actions, wanted
        )
    assert kept == 1.0


def test_positions_are_kept_when_rows_leave(policy):
    # Renumbered, the result would be another: what is dropped leaves holes.
    model = policy.loaded.model
    prompt = policy.loaded.tokenizer.encode('open the microwave')
    pixels = policy.loaded.preprocessor.normalise(torch.randint(0, 256, (1, 224, 224, 3)))
    state, noise = torch.zeros(8), model.noise(3)

    class Half(KeepAll):
        def __init__(self, layout):
            super().__init__(layout)
            self.schedule = replace(self.schedule, prune={0: 128})

        def select(self, boundary, rows):
            return replace(super().select(boundary, rows), keep=torch.arange(0, 256, 2))

    with torch.inference_mode():
        embedded = model.embed(pixels, prompt)
        half = Half(embedded.layout)
        read = model.read(embedded.layout)
        output = model.decoder(embedded.hidden, embedded.layout, half, read=read)
        kept = model.sample(output, embedded.layout, noise, state)
        # By hand: the rows that stay, at the positions they had, and the suffix behind all.
        rows = torch.cat((torch.arange(0, 256, 2), torch.arange(256, embedded.layout.length)))
        cos, sin = model.decoder.rotary(embedded.layout.length, pixels.device, torch.float32)
        x, context = embedded.hidden[:, rows], []
        for layer in model.decoder.layers:
            normed = layer.attn_norm(x)
            queries, keys, values = layer.attn.project(normed, cos[rows], sin[rows])
            context.append((keys, values))
            weights = (queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5).softmax(-1)
            mixed = (weights @ values).transpose(1, 2).flatten(2)
            x, _ = layer.finish(x, mixed, model.decoder.norm)
        by_hand = model.sample(
            replace(output, context=tuple(context)), embedded.layout, noise, state
        )
        shorter = replace(embedded.layout, length=len(rows))
        renumbered = model.sample(output, shorter, noise, state)
    assert torch.allclose(kept, by_hand, atol=1e-5)
    assert (kept - renumbered).abs().max() > 1e-3


@pytest.mark.parametrize('pruner', names())
def test_every_rival_prunes_the_prefix_or_says_why_not(pruner):
    policy = build_policy(preset='pi0-tiny', device='cpu')
    params = PruningParams().replace(pruner=pruner, mode='coarse', vla_pruner_window=1)
    if pruner == 'efficientvla':
        with pytest.raises(ParamError, match='skips layers, whose keys and values'):
            policy.set_params(params)
        return
    policy.set_params(params)
    tokens = []
    for step in range(5):
        result = policy.act(look(step, instruction=BENCH_INSTRUCTION))
        assert result.actions.shape == (policy.config.chunk, 7)
        assert np.isfinite(result.actions).all()
        tokens.append(result.tokens.mean)
    if pruner in (
        'specprune', 'fastv', 'random', 'vla_pruner', 'sparsevlm', 'divprune', 'team_vla'
    ):  # fmt: skip
        assert min(tokens) < 0.9 * 512


def test_a_state_in_the_prompt_that_grows_leaves_no_keys_to_reuse():
    policy = load('pi05_lerobot', pruner='vla_cache')
    rows, modes = [], []
    for step, value in enumerate((0.1, 0.1, -0.9, -0.9)):
        seen = look(step, policy.config.cameras, np.full(8, value))
        result = policy.act(seen, details=True)
        rows.append(result.details.key.layout.length)
        modes.append(result.mode)
        if step == 2:
            assert result.reason == 'the prompt is of another length than what was kept'
    assert rows[0] == rows[1] != rows[2] == rows[3]
    assert [mode is Mode.DENSE for mode in modes] == [True, False, True, False]


@pytest.mark.parametrize('text', [(5, 6), ()])
def test_rows_that_an_experts_actions_would_come_too_late_for_have_a_stand_in(policy, text):
    layout, notes = replace(policy.layout(), text=text), []
    group = rows_or_action(layout, RowGroup.ACTION, notes)
    assert group is (RowGroup.TEXT if text else RowGroup.PROMPT)
    assert bool(notes) is not bool(text)


def test_a_fixed_count_is_kept_at_the_same_budget(policy):
    policy.set_params(
        PruningParams().replace(pruner='random', random_keep=0.25, first_dense=False)
    )
    result = policy.act(look(0))
    assert result.tokens.after == (128,)


# Robots.


def test_relative_columns_are_added_to_the_state():
    flow = replace(PI0_3B.flow, relative=(0, 2))
    state = np.arange(8.0)
    actions = np.ones((3, 7))
    out = robot_actions(flow, actions, state)
    assert out[:, :4].tolist() == [[1.0, 1.0, 3.0, 1.0]] * 3
    assert (actions == 1).all()
    assert model_actions(flow, out, state) == pytest.approx(actions)


def test_aloha_turns_joints_and_grippers():
    flow = FlowConfig(expert=PI0_3B.flow.expert, robot='aloha')
    state = model_state(flow, np.full(14, 0.5))
    assert state[[1, 2, 8, 9]].tolist() == [-0.5] * 4
    # Half open fingers, 0.03822 m apart, by the linkage of 22 and 36 mm.
    sine = (0.022**2 + 0.03822**2 - 0.036**2) / (2 * 0.022 * 0.03822)
    assert state[6] == pytest.approx((np.arcsin(sine) - 0.5476) / (1.6296 - 0.5476))
    actions = robot_actions(flow, np.full((1, 14), 0.5), None)
    assert actions[0, 1] == -0.5
    assert actions[0, 13] == pytest.approx((0.5 + 0.5476 + 0.6213) / (1.4910 + 0.6213))
    assert model_actions(flow, actions, None) == pytest.approx(np.full((1, 14), 0.5))


def test_act_gives_the_robots_actions(tmp_path):
    shutil.copytree(PACKS / 'pi0_openpi', tmp_path / 'pack')
    folder = tmp_path / 'pack/checkpoint'
    plain = load('pi0_openpi').act(look()).actions
    (folder / 'specprune.json').write_text(json.dumps({'platform': 'libero'}))
    loaded = load_policy_model(folder, progress=False)
    result = Policy(loaded, max_normalised_action=1e9).act(look())
    expected = plain.copy()
    expected[:, :6] += 0.1
    assert result.actions == pytest.approx(expected, abs=1e-5)


# Real-time chunking.


def test_weights_and_strength_are_those_of_lerobot():
    linear = prefix_weights(4, 10, 12, 'linear')
    assert linear == pytest.approx([1] * 4 + [i / 7 for i in range(6, 0, -1)] + [0, 0])
    exp = prefix_weights(4, 10, 12, 'exp')[4:10]
    assert exp == pytest.approx([0.677, 0.434, 0.256, 0.134, 0.055, 0.013], abs=1e-3)
    assert prefix_weights(2, 5, 6, 'ones').tolist() == [1, 1, 1, 1, 1, 0]
    assert prefix_weights(2, 5, 6, 'zeros').tolist() == [1, 1, 0, 0, 0, 0]
    assert prefix_weights(9, 5, 6, 'linear').tolist() == [1, 1, 1, 1, 1, 0]
    wanted = [10, 9.11, 4.25, 2.76, 2.17, 2.0, 2.17, 2.76, 4.25, 9.11]
    assert guidance_strength(10, 10.0) == pytest.approx(wanted, abs=0.005)


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (dict(execution_horizon=0), 'rtc.execution_horizon must be at least 1'),
        (dict(schedule='cubic'), 'rtc.schedule must be one of zeros, ones, linear, exp'),
        (dict(max_guidance_weight=0.0), 'rtc.max_guidance_weight must be > 0'),
    ],
)
def test_bad_rules_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        ChunkingRules(**bad)


def test_nothing_is_pulled_beyond_the_end_of_the_previous_chunk():
    given = guide(
        Continuation(np.ones((3, 7)), 1, ChunkingRules(10)), 6, 32, 10, torch.device('cpu')
    )
    assert given.previous[:3, :7].eq(1).all()
    assert given.previous.sum() == 21
    assert given.weights[3:].eq(0).all()


def test_a_chunk_goes_on_where_the_one_before_is(policy):
    policy.set_params(PruningParams().replace(pruner='dense'))
    first = policy.act(look(0))
    left = first.normalised[2:]
    alone = policy.act(look(1))
    joined = policy.act(look(1), continuation=Continuation(left, 2, ChunkingRules(4)))

    def gap(result):
        return np.abs(result.normalised[:2] - left[:2]).max()

    assert gap(joined) < 0.2 * gap(alone)
    # What is free stays free: nothing to go on from changes nothing.
    noise = policy.loaded.model.noise(0).numpy()
    nothing = Continuation(np.zeros((0, 7)), 0)
    one, other = (policy.act(look(1), noise=noise, continuation=c) for c in (None, nothing))
    assert np.array_equal(one.actions, other.actions)


def test_a_continuation_of_relative_actions_is_seen_from_the_new_state(policy):
    config = replace(policy.config, flow=replace(policy.config.flow, relative=(0, 1)))
    policy.loaded = replace(policy.loaded, config=config)
    old, new = look(0), look(1, state=np.full(8, 0.3))
    first = policy.act(old)
    again = policy.loaded.normalised_actions(first.actions, new.proprio)
    scale = policy.loaded.statistics
    span = (scale.action_high - scale.action_low) / 2
    assert (first.normalised - again)[:, :2] == pytest.approx(
        np.broadcast_to((0.2 / span)[:2], (6, 2))
    )
    assert (first.normalised - again)[:, 2:] == pytest.approx(np.zeros((6, 5)), abs=1e-9)


def test_other_policies_have_nothing_to_go_on_from():
    policy = build_policy(preset='tiny', device='cpu')
    with pytest.raises(ValueError, match='only a flow policy'):
        policy.act(look(), continuation=Continuation(np.zeros((3, 7)), 1))


# Our own format.


def test_a_flow_policy_can_be_saved_and_loaded(tmp_path):
    loaded = build_policy(preset='pi0-tiny', device='cpu').loaded
    far = np.linspace(1, 2, 8)
    statistics = Statistics(
        -far[:7], far[:7], np.ones(7, bool), -far, far, epsilon=0.0, clip_proprio=False
    )
    save_policy_model(tmp_path, loaded.model, loaded.tokenizer.tokenizer, statistics)
    first = Policy(replace(loaded, statistics=statistics), max_normalised_action=1e9)
    again = Policy(load_policy_model(tmp_path, progress=False), max_normalised_action=1e9)
    assert again.config == loaded.config
    beyond = look(state=np.full(8, 3.0))
    assert again.act(beyond).actions == pytest.approx(first.act(beyond).actions, abs=1e-5)
