"""Reading files nobody has vouched for: JSON, safetensors, and ``.pt`` files that hold only
tensors.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from specprune_ros import bounded_files
from specprune_ros.bounded_files import boundary, check_regular

HEADER_LIMIT = 16 << 20  # bytes; that of 1000 tensors has under 1 % of it
AGAIN = 'download it again'
SAFE_TORCH = (2, 10)  # from here on no known way round torch.load's weights_only
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


def refuse_pointer(path: Path, most: int | None = None) -> int:
    """Size of a regular file of at most ``most`` bytes. Raises ``CheckpointError`` for anything
    else, and for what Git leaves in place of a large file it did not get.
    """
    with boundary(path, CheckpointError, AGAIN):
        size = check_regular(path, most)
        with path.open('rb') as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(
                    f'{path}: a Git LFS pointer, not the file: run `git lfs pull` in the clone, '
                    'or download the folder anew'
                )
    return size


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ``CheckpointError``."""
    with boundary(path, CheckpointError, AGAIN):
        refuse_pointer(path)
        data = bounded_files.read_json(path)
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
        """A tensor backed by the mapped file. Raises ``CheckpointError``."""
        with boundary(self.path, CheckpointError, AGAIN):
            if self._file is None:
                self._file = safe_open(self.path, framework='pt', device='cpu')
            return self._file.get_tensor(name)

    def close(self) -> None:
        """Let go of the mapping."""
        self._file = None


def safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes. Raises ``CheckpointError`` for a truncated or broken file."""
    with boundary(path, CheckpointError, 'broken safetensors header; download it again'):
        size = refuse_pointer(path)
        with path.open('rb') as file:
            start = file.read(8)
            length = struct.unpack('<Q', start)[0] if len(start) == 8 else -1
            if not 0 < length <= min(HEADER_LIMIT, size - 8):
                raise CheckpointError(
                    f'{path}: not a whole safetensors file ({size} bytes); download it again'
                )
            header = bounded_files.parse_json(file.read(length), path)
        tensors, places = {}, []
        for name, entry in header.items():
            if name == '__metadata__':
                continue
            tensors[name], place = _entry(path, name, entry)
            places.append(place)
    end = 0
    for begin, stop in sorted(places):
        if begin != end:
            raise CheckpointError(
                f'{path}: tensors overlap or leave gaps at byte {begin}; download it again'
            )
        end = stop
    if size != 8 + length + end:
        raise CheckpointError(
            f'{path}: has {size} bytes, its header says {8 + length + end}: truncated or altered; '
            'download it again'
        )
    return tensors


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    shape, dtype = tuple(entry['shape']), entry['dtype']
    begin, end = entry['data_offsets']
    if (
        len(shape) > 8
        or not isinstance(dtype, str)
        or not all(type(n) is int and 0 <= n < 1 << 62 for n in (*shape, begin, end))
    ):
        raise CheckpointError(f'{path}: {name!r:.100} has a broken entry; download it again')
    width = DTYPES[dtype].itemsize if dtype in DTYPES else None
    if end < begin or (width is not None and end - begin != width * math.prod(shape)):
        raise CheckpointError(
            f'{path}: {name!r:.100} has {end - begin} bytes, not those of its shape; download it '
            'again'
        )
    return TensorInfo(shape, dtype), (begin, end)


class TensorDict:
    """Tensors of a ``.pt`` file, or what ``make`` makes of its dictionary: without values, to know
    names, shapes and dtypes, and with them at the first read.
    """

    def __init__(
        self, path: Path, make: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    ) -> None:
        self.path = path
        self._make = make or _unwrapped
        self._values: Mapping[str, Any] | None = None
        self.tensors = {}
        for name, value in self._make(load_pt(path, headers=True)).items():
            if not isinstance(value, Tensor):
                raise CheckpointError(
                    f'{path}: {name!r} is a {type(value).__name__}, not a tensor; expected a '
                    'state dict'
                )
            kind = str(value.dtype).removeprefix('torch.')
            self.tensors[name] = TensorInfo(tuple(value.shape), kind)

    def read(self, name: str) -> Tensor:
        """A tensor. Raises ``CheckpointError``."""
        with boundary(self.path, CheckpointError, AGAIN):
            if self._values is None:
                self._values = self._make(load_pt(self.path))
            return self._values[name]

    def close(self) -> None:
        """Let go of the tensors."""
        self._values = None


def _unwrapped(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict that was saved from within ``DistributedDataParallel``."""
    return {name.removeprefix('module.'): value for name, value in stored.items()}


