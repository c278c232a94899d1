"""One query explained: what was kept, by which set, with which scores, at what cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specprune_ros.bounded_files import boundary, read_npz
from specprune_ros.models.decoder import KVCache
from specprune_ros.models.flops import dense_flops, query_flops
from specprune_ros.models.load import LoadedModel
from specprune_ros.pruning.interface import Mode, QueryContext
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import pruner
from specprune_ros.pruning.similarity import patch_cosine

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
    loaded: LoadedModel,
    now: Record,
    before: Record,
    params: PruningParams,
    mode: str = 'coarse',
    seed: int = 0,
) -> Explanation:
    """Ask twice, dense on ``before`` and pruned on ``now``, and tell what the second did.

    Raises RecordError where the record does not fit the model, ParamError where the parameters do
    not.
    """

    model, config = loaded.model, loaded.config
    device = next(model.parameters()).device
    method = pruner(params.pruner)
    cache, carry, seen = KVCache(config.decoder.depth), {}, None
    with torch.inference_mode():
        # Methods with a window of past queries need more than one; what they saw is the same.
        records = [before] * 3 + [now]
        for number, record in enumerate(records):
            check_record(record, config)
            last = number == len(records) - 1
            pixels = loaded.preprocessor(list(record.images.values()))
            images = torch.as_tensor(pixels.images)
            proprio = None
            if config.proprio_dim:
                state = loaded.statistics.normalise_proprio(record.proprio)
                proprio = torch.from_numpy(np.asarray(state, np.float32)).to(device)
            prompt = loaded.tokenizer.encode(record.instruction)
            embedded = model.embed(pixels.tensor, prompt, proprio)
            layout = embedded.layout
            similarity = None
            if seen is not None:
                similarity = patch_cosine(images.to(device), seen.to(device), layout.grid)
            seen = images
            running = method.begin(
                QueryContext(
                    layout=layout,
                    params=params,
                    mode=Mode(mode) if last else Mode.DENSE,
                    similarity=similarity,
                    carry=carry,
                    images=images,
                    vision=embedded.vision,
                    text=embedded.text,
                    probe=partial(model.decoder.probe, embedded.hidden, layout),
                    speed_xyz=0.5,
                    displacement=0.05 * (number + 1),
                    seed=seed,
                )
            )
            plan = method.plan(layout, params, Mode(mode))
            output = model.decoder(
                embedded.hidden,
                layout,
                running,
                cache if plan.reuse else None,
                model.read(layout),
            )
            outcome = running.finish()
            carry = outcome.carry
    spent, dense = query_flops(config, output), dense_flops(config, layout)
    return Explanation(
        title=f'{params.pruner}, {params.preset} preset, {mode}',
        instruction=now.instruction,
        cameras=list(now.images),
        images=images.cpu().numpy(),
        grid=layout.grid,
        kept=[(boundary, ids.cpu().numpy()) for boundary, ids in outcome.kept],
        sets={name: members.cpu().numpy() for name, members in outcome.sets.items()},
        scores={name: score.float().cpu().numpy() for name, score in outcome.scores.items()},
        similarity=None if similarity is None else similarity.cpu().numpy(),
        layer_tokens=list(output.layer_tokens),
        recall=outcome.recall,
        flops_ratio=spent.macs / dense.macs,
        decoder_ratio=(spent.decoder + spent.observing) / dense.decoder,
        notes=[*outcome.notes, *loaded.notes],
    )


def check_record(record: Record, config: Any) -> None:
    """Raise :class:`RecordError` unless the model can be asked with this record."""
    if len(record.images) != len(config.cameras):
        raise RecordError(
            f'{len(record.images)} image(s) ({", ".join(record.images)}), '
            f'the model reads {len(config.cameras)}'
        )
    if config.proprio_dim:
        shape = None if record.proprio is None else record.proprio.shape
        if shape != (config.proprio_dim,):
            raise RecordError(f'proprioception has shape {shape}, not ({config.proprio_dim},)')
