"""Weights laid out for oneDNN compute what the layer they were made from computes."""

import copy

import pytest
import torch
from torch import nn

from specprune_ros.models.accel import packed
from specprune_ros.models.load import random_policy_model

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or packed.platform.machine() not in packed._X86,
    reason='weights are packed on x86 with oneDNN only',
)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', [(1, 605, 64), (7, 64), (1, 1, 64)])
@pytest.mark.parametrize('bias', [True, False])
@torch.inference_mode()
def test_a_packed_layer_is_the_layer(dtype, shape, bias):
    if not packed.supported(dtype):
        pytest.skip(f'this processor has no kernels of oneDNN for {dtype}')
    torch.manual_seed(0)
    linear = nn.Linear(64, 96, bias=bias, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    made = packed.PackedLinear(linear)
    torch.testing.assert_close(made(x), linear(x))
    assert made.weight is linear.weight  # for who reads a part of it, or saves it
    weight = linear.weight.double()
    exact = nn.functional.linear(x.double(), weight, linear.bias.double() if bias else None)
    bound = 1e-5 if dtype is torch.float32 else 3e-2
    assert (made(x) - exact).abs().max() < bound * exact.abs().max()


def test_a_whole_model_is_packed_and_still_counts_and_saves_the_same():
    plain = random_policy_model('tiny').model
    model = copy.deepcopy(plain)
    assert packed.pack(model)
    kinds = {type(module) for module in model.modules()}
    assert packed.PackedLinear in kinds and nn.Linear not in kinds
    ours, theirs = model.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_where_memory_is_short_nothing_is_held_twice(monkeypatch):
    model = random_policy_model('tiny').model
    monkeypatch.setattr(packed, 'free_bytes', lambda device: 2**20)
    assert not packed.pack(model)
    assert not any(isinstance(module, packed.PackedLinear) for module in model.modules())


def test_another_processor_keeps_its_layers(monkeypatch):
    model = random_policy_model('tiny').model
    monkeypatch.setattr(packed.platform, 'machine', lambda: 'aarch64')
    assert not packed.pack(model)


def test_a_processor_without_kernels_for_bfloat16_keeps_such_layers(monkeypatch):
    """Zen 3 and Intel's desktop processors have no AVX-512, and PyTorch raises there."""
    monkeypatch.setattr(packed, 'supported', lambda dtype: dtype is torch.float32)
    model = random_policy_model('tiny').model
    assert not packed.pack(copy.deepcopy(model).to(torch.bfloat16))
    mixed = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, dtype=torch.bfloat16))
    assert packed.pack(mixed)
    assert [type(layer) for layer in mixed] == [packed.PackedLinear, nn.Linear]
