"""Float8 layers: how far they are from the ones they are made of, and what they may not hide."""

import pytest
import torch
from torch import nn
from toy_models import EVERY, RecordingPass, keep_all, layout, relative

from specprune_ros.bench.roofline import weight_traffic
from specprune_ros.models.accel import fp8, fused
from specprune_ros.models.accel.device_memory import weight_bytes
from specprune_ros.models.build import build, empty
from specprune_ros.models.config import DecoderConfig
from specprune_ros.models.decoder import Decoder
from specprune_ros.models.presets import OPENVLA_OFT_7B, TINY

STEP = 2.0**-4  # largest relative rounding error: three bits behind the leading one
LEAST = 2.0**-10  # and below the smallest normal number, of the scale


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def linear(inputs=64, outputs=96, bias=False):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).bfloat16().requires_grad_(False)


def decoder(causal=False, depth=4):
    torch.manual_seed(0)
    config = DecoderConfig(64, depth, 4, 96, vocab=50, kv_heads=2, causal=causal, qkv_bias=causal)
    return Decoder(config).bfloat16().requires_grad_(False)


def test_no_value_is_rounded_by_more_than_the_format_must():
    torch.manual_seed(1)
    x = torch.randn(40, 64) * torch.logspace(-6, 12, 40)[:, None]
    x[3], x[5, 1:] = 0, 1e-7 * x[5, 0]
    q, scale = fused.quantise(x)
    assert q.dtype is torch.float8_e4m3fn and scale.shape == (40, 1)
    back = q.float() * scale
    assert ((back - x).abs() <= 1.001 * torch.maximum(STEP * x.abs(), LEAST * scale)).all()
    assert torch.equal(back[3], torch.zeros(64))
    largest = x.abs().amax(1)
    assert torch.equal(q.float().abs().amax(1)[largest > 0], torch.full((39,), fused.LARGEST))


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('rows', [1, 3, 17, 48])
def test_a_layer_stays_within_the_error_of_its_factors(rows, bias):
    exact = linear(bias=bias)
    ours = fp8.Float8Linear(exact)
    x = torch.randn(1, rows, 64).bfloat16()
    found, expected = ours(x).float(), exact.float()(x.float())
    # Each product is off by at most the error of two factors; the sum is rounded once.
    bound = ((1 + STEP) ** 2 - 1) * (x.float().abs() @ exact.weight.abs().t())
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= 1.01 * bound + 2**-8 * expected.abs() + 1e-3).all()
    error = (found - expected).norm() / expected.norm()
    assert 0.005 < error < 0.06  # rounding errors are independent: far below the bound


def test_part_of_a_layer_is_that_part_of_its_answer():
    ours = fp8.Float8Linear(linear(outputs=96, bias=True))
    x = torch.randn(1, 5, 64).bfloat16()
    whole = ours(x)
    assert torch.equal(ours.part(x, 32, 80), whole[..., 32:80])
    assert torch.equal(fp8.linear_part(ours, x, 0, 32), whole[..., :32])
    plain = linear(bias=True)
    part, expected = fp8.linear_part(plain, x, 32, 80), plain(x)[..., 32:80]
    assert torch.allclose(part, expected, rtol=2**-7, atol=2**-7)


def test_an_outlier_costs_its_own_row_alone():
    ours = fp8.Float8Linear(linear())
    x = torch.randn(1, 6, 64).bfloat16()
    other = x.clone()
    other[0, 2, 7] = 3e4
    kept = [0, 1, 3, 4, 5]
    assert torch.equal(ours(x)[0, kept], ours(other)[0, kept])
    assert not torch.equal(ours(x)[0, 2], ours(other)[0, 2])


def test_rows_of_zeros_and_no_rows():
    ours = fp8.Float8Linear(linear())
    assert torch.equal(ours(torch.zeros(1, 2, 64).bfloat16()), torch.zeros(1, 2, 96))
    assert ours(torch.zeros(1, 0, 64).bfloat16()).shape == (1, 0, 96)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_what_is_not_finite_is_not_hidden(bad):
    ours = fp8.Float8Linear(linear())
    x = torch.randn(1, 3, 64).bfloat16()
    x[0, 1, 9] = bad
    out = ours(x)
    assert not out[0, 1].isfinite().any()
    assert out[0, [0, 2]].isfinite().all()
    model, where = decoder(), layout()
    fp8.convert(model)
    hidden = torch.randn(1, where.length, 64).bfloat16()
    hidden[0, 4, 1] = bad
    assert not model(hidden, where).hidden.isfinite().any()  # through attention, every row


