"""One query explained: what was kept, by which set, with which scores, at what cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from specprune_ros.bounded_files import boundary, read_npz
from specprune_ros.models.flops import dense_flops, query_flops
from specprune_ros.models.load import LoadedModel
from specprune_ros.policy.memory import SECOND_NS
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.policy.policy import Policy
from specprune_ros.pruning.controller import SpeedSample
from specprune_ros.pruning.params import PruningParams

BEFORE = 3  # dense queries before the one that is explained
PROPRIO_KEYS = ('state', 'proprio')
TEXT_KEYS = ('task_description', 'instruction')


class RecordError(ValueError):
    """An observation file that cannot be used; the message says what is missing."""


@dataclass(frozen=True)
class Record:
    """One recorded observation: uint8 images ``[height, width, 3]``, text, state or ``None``."""

    images: dict[str, np.ndarray]
    instruction: str
    proprio: np.ndarray | None


def read_record(path: Path) -> Record:
    """Read an npz file: every uint8 ``[height, width, 3]`` array is a camera, in file order.

    The instruction is under ``task_description`` or ``instruction``, proprioception under
    ``state`` or ``proprio``. Raises :class:`RecordError`; nothing is unpickled.
    """
    with boundary(path, RecordError, 'not a readable npz file'):
        arrays = read_npz(path)
    images = {
        name: value
        for name, value in arrays.items()
        if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3
    }
    if not images:
        raise RecordError(f'{path}: holds no image (uint8 [height, width, 3])')
    text = next((str(arrays[name]) for name in TEXT_KEYS if name in arrays), '')
    if not text.strip():
        raise RecordError(f'{path}: holds no instruction under {" or ".join(TEXT_KEYS)}')
    state = next((arrays[name] for name in PROPRIO_KEYS if name in arrays), None)
    with boundary(path, RecordError, 'proprioception is no list of numbers'):
        return Record(images, text, None if state is None else np.asarray(state, np.float64))


def shipped_records() -> tuple[Record, Record]:
    """Two observations of the simulated arm one chunk apart, that come with the package."""
    folder = Path(__file__).parents[1] / 'sim' / 'recording'
    return read_record(folder / 'before.npz'), read_record(folder / 'now.npz')


@dataclass
class Explanation:
    """What one query did. ``[V]`` arrays run camera by camera, row-major.

    ``kept`` lists ``(boundary, patch ids)``; ``sets`` bool ``[V]``; ``scores`` float ``[V]``;
    ``similarity`` float ``[V]`` or ``None``; ``layer_tokens`` vision tokens in each layer.
    """

    title: str
    instruction: str
    cameras: list[str]
    images: np.ndarray
    grid: tuple[int, int]
    kept: list[tuple[int, np.ndarray]]
    sets: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    similarity: np.ndarray | None
    layer_tokens: list[int]
    recall: float | None
    flops_ratio: float
    decoder_ratio: float
    notes: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Vision tokens before any pruning."""
        return len(self.cameras) * self.grid[0] * self.grid[1]

    def numbers(self) -> dict[str, Any]:
        """The account without the images, for JSON."""
        return {
            'title': self.title,
            'instruction': self.instruction,
            'tokens_in': self.tokens,
            'tokens_after': {str(boundary): len(ids) for boundary, ids in self.kept},
            'sets': {name: int(members.sum()) for name, members in self.sets.items()},
            'layer_tokens': self.layer_tokens,
            'prior_recall': self.recall,
            'flops_ratio': self.flops_ratio,
            'flops_ratio_decoder': self.decoder_ratio,
            'notes': self.notes,
        }

    def summary(self) -> str:
        """One line for people."""
        left = len(self.kept[-1][1]) if self.kept else self.tokens
        return (
            f'{self.title}: {self.tokens} to {left} vision tokens, '
            f'{self.flops_ratio:.0%} of the operations ({self.decoder_ratio:.0%} in the decoder)'
        )


def explain(
    loaded: LoadedModel, now: Record, before: Record, params: PruningParams, mode: str = 'coarse'
) -> Explanation:
    """Query a policy as the node does, dense on ``before`` and pruned on ``now``, and tell what
    the last query did.

    Raises RecordError where the record does not fit the model, ParamError where the parameters do
    not.
    """
    for record in (before, now):
        check_record(record, loaded.config)
    policy = Policy(loaded, params.replace(mode='dense'), max_normalised_action=math.inf)
    policy.check_params(params)
    policy.wants_overlay = False
    # Methods with a window of past queries need more than one; what they saw is the same.
    for number in range(BEFORE):
        policy.act(_observation(policy, before, number))
    policy.set_params(params.replace(mode=mode))
    result = policy.act(_observation(policy, now, BEFORE), details=True)
    details, layout = result.details, result.details.key.layout
    output, outcome = details.output, details.outcome
    spent = query_flops(loaded.config, output, layout.cameras)
    dense, similarity = dense_flops(loaded.config, layout), details.similarity
    return Explanation(
        title=f'{params.pruner}, {params.preset} preset, {result.mode.value}',
        instruction=now.instruction,
        cameras=list(now.images),
        images=details.inputs.images.cpu().numpy(),
        grid=layout.grid,
        kept=[(boundary, ids.cpu().numpy()) for boundary, ids in outcome.kept],
        sets={name: members.cpu().numpy() for name, members in outcome.sets.items()},
        scores={name: score.float().cpu().numpy() for name, score in outcome.scores.items()},
        similarity=None if similarity is None else similarity.cpu().numpy(),
        layer_tokens=list(output.layer_tokens),
        recall=outcome.recall,
        flops_ratio=spent.macs / dense.macs,
        decoder_ratio=(spent.decoder + spent.observing) / dense.decoder,
        notes=[*result.notes, *loaded.notes],
    )


def _observation(policy: Policy, record: Record, number: int) -> Observation:
    """The record as the query of that number: fast, and farther from the last each time."""
    stamp = round(number * policy.config.chunk * policy.step_dt * SECOND_NS)
    named = zip(policy.config.cameras, record.images.values(), strict=True)
    return Observation(
        images={camera: CameraImage(pixels, stamp) for camera, pixels in named},
        instruction=record.instruction,
        proprio=record.proprio,
        speed=SpeedSample(0.5, 0.5, 0.0, 'explain'),
        position=np.array([0.025 * number * (number + 1), 0.0, 0.3]),
    )


def check_record(record: Record, config: Any) -> None:
    """Raise :class:`RecordError` unless the record is what the model reads."""
    if len(record.images) != len(config.cameras):
        raise RecordError(
            f'{len(record.images)} image(s) ({", ".join(record.images)}), '
            f'the model reads {len(config.cameras)}'
        )
    if config.proprio_dim:
        shape = None if record.proprio is None else record.proprio.shape
        if shape != (config.proprio_dim,):
            raise RecordError(f'proprioception has shape {shape}, not ({config.proprio_dim},)')
