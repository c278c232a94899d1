"""The vision transformers: DINOv2 with registers, SigLIP, CLIP, by configuration.

Only what the policies read is built: most leave out the last block and the final norm, all any
pooling head (``docs/how-to/checkpoints.md``). Names follow timm, which the OpenVLA checkpoints
use.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprune_ros.models.accel.fused import PLAIN
from specprune_ros.models.accel.streams import both
from specprune_ros.models.config import VisionConfig


class PatchEmbed(nn.Module):
    """Non-overlapping patches to rows; a convolution with stride = kernel, written as one GEMM."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.proj = nn.Linear(3 * config.patch**2, config.width, bias=config.patch_bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, patches, width]``, patches in row-major order."""
        count, channels, height, width = pixels.shape
        p = self.patch
        x = pixels.reshape(count, channels, height // p, p, width // p, p)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * p * p)
        return self.proj(x)


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


class FiLM(nn.Module):
    """Feature-wise modulation by the instruction (OFT+): gain and shift per channel."""

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Linear(condition, width)
        self.shift = nn.Linear(condition, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``[N, L, W]`` rows by ``[N, C]`` (or ``[1, C]``) conditions."""
        gain = (1 + self.scale(condition)).unsqueeze(-2)
        return x * gain + self.shift(condition).unsqueeze(-2)


class Block(nn.Module):
    """Pre-norm attention and MLP, with LayerScale and FiLM where configured."""

    def __init__(self, config: VisionConfig, film: int | None) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.activation = config.activation
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ls1 = LayerScale(width) if config.layer_scale else None
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.fc1 = nn.Linear(width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, width)
        self.ls2 = LayerScale(width) if config.layer_scale else None
        self.film = None if film is None else FiLM(film, width)
        self.kernels = PLAIN

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``[N, L, W]`` to the same shape."""
        count, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(count, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        branch = self.proj(mixed.reshape(count, length, width))
        if self.film is None:
            norm, gain = self.norm2, None if self.ls1 is None else self.ls1.gamma
            x, normed = self.kernels.add_layer_norm(
                x, branch, gain, norm.weight, norm.bias, norm.eps
            )
        else:
            x = self.film(_add(x, branch, self.ls1), condition)
            normed = self.norm2(x)
        hidden = self.fc1(normed)
        if self.activation == 'quick_gelu':
            hidden = self.kernels.quick_gelu(hidden)
        else:
            tanh = self.activation == 'gelu_tanh'
            hidden = F.gelu(hidden, approximate='tanh' if tanh else 'none')
        return _add(x, self.fc2(hidden), self.ls2)


def _add(x: Tensor, branch: Tensor, scale: LayerScale | None) -> Tensor:
    return x + branch if scale is None else torch.addcmul(x, branch, scale.gamma)


class VisionTower(nn.Module):
    """One vision transformer, as far as the policy reads it."""

    def __init__(self, config: VisionConfig, film: int | None = None) -> None:
        """``film`` is the width of the condition (the decoder's), or ``None`` without FiLM."""
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2, config.width))
        self.prefix = (
            nn.Parameter(torch.zeros(1, config.prefix, config.width)) if config.prefix else None
        )
        self.pre_norm = nn.LayerNorm(config.width, config.norm_eps) if config.pre_norm else None
        self.blocks = nn.ModuleList(Block(config, film) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if config.final_norm else None

    def forward(self, pixels: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalised ``[N, 3, S, S]`` to patch features ``[N, patches, width]``, row-major."""
        x = self.patch_embed(pixels) + self.pos_embed
        if self.prefix is not None:
            x = torch.cat((self.prefix.expand(x.shape[0], -1, -1), x), 1)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        for block in self.blocks:
            x = block(x, condition)
        x = x[:, self.config.prefix :]
        return x if self.norm is None else self.norm(x)


class VisionBackbone(nn.Module):
    """Towers that share images; their features are joined along channels, in order."""

    def __init__(self, towers: tuple[VisionConfig, ...], film: int | None = None) -> None:
        super().__init__()
        self.towers = nn.ModuleList(VisionTower(tower, film) for tower in towers)

    def forward(self, pixels: Tensor, condition: Tensor | None = None) -> Tensor:
        """``[N, 3 * towers, S, S]`` to ``[N, patches, sum of widths]``.

        Channels ``3 t .. 3 t + 2`` are the image normalised for tower ``t``.
        """
        if pixels.shape[1] != 3 * len(self.towers):
            raise ValueError(
                f'pixels must have {3 * len(self.towers)} channels (3 per tower), have '
                f'{pixels.shape[1]}'
            )
        runs = [
            partial(tower, part, condition)
            for tower, part in zip(self.towers, pixels.split(3, 1), strict=True)
        ]
        if len(runs) == 2:
            return torch.cat(both(*runs), -1)
        return torch.cat([run() for run in runs], -1) if len(runs) > 1 else runs[0]()


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
