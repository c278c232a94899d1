"""What an error of the device means for who runs the policy: it is lost, or only out of memory.

PyTorch reports a device's failure as ``torch.AcceleratorError`` or, from libraries beneath it, as
a ``RuntimeError`` whose text alone tells (cuBLAS, cuDNN, Triton, the driver). Most such errors end
the CUDA context: every later call of the process fails with them
(docs.nvidia.com/cuda/cuda-runtime-api, ``cudaError_t``: "the process must be terminated and
relaunched").
"""

from __future__ import annotations

import contextlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

LOST = re.compile(
    r'^(CUDA|HIP)( driver)? error|CUBLAS_STATUS_|CUDNN_STATUS_|CUSOLVER_STATUS_|^Triton Error'
)
FULL = re.compile(
    r'^(CUDA|HIP)( driver)? error: out of memory|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED'
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
)
WANTED = re.compile(r'[Tt]ried to allocate ([\d.]+) (\w+)')
FREE = re.compile(r'of which ([\d.]+ \w+) is free')
GIB = 2**30


class DeviceError(RuntimeError):
    """The device failed while a policy was built; the message says how, and what to do."""


@dataclass(frozen=True)
class DeviceFault:
    """``lost``: the device, or this process's hold on it, may be gone (:func:`check_alive` tells);
    otherwise it was out of memory and may be used again. ``message`` says which device, what
    it said, and the cure; ``said`` is its own first line.
    """

    lost: bool
    message: str
    said: str


def fault_of(error: BaseException, device: torch.device | str) -> DeviceFault | None:
    """What ``error``, or an error behind it, says of the device; ``None``: nothing."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = str(cause)
        if isinstance(cause, torch.OutOfMemoryError) or (
            isinstance(cause, RuntimeError) and FULL.search(text)
        ):
            return DeviceFault(False, _full(text, device), _first_line(text))
        if isinstance(cause, torch.AcceleratorError) or (
            isinstance(cause, RuntimeError) and LOST.search(text)
        ):
            said = _first_line(text)
            return DeviceFault(True, f'{device} was lost: {said}', said)
        cause = cause.__cause__ or cause.__context__
    return None


def check_alive(device: torch.device | str) -> None:
    """Raise :class:`DeviceError` where this process cannot compute on ``device`` any more."""
    try:
        torch.zeros(1, device=device).add_(1).cpu()
    except Exception as error:  # of whatever type a dead context raises
        fault = fault_of(error, device)
        if fault is None:
            raise
        if not fault.lost:
            return  # full, but there
        raise DeviceError(
            f'this process cannot use {device} any more ({_first_line(str(error))}): restart the '
            "node; if it then fails too, the device itself has: nvidia-smi and the kernel's log "
            '(Xid) say more'
        ) from error


def explain(error: Exception, device: torch.device | str) -> DeviceError | None:
    """What an error of building a policy means where it speaks of the device."""
    fault = fault_of(error, device)
    if fault is None or isinstance(error, DeviceError):
        return None
    if fault.lost:
        try:
            check_alive(device)
        except DeviceError as dead:
            return dead
        return DeviceError(f'{fault.message}; configure again, or restart the node')
    return DeviceError(fault.message)


def release(device: torch.device | str) -> None:
    """Give memory that PyTorch holds in reserve back, so that what failed may fit next time."""
    if torch.device(device).type == 'cuda':
        with contextlib.suppress(RuntimeError):  # the next query will meet a lost device itself
            torch.cuda.empty_cache()


def _full(text: str, device: torch.device | str) -> str:
    parts = []
    wanted, free = WANTED.search(text), FREE.search(text)
    if wanted:
        number, unit = wanted.groups()
        size = f'{float(number) / GIB:.2f} GiB' if unit == 'bytes' else f'{number} {unit}'
        parts.append(f'{size} more wanted')
    if free:
        parts.append(f'{free[1]} free')
    account = f' ({", ".join(parts)})' if parts else ''
    return (
        f'{device} is out of memory{account}: end what else uses it, or take a smaller model, '
        'bfloat16 or fewer captured graphs'
    )


def _first_line(text: str) -> str:
    return text.partition('\n')[0].rstrip('. ')


def settle(place: torch.device) -> None:
    """Wait for a GPU; a CPU is always done."""
    if place.type == 'cuda':
        torch.cuda.synchronize(place)


def current(place: torch.device) -> contextlib.AbstractContextManager[None]:
    """Where ``place`` is the device of new events and streams in this thread."""
    return torch.cuda.device(place) if place.type == 'cuda' else contextlib.nullcontext()


def device_name(device: str) -> str:
    """The device and what it is, e.g. ``cpu (AMD EPYC ..., 2 threads)``."""
    if device.startswith('cuda'):
        return f'{device} ({torch.cuda.get_device_name(device)})'
    name = platform.processor() or platform.machine()
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                name = line.split(':', 1)[1].strip()
                break
    except OSError:
        pass
    return f'{device} ({name}, {torch.get_num_threads()} threads)'
