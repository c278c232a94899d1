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
from specprune_ros.sim.tasks.tasks import FAST, SLOW, Pace
from specprune_ros.sim.tasks.vocabulary import compounds, vocabulary


@dataclass(frozen=True)
class Stage:
    """Part of a training run, on top of the weights of the part before.

    ``shards`` of ``shard_episodes`` expert episodes at ``pace``, their tasks taken in turn from
    ``families``; ``keep`` scales how many of their frames are recorded. Stages of the same data
    (``data`` names it) share it; ``also`` names data of earlier stages that are trained on too.
    In ``policy_share`` of the episodes the policy of the stage before drives the arm, dense, and
    the expert takes over again and again, so that the frames show where that policy ends up
    (dataset aggregation, Ross et al. 2011): after ``stretch`` chunks at most, the rows of each
    shifted by a random motion of standard deviation ``push``, metres an axis (noise injection,
    Laskey et al. 2017). ``patch`` pixels, ``depth`` decoder layers and
    ``tower_depth`` may grow or shrink from the stage before (``grow``). First ``ground_steps`` of
    ``ground_batch`` frames train towers and projector alone to mark the named thing, which is
    cheap; then ``steps`` of ``batch`` frames train everything to act. ``far_share`` of a batch
    comes from frames further than ``dataset.FAR`` from where the tool should go, so that choosing
    the right thing weighs more than holding still above it.
    """

    name: str
    data: str
    pace: Pace = SLOW
    families: tuple[str, ...] = (
        'move', 'two_step', 'lift', 'put', 'put', 'lift', 'two_step', 'put',
    )  # fmt: skip
    shards: int = 4
    shard_episodes: int = 100
    keep: float = 0.6
    policy_share: float = 0.0
    stretch: int = 6
    push: float = 0.0
    also: tuple[str, ...] = ()
    patch: int = 16
    depth: int = 8
    tower_depth: int = 3
    ground_steps: int = 0
    ground_batch: int = 64
    steps: int = 1000
    batch: int = 32
    learning_rate: float = 5e-4
    warm_up: int = 50
    far_share: float = 0.6

    @property
    def things(self) -> int:
        """Things an instruction may name: a cube and a plate a step."""
        return 4 if 'two_step' in self.families else 2

    def __post_init__(self) -> None:
        for name in ('shards', 'shard_episodes', 'stretch', 'steps', 'batch', 'depth'):
            if getattr(self, name) < 1:
                raise ValueError(f'recipe.{name}: {getattr(self, name)}, want 1 or more')
        for name in ('far_share', 'policy_share'):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f'recipe.{name}: {getattr(self, name)}, want 0..1')


# What of a stage decides the episodes that it records.
RECORDED = ('pace', 'families', 'shard_episodes', 'keep', 'policy_share', 'stretch', 'push')

