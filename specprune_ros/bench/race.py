"""Policies timed against each other: the same images, the same weights, in turns.

``specprune bench`` and the scripts of ``benchmarks/`` stand on this.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from specprune_ros.bench.eager_attention_baseline import stock_pass
from specprune_ros.models.build import Network
from specprune_ros.models.decoder import DecoderOutput, KVCache
from specprune_ros.models.families.base import Embedded
from specprune_ros.models.load import LoadedModel
from specprune_ros.policy.engine.cuda_graph import CudaGraphEngine, GraphCapturer
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.observation import Observation
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.result import PolicyResult
from specprune_ros.pruning.interface import PrunePass
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.pruning.registry import names, pruner

WARM_QUERIES = 5  # dense first, then until every method's memory is full


def stock_decode(
    model: Network, embedded: Embedded, prune_pass: PrunePass | None, cache: KVCache | None
) -> DecoderOutput:
    """The decoder of a dense query as published codes run theirs: maps in every layer."""
    output, _maps = stock_pass(model.decoder, embedded.hidden, embedded.layout)
    return output


@dataclass
class Contestant:
    """One pruner with a policy of its own; the weights are shared.

    ``mode`` says what runs the query: ``eager`` is this package, ``graph`` the same captured as a
    CUDA graph, ``stock`` the plain loop.
    """

    label: str
    policy: Policy
    mode: str = 'eager'
    seconds: list[float] = field(default_factory=list)
    results: list[PolicyResult] = field(default_factory=list)
    deviation: float | None = None

    def run(self, observation: Observation) -> None:
        """One timed query."""
        begin = time.perf_counter()
        result = self.policy.act(observation)
        self.seconds.append(time.perf_counter() - begin)
        self.results.append(result)


def contestants(
    loaded: LoadedModel,
    pruners: str,
    changes: Mapping[str, Any],
    stock: bool = True,
    capturer: GraphCapturer | None = None,
) -> list[Contestant]:
    """Dense first, then what ``pruners`` names; the same as graphs, where there is a ``capturer``
    and the method can be captured; stock last. Raises ``ParamError``.
    """
    requested = chosen(pruners, changes)
    # Made-up images, and random weights where they are, make actions of any size.
    policy = partial(Policy, loaded, max_normalised_action=math.inf)
    made = [Contestant(label, policy(params)) for label, params in requested]
    for label, params in requested:
        if capturer is not None and getattr(pruner(params.pruner), 'pure', False):
            captured = policy(params, engine=CudaGraphEngine(loaded, capturer))
            made.append(Contestant(label, captured, 'graph'))
    if stock and loaded.config.flow is None:  # whose head reads keys and values, not rows
        plain = policy(made[0].policy.params, engine=EagerEngine(loaded, stock_decode))
        made.append(Contestant('dense', plain, 'stock'))
    for contestant in made:
        contestant.policy.wants_overlay = False
        contestant.policy.check_params(contestant.policy.params)
    return made


def chosen(pruners: str, changes: Mapping[str, Any]) -> list[tuple[str, PruningParams]]:
    """Labels and parameters from names separated by commas; dense always comes first."""
    requested = [part.strip() for part in pruners.split(',') if part.strip()]
    if 'all' in requested:
        requested = [*names(), 'specprune:paper', 'specprune:authors']
    labels = ['dense', *(label for label in dict.fromkeys(requested) if label != 'dense')]
    result = []
    for label in labels:
        name, _, start = label.partition(':')
        if name not in names():
            raise ParamError('pruner', f'{name!r} is none of {", ".join(names())}')
        # Coarse throughout: fine and dense queries would blur what is compared.
        params = PruningParams.preset_of(start or 'default').replace(pruner=name, mode='coarse')
        result.append((label, params.replace(**changes)))
    return result


def race(
    entered: list[Contestant],
    scene: Iterator[Observation],
    rounds: Iterable[int],
    warm: int = WARM_QUERIES,
) -> None:
    """Ask everybody once per round with the same observation, in turning order.

    CudaGraphEngine are captured first, for the scene's instruction.
    ``warm`` rounds come first and are not counted; after the last, every contestant's actions are
    compared with dense on one more observation.
    """
    observation = next(scene)
    for contestant in entered:
        if contestant.mode == 'graph':
            contestant.policy.warm_up(observation.instruction)
    for _ in range(warm):
        for contestant in entered:
            contestant.policy.act(observation)
        observation = next(scene)
    for number in rounds:
        turn = number % len(entered)
        for contestant in entered[turn:] + entered[:turn]:
            contestant.run(observation)
        observation = next(scene)
    actions = [contestant.policy.act(observation).actions for contestant in entered]
    for contestant, mine in zip(entered, actions, strict=True):
        contestant.deviation = float(np.abs(mine - actions[0]).max())
