"""Small constant tensors, made once per device: a query copies nothing from the host."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=512)
def constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.tensor(values)``, cached. Never write into it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def positions(count: int, device: torch.device) -> Tensor:
    """``0 .. count - 1`` as int64, cached. Never write into it."""
    with torch.inference_mode(False):
        # Made on the host, whose copy waits: another stream may read it before a kernel has run.
        return torch.arange(count).to(device)
