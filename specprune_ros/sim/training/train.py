"""Behaviour cloning of the expert into an OpenVLA-OFT policy, without any token dropping.

What made it learn *which* thing is meant (plain cloning ignores the colour word while its loss
looks fine): FiLM by the instruction, a unit-size position code after it, a training-only loss on
which patch holds the named thing, and batches weighted to frames far from it. The patch loss alone
trains the towers first, at a tenth of the cost of a full step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from specprune_ros.bounded_files import boundary, check_regular, replacing
from specprune_ros.models.build import build
from specprune_ros.models.preprocess import Preprocessor
from specprune_ros.models.statistics import Statistics
from specprune_ros.models.tokens import Prompt, PromptTokenizer
from specprune_ros.pruning.interface import TokenLayout
from specprune_ros.sim.arm.layout import COLOURS
from specprune_ros.sim.training.dataset import Shard
from specprune_ros.sim.training.recipe import Recipe, Stage, policy_config, tokenizer

ROBOT = 'rizon4_like_sim'  # key of the statistics
_DIM_WEIGHT = (1.0, 1.0, 1.0, 0.2, 0.2, 0.5, 1.5)  # tilt corrections are noise, the gripper is not
_VALIDATION = 512  # frames


class TrainError(RuntimeError):
    """Training cannot start or go on; the message says what to do."""


@dataclass
class Batch:
    """Tensors of one step.

    ``ids`` ``[B, P]`` share a length. ``patches`` int64 ``[B, cameras, T]`` where cube and plate
    of each step are (-1 nowhere) and ``offsets`` ``[B, cameras, T, 2]`` where in it (right, down,
    -1..1).
    """

    images: Tensor
    ids: Tensor
    proprio: Tensor
    actions: Tensor
    weights: Tensor
    patches: Tensor
    offsets: Tensor


class Frames:
    """All frames of some shards, grouped by prompt length so that a batch needs no padding."""

    def __init__(
        self,
        shards: Sequence[Shard],
        recipe: Recipe,
        stage: Stage,
        statistics: Statistics | None = None,
    ) -> None:
        """``statistics`` of the training set, or ``None`` to take them from these frames."""
        if not shards or not sum(map(len, shards)):
            raise TrainError('no frames: record data first')
        self.recipe, self.stage, self.config = recipe, stage, policy_config(recipe, stage)
        self.shards = shards
        self.where = [(s, i) for s, shard in enumerate(shards) for i in range(len(shard))]
        self.far = np.concatenate([shard.far for shard in shards])
        self.words = np.concatenate([shard.words for shard in shards])
        self.valid = np.concatenate([shard.valid for shard in shards])
        actions = np.concatenate([shard.actions for shard in shards])
        proprio = np.concatenate([shard.proprio for shard in shards])
        self.entry = summary(actions[self.valid], proprio, len(shards))
        self.statistics = statistics or Statistics.from_json(
            {ROBOT: self.entry}, ROBOT, self.config.norm, 7, 8
        )
        self.actions = self.statistics.normalise_actions(actions).astype(np.float32)
        self.proprio = self.statistics.normalise_proprio(proprio).astype(np.float32)
        spots = np.concatenate([s.spots for s in shards])
        self.patches, self.offsets = _patches(spots, self.config.grid)
        prompts = PromptTokenizer(tokenizer(), self.config.template)
        self.ids = {word: np.array(prompts.encode(str(word)).ids) for word in set(self.words)}
        lengths = np.array([len(self.ids[word]) for word in self.words])
        self.groups = {int(p): np.flatnonzero(lengths == p) for p in np.unique(lengths)}
        self.tensors = Preprocessor(self.config)

    def __len__(self) -> int:
        return len(self.where)

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Indices of one batch: one prompt length, ``far_share`` of them far frames."""
        lengths = list(self.groups)
        shares = np.array([len(self.groups[p]) for p in lengths], np.float64)
        group = self.groups[lengths[int(rng.choice(len(lengths), p=shares / shares.sum()))]]
        far, near = group[self.far[group]], group[~self.far[group]]
        count = round(size * self.stage.far_share) if len(far) and len(near) else size
        first, rest = (far, near) if len(far) else (near, far)
        parts = [rng.choice(first, min(count, size))]
        if count < size:
            parts.append(rng.choice(rest, size - count))
        return np.concatenate(parts)

    def batch(self, index: np.ndarray, words: Sequence[str] | None = None) -> Batch:
        """The frames ``index``; ``words`` replaces their instructions (the colour-swap check)."""
        cameras, size = len(self.config.cameras), self.config.image_size
        images = np.stack(
            [self.shards[s].images(i, cameras, size) for s, i in (self.where[k] for k in index)]
        )
        instructions = self.words[index] if words is None else words
        ahead = np.linspace(1.0, 0.6, self.recipe.chunk, dtype=np.float32)
        weights = self.valid[index][..., None] * ahead[:, None] * np.float32(_DIM_WEIGHT)
        return Batch(
            images=torch.from_numpy(images),
            ids=torch.from_numpy(np.stack([self.ids[word] for word in instructions])),
            proprio=torch.from_numpy(self.proprio[index]),
            actions=torch.from_numpy(self.actions[index]),
            weights=torch.from_numpy(weights.astype(np.float32)),
            patches=torch.from_numpy(self.patches[index]),
            offsets=torch.from_numpy(self.offsets[index]),
        )

    def swapped(self, index: np.ndarray) -> list[str]:
        """Instructions of the frames with another colour for the cube."""
        names = list(COLOURS)
        found = []
        for instruction in map(str, self.words[index]):
            own = next(c for c in names if f'{c} cube' in instruction)
            other = names[(names.index(own) + 2) % len(names)]
            found.append(instruction.replace(f'{own} cube', f'{other} cube'))
            if found[-1] not in self.ids:
                prompts = PromptTokenizer(tokenizer(), self.config.template)
                self.ids[found[-1]] = np.array(prompts.encode(found[-1]).ids)
        return found


