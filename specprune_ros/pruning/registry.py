"""Pruners by name."""

from __future__ import annotations

from specprune_ros.pruning.baselines import Dense, Random
from specprune_ros.pruning.divprune import DivPrune
from specprune_ros.pruning.efficientvla import EfficientVLA
from specprune_ros.pruning.interface import Pruner
from specprune_ros.pruning.params import ParamError
from specprune_ros.pruning.rank_prune import ADP, FastV
from specprune_ros.pruning.sp_vla import SPVLA
from specprune_ros.pruning.sparsevlm import SparseVLM
from specprune_ros.pruning.specprune import SpecPrune
from specprune_ros.pruning.team_vla import TeamVLA
from specprune_ros.pruning.vla_cache import VLACache
from specprune_ros.pruning.vla_pruner import VLAPruner

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
