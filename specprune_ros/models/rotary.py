"""Rotary position embedding (Su et al. 2021), in the half-split form that Llama and Qwen2 use."""

from __future__ import annotations

import torch
from torch import Tensor


class RotaryTable:
    """cos and sin tables indexed by original position, made once per device and dtype.

    Not a module and without buffers: nothing to load, and nothing left behind on the meta device.
    """

    def __init__(self, head_dim: int, theta: float, rounded: bool = False) -> None:
        """``rounded``: frequencies rounded to bfloat16, as models cast as a whole have them."""
        self.head_dim, self.theta, self.rounded = head_dim, theta, rounded
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __call__(
        self, length: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """``cos`` and sign-folded ``sin``, each ``[length, head_dim]``, rounded from float32."""
        table = self._tables.get((device, dtype))
        if table is None or table[0].shape[0] < length:
            with torch.inference_mode(False):  # kept tables must serve training as well
                table = self._make(max(1024, length), device, dtype)
            self._tables[device, dtype] = table
        return table[0][:length], table[1][:length]

    def _make(self, rows: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        even = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        rate = self.theta**-even
        if self.rounded:
            rate = rate.bfloat16().float()
        angle = torch.outer(torch.arange(rows, dtype=torch.float32), rate)
        cos = angle.cos().repeat(1, 2)
        # rotate_half negates the second half when it moves to the front: fold that sign in.
        sin = torch.cat((-angle.sin(), angle.sin()), -1)
        return cos.to(device, dtype), sin.to(device, dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``x`` ``[B, L, H, d]`` by the tables ``[L, d]`` of its rows."""
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((second, first), -1)
    return torch.addcmul(x * cos[:, None], swapped, sin[:, None])
