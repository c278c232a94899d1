"""Linear layers of a CPU with their weights laid out as oneDNN's kernels read them.

PyTorch multiplies float32 by MKL with weights as they are stored, and bfloat16 by oneDNN, which
lays them out anew in every call. Laid out once they are faster, the more so the fewer the rows
(`benchmarks/cpu_options.py`). The operators are those that torch.compile puts into frozen models.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from specprune_ros.models.accel.device_memory import free_bytes

MARGIN = 2.0  # times their size must be free: they are then held twice, and others need room
_X86 = ('x86_64', 'AMD64')


class PackedLinear(nn.Module):
    """A linear layer, made from one on a CPU whose weight it shares. No gradients."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, 'none', [], '')


@torch.no_grad()
def pack(model: nn.Module) -> bool:
    """Replace the linear layers of a model on a CPU, in place; whether that was done.

    Nothing can be trained afterwards. Left alone where oneDNN is missing, on other processors than
    x86 (not measured there), where memory is short, and in number formats that oneDNN has no
    kernels for on this processor (bfloat16 without AVX-512).
    """
    if not torch.backends.mkldnn.is_available() or platform.machine() not in _X86:
        return False
    layers = [found for found in _linears(model) if supported(found[2].weight.dtype)]
    size = sum(linear.weight.nbytes for _, _, linear in layers)
    free = free_bytes('cpu')
    if not layers or (free is not None and MARGIN * size > free):
        return False
    for owner, name, linear in layers:
        setattr(owner, name, PackedLinear(linear))
    return True


def supported(dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for this number format on this processor."""
    if dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype is torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype is torch.float32


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for owner in model.modules():
        for name, child in owner.named_children():
            if type(child) is nn.Linear and child.weight.device.type == 'cpu':
                yield owner, name, child
