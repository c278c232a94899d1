"""Pruning methods by name, whoever registers them."""

from __future__ import annotations

import ast
import importlib.util
import logging
import os
import sys
from importlib.metadata import entry_points
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

from specprune_ros.pruning.interface import Mode, Pruner, TokenLayout
from specprune_ros.pruning.params import ParamError, PruningParams
from specprune_ros.pruning.params.schema import METHODS, declare_method

ENTRY_POINTS = 'specprune_ros.pruners'
ENVIRONMENT = 'SPECPRUNE_PLUGINS'
RIVALS = Path(__file__).resolve().parent / 'rivals'
_PRUNERS: dict[str, Pruner] = {}


class PluginError(ValueError):
    """A file or entry point that gives no pruning method; the message says which and why."""


def register_pruner(method: type[Pruner] | Pruner) -> type[Pruner] | Pruner:
    """Make a method known under its ``name``; also usable as a class decorator.

    ``method`` follows :class:`~specprune_ros.pruning.interface.Pruner`; its attribute
    ``parameters``, if any, is a frozen dataclass of ``param`` fields named ``<name>_...``. A later
    method of the same name takes the earlier one's place. Raises :class:`PluginError` for
    something else.
    """
    made = method() if isinstance(method, type) else method
    name = getattr(made, 'name', None)
    missing = [part for part in ('plan', 'begin') if not callable(getattr(made, part, None))]
    if not isinstance(name, str) or not name.isidentifier() or missing:
        what = f'has no {" and no ".join(missing)}' if missing else 'has no name'
        raise PluginError(f'{method!r} is no pruner: it {what}')
    try:
        declare_method(name, getattr(made, 'parameters', None))
    except (TypeError, ValueError) as error:
        raise PluginError(f'pruner {name}: {error}') from error
    _PRUNERS[name] = made
    return method


def names() -> tuple[str, ...]:
    """Names of all pruners, SpecPrune first."""
    return tuple(_PRUNERS)


def pruner(name: str) -> Pruner:
    """The pruner of that name; raises :class:`ParamError` for an unknown one."""
    try:
        return _PRUNERS[name]
    except KeyError:
        raise ParamError('pruner', f'{name!r} is none of {", ".join(_PRUNERS)}') from None


def sources(name: str) -> tuple[Path, ...]:
    """The files a method is written in: its own, and those it imports (directly or not) from its
    folder or from the rivals of this package.

    Raises :class:`ParamError` for an unknown method, :class:`PluginError` for one that was not
    read from a file.
    """
    module = sys.modules.get(type(pruner(name)).__module__)
    first = _file(module)
    if module is None or first is None:
        raise PluginError(f'pruner {name}: has no source file; put it in a Python file of its own')
    ours = first.is_relative_to(RIVALS.parent)
    folders = (RIVALS,) if ours else (RIVALS, first.parent)
    found, waiting = {first: module}, [module]
    while waiting:
        for other in _imported(waiting.pop()):
            path = _file(other)
            if path and path not in found and any(_below(folder, path) for folder in folders):
                found[path] = other
                waiting.append(other)
    return tuple(sorted(found))


def _file(module: ModuleType | None) -> Path | None:
    path = Path(getattr(module, '__file__', None) or '/')
    return path.resolve() if path.suffix == '.py' and path.is_file() else None


def _below(folder: Path, path: Path) -> bool:
    """Whether a folder of somebody's own code, no place of installed packages, holds a file."""
    installed = {'site-packages', 'dist-packages'}
    return (
        path.is_relative_to(folder)
        and folder.name not in installed
        and not installed.intersection(path.relative_to(folder).parts)
    )


def _imported(module: ModuleType) -> list[ModuleType]:
    """The modules that a module's source names in its imports, as far as they are loaded."""
    wanted: list[str] = []
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_bytes())):
        if isinstance(node, ast.Import):
            wanted += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = '.' * node.level + (node.module or '')
            base = resolve_name(origin, module.__package__) if node.level else origin
            wanted += (base, *(f'{base}.{alias.name}' for alias in node.names))
    return [sys.modules[one] for one in wanted if one in sys.modules]


def uses_similarity(params: PruningParams) -> bool:
    """Whether passes with these parameters compare the images with earlier ones."""
    name = params.pruner
    if name == 'random' and params.random_like not in ('share', 'specprune'):
        name = params.random_like  # runs along
    return bool(getattr(pruner(name), 'uses_similarity', False))


def is_capturable(name: str) -> bool:
    """Whether a CUDA graph can hold this method's passes: nothing is decided on the host."""
    return bool(getattr(pruner(name), 'pure', False))


def check_params(params: PruningParams, layout: TokenLayout) -> None:
    """Raise :class:`ParamError` where these parameters and a model cannot go together."""
    for camera in params.cameras_kept:
        if camera >= layout.cameras:
            raise ParamError(
                'cameras_kept',
                f'camera {camera} does not exist: the model has {layout.cameras}, from 0',
            )
    mode = Mode.FINE if params.mode == 'auto' else Mode(params.mode)
    schedule = pruner(params.pruner).plan(layout, params, mode)
    if schedule.skip and layout.expert_rows:
        raise ParamError(
            'pruner',
            f'{params.pruner} skips layers, whose keys and values the action expert of a flow '
            'policy reads: take another',
        )


def load_plugin(path: Path | str) -> tuple[str, ...]:
    """Run a Python file of the user's and return the names of the methods that it registered.

    Raises :class:`PluginError` for a file that is absent, fails or registers nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise PluginError(f'plugin {path}: no such file')
    before = dict(_PRUNERS)
    spec = importlib.util.spec_from_file_location(f'specprune_plugin_{path.stem}', path)
    if spec is None or spec.loader is None:
        raise PluginError(f'plugin {path}: want a Python file, ending in .py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(f'plugin {path}: {type(error).__name__}: {error}') from error
    found = tuple(name for name in _PRUNERS if _PRUNERS[name] is not before.get(name))
    if not found:
        raise PluginError(
            f'plugin {path}: registers no method; put @register_pruner above its class'
        )
    return found


def load_plugins() -> None:
    """Register the methods of installed packages (entry points ``specprune_ros.pruners``) and of
    the files that the environment names (``SPECPRUNE_PLUGINS``, separated like ``PATH``).

    An entry point that fails is left out with a warning; a named file that fails raises
    :class:`PluginError`.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            register_pruner(entry.load())
        except Exception as error:
            logging.getLogger(__name__).warning('pruner %s is left out: %s', entry.name, error)
    for path in filter(None, os.environ.get(ENVIRONMENT, '').split(os.pathsep)):
        load_plugin(path)


__all__ = [
    'METHODS',
    'PluginError',
    'check_params',
    'is_capturable',
    'load_plugin',
    'names',
    'pruner',
    'register_pruner',
    'sources',
    'uses_similarity',
]
