"""The fault suite and the soak, short: the real processes, every kind of fault once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ros_processes import new_domain

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.real_time]


def run(script, *options, seconds):
    environment = {**os.environ, 'ROS_DOMAIN_ID': str(new_domain())}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


@pytest.mark.timeout(400)
def test_every_kind_of_fault_is_survived(tmp_path):
    file = tmp_path / 'faults.json'
    done = run('test/fault_injection/faults.py', '--count', '1', '--json', str(file), seconds=380)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    result = json.loads(file.read_text())
    assert result['injected'] == len(result['rows']) >= 30
    # A machine that gave a process no core is recognised by the kernel's own account.
    assert result['survived'] + result['held_up'] == result['injected'], result['not_survived']
    if not result['held_up']:
        assert result['worst_stop_ms_after_limit'] <= 100.0
    assert set(result['exit_status'].values()) == {0}


@pytest.mark.timeout(400)
def test_a_short_soak_counts_and_judges(tmp_path):
    file = tmp_path / 'soak.json'
    done = run(
        'benchmarks/soak.py', '--minutes', '0.5', '--every', '2', '--json', str(file), seconds=200
    )
    assert ('STEADY' in done.stdout) and 'Traceback' not in done.stderr, done.stderr
    result = json.loads(file.read_text())
    assert result['chunks'] > 20
    assert set(result['processes']) == {'sim_arm', 'specprune_node', 'chunk_executor'}
    assert all(row['handles']['most'] < 100 for row in result['processes'].values())
