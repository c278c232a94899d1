"""What a measurement ran on, and how it is written down."""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path
from typing import Any


def host_info() -> dict[str, str | int]:
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
        'cpu': f'{os.cpu_count()} cores of {cpu}',
        'cores': os.cpu_count() or 0,
        'system': platform.platform(),
        'python': platform.python_version(),
    }


def as_json(value: Any) -> str:
    """JSON text of a result; NaN, which JSON has not, becomes null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + '\n'


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
