"""What a measurement ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                cpu = line.split(':', 1)[1].strip()
                break
    except OSError:
        pass
    return {
        'cpu': f'{os.cpu_count()} x {cpu}',
        'cores': os.cpu_count() or 0,
        'system': platform.platform(),
        'python': platform.python_version(),
    }
