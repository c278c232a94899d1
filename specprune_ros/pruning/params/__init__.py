"""Parameters of the pruning methods."""

from specprune_ros.pruning.params.schema import (
    METHODS,
    REFERENCE_DEPTH,
    REFERENCE_GRID,
    ROWS,
    ParamError,
    ParamSpec,
    layers,
    param,
    share,
)
from specprune_ros.pruning.params.specprune import PRESETS, PruningParams, specs

__all__ = [
    'METHODS',
    'PRESETS',
    'REFERENCE_DEPTH',
    'REFERENCE_GRID',
    'ROWS',
    'ParamError',
    'ParamSpec',
    'PruningParams',
    'layers',
    'param',
    'share',
    'specs',
]
