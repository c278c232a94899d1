"""A client written by nobody here: ``openpi-client`` from PyPI, in an environment of its own, as
it wants numpy below 2. ``OPENPI_CLIENT_PYTHON`` names that environment's Python::

    python3 -m venv openpi && openpi/bin/pip install openpi-client==0.1.2 typing_extensions
    OPENPI_CLIENT_PYTHON=openpi/bin/python make test ARGS=test/serving/test_openpi_client.py
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from served import serving

from specprune_ros.policy.engine.eager import EagerEngine

PYTHON = os.environ.get('OPENPI_CLIENT_PYTHON')


@pytest.mark.skipif(not PYTHON, reason='OPENPI_CLIENT_PYTHON names no Python with openpi-client')
def test_openpi_s_own_client_talks_to_this_server(loaded):
    with serving(loaded, EagerEngine(loaded), key='k') as running:
        script = Path(__file__).with_name('openpi_user.py')
        clean = {'PATH': os.environ['PATH']}  # none of our packages
        done = subprocess.run(
            [PYTHON, script, '127.0.0.1', str(running.port), 'k'],
            capture_output=True,
            text=True,
            timeout=100,
            env=clean,
        )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert int(said['numpy'].split('.')[0]) < 2
    assert {'config', 'limits', 'server_id'} <= set(said['metadata'])
    assert said['shapes'] == [[8, 7]] * 3
    assert np.isfinite(said['first']).all()
    assert said['timing'][0] == ['infer_ms']
    assert said['timing'][1] == ['infer_ms', 'prev_total_ms']
    assert said['modes'] == ['dense', 'fine', 'fine']
    assert said['resets'] == ['start', None, None]
    assert 'proprioception has shape [3]' in said['refused']
    # Four rows of a chunk, then the next chunk; the connection outlived the refusal.
    assert len(said['rows']) == 6
    assert all(len(row) == 7 for row in said['rows'])
