"""Reading files nobody has vouched for: JSON, safetensors, and ``.pt`` files that hold only
tensors.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

HEADER_LIMIT = 100 << 20
LFS_POINTER = b'version https://git-lfs'
_PIECE = 1 << 19
DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the cure."""


class TensorInfo(NamedTuple):
    """Shape and dtype name of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


def refuse_pointer(path: Path) -> None:
    """Raise ``CheckpointError`` for what Git leaves in place of a large file it did not get."""
    with path.open('rb') as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(
                f'{path}: a Git LFS pointer, not the file: run `git lfs pull` in the clone, or '
                'download the folder anew'
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ``CheckpointError``."""
    try:
        refuse_pointer(path)
        data = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read ({error.strerror})') from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f'{path}: not valid JSON ({error}); download it again') from error
    if not isinstance(data, dict):
        raise CheckpointError(f'{path}: must hold a JSON object')
    return data


class SafetensorsFile:
    """One shard. The header is checked against the file's length before anything is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = safetensors_header(path)
        self._file: Any = None

    def read(self, name: str) -> Tensor:
        """A tensor backed by the mapped file."""
        if self._file is None:
            self._file = safe_open(self.path, framework='pt', device='cpu')
        return self._file.get_tensor(name)

    def close(self) -> None:
        """Let go of the mapping."""
        self._file = None


def safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes. Raises ``CheckpointError`` for a truncated or broken file."""
    try:
        refuse_pointer(path)
        size = path.stat().st_size
        with path.open('rb') as file:
            start = file.read(8)
            length = struct.unpack('<Q', start)[0] if len(start) == 8 else -1
            if not 0 < length <= min(HEADER_LIMIT, size - 8):
                raise CheckpointError(
                    f'{path}: not a whole safetensors file ({size} bytes); download it again'
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read ({error.strerror})') from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f'{path}: broken safetensors header; download it again') from error
    tensors, end = {}, 0
    try:
        for name, entry in header.items():
            if name == '__metadata__':
                continue
            tensors[name] = TensorInfo(tuple(entry['shape']), entry['dtype'])
            end = max(end, entry['data_offsets'][1])
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f'{path}: broken safetensors header; download it again') from error
    if size != 8 + length + end:
        raise CheckpointError(
            f'{path}: has {size} bytes, its header says {8 + length + end}: truncated or altered; '
            'download it again'
        )
    return tensors


class TensorDict:
    """Tensors of a ``.pt`` file, or made from them; names as they were found, less ``strip``."""

    def __init__(self, path: Path, tensors: Mapping[str, Any], strip: str = 'module.') -> None:
        self.path = path
        self.values = {name.removeprefix(strip): value for name, value in tensors.items()}
        for name, value in self.values.items():
            if not isinstance(value, Tensor):
                raise CheckpointError(
                    f'{path}: {name!r} is a {type(value).__name__}, not a tensor; expected a '
                    'state dict'
                )
        self.tensors = {
            name: TensorInfo(tuple(value.shape), str(value.dtype).removeprefix('torch.'))
            for name, value in self.values.items()
        }

    def read(self, name: str) -> Tensor:
        """A tensor, as stored."""
        return self.values[name]

    def close(self) -> None:
        """Let go of the tensors."""
        self.values = {}


Source = SafetensorsFile | TensorDict


def load_pt(path: Path) -> dict[str, Any]:
    """A ``.pt`` file's dictionary, mapped rather than read where its format allows.

    Nothing in it is executed: anything but tensors and plain containers is refused.
    """
    options = {'map_location': 'cpu', 'weights_only': True}
    try:
        refuse_pointer(path)
        with path.open('rb') as file:
            zipped = file.read(2) == b'PK'
        data = torch.load(path, mmap=zipped, **options)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f'{path}: refused, {_why_refused(error)}') from error
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read ({error.strerror or error})') from error
    except CheckpointError:
        raise
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f'{path}: not a whole torch file; download it again ({_first_line(error)})'
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f'{path}: holds a {type(data).__name__}, expected a state dict')
    return data


def _why_refused(error: Exception) -> str:
    wanted = re.search(r'Unsupported (?:global|class|operand)[^`\'"]*[`\'"]?([\w.]+)?', str(error))
    asked = re.search(r'GLOBAL ([\w.]+)', str(error))
    name = asked.group(1) if asked else wanted.group(1) if wanted else None
    what = f'it asks to run {name}' if name else 'it needs more than tensors'
    return (
        f'{what}: only tensors are loaded, never code. Ask its author for a plain state dict or '
        'safetensors'
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def check_values(path: Path, name: str, tensor: Tensor) -> None:
    """Raise ``CheckpointError`` unless every value is finite."""
    # A sum is finite only if all its terms are. In pieces, because torch widens the whole input of
    # a sum at once: four times a bfloat16 tensor.
    for part in tensor.reshape(-1).split(_PIECE):
        if not math.isfinite(part.sum(dtype=torch.float64).item()):
            raise CheckpointError(
                f'{path}: {name!r} holds NaN or infinite weights; download the file again'
            )
