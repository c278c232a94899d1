"""What rclpy has no public way to tell. Nothing else in the package uses its private names."""

from __future__ import annotations

from typing import Any

from rclpy.parameter import Parameter

KNOWN = ('9.1',)  # versions of rclpy that this was tested with


def start_overrides(node: Any) -> dict[str, Parameter]:
    """Parameters that the command line or a file gave at start, by name; changing it before they
    are declared changes what is declared.
    """
    return getattr(node, '_parameter_overrides', {})


def lifecycle_state(node: Any) -> str:
    """The label of a lifecycle node's own state, such as ``active``."""
    return node._state_machine.current_state[1]
