"""Topics received in this process, in a context and thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor

from specprune_ros.nodes.common.qos import every


class TopicListener:
    """A node that only listens: what is measured with it is not delayed by what is sent."""

    def __init__(self, name: str) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node(name, context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)

    def subscribe(
        self, kind: type, topic: str, callback: Callable[..., Any], depth: int = 10
    ) -> None:
        """Call ``callback`` with every message of a topic."""
        self.node.create_subscription(kind, topic, callback, every(depth))

    def begin(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def close(self) -> None:
        """Leave the network."""
        self._executor.shutdown()
        if self._thread.is_alive():
            self._thread.join(5.0)
        self.node.destroy_node()
        self.context.try_shutdown()