Source = SafetensorsFile | TensorDict


def load_pt(path: Path, headers: bool = False) -> dict[str, Any]:
    """A ``.pt`` file's dictionary, mapped rather than read where its format allows. With
    ``headers`` its tensors are on the ``meta`` device, where the format allows: a mapping counts
    as memory of this process, and that of CogACT has 30 GB.

    Nothing in it is executed: anything but tensors and plain containers is refused.
    """
    with boundary(path, CheckpointError, 'not a whole torch file; download it again'):
        if tuple(map(int, torch.__version__.split('.')[:2])) < SAFE_TORCH:
            raise CheckpointError(
                f'{path}: not read by torch {torch.__version__}, whose weights_only has known '
                'holes: install torch 2.10 or newer, or take a safetensors checkpoint'
            )
        size = refuse_pointer(path)
        with path.open('rb') as file:
            zipped = file.read(2) == b'PK'
        if zipped:
            with zipfile.ZipFile(path) as archive:
                # torch.save stores; a compressed archive may grow a thousandfold when read.
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    raise CheckpointError(f'{path}: refused, its content is compressed')
        bare = zipped and headers
        place = 'meta' if bare else 'cpu'
        try:
            data = torch.load(path, place, mmap=zipped and not bare, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f'{path}: refused, {_why_refused(error)}') from error
        except RuntimeError as error:
            if 'allocate memory' not in str(error):
                raise
            raise CheckpointError(
                f'{path}: this process may not have the {size / 1e9:.1f} GB of memory that the '
                'file takes: load it where there is more, lift a limit (ulimit -d, -v), or let '
                'Linux map files larger than its memory (sysctl vm.overcommit_memory=1)'
            ) from error
        if not isinstance(data, dict):
            raise CheckpointError(f'{path}: holds a {type(data).__name__}, expected a state dict')
        if bare and sum(_storages(data).values()) > size:
            raise CheckpointError(f'{path}: its tensors are larger than the file; {AGAIN}')
        return data


def _storages(data: Any) -> dict[int, int]:
    """Bytes of each storage behind the tensors in a dictionary of dictionaries."""
    if isinstance(data, Tensor):
        storage = data.untyped_storage()
        return {storage._cdata: storage.nbytes()}
    found: dict[int, int] = {}
    for value in data.values() if isinstance(data, Mapping) else ():
        found |= _storages(value)
    return found


def _why_refused(error: Exception) -> str:
    wanted = re.search(r'Unsupported (?:global|class|operand)[^`\'"]*[`\'"]?([\w.]+)?', str(error))
    requested = re.search(r'GLOBAL ([\w.]+)', str(error))
    name = requested.group(1) if requested else wanted.group(1) if wanted else None
    what = f'it asks to run {name}' if name else 'it needs more than tensors'
    return (
        f'{what}: only tensors are loaded, never code. Ask its author for a plain state dict or '
        'safetensors'
    )


def check_values(path: Path, name: str, tensor: Tensor) -> None:
    """Raise ``CheckpointError`` unless every value is finite."""
    # A sum is finite only if all its terms are. In pieces, because torch widens the whole input of
    # a sum at once: four times a bfloat16 tensor.
    for part in tensor.reshape(-1).split(_PIECE):
        if not math.isfinite(part.sum(dtype=torch.float64).item()):
            raise CheckpointError(
                f'{path}: {name!r} holds NaN or infinite weights; download the file again'
            )
