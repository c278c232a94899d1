"""A model split over safetensors shards, found through its index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from specprune_ros.models.checkpoint.files import (
    CheckpointError,
    SafetensorsFile,
    Source,
    read_json,
)
from specprune_ros.models.checkpoint.report import Report, entry_bytes
from specprune_ros.models.checkpoint.tensor_names import Entries
from specprune_ros.models.config import ConfigError

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'


@dataclass
class Shards:
    """Files that are there, and the tensors of those that are not."""

    present: list[Source] = field(default_factory=list)
    absent: dict[str, list[str]] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors present."""
        return {
            name: info.shape for source in self.present for name, info in source.tensors.items()
        }

    @property
    def absent_names(self) -> set[str]:
        """Tensors that lie in absent files."""
        return {name for names in self.absent.values() for name in names}

    @contextmanager
    def blamed(self, report: Report) -> Iterator[None]:
        """Name the absent files where, without them, nothing can be said of the rest."""
        try:
            yield
        except (CheckpointError, ConfigError):
            for name in sorted(self.absent):
                report.problem(f'{report.path / name} is absent: download it')
            raise

    def report_absent(self, report: Report, entries: Entries, width: int) -> None:
        """Name every absent file with the size of its tensors."""
        for name, tensors in sorted(self.absent.items()):
            report.lacks(name, entry_bytes(entries, tensors, width))


def find(folder: Path, report: Report) -> Shards:
    """Open the headers of all shards. What is wrong goes into the report."""
    shards = Shards()
    index = folder / INDEX
    if not index.exists():
        if (folder / SINGLE).exists():
            _open(folder / SINGLE, report, shards)
        else:
            report.problem(f'{folder}: neither {INDEX} nor {SINGLE} is there')
        return shards
    weights = read_json(index).get('weight_map')
    if not isinstance(weights, dict) or not weights:
        report.problem(f'{index}: weight_map is missing; download it again')
        return shards
    files: dict[str, list[str]] = {}
    for name, file in weights.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith('.safetensors')
        ):
            raise CheckpointError(
                f'{index}: {name!r} points to {file!r}, which is not a safetensors file in this '
                'folder'
            )
        files.setdefault(file, []).append(name)
    for file, names in sorted(files.items()):
        if not (folder / file).exists():
            shards.absent[file] = names
            continue
        source = _open(folder / file, report, shards)
        if source is None:
            continue
        lost = sorted(set(names) - set(source.tensors))
        if lost:
            report.problem(f'{folder / file}: lacks {lost[0]!r}, which {INDEX} places there')
        extra = sorted(set(source.tensors) - set(names))
        if extra:
            report.problem(
                f'{folder / file}: holds {extra[0]!r} ({len(extra)} such), which {INDEX} does not '
                'place there; index and shards are of different downloads'
            )
    return shards


def _open(path: Path, report: Report, shards: Shards) -> Source | None:
    try:
        source = SafetensorsFile(path)
    except CheckpointError as error:
        report.problem(str(error))
        return None
    shards.present.append(source)
    return source
