"""Pruners by name."""

from __future__ import annotations

from specprune_ros.pruning.interface import Pruner
from specprune_ros.pruning.params import ParamError
from specprune_ros.pruning.rivals.base import Dense, Random
from specprune_ros.pruning.rivals.divprune import DivPrune
from specprune_ros.pruning.rivals.efficientvla import EfficientVLA
from specprune_ros.pruning.rivals.rank_prune import ADP, FastV
from specprune_ros.pruning.rivals.sp_vla import SPVLA
from specprune_ros.pruning.rivals.sparsevlm import SparseVLM
from specprune_ros.pruning.rivals.team_vla import TeamVLA
from specprune_ros.pruning.rivals.vla_cache import VLACache
from specprune_ros.pruning.rivals.vla_pruner import VLAPruner
from specprune_ros.pruning.specprune import SpecPrune

_PRUNERS: dict[str, Pruner] = {
    p.name: p
    for p in (
        SpecPrune(),
        Dense(),
        Random(),
        FastV(),
        DivPrune(),
        SparseVLM(),
        VLACache(),
        EfficientVLA(),
        SPVLA(),
        ADP(),
        VLAPruner(),
        TeamVLA(),
    )
}


def names() -> tuple[str, ...]:
    """Names of all pruners, SpecPrune first."""
    return tuple(_PRUNERS)


def pruner(name: str) -> Pruner:
    """The pruner of that name; raises ParamError for an unknown one."""
    try:
        return _PRUNERS[name]
    except KeyError:
        raise ParamError('pruner', f'{name!r} is none of {", ".join(_PRUNERS)}') from None
