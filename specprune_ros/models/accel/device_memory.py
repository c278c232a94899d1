"""Whether a model fits where it is to run, checked before its first byte is taken.

Linux grants memory that is not there and ends the process later; a GPU fails in the middle of a
load. Both are worse than a clear error.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

MARGIN = 1.15  # of the weights: they, and what a query needs beside them


class DeviceMemoryError(ValueError):
    """The model does not fit; the message says what it wants and what is free."""


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters; works on the ``meta`` device."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def free_bytes(device: torch.device | str) -> int | None:
    """Bytes that can still be taken on a device, ``None`` where nobody says.

    On a CPU the smaller of what the system has to give and what the control group allows.
    """
    place = torch.device(device)
    if place.type == 'cuda':
        # What PyTorch holds in reserve from an earlier model it will use again.
        reserve = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
        return torch.cuda.mem_get_info(place)[0] + reserve
    if place.type != 'cpu':
        return None
    known = [free for free in (_available(), _group_allows()) if free is not None]
    return min(known, default=None)


def check_device_memory(model: nn.Module, device: torch.device | str, name: str) -> None:
    """Raise :class:`DeviceMemoryError` unless ``model``, still without memory, fits there."""
    want, free = round(MARGIN * weight_bytes(model)), free_bytes(device)
    if free is None or want <= free:
        return
    dtype = str(next(model.parameters()).dtype).removeprefix('torch.')
    half = ', use a dtype of half the size (bfloat16)' if dtype == 'float32' else ''
    raise DeviceMemoryError(
        f'{name} in {dtype} wants {want / 2**30:.1f} GiB on {device} and {free / 2**30:.1f} GiB '
        f'are free: make room{half} or take a smaller model'
    )


def _available() -> int | None:
    fields = _fields(Path('/proc/meminfo'))
    return 1024 * fields['MemAvailable:'] if 'MemAvailable:' in fields else None


def _group_allows(folder: Path = Path('/sys/fs/cgroup')) -> int | None:
    try:
        most = (folder / 'memory.max').read_text().strip()
        used = int((folder / 'memory.current').read_text())
    except (OSError, ValueError):
        return None
    if most == 'max':
        return None
    held = _fields(folder / 'memory.stat')  # files in memory make room when it is requested
    cached = held.get('inactive_file', 0) + held.get('active_file', 0)
    return max(0, int(most) - used + cached)


def _fields(path: Path) -> dict[str, int]:
    """Names and numbers of a kernel's table; empty where it cannot be read."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
