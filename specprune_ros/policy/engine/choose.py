"""The engine that fits where a model is."""

from __future__ import annotations

from specprune_ros.models.load import LoadedModel
from specprune_ros.policy.engine.capture import recorder_on
from specprune_ros.policy.engine.eager import Eager
from specprune_ros.policy.engine.graphs import Graphs


def engine_for(loaded: LoadedModel, graphs: bool) -> Eager | Graphs:
    """CUDA graphs on a GPU, unless they are not wanted or cannot be had; else eager."""
    engine = Eager(loaded)
    try:
        recorder = recorder_on(engine.device) if graphs else None
    except RuntimeError as error:  # a driver without streams of priority or graphs
        engine.trouble = f'no CUDA graphs: {error}'
        return engine
    return engine if recorder is None else Graphs(loaded, recorder)
