"""From ROS messages, live or recorded, to what the page shows."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import viser
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import Point, PoseStamped, Quaternion
from PIL import Image as PillowImage
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String
from visualization_msgs.msg import Marker, MarkerArray

from specprune_ros.bounded_files import reason
from specprune_ros.msg import ActionChunk, PruneStats
from specprune_ros.nodes.common import patch_mask
from specprune_ros.nodes.common.images import ImageError, compressed_to_rgb, to_rgb
from specprune_ros.nodes.common.log import Throttle
from specprune_ros.nodes.common.messages import chunk_of, task_result_of
from specprune_ros.nodes.common.remapping import image_topic
from specprune_ros.nodes.common.time import SECOND_NS, nanoseconds, stamp_ns
from specprune_ros.nodes.patch_cloud_node import cloud_of, depth_of
from specprune_ros.nodes.viewer_node.page import BAD, GOOD, NEUTRAL, WARNING, Layers, Object, Page
from specprune_ros.nodes.viewer_node.robot_model import RobotModel, RobotModelError
from specprune_ros.nodes.viewer_node.timelines import Query
from specprune_ros.policy.overlay import Overlay, draw
from specprune_ros.robot.chunk import ChunkError, path_of
from specprune_ros.robot.geometry import Pose, rotate
from specprune_ros.robot.profile import Profile

LOG = logging.getLogger('specprune.view')
MODES = {
    PruneStats.MODE_DENSE: 'dense',
    PruneStats.MODE_COARSE: 'coarse',
    PruneStats.MODE_FINE: 'fine',
    PruneStats.MODE_SKIPPED: 'skipped',
}
LEVELS = {
    DiagnosticStatus.OK: GOOD,
    DiagnosticStatus.WARN: WARNING,
    DiagnosticStatus.ERROR: BAD,
    DiagnosticStatus.STALE: BAD,
}
IMAGES_KEPT = 64  # of each camera, to find the one a query saw
UNPAIRED = 3 * SECOND_NS  # ns since the last query after which plain images are shown
SILENT = 3.0  # s without the diagnostics that both nodes send every second
MAX_SKEW = 0.05 * SECOND_NS  # ns an image may lie from the mask drawn on it
PATCH = 14  # pixels, side of a patch as drawn on a 16 x 16 grid
SIDE = 16 * PATCH
STRIDE = 3  # pixels between two points of the cloud
MAX_RANGE = 3.0  # m
LIFT = 0.003  # m towards the camera, so that no point sinks into what it lies on
SHAPES = {Marker.CUBE: 'box', Marker.SPHERE: 'sphere', Marker.CYLINDER: 'cylinder'}


@dataclass(frozen=True)
class Source:
    """A topic the page listens to. ``role`` says what for; ``newest_only``: one message is as
    good as many, and it may be lost; ``latched``: the last one was sent before we came.
    """

    role: str
    topic: str
    kind: type
    newest_only: bool = False
    latched: bool = False


def arm_node(name: str, profile: Profile, namespace: str) -> str:
    """The simulated arm of that name, for ``auto`` the one of the profile; empty for none."""
    if name != 'auto':
        return name
    return f'{namespace}/sim_arm' if profile.robot == 'sim_arm' else ''


def sources(profile: Profile, policy: str, arm: str, transport: str = 'profile') -> list[Source]:
    """What there is to listen to. ``policy`` and ``arm`` are node names such as
    ``/specprune_node``; ``arm`` is empty where no simulated arm is there. ``transport``: the form
    of the images, one of :data:`.TRANSPORTS`.
    """
    seen = profile.observation
    found = [
        Source('robot', seen.robot_description, String, latched=True),
        Source('joints', seen.joint_states, JointState, newest_only=True),
        Source('pose', seen.ee_pose, PoseStamped, newest_only=True),
        Source('instruction', f'{policy}/instruction', String, latched=True),
        Source('chunk', f'{policy}/action_chunk', ActionChunk),
        Source('stats', f'{policy}/prune_stats', PruneStats),
        Source('diagnostics', '/diagnostics', DiagnosticArray),
    ]
    for name, camera in seen.cameras.items():
        form = camera.type if transport == 'profile' else transport
        kind = CompressedImage if form == 'compressed' else Image
        found += [
            Source(f'image {name}', image_topic(camera.topic, transport), kind, newest_only=True),
            Source(f'kept {name}', f'{policy}/kept/{name}', Image),
        ]
        if camera.depth and camera.camera_info:
            found += [
                Source(f'depth {name}', camera.depth, Image, newest_only=True),
                Source(f'info {name}', camera.camera_info, CameraInfo, newest_only=True),
                Source(f'camera {name}', camera.pose, PoseStamped, newest_only=True),
            ]
    if arm:
        found += [
            Source('objects', f'{arm}/objects', MarkerArray, newest_only=True),
            Source('task', f'{arm}/verdict', DiagnosticStatus, latched=True),
        ]
    return [source for source in found if source.topic]


class Feed:
    """Remembers the newest of everything and draws what changed.

    :meth:`take` only stores, and may be called for every message; :meth:`draw` does the work, as
    often as the page should move. A message that cannot be shown is left out, and ``log`` says so.
    """

    def __init__(
        self,
        page: Page,
        profile: Profile,
        policy: str,
        executor: str,
        packages: Sequence[Path] = (),
        log: Any = LOG,
    ) -> None:
        self._page, self._profile = page, profile
        self._throttle = Throttle(log)
        self._nodes = {'Policy': policy.lstrip('/'), 'Executor': executor.lstrip('/')}
        self._packages = packages
        self._cameras = tuple(profile.observation.cameras)
        self._robot: RobotModel | None = None
        self.seen_share = 1.0
        self.forget()

    def forget(self) -> None:
        """Nothing was received: before a jump in a recording."""
        self._new: set[str] = set()
        self._last: dict[str, Any] = {}
        self._images: dict[str, deque[Any]] = {
            camera: deque(maxlen=IMAGES_KEPT) for camera in self._cameras
        }
        self._status: dict[str, DiagnosticStatus] = {}
        self._heard: dict[str, float] = {}  # when each status came, monotonic s
        self._page.timelines.clear()
        self._shown: set[str] = set()  # cameras on the page

    def take(self, role: str, message: Any) -> None:
        """Store one message."""
        self._attempt(role, partial(self._take, role, message))

    def _take(self, role: str, message: Any) -> None:
        if role.startswith('image '):
            self._images[role.removeprefix('image ')].append(message)
            self._new.add('images')
            return
        if role == 'stats':
            self._page.timelines.add(query_of(message))
        elif role == 'diagnostics':
            self._take_diagnostics(message)
        elif role == 'task':
            message = task_result_of(message)
        self._last[role] = message
        self._new.add(role)

    def draw_motion(self) -> None:
        """The arm, the objects and the path."""
        self._attempt('robot', self._draw_robot)
        if 'joints' in self._new and self._robot is not None:
            self._attempt('joints', partial(self._draw_joints, self._robot))
        if 'objects' in self._new:
            self._attempt(
                'objects', lambda: self._page.show_objects(objects_of(self._last['objects']))
            )
        if 'chunk' in self._new:
            self._attempt('chunk', self._draw_path)
        self._new -= {'robot', 'joints', 'objects', 'chunk'}

    def draw_images(self) -> None:
        """The cameras with what was kept, and the points where depth is known."""
        masks = {f'kept {camera}' for camera in self._cameras}
        if self._new & {*masks, 'images'}:
            self._attempt('images', self._draw_cameras)
        if self._new & masks:
            self._attempt('depth', self._draw_points)
        self._new -= {*masks, 'images'}
        if 'stats' in self._new:
            self._attempt('layers', lambda: self._page.show_layers(layers_of(self._last['stats'])))

    def draw_text(self, now: float | None = None) -> None:
        """Time lines, banner, state. ``now``: of ``time.monotonic``, s, where the nodes are live,
        so that one which is not heard any more is no longer shown as it last was.
        """
        if 'stats' in self._new:
            self._attempt('time lines', self._page.timelines.draw)
        self._attempt('instruction', self._draw_instruction)
        silent = {} if now is None else self._silent(now)
        if silent or self._new & {'diagnostics', 'task', 'instruction', 'stats'}:
            self._attempt('state', partial(self._draw_state, silent))
        self._new -= {'stats', 'instruction', 'diagnostics', 'task'}

    def _attempt(self, what: str, act: Callable[[], None]) -> None:
        """Whatever a message holds, the page stays."""
        try:
            act()
        except (ImageError, RobotModelError, ChunkError) as error:
            self._throttle.warning(what, str(error))
        except Exception as error:  # what a drawing library raises has no common type
            self._throttle.warning(what, reason(error))

    def _draw_robot(self) -> None:
        if 'robot' not in self._new:
            return
        self._new.discard('robot')
        robot = RobotModel(self._last['robot'].data, self._packages, self._profile.joint_prefix)
        for name in robot.missing:
            self._throttle.warning(
                f'mesh {name} of robot_description', 'is not on this machine: left out'
            )
        self._robot = robot
        self._page.show_robot(robot)

    def _draw_joints(self, robot: RobotModel) -> None:
        joints = self._last['joints']
        if robot.move(dict(zip(joints.name, joints.position, strict=False))):
            self._page.move_robot(robot)

    def _draw_instruction(self) -> None:
        if 'instruction' in self._new:
            self._page.show_instruction(self._last['instruction'].data)
        elif 'chunk' in self._last and 'instruction' not in self._last:
            self._page.show_instruction(self._last['chunk'].instruction)

    def _draw_path(self) -> None:
        chunk, start = self._last['chunk'], self._tool()
        kinds = (ActionChunk.KIND_EE_DELTA, ActionChunk.KIND_EE_POSE)
        if start is None or chunk.kind not in kinds:
            return
        poses = path_of(chunk_of(chunk), start, self._profile.tool_frame)
        self._page.show_path(np.array([pose.position for pose in poses]))

    def _tool(self) -> Pose | None:
        if 'pose' in self._last:
            pose = self._last['pose'].pose
            return Pose(_xyz(pose.position), _xyzw(pose.orientation))
        return None

    def _draw_cameras(self) -> None:
        shown = {}
        for camera, images in self._images.items():
            if not images:
                continue
            newest, kept = stamp_ns(images[-1]), self._last.get(f'kept {camera}')
            query_stamp = None if kept is None else stamp_ns(kept)
            if query_stamp is None or newest - query_stamp > UNPAIRED:
                shown[camera] = rgb_of(images[-1])  # no query uses these images
                continue
            near = min(images, key=lambda image: abs(stamp_ns(image) - query_stamp))
            if abs(stamp_ns(near) - query_stamp) <= MAX_SKEW:
                mask = patch_mask.from_message(kept)
                shown[camera] = overlaid(rgb_of(near), mask, self.seen_share)
        if len(shown) == len(self._shown | shown.keys()):
            self._shown = set(shown)
            self._page.show_cameras(shown)

    def _draw_points(self) -> None:
        points, colours = [], []
        for camera in self._cameras:
            needed = [self._last.get(f'{role} {camera}') for role in ('depth', 'info', 'kept')]
            if self._robot is None or any(message is None for message in needed):
                continue
            depth, info, kept = needed
            position, rotation = self._camera_frame(camera, depth.header.frame_id)
            at, colour = cloud_of(
                depth_of(depth),
                tuple(float(info.k[i]) for i in (0, 4, 2, 5)),
                patch_mask.from_message(kept),
                self.seen_share,
                STRIDE,
                max_range=MAX_RANGE,
            )
            at *= 1 - LIFT / np.linalg.norm(at, axis=1, keepdims=True)
            points.append(at @ rotation.T + position)
            colours.append(colour)
        if points:
            self._page.show_points(np.concatenate(points), np.concatenate(colours))

    def _camera_frame(self, camera: str, link: str) -> tuple[np.ndarray, np.ndarray]:
        """Position ``[3]`` and rotation ``[3, 3]`` of a camera in the base frame."""
        measured = self._last.get(f'camera {camera}')
        if measured is not None:
            return np.array(_xyz(measured.pose.position)), rotation_of(measured.pose.orientation)
        frame = self._robot.frame(link)
        if frame is None:
            raise ImageError(f'{link} of the depth image is no link of robot_description')
        return frame

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            for heading, node in self._nodes.items():
                if status.name.split(':')[0].strip('/') == node:
                    self._status[heading] = status
                    self._heard[heading] = time.monotonic()
        policy = self._status.get('Policy')
        if policy is not None:
            share = _number({v.key: v.value for v in policy.values}.get('image share seen', ''))
            self.seen_share = share if 0.0 < share <= 1.0 else self.seen_share

    def _silent(self, now: float) -> dict[str, str]:
        """By heading, in words, which nodes were heard and are not any more."""
        return {
            heading: f'no word from {self._nodes[heading]} for {now - heard:.0f} s'
            for heading, heard in self._heard.items()
            if now - heard > SILENT
        }

    def _draw_state(self, silent: Mapping[str, str]) -> None:
        stats, result = self._last.get('stats'), self._last.get('task')
        sections = {
            heading: {
                'status': silent.get(heading, status.message),
                **{v.key: v.value for v in status.values},
            }
            for heading, status in self._status.items()
        }
        sections['Versions'] = versions(stats)
        self._page.show_state(sections)
        executor, chunk = self._status.get('Executor'), self._last.get('chunk')
        caption = f'“{chunk.instruction}”' if chunk is not None else ''
        if result is not None:
            caption = f'“{result.instruction}”: {result.outcome.replace("_", " ")}'
            if result.final:
                caption += f', {result.seconds:.1f} s'
        detail = f'{stats.pruner}, {stats.reason}' if stats is not None else ''
        if silent:
            alive = executor is not None and 'Executor' not in silent
            said = executor.message if alive else ''
            self._page.banner('; '.join(silent.values()), BAD, said, caption)
        elif executor is not None:
            self._page.banner(
                executor.message, LEVELS.get(executor.level, NEUTRAL), detail, caption
            )
        elif stats is not None:
            self._page.banner('querying', NEUTRAL, detail, caption)


def rgb_of(message: Image | CompressedImage) -> np.ndarray:
    """Pixels, uint8 ``[height, width, 3]``. Raises :class:`ImageError`."""
    return compressed_to_rgb(message) if isinstance(message, CompressedImage) else to_rgb(message)


def overlaid(image: np.ndarray, mask: np.ndarray, seen_share: float) -> np.ndarray:
    """The part of an image that the policy sees, with what it kept; uint8 ``[H, W, 3]``."""
    height, width = image.shape[:2]
    rows, columns = mask.shape
    top, left = (1 - seen_share) / 2 * height, (1 - seen_share) / 2 * width
    patch = max(SIDE // rows, 1)
    seen = PillowImage.fromarray(image).resize(
        (columns * patch, rows * patch),
        PillowImage.Resampling.BILINEAR,
        box=(left, top, width - left, height - top),
    )
    kept = mask >= patch_mask.KEPT
    sets = {name: (mask & bit) > 0 for name, bit in patch_mask.BITS.items()}
    sets['other'] = (mask & patch_mask.OTHER_BIT) > 0
    return draw(
        Overlay(
            np.asarray(seen)[None],
            (rows, columns),
            {name: members.ravel() for name, members in sets.items()},
            kept.ravel(),
        ),
        0,
    )


def objects_of(message: MarkerArray) -> list[Object]:
    """The boxes, spheres and cylinders of a MarkerArray that are finite."""
    found = [
        Object(
            f'{marker.ns}{marker.id}',
            SHAPES[marker.type],
            _xyz(marker.scale),
            (marker.color.r, marker.color.g, marker.color.b, marker.color.a),
            np.array(_xyz(marker.pose.position)),
            np.roll(_xyzw(marker.pose.orientation), 1),
        )
        for marker in message.markers
        if marker.type in SHAPES and marker.action == Marker.ADD
    ]
    return [
        one for one in found if np.isfinite([*one.size, *one.rgba, *one.position, *one.wxyz]).all()
    ]


def layers_of(stats: PruneStats) -> Layers:
    """The layer-by-layer account of one query."""
    steps = [('in', stats.tokens_in)]
    for layer, count in zip(stats.prune_layers, stats.tokens_after, strict=False):
        steps.append((f'layer {layer}' if len(stats.prune_layers) < 6 else f'{layer}', count))
    pruned = stats.mode in (PruneStats.MODE_COARSE, PruneStats.MODE_FINE)
    sets = {
        'global': stats.tokens_global,
        'dynamic': stats.tokens_dynamic,
        'local': stats.tokens_local,
    }
    headline = (
        f'query {stats.sequence}, {mode_of(stats)}: {stats.tokens_mean:.0f} tokens on average, '
        f'{stats.flops_ratio:.0%} of the operations'
    )
    return Layers(steps, sets if pruned else {}, headline)


def mode_of(stats: PruneStats) -> str:
    """The mode in a word; a number for one of another version."""
    return MODES.get(stats.mode, f'mode {stats.mode}')


def query_of(stats: PruneStats) -> Query:
    """One query, for the time lines."""
    return Query(
        nanoseconds(stats.header.stamp) / SECOND_NS,
        mode_of(stats),
        stats.tokens_in,
        stats.tokens_mean,
        stats.flops_ratio,
        stats.prior_recall,
        (stats.time_preprocess, stats.time_vision, stats.time_decoder, stats.time_head),
        stats.time_total,
        stats.speed_translation,
        stats.speed_rotation,
        stats.threshold_translation,
        stats.threshold_rotation,
    )


def versions(stats: PruneStats | None) -> Mapping[str, str]:
    """Versions of what is running."""
    try:
        ours = version('specprune_ros')
    except PackageNotFoundError:
        ours = 'from a checkout'
    found = {'specprune_ros': ours, 'viser': viser.__version__}
    if stats is not None:
        found |= {
            'parameters version': str(stats.params_version),
            'episode': str(stats.episode),
            'query': str(stats.sequence),
            'device': stats.device,
        }
    return found


def rotation_of(value: Quaternion) -> np.ndarray:
    """A rotation matrix ``[3, 3]``."""
    return np.stack([rotate(_xyzw(value), axis) for axis in np.eye(3).tolist()], axis=1)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _xyz(value: Point) -> tuple[float, float, float]:
    return (value.x, value.y, value.z)


def _xyzw(value: Quaternion) -> tuple[float, float, float, float]:
    return (value.x, value.y, value.z, value.w)
