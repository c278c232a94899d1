"""The renderer is found by trying, and where there is none the message helps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from specprune_ros.sim.arm import render_backend

ROOT = Path(__file__).parents[2]


def run(code, **environment):
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in ('MUJOCO_GL', 'PYOPENGL_PLATFORM', render_backend._CHECKED)
    }
    return subprocess.run(
        [sys.executable, '-c', code],
        env={**clean, 'PYTHONPATH': str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_fresh_process_finds_one_and_leaves_quietly():
    done = run(
        'import os; from specprune_ros.sim.arm.world import World; w = World(image_size=(64, 64));'
        'print(w.render("agent").std() > 5, os.environ["MUJOCO_GL"])'
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() in (['True', 'egl'], ['True', 'osmesa'])
    assert 'Error' not in done.stderr  # no EGL complaint at interpreter exit


def test_physics_runs_where_nothing_can_render():
    """``MUJOCO_GL=glfw`` needs a display, which a test machine has not: the real failure path."""
    done = run(
        'from specprune_ros.sim.arm.world import World\n'
        'from specprune_ros.sim.arm.render_backend import NoRenderer\n'
        'w = World(); w.advance(0.1); print(round(w.time, 3))\n'
        'try:\n    w.render("agent")\nexcept NoRenderer as error:\n    print(error)',
        MUJOCO_GL='glfw',
        DISPLAY='',
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('0.1\n')
    # What works instead is said where there is something, else what brings it; with the reason.
    assert 'MUJOCO_GL=glfw does not work here (' in done.stdout or 'libosmesa6' in done.stdout
    assert 'glfw' in done.stdout and 'earlier attempts' not in done.stdout


@pytest.mark.parametrize(
    ('works', 'chosen'), [({'egl', 'osmesa'}, 'egl'), ({'osmesa'}, 'osmesa'), (set(), None)]
)
def test_egl_then_osmesa(monkeypatch, works, chosen):
    monkeypatch.setattr(
        render_backend, 'probe', lambda backend: None if backend in works else 'missing'
    )
    monkeypatch.setenv('MUJOCO_GL', '')  # restored afterwards
    monkeypatch.setenv(render_backend._CHECKED, '')
    if chosen is None:
        with pytest.raises(render_backend.NoRenderer, match='libegl1.*libosmesa6'):
            render_backend.choose()
        assert os.environ['MUJOCO_GL'] == 'disable'
        with pytest.raises(render_backend.NoRenderer):  # and a second call says it again
            render_backend.choose()
    else:
        assert render_backend.choose() == chosen == os.environ['MUJOCO_GL']


def test_what_a_probe_says_of_a_broken_backend():
    reason = render_backend.probe('no-such-backend')
    assert reason is not None and 'no-such-backend' in reason
