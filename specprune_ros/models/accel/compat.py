"""What PyTorch offers without promising it. Nothing else in the package uses its private names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    'TorchDispatchMode',
    'compiler_is_off',
    'mark_dynamic_rows',
    'scaled_mm',
    'storage_key',
    'tree_leaves',
    'under_dispatch_mode',
]

KNOWN = ('2.13',)  # versions of PyTorch that this was tested with


def storage_key(tensor: Tensor) -> int:
    """The same for tensors that share one storage, without touching its memory."""
    return tensor.untyped_storage()._cdata


def under_dispatch_mode() -> bool:
    """Whether a :class:`TorchDispatchMode` watches this thread."""
    return bool(torch._C._len_torch_dispatch_stack())


def compiler_is_off() -> bool:
    """Whether ``torch.compile`` is switched off (TORCH_COMPILE_DISABLE)."""
    return bool(torch._dynamo.config.disable)


def mark_dynamic_rows(tensor: Tensor) -> None:
    """Compile for any number of rows of ``tensor``."""
    torch._dynamo.mark_dynamic(tensor, 0)


def scaled_mm(rows: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """A float8 GEMM with a scale for each row and column."""
    return torch._scaled_mm(rows, weight, use_fast_accum=True, **options)
