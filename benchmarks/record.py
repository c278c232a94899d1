"""Results with the machine, versions, date and command they came from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from specprune_ros.bench.host_info import host_info


def priority() -> dict[str, int]:
    """At which niceness this process runs, and its session's autogroup where the kernel has it."""
    found = {'nice': os.getpriority(os.PRIO_PROCESS, 0)}
    with suppress(OSError, ValueError, IndexError):
        found['autogroup'] = int(Path('/proc/self/autogroup').read_text().rsplit(maxsplit=1)[1])
    return found


def _script() -> str:
    """The script that runs, from the repository's root."""
    file = Path(sys.argv[0]).resolve()
    root = Path(__file__).parents[1]
    return str(file.relative_to(root) if file.is_relative_to(root) else file.name)


def summary(result: dict) -> str:
    """The result as JSON of one line for each entry, and for each row of its tables."""

    def text(value: object) -> str:
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            return '[\n    ' + ',\n    '.join(map(json.dumps, value)) + '\n  ]'
        return json.dumps(value)

    lines = (f'  {json.dumps(name)}: {text(value)}' for name, value in result.items())
    return '{\n' + ',\n'.join(lines) + '\n}\n'


def write(path: Path | None, result: dict) -> None:
    """Add machine, versions, date, revision and command, and write."""
    if path is None:
        return
    revision = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True
    ).stdout.strip()
    result = {
        **result,
        'machine': host_info(),
        'torch': torch.__version__,
        'numpy': np.__version__,
        'ros': os.environ.get('ROS_DISTRO', 'wheels'),
        'middleware': os.environ.get('RMW_IMPLEMENTATION', ''),
        'revision': revision,
        'date': time.strftime('%Y-%m-%d'),
        'command': 'python ' + ' '.join([_script(), *sys.argv[1:]]),
        'load_at_end': os.getloadavg()[0],
        'priority': priority(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(summary(result))
    print(f'written: {path}')
