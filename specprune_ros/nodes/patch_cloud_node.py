"""``patch_cloud``: what the policy kept of one camera's image, as a coloured point cloud.

Needs a depth image registered to the policy's camera, its CameraInfo, and the patch masks that
``specprune_node`` publishes. Points of dropped patches are left out, or grey if requested.
"""

from __future__ import annotations

import array
import math
from collections import deque
from functools import partial
from typing import Any

import numpy as np
from rclpy.lifecycle import Publisher
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from specprune_ros.nodes.common.bounded_subscription import subscribe
from specprune_ros.nodes.common.images import ImageError, check_size
from specprune_ros.nodes.common.lifecycle import AutoLifecycleNode, run
from specprune_ros.nodes.common.log import Throttle
from specprune_ros.nodes.common.parameters import NodeParameters, ParameterSpec
from specprune_ros.nodes.common.patch_mask import KEPT, colours, from_message
from specprune_ros.nodes.common.qos import every, newest
from specprune_ros.nodes.common.time import SECOND_NS, stamp_ns

DEPTHS = 16  # depth images kept, to find the one nearest to a mask
GREY = (70, 70, 70)
DTYPES = {'32FC1': np.float32, '16UC1': np.uint16}
MILLIMETRE = 1e-3

SETTINGS = (
    ParameterSpec(
        'seen_share',
        0.9**0.5,
        "Share of the image's width and height that the policy sees, around the centre; 1 for a "
        'checkpoint that crops nothing.',
        low=0.1,
        high=1.0,
    ),
    ParameterSpec(
        'stride', 2, 'Every how many pixels a point is made.', low=1, high=64, live=True
    ),
    ParameterSpec('dropped', False, 'Show dropped patches too, in grey.', live=True),
    ParameterSpec(
        'max_skew',
        0.1,
        "Most a depth image's stamp may lie from the mask's.",
        unit='s',
        low=0.0,
        high=10.0,
        live=True,
    ),
    ParameterSpec(
        'max_range',
        5.0,
        'Points further away are left out.',
        unit='m',
        low=0.1,
        high=100.0,
        live=True,
    ),
)

FIELDS = [
    PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
    for i, name in enumerate(('x', 'y', 'z', 'rgb'))
]


