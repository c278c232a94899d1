"""What stands between the GEMMs of a layer: plain PyTorch, or each function as one kernel.

The plain functions are the reference, and what a CPU runs. On a GPU every one of their operators
is a kernel that reads and writes all rows; ``torch.compile`` makes one kernel of each function.
A module calls its attribute ``kernels``; :func:`use` sets it. A compiled call takes the host some
20 microseconds longer than the plain one, which only a captured graph does not notice.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprune_ros.models.accel import compat
from specprune_ros.models.rotary import rotate

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
_SMALLEST_SCALE = 1e-12  # a row of zeros has no scale of its own

# Held by who compiles: what two threads miss at once is compiled once. Compiling waits for the
# whole device, which breaks off a CUDA graph's capture in any thread: who captures holds it too.
COMPILE_LOCK = threading.RLock()


def swiglu(both: Tensor) -> Tensor:
    """``[..., 2 M]``, gates then values, to ``silu(gate) * value`` ``[..., M]``."""
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


def geglu(both: Tensor) -> Tensor:
    """The same with Gemma's gate, GELU in its tanh form."""
    gate, up = both.chunk(2, dim=-1)
    return F.gelu(gate, approximate='tanh') * up


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, CLIP's."""
    return x * torch.sigmoid(1.702 * x)


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + branch`` and its RMS norm, all ``[..., W]``."""
    x = x + branch
    return x, rms_norm(x, weight, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``[..., W]`` to the same; a weight in float32 beside a narrower ``x`` is used as it is."""
    if weight.dtype == x.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def add_modulated_norm(
    x: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``x + gate * branch`` and its RMS norm times ``scale`` plus ``shift`` (float32 ``[W]``)."""
    x = x + (gate * branch).to(x.dtype)
    return x, modulated_norm(x, scale, shift, eps)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """RMS norm of ``[..., W]`` times ``scale`` plus ``shift``, each ``[..., W]``."""
    return (F.rms_norm(x.float(), x.shape[-1:], eps=eps) * scale + shift).to(x.dtype)


def add_layer_norm(
    x: Tensor, branch: Tensor, gain: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``x + gain * branch`` (LayerScale; ``None`` for 1) and its layer norm, all ``[..., W]``."""
    x = x + branch if gain is None else torch.addcmul(x, branch, gain)
    return x, F.layer_norm(x, weight.shape, weight, bias, eps)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[N, W]`` in float8 (e4m3fn) and their scales, float32 ``[N, 1]``; ``q * scale`` is
    about ``x``. A row with a value that is not finite has a scale that is not.
    """
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=_SMALLEST_SCALE)
    # The conversion does not saturate: what rounding lifts above the largest would be NaN.
    return (wide / scale).clamp(-LARGEST, LARGEST).to(FLOAT8), scale


class Kernels(NamedTuple):
    """One way to compute each function of this module."""

    rotate: Callable[..., Tensor]
    swiglu: Callable[..., Tensor]
    geglu: Callable[..., Tensor]
    quick_gelu: Callable[..., Tensor]
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]]
    add_modulated_norm: Callable[..., tuple[Tensor, Tensor]]
    add_layer_norm: Callable[..., tuple[Tensor, Tensor]]
    quantise: Callable[..., tuple[Tensor, Tensor]]


class _Compiling:
    """How compiling went in this process."""

    problem = ''
    made = 0


def _compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    """``plain`` through torch.compile, once for each width and dtype and for any number of rows.

    Tensors of three or more dimensions are ``[B, L, ...]``, of two ``[rows, ...]``, of one
    weights. ``plain`` runs where the compiler is missing or fails, where gradients are requested,
    and under a dispatch mode, which would not see what a compiled kernel reads and makes.
    """
    known: dict[tuple, Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        lead = args[0].shape[:2] if args[0].ndim > 2 else None
        batched = plain is rotate and lead[0] != 1  # its tables have one row for each of L
        if (
            _Compiling.problem
            or batched
            or not args[0].numel()
            or torch.is_grad_enabled()
            or compat.under_dispatch_mode()
        ):
            return plain(*args)
        # One leading dimension of rows: the stride of a batch of one says nothing, but is guarded.
        flat = [a.flatten(0, 1) if isinstance(a, Tensor) and a.ndim > 2 else a for a in args]
        key = (torch.is_inference_mode_enabled(), *(_kind(a) for a in flat))
        run = known.get(key)
        result = _first(plain, known, key, flat) if run is None else run(*flat)
        if lead is None:
            return result
        if isinstance(result, Tensor):
            return result.unflatten(0, lead)
        return tuple(part.unflatten(0, lead) for part in result)

    return call


def _kind(argument: Any) -> Any:
    """What a compiled function depends on besides the number of rows."""
    if not isinstance(argument, Tensor):
        return argument
    shape = argument.shape
    rows = shape[0] if argument.ndim == 1 or shape[0] == 1 else -1
    # Within inference mode a tensor that was made outside is guarded as one of another kind.
    inference = argument.is_inference()
    return argument.device, argument.dtype, inference, rows, shape[1:], argument.stride()


def _first(
    plain: Callable[..., Any], known: dict[tuple, Callable[..., Any]], key: tuple, flat: list
) -> Any:
    """Compile by a first call, and answer it.

    A call in a capture of a CUDA graph that had no warm-up runs plain: compiling reads the GPU's
    random state, loads modules and times candidates, and each of these would break it off.
    """
    if flat[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return plain(*flat)
    with COMPILE_LOCK:
        if (run := known.get(key)) is not None:  # by another thread meanwhile
            return run(*flat)
        if compat.compiler_is_off():
            _Compiling.problem = 'is switched off (TORCH_COMPILE_DISABLE)'
        if _Compiling.problem:
            return plain(*flat)
        for tensor in flat:
            if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.shape[0] > 1:
                compat.mark_dynamic_rows(tensor)
        # One small kernel each: a process per core to compile them is started for nothing.
        os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')
        try:
            run = compat.compile_alone(plain)
            result = run(*flat)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # says nothing of the compiler
        except Exception as error:  # whatever a compiler, a driver or a file system can raise
            lines = [type(error).__name__, *str(error).strip().splitlines()[:1]]
            _Compiling.problem = f'failed ({": ".join(lines)})'
            warnings.warn(status(), RuntimeWarning, stacklevel=2)
            return plain(*flat)
        known[key] = run
        _Compiling.made += 1
    return result


PLAIN = Kernels(
    rotate, swiglu, geglu, quick_gelu, add_rms_norm, add_modulated_norm, add_layer_norm, quantise
)
COMPILED = Kernels(*(_compiled(function) for function in PLAIN))


def use(module: nn.Module, kernels: Kernels) -> None:
    """Make every part of ``module`` that has ``kernels`` call these. Compiling that failed before,
    for want of a compiler or of room on a disk, is tried again.
    """
    _Compiling.problem = ''
    for part in module.modules():
        if isinstance(getattr(part, 'kernels', None), Kernels):
            part.kernels = kernels


def status() -> str:
    """What the functions between the GEMMs run as in this process, for diagnostics."""
    if _Compiling.problem:
        return (
            'functions between the GEMMs: plain, slower on a GPU, as torch.compile '
            f'{_Compiling.problem}'
        )
    if _Compiling.made:
        return f'functions between the GEMMs: {_Compiling.made} compiled kernels'
    return 'functions between the GEMMs: plain'
