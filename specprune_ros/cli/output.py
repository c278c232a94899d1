"""What commands share: results as JSON, and a sign of life in work that takes long."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 2.0  # s without a word


def write_json(path: Path | None, value: Any) -> None:
    """Write a result where ``--json`` names a file; NaN becomes null."""
    if path is not None:
        from specprune_ros.bench.host_info import as_json

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_json(value), encoding='utf-8')


@contextmanager
def working(text: str, patience: float = PATIENCE) -> Iterator[None]:
    """Say on stderr what is being done where it takes longer than ``patience`` seconds: with a
    spinner on a terminal, as a line elsewhere.
    """
    from rich.console import Console

    console = Console(stderr=True)
    status = console.status(text)

    def show() -> None:
        if console.is_terminal:
            status.start()
        else:
            print(f'{text} ...', file=sys.stderr, flush=True)

    timer = threading.Timer(patience, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()
