"""Starts a node by name: ``python -m specprune_ros.nodes.start specprune_node --ros-args ...``.

A node's imports take seconds. A signal meanwhile ends the process here, without a traceback.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType

from specprune_ros.nodes.common import parent_process  # noqa: F401  remembers who started this process

MODULES = {
    'specprune_node': 'nodes.policy_node.node',
    'chunk_executor': 'nodes.executor_node.node',
    'sim_arm': 'nodes.sim_arm_node',
    'patch_cloud': 'nodes.patch_cloud_node',
    'viewer_node': 'nodes.viewer_node.node',
    'play': 'apps.image_playback',
}


def start(name: str) -> int:
    """Run the node ``name`` of :data:`MODULES`. Returns the exit status."""

    def leave(number: int, frame: FrameType | None) -> None:
        # Nothing is there to be undone yet, and an exception may be caught, or turned into another
        # one, by whatever is just being imported.
        os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    return importlib.import_module(f'specprune_ros.{MODULES[name]}').main()


if __name__ == '__main__':
    raise SystemExit(start(sys.argv.pop(1)))
