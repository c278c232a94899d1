"""Node processes started from Python (there is no launch system outside a ROS host)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from specprune_ros.nodes.common.parent_process import PARENT
from specprune_ros.python_process import python_environment, python_module

STOP_PATIENCE = 60.0  # s from SIGINT to SIGKILL; a policy on a starved machine needed more than 15


class NodeDied(RuntimeError):
    """A node's process ended by itself; the message holds the end of its log."""


class NodeProcess:
    """One node of this package in a process of its own, its output in a log file.

    ``program`` runs it instead of :mod:`specprune_ros.nodes.start`.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path, program: Sequence[str] = ()
    ) -> None:
        self.name = module
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = log.open('wb')
        self.process = subprocess.Popen(
            [*(program or python_module('specprune_ros.nodes.start', module)), *arguments],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # Not in the terminal's group: Ctrl-C reaches the parent, which stops them in order.
            start_new_session=True,
            env=python_environment(**{PARENT: str(os.getpid())}),
        )

    def check(self) -> None:
        """Raise :class:`NodeDied` if the process has ended."""
        status = self.process.poll()
        if status is not None:
            raise NodeDied(f'{self.name} ended with status {status}:\n{self.tail()}')

    def tail(self, lines: int = 15) -> str:
        """The end of the log."""
        text = self.log.read_text(errors='replace').rstrip()
        return '\n'.join(text.splitlines()[-lines:])

    def stop(self) -> int:
        """SIGINT, then patience, then SIGKILL. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(STOP_PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._file.close()
        return self.process.returncode

    def memory(self) -> int | None:
        """Resident memory in bytes, ``None`` where the system does not tell."""
        try:
            for line in Path(f'/proc/{self.process.pid}/status').read_text().splitlines():
                if line.startswith('VmRSS:'):
                    return int(line.split()[1]) * 1024
        except OSError:
            return None
        return None


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP what Ctrl-C is, so that nodes are stopped in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def stop_all(processes: Sequence[NodeProcess]) -> dict[str, int]:
    """Stop in the order given, undisturbed by further signals; exit status by name."""
    kept = [
        (number, signal.signal(number, signal.SIG_IGN))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ]
    try:
        return {process.name: process.stop() for process in processes}
    finally:
        for number, handler in kept:
            signal.signal(number, handler)


def wait_until(condition: object, seconds: float, step: float = 0.02) -> bool:
    """Poll a callable until it is true or time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step)
    return bool(condition())
