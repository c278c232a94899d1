"""The engine that runs every query at once, and prepares nothing for the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from specprune_ros.models.load import LoadedModel
from specprune_ros.models.tokens import Prompt
from specprune_ros.policy.batch_step import batchable, forward_batch
from specprune_ros.policy.forward_step import (
    Decode,
    GraphKey,
    HostStageTimer,
    StepInputs,
    StepOutputs,
    forward_step,
    read,
    stage_timer_on,
)
from specprune_ros.pruning.params import PruningParams


class EagerEngine:
    """Runs queries one operator at a time. ``decode`` runs the language model in the place of the
    package's own decoder.
    """

    status = 'eager'
    trouble = ''

    def __init__(self, loaded: LoadedModel, decode: Decode | None = None) -> None:
        self.loaded, self.decode = loaded, decode
        self.device = next(loaded.model.parameters()).device

    def run(
        self,
        key: GraphKey,
        inputs: StepInputs,
        cancelled: Callable[[], bool] | None = None,
        details: bool = False,
    ) -> StepOutputs:
        """Run one query and wait for its numbers. Raises ``Cancelled`` once ``cancelled``."""
        on_cpu = self.device.type == 'cpu'
        timer = HostStageTimer() if on_cpu else stage_timer_on(self.device)
        inputs = inputs if on_cpu else inputs.on(self.device)
        decode = None if cancelled else self.decode
        given = forward_step(
            self.loaded, key, inputs, timer, decode, details=details, cancelled=cancelled
        )
        numbers = given.packed.cpu().numpy()
        return read(given, numbers, self.loaded.config.chunk, timer.seconds())

    def can_batch(self, key: GraphKey, inputs: StepInputs) -> bool:
        """Whether queries of this key can run together: same shapes, whatever the data."""
        return self.decode is None and batchable(self.loaded.model, key, inputs)

    def run_batch(self, key: GraphKey, batch: Sequence[StepInputs]) -> list[StepOutputs]:
        """Run queries of one key together; ``seconds`` are those of the whole batch."""
        timer = stage_timer_on(self.device)
        there = [inputs.on(self.device) for inputs in batch]
        given = forward_batch(self.loaded, key, there, timer)
        numbers = torch.stack([one.packed for one in given]).cpu().numpy()
        chunk, seconds = self.loaded.config.chunk, timer.seconds()
        pairs = zip(given, numbers, strict=True)
        return [read(one, mine, chunk, seconds) for one, mine in pairs]

    def prepare(
        self, params: PruningParams, prompt: Prompt | None, ready: Callable[[], None]
    ) -> None:
        """Nothing to prepare: ``ready`` is called at once."""
        ready()

    def close(self) -> None:
        """Nothing to end."""