def _patches(spots: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Patch (int64 ``[N, cameras, 2]``, -1 out of view) and place in it (-1..1) of spots 0..1."""
    with np.errstate(invalid='ignore'):
        inside = ((spots >= 0) & (spots < 1)).all(-1)
    scaled = np.where(inside[..., None], spots, 0.0) * np.array(grid[::-1], np.float32)
    cell = np.floor(scaled)
    index = np.where(inside, cell[..., 1] * grid[1] + cell[..., 0], -1)
    return index.astype(np.int64), (2 * (scaled - cell) - 1).astype(np.float32)


def summary(actions: np.ndarray, proprio: np.ndarray, trajectories: int) -> dict[str, object]:
    """The statistics of a data set in the form of ``dataset_statistics.json``."""

    def numbers(values: np.ndarray) -> dict[str, list[float]]:
        rows = {
            'mean': values.mean(0),
            'std': values.std(0),
            'min': values.min(0),
            'max': values.max(0),
            'q01': np.quantile(values, 0.01, axis=0),
            'q99': np.quantile(values, 0.99, axis=0),
        }
        return {name: [float(x) for x in row] for name, row in rows.items()}

    return {
        'action': {**numbers(actions), 'mask': [True] * 6 + [False]},
        'proprio': numbers(proprio),
        'num_transitions': len(proprio),
        'num_trajectories': trajectories,
    }


class PatchHead(nn.Module):
    """Training only: which patch holds each named thing, and where in it."""

    def __init__(self, width: int, things: int) -> None:
        super().__init__()
        self.things = things
        self.score = nn.Linear(width, things)
        self.place = nn.Linear(width, 2 * things)

    def loss(self, vision: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss on ``[B, V, D]`` vision tokens, and the share of things found where they are."""
        cameras = batch.patches.shape[1]
        tokens = vision.unflatten(1, (cameras, -1)).float()
        logits = self.score(tokens).transpose(2, 3)
        patches = batch.patches.to(vision.device)
        known = patches >= 0
        which = F.cross_entropy(logits[known], patches[known])
        pick = patches.clamp(min=0)[..., None].expand(-1, -1, -1, tokens.shape[-1])
        places = self.place(tokens.gather(2, pick)).unflatten(-1, (self.things, 2))
        # Of the places a token tells, the first thing's for the first, and so on.
        places = torch.stack([places[:, :, i, i] for i in range(self.things)], 2)
        where = (places - batch.offsets.to(vision.device))[known].abs().mean()
        hit = (logits.argmax(-1) == patches)[known].float().mean()
        return which + where, hit


class Trainer:
    """Model, optimiser and averaged weights; one :meth:`step` at a time, resumable."""

    def __init__(
        self,
        recipe: Recipe,
        frames: Frames,
        device: str = 'cpu',
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """``start``: weights to begin with (``None``: random)."""
        self.recipe, self.frames, self.device = recipe, frames, torch.device(device)
        self.config, self.stage = frames.config, frames.stage
        self.model = build(self.config, recipe.seed, self.device).requires_grad_(True).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.patch_head = PatchHead(recipe.width, self.stage.things).to(self.device)
        if start is not None:
            self.model.load_state_dict(start)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        vision = [*self.model.vision.parameters(), *self.model.projector.parameters()]
        known = set(map(id, vision))
        rest = [p for p in self._parameters() if id(p) not in known]
        groups = []
        for parameters, share in ((vision, recipe.vision_rate), (rest, 1.0)):
            for decays in (True, False):
                chosen = [p for p in parameters if (p.ndim > 1) == decays]
                groups.append({'params': chosen, 'share': share})
                if not decays:
                    groups[-1]['weight_decay'] = 0.0
        self.optimiser = torch.optim.AdamW(
            groups,
            lr=self.stage.learning_rate,
            weight_decay=recipe.weight_decay,
            betas=(0.9, 0.98),
        )
        self.done, self.total = 0, self.stage.ground_steps + self.stage.steps
        self._layouts: dict[int, TokenLayout] = {}
        if self.device.type == 'cpu':  # despite its name: plain attention may stay in bfloat16
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        self._mean = frames.tensors.mean.to(self.device)
        self._std = frames.tensors.std.to(self.device)

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.patch_head.parameters()]

    @property
    def grounding(self) -> bool:
        """Whether the next step is one of the first kind, without the decoder."""
        return self.done < self.stage.ground_steps

    def rate(self) -> float:
        """Learning rate of the next step: linear warm-up, then half a cosine to a twentieth.

        Once for grounding and once for acting.
        """
        recipe = self.stage
        first = 0 if self.grounding else recipe.ground_steps
        count = recipe.ground_steps if self.grounding else recipe.steps
        step = self.done - first
        if step < recipe.warm_up:
            return recipe.learning_rate * (step + 1) / recipe.warm_up
        way = (step - recipe.warm_up) / max(1, count - recipe.warm_up)
        return recipe.learning_rate * (0.05 + 0.475 * (1 + math.cos(math.pi * min(way, 1.0))))

    def _pixels(self, batch: Batch) -> Tensor:
        images = batch.images.to(self.device).permute(0, 1, 4, 2, 3).float() / 255.0
        return ((images[:, :, None] - self._mean) / self._std).flatten(2, 3)

    def _attention(self) -> AbstractContextManager[None]:
        """On a CPU plain matrix products train faster than the fused kernel's backward pass."""
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == 'cpu' else nullcontext()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.recipe.precision == 'bfloat16'
        )

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Decoder input rows ``[B, L, D]`` and vision tokens ``[B, V, D]``."""
        with self._autocast(), self._attention():
            return self.model.embed_rows(
                self._pixels(batch), batch.ids.to(self.device), batch.proprio.to(self.device)
            )

    def predict(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Normalised actions float32 ``[B, K, 7]`` from the decoder's input rows."""
        with self._autocast(), self._attention():
            layout = self._layout(batch.ids.shape[1])
            output = self.model.decoder(hidden, layout, read=self.model.read(layout))
            return self.model.action_head(output.rows(*layout.action, layout)).float()

    def _layout(self, length: int) -> TokenLayout:
        if length not in self._layouts:
            self._layouts[length] = self.model.layout(Prompt((1,) * length, (1, length - 1)))
        return self._layouts[length]

    def action_loss(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Weighted mean absolute error of the normalised actions."""
        weights = batch.weights.to(self.device)
        error = (self.predict(batch, hidden) - batch.actions.to(self.device)).abs()
        return (error * weights).sum() / weights.sum()

    def step(self) -> tuple[float, float, float]:
        """One optimiser step on a batch fixed by seed and step number.

        Returns action loss (NaN while grounding), patch loss and patch hits. Raises
        :class:`TrainError` when the loss is no number.
        """
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, self.done])
        size = self.stage.ground_batch if self.grounding else self.stage.batch
        batch = self.frames.batch(self.frames.draw(rng, size))
        for group in self.optimiser.param_groups:
            group['lr'] = self.rate() * (1.0 if self.grounding else group['share'])
        hidden, vision = self.embed(batch)
        patch, hit = self.patch_head.loss(vision, batch)
        action = None
        loss = patch
        if not self.grounding:
            action = self.action_loss(batch, hidden)
            loss = action + recipe.patch_loss * patch
        if not bool(torch.isfinite(loss)):
            raise TrainError(f'the loss is {loss.item()} at step {self.done}: lower learning_rate')
        with self._attention():
            loss.backward()
        nn.utils.clip_grad_norm_(self._parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.done += 1
        keep = min(recipe.average, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        return math.nan if action is None else action.item(), patch.item(), hit.item()

    @torch.no_grad()
    def validate(self, frames: Frames, count: int = _VALIDATION) -> dict[str, float]:
        """On held-out frames with the averaged weights: losses, patch hits, and the colour gate.

        ``swap`` is the mean change of the normalised sideways motion when another colour is named,
        over far frames: near zero means that the word is ignored.
        """
        kept = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        rng = np.random.default_rng(12345)
        sums = dict.fromkeys(('action', 'patch', 'hit', 'swap'), 0.0)
        rounds = max(1, count // self.stage.batch)
        for _ in range(rounds):
            index = frames.draw(rng, self.stage.batch)
            batch = frames.batch(index)
            hidden, vision = self.embed(batch)
            patch, hit = self.patch_head.loss(vision, batch)
            action, actions = self.action_loss(batch, hidden), self.predict(batch, hidden)
            renamed = frames.batch(index, frames.swapped(index))
            other = self.predict(renamed, self.embed(renamed)[0])
            far = torch.from_numpy(frames.far[index]).to(self.device)
            change = (other - actions)[far][..., :2].abs().mean()
            for name, value in zip(sums, (action, patch, hit, change), strict=True):
                sums[name] += float(value) / rounds
        self.model.load_state_dict(kept)
        self.model.train()
        return sums

    def save(self, path: Path) -> None:
        """Write everything needed to go on; the file is whole or the old one."""
        state = {
            'recipe': self.recipe.until(self.stage).hash,
            'done': self.done,
            'model': self.model.state_dict(),
            'average': self.average,
            'patch_head': self.patch_head.state_dict(),
            'optimiser': self.optimiser.state_dict(),
        }
        with replacing(path) as part:
            torch.save(state, part)

    def load(self, path: Path) -> None:
        """Go on from :meth:`save`; :class:`TrainError` for another recipe or a broken file."""
        with boundary(path, TrainError, 'no training state; delete it to start anew'):
            check_regular(path)
            # On the CPU: AdamW would wait for a GPU to read its numbers of steps.
            state = torch.load(path, map_location='cpu', weights_only=True)
            if state['recipe'] != self.recipe.until(self.stage).hash:
                raise TrainError(
                    f'{path}: belongs to another recipe; delete it or take that recipe'
                )
            self.model.load_state_dict(state['model'])
            self.average = {name: state['average'][name].to(self.device) for name in self.average}
            self.patch_head.load_state_dict(state['patch_head'])
            self.optimiser.load_state_dict(state['optimiser'])
            self.done = int(state['done'])

    def take_head(self, path: Path) -> None:
        """Take the patch head of the stage before, where it names as many things."""
        with boundary(path, TrainError, 'no training state; delete it to start anew'):
            check_regular(path)
            state = torch.load(path, map_location=self.device, weights_only=True)['patch_head']
            if state['score.weight'].shape == self.patch_head.score.weight.shape:
                self.patch_head.load_state_dict(state)

    def averaged(self) -> nn.Module:
        """A copy of the network with the averaged weights, ready to act."""
        model = build(self.config, self.recipe.seed, self.device)
        model.load_state_dict(self.average)
        return model.eval()


Report = Callable[[int, float, float, float], None]


def fit(
    trainer: Trainer,
    checkpoint: Path,
    report: Report = lambda step, action, patch, hit: None,
    every_s: float = 120.0,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train to the recipe's last step, saving every ``every_s`` seconds and when stopped."""
    saved = time.monotonic()
    try:
        while trainer.done < trainer.total and not stop():
            report(trainer.done, *trainer.step())
            if time.monotonic() - saved > every_s:
                trainer.save(checkpoint)
                saved = time.monotonic()
    finally:
        trainer.save(checkpoint)
