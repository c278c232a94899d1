"""Recorded expert episodes: frames as the policy sees them, action chunks with masks, in shards.

A shard is one ``.npz`` file made wholly from its number: the same number gives the same bytes.
Frames are kept losslessly compressed; a frame pair costs a few kilobytes.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specprune_ros.bounded_files import boundary, read_npz, replacing
from specprune_ros.models.preprocess import Preprocessor
from specprune_ros.policy.build import build_policy
from specprune_ros.pruning.params import PruningParams
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.episode import apply, observe
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.tasks.expert import Expert
from specprune_ros.sim.tasks.tasks import FAST, TIME_LIMIT, Judge, Pace, Task, make_episode
from specprune_ros.sim.training.recipe import Recipe, Stage, policy_config

TRAIN_SEED = 1_000_000  # evaluation takes seeds below, so no scene is in both
FAR = 0.03  # m sideways between tool and where it should go
_KEEP = {True: 6.0, False: 4.0}  # far and near frames recorded per second
_RENDERED = 224  # pixels rendered; the policy's own preprocessing makes them smaller


@dataclass
class Shard:
    """Frames of some episodes.

    ``blob``/``offsets``: compressed uint8 images ``[cameras, S, S, 3]`` of frame i. ``proprio``
    float32 ``[N, 8]``; ``actions`` float32 ``[N, K, 7]`` the expert's next rows and ``valid`` bool
    ``[N, K]`` (false after a disturbance the frame cannot foretell); ``spots`` float32
    ``[N, cameras, T, 2]`` where cube and plate of each step appear (right, down as shares; NaN:
    not); ``far`` bool ``[N]``; ``words`` the instruction of each frame.
    """

    blob: np.ndarray
    offsets: np.ndarray
    proprio: np.ndarray
    actions: np.ndarray
    valid: np.ndarray
    spots: np.ndarray
    far: np.ndarray
    words: np.ndarray

    def __len__(self) -> int:
        return len(self.far)

    def images(self, index: int, cameras: int, size: int) -> np.ndarray:
        """Frame ``index``: uint8 ``[cameras, size, size, 3]``."""
        first, last = self.offsets[index : index + 2]
        raw = zlib.decompress(self.blob[first:last].tobytes())
        return np.frombuffer(raw, np.uint8).reshape(cameras, size, size, 3)


def shard_path(folder: Path, number: int) -> Path:
    """Where shard ``number`` lies."""
    return folder / f'shard_{number:05d}.npz'


class EpisodeRecorder:
    """Plays expert episodes and records frames."""

    def __init__(self, recipe: Recipe, stage: Stage, before: Path | None = None) -> None:
        """``before``: checkpoint of the stage before, for a stage with a ``policy_share``."""
        self.recipe, self.stage = recipe, stage
        self.config = policy_config(recipe, stage)
        self.runner: PolicyRunner | None = None
        if stage.policy_share:
            if before is None:
                raise ValueError(f'recipe: stage {stage.name} needs the policy of a stage before')
            params = PruningParams(pruner='dense')
            self.runner = PolicyRunner(build_policy(str(before), device='cpu', params=params))
        self.world = World(image_size=(_RENDERED, _RENDERED), cameras=self.config.cameras)
        self.preprocess = Preprocessor(self.config)

    def close(self) -> None:
        """Free the renderer."""
        self.world.close()

    def shard(self, number: int) -> Shard:
        """Record shard ``number``."""
        count = self.stage.shard_episodes
        frames: list[dict[str, np.ndarray]] = []
        for index in range(number * count, (number + 1) * count):
            frames += self.episode(index)
        packed = [zlib.compress(frame.pop('images').tobytes(), 1) for frame in frames]
        offsets = np.cumsum([0] + [len(piece) for piece in packed]).astype(np.int64)
        columns = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
        return Shard(blob=np.frombuffer(b''.join(packed), np.uint8), offsets=offsets, **columns)

    def episode(self, index: int) -> list[dict[str, np.ndarray]]:
        """Frames of training episode ``index``, with disturbances thrown in."""
        world, chunk, pace = self.world, self.recipe.chunk, self.stage.pace
        cycle = self.stage.families
        episode = make_episode(TRAIN_SEED + index, cycle[index % len(cycle)])
        rng = np.random.default_rng([TRAIN_SEED + index, 99])
        world.reset(episode.seed, episode.layout)
        self._scatter(rng)
        task = episode.task
        judge, expert = Judge(world, task), Expert(world, task, pace)
        # As many steps as an episode may have, more where the arm is slower.
        most = TIME_LIMIT[task.family] * FAST.speed / pace.speed * pace.control_hz
        kicked = _disturbances(rng, round(most), pace)
        policy = None if rng.uniform() >= self.stage.policy_share else self.runner
        driven: frozenset[int] = frozenset()
        if policy is not None:
            driven, kicked = _stretches(rng, round(most), chunk, self.stage.stretch), {}
            policy.reset()
        rows = np.empty((0, 7))
        frames: list[dict[str, np.ndarray]] = []
        actions: list[np.ndarray] = []
        disturbed: list[bool] = []
        over = 0
        while over < chunk:
            action = expert()
            step = len(actions)
            far = self._far(expert)
            taken_over = step - 1 in driven
            # Where the policy drives, the expert's next rows are not known.
            if (
                over < 3
                and (over or step not in driven)
                and (
                    step == 0
                    or taken_over
                    or rng.uniform() < self.stage.keep * _KEEP[far] / pace.control_hz
                )
            ):
                frames.append({'step': np.int64(step), **self._frame(task.instruction, task, far)})
            actions.append(action)
            kick = kicked.get(step) if not over else None
            if policy is not None and step in driven and not over:
                if not len(rows):
                    rows = policy(observe(world, task.instruction)).copy()
                    if self.stage.push:
                        rows[:, :3] += rng.normal(0.0, self.stage.push, 3)
                kick, rows = rows[0], rows[1:]
            else:
                rows = rows[:0]
            disturbed.append(kick is not None)
            apply(world, action if kick is None else kick, 1 / pace.control_hz)
            over += int(judge.step() != 'running')
        if judge.outcome == 'collision':
            return []
        played, hit = np.stack(actions).astype(np.float32), np.array(disturbed)
        for frame in frames:
            step = int(frame.pop('step'))
            ahead = np.minimum(np.arange(step, step + chunk), len(played) - 1)
            frame['actions'] = played[ahead]
            before = np.concatenate([[False], np.cumsum(hit[ahead])[:-1] > 0])
            frame['valid'] = ~before & (np.arange(step, step + chunk) < len(played))
        return frames

    def _scatter(self, rng: np.random.Generator) -> None:
        """In a third of the episodes, start from somewhere else than the start pose."""
        if rng.uniform() < 0.35:
            twist = rng.uniform(-1, 1, 6) * (0.15, 0.15, 0.12, 0.02, 0.02, 0.3)
            self.world.command_twist(twist[:3], twist[3:])
            self.world.advance(float(rng.uniform(0.3, 0.9)))
            self.world.hold()
            self.world.advance(0.1)

    def _frame(self, words: str, task: Task, far: bool) -> dict[str, np.ndarray]:
        seen = observe(self.world, words)
        images = [self.preprocess.image(seen.images[name]) for name in self.config.cameras]
        named = [
            None if number is None else self.world.thing_pose(f'{kind}{number}')[0]
            for part in task.parts
            for kind, number in zip(('cube', 'plate'), part, strict=True)
        ]
        named += [None] * (self.stage.things - len(named))
        spots = [
            [
                np.full(2, np.nan) if point is None else self.world.project(name, point)
                for point in named
            ]
            for name in self.config.cameras
        ]
        return {
            'images': np.stack([image.numpy() for image in images]),
            'proprio': seen.proprio.astype(np.float32),
            'spots': np.array(spots, np.float32),
            'far': np.bool_(far),
            'words': np.str_(words),
        }

    def _far(self, expert: Expert) -> bool:
        """Whether the tool is not yet over what it should go to next."""
        world, (number, plate) = self.world, expert.step
        tool = world.tcp_pose()[0]
        cube = world.thing_pose(f'cube{number}')[0]
        if plate is not None and expert.holds(tool, cube, number):
            return bool(math.dist(cube[:2], world.thing_pose(f'plate{plate}')[0][:2]) > FAR)
        return bool(math.dist(tool[:2], cube[:2]) > FAR)


def _disturbances(rng: np.random.Generator, steps: int, pace: Pace) -> dict[int, np.ndarray]:
    """Control steps at which something else than the expert's action is played, and what."""
    kicks: dict[int, np.ndarray] = {}
    if rng.uniform() < 0.5:
        for _ in range(int(rng.integers(1, 3))):
            first = int(rng.integers(1, max(2, steps // 3)))
            push = rng.normal(size=3)
            push *= pace.shift * rng.uniform(0.4, 1.25) / np.linalg.norm(push)
            turn = (0.0, 0.0, pace.turn * float(rng.uniform(-0.7, 0.7)))
            grip = 0.0 if rng.uniform() < 0.15 else 1.0
            for step in range(first, first + int(rng.integers(2, 5) * pace.control_hz / 10)):
                kicks[step] = np.array([*push, *turn, grip])
    return kicks


def _stretches(rng: np.random.Generator, steps: int, chunk: int, most: int) -> frozenset[int]:
    """Control steps at which the policy drives: one to ``most`` chunks; then the expert for two to
    four.
    """
    driven: set[int] = set()
    step = int(rng.integers(0, 2)) * chunk
    while step < steps:
        end = step + int(rng.integers(1, most + 1)) * chunk
        driven.update(range(step, end))
        step = end + int(rng.integers(2 * chunk, 4 * chunk + 1))
    return frozenset(driven)


def save_shard(shard: Shard, path: Path) -> None:
    """Write a shard so that a file of that name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open('wb') as file:
        np.savez(file, **vars(shard))


def load_shard(path: Path) -> Shard:
    """Read a shard. Raises ``ValueError`` naming a file that is none."""
    with boundary(path, cure='no data shard of this version; delete it'):
        return Shard(**read_npz(path))


def record(
    recipe: Recipe,
    stage: Stage,
    folder: Path,
    numbers: Iterable[int],
    tick: Callable[[int], None] = lambda number: None,
    before: Path | None = None,
) -> None:
    """Record the shards that are not there yet; ``tick`` receives each finished number.

    ``before``: as for :class:`EpisodeRecorder`.
    """
    recorder: EpisodeRecorder | None = None
    try:
        for number in numbers:
            path = shard_path(folder, number)
            if not path.exists():
                recorder = recorder or EpisodeRecorder(recipe, stage, before)
                save_shard(recorder.shard(number), path)
            tick(number)
    finally:
        if recorder is not None:
            recorder.close()


def data_hash(shards: Iterable[Shard]) -> str:
    """Hex digest of what is in the shards (not of the files' time stamps)."""
    digest = hashlib.sha256()
    for shard in shards:
        for key, value in sorted(vars(shard).items()):
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
