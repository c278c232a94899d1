"""From the towers' channels to the decoder's width."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """Linear layers with exact (erf) GELU between them: three in OpenVLA, two in DB-OFT."""

    def __init__(self, width: int, hidden: tuple[int, ...], out: int) -> None:
        super().__init__()
        sizes = (width, *hidden, out)
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., out]``."""
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else F.gelu(x))
        return x


class PositionCode(nn.Module):
    """LayerNorm and a unit-size 2-D sine code on one camera's tokens.

    For small policies trained from scratch, whose position code is otherwise drowned by content.
    """

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f'position_code needs a decoder width divisible by 4, is {width}')
        self.grid, self.width = grid, width
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, rows * columns, width]`` to the same shape."""
        return self.norm(x) + sine_code(self.grid, self.width, x.device, x.dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def sine_code(
    grid: tuple[int, int],
    width: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """2-D sine code ``[rows * columns, width]``: a quarter each sin/cos of row and of column."""
    quarter = width // 4
    rate = torch.exp(-math.log(100.0) * torch.arange(quarter) / max(1, quarter))
    parts = []
    for size in grid:
        angle = torch.linspace(0, 2 * math.pi, size)[:, None] * rate
        parts.append(torch.cat((angle.sin(), angle.cos()), -1))
    rows, columns = parts
    code = torch.cat(
        (rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)), -1
    )
    return code.reshape(grid[0] * grid[1], -1).to(device, dtype)
