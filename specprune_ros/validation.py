"""Plain data (YAML, JSON) into dataclasses that check themselves: pydantic behind one door.

A class decorated with :func:`validated` checks every field against its annotation, however it is
built; :func:`parse` builds one from a file's tree. Types are strict (``1`` is no ``bool``, ``'1'``
no number; lists become tuples), unknown keys are refused, and every error becomes one line that
names the key, its value and what would be right.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass

from specprune_ros.bounded_files import one_line

_T = TypeVar('_T')


@dataclass_transform(frozen_default=True)
def validated(error: type[ValueError] = ValueError) -> Callable[[type[_T]], type[_T]]:
    """A frozen dataclass that raises ``error`` for a field that is not what it is declared as."""

    def decorate(cls: type[_T]) -> type[_T]:
        config = pydantic.ConfigDict(extra='forbid', strict=True)
        checked = pydantic_dataclass(frozen=True, config=config)(cls)
        build = checked.__init__

        @functools.wraps(build)
        def __init__(self: Any, *args: Any, **values: Any) -> None:
            try:
                build(self, *args, **values)
            except pydantic.ValidationError as found:
                raise error(f'{cls.__name__}: {explain(found, checked)}') from None

        checked.__init__ = __init__
        return checked

    return decorate


def parse(kind: type[_T], tree: Any, error: type[ValueError], source: str = '') -> _T:
    """A ``kind`` from mappings, lists and scalars. Raises ``error``, beginning with ``source``."""
    text = json.dumps(tree, default=lambda v: dataclasses.asdict(v) if _fields(v) else str(v))
    try:
        return _adapter(kind).validate_json(text)
    except pydantic.ValidationError as found:
        raise error(
            f'{source}: {explain(found, kind)}' if source else explain(found, kind)
        ) from None


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def explain(error: pydantic.ValidationError, kind: Any) -> str:
    """Every error as ``key: what is wrong``, in one line."""
    return '; '.join(_explained(one, kind) for one in error.errors(include_url=False))


def _explained(error: Any, kind: Any) -> str:
    *parents, key = error['loc'] or ('',)
    path = ''
    for step in error['loc']:
        path += f'[{step}]' if isinstance(step, int) else f'.{step}' if path else str(step)
    wrong, message = error['type'], error['msg']
    if wrong in ('missing', 'missing_argument'):
        text = 'is missing'
    elif wrong in ('unexpected_keyword_argument', 'extra_forbidden'):
        known = sorted(_keys(kind, parents))
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f'did you mean {close[0]}? ' if close else ''
        text = f'is unknown; {hint}known here are {", ".join(known)}'
    elif wrong == 'value_error':
        text = str(error['ctx']['error'])
        if path and re.match(r'[\w.\[\]]+: ', text):  # names the key itself
            return f'{one_line(path)}.{text}'
    else:
        value = json.dumps(error['input'], default=str)
        text = f'is {one_line(value, 80)}; {message.replace("Input should", "it should")}'
    return f'{one_line(path)}: {text}' if path else text


def _fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()


def _keys(kind: Any, steps: list[Any]) -> list[str]:
    """Keys known at a place of the tree: dataclasses, mappings and sequences of them."""
    while typing.get_origin(kind) in (typing.Annotated, types.UnionType):
        kind = typing.get_args(kind)[0]
    if not steps:
        return [field.name for field in _fields(kind)] or list(getattr(kind, '_fields', ()))
    if _fields(kind) or hasattr(kind, '_fields'):
        hints = typing.get_type_hints(kind, include_extras=True)
        return _keys(hints.get(steps[0]), steps[1:])
    inner = typing.get_args(kind)
    return _keys(inner[-1 if isinstance(steps[0], str) else 0], steps[1:]) if inner else []
