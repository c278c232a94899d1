"""One query from tensors to tensors: the same lines whether they run now or are captured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from specprune_ros.models.build import Network
from specprune_ros.models.decoder import DecoderOutput, KVCache
from specprune_ros.models.embedded import Embedded
from specprune_ros.models.flops import query_flops
from specprune_ros.models.load import LoadedModel
from specprune_ros.policy.engine.marks import Marks
from specprune_ros.policy.engine.question import Form, Question
from specprune_ros.pruning.interface import PassOutcome, PrunePass, QueryContext, TokenLayout
from specprune_ros.pruning.registry import pruner
from specprune_ros.pruning.similarity import patch_cosine

Decode = Callable[[Network, Embedded, PrunePass | None, KVCache | None], DecoderOutput]


@dataclass(frozen=True)
class Told:
    """What is known of a pass without its numbers: the same for every query of a captured form.

    ``sets`` names the token sets; ``layers``, ``after`` and ``mean`` are those of ``TokenCounts``;
    ``judged``: the prior can be judged by what this query attended to.
    """

    sets: tuple[str, ...]
    layers: tuple[int, ...]
    after: tuple[int, ...]
    mean: float
    judged: bool
    flops: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a query leaves on the device.

    ``packed``: float32, the normalised actions ``[K * D]`` and then ``counts``: tokens per set of
    ``told.sets``, their union, and for the prior: hits, wanted. ``carry`` is the next query's;
    ``sets`` are bool ``[V]``; ``left``: int64 patch ids after the last boundary, ``None`` where
    nothing was pruned.
    """

    packed: Tensor
    carry: dict[str, Tensor]
    sets: dict[str, Tensor]
    left: Tensor | None
    told: Told

    def tensors(self) -> dict[str, Tensor]:
        """Everything on the device, by name."""
        named = {
            'packed': self.packed,
            **{f'carry.{name}': value for name, value in self.carry.items()},
            **{f'set.{name}': value for name, value in self.sets.items()},
        }
        return named if self.left is None else {**named, 'left': self.left}


@dataclass(frozen=True)
class Reply:
    """An answer whose numbers the host has read.

    ``actions``: float64 ``[K, D]``, normalised. ``counts``: tokens per set. ``recall``: share of
    what this query attended to that the prior had named. ``seconds`` of the stages preprocess,
    vision, decoder, head; empty where they were not taken apart.
    """

    actions: np.ndarray
    counts: Mapping[str, int]
    union: int
    recall: float | None
    answer: Answer
    seconds: tuple[float, ...] = field(default=())


def plain_decode(
    model: Network, embedded: Embedded, prune_pass: PrunePass | None, cache: KVCache | None
) -> DecoderOutput:
    """The package's own decoder."""
    rows = model.read(embedded.layout)
    return model.decoder(embedded.hidden, embedded.layout, prune_pass, cache, rows)


def answer(
    loaded: LoadedModel,
    form: Form,
    question: Question,
    marks: Marks,
    decode: Decode = plain_decode,
) -> Answer:
    """Run the query. Nothing here waits for the device unless the pruner does."""
    model, config = loaded.model, loaded.config
    marks.mark()
    similarity = None
    if question.then is not None:
        similarity = patch_cosine(question.pictures, question.then, config.grid)
    pixels = loaded.preprocessor.normalise(question.pictures)
    marks.mark()
    embedded = model.embed(pixels, question.prompt, question.proprio, question.ids)
    marks.mark()
    context = QueryContext(
        layout=embedded.layout,
        params=form.params,
        mode=form.mode,
        similarity=similarity,
        carry=question.carry,
        pictures=question.pictures,
        vision=embedded.vision,
        text=embedded.text,
        probe=partial(model.decoder.probe, embedded.hidden, embedded.layout),
        speed_xyz=question.speed_xyz,
        displacement=question.displacement,
        seed=question.seed,
    )
    prune_pass = pruner(form.params.pruner).begin(context)
    output = decode(model, embedded, prune_pass, question.cache)
    outcome = prune_pass.finish()
    marks.mark()
    actions = model.head(output, embedded.layout, question.noise)
    counts, judged = _counts(outcome, embedded.layout, actions.device)
    packed = torch.cat((actions.float().flatten(), counts.float()))
    marks.mark()
    present = [count for count in output.layer_tokens if count]
    told = Told(
        sets=tuple(outcome.sets),
        layers=tuple(boundary for boundary, _ in outcome.kept),
        after=tuple(len(ids) for _, ids in outcome.kept),
        mean=float(np.mean(present)) if present else float(embedded.layout.vision_tokens),
        judged=judged,
        flops=float(query_flops(config, output).flops),
        notes=tuple(outcome.notes),
    )
    left = outcome.kept[-1][1] if outcome.kept else None
    return Answer(packed, outcome.carry, outcome.sets, left, told)


def _counts(
    outcome: PassOutcome, layout: TokenLayout, device: torch.device
) -> tuple[Tensor, bool]:
    """Tokens per set, their union, and the prior's hits and what it should have named."""
    union = torch.zeros(layout.vision_tokens, dtype=torch.bool, device=device)
    for name, members in outcome.sets.items():
        if name != 'fill':
            union = union | members.to(device)
    numbers = [members.to(device).sum() for members in outcome.sets.values()]
    numbers.append(union.sum())
    named = outcome.sets.get('global')
    judged = named is not None and outcome.attended is not None
    if judged:
        attended = outcome.attended()
        numbers += [(named & attended).sum(), attended.sum()]
    else:
        numbers += [torch.zeros((), dtype=torch.int64, device=device)] * 2
    return torch.stack(numbers), judged


def read(given: Answer, numbers: np.ndarray, chunk: int, seconds: tuple[float, ...] = ()) -> Reply:
    """The reply once ``numbers``, float32, ``given.packed`` on the host, are there."""
    told = given.told
    tail = len(told.sets) + 3
    actions = numbers[:-tail].astype(np.float64).reshape(chunk, -1)
    counts = [int(number) for number in numbers[-tail:]]
    union, hits, wanted = counts[-3:]
    return Reply(
        actions=actions,
        counts=dict(zip(told.sets, counts, strict=False)),
        union=union,
        recall=hits / wanted if told.judged and wanted else None,
        answer=given,
        seconds=seconds,
    )
