"""Merging LoRA layers that a checkpoint left unmerged (FiLM vision backbones of OFT+).

W = W_base + (alpha / r) B A, with alpha = min(r, 16) as OpenVLA-OFT trains (its r is 32).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from specprune_ros.models.checkpoint.files import CheckpointError

BASE, A, B = '.base_layer.', '.lora_A.default.weight', '.lora_B.default.weight'
PREFIXES = ('module.', 'base_model.model.', 'vision_backbone.')


def plain_name(name: str) -> str:
    """A stored name without the wrappers around the backbone."""
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name, changed = name.removeprefix(prefix), True
    return name


def merge(path: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain names to weights; those with LoRA are merged in float32 and stay so, for the loader to
    round once, to the dtype it runs in (rounding here costs a float32 run 1e-2).
    """
    tensors = {plain_name(name): value for name, value in stored.items()}
    merged = {
        name.replace(BASE, '.'): value
        for name, value in tensors.items()
        if not name.endswith((A, B))
    }
    for name, down in tensors.items():
        if not name.endswith(A):
            continue
        stem = name.removesuffix(A)
        up, base = tensors.get(stem + B), tensors.get(f'{stem}{BASE}weight')
        if up is None or base is None:
            raise CheckpointError(f'{path}: {name!r} has no {B} or base layer beside it')
        rank, up, down = down.shape[0], up.flatten(1), down.flatten(1)
        # Before anything of that size is made: small factors, and tensors that repeat a stored
        # number, may claim any.
        held = base.untyped_storage().nbytes()
        if (
            up.shape[1] != rank
            or up.shape[0] * down.shape[1] != base.numel()
            or base.numel() * base.element_size() > held
        ):
            raise CheckpointError(f'{path}: the LoRA shapes at {stem!r} do not fit its weight')
        product = up.float() @ down.float()
        scale = min(rank, 16) / rank
        merged[f'{stem}.weight'] = base.float() + scale * product.view_as(base)
    for name in tensors:
        if name.endswith(B) and name.removesuffix(B) + A not in tensors:
            raise CheckpointError(f'{path}: {name!r} has no {A} beside it')
    return merged
