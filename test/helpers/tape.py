"""A captured run on a CPU: the operators are recorded with their tensors and run again on those.

What holds for a CUDA graph holds here: Python is not run again, numbers from the host are frozen,
every tensor has the place it had, and what reads a value on the host cannot be recorded.
"""

import threading
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specprune_ros.policy.forward_step import HostStageTimer

FORBIDDEN = {'_local_scalar_dense', 'nonzero', 'masked_select', 'equal', '_unique2', 'unique_dim'}


def storages(values):
    return {t.untyped_storage()._cdata for t in tree_leaves(values) if isinstance(t, torch.Tensor)}


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.steps = []
        self.made = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in FORBIDDEN:
            raise RuntimeError(f'operation not permitted when stream is capturing: {func}')
        writes = func._schema.is_mutable
        if writes and not storages(args[0]) <= self.made:
            # A recording leaves what others are using alone.
            self.steps.append((func, args, kwargs, None))
            return args[0]
        result = func(*args, **kwargs)
        made = storages(result) - storages((args, kwargs))
        self.made |= made
        if made or writes:  # else a view, which stays where it is
            self.steps.append((func, args, kwargs, result if made else None))
        return result

    def replay(self):
        with torch.inference_mode():
            for func, args, kwargs, result in self.steps:
                again = func(*args, **kwargs)
                if result is None:
                    continue
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


class TapeCapturer:
    """A capturer for :class:`CudaGraphEngine`. ``broken`` is raised instead of recording; ``held``
    keeps recordings waiting while it is clear.
    """

    def __init__(self, broken=None):
        self.broken = broken
        self.recorded = 0
        self.replayed = 0
        self.held = threading.Event()
        self.held.set()

    def record(self, run, warm):
        self.held.wait()
        warm()
        if self.broken is not None:
            raise self.broken
        tape = Tape()
        with tape:
            run()
        self.recorded += 1

        def replay():
            self.replayed += 1
            tape.replay()

        return replay

    @contextmanager
    def serving(self):
        yield

    @contextmanager
    def preparing(self):
        yield

    def timer(self):
        return HostStageTimer()

    def staging(self, like):
        return torch.empty_like(like)
