"""The engine that holds a whole query in one CUDA graph: one replay, not thousands of launches.

A graph is captured per :class:`GraphKey` (layout, budgets, mode). All graphs read the same input
buffers, write the same output buffers and share one pool, since only one runs at a time. A thread
of its own captures; until it is done, queries are answered eagerly or by the graph before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from specprune_ros.models.families.pi0 import Guide
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.tokens import Prompt, id_rows
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.forward_step import (
    DeviceOutputs,
    GraphKey,
    StageTimer,
    StepInputs,
    StepOutputs,
    compares,
    forward_step,
    read,
    stage_timer_on,
)
from specprune_ros.policy.real_time_chunking import Continuation, guide
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import is_capturable, pruner

LIMIT = 24  # graphs kept, the longest unused leaves first
REPEATS = 4  # pruned queries until a method that remembers several queries remembers as many
PATIENCE = 3  # captures that may fail in a row before no more are tried


class GraphCapturer(Protocol):
    """What captures and replays: ``CudaGraphCapturer`` on a GPU."""

    def record(self, run: Callable[[], None], warm: Callable[[], None]) -> Callable[[], None]:
        """Capture ``run`` after ``warm``; what comes back replays it."""

    def serving(self) -> AbstractContextManager[None]:
        """Where replays run; done when it is left."""

    def preparing(self) -> AbstractContextManager[None]:
        """Where everything before a capture runs."""

    def timer(self) -> StageTimer:
        """StageTimer that a replay sets anew."""

    def staging(self, like: Tensor) -> Tensor:
        """A tensor on the host to read numbers through."""


@dataclass
class _Captured:
    replay: Callable[[], None]
    inputs: dict[str, Tensor]
    device_outputs: DeviceOutputs
    timer: StageTimer


@dataclass(frozen=True)
class _CaptureJob:
    """All keys that parameters and an instruction will need, with so many ``cameras`` (``None``:
    all) and, where ``guided``, a chunk to go on from; ``ready`` are called afterwards.
    """

    params: PruningParams
    prompt: Prompt
    cameras: int | None
    guided: bool
    ready: tuple[Callable[[], None], ...] = ()


class CudaGraphEngine:
    """Answers steps by captured graphs; see the module's text.

    ``status`` and ``trouble`` are messages for the user: what is captured, and why something
    is answered eagerly that was meant to be captured (empty: nothing is).
    """

    def __init__(self, loaded: LoadedModel, capturer: GraphCapturer, limit: int = LIMIT) -> None:
        self.loaded = loaded
        self.trouble = ''
        self._capturer, self._limit = capturer, limit
        self._eager = EagerEngine(loaded)
        self.device = self._eager.device
        self._graphs: OrderedDict[GraphKey, _Captured] = OrderedDict()
        self._refused: dict[GraphKey, str] = {}
        self._dropped: set[GraphKey] = set()  # to make room
        self._buffers: dict[tuple[object, ...], Tensor] = {}
        self._failures = 0
        self._last_failure = ''
        # What the last queries were like where no parameter says it: the next ones will be, too.
        self._instruction: Prompt | None = None
        self._cameras: int | None = None
        self._guided = False
        self._jobs: deque[_CaptureJob | tuple[GraphKey, StepInputs]] = deque()
        self._busy = False
        self._ending = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def status(self) -> str:
        """What the engine holds, in a few words."""
        with self._changed:
            waiting = len(self._jobs) + self._busy
            held = f'{len(self._graphs)} CUDA graphs'
        return f'{held}, capturing' if waiting else held

    def run(
        self, key: GraphKey, inputs: StepInputs, cancelled: Callable[[], bool] | None = None
    ) -> StepOutputs:
        """Replay the key's graph and wait for its numbers; eagerly where there is none yet.

        A replay cannot be given up: ``cancelled`` only counts where there is none.
        """
        with self._changed:
            self._instruction, self._cameras = inputs.prompt, key.layout.cameras
            # A dense one that is not guided says nothing: it has no past, or is a refresh.
            if key.guided or key.mode is not Mode.DENSE:
                self._guided = key.guided
            captured = self._graphs.get(key)
            if captured is not None:
                self._graphs.move_to_end(key)
        if captured is None:
            outputs = self._eager.run(key, inputs, cancelled)
            self.trouble = self._want(key, inputs)
            return outputs
        self.trouble = ''
        with self._capturer.serving():
            for name, tensor in inputs.tensors().items():
                if tensor is not captured.inputs[name]:
                    captured.inputs[name].copy_(tensor, non_blocking=True)
            captured.replay()
            packed = captured.device_outputs.packed
            staged = self._buffer('staged', packed, self._capturer.staging)
            staged.copy_(packed, non_blocking=True)
        # A copy: the next query writes over what is staged.
        numbers = staged.numpy().copy()
        chunk = self.loaded.config.chunk
        return read(captured.device_outputs, numbers, chunk, captured.timer.seconds())

    def can_batch(self, key: GraphKey, inputs: StepInputs) -> bool:
        """Never: replays run one after the other."""
        return False

    def run_batch(self, key: GraphKey, batch: Sequence[StepInputs]) -> list[StepOutputs]:
        """One after the other."""
        return [self.run(key, inputs) for inputs in batch]

    def prepare(
        self, params: PruningParams, prompt: Prompt | None, ready: Callable[[], None]
    ) -> None:
        """Capture what ``params`` will request, then call ``ready``, from the capturing thread.

        ``prompt`` is the instruction to expect, ``None`` the last one. Where these parameters
        cannot be captured ``ready`` is called as well. A later call takes the place of one not
        begun, whose ``ready`` is then called after its own. Where all is captured already, or
        nothing can be, ``ready`` is called at once.
        """
        everyone = [ready]
        with self._changed:
            self._instruction = prompt = prompt or self._instruction
            expected = [job for job in self._jobs if isinstance(job, _CaptureJob) and job.ready]
            for job in expected:
                self._jobs.remove(job)
                everyone += job.ready
            if prompt and not self._ending:
                job = self._job(params, prompt, tuple(everyone))
                if not self._knows(job):
                    self._jobs.append(job)
                    self._begin()
                    return
        for notify in everyone:
            notify()

    def close(self, timeout: float = 5.0) -> None:
        """End the capturing thread, after what it is at, and let go of all graphs."""
        with self._changed:
            self._ending = True
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
        self._graphs.clear()
        self._buffers.clear()

    # The inference thread.

    def _want(self, key: GraphKey, inputs: StepInputs) -> str:
        """Have the key of a query that was just answered eagerly captured; why not, if not."""
        reason = uncapturable_reason(key)
        if reason:
            return reason
        with self._changed:
            if key in self._refused or self._failures >= PATIENCE:
                return f'no CUDA graph: {self._refused.get(key, self._last_failure)}'
            again = ''
            if key in self._dropped:
                again = f'more forms are asked for in turn than the {self._limit} CUDA graphs kept'
            if self._busy or self._jobs:
                return again  # it may be this very key; if not, the next query tries again
            self._jobs.append(self._job(key.params, inputs.prompt))
            # Forms that no rehearsal thinks of.
            copies = {name: tensor.clone() for name, tensor in inputs.tensors().items()}
            if self.device.type == 'cuda':
                # The other thread's stream knows nothing of this one's.
                torch.cuda.current_stream(self.device).synchronize()
            self._jobs.append((key, inputs.with_tensors(copies)))
            self._begin()
        return again

    def _job(
        self, params: PruningParams, prompt: Prompt, ready: tuple[Callable[[], None], ...] = ()
    ) -> _CaptureJob:
        return _CaptureJob(params, prompt, self._cameras, self._guided, ready)

    def _knows(self, job: _CaptureJob) -> bool:
        """Whether every key of an episode is captured."""

        def known(key: GraphKey, inputs: StepInputs) -> DeviceOutputs | None:
            captured = self._graphs.get(key)
            return captured.device_outputs if captured else None

        nothing = torch.empty(0)
        pull = Guide(nothing, nothing, nothing) if job.guided else None
        expected = StepInputs(images=nothing, prompt=job.prompt, ids=nothing, guide=pull)
        layout = self.loaded.model.layout(job.prompt, job.cameras)
        return enumerate_graph_keys(layout, job.params, expected, known)

    def _begin(self) -> None:
        """Wake the capturing thread, which the first job starts."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name='capture', daemon=True)
            self._thread.start()
        self._changed.notify_all()

    # The capturing thread.

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.wait_for(lambda: self._jobs or self._ending)
                if self._ending:
                    return
                job = self._jobs.popleft()
                self._busy = True
            if isinstance(job, _CaptureJob):
                self._rehearse(job)
            else:
                self._capture(*job)

    def _rehearse(self, job: _CaptureJob) -> None:
        """Capture an episode's keys and tell who waits for them."""
        try:
            layout = self.loaded.model.layout(job.prompt, job.cameras)
            enumerate_graph_keys(layout, job.params, self._blank(job, layout), self._capture)
        except Exception as error:  # the thread must outlive whatever parameters provoke
            self._fail(error)
        finally:
            for notify in job.ready:
                notify()

    def _blank(self, job: _CaptureJob, layout: TokenLayout) -> StepInputs:
        """Made-up images of the right sizes, and a chunk to go on from that pulls nowhere."""
        config, pull = self.loaded.config, None
        shape = (layout.cameras, config.image_size, config.image_size, 3)
        with self._capturer.preparing():
            seen = self.loaded.preprocessor.seen_dtype
            images = torch.randint(256, shape, device=self.device, dtype=seen)
            noise = self.loaded.model.noise(seed=0)
            proprio = None
            if config.proprio_dim:
                proprio = torch.zeros(config.proprio_dim, device=self.device)
            ids = id_rows(job.prompt.ids, self.device)
            if job.guided:
                nothing = Continuation(np.empty((0, config.action_dim)), 0)
                flow = config.flow
                pull = guide(nothing, config.chunk, flow.width, flow.steps, self.device)
        return StepInputs(images, job.prompt, ids, proprio=proprio, noise=noise, guide=pull)

    def _capture(self, key: GraphKey, inputs: StepInputs) -> DeviceOutputs | None:
        """Capture a key, if that is to be done; an eager answer to ``inputs``, or ``None``."""
        stop = self._ending or self._failures >= PATIENCE
        if stop or key in self._refused or uncapturable_reason(key):
            return None
        try:
            with self._capturer.preparing():
                inputs = inputs.on(self.device)
                sample = forward_step(self.loaded, key, inputs, stage_timer_on(self.device))
                if key not in self._graphs:
                    self._record(key, inputs, sample)
            self._failures = 0
        except Exception as error:  # of the driver, of an operator, or no memory left
            with self._changed:
                self._refused[key] = self._fail(error)
            return None
        return sample

    def _fail(self, error: Exception) -> str:
        """Count a failure; the reason in a line."""
        self._failures += 1
        self._last_failure = (str(error).splitlines() or [type(error).__name__])[0]
        return self._last_failure

    def _record(self, key: GraphKey, inputs: StepInputs, sample: DeviceOutputs) -> None:
        """One capture: ``inputs`` is what to warm up with, ``sample`` its answer."""
        buffers = {name: self._buffer(name, tensor) for name, tensor in inputs.tensors().items()}
        outputs = {name: self._buffer(name, tensor) for name, tensor in sample.tensors().items()}
        captured = inputs.with_tensors(buffers)
        timer = self._capturer.timer()

        def run() -> None:
            given = forward_step(self.loaded, key, captured, timer)
            for name, tensor in given.tensors().items():
                outputs[name].copy_(tensor)

        def warm() -> None:
            forward_step(self.loaded, key, inputs, stage_timer_on(self.device))

        replay = self._capturer.record(run, warm)
        kept = DeviceOutputs(
            packed=outputs['packed'],
            carry={name: outputs[f'carry.{name}'] for name in sample.carry},
            sets={name: outputs[f'set.{name}'] for name in sample.sets},
            left=outputs.get('left'),
            metadata=sample.metadata,
        )
        with self._changed:
            self._graphs[key] = _Captured(replay, buffers, kept, timer)
            self._dropped.discard(key)
            while len(self._graphs) > self._limit:
                self._dropped.add(self._graphs.popitem(last=False)[0])

    def _buffer(
        self, name: str, like: Tensor, make: Callable[[Tensor], Tensor] = torch.clone
    ) -> Tensor:
        """The one buffer of that name, shape and dtype, whoever reads or writes it."""
        key = (name, tuple(like.shape), like.dtype)
        with self._changed:
            if key not in self._buffers:
                self._buffers[key] = make(like)
            return self._buffers[key]


