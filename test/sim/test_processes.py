"""Work in several processes: results, errors, and nothing left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from specprune_ros.sim.processes import in_processes


def test_every_item_is_worked_on_in_another_process_that_was_prepared(tmp_path):
    here, names = os.getcwd(), list('abcde')
    found = in_processes(os.path.abspath, names, 2, os.chdir, tmp_path)
    assert sorted(found) == [str(tmp_path / name) for name in names]
    assert os.getcwd() == here
    assert list(in_processes(os.path.abspath, [], 2, os.chdir, tmp_path)) == []


def test_an_error_is_raised_here(tmp_path):
    with pytest.raises(ValueError, match='three'):
        list(in_processes(int, ['1', '2', 'three', '4'], 2, os.chdir, tmp_path))


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / 'endless.py').write_text(
        textwrap.dedent("""
        import os, time

        def note(folder):
            open(f'{folder}/{os.getpid()}', 'w').close()

        def work(seconds):
            time.sleep(seconds)

        if __name__ == '__main__':
            import sys
            from specprune_ros.sim.processes import in_processes
            list(in_processes(work, [600.0, 600.0], 2, note, sys.argv[1]))
        """)
    )
    started = tmp_path / 'started'
    started.mkdir()
    parent = subprocess.Popen([sys.executable, str(tmp_path / 'endless.py'), str(started)])
    try:
        until = time.monotonic() + 60
        while len(list(started.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        workers = [int(path.name) for path in started.iterdir()]
        assert len(workers) == 2 and all(map(alive, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def alive(pid):
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False
