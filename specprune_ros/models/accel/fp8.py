"""The decoder's linear layers in float8 (e4m3fn): half of bfloat16's bytes, twice its GEMM rate.

Every output channel of a weight and every row of an activation has a scale of its own, the rows'
measured anew in each call. Norms, attention, embeddings, towers and head stay as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprune_ros.models.accel import compat
from specprune_ros.models.accel.fused import FLOAT8, PLAIN, quantise

CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
MULTIPLE = 16  # of both sides of a weight: what scaled_mm takes on a GPU
_SLICE = 1024  # output channels quantised at once


class Float8Linear(nn.Module):
    """A linear layer in float8, made from one in bfloat16. No gradients."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = torch.empty(linear.weight.shape, dtype=FLOAT8, device=linear.weight.device)
        scale = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
        for first in range(0, len(weight), _SLICE):  # no float32 copy of the whole weight
            part = slice(first, first + _SLICE)
            weight[part], scale[part] = quantise(linear.weight.detach()[part])
        # Parameters, so that what a query reads is counted.
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias
        self.kernels = PLAIN

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, bfloat16."""
        return self.part(x, 0, len(self.weight))

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        """The output channels ``start..stop`` alone."""
        rows, scale = self.kernels.quantise(x.flatten(0, -2))
        out = compat.scaled_mm(
            rows,
            self.weight[start:stop].t(),
            scale_a=scale,
            scale_b=self.scale[start:stop].t(),
            bias=None if self.bias is None else self.bias[start:stop],
            out_dtype=x.dtype,
        )
        return out.unflatten(0, x.shape[:-1])


def number_format(decoder: nn.Module) -> str:
    """Of a decoder's weights, such as ``float32``, or ``bfloat16 + float8``."""
    float8 = any(isinstance(part, Float8Linear) for part in decoder.modules())
    name = str(decoder.embed_tokens.weight.dtype).removeprefix('torch.')
    return f'{name} + float8' if float8 else name


def linear_part(layer: nn.Linear | Float8Linear, x: Tensor, start: int, stop: int) -> Tensor:
    """The output channels ``start..stop`` of a linear layer, in whichever format it is."""
    if isinstance(layer, Float8Linear):
        return layer.part(x, start, stop)
    bias = None if layer.bias is None else layer.bias[start:stop]
    return F.linear(x, layer.weight[start:stop], bias)


def check_float8(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ``ValueError``, which names ``model.fp8``, unless float8 runs there, with the rest
    of the model in ``dtype``.

    A CPU may: slowly, to look at the numbers.
    """
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
        if torch.version.hip:
            raise ValueError(f'model.fp8: not supported on {name} (ROCm); leave it off')
        found = torch.cuda.get_device_capability(device)
        if found < CAPABILITY:
            raise ValueError(
                f'model.fp8: {name} has no float8 units (compute capability '
                f'{found[0]}.{found[1]}; Ada, 8.9, and Hopper, 9.0, have them); leave it off'
            )
    if dtype is not torch.bfloat16:
        raise ValueError(
            'model.fp8 takes the rest of the model in bfloat16; model.dtype is '
            f'{str(dtype).removeprefix("torch.")}: use bfloat16 or auto'
        )


@torch.no_grad()
def convert(decoder: nn.Module) -> tuple[str, ...]:
    """Put the linear layers of a :class:`~specprune_ros.models.decoder.Decoder` in float8, in
    place: each lets go of its bfloat16 weight before the next is touched.

    Returns the names of those that stay in bfloat16, as their sides are no multiples of 16.
    """
    left = []
    for layer in decoder.layers:
        for owner, name in (
            (layer.attn, 'qkv'),
            (layer.attn, 'out'),
            (layer, 'gate_up'),
            (layer, 'down'),
        ):
            linear = getattr(owner, name)
            parts = [*linear.weight.shape, layer.attn.query_width]  # qkv is also used in parts
            if any(side % MULTIPLE for side in parts):
                left.append(name)
                continue
            converted = Float8Linear(linear)
            converted.kernels = owner.kernels
            setattr(owner, name, converted)
    return tuple(dict.fromkeys(left))