def depth_of(message: Image) -> np.ndarray:
    """Depth in metres, float32 ``[height, width]``, NaN where there is none. Raises
    :class:`ImageError`.
    """
    if message.encoding not in DTYPES:
        raise ImageError(
            f"the depth image's encoding is '{message.encoding}'; use one of {', '.join(DTYPES)}"
        )
    check_size(message.width, message.height)
    kind = np.dtype(DTYPES[message.encoding]).newbyteorder('>' if message.is_bigendian else '<')
    row = message.width * kind.itemsize
    if message.step < row or len(message.data) != message.step * message.height:
        raise ImageError(
            f'the depth image has {len(message.data)} bytes; step {message.step} x height '
            f'{message.height} is {message.step * message.height}, and a row needs {row}'
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    depth = rows[:, :row].copy().view(kind).astype(np.float32)
    if message.encoding == '16UC1':
        depth *= MILLIMETRE
    depth[~np.isfinite(depth) | (depth <= 0.0)] = np.nan
    return depth


def cloud_of(
    depth: np.ndarray,
    intrinsics: tuple[float, float, float, float],
    mask: np.ndarray,
    seen_share: float = 1.0,
    stride: int = 1,
    dropped: bool = False,
    max_range: float = math.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """Points, float32 ``[n, 3]`` in metres (z forward, x right, y down), and colours, uint8
    ``[n, 3]``.

    ``depth`` is ``[height, width]`` in metres, ``intrinsics`` fx, fy, cx, cy in pixels, ``mask``
    uint8 ``[rows, columns]`` over the ``seen_share`` of the image around its centre.
    """
    height, width = depth.shape
    v, u = np.mgrid[0:height:stride, 0:width:stride]
    z = depth[v, u]
    row = _patch(v, height, mask.shape[0], seen_share)
    column = _patch(u, width, mask.shape[1], seen_share)
    inside = (row >= 0) & (row < mask.shape[0]) & (column >= 0) & (column < mask.shape[1])
    here = np.zeros(z.shape, np.uint8)
    here[inside] = mask[row[inside], column[inside]]
    wanted = np.isfinite(z) & (z <= max_range)
    if not dropped:
        wanted &= here >= KEPT
    fx, fy, cx, cy = intrinsics
    z, u, v, here = z[wanted], u[wanted], v[wanted], here[wanted]
    points = np.stack([(u - cx) * z / fx, (v - cy) * z / fy, z], axis=1).astype(np.float32)
    colour = colours(here)
    colour[here < KEPT] = GREY
    return points, colour


def _patch(pixel: np.ndarray, size: int, patches: int, share: float) -> np.ndarray:
    """Which patch a pixel's middle lies in; outside 0 to ``patches`` - 1: in none."""
    at = ((pixel + 0.5) / size - 0.5) / share + 0.5
    return np.floor(at * patches).astype(np.int64)


def cloud_message(points: np.ndarray, colour: np.ndarray) -> PointCloud2:
    """A PointCloud2 of x, y, z, rgb; the header is left to the caller."""
    packed = np.empty((len(points), 4), np.float32)
    packed[:, :3] = points
    r, g, b = colour.astype(np.uint32).T
    packed[:, 3] = ((r << 16) | (g << 8) | b).astype(np.uint32).view(np.float32)
    message = PointCloud2(
        height=1,
        width=len(points),
        fields=FIELDS,
        point_step=16,
        row_step=16 * len(points),
        is_dense=True,
    )
    data = array.array('B')
    data.frombytes(packed.tobytes())
    message.data = data
    return message


class PatchCloud(AutoLifecycleNode):
    """See the module's text. Topics: ``~/kept``, ``~/depth``, ``~/camera_info``, ``~/points``."""

    def __init__(self) -> None:
        super().__init__('patch_cloud')
        self._settings = NodeParameters(self, SETTINGS)
        self._output: Publisher | None = None
        self._listening: list[Any] = []
        self._throttle = Throttle(self.get_logger())
        self._depths: deque[Image] = deque(maxlen=DEPTHS)
        self._info: CameraInfo | None = None

    def setup(self) -> None:
        """Make the output."""
        self._settings.check_now()
        self._output = self.create_publisher(PointCloud2, '~/points', newest(reliable=True))
        self._settings.frozen = True

    def start(self) -> None:
        """Subscribe."""
        self._listening = [
            subscribe(self, kind, f'~/{topic}', callback, quality, partial(self._refuse, topic))
            for kind, topic, callback, quality in (
                (Image, 'kept', self._on_kept, every()),
                (Image, 'depth', self._on_depth, newest()),
                (CameraInfo, 'camera_info', self._on_info, newest()),
            )
        ]
        self.get_logger().info('active')

    def stop(self) -> None:
        """Unsubscribe and forget."""
        for subscription in self._listening:
            self.destroy_subscription(subscription)
        self._listening = []
        self._depths.clear()
        self._info = None

    def teardown(self) -> None:
        """Give the output back."""
        if self._output is not None:
            self.destroy_publisher(self._output)
            self._output = None
        self._settings.frozen = False

    def _refuse(self, topic: str, reason: str) -> None:
        self._throttle.warning(topic, reason)

    def _on_depth(self, message: Image) -> None:
        self._depths.append(message)

    def _on_info(self, message: CameraInfo) -> None:
        self._info = message

    def _on_kept(self, message: Image) -> None:
        if self._output.get_subscription_count() == 0:
            return
        try:
            cloud = self._cloud(message)
        except ImageError as error:
            self._refuse('kept', str(error))
            return
        self._output.publish(cloud)

    def _cloud(self, message: Image) -> PointCloud2:
        values = self._settings.values()
        mask = from_message(message)
        if not self._depths or self._info is None:
            missing = 'depth image' if not self._depths else 'CameraInfo'
            raise ImageError(f'no {missing} yet; remap ~/depth and ~/camera_info')
        near = min(self._depths, key=lambda depth: abs(stamp_ns(depth) - stamp_ns(message)))
        skew = abs(stamp_ns(near) - stamp_ns(message)) / SECOND_NS
        if skew > values['max_skew']:
            raise ImageError(
                f'the nearest depth image lies {skew:.2f} s from the mask; at most '
                f'{values["max_skew"]:.2f} s (max_skew)'
            )
        info = self._info
        if (info.width, info.height) != (near.width, near.height):
            raise ImageError(
                f'CameraInfo is for {info.width} x {info.height}, the depth image is '
                f'{near.width} x {near.height}'
            )
        fx, fy, cx, cy = (float(info.k[i]) for i in (0, 4, 2, 5))
        if not (all(map(math.isfinite, (fx, fy, cx, cy))) and fx > 0.0 and fy > 0.0):
            raise ImageError(f'CameraInfo has focal lengths {fx}, {fy}; numbers above 0 needed')
        points, colour = cloud_of(
            depth_of(near),
            (fx, fy, cx, cy),
            mask,
            values['seen_share'],
            values['stride'],
            values['dropped'],
            values['max_range'],
        )
        cloud = cloud_message(points, colour)
        cloud.header = near.header
        return cloud


def main() -> int:
    """Entry point of ``ros2 run specprune_ros patch_cloud``."""
    return run(PatchCloud)


if __name__ == '__main__':
    raise SystemExit(main())
