"""How a process of this package's own is started: no file of the working folder runs in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module; ``-P`` as ``-m`` alone looks in the working folder first."""
    return [sys.executable, '-P', '-m', module, *arguments]


def python_environment(**changes: str) -> dict[str, str]:
    """This process's environment with ``changes``, in which the module is found."""
    # An empty entry would be the working folder again.
    paths = [path for path in os.environ.get('PYTHONPATH', '').split(os.pathsep) if path]
    # An installed package is found without help, and its neighbours must not hide Python's own.
    if (_ROOT / 'package.xml').is_file() and str(_ROOT) not in paths:
        paths.insert(0, str(_ROOT))
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths), **changes}
