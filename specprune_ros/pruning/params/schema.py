"""What a parameter is: default, unit, range, meaning and source, declared with the field itself.

A pruning method declares its own parameters in a frozen dataclass of :func:`param` fields, named
``<method>_...``. Token budgets are written for one camera of 16 x 16 patches and layers for a
decoder of 32 layers; :mod:`specprune_ros.pruning.budget` scales them to the model.

Sources: "P1" is arXiv 2509.05614 v1, "P2" its ICML 2026 version, "C2" the authors' code.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Protocol, get_args, get_type_hints

REFERENCE_GRID = 256  # patches per camera the token budgets are written for
REFERENCE_DEPTH = 32  # layers the layer numbers are written for
ROWS = ('text', 'prompt', 'action', 'last', 'all')


class ParamError(ValueError):
    """A parameter that is refused; ``name`` says which, ``message`` why and what would do."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        self.message = message
        super().__init__(f'{name}: {message}')


@dataclass(frozen=True)
class ParamSpec:
    """What may be known about one parameter before it is set.

    ``type`` is one of ``bool``, ``int``, ``float``, ``str``, ``int[]``, ``float[]``. ``range`` is
    ``(low, high, step)``, both ends allowed, step 0 for any value between; lists: of each element.
    ``host_only``: read before the pass and on the host alone; no tensor of the pass depends on it.
    ``group`` is a heading to show it under.
    """

    name: str
    type: str
    default: Any
    unit: str
    range: tuple[float, float, float] | None
    choices: tuple[str, ...]
    description: str
    source: str
    host_only: bool = False
    group: str = ''

    @property
    def low(self) -> float | None:
        """Smallest value allowed, ``None`` without a range."""
        return None if self.range is None else self.range[0]

    @property
    def high(self) -> float | None:
        """Largest value allowed, ``None`` without a range."""
        return None if self.range is None else self.range[1]


def param(
    default: Any,
    description: str,
    source: str,
    *,
    unit: str = '',
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    host_only: bool = False,
) -> Any:
    """A dataclass field that carries what :class:`ParamSpec` holds; the type is its annotation."""
    return field(
        default=default,
        metadata={
            'unit': unit,
            'range': None if low is None else (low, high),
            'choices': choices,
            'description': description,
            'source': source,
            'host_only': host_only,
        },
    )


def layers(default: tuple[int, ...], description: str, source: str) -> Any:
    """A list of layers, written for 32."""
    return param(default, description, source, unit='layer of 32', low=1, high=REFERENCE_DEPTH)


def share(
    default: float, description: str, source: str, low: float = 0.0, host_only: bool = False
) -> Any:
    """A number from ``low`` to 1."""
    return param(
        default,
        description,
        source,
        unit='share',
        low=low,
        high=1.0,
        host_only=host_only,
    )


def speed(default: float, description: str, source: str, unit: str) -> Any:
    """A speed in SI units, or a negative share of the fastest motion; read on the host."""
    text = f'{description} Negative: that share of the fastest motion.'
    return param(default, text, source, unit=unit, low=-1.0, high=100.0, host_only=True)


@functools.cache
def specs_of(declared: type) -> tuple[ParamSpec, ...]:
    """What a dataclass of :func:`param` fields declares, in order."""
    hints, found = get_type_hints(declared), []
    for f in dataclasses.fields(declared):
        if f.metadata:
            items = get_args(hints[f.name])
            kind = f'{items[0].__name__}[]' if items else hints[f.name].__name__
            span = f.metadata['range']
            step = 1 if kind in ('int', 'int[]') else 0
            about = {**f.metadata, 'range': span and (*span, step)}
            found.append(ParamSpec(name=f.name, type=kind, default=f.default, **about))
    return tuple(found)


class Checks(Protocol):
    """A method's parameters as a class; ``check_together`` raises :class:`ParamError` where
    values contradict each other on every model.
    """

    @staticmethod
    def check_together(params: Any) -> None:
        """``params`` is a ``PruningParams``."""


@dataclass
class Method:
    """A registered method's name and what it declares."""

    name: str
    specs: tuple[ParamSpec, ...] = ()
    checks: tuple[Checks, ...] = ()


# Methods in the order they were registered (``specprune_ros.pruning.registry``).
METHODS: dict[str, Method] = {}


def declare_method(name: str, declared: type | None) -> None:
    """Make a method known, with its own parameters.

    Raises ``ValueError`` for parameters that do not begin with its name or exist already.
    """
    own = specs_of(declared) if declared else ()
    others = {spec.name for m in METHODS.values() if m.name != name for spec in m.specs}
    for spec in own:
        if not spec.name.startswith(f'{name}_'):
            raise ValueError(f'parameter {spec.name} of pruner {name} must begin with {name}_')
        if spec.name in others:
            raise ValueError(f'parameter {spec.name} of pruner {name} exists already')
    checks = (declared,) if declared and hasattr(declared, 'check_together') else ()
    METHODS[name] = Method(name, own, checks)


def clean(spec: ParamSpec, value: Any) -> Any:
    """The value in the parameter's own type; raises :class:`ParamError`."""
    if spec.type.endswith('[]'):
        kind = spec.type[:-2]
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            raise ParamError(spec.name, f'must be a list of {kind}, got {value!r}')
        return tuple(_clean_one(spec, kind, item) for item in value)
    return _clean_one(spec, spec.type, value)


def _clean_one(spec: ParamSpec, kind: str, value: Any) -> Any:
    wrong = ParamError(spec.name, f'must be {kind}, got {value!r} ({type(value).__name__})')
    if kind == 'bool':
        if not isinstance(value, bool):
            raise wrong
        return value
    if kind == 'str':
        if not isinstance(value, str):
            raise wrong
        if spec.choices and value not in spec.choices:
            raise ParamError(spec.name, f'{value!r} is none of {", ".join(spec.choices)}')
        return value
    if isinstance(value, bool) or not isinstance(value, Integral if kind == 'int' else Real):
        raise wrong
    number = int(value) if kind == 'int' else float(value)
    if not math.isfinite(number):
        raise ParamError(spec.name, f'must be finite, got {value!r}')
    if spec.range is not None and not spec.range[0] <= number <= spec.range[1]:
        unit = f' ({spec.unit})' if spec.unit else ''
        raise ParamError(
            spec.name, f'{number:g} is outside {spec.range[0]:g} to {spec.range[1]:g}{unit}'
        )
    return number
