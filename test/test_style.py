"""The code keeps its own rules: formatting, style, and the direction of imports."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    'command',
    [('ruff', 'format', '--check', '.'), ('ruff', 'check', '.'), ('lint-imports', '--no-cache')],
    ids=' '.join,
)
def test_rule(command):
    tool = shutil.which(command[0], path=str(Path(sys.executable).parent))
    assert tool, f'{command[0]} is not installed: requirements/test.txt'
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_module_is_never_run_with_the_working_folder_on_its_path():
    """``-m`` alone puts that first, where a lab may have an inspect.py of its own."""
    for folder in ('specprune_ros', 'launch'):
        for path in (ROOT / folder).rglob('*.py'):
            text = path.read_text()
            assert text.count("'-m'") == text.count("'-P', '-m'"), path
