"""SpecPrune-VLA token pruning for vision-language-action models, on ROS 2.

What this module exports is the public Python interface; the rest is private and may change::

    from specprune_ros import CameraImage, Observation, PruningParams, build_policy

Names are imported when they are first used, so that nodes without a model need no PyTorch.
"""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# Run from a checkout, this folder shadows the installed package, which holds the generated
# messages: look for `specprune_ros.msg` there as well.
__path__ = extend_path(__path__, __name__)

__version__ = '0.1.0'

if TYPE_CHECKING:
    from specprune_ros.models.load import inspect_checkpoint
    from specprune_ros.policy.build import build_policy
    from specprune_ros.policy.forward_step import StepInputs, forward_step
    from specprune_ros.policy.observation import CameraImage, Observation
    from specprune_ros.policy.policy import Policy
    from specprune_ros.policy.result import PolicyError, PolicyResult
    from specprune_ros.pruning.controller import SpeedSample
    from specprune_ros.pruning.interface import (
        Mode,
        PassOutcome,
        PrunePass,
        Pruner,
        PruneSchedule,
        QueryContext,
        RowGroup,
        Selection,
        TokenLayout,
    )
    from specprune_ros.pruning.params import ParamError, PruningParams, param
    from specprune_ros.pruning.registry import load_plugin, register_pruner
    from specprune_ros.pruning.rivals.base import BasePrunePass

_WHERE = {
    'models.load': ('inspect_checkpoint',),
    'policy.build': ('build_policy',),
    'policy.forward_step': ('StepInputs', 'forward_step'),
    'policy.observation': ('CameraImage', 'Observation'),
    'policy.policy': ('Policy',),
    'policy.result': ('PolicyError', 'PolicyResult'),
    'pruning.controller': ('SpeedSample',),
    'pruning.interface': (
        'Mode',
        'PassOutcome',
        'PrunePass',
        'PruneSchedule',
        'Pruner',
        'QueryContext',
        'RowGroup',
        'Selection',
        'TokenLayout',
    ),
    'pruning.params': ('ParamError', 'PruningParams', 'param'),
    'pruning.registry': ('load_plugin', 'register_pruner'),
    'pruning.rivals.base': ('BasePrunePass',),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = [
    'BasePrunePass',
    'CameraImage',
    'Mode',
    'Observation',
    'ParamError',
    'PassOutcome',
    'Policy',
    'PolicyError',
    'PolicyResult',
    'PrunePass',
    'PruneSchedule',
    'Pruner',
    'PruningParams',
    'QueryContext',
    'RowGroup',
    'Selection',
    'SpeedSample',
    'StepInputs',
    'TokenLayout',
    'build_policy',
    'forward_step',
    'inspect_checkpoint',
    'load_plugin',
    'param',
    'register_pruner',
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(f'{__name__}.{_MODULE[name]}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, imported or not."""
    return sorted({*globals(), *__all__})
