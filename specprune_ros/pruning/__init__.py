"""The pruning method and its rivals: tensors in, kept indices out.

Importing any part of this package makes every method known, with its own parameters. Without
PyTorch none is: a robot whose policy is on a server (``specprune_ros.serving``) has the parameters
that all methods share, and the server knows the others.
"""

from importlib.util import find_spec

if find_spec('torch') is not None:
    from specprune_ros.pruning import builtin
    from specprune_ros.pruning.registry import load_plugins

    __all__ = ['builtin']

    load_plugins()
