"""A checkpoint folder inspected in a limited child process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHILD_MEMORY = 8 << 30  # bytes; weights are not read
CHILD_SECONDS = 300.0


def inspect_limited(
    path: Path, unnorm_key: str | None, overrides: dict[str, Any] | None
) -> dict[str, Any]:
    """A report as plain data, made in a child process: a folder nobody has vouched for may crash a
    library, fill memory or never end.
    """
    from specprune_ros.limited_process import LimitedProcessError, call

    try:
        return call(
            f'{__name__}:_inspect',
            [str(path), unnorm_key, overrides],
            memory=CHILD_MEMORY,
            seconds=CHILD_SECONDS,
        )
    except LimitedProcessError as error:
        from specprune_ros.models.checkpoint.report import Report

        report = Report(path)
        report.problem(f'{path}: cannot be inspected: {error}')
        return report.to_dict()


def _inspect(requested: list[Any]) -> dict[str, Any]:
    """In the child."""
    from specprune_ros.models.load import inspect_checkpoint

    return inspect_checkpoint(*requested).to_dict()
