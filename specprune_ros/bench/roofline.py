"""What bounds a query: what its device can do at best, and the weights it has to read.

The device is measured by one large GEMM and one memory pass, a second in all. Of the bytes,
activations and attention maps are left out, so what is counted is a lower bound; at the 7B size
they are a few per cent of it.

The roofline of Williams et al. (CACM 2009): a stage cannot be faster than its operations at the
first rate or its bytes at the second, whichever takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from specprune_ros.models.accel.compat import scaled_mm
from specprune_ros.models.accel.device_memory import weight_bytes
from specprune_ros.models.accel.fused import FLOAT8
from specprune_ros.models.build import Network
from specprune_ros.models.decoder import LayerRows
from specprune_ros.models.decoder_layer import AdaptiveNorm
from specprune_ros.models.families.pi0 import FlowPolicy
from specprune_ros.policy.device import settle

BUFFER = 256 * 2**20  # bytes; more than any cache
SIDES = {'cpu': (768, 1536), 'cuda': (4096, 8192)}  # of square GEMMs
BATCH = 4  # calls between two readings of the clock


@dataclass(frozen=True)
class Ceilings:
    """``tflops``: 10^12 floating-point operations a second. ``gbs``: 10^9 bytes a second."""

    tflops: float
    gbs: float

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


@dataclass(frozen=True)
class WeightBytesRead:
    """Bytes per stage, as :class:`~specprune_ros.policy.result.StageTimes` cuts a query."""

    vision: int
    decoder: int
    head: int

    @property
    def total(self) -> int:
        """Bytes of the whole query."""
        return self.vision + self.decoder + self.head


def weight_traffic(model: Network, work: Sequence[LayerRows]) -> WeightBytesRead:
    """Weights of the towers and projectors, of the decoder layers that ran, and of the head.

    A diffusion head and an action expert read their weights once per step. Embedding tables are
    looked up, not read.
    """
    if model.config.flow is not None:
        return _flow_traffic(model, work)
    before = (getattr(model, name, None) for name in ('vision', 'projector', 'proprio'))
    dit, ddim = model.config.dit, model.config.ddim
    head = weight_bytes(model.action_head) * (dit.ddim_steps if dit else 1)
    decoder = sum(
        weight_bytes(layer)
        for layer, rows in zip(model.decoder.layers, work, strict=True)
        if rows.inputs
    )
    if ddim is not None:  # every step runs the decoder once more
        head = ddim.steps * (head + decoder + weight_bytes(model.noisy_action))
    return WeightBytesRead(
        vision=sum(weight_bytes(part) for part in before if isinstance(part, nn.Module)),
        decoder=decoder,
        head=head,
    )


def _flow_traffic(model: FlowPolicy, work: Sequence[LayerRows]) -> WeightBytesRead:
    """pi0 and pi0.5: of a layer without queries only the keys' and values' part is read; what
    time modulates lies in tables.
    """
    prefix = 0
    for layer, rows in zip(model.decoder.layers, work, strict=True):
        weight = layer.attn.qkv.weight
        keys = weight.nbytes * (len(weight) - layer.attn.query_width) // len(weight)
        prefix += weight_bytes(layer) if rows.queries else keys
    tabulated = sum(
        weight_bytes(part) for part in model.expert.modules() if isinstance(part, AdaptiveNorm)
    )
    step = weight_bytes(model.expert) - tabulated
    step += weight_bytes(model.action_in) + weight_bytes(model.action_out)
    if not model.config.flow.expert.adaptive:
        step += weight_bytes(model.time_in) + weight_bytes(model.time_out)
    return WeightBytesRead(
        vision=weight_bytes(model.vision) + weight_bytes(model.projector),
        decoder=prefix,
        head=model.config.flow.steps * step,
    )
