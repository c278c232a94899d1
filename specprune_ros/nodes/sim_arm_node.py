"""``sim_arm``: the MuJoCo arm as a robot with cameras: images, joints, tool pose and twist out,
Cartesian commands in. It also knows what no robot knows: whether the arm did what was said.
"""

from __future__ import annotations

import array
import math
from functools import partial
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Pose, PoseStamped, TwistStamped, Vector3
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import ColorRGBA, Float64, String
from std_srvs.srv import Trigger
from visualization_msgs.msg import Marker, MarkerArray

from specprune_ros.msg import PruneStats
from specprune_ros.nodes.common.bounded_subscription import subscribe
from specprune_ros.nodes.common.images import to_message
from specprune_ros.nodes.common.lifecycle import AutoLifecycleNode, run
from specprune_ros.nodes.common.log import Throttle
from specprune_ros.nodes.common.messages import task_result_message
from specprune_ros.nodes.common.parameters import NodeParameters, ParameterSpec
from specprune_ros.nodes.common.qos import every, latched, newest
from specprune_ros.sim.arm.urdf import urdf
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.tasks.task_evaluator import TaskEvaluator
from specprune_ros.sim.tasks.task_result import UNKNOWN, TaskResult
from specprune_ros.sim.tasks.tasks import layout_for

FRAME = 'base_link'
MARKERS = {'box': Marker.CUBE, 'sphere': Marker.SPHERE, 'cylinder': Marker.CYLINDER}
LEAST_STEP = 0.6  # ticks of simulated time that make one
LATE_TICKS = 2.0  # ticks of simulated time that one late tick may catch up with
# Of the slowest query, at every query since: so slowly that dense and pruned attempts of the demo,
# a dozen queries each, run beside the same load.
FORGET = 0.98
LONGEST_QUERY = 5.0  # s; a longer one, such as a stall, slows time down no further
LONGEST_STEP = 0.1  # s; a machine that stalled longer than this loses simulated time, not the arm

SETTINGS = (
    ParameterSpec('seed', 0, 'Seed of the scene.', low=0, high=2**31 - 1),
    ParameterSpec(
        'scene_for',
        [],
        'Instructions whose cubes and plates the scene must hold; empty: whatever the seed gives.',
        kind='str[]',
    ),
    ParameterSpec(
        'instruction',
        '',
        'Instruction the policy begins with; it is judged from the first motion command on.',
    ),
    ParameterSpec('width', 224, 'Image width.', unit='pixels', low=16, high=1024),
    ParameterSpec('height', 224, 'Image height.', unit='pixels', low=16, high=1024),
    ParameterSpec(
        'image_rate', 30.0, 'Images a second on each camera.', unit='Hz', low=0.5, high=120.0
    ),
    ParameterSpec(
        'state_ticks', 3, 'Joint states, poses and twists for each image.', low=1, high=50
    ),
    ParameterSpec(
        'view_every',
        6,
        'Objects, depth images, camera poses and CameraInfo for every how many images, where '
        'somebody listens.',
        low=1,
        high=100,
    ),
    ParameterSpec(
        'publish_clock',
        False,
        'Publish simulated time on /clock and stamp with it. It never runs ahead of real time, '
        'and falls behind where this node or the policy (latency_limit) cannot keep up.',
    ),
    ParameterSpec(
        'latency_limit',
        0.0,
        'Published time slows down until the queries of ~/prune_stats take no longer than '
        'this in it; 0: however long they take.',
        unit='s',
        low=0.0,
        high=10.0,
    ),
    ParameterSpec(
        'command_timeout',
        0.2,
        'Without a motion command for this long the arm holds still.',
        unit='s',
        low=0.01,
        high=10.0,
        live=True,
    ),
    ParameterSpec('render', True, 'Publish images; needs EGL or OSMesa.'),
)


