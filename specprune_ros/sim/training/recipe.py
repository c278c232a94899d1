"""Everything that decides the trained weights: sizes, data, schedule, seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from specprune_ros.models.config import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ActionConfig,
    DecoderConfig,
    PolicyConfig,
    VisionConfig,
)
from specprune_ros.models.tokens import word_tokenizer
from specprune_ros.sim.tasks.tasks import CONTROL_HZ
from specprune_ros.sim.tasks.vocabulary import compounds, vocabulary


@dataclass(frozen=True)
class Recipe:
    """One training run.

    ``shards`` of ``shard_episodes`` episodes each. First ``ground_steps`` of ``ground_batch``
    frames train towers and projector alone to mark the named thing, which is cheap; then ``steps``
    of ``batch`` frames train everything to act. ``far_share`` of a batch comes from frames further
    than ``sim.dataset.FAR`` from where the tool should go, so that choosing the right thing weighs
    more than holding still above it. ``patch_loss`` is relative to the action loss;
    ``vision_rate`` is the towers' share of the learning rate once they are grounded. No vision
    token is ever dropped in training.
    """

    seed: int = 0
    image_size: int = 128
    patch: int = 16
    width: int = 128
    depth: int = 8
    heads: int = 4
    mlp: int = 344
    tower_width: int = 96
    tower_depth: int = 4
    tower_mlp: int = 256
    chunk: int = 8
    shards: int = 44
    shard_episodes: int = 100
    ground_steps: int = 800
    ground_batch: int = 64
    steps: int = 3200
    batch: int = 32
    learning_rate: float = 1e-3
    warm_up: int = 200
    weight_decay: float = 0.02
    far_share: float = 0.6
    patch_loss: float = 0.3
    vision_rate: float = 0.3
    average: float = 0.998
    precision: str = 'bfloat16'

    def __post_init__(self) -> None:
        for name in ('shards', 'shard_episodes', 'steps', 'batch', 'depth', 'chunk'):
            if getattr(self, name) < 1:
                raise ValueError(f'recipe.{name}: {getattr(self, name)}, want 1 or more')
        if not 0.0 <= self.far_share <= 1.0:
            raise ValueError(f'recipe.far_share: {self.far_share}, want 0..1')
        if self.precision not in ('bfloat16', 'float32'):
            raise ValueError(f'recipe.precision: {self.precision!r}, want bfloat16 or float32')

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @property
    def hash(self) -> str:
        """Hex digest that names this recipe."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def tokenizer() -> Tokenizer:
    """Word-level tokenizer of the simulated tasks; ``red cube`` and its like are one token."""
    made = word_tokenizer(vocabulary())
    made.add_tokens(list(compounds()))
    return made


def policy_config(recipe: Recipe) -> PolicyConfig:
    """The policy a recipe trains: OpenVLA-OFT at a small size, with FiLM and a position code."""
    tower = VisionConfig(
        name='sim-siglip',
        width=recipe.tower_width,
        depth=recipe.tower_depth,
        heads=3,
        mlp=recipe.tower_mlp,
        patch=recipe.patch,
        image_size=recipe.image_size,
        mean=HALF,
        std=HALF,
    )
    dino = dataclasses.replace(
        tower,
        name='sim-dino',
        class_token=True,
        registers=4,
        layer_scale=True,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return PolicyConfig(
        family='openvla-oft',
        towers=(dino, tower),
        decoder=DecoderConfig(
            width=recipe.width,
            depth=recipe.depth,
            heads=recipe.heads,
            mlp=recipe.mlp,
            vocab=64,
            # Zero placeholders differ by position alone; a bias lets the first layer see that.
            qkv_bias=True,
            rope_theta=1000.0,
        ),
        cameras=('agent', 'wrist'),
        proprio_dim=8,
        action_dim=7,
        chunk=recipe.chunk,
        control_hz=CONTROL_HZ,
        norm='q99',
        action=ActionConfig(),
        projector=(256, recipe.width),
        film=True,
        center_crop=False,
        jpeg=False,
        position_code=True,
        template='plain',
        max_prompt=64,
    )
