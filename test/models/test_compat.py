"""What is used of PyTorch without a promise works on the version that is installed."""

from pathlib import Path

import pytest
import torch

from specprune_ros.models.accel import compat

PINS = (Path(__file__).parents[2] / 'constraints.txt').read_text()


def test_the_pinned_version_is_one_that_is_known():
    (pin,) = [line.split('==')[1] for line in PINS.splitlines() if line.startswith('torch==')]
    assert pin.rsplit('.', 1)[0] in compat.KNOWN


def test_views_share_a_storage_and_copies_do_not():
    tensor = torch.ones(4, 3)
    assert compat.storage_key(tensor[1:]) == compat.storage_key(tensor.t())
    assert compat.storage_key(tensor) != compat.storage_key(tensor.clone())


def test_a_dispatch_mode_sees_operators_and_is_seen():
    found = []

    class Watch(compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found.extend(compat.tree_leaves((args, kwargs or {})))
            return func(*args, **(kwargs or {}))

    one = torch.ones(2)
    assert not compat.under_dispatch_mode()
    with Watch():
        assert compat.under_dispatch_mode()
        one.add(2)
    assert not compat.under_dispatch_mode()
    assert any(value is one for value in found)


def test_the_compiler_can_be_switched_off_and_takes_any_number_of_rows():
    assert not compat.compiler_is_off()
    with torch._dynamo.config.patch(disable=True):
        assert compat.compiler_is_off()
    compat.mark_dynamic_rows(torch.ones(4, 3))


def test_a_float8_product_is_that_of_the_numbers():
    rows = torch.randint(-4, 5, (16, 32)).float()
    weight = torch.randint(-4, 5, (48, 32)).float()
    try:
        out = compat.scaled_mm(
            rows.to(torch.float8_e4m3fn),
            weight.to(torch.float8_e4m3fn).t(),
            scale_a=torch.full((16, 1), 2.0),
            scale_b=torch.ones(1, 48),
            out_dtype=torch.bfloat16,
        )
    except RuntimeError as error:  # a processor without it
        pytest.skip(str(error).partition('\n')[0])
    torch.testing.assert_close(out.float(), 2 * rows @ weight.t(), rtol=0.01, atol=0.5)
