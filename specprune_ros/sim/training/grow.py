"""Weights of one stage turned into the start of the next: finer patches, more or fewer layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from specprune_ros.models.build import build
from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.load import load_policy_model
from specprune_ros.sim.arm.layout import COLOURS


def grown(
    folder: Path, config: PolicyConfig, tokenizer: Tokenizer, seed: int
) -> dict[str, Tensor]:
    """Weights to start training ``config`` from the checkpoint in ``folder``.

    Words the checkpoint does not know begin near one that names the same colour.
    """
    loaded = load_policy_model(folder, progress=False)
    fresh, old = build(config, seed).state_dict(), loaded.model.state_dict()
    weights = grow(old, loaded.config, fresh, config)
    table = 'decoder.embed_tokens.weight'
    like = {f'{colour} one': f'{colour} cube' for colour in COLOURS}
    like |= {f'on the {colour} one': f'{colour} plate' for colour in COLOURS}
    weights[table] = carry_words(
        fresh[table], old[table], loaded.tokenizer.tokenizer, tokenizer, like
    )
    return weights


KEPT_LAYERS = 2  # shallow layers that get no copy: they run before anything is pruned


def grow(
    old: Mapping[str, Tensor],
    before: PolicyConfig,
    fresh: Mapping[str, Tensor],
    after: PolicyConfig,
) -> dict[str, Tensor]:
    """The weights ``old`` of a policy ``before`` as one of configuration ``after``.

    ``fresh``: initial weights of ``after``, which stay where nothing old fits. Patch kernels are
    resampled and scaled so that a patch of the same colour gives the same row, position tables
    interpolated (as ViT does for another resolution). A decoder layer more is a copy of the layer
    behind it with output projections of zero, so that the policy does the same as before and the
    copy attends as its original does (block expansion, LLaMA Pro, arXiv 2401.02415). A tower
    block less is the last but one's.
    """
    new = {name: value.clone() for name, value in fresh.items()}
    layers = layer_sources(before.decoder.depth, after.decoder.depth)
    for name in new:
        number = re.match(r'decoder\.layers\.(\d+)\.', name)
        tower = re.match(r'vision\.towers\.(\d+)\.', name)
        source, copy = name, False
        if number:
            index, copy = layers[int(number[1])]
            source = name.replace(number[0], f'decoder.layers.{index}.')
        elif tower:
            source = _tower_source(name, int(tower[1]), before, after)
        if source not in old:
            continue
        value = old[source].to(new[name].dtype)
        if copy and name.endswith(('attn.out.weight', 'down.weight')):
            value = torch.zeros_like(value)
        elif tower and name.endswith('patch_embed.proj.weight'):
            at = int(tower[1])
            value = patch_kernel(value, before.towers[at].patch, after.towers[at].patch)
        elif tower and name.endswith('pos_embed'):
            at = int(tower[1])
            value = position_table(value, before.towers[at].grid, after.towers[at].grid)
        if value.shape != new[name].shape:
            if name != 'decoder.embed_tokens.weight':
                raise ValueError(
                    f'{name}: {list(value.shape)} does not grow to {list(new[name].shape)}'
                )
            continue
        new[name] = value.clone()
    return new


def layer_sources(before: int, after: int) -> list[tuple[int, bool]]:
    """For every new decoder layer the old one (from 0) it is made from, and whether as a copy.

    Copies come right before their original, spread over the layers from ``KEPT_LAYERS`` on.
    """
    if after < before:
        raise ValueError(f'depth {before} does not shrink to {after}')
    extra, places = after - before, before - KEPT_LAYERS
    if extra and places < 1:
        raise ValueError(f'depth {before}: no layer behind the first {KEPT_LAYERS} to copy')
    counts = [0] * before
    for i in range(extra):
        counts[
            KEPT_LAYERS + i * places // extra if extra < places else KEPT_LAYERS + i % places
        ] += 1
    return [
        (index, copy < counts[index])
        for index in range(before)
        for copy in range(counts[index] + 1)
    ]


def _tower_source(name: str, tower: int, before: PolicyConfig, after: PolicyConfig) -> str:
    block = re.search(r'\.blocks\.(\d+)\.', name)
    old, new = before.towers[tower].blocks, after.towers[tower].blocks
    if block and int(block[1]) == new - 1 and old != new:  # the last stays last
        return name.replace(block[0], f'.blocks.{old - 1}.')
    return name


def patch_kernel(weight: Tensor, before: int, after: int) -> Tensor:
    """Kernel ``[width, 3 * before**2]`` for patches of ``after`` pixels."""
    if before == after:
        return weight
    image = weight.float().unflatten(1, (3, before, before))
    small = F.interpolate(image, (after, after), mode='bilinear', antialias=True)
    return (small * (before / after) ** 2).flatten(1).to(weight.dtype)


def position_table(table: Tensor, before: int, after: int) -> Tensor:
    """Position rows ``[1, before**2, width]`` for a grid of ``after`` patches a side."""
    if before == after:
        return table
    grid = table.float().unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (after, after), mode='bicubic', align_corners=True)
    return grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)


def carry_words(
    fresh: Tensor, old: Tensor, before: Tokenizer, after: Tokenizer, like: Mapping[str, str]
) -> Tensor:
    """Embedding rows of ``after`` from the table ``old`` by token; one that is new is what
    ``like`` names plus its ``fresh`` value, a third as strong.
    """
    table, ids = fresh.clone(), before.get_vocab()
    for token, row in after.get_vocab().items():
        if token in ids:
            table[row] = old[ids[token]]
        elif like.get(token) in ids:
            table[row] = old[ids[like[token]]] + table[row] / 3
    return table
