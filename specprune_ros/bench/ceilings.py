"""What a device can do at best, measured on it: one large GEMM and one memory pass, a second in
all.

The roofline of Williams et al. (CACM 2009): a stage cannot be faster than its operations at the
first rate or its bytes at the second, whichever takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from specprune_ros.models.accel.compat import scaled_mm
from specprune_ros.models.accel.fused import FLOAT8
from specprune_ros.policy.device import settle

BUFFER = 256 * 2**20  # bytes; more than any cache
SIDES = {'cpu': (768, 1536), 'cuda': (4096, 8192)}  # of square GEMMs
BATCH = 4  # calls between two looks at the clock


@dataclass(frozen=True)
class Ceilings:
    """``tflops``: 10^12 floating-point operations a second. ``gbs``: 10^9 bytes a second."""

    tflops: float
    gbs: float

    @property
    def balance(self) -> float:
        """Operations per byte from which on arithmetic, not memory, is the limit."""
        return 1000 * self.tflops / self.gbs

    def floor(self, flops: float, bytes_: float) -> float:
        """The least seconds for so many operations and bytes."""
        return max(flops / (1e12 * self.tflops), bytes_ / (1e9 * self.gbs))

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements: what disturbs one only ever lowers it."""
        return Ceilings(max(self.tflops, other.tflops), max(self.gbs, other.gbs))


def measure(
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    float8: bool = False,
    seconds: float = 0.25,
) -> Ceilings:
    """Both ceilings of a device in a number format; ``seconds`` for each of the four trials.

    With ``float8`` the GEMM may also be one of float8, whichever is faster.
    """
    place = torch.device(device)
    tflops = gbs = 0.0
    for side in SIDES.get(place.type, SIDES['cpu']):
        a, b = (torch.ones(side, side, device=place, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        took = _fastest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), place, seconds)
        if float8:
            took = min(took, _fastest(_float8(side, place), place, seconds))
        tflops = max(tflops, 2 * side**3 / took / 1e12)
    source = torch.ones(BUFFER // 4, device=place)
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), place, seconds)
    summed = _fastest(source.sum, place, seconds)
    # A copy moves every byte twice. Weights are only read: where reading is faster, it counts.
    gbs = max(2 * BUFFER / copied, BUFFER / summed) / 1e9
    return Ceilings(tflops, gbs)


def _float8(side: int, place: torch.device) -> Callable[[], object]:
    """A square GEMM as the decoder's are in float8."""
    a = torch.ones(side, side, device=place).to(FLOAT8)
    scale = torch.ones(side, 1, device=place)
    return lambda: scaled_mm(
        a,
        a.t(),
        scale_a=scale,
        scale_b=scale.t(),
        out_dtype=torch.bfloat16,
    )


def _fastest(call: Callable[[], object], place: torch.device, seconds: float) -> float:
    """Seconds of one call, the fastest of many."""
    call()
    best, begin = float('inf'), time.perf_counter()
    while time.perf_counter() - begin < seconds or best == float('inf'):
        settle(place)
        start = time.perf_counter()
        for _ in range(BATCH):
            call()
        settle(place)
        best = min(best, (time.perf_counter() - start) / BATCH)
    return best
