"""Every way a moving executor's process can end leaves the arm at rest, and no orphan."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from executor_bench import ROOT, Bench, write_profile

pytestmark = [pytest.mark.ros, pytest.mark.timeout(240)]

NODE = [sys.executable, '-m', 'specprune_ros.nodes.start', 'chunk_executor']
# What `ros2 launch`, a shell script or a supervisor is: a process that starts another and waits.
LAUNCH = 'import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))'


def started_by(process: int) -> int | None:
    """The process id of a child."""
    children = Path(f'/proc/{process}/task/{process}/children').read_text().split()
    return int(children[0]) if children else None


def alive(process: int) -> bool:
    try:
        return 'Z' not in Path(f'/proc/{process}/stat').read_text().rsplit(')')[1].split()[0]
    except OSError:
        return False


class Terminal:
    """A shell with a terminal of its own that runs the node in the foreground, as over ssh."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execvp('bash', ['bash', '-c', f'{shlex.join(command)}; true'])

    def close(self) -> None:
        os.close(self._terminal)


ENDS = {
    'SIGTERM': signal.SIGTERM,
    'SIGHUP': signal.SIGHUP,
    'launch killed': signal.SIGKILL,
    'launch terminated': signal.SIGTERM,
    'terminal closed': None,
}
FAST = ('SIGHUP', 'launch killed')


@pytest.mark.parametrize(
    'end', [pytest.param(end, marks=() if end in FAST else pytest.mark.slow) for end in ENDS]
)
@pytest.mark.real_time
def test_the_arm_comes_to_rest_however_its_executor_ends(ros, tmp_path, end):
    """A SIGHUP left a norm of 2.8 as the last command; a killed launch 500 more of motion."""
    b = Bench(ros, write_profile(tmp_path))
    b.dut.stop()
    b.executor.remove_node(b.dut)
    command = [*NODE, '--ros-args', '-p', f'profile:={tmp_path / "robot.yaml"}']
    launched, terminal, node = None, None, None
    try:
        if end == 'terminal closed':
            terminal = Terminal(command)
            top = terminal.pid
        else:
            word = [] if end.startswith('SIG') else [sys.executable, '-c', LAUNCH]
            launched = subprocess.Popen([*word, *command], cwd=ROOT)
            top = launched.pid
        assert b.run(40.0, until=lambda: len(b.commands) > 100)
        node = top if end.startswith('SIG') else started_by(top)
        assert alive(node) and b.speeds()[-1] > 0.05
        begin = time.monotonic()
        if terminal is not None:
            terminal.close()
        else:
            os.kill(top, ENDS[end])
        b.run(60.0, until=lambda: not alive(node))
        assert not alive(node), 'an orphan drives the arm on'
        assert b.run(20.0, until=lambda: b.speeds()[-1] == 0.0 and b.silent_for() > 0.3)
        speeds = np.array(b.speeds(begin - 0.2))
        assert np.abs(np.diff(speeds)).max() <= 4.0 * 0.01 * (1 + 1e-6)  # and not in one jump
        assert b.commands[-1][0] - begin < 1.0 + b.held_up(begin)
    finally:
        for process in (node, launched.pid if launched else None):
            if process is not None and alive(process):
                os.kill(process, signal.SIGKILL)
        if launched is not None:
            launched.wait()
        else:
            os.waitpid(terminal.pid, 0)
        b.close()