def enumerate_graph_keys(
    layout: TokenLayout,
    params: PruningParams,
    inputs: StepInputs,
    visit: Callable[[GraphKey, StepInputs], DeviceOutputs | None],
) -> bool:
    """Visit every key of an episode once, each with the past that the one before left, until
    there is no answer; whether there always was one. ``inputs`` has the images for all, and for
    all but the first the chunk to go on from.
    """
    carry: Mapping[str, Tensor] = {}
    seen: set[GraphKey] = set()
    for number, mode in enumerate(episode(params)):
        compared = number and mode is not Mode.DENSE and compares(params)
        variant = replace(
            inputs,
            carry=carry,
            reference_images=inputs.images if compared else None,
            guide=inputs.guide if number else None,
        )
        key = variant.graph_key(layout, params, mode)
        if key in seen:
            continue
        seen.add(key)
        given = visit(key, variant)
        if given is None:
            return False
        carry = given.carry
    return True


def episode(params: PruningParams) -> tuple[Mode, ...]:
    """Modes that queries with these parameters can have, from a reset on."""
    pruned = (Mode.COARSE, Mode.FINE) if params.mode == 'auto' else (Mode(params.mode),)
    first = (Mode.DENSE,) if params.first_dense else ()
    again = (Mode.DENSE,) if params.refresh_period or params.refresh_change < 1.0 else ()
    return (*first, *pruned * REPEATS, *again)


def uncapturable_reason(key: GraphKey) -> str:
    """Why a key cannot be captured at all, or an empty text."""
    method = pruner(key.params.pruner)
    if not is_capturable(method.name):
        return f'pruner {method.name} decides on the host; it is answered eagerly'
    if not method.plan(key.layout, key.params, key.mode).static:
        return 'exact budgets have no fixed size; they are answered eagerly'
    return ''
