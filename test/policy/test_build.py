"""Which number format a policy is built in, and what float8 says of its actions."""

import os
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from specprune_ros.models.accel import fused
from specprune_ros.models.accel.fp8 import Float8Linear, number_format
from specprune_ros.models.load import is_released, random_policy_model
from specprune_ros.policy import build
from specprune_ros.policy.build import build_policy, usable_cores
from specprune_ros.policy.result import PolicyError
from specprune_ros.policy.synthetic_observations import observations

OURS = Path(__file__).parents[2] / 'specprune_ros' / 'sim' / 'weights'


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def units(monkeypatch):
    """Says whether this CPU has bfloat16 units."""

    def say(name):
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx2': True, name: True})

    return say


def dtype_of(**options):
    policy = build_policy(device='cpu', threads=1, **options)
    return policy.loaded.model.decoder.norm.weight.dtype


@pytest.mark.parametrize('name', ['avx512_bf16', 'amx_bf16', 'bf16'])
def test_units_for_bfloat16_are_those_of_x86_and_arm(units, name):
    units(name)
    assert build.has_bfloat16()
    units('avx512_f')
    assert not build.has_bfloat16()


def test_only_a_released_checkpoint_takes_bfloat16_on_a_cpu(units, tmp_path):
    released = synthetic.write_oft(tmp_path / 'released').folder
    assert is_released(released) and not is_released(OURS)
    units('avx512_bf16')
    assert dtype_of(path=str(released)) is torch.bfloat16
    assert dtype_of(path=str(released), dtype='float32') is torch.float32
    assert dtype_of(path=str(OURS)) is torch.float32
    assert dtype_of(preset='tiny') is torch.float32
    units('avx512_f')
    assert dtype_of(path=str(released)) is torch.float32
    with pytest.raises(ValueError, match='not a folder'):
        dtype_of(path=str(tmp_path / 'nowhere'))


def test_float8_reports_how_far_the_actions_move():
    policy = build_policy(preset='tiny', device='cpu', threads=1, fp8=True)
    assert type(policy.loaded.model.decoder.layers[0].down) is Float8Linear
    (note,) = [note for note in policy.loaded.notes if 'model.fp8' in note]
    assert 'on 3 made-up observations' in note and 'action units' in note
    again = random_policy_model('tiny', dtype=torch.bfloat16)
    plain = build._dense_actions(again)
    moved = build.to_float8(again)
    assert np.array_equal(moved, np.abs(build._dense_actions(again) - plain).max((0, 1)))
    assert moved.shape == (7,) and (moved > 0).all() and moved.max() < np.abs(plain).max()
    for name, value in zip(again.config.action.dims, moved, strict=True):
        assert f'{name} {value:.2g}' in again.notes[-1]
        assert f'{name} {value:.2g}' in note


def test_float8_takes_pi0_in_bfloat16_whose_norms_are_float32():
    loaded = random_policy_model('pi0-tiny', dtype=torch.bfloat16)
    assert number_format(loaded.model.decoder) == 'bfloat16'
    assert (build.to_float8(loaded) > 0).all()
    assert number_format(loaded.model.decoder) == 'bfloat16 + float8'


def test_float8_refuses_another_format_and_hides_nothing():
    with pytest.raises(ValueError, match=r'model\.fp8 .* model\.dtype is float32'):
        build_policy(path='/nowhere', device='cpu', threads=1, dtype='float32', fp8=True)
    policy = build_policy(preset='tiny', device='cpu', threads=1, fp8=True)
    with torch.no_grad():
        policy.loaded.model.decoder.embed_tokens.weight.fill_(float('nan'))
    with pytest.raises(PolicyError, match='not finite'):
        policy.act(next(observations(policy, 'lift the red cube', 0)))


@pytest.mark.parametrize(('name', 'number'), [('cuda', 1), ('auto', 1), ('cuda:0', 0)])
def test_a_gpu_has_a_number(monkeypatch, name, number):
    """torch.cuda.set_device refuses one without, and nothing began on a GPU."""
    answers = {
        'is_available': True, 'current_device': 1, 'device_count': 2,
        'get_device_capability': (9, 0),
    }  # fmt: skip
    for function, answer in answers.items():
        monkeypatch.setattr(torch.cuda, function, lambda *_, answer=answer: answer)
    assert build.resolve(name, 'auto') == (torch.device('cuda', number), torch.bfloat16)
    with pytest.raises(ValueError, match='there are 2 GPUs'):
        build.resolve('cuda:2', 'auto')


@pytest.mark.gpu
def test_a_policy_is_built_on_a_gpu_by_any_name():
    for name in ('auto', 'cuda', 'cuda:0'):
        policy = build_policy(device=name)
        assert next(policy.loaded.model.parameters()).is_cuda
        assert np.isfinite(policy.warm_up())


def test_a_cpu_runs_the_plain_functions():
    policy = build_policy(preset='tiny', device='cpu', threads=1)
    parts = [part for part in policy.loaded.model.modules() if hasattr(part, 'kernels')]
    assert len(parts) > 16 and all(part.kernels is fused.PLAIN for part in parts)


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='Linux only')
def test_threads_are_counted_by_the_cores_that_are_left(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
        build_policy(preset='tiny', device='cpu')
        assert torch.get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)
