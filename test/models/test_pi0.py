"""pi0 and pi0.5 give what lerobot gives, and every known mistake would show.

The packs in ``test/data/parity`` hold tiny checkpoints with random weights and lerobot's numbers
(see their README.md). A mistake is made on purpose, and the pack must fail.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import flow_packs

from specprune_ros.models.accel import fused
from specprune_ros.models.build import cast, empty
from specprune_ros.models.decoder_layer import AdaptiveNorm, Mask
from specprune_ros.models.flops import count, dense_flops, scheduled_work
from specprune_ros.models.presets import PI0_3B, PI05_3B
from specprune_ros.models.rotary import RotaryTable
from specprune_ros.models.tokens import Prompt
from specprune_ros.policy import parity_flow
from specprune_ros.pruning.interface import PruneSchedule

PACKS = flow_packs()
NAMES = ('pi0_lerobot', 'pi05_lerobot', 'pi05_quantiles', 'pi0_openpi')


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('name', NAMES)
def test_a_pack_passes_through_the_public_loader_and_act(name):
    result = parity_flow.run(PACKS / name)
    assert result.passed, result
    assert result.cases == (2 if name == 'pi0_openpi' else 3)
    # The packs hold no pixels of their own: a wrong image shows in v0.
    assert set(result.differences) == set(parity_flow.TOLERANCES) - {'pixels'}


def test_verify_runs_the_packs_of_a_family():
    found = list(parity_flow.of_family('pi05', PACKS))
    assert [result.pack for result in found] == ['pi05_lerobot', 'pi05_quantiles']
    assert all(result.passed for result in found)


# Mistakes that were bugs somewhere. Each takes the policy and a monkeypatch.


def words_not_scaled(policy, patch):
    decoder = policy.loaded.model.decoder
    decoder.config = replace(decoder.config, embed_scale=1.0)


def words_scaled_twice(policy, patch):
    decoder = policy.loaded.model.decoder
    decoder.config = replace(decoder.config, embed_scale=decoder.config.embed_scale**2)


def image_features_divided(policy, patch):
    projector = policy.loaded.model.projector
    width = policy.config.decoder.width
    patch.setattr(projector, 'forward', lambda x: projector.layers[0](x) / width**0.5)


def norm_weight_not_one_more(policy, patch):
    for norm in policy.loaded.model.decoder.modules():
        if isinstance(getattr(norm, 'weight', None), torch.nn.Parameter) and norm.weight.ndim == 1:
            norm.weight.sub_(1)


def causal_prefix(policy, patch):
    for layer in policy.loaded.model.decoder.layers:
        attend = layer.attn.attend
        patch.setattr(
            layer.attn, 'attend', lambda q, k, v, mask, attend=attend: attend(q, k, v, Mask(True))
        )


def _shift_suffix(policy, patch, where):
    model = policy.loaded.model
    with_state = model.with_state

    def shifted(context, start, proprio):
        return with_state(context, where(start), proprio)

    patch.setattr(model, 'with_state', shifted)


def suffix_one_later(policy, patch):
    _shift_suffix(policy, patch, lambda start: start + 1)


def suffix_one_earlier(policy, patch):
    _shift_suffix(policy, patch, lambda start: start - 1)


def suffix_from_zero(policy, patch):
    _shift_suffix(policy, patch, lambda start: 0)


def absent_cameras_counted(policy, patch):
    patches = policy.config.grid[0] ** 2
    slots = len(policy.config.cameras) + 1

    def all_slots(start):
        return start + patches * (slots - start // patches)

    _shift_suffix(policy, patch, all_slots)


def time_runs_up(policy, patch):
    model = policy.loaded.model
    codes = model.codes
    patch.setattr(model, 'codes', lambda steps: codes(steps)[::-1])


def cosine_before_sine(policy, patch):
    width = policy.config.flow.expert.width
    weight = policy.loaded.model.time_in.weight
    weight[:, -width:] = weight[:, -width:].roll(width // 2, 1)


def interleaved_rotation(policy, patch):
    def rotate(x, cos, sin):
        half = x.shape[-1] // 2
        order = torch.arange(2 * half).view(half, 2).T.flatten()
        back = order.argsort()
        return fused.rotate(x[..., order], cos, sin)[..., back]

    for decoder in (policy.loaded.model.decoder, policy.loaded.model.expert):
        for layer in decoder.layers:
            layer.attn.kernels = layer.attn.kernels._replace(rotate=rotate)


def cameras_swapped(policy, patch):
    normalise = policy.loaded.preprocessor.normalise
    patch.setattr(policy.loaded.preprocessor, 'normalise', lambda x: normalise(x.flip(0)))


def frequencies_rounded(policy, patch):
    for decoder in (policy.loaded.model.decoder, policy.loaded.model.expert):
        decoder.rotary = RotaryTable(decoder.rotary.head_dim, decoder.rotary.theta, rounded=True)


def silu_gate(policy, patch):
    for decoder in (policy.loaded.model.decoder, policy.loaded.model.expert):
        for layer in decoder.layers:
            layer.silu = True


def no_norm_after_the_tower(policy, patch):
    policy.loaded.model.vision.towers[0].norm = None


def other_resize(policy, patch):
    other = {'pad_pillow': 'pad_bilinear', 'pad_bilinear': 'pad_pillow'}
    preprocessor = policy.loaded.preprocessor
    preprocessor.config = replace(preprocessor.config, resize=other[preprocessor.config.resize])


def state_of_zeros(policy, patch):
    loaded, encode = policy.loaded, type(policy.loaded).encode
    middle = loaded.statistics.proprio_center  # normalised to zeros
    patch.setattr(
        type(loaded), 'encode', lambda self, words, proprio, n: encode(self, words, middle, n)
    )


def context_grows(policy, patch):
    # A cache that the library appends to: the second step sees the first one's rows.
    model = policy.loaded.model
    velocity = model.velocity
    kept = {}

    def growing(x, code, context, start, observe=None):
        context = kept.get(start, context)
        out = velocity(x, code, context, start, observe)
        rows = model.action_in(x)
        kept[start] = model.expert.extend(rows, context, start, modulation=_code(code)).context
        return out

    def _code(code):
        return code if model.config.flow.expert.adaptive else None

    patch.setattr(model, 'velocity', growing)


COMMON = (
    words_not_scaled, words_scaled_twice, image_features_divided, norm_weight_not_one_more,
    causal_prefix, suffix_one_later, suffix_one_earlier, suffix_from_zero, absent_cameras_counted,
    time_runs_up, cosine_before_sine, interleaved_rotation, cameras_swapped, frequencies_rounded,
    silu_gate, no_norm_after_the_tower, other_resize, state_of_zeros, context_grows,
)  # fmt: skip


# pi0 alone.


def state_row_sees_actions(policy, patch):
    model = policy.loaded.model
    held = {}

    def without(context, start, proprio):
        held['row'] = model.state_in(F.pad(proprio, (0, 32 - len(proprio))))[None, None]
        return context, start

    def together(x, code, context, start, observe=None):
        rows = model.action_in(x)
        mixed = F.linear(rows, model.time_in.weight[:, : rows.shape[-1]]) + code
        rows = torch.cat((held['row'], model.time_out(F.silu(mixed))), 1)
        out = model.expert.extend(rows, context, start, observe=observe)
        observed = {layer: attention[1:] for layer, attention in out.observed.items()}
        return model.action_out(out.hidden[:, 1:]), observed

    patch.setattr(model, 'with_state', without)
    patch.setattr(model, 'velocity', together)


def garbage_behind_the_state(policy, patch):
    pad = F.pad
    patch.setattr(F, 'pad', lambda x, sizes, **kw: pad(x, sizes, value=kw.get('value', 1.0)))


def state_row_forgotten(policy, patch):
    model = policy.loaded.model
    patch.setattr(model, 'with_state', lambda context, start, proprio: (context, start))


PI0 = (state_row_sees_actions, garbage_behind_the_state, state_row_forgotten)


# pi0.5 alone.


def _modulation(change):
    def mistake(policy, patch):
        plain = AdaptiveNorm.modulation

        def changed(self, condition):
            return torch.stack(change(*plain(self, condition)))

        patch.setattr(AdaptiveNorm, 'modulation', changed)

    return mistake


shift_before_scale = _modulation(lambda scale, shift, gate: (1 + shift, scale - 1, gate))
gate_ignored = _modulation(lambda scale, shift, gate: (scale, shift, torch.ones_like(gate)))


def last_norm_not_adaptive(policy, patch):
    norm = policy.loaded.model.expert.norm
    ones = torch.ones(norm.dense.in_features)
    patch.setattr(norm, 'modulation', lambda c: torch.stack((ones, 0 * ones, ones)))


def one_silu_less(policy, patch):
    model = policy.loaded.model
    inner = model.expert.modulations
    inverse = {}

    def without(condition):
        return inner(inverse['before'])

    forward = model.time_out.forward

    def remembered(x):
        inverse['before'] = forward(x)
        return inverse['before']

    patch.setattr(model.time_out, 'forward', remembered)
    patch.setattr(model.expert, 'modulations', without)


PI05 = (shift_before_scale, gate_ignored, last_norm_not_adaptive, one_silu_less)
CASES = [(name, m) for name in ('pi0_lerobot', 'pi05_lerobot') for m in COMMON]
CASES += [('pi0_lerobot', m) for m in PI0] + [('pi05_lerobot', m) for m in PI05]


@pytest.mark.parametrize(
    ('name', 'mistake'), CASES, ids=[f'{n}-{getattr(m, "__name__", m)}' for n, m in CASES]
)
@torch.inference_mode()
def test_a_mistake_shows(name, mistake, monkeypatch):
    policy = parity_flow.load(PACKS / name)
    mistake(policy, monkeypatch)
    result = parity_flow.run(PACKS / name, policy, first_only=True)
    assert result.differences['actions'] > 4 * parity_flow.TOLERANCES['actions'], result


def test_rounded_frequencies_turn_far_rows_by_a_radian():
    rounded, exact = (RotaryTable(256, 10000.0, flag) for flag in (True, False))
    for position, wrong in ((256, 0.36), (532, 0.74), (788, 1.09)):
        cosines, sines = (
            [
                t(1024, torch.device('cpu'), torch.float32)[i][position, 128:]
                for t in (rounded, exact)
            ]
            for i in (0, 1)
        )
        angle = torch.atan2(sines[0], cosines[0]) - torch.atan2(sines[1], cosines[1])
        off = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
        assert off.abs().max() == pytest.approx(wrong, abs=0.01)


def test_the_gate_is_gelu_in_its_tanh_form():
    x = torch.linspace(-4, 4, 64)
    both = torch.cat((x, torch.ones_like(x)))
    expected = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    assert torch.allclose(fused.geglu(both), expected, atol=1e-6)
    assert not torch.allclose(fused.geglu(both), F.gelu(x), atol=1e-5)


@torch.inference_mode()
def test_the_context_is_never_appended_to():
    policy = parity_flow.load(PACKS / 'pi0_lerobot')
    data = np.load(PACKS / 'pi0_lerobot/cases.npz')
    requested = parity_flow.observation(data, 'c0')
    first = policy.act(requested, noise=data['c0.noise']).actions
    assert np.array_equal(policy.act(requested, noise=data['c0.noise']).actions, first)


@torch.inference_mode()
def test_noise_is_fresh_in_every_query_and_the_same_for_a_seed():
    policy = parity_flow.load(PACKS / 'pi0_lerobot')
    data = np.load(PACKS / 'pi0_lerobot/cases.npz')
    requested = parity_flow.observation(data, 'c0')
    first, second = policy.act(requested).actions, policy.act(requested).actions
    assert np.abs(first - second).max() > 0.01
    policy.reset()
    assert np.array_equal(policy.act(requested).actions, first)
    with pytest.raises(ValueError, match=r'noise has shape \[6, 7\].*\[6, 32\]'):
        policy.act(requested, noise=np.zeros((6, 7)))


def test_small_layers_and_norms_stay_in_float32():
    model = cast(empty(PI05_3B), torch.bfloat16)
    kept = {n.split('.')[0] for n, p in model.named_parameters() if p.dtype is torch.float32}
    assert kept == {'action_in', 'action_out', 'time_in', 'time_out', 'decoder', 'expert'}
    wide = {n for n, p in model.named_parameters() if n.startswith('decoder.') and p.ndim > 1}
    assert all(dict(model.named_parameters())[n].dtype is torch.bfloat16 for n in wide)


@torch.inference_mode()
def test_bfloat16_stays_near_float32():
    data = np.load(PACKS / 'pi05_lerobot/cases.npz')
    requested = parity_flow.observation(data, 'c0')
    exact = parity_flow.load(PACKS / 'pi05_lerobot')
    coarse = parity_flow.load(PACKS / 'pi05_lerobot')
    cast(coarse.loaded.model, torch.bfloat16)
    coarse.loaded.preprocessor.dtype = torch.bfloat16
    one, other = (p.act(requested, noise=data['c0.noise']).actions for p in (exact, coarse))
    assert 0 < np.abs(one - other).max() < 0.1 * np.abs(one).max()


# Sizes as published.


@pytest.mark.parametrize(
    ('config', 'used'), [(PI0_3B, 3_238_048_528), (PI05_3B, 3_353_433_872)], ids=['pi0', 'pi05']
)
def test_full_size_has_the_published_parameters(config, used):
    assert sum(p.numel() for p in empty(config).parameters()) == used


def _flops(config, cameras, text, keep=1.0):
    where = empty(config).layout(Prompt(tuple(range(text)), (0, 1), vision_at=0), cameras)
    if keep == 1.0:
        return dense_flops(config, where)
    left = round(keep * where.vision_tokens)
    work, _ = scheduled_work(where, PruneSchedule(prune={0: left}), {0: left})
    return count(config, work, cameras=cameras)


# Trillions of operations, 10 steps, 50 rows: tower, prefix, expert, total, and prefix and total
# with half and a quarter of the vision tokens kept. Published figures have two digits.
TABLE = [
    (PI0_3B, 1, 20, (0.22, 1.04, 0.34, 1.61), (0.56, 1.11), (0.32, 0.86)),
    (PI0_3B, 2, 20, (0.44, 2.03, 0.36, 2.83), (1.04, 1.83), (0.56, 1.33)),
    (PI0_3B, 3, 20, (0.66, 3.04, 0.38, 4.08), (1.54, 2.55), (0.80, 1.80)),
    (PI05_3B, 1, 60, (None, None, None, 1.76), None, None),
    (PI05_3B, 2, 60, (None, None, None, 2.99), None, None),
    (PI05_3B, 3, 60, (None, None, None, 4.23), None, None),
    (PI05_3B, 1, 200, (None, None, None, 2.31), None, None),
    (PI05_3B, 2, 200, (None, None, None, 3.55), None, None),
    (PI05_3B, 3, 200, (None, None, None, 4.80), None, None),
    (replace(PI05_3B, chunk=10), 2, 20, (None, None, 0.07, 2.54), None, None),
]


@pytest.mark.parametrize(('config', 'cameras', 'text', 'parts', 'half', 'quarter'), TABLE)
def test_operations_are_those_of_the_published_table(config, cameras, text, parts, half, quarter):
    def same(ours, published):
        # Within one per cent, or the last digit that was printed.
        assert ours / 1e12 == pytest.approx(published, rel=0.01, abs=0.0051)

    dense = _flops(config, cameras, text)
    found = (2 * dense.vision, 2 * dense.decoder, 2 * dense.head, dense.flops)
    for ours, published in zip(found, parts, strict=True):
        if published is not None:
            same(ours, published)
    for keep, expected in ((0.5, half), (0.25, quarter)):
        if expected is not None:
            kept = _flops(config, cameras, text, keep)
            same(2 * kept.decoder, expected[0])
            same(kept.flops, expected[1])


def test_leaving_out_the_third_slot_and_padding_is_the_published_saving():
    padded, compact = (_flops(PI0_3B, *sizes).flops for sizes in ((3, 48), (2, 20)))
    assert padded / compact == pytest.approx(1.48, abs=0.01)
