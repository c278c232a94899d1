"""One layer of the decoder, and the attention rows that a pruner observes in it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprune_ros.models.accel.fp8 import linear_part
from specprune_ros.models.accel.fused import PLAIN, rms_norm
from specprune_ros.models.config import DecoderConfig
from specprune_ros.pruning.interface import RowGroup, TokenLayout

_MAP_ELEMENTS = 1 << 23  # float32 attention elements held at once by a side product (32 MiB)


class Attention(nn.Module):
    """Projections of one attention layer; queries, keys and values come from one GEMM."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.query_width = self.heads * self.head_dim
        both = self.query_width + 2 * self.kv_heads * self.head_dim
        self.qkv = nn.Linear(config.width, both, bias=config.qkv_bias)
        self.out = nn.Linear(self.query_width, config.width, bias=False)
        self.kernels = PLAIN

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, L, D]`` to rotated queries ``[B, H, L, d]`` and keys, and values ``[B, G, L,
        d]``.
        """
        batch, length, _ = x.shape
        split = self.heads + self.kv_heads
        qkv = self.qkv(x).view(batch, length, split + self.kv_heads, self.head_dim)
        turned = self.kernels.rotate(qkv[:, :, :split], cos, sin).transpose(1, 2)
        return turned[:, : self.heads], turned[:, self.heads :], qkv[:, :, split:].transpose(1, 2)

    def project_queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotated queries ``[B, H, m, d]`` of the rows ``x`` alone."""
        queries = linear_part(self.qkv, x, 0, self.query_width)
        queries = queries.view(*x.shape[:2], self.heads, self.head_dim)
        return self.kernels.rotate(queries, cos, sin).transpose(1, 2)

    def project_keys(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values, each ``[B, G, L, d]``."""
        both = linear_part(self.qkv, x, self.query_width, len(self.qkv.weight))
        both = both.view(*x.shape[:2], 2 * self.kv_heads, self.head_dim)
        keys = self.kernels.rotate(both[:, :, : self.kv_heads], cos, sin)
        return keys.transpose(1, 2), both[:, :, self.kv_heads :].transpose(1, 2)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Mask) -> Tensor:
        """Softmax attention ``[B, m, H * d]`` through SDPA."""
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask.tensor,
            is_causal=mask.causal,
            enable_gqa=self.kv_heads != self.heads,
        )
        return mixed.transpose(1, 2).reshape(queries.shape[0], queries.shape[2], self.query_width)


class Mask(NamedTuple):
    """How rows see columns: everything, square causal, or a bool table ``[rows, columns]``."""

    causal: bool = False
    tensor: Tensor | None = None


class Norm(nn.RMSNorm):
    """RMS norm whose weight may be wider than its input."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., W]`` to the same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)


class AdaptiveNorm(nn.Module):
    """RMS norm without a weight: scale, shift and gate are made from a condition (pi0.5)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.dense = nn.Linear(config.width, 3 * config.width)

    def modulation(self, condition: Tensor) -> Tensor:
        """``[..., W]`` to float32 ``[3, ..., W]``: one plus scale, shift, gate."""
        scale, shift, gate = self.dense(condition.to(self.dense.weight.dtype)).float().chunk(3, -1)
        return torch.stack((1 + scale, shift, gate))


class DecoderLayer(nn.Module):
    """Pre-norm attention and gated MLP; gate and up come from one GEMM."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attn_norm = norm_of(config)
        self.attn = Attention(config)
        self.mlp_norm = norm_of(config)
        self.gate_up = nn.Linear(config.width, 2 * config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, config.width, bias=False)
        self.silu = config.activation == 'silu'
        self.kernels = PLAIN

    def finish(self, x: Tensor, mixed: Tensor, after: Norm) -> tuple[Tensor, Tensor]:
        """Residual rows ``x`` and their attention output to the layer's output, and that under
        the norm that comes ``after``.
        """
        x, normed = self._add(x, self.attn.out(mixed), self.mlp_norm)
        return self._add(x, self._mlp(normed), after)

    def finish_modulated(
        self, x: Tensor, mixed: Tensor, gate: Tensor, mlp: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """:meth:`finish` with adaptive norms: the ``gate`` of this layer's first norm, and the
        modulations ``[3, ..., W]`` of its second and of the norm that comes ``after``.
        """
        add, eps = self.kernels.add_modulated_norm, self.mlp_norm.eps
        x, normed = add(x, self.attn.out(mixed), gate, mlp[0], mlp[1], eps)
        return add(x, self._mlp(normed), mlp[2], after[0], after[1], eps)

    def _mlp(self, normed: Tensor) -> Tensor:
        gated = self.kernels.swiglu if self.silu else self.kernels.geglu
        return self.down(gated(self.gate_up(normed)))

    def _add(self, x: Tensor, branch: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return self.kernels.add_rms_norm(x, branch, norm.weight, norm.eps)


def norm_of(config: DecoderConfig) -> Norm | AdaptiveNorm:
    """A norm of the decoder's kind."""
    return AdaptiveNorm(config) if config.adaptive else Norm(config.width, config.rms_norm_eps)


def head_mean(
    queries: Tensor, keys: Tensor, columns: slice, hidden: Tensor | None = None
) -> Tensor:
    """Head-mean softmax over all keys but the ``hidden`` ones, cut to ``columns``: float32
    ``[m, columns]`` from ``[1, H, m, d]`` and ``[1, G, n, d]``.
    """
    _, heads, count, width = queries.shape
    kv_heads, length = keys.shape[1:3]
    group = heads // kv_heads
    shape = (count, columns.stop - columns.start)
    total = torch.zeros(shape, dtype=torch.float32, device=keys.device)
    step = max(1, _MAP_ELEMENTS // max(1, count * length * group))
    for first in range(0, kv_heads, step):
        last = min(first + step, kv_heads)
        k = keys[0, first:last].float()
        q = queries[0, first * group : last * group].float()
        q = q.reshape(last - first, group * count, width) * width**-0.5
        logits = (q @ k.transpose(1, 2)).view(last - first, group, count, length)
        if hidden is not None:
            logits = logits.masked_fill(hidden, -torch.inf)
        total += logits.softmax(-1)[..., columns].sum((0, 1))
    return total / heads


def take(x: Tensor, pick: slice | Tensor, dim: int) -> Tensor:
    """The rows ``pick`` of ``x`` along ``dim``; a view where they are a slice."""
    if isinstance(pick, slice):
        return x.narrow(dim, pick.start, pick.stop - pick.start)
    return x.index_select(dim, pick)


def row_index(
    layout: TokenLayout, group: RowGroup, dropped: int, device: torch.device
) -> slice | Tensor:
    """Current indices of a row group when ``dropped`` vision rows are gone."""
    if group is RowGroup.ALL:
        return slice(0, layout.length - dropped)
    span = _span(layout, group)
    if span is not None:
        return slice(span[0] - dropped, span[1] - dropped)
    index = _scattered(layout, group, device)
    return index if dropped == 0 else index - dropped


@lru_cache(maxsize=256)
def _span(layout: TokenLayout, group: RowGroup) -> tuple[int, int] | None:
    rows = layout.rows(group)
    if rows and rows[0] < layout.vision_stop:
        raise ValueError(
            f'{group.value} rows must lie behind the images ({layout.vision_stop}), start at '
            f'{rows[0]}'
        )
    if not rows:
        return layout.vision_stop, layout.vision_stop
    contiguous = rows[-1] - rows[0] + 1 == len(rows)
    return (rows[0], rows[-1] + 1) if contiguous else None


@lru_cache(maxsize=64)
def _scattered(layout: TokenLayout, group: RowGroup, device: torch.device) -> Tensor:
    # Kept between queries: making a tensor from host numbers synchronises with the device.
    with torch.inference_mode(False):  # and it must serve training as well
        return torch.tensor(layout.rows(group), device=device)
