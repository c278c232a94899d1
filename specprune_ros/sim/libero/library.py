"""The LIBERO library, where it is installed: found, checked and imported; never a dependency.

Its interface was read in ``Lifelong-Robot-Learning/LIBERO`` at 8f1084e and in ``hf-libero`` 0.1.4
(PyPI), which have the same.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from specprune_ros.bounded_files import FileError, read_yaml
from specprune_ros.sim.arm.render_backend import NoRenderer, choose

INSTALL = """\
LIBERO is installed by hand, into the environment that runs this command:
  pip install hf-libero 'mujoco<3.4'          # LIBERO as Hugging Face packages it
  echo n | python -c 'import libero.libero'   # writes ~/.libero/config.yaml
  export MUJOCO_GL=egl                        # osmesa without a GPU
or from its own repository; docs/how-to/libero.md says how."""
_FOLDERS = ('bddl_files', 'init_states')  # entries of LIBERO's config.yaml that are read here


class MissingLibero(RuntimeError):
    """LIBERO or something that it needs is not there; the message says what and how to get it."""

    def __init__(self, what: str) -> None:
        super().__init__(f'{what}\n{INSTALL}')


@dataclass(frozen=True)
class Library:
    """What is used of LIBERO, and ``notes`` for whoever reads its results.

    ``benchmarks``: suite name to its class. ``environment``: ``OffScreenRenderEnv``. ``path``:
    ``get_libero_path``.
    """

    benchmarks: Mapping[str, Callable[[], Any]]
    environment: Callable[..., Any]
    path: Callable[[str], str]
    notes: tuple[str, ...]


def check_libero() -> list[str]:
    """Look for all that an evaluation needs, without importing LIBERO.

    Chooses the renderer (``MUJOCO_GL``). Returns notes that belong beside every result. Raises
    :class:`MissingLibero`.
    """
    for module in ('libero', 'libero.libero'):
        if importlib.util.find_spec(module) is None:
            raise MissingLibero(f'the Python module {module} is not installed')
    config = _config_file()
    if not config.is_file():
        # Importing LIBERO would ask questions on standard input to make one.
        raise MissingLibero(f'{config}: this file, which tells where LIBERO lies, is not there')
    _check_config(config)
    for module in ('robosuite', 'bddl', 'mujoco'):
        if importlib.util.find_spec(module) is None:
            raise MissingLibero(
                f'the Python module {module}, which LIBERO needs, is not installed'
            )
    robosuite = _version('robosuite')
    if not robosuite.startswith('1.4.'):
        raise MissingLibero(
            f'robosuite {robosuite} is installed; LIBERO is written for 1.4 and calls what later '
            'ones do not have'
        )
    try:
        choose()
    except NoRenderer as error:
        raise MissingLibero(str(error)) from error
    mujoco = _version('mujoco')
    notes = [f'robosuite {robosuite}, mujoco {mujoco}, MUJOCO_GL={os.environ["MUJOCO_GL"]}']
    if _numbers(mujoco) >= (3, 4):
        notes.append(
            f'mujoco {mujoco}: from 3.4 on the bowl of LIBERO-Spatial task 5 does not settle '
            'on the ramekin, and success falls (huggingface/lerobot issue 4390); use mujoco<3.4'
        )
    return notes


def library() -> Library:
    """Import LIBERO. Raises :class:`MissingLibero`."""
    notes = check_libero()
    try:
        with quiet():
            root = importlib.import_module('libero.libero')
            benchmark = importlib.import_module('libero.libero.benchmark')
            envs = importlib.import_module('libero.libero.envs')
    except ImportError as error:
        raise MissingLibero(f'LIBERO cannot be imported: {error}') from error
    return Library(
        benchmark.get_benchmark_dict(),
        envs.OffScreenRenderEnv,
        root.get_libero_path,
        tuple(notes),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what LIBERO prints to standard error: standard output is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _config_file() -> Path:
    folder = os.environ.get('LIBERO_CONFIG_PATH', '~/.libero')
    return Path(folder).expanduser() / 'config.yaml'


def _check_config(path: Path) -> None:
    try:
        config = read_yaml(path)
    except FileError as error:
        raise MissingLibero(f'{error}; delete it') from error
    for name in _FOLDERS:
        if not isinstance(config, dict) or name not in config:
            raise MissingLibero(f'{path}: has no entry {name}; delete the file')
        if not Path(str(config[name])).is_dir():
            raise MissingLibero(f'{path}: {name} is {config[name]}, which is no folder')


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return 'of unknown version'


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split('.')[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)
