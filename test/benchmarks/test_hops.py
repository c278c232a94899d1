"""The way of one query, from the camera callback to the chunk, stays short."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 45  # functions outside models/ and pruning/


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.timeout(310)
def test_a_query_enters_fewer_functions_than_the_house_allows(tmp_path):
    result = tmp_path / 'hops.json'
    done = subprocess.run(
        [sys.executable, 'benchmarks/hops.py', '--queries', '2', '--list', '--json', str(result)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr
    assert 10 < json.loads(result.read_text())['outside_models_and_pruning'] < MOST, done.stdout