class SimArm(AutoLifecycleNode):
    """The simulated arm as a driver would present a real one."""

    def __init__(self) -> None:
        super().__init__('sim_arm')
        self._settings = NodeParameters(self, SETTINGS)
        self._world: World | None = None
        self._task_evaluator: TaskEvaluator | None = None
        self._first_words = ''
        self._timer: Any = None
        self._listening: list[Any] = []
        self._throttle = Throttle(self.get_logger())
        self._cameras: dict[str, Any] = {}
        self._ticks = 0
        self._stepped_ns = 0
        self._epoch = 0.0  # s of published time at which the scene began
        self._slowest = 0.0  # s that a query took lately
        self._owed = 0.0  # s of published time that no tick was made for yet
        self._commanded_ns: int | None = None
        self._joints = self.create_publisher(JointState, '~/joint_states', newest(reliable=True))
        self._pose = self.create_publisher(PoseStamped, '~/tcp_pose', newest(reliable=True))
        self._twist = self.create_publisher(TwistStamped, '~/tcp_twist', newest(reliable=True))
        self._description = self.create_publisher(String, '~/robot_description', latched())
        self._objects = self.create_publisher(MarkerArray, '~/objects', newest(reliable=True))
        self._depths: dict[str, tuple[Any, Any, Any]] = {}
        self._verdicts = self.create_publisher(DiagnosticStatus, '~/verdict', latched())
        self._sim_clock: Any = None
        self.create_service(Trigger, '~/reset', self._on_reset)

    def setup(self) -> None:
        """Build the world and draw it once, so that a missing renderer shows now."""
        self._settings.check_now()
        values = self._settings.values()
        self._world = World(seed=values['seed'], image_size=(values['height'], values['width']))
        self._task_evaluator = TaskEvaluator(self._world)
        self._start_scene()
        if values['render']:
            for camera in self._world.cameras:
                self._world.render(camera)
                self._cameras[camera] = self.create_publisher(
                    Image, f'~/{camera}/image_raw', newest(reliable=True)
                )
                self._depths[camera] = (
                    self.create_publisher(Image, f'~/{camera}/depth', newest(reliable=True)),
                    self.create_publisher(
                        CameraInfo, f'~/{camera}/camera_info', newest(reliable=True)
                    ),
                    self.create_publisher(PoseStamped, f'~/{camera}/pose', newest(reliable=True)),
                )
        if values['publish_clock']:
            self._sim_clock = self.create_publisher(Clock, '/clock', every())
        self._settings.frozen = True

    def start(self) -> None:
        """Publish the description, listen for commands, run."""
        values = self._settings.values()
        self._description.publish(String(data=urdf()))
        self._listening = [
            subscribe(self, kind, topic, callback, quality, partial(self._refuse, topic))
            for kind, topic, callback, quality in (
                (TwistStamped, '~/cmd_twist', self._on_twist, every()),
                (PoseStamped, '~/cmd_pose', self._on_pose, every()),
                (Float64, '~/gripper', self._on_gripper, every()),
                (String, '~/instruction', self._on_instruction, latched()),
                (PruneStats, '~/prune_stats', self._on_stats, every()),
            )
        ]
        self._first_words = values['instruction']
        self._ticks = 0
        self._commanded_ns = None
        self._stepped_ns = self._now_ns()
        self._state_ticks, self._view_every = values['state_ticks'], values['view_every']
        self._period = 1.0 / (values['image_rate'] * self._state_ticks)
        self._latency_limit, self._slowest = values['latency_limit'], 0.0
        self._timer = self.create_timer(self._period, self._tick)

    def stop(self) -> None:
        """Hold still and fall silent."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        for subscription in self._listening:
            self.destroy_subscription(subscription)
        self._listening = []
        if self._world is not None:
            self._world.hold()

    def teardown(self) -> None:
        """Free the renderer."""
        for publisher in (*self._cameras.values(), *sum(self._depths.values(), ())):
            self.destroy_publisher(publisher)
        self._cameras.clear()
        self._depths.clear()
        if self._sim_clock is not None:
            self.destroy_publisher(self._sim_clock)
            self._sim_clock = None
        if self._world is not None:
            self._epoch += self._world.time  # published time goes on
            self._world.close()
            self._world = self._task_evaluator = None
        self._settings.frozen = False

    def _start_scene(self) -> None:
        """The scene the parameters request. Raises ``ValueError`` where it cannot hold all that
        the instructions name.
        """
        values = self._settings.values()
        layout = None
        if values['scene_for']:
            layout = layout_for(values['scene_for'], values['seed'])
        self._epoch += self._world.time  # published time goes on
        self._world.reset(values['seed'], layout)
        self._commanded_ns = None
        self._publish_task_result(self._task_evaluator.clear())

    def _tick(self) -> None:
        world = self._world
        now = self._now_ns()
        if now < self._stepped_ns:
            self.get_logger().warning('the clock went back: holding')
            world.hold()
            self._commanded_ns = None
        step = self._step(max(now - self._stepped_ns, 0) / 1e9)
        self._stepped_ns = now
        if step == 0.0:
            return
        world.advance(step)
        verdict = self._task_evaluator.step()
        if verdict is not None:
            self._publish_task_result(verdict)
        timeout = self.get_parameter('command_timeout').value
        if self._commanded_ns is not None and (now - self._commanded_ns) / 1e9 > timeout:
            world.hold()
            self._commanded_ns = None
            self.get_logger().info(f'no command for {timeout} s: holding')
        stamp = self._stamp()
        if self._sim_clock:
            self._sim_clock.publish(Clock(clock=stamp))
        self._publish_state(stamp)
        if self._ticks % self._state_ticks == 0:
            self._publish_images(stamp)
        if self._ticks % (self._state_ticks * self._view_every) == 0:
            self._publish_view(stamp)
        self._ticks += 1

    def _step(self, elapsed: float) -> float:
        """Simulated seconds of this tick, ``elapsed`` real ones after the last; 0: none yet.

        Where nobody follows this arm's clock, it moves as long as the wall clock says, however
        late this call is. Else its time waits for whoever is late: this node, or the policy.
        """
        if not self._sim_clock:
            return min(elapsed, LONGEST_STEP)
        pace = 1.0
        if self._latency_limit:
            pace = min(1.0, self._latency_limit / max(self._slowest, 1e-9))
        self._owed += min(elapsed, LATE_TICKS * self._period) * pace
        # Slow time has fewer ticks: they are what costs.
        if self._owed < LEAST_STEP * self._period:
            return 0.0
        step, self._owed = self._owed, 0.0
        return step

    def _on_stats(self, message: PruneStats) -> None:
        if not math.isfinite(message.time_total) or message.time_total < 0.0:
            self._refuse('prune_stats', f'time_total {message.time_total:g} s is no duration')
            return
        # The slowest of late: a policy that is slow now and then is late now and then.
        self._slowest = max(min(message.time_total, LONGEST_QUERY), FORGET * self._slowest)

    def _publish_state(self, stamp: Any) -> None:
        self._joints.publish(joint_state(self._world, stamp))
        self._pose.publish(tool_pose(self._world, stamp))
        self._twist.publish(tool_twist(self._world, stamp))

    def _publish_images(self, stamp: Any) -> None:
        # All drawn first and then sent together: the cameras of one moment arrive as one.
        drawn = {camera: to_message(self._world.render(camera)) for camera in self._cameras}
        for camera, message in drawn.items():
            message.header.stamp = stamp
            message.header.frame_id = camera
            self._cameras[camera].publish(message)

    def _publish_view(self, stamp: Any) -> None:
        """What only viewers want, each part where somebody listens."""
        if self._objects.get_subscription_count():
            self._objects.publish(object_markers(self._world, stamp))
        for camera, (depth, info, pose) in self._depths.items():
            if depth.get_subscription_count():
                depth.publish(depth_image(self._world, camera, stamp))
            if info.get_subscription_count():
                info.publish(camera_info(self._world, camera, stamp))
            if pose.get_subscription_count():
                message = PoseStamped(pose=pose_of(*self._world.camera_pose(camera)))
                message.header.stamp, message.header.frame_id = stamp, FRAME
                pose.publish(message)

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        self._obey(
            'cmd_twist',
            lambda: self._world.command_twist(
                (linear.x, linear.y, linear.z), (angular.x, angular.y, angular.z)
            ),
        )

    def _on_pose(self, message: PoseStamped) -> None:
        point, turn = message.pose.position, message.pose.orientation
        self._obey(
            'cmd_pose',
            lambda: self._world.command_pose(
                (point.x, point.y, point.z), (turn.x, turn.y, turn.z, turn.w)
            ),
        )

    def _obey(self, topic: str, command: Any) -> None:
        try:
            command()
        except ValueError as error:
            self._world.hold()
            self._refuse(topic, f'{error}; holding')
            return
        self._commanded_ns = self._now_ns()
        if self._first_words:
            words, self._first_words = self._first_words, ''
            self._publish_task_result(self._task_evaluator.on_instruction(words))

    def _on_instruction(self, message: String) -> None:
        self._first_words = ''
        self._publish_task_result(self._task_evaluator.on_instruction(message.data))

    def _refuse(self, topic: str, reason: str) -> None:
        self._throttle.warning(topic, reason)

    def _publish_task_result(self, verdict: TaskResult) -> None:
        """Publish how the instruction in force stands, and log it once it is known."""
        self._verdicts.publish(task_result_message(verdict))
        if verdict.outcome == UNKNOWN:
            self._throttle.warning('not judged', verdict.detail)
        elif verdict.final:
            self._throttle.info(
                'task',
                f"'{verdict.instruction}': {verdict.outcome.replace('_', ' ')} after "
                f'{verdict.seconds:.1f} s' + (f' ({verdict.detail})' if verdict.detail else ''),
            )

    def _on_gripper(self, message: Float64) -> None:
        try:
            self._world.command_gripper(message.data)
        except ValueError as error:
            self._refuse('gripper', str(error))

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._world is None:
            response.success, response.message = False, 'not configured'
            return response
        self._start_scene()
        if self._timer is not None:
            # Whoever waits for the answer has seen the new scene when it comes.
            stamp = self._stamp()
            self._publish_state(stamp)
            self._publish_images(stamp)
        response.success, response.message = True, 'the scene starts anew'
        return response

    def _stamp(self) -> Any:
        simulated = self._sim_clock is not None
        now = round((self._epoch + self._world.time) * 1e9) if simulated else self._now_ns()
        return Time(nanoseconds=now).to_msg()

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds


def joint_state(world: World, stamp: Any) -> JointState:
    """Joint names, positions (rad, fingers m) and velocities."""
    message = JointState(name=list(world.joint_names))
    message.position = array.array('d', world.joint_positions)
    message.velocity = array.array('d', world.joint_velocities)
    message.header.stamp = stamp
    return message


def tool_pose(world: World, stamp: Any) -> PoseStamped:
    """Pose of the tool centre point in the base frame."""
    message = PoseStamped(pose=pose_of(*world.tcp_pose()))
    message.header.stamp, message.header.frame_id = stamp, FRAME
    return message


def tool_twist(world: World, stamp: Any) -> TwistStamped:
    """Velocity of the tool centre point along the base axes."""
    message = TwistStamped()
    message.header.stamp, message.header.frame_id = stamp, FRAME
    linear, angular = world.tcp_twist()
    motion = message.twist
    motion.linear.x, motion.linear.y, motion.linear.z = map(float, linear)
    motion.angular.x, motion.angular.y, motion.angular.z = map(float, angular)
    return message


def pose_of(position: np.ndarray, quaternion: np.ndarray) -> Pose:
    """A message from metres ``[3]`` and x y z w."""
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = map(float, position)
    turn = pose.orientation
    turn.x, turn.y, turn.z, turn.w = map(float, quaternion)
    return pose


def object_markers(world: World, stamp: Any) -> MarkerArray:
    """Table, cubes, plates and whatever else stands there, in the base frame."""
    markers = []
    for shape in world.objects():
        marker = Marker(
            ns=shape.body,
            id=shape.number,
            type=MARKERS[shape.kind],
            action=Marker.ADD,
            pose=pose_of(shape.position, shape.quaternion),
            scale=Vector3(**dict(zip('xyz', shape.size, strict=True))),
            color=ColorRGBA(**dict(zip('rgba', shape.rgba, strict=True))),
        )
        marker.header.stamp, marker.header.frame_id = stamp, FRAME
        markers.append(marker)
    return MarkerArray(markers=markers)


def depth_image(world: World, camera: str, stamp: Any) -> Image:
    """Depth registered to a camera's images, 32FC1 in metres."""
    depth = np.ascontiguousarray(world.render_depth(camera), '<f4')
    height, width = depth.shape
    message = Image(height=height, width=width, encoding='32FC1', step=4 * width)
    message.header.stamp, message.header.frame_id = stamp, camera
    message.data = array.array('B', depth.tobytes())
    return message


def camera_info(world: World, camera: str, stamp: Any) -> CameraInfo:
    """An ideal pinhole camera."""
    height, width = world.image_size
    fx, fy, cx, cy = world.intrinsics(camera)
    message = CameraInfo(height=height, width=width, distortion_model='plumb_bob', d=[0.0] * 5)
    message.k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
    message.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    message.p = [fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    message.header.stamp, message.header.frame_id = stamp, camera
    return message


def main() -> int:
    """Entry point of ``ros2 run specprune_ros sim_arm``."""
    return run(SimArm)


if __name__ == '__main__':
    raise SystemExit(main())
