"""Queries of several sessions that wait for the model at the same time run as one batch.

Sessions query from threads of their own and wait; one thread owns the model. It takes the query
that has waited longest and those behind it that share its :class:`GraphKey`: layout, parameters,
mode and what is compared, so that every shape of the pass is the same. Nothing is padded.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from specprune_ros.models.tokens import Prompt
from specprune_ros.policy.device import current
from specprune_ros.policy.forward_step import GraphKey, StepInputs, StepOutputs
from specprune_ros.pruning.params import PruningParams


class Engine(Protocol):
    """What runs queries: eager or by CUDA graphs."""

    device: torch.device

    @property
    def status(self) -> str:
        """What runs the queries, in a few words."""

    @property
    def trouble(self) -> str:
        """Why the last query was not run as it was meant to be, or an empty text."""

    def run(self, key: GraphKey, inputs: StepInputs) -> StepOutputs:
        """Run one query."""

    def can_batch(self, key: GraphKey, inputs: StepInputs) -> bool:
        """Whether queries of this key may run together."""

    def run_batch(self, key: GraphKey, batch: Sequence[StepInputs]) -> list[StepOutputs]:
        """Run queries of one key together."""

    def prepare(
        self, params: PruningParams, prompt: Prompt | None, ready: Callable[[], None]
    ) -> None:
        """Prepare for parameters; ``ready`` is called when that is done."""

    def close(self) -> None:
        """End what runs in the background."""


@dataclass
class _Waiting:
    key: GraphKey
    inputs: StepInputs
    alone: bool
    released: bool = False  # waits for nobody any more
    since: float = field(default_factory=time.monotonic)
    done: Future[StepOutputs] = field(default_factory=Future)


class BatchingEngine:
    """An engine that many policies share; see the module's text.

    ``limit`` is the most queries of one batch (1: one after the other, in the order they came).
    ``window`` is how many seconds the longest waiting query waits for company at most: it bounds
    what batching can add to a latency. No query waits when as many as ``expected()`` are there.
    ``ran`` receives the size of every batch and the seconds its queries had waited.
    """

    def __init__(
        self,
        engine: Engine,
        limit: int = 8,
        window: float = 0.0,
        expected: Callable[[], int] = lambda: 1 << 30,
        ran: Callable[[int, Sequence[float]], None] = lambda size, waited: None,
    ) -> None:
        if limit < 1 or not window >= 0.0:
            raise ValueError(f'batch limit {limit}, window {window}: want 1 or more, 0 or more')
        self.engine, self.limit, self.window = engine, limit, window
        self.device = engine.device
        self._expected, self._ran = expected, ran
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name='batches', daemon=True)
        self._thread.start()

    @property
    def status(self) -> str:
        """What runs the queries, in a few words."""
        shared = f', batches of up to {self.limit}' if self.limit > 1 else ''
        return f'{self.engine.status}{shared}'

    @property
    def trouble(self) -> str:
        """Why the last query was not run as it was meant to be, or an empty text."""
        return self.engine.trouble

    @property
    def waiting(self) -> int:
        """Queries that wait for the model."""
        return len(self._queue)

    def run(
        self, key: GraphKey, inputs: StepInputs, cancelled: Callable[[], bool] | None = None
    ) -> StepOutputs:
        """Wait until the query was run, alone or with others; nothing is ``cancelled`` here. Any
        thread.
        """
        alone = self.limit == 1 or not self.engine.can_batch(key, inputs)
        waiting = _Waiting(key, inputs, alone)
        with self._changed:
            if self._ending:
                raise RuntimeError('the server is stopping')
            self._queue.append(waiting)
            self._changed.notify_all()
        return waiting.done.result()

    def prepare(
        self, params: PruningParams, prompt: Prompt | None, ready: Callable[[], None]
    ) -> None:
        """Let the engine prepare."""
        self.engine.prepare(params, prompt, ready)

    def close(self) -> None:
        """Nothing: the engine outlives each of its policies; see :meth:`shut_down`."""

    def shut_down(self) -> None:
        """Run what waits, then end the thread and the engine."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join()
        self.engine.close()

    @torch.inference_mode()
    def _work(self) -> None:
        with current(self.device):
            while batch := self._take():
                self._ran(len(batch), [time.monotonic() - one.since for one in batch])
                if len(batch) == 1 or not self._run_together(batch):
                    for one in batch:
                        self._run_alone(one)
                batch.clear()  # while nobody queries, nobody's tensors are held

    def _run_alone(self, one: _Waiting) -> None:
        try:
            one.done.set_result(_own(self.engine.run(one.key, one.inputs)))
        except BaseException as error:  # every caller gets it
            one.done.set_exception(error)

    def _run_together(self, batch: Sequence[_Waiting]) -> bool:
        """Whether that went well: what one query breaks must not be the others' failure."""
        try:
            outputs = self.engine.run_batch(batch[0].key, [one.inputs for one in batch])
        except Exception:
            return False
        for one, output in zip(batch, outputs, strict=True):
            one.done.set_result(output)
        return True

    def _take(self) -> list[_Waiting]:
        """The next batch, the longest waiting query first; empty at the end."""
        with self._changed:
            while True:
                if not self._queue:
                    if self._ending:
                        return []
                    self._changed.wait()
                    continue
                first = self._queue[0]
                batch = [first] if first.alone else self._like(first)
                left = first.since + self.window - time.monotonic()
                if len(self._queue) >= self._expected():
                    for one in self._queue:
                        one.released = True
                enough = first.alone or first.released or len(batch) >= self.limit
                if enough or left <= 0 or self._ending:
                    chosen = {id(one) for one in batch}
                    self._queue = deque(one for one in self._queue if id(one) not in chosen)
                    return batch
                self._changed.wait(left)

    def _like(self, first: _Waiting) -> list[_Waiting]:
        alike = (one for one in self._queue if not one.alone and one.key == first.key)
        return [one for one, _ in zip(alike, range(self.limit), strict=False)]


def _own(outputs: StepOutputs) -> StepOutputs:
    """Outputs whose tensors nobody writes over: a captured graph leaves every session's in the
    same place, where the next robot's query would be this one's prior.
    """
    given = outputs.device_outputs
    kept = replace(
        given,
        packed=given.packed.clone(),
        carry={name: tensor.clone() for name, tensor in given.carry.items()},
        sets={name: tensor.clone() for name, tensor in given.sets.items()},
        left=None if given.left is None else given.left.clone(),
    )
    return replace(outputs, device_outputs=kept)
