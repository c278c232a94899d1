"""Small pruners and mappings for the tests of the models."""

import torch

from specprune_ros.pruning.interface import (
    PassOutcome,
    PruneSchedule,
    RowGroup,
    Selection,
    TokenLayout,
)

EVERY = tuple(RowGroup)


def layout(depth=4, causal=False, cameras=2, grid=(3, 3), start=1, text=4, tail=7, gap=2):
    """A small sequence: ``start`` rows, images, ``gap`` rows, text, ``tail`` rows."""
    stop = start + cameras * grid[0] * grid[1]
    first = stop + gap
    return TokenLayout(
        cameras=cameras,
        grid=grid,
        vision_start=start,
        text=tuple(range(first + 1, first + text)),
        prompt=tuple(range(first, first + text)),
        action=(first + text, first + text + tail - 1),
        length=first + text + tail,
        depth=depth,
        causal=causal,
    )


class RecordingPass:
    """Keeps what a plan says, and everything it is shown."""

    def __init__(
        self,
        keep,
        observed_layers=None,
        skip=(),
        reuse=False,
        merge=None,
        exact=False,
        device=None,
    ):
        self.keep, self.merge = keep, merge or {}
        self.schedule = PruneSchedule(
            observed_layers=observed_layers or {},
            prune={
                boundary: None if exact else len(ids) + len(self.merge.get(boundary, ([],))[0])
                for boundary, ids in keep.items()
            },
            skip=frozenset(skip),
            reuse=reuse,
        )
        self.device = device
        self.attention = {}
        self.rows = {}

    def observe(self, layer, group, attention):
        self.attention[layer, group] = attention

    def select(self, boundary, rows):
        self.rows[boundary] = rows.clone()
        merge, position = self.merge.get(boundary, (None, None))
        return Selection(torch.as_tensor(self.keep[boundary], device=self.device), merge, position)

    def finish(self):
        return PassOutcome()


def keep_all(layout, boundaries=None, **options):
    """A pass that stops everywhere and drops nothing."""
    boundaries = range(layout.depth) if boundaries is None else boundaries
    return RecordingPass({b: list(range(layout.vision_tokens)) for b in boundaries}, **options)


def relative(ours, theirs):
    """Largest difference over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def map_llama(decoder, model):
    """Copy the weights of a transformers ``LlamaModel`` or ``Qwen2Model``."""
    with torch.no_grad():
        decoder.embed_tokens.weight.copy_(model.embed_tokens.weight)
        decoder.norm.weight.copy_(model.norm.weight)
        for ours, theirs in zip(decoder.layers, model.layers, strict=True):
            ours.attn_norm.weight.copy_(theirs.input_layernorm.weight)
            ours.mlp_norm.weight.copy_(theirs.post_attention_layernorm.weight)
            parts = [theirs.self_attn.q_proj, theirs.self_attn.k_proj, theirs.self_attn.v_proj]
            ours.attn.qkv.weight.copy_(torch.cat([p.weight for p in parts]))
            if ours.attn.qkv.bias is not None:
                ours.attn.qkv.bias.copy_(torch.cat([p.bias for p in parts]))
            ours.attn.out.weight.copy_(theirs.self_attn.o_proj.weight)
            ours.gate_up.weight.copy_(
                torch.cat((theirs.mlp.gate_proj.weight, theirs.mlp.up_proj.weight))
            )
            ours.down.weight.copy_(theirs.mlp.down_proj.weight)