@pytest.mark.parametrize('causal', [False, True])
def test_a_decoder_in_float8(causal):
    exact, ours, where = decoder(causal), decoder(causal), layout(causal=causal)
    fp8.convert(ours)
    hidden = torch.randn(1, where.length, 64).bfloat16()

    def apart(a, b):
        return ((a.float() - b.float()).norm() / b.float().norm()).item()

    dense = ours(hidden, where, read=where.action).hidden
    assert 0.01 < apart(dense, exact(hidden, where, read=where.action).hidden) < 0.1
    assert torch.equal(ours(hidden, where, keep_all(where), read=where.action).hidden, dense)
    spies = [
        RecordingPass({2: [0, 3, 4, 6, 8]}, observed_layers={1: EVERY, 4: EVERY}) for _ in range(2)
    ]
    pruned = [
        m(hidden, where, s, read=where.action) for m, s in zip((ours, exact), spies, strict=True)
    ]
    assert apart(*(out.hidden for out in pruned)) < 0.1
    for key, expected in spies[1].attention.items():
        assert apart(spies[0].attention[key], expected) < 0.1
    # Every row of the last layer, or the requested ones alone: the same numbers in either way.
    whole = ours(hidden, where).rows(*where.action, where)
    assert apart(dense, whole) < 0.02


def test_its_weights_count_one_byte_and_the_old_ones_are_gone():
    model = build(TINY, dtype=torch.bfloat16)
    work = (model.decoder.config.depth) * [type('Ran', (), {'inputs': 1})()]
    before, others = weight_traffic(model, work), weight_bytes(model.decoder.embed_tokens)
    fp8.convert(model.decoder)
    after, config = weight_traffic(model, work), TINY.decoder
    width, mlp = config.width, config.mlp
    weights, channels = 4 * width**2 + 3 * width * mlp, 5 * width + 2 * mlp
    saved = config.depth * (weights - 4 * channels)  # a byte each, less the scales
    assert before.decoder - after.decoder == saved
    assert (before.vision, before.head) == (after.vision, after.head)
    assert weight_bytes(model.decoder.embed_tokens) == others
    wide = [p for p in model.decoder.layers.parameters() if p.dtype is torch.bfloat16]
    assert all(p.ndim == 1 for p in wide)


def test_kernels_of_the_layers_reach_into_float8():
    model = decoder()
    fp8.convert(model)
    fused.use(model, fused.COMPILED)
    assert model.layers[0].down.kernels is fused.COMPILED


def test_at_the_7b_size_the_decoder_halves():
    model = empty(OPENVLA_OFT_7B)
    before = weight_bytes(model.bfloat16().decoder.layers)
    # Of one layer alone: the meta device has shapes, and the arithmetic takes a while without.
    layers = nn.Module()
    layers.layers = model.decoder.layers[:1]
    fp8.convert(layers)
    ratio = 32 * weight_bytes(layers) / before
    assert 0.5 < ratio < 0.501


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_the_rest_of_the_model_must_be_in_bfloat16(dtype):
    name = str(dtype).removeprefix('torch.')
    with pytest.raises(ValueError, match=f'model.fp8 .* model.dtype is {name}: use bfloat16'):
        fp8.check_float8(torch.device('cpu'), dtype)


def test_layers_of_odd_sizes_stay_as_they_are():
    config = DecoderConfig(width=64, depth=2, heads=8, mlp=88, vocab=9, kv_heads=1)
    model, where = Decoder(config).bfloat16().requires_grad_(False), layout(depth=2)
    assert fp8.convert(model) == ('down',)
    assert type(model.layers[1].down) is nn.Linear
    assert type(model.layers[1].attn.qkv) is fp8.Float8Linear
    hidden = torch.randn(1, where.length, 64).bfloat16()
    assert model(hidden, where, read=where.action).hidden.isfinite().all()


def test_a_gpu_without_the_units_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda place: 'NVIDIA A100')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda place: (8, 0))
    place = torch.device('cuda')
    with pytest.raises(ValueError, match=r'model\.fp8: NVIDIA A100 .* 8\.0; .*leave it off'):
        fp8.check_float8(place, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda place: (8, 9))
    fp8.check_float8(place, torch.bfloat16)
    monkeypatch.setattr(torch.version, 'hip', '7.0')
    with pytest.raises(ValueError, match='ROCm'):
        fp8.check_float8(place, torch.bfloat16)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives():
    try:
        fp8.check_float8(torch.device('cuda'), torch.bfloat16)
    except ValueError as error:
        pytest.skip(str(error))
    ours = fp8.Float8Linear(linear(bias=True))
    x = torch.randn(1, 37, 64).bfloat16()
    expected = ours(x)
    found = ours.cuda()(x.cuda()).cpu()
    # The GPU adds up in fewer bits (use_fast_accum).
    assert relative(found.float(), expected.float()) < 2**-6
    assert torch.equal(ours.part(x.cuda(), 32, 80).cpu(), found[..., 32:80])
