"""Decoder and towers on a GPU that is only believed in: no device is mixed, no value is read.

PyTorch's FakeTensorMode runs every operator on shapes and devices alone. A tensor left on the host
and a value that must reach it are errors there, as they are in the capture of a CUDA graph.
"""

import sys

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from toy_models import EVERY, keep_all, layout

from specprune_ros.models.accel import fp8
from specprune_ros.models.config import DecoderConfig
from specprune_ros.models.decoder import Decoder, KVCache
from specprune_ros.models.presets import TINY
from specprune_ros.models.vision import VisionBackbone
from specprune_ros.pruning.interface import Mode, QueryContext
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner


class Operators(TorchFunctionMode):
    """What a build without CUDA cannot do through Python's methods, as they request the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        instead = {
            torch.Tensor.__getitem__: part,
            torch.Tensor.__invert__: torch.ops.aten.bitwise_not,
            torch.Tensor.copy_: torch.ops.aten.copy_,
        }
        return instead.get(func, func)(*args, **(kwargs or {}))


def part(x, index):
    index = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in index:
        place = index.index(Ellipsis)
        index[place : place + 1] = [slice(None)] * (x.ndim + 1 - len(index))
    dim = 0
    for item in index:
        if item is None:
            x = x.unsqueeze(dim)
        elif isinstance(item, int):
            x = x.select(dim, item)
            continue
        elif isinstance(item, slice):
            x = torch.ops.aten.slice(x, dim, item.start, item.stop, item.step or 1)
        else:
            x = torch.ops.aten.index(x, [None] * dim + [item])
        dim += 1
    return x


METHODS = ('specprune', 'fastv', 'sparsevlm', 'efficientvla')


@pytest.fixture(autouse=True)
def fake():
    """Everything made in a test is believed to lie on a GPU, and no cache keeps it afterwards."""
    with FakeTensorMode(), Operators(), torch.device('cuda'), torch.inference_mode():
        yield  # only empty tensors can be made, as a build without CUDA knows no random ones
    for name, module in list(sys.modules.items()):
        if name.startswith('specprune_ros.'):
            for value in vars(module).values():
                if hasattr(value, 'cache_clear'):
                    value.cache_clear()


def on_gpu(make):
    """What ``make`` builds, with parameters on the GPU."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device('meta'):
            made = make()
    finally:
        torch.set_default_dtype(before)
    for part in made.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            empty = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(part, name, torch.nn.Parameter(empty, requires_grad=False))
    return made


def decoder(causal=False, float8=False, depth=4):
    config = DecoderConfig(64, depth, 4, 96, vocab=9, kv_heads=2, causal=causal, qkv_bias=causal)

    def make():
        made = Decoder(config)
        if float8:
            fp8.convert(made)
        return made

    return on_gpu(make)


def where(causal=False):
    return layout(depth=4, causal=causal, grid=(8, 8))


def on_cuda(output):
    return {t.device.type for t in (output.hidden, output.positions, output.vision_ids)} == {
        'cuda'
    }


@pytest.mark.parametrize('float8', [False, True])
@pytest.mark.parametrize('causal', [False, True])
def test_dense_and_reusing(causal, float8):
    ours, place = decoder(causal, float8), where(causal)
    hidden = torch.empty(1, place.length, 64, dtype=torch.bfloat16)
    assert on_cuda(ours(hidden, place))
    assert on_cuda(ours(hidden, place, read=place.action))
    cache = KVCache(4)
    ours(hidden, place, cache=cache)
    spy = keep_all(place, [2], observed_layers={4: EVERY}, reuse=True)
    assert on_cuda(ours(hidden, place, spy, cache, read=place.action))
    assert ours.probe(hidden, place, 1, EVERY[0]).is_cuda


@pytest.mark.parametrize(
    ('name', 'causal', 'float8'),
    [('specprune', True, False), ('specprune', False, True)]
    + [(n, False, False) for n in METHODS],
)
def test_pruned(name, causal, float8):
    ours, place, carry = decoder(causal, float8), where(causal), {}
    hidden = torch.empty(1, place.length, 64, dtype=torch.bfloat16)
    params, method = PruningParams.from_mapping({'pruner': name}), pruner(name)
    for mode in (Mode.DENSE, Mode.COARSE):
        if not method.plan(place, params, mode).static:
            continue
        running = method.begin(
            QueryContext(
                place,
                params,
                mode,
                torch.empty(place.vision_tokens),
                carry,
                vision=torch.empty(place.vision_tokens, 64),
                text=torch.empty(len(place.prompt), 64),
            )
        )
        output = ours(hidden, place, running, read=place.action)
        outcome = running.finish()
        carry = outcome.carry
        assert on_cuda(output) and all(ids.is_cuda for _, ids in outcome.kept)
    assert output.layer_tokens[-1] < place.vision_tokens


def test_towers():
    towers = on_gpu(lambda: VisionBackbone(TINY.towers))
    assert towers(torch.empty(2, 6, 224, 224, dtype=torch.bfloat16)).is_cuda


def test_the_check_can_fail():
    ours, place = decoder(), where()
    hidden = torch.empty(1, place.length, 64, dtype=torch.bfloat16, device='cpu')
    with pytest.raises(Exception, match='cpu'):
        ours(hidden, place)
    with pytest.raises(DataDependentOutputException):
        torch.empty(3).sum().item()
