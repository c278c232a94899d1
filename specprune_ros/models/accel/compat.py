"""What PyTorch offers without promising it. Nothing else in the package uses its private names."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    'TorchDispatchMode',
    'compile_alone',
    'compiler_is_off',
    'end_recording',
    'mark_dynamic_rows',
    'scaled_mm',
    'storage_key',
    'tree_leaves',
    'under_dispatch_mode',
]

KNOWN = ('2.11', '2.13')  # versions of PyTorch that this was tested with

_NUMBER = itertools.count()  # of compiled functions


def storage_key(tensor: Tensor) -> int:
    """The same for tensors that share one storage, without touching its memory."""
    return tensor.untyped_storage()._cdata


def under_dispatch_mode() -> bool:
    """Whether a :class:`TorchDispatchMode` watches this thread."""
    return bool(torch._C._len_torch_dispatch_stack())


def compiler_is_off() -> bool:
    """Whether ``torch.compile`` is switched off (TORCH_COMPILE_DISABLE)."""
    return bool(torch._dynamo.config.disable)


def compile_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` through ``torch.compile``, with nothing kept in common with earlier calls.

    What is compiled is kept by code object, of which all widths of all models in a process would
    share one limit of recompiling, and by its name what sizes it had, so that a second width would
    be compiled for any; so each has a code object and a name of its own. (PyTorch 2.13 has an
    option for the first, 2.11 has not.)
    """
    name = f'{function.__name__}_{next(_NUMBER)}'
    own = FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)
    return torch.compile(own, fullgraph=True)


def end_recording(device: torch.device, pool: Any) -> None:
    """Have PyTorch's allocator stop recording into ``pool`` where a capture that could not end
    left it so; nothing where it does not record, or knows no such call.
    """
    end = getattr(torch._C, '_cuda_endAllocateToPool', None)
    if end is not None:
        with suppress(RuntimeError):
            end(device.index, pool)


def mark_dynamic_rows(tensor: Tensor) -> None:
    """Compile for any number of rows of ``tensor``."""
    torch._dynamo.mark_dynamic(tensor, 0)


def scaled_mm(rows: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """A float8 GEMM with a scale for each row and column.

    On a CPU, where it is there to see the numbers, in float32: PyTorch 2.11 has no such scales
    there.
    """
    if rows.is_cuda:
        return torch._scaled_mm(rows, weight, use_fast_accum=True, **options)
    out = (rows.float() * options['scale_a']) @ (weight.float() * options['scale_b'])
    bias = options.get('bias')
    return (out if bias is None else out + bias).to(options['out_dtype'])
