"""What the device can do, and the floor that follows."""

import pytest
import torch

from specprune_ros.bench.roofline import Ceilings, measure


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    ceilings = Ceilings(tflops=2.0, gbs=100.0)
    assert ceilings.floor(4e12, 1e9) == pytest.approx(2.0)
    assert ceilings.floor(1e12, 100e9) == pytest.approx(1.0)
    assert ceilings.best(Ceilings(1.0, 300.0)) == Ceilings(2.0, 300.0)


def test_float8_can_only_raise_the_ceiling(monkeypatch):
    took = iter([4.0, 2.0, 30.0, 40.0, 1.0, 1.0])  # of two sides, plain and float8; memory
    called = []

    def fastest(call, place, seconds):
        called.append(call())
        return next(took)

    monkeypatch.setattr('specprune_ros.bench.roofline._fastest', fastest)
    monkeypatch.setattr('specprune_ros.bench.roofline.SIDES', {'cpu': (64, 128)})
    ceilings = measure('cpu', torch.bfloat16, float8=True)
    assert ceilings.tflops == pytest.approx(2 * 64**3 / 2.0 / 1e12)
    assert called[1].dtype is torch.bfloat16 and (called[1] == 64).all()
