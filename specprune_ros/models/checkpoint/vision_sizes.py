"""Tower sizes from stored shapes where the files are there, else from the tower's name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from specprune_ros.models.checkpoint.files import CheckpointError
from specprune_ros.models.config import VisionConfig

Shapes = Mapping[str, tuple[int, ...]]


def timm_sizes(shapes: Shapes, prefix: str, known: VisionConfig) -> tuple[VisionConfig, str]:
    """A timm tower's configuration and where its sizes come from; heads are always the known
    ones.
    """
    kernel = shapes.get(f'{prefix}patch_embed.proj.weight')
    position = shapes.get(f'{prefix}pos_embed')
    depth = count_layers(shapes, f'{prefix}blocks.')
    mlp = shapes.get(f'{prefix}blocks.0.mlp.fc1.weight') or shapes.get(
        f'{prefix}blocks.0.block.mlp.fc1.weight'
    )
    if kernel is None or position is None or mlp is None or len(kernel) != 4:
        return known, 'the tower name in config.json'
    sizes: dict[str, Any] = {
        'width': kernel[0],
        'patch': kernel[2],
        'image_size': side(position[1]) * kernel[2],
        'depth': depth,
        'mlp': mlp[0],
    }
    return replace(known, **sizes), 'tensor shapes'


def clip_sizes(shapes: Shapes, prefix: str, known: VisionConfig) -> tuple[VisionConfig, str]:
    """The same for a transformers CLIP tower."""
    kernel = shapes.get(f'{prefix}embeddings.patch_embedding.weight')
    position = shapes.get(f'{prefix}embeddings.position_embedding.weight')
    mlp = shapes.get(f'{prefix}encoder.layers.0.mlp.fc1.weight')
    if kernel is None or position is None or mlp is None or len(kernel) != 4:
        return known, 'mm_vision_tower in config.json'
    sizes: dict[str, Any] = {
        'width': kernel[0],
        'patch': kernel[2],
        'image_size': side(position[0] - 1) * kernel[2],
        'depth': count_layers(shapes, f'{prefix}encoder.layers.'),
        'mlp': mlp[0],
    }
    return replace(known, **sizes), 'tensor shapes'


def side(patches: int) -> int:
    """Patches along one side of a square grid."""
    root = math.isqrt(patches)
    if root * root != patches:
        raise CheckpointError(f'{patches} patch positions do not make a square grid')
    return root


def count_layers(shapes: Shapes, prefix: str) -> int:
    """One more than the highest layer number under ``prefix``."""
    pattern = re.compile(re.escape(prefix) + r'(\d+)\.')
    found = [int(match.group(1)) for name in shapes if (match := pattern.match(name))]
    return max(found, default=-1) + 1
