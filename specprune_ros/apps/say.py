"""Publishes one instruction to a running policy, for machines without the ros2 command."""

from __future__ import annotations

import time

import rclpy
from std_msgs.msg import String

from specprune_ros.nodes.common.qos import latched

PATIENCE = 5.0  # s to find a listener
DELIVERY = 3.0  # s that it stays latched for listeners that are found later than the first


def say(text: str, topic: str) -> bool:
    """Publish; returns whether anybody listens on ``topic``."""
    rclpy.init()
    try:
        node = rclpy.create_node('say')
        publisher = node.create_publisher(String, topic, latched())
        end = time.monotonic() + PATIENCE
        while not publisher.get_subscription_count() and time.monotonic() < end:
            time.sleep(0.05)
        subscribed = publisher.get_subscription_count() > 0
        publisher.publish(String(data=text))
        time.sleep(DELIVERY)
        node.destroy_node()
        return subscribed
    finally:
        rclpy.try_shutdown()
