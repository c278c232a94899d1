"""What an inspection found, for people, for machines, and for the loader."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from specprune_ros.models.checkpoint.files import DTYPES, CheckpointError, Source
from specprune_ros.models.checkpoint.tensor_names import Entries, Entry
from specprune_ros.models.config import ConfigError, PolicyConfig
from specprune_ros.models.conventions import Convention

_FLOATS = {*DTYPES, *(str(dtype).removeprefix('torch.') for dtype in DTYPES.values())}


class Fact(NamedTuple):
    """One size or setting, and the file or rule it came from."""

    name: str
    value: Any
    source: str


class AbsentFile(NamedTuple):
    """A file that should be there; ``bytes`` of its tensors (its header adds a little)."""

    name: str
    bytes: int


@dataclass
class Report:
    """Result of inspecting a checkpoint folder. ``ok`` means the node could load it.

    ``work`` lists, per file, the tensors to load from it. ``dropped`` counts unused tensors by
    reason. ``parameters`` are those our network holds. ``scales``: per robot, the bounds of state
    and action, where no ``statistics`` hold them. ``requested_key`` is the robot of the statistics
    that was requested, or the only one; ``unnorm_key`` the one found.

    ``given`` is what ``specprune.json`` and the caller say, ``stated`` who of them gave each
    dotted field. ``platform`` is the one in force; ``row`` its row of the table of conventions,
    ``reported`` what else says what actions mean. ``guess`` names the platform where dimensions
    alone told it (or ``unknown``), and ``unstated`` the fields that must be stated before the
    checkpoint loads; where it is ``raw``, before any robot takes its actions: they are the numbers
    of the statistics, and nothing is assumed of them. ``meaning``: see :mod:`.action_meaning`.
    """

    path: Path
    family: str = ''
    config: PolicyConfig | None = None
    facts: list[Fact] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: list[AbsentFile] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    tensors: int = 0
    parameters: int = 0
    statistics: Path | dict[str, Any] | None = None
    scales: dict[str, dict[str, Any]] = field(default_factory=dict)
    statistics_keys: tuple[str, ...] = ()
    unnorm_key: str | None = None
    requested_key: str | None = None
    tokenizer: Path | None = None
    given: dict[str, Any] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    platform: str | None = None
    row: Convention | None = None
    reported: str = ''
    guess: str = ''
    raw: bool = False
    unstated: list[str] = field(default_factory=list)
    meaning: list[Fact] = field(default_factory=list)
    work: list[tuple[Source, list[tuple[str, Entry]]]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether ``model.path`` would work."""
        return not self.problems

    def fact(self, name: str, value: Any, source: str) -> None:
        """Note where a value came from."""
        self.facts.append(Fact(name, value, source))

    def problem(self, message: str) -> None:
        """Note something that keeps the checkpoint from loading."""
        self.problems.append(message)

    def override(self, policy: PolicyConfig, overrides: Mapping[str, Any]) -> PolicyConfig:
        """``policy`` with what was given besides the checkpoint; a list of ``cameras`` stays what
        it is. Raises ``CheckpointError``.
        """
        changes = {name: value for name, value in overrides.items() if name != 'platform'}
        try:
            return policy.override(changes)
        except ConfigError as error:
            raise CheckpointError(
                f'{self.path}: specprune.json or what was given: {error}'
            ) from error

    def follow(self, row: Convention, source: str) -> None:
        """Note the row of the table of conventions the checkpoint follows."""
        action, self.row, self.platform = row.fields['action'], row, row.platform
        self.fact('platform', row.platform, source)
        self.fact('actions', f'{action.kind} {action.rotation}, {row.name}', row.source)
        if action.gripper_dim >= 0:
            sense = action.gripper_sense.replace('one_is', 'above it')
            self.fact('gripper', f'cut at {action.gripper_threshold:g}, {sense}', row.source)
        if row.note:
            self.notes.append(f'{row.name}: {row.note}')

    def raise_problems(self) -> None:
        """Raise ``CheckpointError`` with everything that is wrong."""
        if self.problems:
            raise CheckpointError(
                f'{self.path}: cannot be loaded:\n  - ' + '\n  - '.join(self.problems)
            )

    def memory(self) -> dict[str, int]:
        """Bytes of the weights in each dtype they can be loaded in."""
        return {'bfloat16': 2 * self.parameters, 'float32': 4 * self.parameters}

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            'path': str(self.path),
            'ok': self.ok,
            'family': self.family,
            'facts': _facts(self.facts),
            'meaning': _facts(self.meaning),
            'platform': None if self.guess else self.platform,
            'given': self.given,
            'unstated': self.unstated,
            'problems': self.problems,
            'notes': self.notes,
            'absent': [file._asdict() for file in self.absent],
            'missing': self.missing,
            'unexpected': self.unexpected,
            'dropped': dict(self.dropped),
            'tensors': self.tensors,
            'parameters': self.parameters,
            'memory': self.memory(),
            'statistics_keys': list(self.statistics_keys),
            'unnorm_key': self.unnorm_key,
            'config': None if self.config is None else self.config.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Inverse of :meth:`to_dict`, as far as people are shown it."""
        report = cls(Path(data['path']), data['family'])
        report.facts = [Fact(**fact) for fact in data['facts']]
        report.meaning = [Fact(**fact) for fact in data['meaning']]
        for name in ('problems', 'notes', 'missing', 'unexpected', 'tensors', 'parameters'):
            setattr(report, name, data[name])
        report.absent = [AbsentFile(**file) for file in data['absent']]
        report.dropped = Counter(data['dropped'])
        report.statistics_keys = tuple(data['statistics_keys'])
        report.unnorm_key = data['unnorm_key']
        return report

    def compare(self, entries: Entries, sources: Iterable[Source], absent: set[str]) -> None:
        """Check every stored tensor against ``entries``; ``absent`` names lie in missing files.

        Fills ``work``, ``missing``, ``unexpected`` and ``dropped``.
        """
        seen = set(absent)
        self.unexpected += sorted(absent - set(entries))
        for source in sources:
            chosen = []
            for name, (shape, dtype) in source.tensors.items():
                entry = entries.get(name)
                if name in seen:
                    self.problem(f'{source.path}: {name!r} is stored twice')
                elif entry is None:
                    self.unexpected.append(name)
                elif not entry.slots:
                    self.dropped[entry.reason] += 1
                elif shape != entry.shape:
                    self.problem(
                        f'{source.path}: {name!r} has shape {list(shape)}, the model needs '
                        f'{list(entry.shape)}'
                    )
                elif dtype not in _FLOATS:
                    self.problem(
                        f'{source.path}: {name!r} is {dtype}, weights must be floating point '
                        '(float32, float16 or bfloat16); quantised checkpoints are not supported'
                    )
                else:
                    chosen.append((name, entry))
                seen.add(name)
            self.tensors += len(source.tensors)
            self.work.append((source, chosen))
        self.missing += sorted(
            name for name, entry in entries.items() if entry.slots and name not in seen
        )

    def close(self, parameters: int) -> None:
        """Turn missing and unexpected tensors into problems, once every file was compared."""
        self.parameters = parameters
        if self.missing:
            self.problem(f'{len(self.missing)} tensors are missing: {_some(self.missing)}')
        if self.unexpected:
            self.problem(
                f'{len(self.unexpected)} unexpected tensors: {_some(self.unexpected)}; this is '
                'not a checkpoint of a known layout'
            )

    def lacks(self, name: str, size: int) -> None:
        """Note an absent file."""
        self.absent.append(AbsentFile(name, size))
        self.problem(f'{name} is absent, expected {human(size)}: download it into {self.path}')


def entry_bytes(entries: Entries, names: Iterable[str], width: int) -> int:
    """Bytes of stored tensors of ``width`` bytes an element."""
    return sum(width * math.prod(entries[name].shape) for name in names if name in entries)


def human(size: int) -> str:
    """Bytes for people."""
    return f'{size / 1e9:.2f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'


def _some(names: list[str]) -> str:
    shown = ', '.join(names[:5])
    return shown if len(names) <= 5 else f'{shown}, and {len(names) - 5} more'


def _facts(facts: list[Fact]) -> list[dict[str, Any]]:
    return [{**fact._asdict(), 'value': _plain(fact.value)} for fact in facts]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_rope(report: Report, config: Mapping[str, Any], at: str = '') -> None:
    """Make a problem of rotary positions that are scaled; ``config`` is the language model's."""
    where, rope = report.path / 'config.json', config.get('rope_parameters')
    kind = rope.get('rope_type', rope.get('type')) if isinstance(rope, Mapping) else None
    if kind not in (None, 'default'):
        report.problem(
            f'{where}: {at}rope_parameters.rope_type is {kind!r}, which turns every position '
            "otherwise; only 'default' is supported"
        )
    if config.get('rope_scaling') is not None:
        report.problem(
            f'{where}: {at}rope_scaling is {config["rope_scaling"]!r}, which turns every position '
            'otherwise; only null is supported'
        )
