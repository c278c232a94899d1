"""Whether a model fits is checked before its memory is taken."""

import pytest
import torch

from specprune_ros.models.accel import device_memory as room
from specprune_ros.models.build import cast, empty
from specprune_ros.models.presets import preset


def test_weights_are_counted_without_memory():
    model = cast(empty(preset('openvla-oft-7b')), torch.bfloat16)
    assert next(model.parameters()).device.type == 'meta'
    # OpenVLA-OFT: 7.5 billion parameters, two bytes each.
    assert 14.5e9 < room.weight_bytes(model) < 15.5e9


def test_the_diffusion_head_stays_in_float32():
    model = cast(empty(preset('cogact-7b')), torch.bfloat16)
    head = sum(p.numel() for p in model.action_head.parameters())
    every = sum(p.numel() for p in model.parameters())
    assert room.weight_bytes(model) == 2 * every + 2 * head


def test_this_machine_says_what_is_free():
    free = room.free_bytes('cpu')
    assert 0 < free < 2**50
    assert room.free_bytes('meta') is None


@pytest.mark.parametrize('model', ['openvla-oft-7b', 'db-oft-7b', 'cogact-7b'])
def test_too_little_is_said_with_both_sizes(model, monkeypatch):
    monkeypatch.setattr(room, 'free_bytes', lambda device: 10 * 2**30)
    network = cast(empty(preset(model)), torch.bfloat16)
    with pytest.raises(room.DeviceMemoryError) as caught:
        room.check_device_memory(network, 'cuda:0', model)
    text = str(caught.value)
    assert text.startswith(f'{model} in bfloat16 wants 1')
    assert 'on cuda:0 and 10.0 GiB are free' in text
    assert 'half the size' not in text  # it already has the smaller number format


def test_a_control_group_counts(tmp_path):
    assert room._group_allows(tmp_path) is None
    (tmp_path / 'memory.current').write_text('3000\n')
    (tmp_path / 'memory.max').write_text('max\n')
    assert room._group_allows(tmp_path) is None
    (tmp_path / 'memory.max').write_text('5000\n')
    assert room._group_allows(tmp_path) == 2000
    (tmp_path / 'memory.stat').write_text('anon 1500\nfile 1500\ninactive_file 900\n')
    assert room._group_allows(tmp_path) == 2900  # a file in memory makes room
