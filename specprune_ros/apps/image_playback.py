"""``play``: the images of a recording as if the cameras were here, over and over, stamped anew.

For machines that cannot render: the demo's arm then has cameras all the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sensor_msgs.msg import CompressedImage, Image

from specprune_ros.apps.bag import BagReader
from specprune_ros.nodes.common.images import compressed_to_rgb, to_message
from specprune_ros.nodes.common.lifecycle import AutoLifecycleNode, run
from specprune_ros.nodes.common.parameters import declare_read_only
from specprune_ros.nodes.common.qos import newest
from specprune_ros.nodes.common.remapping import COMPRESSED


class Play(AutoLifecycleNode):
    """Publishes each recorded ``<topic>/compressed`` as raw images on ``<topic>``, in a loop, in
    the node's own namespace.
    """

    def __init__(self) -> None:
        super().__init__('play')
        declare_read_only(self, 'recording', '', 'Folder of a rosbag2 recording.')
        self._turn: Any = None
        self._images: list[dict[str, Image]] = []
        self._at = 0
        self._outputs: dict[str, Any] = {}

    def setup(self) -> None:
        """Read the whole recording: it is small, and nothing is decoded while playing."""
        with BagReader(Path(self.get_parameter('recording').value)) as bag:
            topics = {
                topic: CompressedImage for topic in bag.topics() if topic.endswith(COMPRESSED)
            }
            moments: dict[int, dict[str, Image]] = {}
            for recorded in bag.messages(topics):
                stamp = recorded.message.header.stamp
                key = stamp.sec * 10**9 + stamp.nanosec
                image = to_message(compressed_to_rgb(recorded.message))
                moments.setdefault(key, {})[recorded.topic.removesuffix(COMPRESSED)] = image
            whole = [key for key in sorted(moments) if len(moments[key]) == len(topics)]
            if len(whole) < 2:
                raise ValueError(f'{bag.path}: fewer than two moments with images of all cameras')
        self._images = [moments[key] for key in whole]
        self._period = (whole[-1] - whole[0]) / (len(whole) - 1) / 1e9
        for topic in topics:
            name = topic.removesuffix(COMPRESSED)
            self._outputs[name] = self.create_publisher(
                Image, name.lstrip('/'), newest(reliable=True)
            )

    def start(self) -> None:
        """Play at the recording's own rate."""
        self._turn = self.create_timer(self._period, self._show)

    def stop(self) -> None:
        """Fall silent."""
        if self._turn is not None:
            self.destroy_timer(self._turn)
            self._turn = None

    def _show(self) -> None:
        stamp = self.get_clock().now().to_msg()
        for topic, image in self._images[self._at % len(self._images)].items():
            image.header.stamp = stamp
            self._outputs[topic].publish(image)
        self._at += 1


def main() -> int:
    """Entry point."""
    return run(Play)


if __name__ == '__main__':
    raise SystemExit(main())
