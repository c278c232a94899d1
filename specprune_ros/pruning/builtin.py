"""The methods of this package, in the order of its tables."""

from __future__ import annotations

from specprune_ros.pruning.registry import register_pruner
from specprune_ros.pruning.rivals.adp import ADP
from specprune_ros.pruning.rivals.base import Dense
from specprune_ros.pruning.rivals.divprune import DivPrune
from specprune_ros.pruning.rivals.efficientvla import EfficientVLA
from specprune_ros.pruning.rivals.fastv import FastV
from specprune_ros.pruning.rivals.random_control import Random
from specprune_ros.pruning.rivals.sp_vla import SPVLA
from specprune_ros.pruning.rivals.sparsevlm import SparseVLM
from specprune_ros.pruning.rivals.team_vla import TeamVLA
from specprune_ros.pruning.rivals.vla_cache import VLACache
from specprune_ros.pruning.rivals.vla_pruner import VLAPruner
from specprune_ros.pruning.specprune import SpecPrune

for _method in (
    SpecPrune,
    Dense,
    Random,
    FastV,
    DivPrune,
    SparseVLM,
    VLACache,
    EfficientVLA,
    SPVLA,
    ADP,
    VLAPruner,
    TeamVLA,
):
    register_pruner(_method)
