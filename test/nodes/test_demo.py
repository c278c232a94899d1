"""The demo where nothing renders: it goes on with the recording as its cameras, and says so."""

import json
import os
import subprocess
import sys

import pytest

from .conftest import new_domain

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]


def test_without_a_renderer_the_recording_is_the_cameras(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'specprune_ros.cli.main', 'demo'),
            *('--seconds', '4', '--out', str(tmp_path), '--instruction', 'lift the blue cube'),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        # A backend that does not exist stands for drivers that are not installed.
        env={
            **os.environ,
            'ROS_DOMAIN_ID': str(new_domain()),
            'MUJOCO_GL': 'none-such',
            'SPECPRUNE_MUJOCO_GL_CHECKED': '',
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = ' '.join(done.stdout.split())
    assert 'apt-get install' in said
    assert 'played from the recording' in said
    numbers = json.loads((tmp_path / 'demo.json').read_text())
    assert numbers['chunks'] > 3
    assert numbers['tokens_in'] == 512
    assert numbers['tokens_mean'] < 512
    assert list(numbers['instructions']) == ['lift the blue cube']
    assert set(numbers['exit_status'].values()) == {0}
    assert 'random numbers' in said
    for name in ('demo.png', 'demo.gif'):
        assert (tmp_path / name).stat().st_size > 10_000
    for log in (tmp_path / 'log').iterdir():
        assert 'Traceback' not in log.read_text(), log
