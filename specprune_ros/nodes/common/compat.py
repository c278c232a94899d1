"""Where ROS 2 distributions differ, and what rclpy has no public way to tell.

Nothing else in the package requests the distribution in Python or uses rclpy's private names;
docs/reference/distributions.md has the table.
"""

from __future__ import annotations

from typing import Any

from rclpy.parameter import Parameter

KNOWN = ('7.1', '9.1')  # rclpy of Jazzy, whose source was read, and of Kilted, which is tested


def start_overrides(node: Any) -> dict[str, Parameter]:
    """Parameters that the command line or a file gave at start, by name; changing it before they
    are declared changes what is declared.
    """
    return getattr(node, '_parameter_overrides', {})


def lifecycle_state(node: Any) -> str:
    """The label of a lifecycle node's own state, such as ``active``."""
    try:
        return node._state_machine.current_state[1]
    except AttributeError:
        raise RuntimeError(
            f'this rclpy keeps its lifecycle elsewhere; known are versions {", ".join(KNOWN)}'
        ) from None


def dds_profile_variable(distro: str) -> str:
    """The environment variable that names the XML profile: Fast DDS 2, of Jazzy and before, reads
    one, Fast DDS 3 the other and warns about the first.
    """
    return (
        'FASTRTPS_DEFAULT_PROFILES_FILE'
        if distro in ('humble', 'jazzy')
        else 'FASTDDS_DEFAULT_PROFILES_FILE'
    )
