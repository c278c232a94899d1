"""CUDA graphs of this package: how a run is captured, and what must not happen meanwhile."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from specprune_ros.models.accel import fused
from specprune_ros.models.accel.compat import (
    TorchDispatchMode,
    end_recording,
    storage_key,
    tree_leaves,
)
from specprune_ros.models.accel.streams import side_stream, stream_for
from specprune_ros.policy.forward_step import CudaStageTimer

_ONE = threading.Lock()  # captures of a process take turns


class CudaGraphCapturer:
    """Captures runs as graphs that share one pool of memory.

    Graphs of one capturer must be replayed one after the other, and what they leave must be
    copied out of the pool by the run itself. Capturing may go on in another thread than replaying:
    nothing here waits for the whole device or frees its memory, as :class:`torch.cuda.graph` does,
    which would hold up the query that runs meanwhile.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        # Replays come first: warming up for a capture shares the device with them.
        self._serving = stream_for('serving', self.device, priority=-1)
        self._warming = stream_for('warming', self.device)
        self._capturing = stream_for('capturing', self.device)
        self._beside = stream_for('beside', self.device)
        self._done = torch.cuda.Event()
        self._pool = torch.cuda.graph_pool_handle()
        # A capture can take nothing from what PyTorch keeps in reserve outside the pool.
        torch.cuda.empty_cache()

    def record(
        self, run: Callable[[], None], warm: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Capture ``run`` and return what replays it in the current stream.

        ``warm`` (default ``run``) is run before, so that everything that is made once is made; it
        must call the same operators without touching what a replay under way uses. Raises
        ``RuntimeError`` where the driver or an operator cannot be captured, and
        ``torch.OutOfMemoryError``.
        """
        warm = warm or run
        with _ONE, torch.cuda.device(self.device):
            self._warming.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._warming):
                warm()  # fills caches, compiles, chooses kernels
                held = ExternalTensorTracker()
                with held:
                    warm()
                warm()
            self._warming.synchronize()
            return _Replay(self._capture(run), held)

    def _capture(self, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """One capture. The other threads go on calling CUDA: by its mode only this one's calls can
        break it off, but for waiting for the whole device, which a first call of a compiled kernel
        does while it tries its variants; and collecting garbage here may destroy a graph.
        """
        graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        with (
            fused.COMPILE_LOCK,
            torch.cuda.stream(self._capturing),
            side_stream(self._beside),
        ):
            gc.disable()
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode='thread_local')
                run()
                graph.capture_end()
            except BaseException:
                try:
                    graph.capture_end()
                except RuntimeError:
                    # One that was broken off leaves its pool recording for ever: while any does,
                    # no memory goes back to the device.
                    end_recording(self.device, self._pool)
                self._pool = torch.cuda.graph_pool_handle()
                raise
            finally:
                if collecting:
                    gc.enable()
        return graph

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The stream in which replays and what belongs to them run, after what is under way in the
        current one; left when the device has done them.
        """
        with torch.cuda.device(self.device):
            self._serving.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._serving):
                yield
                self._done.record()
            self._done.synchronize()

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """The stream for everything before a capture: not the default one, which is every
        thread's.
        """
        with torch.cuda.device(self.device), torch.cuda.stream(self._warming):
            yield
            self._warming.synchronize()

    def timer(self) -> CudaStageTimer:
        """StageTimer that every replay sets anew."""
        return CudaStageTimer(external=True)

    def staging(self, like: Tensor) -> Tensor:
        """A tensor on the host that the device copies from and to without a detour."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def graph_capturer_on(device: torch.device) -> CudaGraphCapturer | None:
    """What captures on a device, ``None`` on one without graphs. Raises ``RuntimeError``."""
    return CudaGraphCapturer(device) if device.type == 'cuda' else None


class _Replay:
    """A captured graph and the tensors it reads."""

    def __init__(self, graph: torch.cuda.CUDAGraph, held: ExternalTensorTracker) -> None:
        self._graph, self._held = graph, held

    def __call__(self) -> None:
        self._graph.replay()


class ExternalTensorTracker(TorchDispatchMode):
    """Collects them while a run happens under it: weights, and constants that caches keep.

    A graph knows addresses only. A constant that a cache lets go of would leave it reading what
    lies there afterwards, without a word; whoever keeps this object keeps them. The caches must be
    full: what a run makes first counts as its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Note what goes in from outside and what comes out."""
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                place = storage_key(value)
                if place not in self._made:
                    self.tensors.setdefault(place, value)
        result = func(*args, **kwargs)
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and storage_key(value) not in self.tensors:
                self._made.add(storage_key(value))
        return result
