"""Pruners by name."""

from __future__ import annotations

from specprune_ros.pruning.baselines import Dense, Random
from specprune_ros.pruning.interface import Pruner
from specprune_ros.pruning.params import ParamError
from specprune_ros.pruning.specprune import SpecPrune

_PRUNERS: dict[str, Pruner] = {p.name: p for p in (SpecPrune(), Dense(), Random())}


def names() -> tuple[str, ...]:
    """Names of all pruners, SpecPrune first."""
    return tuple(_PRUNERS)


def pruner(name: str) -> Pruner:
    """The pruner of that name; raises ParamError for an unknown one."""
    try:
        return _PRUNERS[name]
    except KeyError:
        raise ParamError('pruner', f'{name!r} is none of {", ".join(_PRUNERS)}') from None
