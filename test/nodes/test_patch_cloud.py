"""Kept patches as a point cloud: the geometry, and the node over real DDS."""

from __future__ import annotations

import array
import time

import numpy as np
import pytest
from ros_processes import Process, new_domain

pytestmark = [pytest.mark.ros, pytest.mark.timeout(90)]


def test_masks_survive_a_message_and_colours_are_those_of_the_overlay():
    from specprune_ros.nodes.common import patch_mask
    from specprune_ros.policy.overlay import COLOURS, OTHER

    grid = np.zeros((2, 3), bool)
    keep, one, two, three = grid.copy(), grid.copy(), grid.copy(), grid.copy()
    keep[0] = keep[1, 1] = True
    one[0, :2] = True
    two[0, 1] = two[1, 0] = True  # requested, but dropped
    three[1, 1] = True
    mask = patch_mask.encode(keep, {'global': one, 'local': two, 'fastv': three})
    assert (patch_mask.from_message(patch_mask.to_message(mask)) == mask).all()
    seen = patch_mask.colours(mask)
    assert tuple(seen[0, 0]) == COLOURS['global']
    mean = np.mean([COLOURS['global'], COLOURS['local']], axis=0)
    assert seen[0, 1] == pytest.approx(mean, abs=0.51)
    assert tuple(seen[0, 2]) == COLOURS['fill']
    assert tuple(seen[1, 1]) == OTHER
    assert not seen[1, 0].any() and not seen[1, 2].any()


@pytest.mark.parametrize(
    ('fields', 'reason'),
    [
        ({'encoding': 'rgb8'}, 'mono8 is needed'),
        ({'width': 4_000_000_000}, '1 to 128'),
        ({'height': 3}, 'has 4 bytes'),
        ({'step': 1}, 'a row needs 2'),
    ],
)
def test_masks_that_cannot_be_read_say_why(fields, reason):
    from specprune_ros.nodes.common import patch_mask
    from specprune_ros.nodes.common.images import ImageError

    message = patch_mask.to_message(np.zeros((2, 2), np.uint8))
    for name, value in fields.items():
        setattr(message, name, value)
    with pytest.raises(ImageError, match=reason):
        patch_mask.from_message(message)


def test_points_lie_where_the_camera_sees_them():
    from specprune_ros.nodes.common.patch_mask import KEPT
    from specprune_ros.nodes.patch_cloud_node import cloud_of

    depth = np.full((40, 80), 2.0, np.float32)
    depth[0, 0] = np.nan
    mask = np.zeros((2, 4), np.uint8)
    mask[0, 0] = KEPT | 1
    points, colour = cloud_of(depth, (50.0, 60.0, 39.5, 19.5), mask)
    assert len(points) == 20 * 20 - 1 and len(np.unique(colour, axis=0)) == 1
    # Pixel (column 1, row 0) and (19, 19), by the pinhole model.
    assert points[0] == pytest.approx([(1 - 39.5) * 2 / 50, -19.5 * 2 / 60, 2.0])
    assert points[-1] == pytest.approx([(19 - 39.5) * 2 / 50, -0.5 * 2 / 60, 2.0])
    everything, _ = cloud_of(depth, (50.0, 60.0, 39.5, 19.5), mask, dropped=True)
    assert len(everything) == 40 * 80 - 1
    # A policy that sees the middle half of the image: the first patch begins a quarter in.
    cropped, _ = cloud_of(depth, (50.0, 60.0, 39.5, 19.5), mask, seen_share=0.5)
    assert len(cropped) == 10 * 10
    assert cropped[0] == pytest.approx([(20 - 39.5) * 2 / 50, (10 - 19.5) * 2 / 60, 2.0])
    assert len(cloud_of(depth, (50.0, 60.0, 39.5, 19.5), mask, max_range=1.0)[0]) == 0


def test_the_reader_of_sensor_msgs_py_finds_points_and_colours():
    """On a ROS host; its wheels do not have that package."""
    reader = pytest.importorskip('sensor_msgs_py.point_cloud2')
    from specprune_ros.nodes.patch_cloud_node import cloud_message

    rng = np.random.default_rng(0)
    points = rng.random((50, 3)).astype(np.float32)
    colour = rng.integers(0, 256, (50, 3), dtype=np.uint8)
    read = reader.read_points(cloud_message(points, colour))
    assert read.dtype.names == ('x', 'y', 'z', 'rgb')
    assert np.array_equal(np.stack([read[name] for name in 'xyz'], axis=1), points)
    packed = np.ascontiguousarray(read['rgb']).view(np.uint32)
    assert np.array_equal(np.stack([packed >> 16, packed >> 8, packed], axis=1) & 255, colour)


@pytest.mark.slow
@pytest.mark.real_time
def test_the_node_joins_mask_depth_and_camera_over_dds(tmp_path):
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import CameraInfo, Image, PointCloud2

    from specprune_ros.nodes.common import patch_mask
    from specprune_ros.nodes.common.qos import every

    domain = new_domain()
    process = Process('patch_cloud', [], domain, tmp_path / 'cloud.log')
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node('camera', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    clouds = []
    node.create_subscription(PointCloud2, '/patch_cloud/points', clouds.append, every())
    masks = node.create_publisher(Image, '/patch_cloud/kept', every())
    depths = node.create_publisher(Image, '/patch_cloud/depth', every())
    infos = node.create_publisher(CameraInfo, '/patch_cloud/camera_info', every())

    def show(millimetres, seconds, until, **change):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            stamp = node.get_clock().now().to_msg()
            info = CameraInfo(width=64, height=48)
            info.k = np.array([50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1.0])
            depth = Image(width=64, height=48, step=128, encoding='16UC1')
            depth.data = array.array('B', np.full((48, 64), millimetres, '<u2').tobytes())
            depth.header.stamp, depth.header.frame_id = stamp, 'depth_frame'
            for name, value in change.items():
                setattr(depth, name, value)
            mask = np.zeros((16, 16), np.uint8)
            mask[8, 8] = patch_mask.KEPT | patch_mask.BITS['dynamic']
            message = patch_mask.to_message(mask)
            message.header.stamp = stamp
            infos.publish(info)
            depths.publish(depth)
            executor.spin_once(timeout_sec=0.02)
            masks.publish(message)
            executor.spin_once(timeout_sec=0.02)
        return until()

    try:
        assert show(1500, 40.0, lambda: clouds), process.text()
        cloud = clouds[-1]
        assert cloud.header.frame_id == 'depth_frame'
        assert [f.name for f in cloud.fields] == ['x', 'y', 'z', 'rgb']
        values = np.frombuffer(bytes(cloud.data), np.float32).reshape(-1, 4)
        assert len(values) == cloud.width > 0
        assert values[:, 2] == pytest.approx(1.5)
        # Patch (8, 8) is just right of and below the centre.
        assert (values[:, :2] >= 0.0).all() and (values[:, :2] < 0.15).all()
        from specprune_ros.policy.overlay import COLOURS

        packed = int(values[0, 3:].view(np.uint32)[0])
        assert (packed >> 16, packed >> 8 & 255, packed & 255) == COLOURS['dynamic']
        show(1500, 20.0, lambda: 'encoding is' in process.text(), encoding='rgb8')
        assert "the depth image's encoding is 'rgb8'" in process.text()
        clouds.clear()
        assert show(700, 20.0, lambda: clouds), 'it did not survive a bad image'
        assert process.stop() == 0
        assert 'Traceback' not in process.text()
    finally:
        process.stop()
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()
