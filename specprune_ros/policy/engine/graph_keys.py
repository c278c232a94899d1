"""Which keys the queries of an episode will have, and which of them a graph can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from specprune_ros.policy.forward_step import DeviceOutputs, GraphKey, StepInputs, compares
from specprune_ros.pruning.interface import Mode, TokenLayout
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import is_capturable, pruner

REPEATS = 4  # pruned queries until a method that remembers several queries remembers as many


def enumerate_graph_keys(
    layout: TokenLayout,
    params: PruningParams,
    inputs: StepInputs,
    visit: Callable[[GraphKey, StepInputs], DeviceOutputs | None],
) -> bool:
    """Visit every key of an episode once, each with the past that the one before left, until
    there is no answer; whether there always was one. ``inputs`` has the images for all.
    """
    carry: Mapping[str, Tensor] = {}
    seen: set[GraphKey] = set()
    for number, mode in enumerate(episode(params)):
        looks = number and mode is not Mode.DENSE and compares(params)
        variant = replace(inputs, carry=carry, reference_images=inputs.images if looks else None)
        key = variant.graph_key(layout, params, mode)
        if key in seen:
            continue
        seen.add(key)
        given = visit(key, variant)
        if given is None:
            return False
        carry = given.carry
    return True


def episode(params: PruningParams) -> tuple[Mode, ...]:
    """Modes that queries with these parameters can have, from a reset on."""
    pruned = (Mode.COARSE, Mode.FINE) if params.mode == 'auto' else (Mode(params.mode),)
    first = (Mode.DENSE,) if params.first_dense else ()
    again = (Mode.DENSE,) if params.refresh_period or params.refresh_change < 1.0 else ()
    return (*first, *pruned * REPEATS, *again)


def uncapturable_reason(key: GraphKey) -> str:
    """Why a key cannot be captured at all, or an empty text."""
    method = pruner(key.params.pruner)
    if not is_capturable(method.name):
        return f'pruner {method.name} decides on the host; it is answered eagerly'
    if not method.plan(key.layout, key.params, key.mode).static:
        return 'exact budgets have no fixed size; they are answered eagerly'
    return ''
