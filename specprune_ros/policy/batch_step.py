"""Queries of several robots as one: ``forward_step`` for a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specprune_ros.models.build import Network
from specprune_ros.models.decoder import DecoderOutput
from specprune_ros.models.decoder_batch import decode_batch
from specprune_ros.models.families.base import Embedded
from specprune_ros.models.load import LoadedModel
from specprune_ros.policy.forward_step import (
    DeviceOutputs,
    GraphKey,
    StageTimer,
    StepInputs,
    begin_pass,
    device_outputs,
)
from specprune_ros.pruning.interface import TokenLayout
from specprune_ros.pruning.registry import pruner
from specprune_ros.pruning.similarity import patch_cosine


def batchable(model: Network, key: GraphKey, inputs: StepInputs) -> bool:
    """Whether queries of this key can run together: every shape is known beforehand, and
    nothing of the pass lies with the host.
    """
    if inputs.cache is not None or not model.batches:
        return False
    method = pruner(key.params.pruner)
    if not getattr(method, 'pure', False):
        return False
    schedule = method.plan(key.layout, key.params, key.mode)
    first, stop = key.layout.action
    # Without rows of its own to read, a head goes on from the pass's keys and values.
    return schedule.static and not schedule.reuse and first < stop


def forward_batch(
    loaded: LoadedModel, key: GraphKey, batch: Sequence[StepInputs], timer: StageTimer
) -> list[DeviceOutputs]:
    """Run queries of one key. Each answer is that of the query alone, but for what another
    order of sums does to its last bits.
    """
    model, config = loaded.model, loaded.config
    timer.mark()
    similarity = [
        None
        if one.reference_images is None
        else patch_cosine(one.images, one.reference_images, config.grid)
        for one in batch
    ]
    images = torch.stack([one.images for one in batch])
    pixels = loaded.preprocessor.normalise(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    timer.mark()
    embedded = _embed(model, pixels, batch)
    timer.mark()
    passes = [
        begin_pass(model, key, *one) for one in zip(batch, embedded, similarity, strict=True)
    ]
    layout = embedded[0].layout
    hidden = torch.cat([one.hidden for one in embedded])
    outputs = decode_batch(model.decoder, hidden, layout, passes, layout.action)
    outcomes = [one.finish() for one in passes]
    timer.mark()
    actions = _head(model, outputs, layout, batch)
    given = [
        device_outputs(config, key, *one)
        for one in zip(embedded, outputs, outcomes, actions, strict=True)
    ]
    timer.mark()
    return given


def _embed(model: Network, pixels: Tensor, batch: Sequence[StepInputs]) -> list[Embedded]:
    """Input rows; towers and projector see all images at once."""
    ids = torch.cat([one.ids for one in batch])
    proprio = None
    if batch[0].proprio is not None:
        proprio = torch.stack([one.proprio for one in batch])
    hidden, vision = model.embed_rows(pixels, ids, proprio, batch[0].prompt.vision_at)
    layout = model.layout(batch[0].prompt)
    first, count = layout.prompt[0], len(layout.prompt)
    return [
        Embedded(rows[None], layout, tokens, rows[first : first + count])
        for rows, tokens in zip(hidden, vision, strict=True)
    ]


def _head(
    model: Network,
    outputs: Sequence[DecoderOutput],
    layout: TokenLayout,
    batch: Sequence[StepInputs],
) -> list[Tensor]:
    """Normalised actions ``[K, D]`` of each query."""
    return [
        model.head(output, layout, one.noise) for output, one in zip(outputs, batch, strict=True)
    ]
