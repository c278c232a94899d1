"""The engine that runs every query as it is asked, and knows nothing of the next."""

from __future__ import annotations

from collections.abc import Callable

from specprune_ros.models.load import LoadedModel
from specprune_ros.models.tokens import Prompt
from specprune_ros.policy.forward_step import (
    Decode,
    GraphKey,
    StepInputs,
    StepOutputs,
    answer,
    marks_on,
    plain_decode,
    read,
)
from specprune_ros.pruning.params import PruningParams


class Eager:
    """Answers questions one operator at a time. ``decode`` runs the language model."""

    status = 'eager'
    trouble = ''

    def __init__(self, loaded: LoadedModel, decode: Decode = plain_decode) -> None:
        self.loaded, self.decode = loaded, decode
        self.device = next(loaded.model.parameters()).device

    def ask(self, form: GraphKey, question: StepInputs) -> StepOutputs:
        """Run one query and wait for its numbers."""
        marks = marks_on(self.device)
        given = answer(self.loaded, form, question.on(self.device), marks, self.decode)
        numbers = given.packed.cpu().numpy()
        return read(given, numbers, self.loaded.config.chunk, marks.seconds())

    def prepare(
        self, params: PruningParams, prompt: Prompt | None, ready: Callable[[], None]
    ) -> None:
        """Nothing to prepare: ``ready`` is called at once."""
        ready()

    def close(self) -> None:
        """Nothing to end."""
