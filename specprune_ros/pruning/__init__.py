"""The pruning method and its rivals: tensors in, kept indices out.

Importing any part of this package makes every method known, with its own parameters.
"""

from specprune_ros.pruning import builtin
from specprune_ros.pruning.registry import load_plugins

__all__ = ['builtin']

load_plugins()
