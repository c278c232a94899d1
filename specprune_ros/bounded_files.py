"""Reading files that nobody has vouched for: one boundary for every kind.

Whatever is wrong with a file (no regular file, too large, nested a thousand deep, numbers of six
thousand digits, a library's own exception) becomes one line that names it, in the error type
of its reader.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MEBIBYTE = 1 << 20
MOST_JSON = 32 * MEBIBYTE  # bytes; the index of a model of 1000 shards has under 1
MOST_NPZ = 1024 * MEBIBYTE  # bytes, unpacked
MOST_YAML = 100_000  # bytes
DEEPEST = 64  # levels of a JSON or YAML document
LONGEST = 300  # characters of foreign text in one message


class FileError(ValueError):
    """A file that cannot be used; the message names it."""


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_line(text: object, most: int = LONGEST) -> str:
    """Foreign text for a log line or message: control characters escaped, cut after ``most``."""
    full = str(text)
    shown = ''.join(
        c if c.isprintable() else c.encode('unicode_escape', 'surrogatepass').decode()
        for c in full[:most]
    )
    return shown if len(full) <= most else f'{shown}... ({len(full)} characters)'


def reason(error: BaseException) -> str:
    """What went wrong, in a few words of one line."""
    if isinstance(error, RecursionError):
        return 'it is nested too deeply'
    if isinstance(error, MemoryError):
        return 'it needs more memory than there is'
    if isinstance(error, OSError) and error.strerror:
        return f'cannot be read ({error.strerror})'
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return one_line(f'{name}: {lines[0]}' if lines else name)


@contextlib.contextmanager
def boundary(where: object, kind: type[ValueError] = FileError, cure: str = '') -> Iterator[None]:
    """Turns any exception within into ``kind``, one line that begins with ``where``.

    ``kind`` itself passes. ``cure`` says what to do about a file that is broken.
    """
    try:
        yield
    except kind:
        raise
    except Exception as error:
        text = str(error) if isinstance(error, FileError) else f'{where}: {reason(error)}'
        text = one_line(text, 2000) + (f'; {cure}' if cure else '')
        raise kind(text) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` to be written, which takes its place once all went well.

    Its name cannot be foreseen, so that nobody's symbolic link waits there.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part')
    os.close(handle)
    part = Path(name)
    try:
        yield part
        mask = os.umask(0o077)
        os.umask(mask)
        part.chmod(0o666 & ~mask)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_regular(path: Path, most: int | None = None) -> int:
    """Size in bytes of a regular file of at most ``most``. Raises ``FileError`` for anything else:
    a pipe would be waited for, a device never ends.
    """
    with boundary(path):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = 'a folder' if stat.S_ISDIR(found.st_mode) else 'no regular file'
        raise FileError(f'{one_line(path)}: is {kind}')
    if most is not None and found.st_size > most:
        raise FileError(f'{one_line(path)}: has {found.st_size} bytes; at most {most} are read')
    return found.st_size


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes. Raises ``FileError``."""
    check_regular(path, most)
    with boundary(path):
        # What was checked may be another file by now: neither waits nor reads on without end.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, 'rb') as file:
            return file.read(most)


def read_npz(path: Path, most: int = MOST_NPZ) -> dict[str, Any]:
    """The arrays of an npz file of at most ``most`` bytes, unpacked. Raises ``FileError``."""
    import zipfile

    import numpy as np

    check_regular(path, most)
    with boundary(path):
        with zipfile.ZipFile(path) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
            if whole > most:
                raise FileError(f'{path}: unpacks to {whole} bytes; at most {most} are read')
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        for name, value in arrays.items():
            if not isinstance(value, np.ndarray):
                raise FileError(f'{path}: {name!r:.60} is no array')
        return arrays


def read_text(path: Path, most: int) -> str:
    """The UTF-8 text of a file of at most ``most`` bytes. Raises ``FileError``."""
    with boundary(path):
        return read_bytes(path, most).decode()


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """A JSON document. Raises ``FileError``."""
    return parse_json(read_bytes(path, most), path)


def parse_json(data: bytes | str, where: object) -> Any:
    """A JSON document of at most ``DEEPEST`` levels. Raises ``FileError`` naming ``where``."""
    try:
        tree = json.loads(data, parse_int=_integer)
    except Exception as error:
        raise FileError(f'{one_line(where)}: not valid JSON ({reason(error)})') from error
    check_depth(tree, where)
    return tree


def read_yaml(path: Path, most: int = MOST_YAML) -> Any:
    """A YAML document of plain values. Raises ``FileError``."""
    return parse_yaml(read_text(path, most), path)


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f'a whole number of {len(text)} digits')
    return int(text)


class _Plain(yaml.SafeLoader):
    """No anchors, aliases and merge keys (nine lines of them make a gigabyte); dates stay text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, 'anchor', None):
            raise FileError(f'anchors and aliases are not read (line {event.start_mark.line + 1})')
        self.depth = getattr(self, 'depth', 0) + 1
        if self.depth > DEEPEST:
            raise FileError(f'it is nested more than {DEEPEST} deep')
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > 70:  # 64 binary digits and a sign
            raise FileError(f'a whole number of {len(node.value)} digits')
        return super().construct_yaml_int(node)


_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((':timestamp', ':merge'))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Plain.add_constructor('tag:yaml.org,2002:int', _Plain.construct_yaml_int)


def parse_yaml(text: str, where: object) -> Any:
    """A YAML document of plain values, no aliases. Raises ``FileError`` naming ``where``."""
    try:
        return yaml.load(text, _Plain)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        at = f' (line {mark.line + 1}, column {mark.column + 1})' if mark else ''
        what = getattr(error, 'problem', None) or reason(error)
        raise FileError(f'{one_line(where)}: not valid YAML: {one_line(what)}{at}') from error
    except FileError as error:
        raise FileError(f'{one_line(where)}: {error}') from error
    except Exception as error:
        raise FileError(f'{one_line(where)}: {reason(error)}') from error


def check_depth(tree: Any, where: object) -> None:
    """Raise ``FileError`` for a tree of lists and objects of more than ``DEEPEST`` levels."""
    level = [tree]
    for _ in range(DEEPEST + 1):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise FileError(f'{one_line(where)}: it is nested more than {DEEPEST} deep')
