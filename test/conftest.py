"""Which tests can run here, which beside each other, and which are run once more where they fail.

Those marked ``ros`` or ``gpu`` say why not where they cannot run. Those that start processes and
wait for them on the wall clock may fail on a machine that gives no time to one of them: the
runner's closing lines list each that was run again as RERUN.

With ``-n 2`` whole files run on two workers (pytest-xdist). Those that judge times of the arm's
motion, ``TIMED``, run first, one after the other, and the rest gives way to them.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import PurePath

import hypothesis
import pytest
from ros_processes import new_domain

# Tiny matrices run faster on one thread, above all beside other work; programs inherit it.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# A shell starts background jobs with Ctrl-C ignored, and so would be every program started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing on a machine shared with others.
hypothesis.settings.register_profile('shared machine', deadline=None)
hypothesis.settings.load_profile('shared machine')


@functools.cache
def without_ros() -> str | None:
    """Why nodes cannot run in this environment; ``None`` where they can."""
    if 'SPECPRUNE_ROOT' not in os.environ and 'AMENT_PREFIX_PATH' not in os.environ:
        return 'no ROS 2 environment: `. scripts/env.sh`, or `make test`'
    # From here on a failure is a fault, not a missing part: `make test` must not skip the nodes.
    return None


@functools.cache
def without_gpu() -> str | None:
    """Why CUDA cannot be used here; ``None`` where it can."""
    import torch

    return None if torch.cuda.is_available() else 'no CUDA device'


@pytest.fixture(scope='module')
def one_thread() -> Iterator[None]:
    """Tiny matrices run faster on one thread, above all beside other work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


WORKER = 'PYTEST_XDIST_WORKER' in os.environ
TIMED = frozenset(
    f'nodes/test_{name}.py'
    for name in (
        'chunk_executor', 'gripper_actions', 'process_ends', 'publisher', 'query_schedule',
        'real_time_chunking', 'sim_arm', 'supervisor',
    )
)  # fmt: skip


def is_timed(path: PurePath) -> bool:
    return '/'.join(path.parts[-2:]) in TIMED


def pytest_configure(config: pytest.Config) -> None:
    """Show why a first try failed, where the plugin can; a ROS domain of its own for a worker."""
    if hasattr(config.option, 'rerun_show_tracebacks'):
        config.option.rerun_show_tracebacks = True
    if WORKER:
        os.environ['ROS_DOMAIN_ID'] = str(new_domain())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """Whole files to a worker, and what is timed to one."""
    if config.getvalue('dist') not in ('load', 'loadfile'):
        return None
    config.option.loadscopereorder = False
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return 'timed' if is_timed(PurePath(file)) else file

    return Scheduling(config, log)


@functools.cache
def give_way() -> None:
    """Leave the processor to what is timed on another worker."""
    os.nice(5)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A worker gives way from its first test on that is not timed."""
    if WORKER and not is_timed(item.path):
        give_way()


# Fixtures of test/nodes and test/launch with nodes that run in real time.
REAL_TIME = frozenset({'arm', 'bench', 'domain', 'rig', 'rig_with', 'robot', 'shared'})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is timed comes first; skip what this machine has not, with the reason; a second try for
    what waits for others.
    """
    items.sort(key=lambda item: not is_timed(item.path))
    for item in items:
        nodes = item.path.parent.name in ('nodes', 'launch') and REAL_TIME.intersection(
            getattr(item, 'fixturenames', ())
        )
        # launch_pytest calls its tests by itself, and ends their launch after the first try.
        if item.get_closest_marker('launch') is None and (
            item.get_closest_marker('real_time') or nodes
        ):
            item.add_marker(pytest.mark.flaky(reruns=1))
    for marker, reason in (('ros', without_ros), ('gpu', without_gpu)):
        for item in items:
            if item.get_closest_marker(marker) and (why := reason()):
                item.add_marker(pytest.mark.skip(reason=why))
