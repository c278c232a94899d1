"""The decoder as published pruning code runs it, to compare with; the benchmark's alone.

Those codes need the attention maps, which rules out fused attention: every layer
forms its whole softmax ``[H, L, L]`` and all of them are handed out. Queries, keys, values, gate
and up are products of their own, norms and rotations are spelled out, the last layer computes
every row. Written from that description; the weights are the decoder's own, as views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprune_ros.models.decoder import Decoder, DecoderOutput, LayerRows
from specprune_ros.models.decoder_layer import DecoderLayer
from specprune_ros.pruning.interface import TokenLayout


def stock_pass(
    decoder: Decoder, hidden: Tensor, layout: TokenLayout
) -> tuple[DecoderOutput, tuple[Tensor, ...]]:
    """A dense query ``[1, L, D]``: its output, and the attention map ``[1, H, L, L]`` of every
    layer in the model's dtype.
    """
    rows, depth = layout.length, decoder.config.depth
    cos, sin = decoder.rotary(rows, hidden.device, hidden.dtype)
    mask = None
    if decoder.config.causal:
        full = torch.full((rows, rows), torch.finfo(hidden.dtype).min, device=hidden.device)
        mask = full.triu(1).to(hidden.dtype)
    maps = []
    x = hidden
    for layer in decoder.layers:
        mixed, attention = _attention(layer, _norm(layer.attn_norm, x), cos, sin, mask)
        maps.append(attention)
        x = x + mixed
        x = x + _mlp(layer, _norm(layer.mlp_norm, x))
    output = DecoderOutput(
        hidden=_norm(decoder.norm, x),
        positions=torch.arange(rows, device=hidden.device),
        vision_ids=torch.arange(layout.vision_tokens, device=hidden.device),
        layer_tokens=(layout.vision_tokens,) * depth,
        layer_rows=(rows,) * depth,
        work=(LayerRows(rows, rows, rows),) * depth,
    )
    return output, tuple(maps)


def _norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * wide.to(x.dtype)


def _attention(
    layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    attn = layer.attn
    widths = (attn.query_width, *(attn.kv_heads * attn.head_dim,) * 2)
    weights = attn.qkv.weight.split(widths)
    biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.split(widths)
    queries, keys, values = (
        F.linear(x, weight, bias).view(*x.shape[:2], -1, attn.head_dim).transpose(1, 2)
        for weight, bias in zip(weights, biases, strict=True)
    )
    queries, keys = _turn(queries, cos, sin), _turn(keys, cos, sin)
    share = attn.heads // attn.kv_heads
    if share > 1:
        keys, values = (t.repeat_interleave(share, dim=1) for t in (keys, values))
    logits = queries @ keys.transpose(2, 3) * attn.head_dim**-0.5
    if mask is not None:
        logits = logits + mask
    attention = logits.softmax(-1, dtype=torch.float32).to(queries.dtype)
    mixed = (attention @ values).transpose(1, 2).contiguous()
    mixed = mixed.view(*x.shape[:2], attn.query_width)
    return F.linear(mixed, attn.out.weight), attention


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``[B, H, L, d]`` by the tables; the sign of the swapped half is in ``sin``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), -1) * sin


def _mlp(layer: DecoderLayer, x: Tensor) -> Tensor:
    gate, up = layer.gate_up.weight.chunk(2)
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), layer.down.weight)