# Instructions of two parts once more, from where the policy ends up by now.
SETTLE = Stage(
    'settle', 'settle', families=('two_step', 'put', 'two_step', 'two_step'), policy_share=1.0,
    also=('slow', 'recover', 'again'), keep=1.0, depth=16, ground_steps=40, steps=1300,
)  # fmt: skip
# And from where it ends up when left alone for long and driven a little beside its course.
STRAY = dataclasses.replace(
    SETTLE, name='stray', data='stray', shards=6, stretch=14, push=4e-4,
    also=('slow', 'again', 'settle'), steps=1500,
)  # fmt: skip
STAGES = (
    # What the arm does, on few large patches and few layers, at a tenth of the cost.
    Stage(
        'coarse', 'fast', FAST, ('move', 'lift', 'put', 'lift', 'put', 'move', 'lift', 'put'),
        shards=44, keep=1.0, tower_depth=4, ground_steps=800, steps=3200, learning_rate=1e-3,
        warm_up=200,
    ),
    # Smaller steps, two-step instructions, a shallower tower.
    Stage('slow', 'slow', ground_steps=60, steps=330),
    # Four times as many patches.
    Stage('fine', 'slow', patch=8, steps=250, batch=16, learning_rate=4e-4, warm_up=20),
    # Twice the layers.
    Stage('deep', 'slow', patch=8, depth=16, steps=200, batch=16, learning_rate=3e-4, warm_up=20),
    # Twice as many episodes.
    Stage(
        'long', 'slow', shards=8, patch=8, depth=16, steps=350, batch=16, learning_rate=4e-4,
        warm_up=20,
    ),
    # The towers once more on where the named things are, then everything.
    Stage(
        'more', 'slow', shards=8, patch=8, depth=16, ground_steps=150, steps=240, batch=16,
        learning_rate=4e-4, warm_up=20,
    ),
    # Where the policy itself ends up, and how the expert goes on from there.
    Stage(
        'recover', 'recover', families=('put', 'two_step'), policy_share=1.0, also=('slow',),
        keep=1.0, patch=8, depth=16, ground_steps=60, steps=360, batch=16, learning_rate=4e-4,
        warm_up=20,
    ),
    # Which step of an instruction is next, on large patches again: four times the frames a minute.
    Stage(
        'decide', 'recover', families=('put', 'two_step'), policy_share=1.0, also=('slow',),
        keep=1.0, depth=16, ground_steps=120, steps=1100,
    ),
    # Where the policy ends up by now.
    Stage(
        'again', 'again', families=('two_step', 'put', 'two_step'), shards=3, policy_share=1.0,
        also=('slow', 'recover'), keep=1.0, depth=16, ground_steps=40, steps=1000,
    ),
    SETTLE,
    STRAY,
    # The same on small patches again.
    dataclasses.replace(
        STRAY, name='sharp', patch=8, ground_steps=60, steps=480, batch=16, learning_rate=4e-4,
        warm_up=20,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One training run: sizes that stay, and the stages they are trained in.

    ``patch_loss`` is relative to the action loss; ``vision_rate`` is the towers' share of the
    learning rate once they are grounded. No vision token is ever dropped in training.
    """

    seed: int = 0
    image_size: int = 128
    width: int = 128
    heads: int = 4
    mlp: int = 344
    tower_width: int = 96
    tower_mlp: int = 256
    chunk: int = 8
    weight_decay: float = 0.02
    patch_loss: float = 0.3
    vision_rate: float = 0.3
    average: float = 0.998
    precision: str = 'bfloat16'
    stages: tuple[Stage, ...] = STAGES

    def __post_init__(self) -> None:
        if self.precision not in ('bfloat16', 'float32'):
            raise ValueError(f'recipe.precision: {self.precision!r}, want bfloat16 or float32')

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    def data(self, stage: Stage) -> list[tuple[str, int]]:
        """Name and number of shards of everything ``stage`` trains on, its own first."""
        most = {each.data: 0 for each in self.until(stage).stages}
        for each in self.until(stage).stages:
            most[each.data] = max(most[each.data], each.shards)
        unknown = set(stage.also) - set(most)
        if unknown:
            raise ValueError(f'recipe.also: {sorted(unknown)}, want data of {sorted(most)}')
        return [(stage.data, stage.shards), *((name, most[name]) for name in stage.also)]

    def until(self, stage: Stage) -> Recipe:
        """This recipe without the stages after ``stage``."""
        return dataclasses.replace(self, stages=self.stages[: self.stages.index(stage) + 1])

    def recording(self, stage: Stage) -> str:
        """Hex digest of what decides the bytes of a shard of ``stage.data``, but its number."""
        what: dict[str, Any] = {name: getattr(self, name) for name in ('image_size', 'chunk')}
        fields = dataclasses.asdict(stage)
        for name in RECORDED:
            what[name] = fields[name]
        if stage.policy_share:  # the policy that drives is that of the stages before
            first = next(i for i, each in enumerate(self.stages) if each.data == stage.data)
            what['after'] = dataclasses.replace(self, stages=self.stages[:first]).hash
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """Inverse of :meth:`to_dict` (and of JSON)."""
        stages = tuple(
            Stage(
                **{
                    **s,
                    'pace': Pace(**s['pace']),
                    'families': tuple(s['families']),
                    'also': tuple(s.get('also', ())),
                }
            )
            for s in data['stages']
        )
        return cls(**{**data, 'stages': stages})

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


def policy_config(recipe: Recipe, stage: Stage | None = None) -> PolicyConfig:
    """The policy a recipe trains: OpenVLA-OFT at a small size, with FiLM and a position code.

    As it is after ``stage`` (``None``: the last).
    """
    stage = stage or recipe.stages[-1]
    tower = VisionConfig(
        name='sim-siglip',
        width=recipe.tower_width,
        depth=stage.tower_depth,
        heads=3,
        mlp=recipe.tower_mlp,
        patch=stage.patch,
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
            depth=stage.depth,
            heads=recipe.heads,
            mlp=recipe.mlp,
            # Two-step instructions have more words.
            vocab=96 if any('two_step' in s.families for s in recipe.stages) else 64,
            # Zero placeholders differ by position alone; a bias lets the first layer see that.
            qkv_bias=True,
            rope_theta=1000.0,
        ),
        cameras=('agent', 'wrist'),
        proprio_dim=8,
        action_dim=7,
        chunk=recipe.chunk,
        control_hz=stage.pace.control_hz,
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
