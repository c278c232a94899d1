"""``specprune_node``: images, state and an instruction in; action chunks and their account out.

Callbacks store, one thread infers, and another publishes what it finds the moment it is known.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from builtin_interfaces.msg import Time as TimeMessage
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from specprune_ros.models.config import CROP_AREA
from specprune_ros.models.conventions import for_robot
from specprune_ros.msg import ActionChunk, PruneStats
from specprune_ros.nodes.common import patch_mask
from specprune_ros.nodes.common.images import to_message
from specprune_ros.nodes.common.lifecycle import AutoLifecycleNode, find_trim, run
from specprune_ros.nodes.common.log import Throttle
from specprune_ros.nodes.common.parameters import NodeParameters
from specprune_ros.nodes.common.qos import every, newest
from specprune_ros.nodes.common.rates import Percentiles, RateMeter
from specprune_ros.nodes.common.realtime import release_heap
from specprune_ros.nodes.common.remapping import refuse_random_weights
from specprune_ros.nodes.common.time import SECOND_NS, time_message
from specprune_ros.nodes.policy_node import chunk_continuation
from specprune_ros.nodes.policy_node.chunk_continuation import ChunkContinuation
from specprune_ros.nodes.policy_node.inference import InferenceThread
from specprune_ros.nodes.policy_node.inputs import INSTRUCTIONS, Inputs, sample
from specprune_ros.nodes.policy_node.load import load
from specprune_ros.nodes.policy_node.messages import chunk_message, stats_message
from specprune_ros.nodes.policy_node.observation_buffer import Limits, ObservationBuffer
from specprune_ros.nodes.policy_node.parameters import (
    NODE_PARAMETERS,
    PREFIX,
    build_params,
    check_names,
    pruning_parameters,
    pruning_values,
)
from specprune_ros.nodes.policy_node.publisher import QueryEvent
from specprune_ros.nodes.policy_node.query_schedule import QuerySchedule
from specprune_ros.policy.overlay import draw
from specprune_ros.policy.result import Overlay, PolicyResult
from specprune_ros.pruning.params import PruningParams
from specprune_ros.robot.speed import ActionSpeed

if TYPE_CHECKING:
    from specprune_ros.policy.policy import Policy
    from specprune_ros.serving.client import RemotePolicy

DIAGNOSTICS_PERIOD = 1.0  # s
TRIM_PERIOD = 20.0  # s
SWITCH_INTERVAL = 5e-4  # s that a thread may keep Python while another wants it (usually 5e-3)
CLOCK_STANDS = 3.0  # s in which simulated time did not go on at all
HANGS = 10.0  # s that a query may take before its device is suspected to hang
PLAYED = 0.1  # s after a chunk is played in which a query still meets its motion
NUMBERS = re.compile(r'[\d.]+')


class SpecPruneNode(AutoLifecycleNode):
    """See the module's text and the tables in the README."""

    def __init__(self) -> None:
        super().__init__('specprune_node')
        self._params = PruningParams()
        self._observation_buffer: ObservationBuffer | None = None
        self._inputs: Inputs | None = None
        self._thread: InferenceThread | None = None
        self._policy: Policy | RemotePolicy | None = None
        self._wanted = True
        self._working = False
        self._sequence = 0
        self._speed_source = 'none'
        self._base_frame = ''
        self._refusal = self._logged_refusal = ''
        self._loss = ''
        self._trouble = ''
        self._typical = 0.0  # s
        self._throttle = Throttle(self.get_logger())
        self._chunk_rate = RateMeter()
        self._latency = Percentiles()
        self._last: PolicyResult | None = None
        self._refreshes = [0, 0]  # done and given up
        self._instruction = ''  # of the last query
        self._instructed: deque[int] = deque(maxlen=INSTRUCTIONS)
        # The clock's time (ns) when it was last seen to move, and when that was.
        self._clock_moved = 0, time.monotonic()
        self._showing = False
        self._chosen: dict[str, Any] = {}
        self._settings = NodeParameters(
            self, (*NODE_PARAMETERS, *pruning_parameters()), self._check, self._apply
        )
        # What was chosen besides the preset's own values: kept when the node is configured anew.
        self._chosen = pruning_values(self._settings.given())
        self._chunks = self.create_publisher(ActionChunk, '~/action_chunk', every())
        self._stats = self.create_publisher(PruneStats, '~/prune_stats', every())
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', every())
        self._chunking: ChunkContinuation | None = None
        self._overlays: dict[str, Any] = {}
        self._masks: dict[str, Any] = {}
        self.create_service(Trigger, '~/reset', self._on_reset)
        self.create_service(SetBool, '~/enable', self._on_enable)
        # Transitions belong to the executor's thread; the inference thread only knocks.
        self._device_lost_guard = self.create_guard_condition(self._on_loss)
        self._refused_guard = self.create_guard_condition(self._report)
        # On real time: diagnostics matter most while /clock stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(TRIM_PERIOD, find_trim(), clock=steady)
        self.create_timer(DIAGNOSTICS_PERIOD, self._report, clock=steady)

    # Lifecycle.

    def setup(self) -> None:
        """Check every parameter, build the model, subscribe to nothing yet."""
        self._settings.check_now()
        values = self._settings.values()
        refuse_random_weights(values)
        self._params = build_params(self._chosen)
        self._speed_source, self._base_frame = values['speed.source'], values['base_frame']
        self._observation_buffer = ObservationBuffer(
            values['cameras'], values['proprio.layout'] != 'none', _limits(values)
        )
        if values['instruction']:
            self._observation_buffer.put_instruction(values['instruction'])
        self._thread = InferenceThread(
            lambda: self._build(values),
            self._observation_buffer,
            self.get_clock(),
            self._publish,
            self._lose,
            _schedule(values),
            self._follow_actions if values['speed.source'] == 'action' else None,
        )
        self._loss = ''
        if values['model.server']:
            self.get_logger().info(f'connecting to {values["model.server"]}')
        else:
            chosen = values['model.path'] or values['model.preset'] + ' (random weights)'
            self.get_logger().info(f'loading {chosen}')
        self._policy = self._thread.load(values['model.load_timeout'], self.end_requested)
        for camera in values['cameras']:
            self._overlays[camera] = self.create_publisher(
                Image, f'~/overlay/{camera}', newest(reliable=True)
            )
            self._masks[camera] = self.create_publisher(Image, f'~/kept/{camera}', every())
        self._settings.frozen = True
        self._show(self._params)

    def start(self) -> None:
        """Subscribe and let the inference thread work."""
        assert self._observation_buffer and self._policy and self._thread
        self._observation_buffer.clear()
        self._policy.reset('start')
        self._sequence = 0
        if chunk_continuation.possible(self._policy):
            self._chunking = ChunkContinuation(
                self, self._policy, lambda: chunk_continuation.rules_of(self._settings.values())
            )
            self._thread.chunking = self._chunking
        values, device = self._settings.values(), self._policy.device
        wish = values['model.prepare_on_arrival']
        if device is not None and (wish == 'on' or (wish == 'auto' and device.type == 'cuda')):
            self._policy.history.prefetch(device)
        self._inputs = Inputs(
            self,
            values,
            self._observation_buffer,
            self._policy.history,
            self._throttle.warning,
            self._throttle.info,
            self._rotation_center(values['proprio.layout']),
            self._instructed,
        )
        self._working = True
        self._resume()
        self.get_logger().info(
            f'active: {len(self._observation_buffer.cameras)} camera(s), '
            f'{self._policy.config.vision_tokens} vision tokens, {self._params.pruner}'
        )

    def _rotation_center(self, layout: str) -> tuple[float, ...]:
        """The middle of the rotation vectors the checkpoint was trained on, rad."""
        center = self._policy.proprio_center
        if layout != 'pose_gripper' or center is None or len(center) < 6:
            return (0.0, 0.0, 0.0)
        return tuple(float(v) for v in center[3:6])

    def stop(self) -> None:
        """Unsubscribe, wait for the query under way, forget history and prior."""
        self._working = False
        if self._thread is not None:
            self._thread.deactivate()
            self._thread.chunking = None
        if self._chunking is not None:
            self._chunking.close()
            self._chunking = None
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._policy is not None:
            self._policy.history.stop_prefetch()
            self._policy.reset('start')

    def teardown(self) -> None:
        """End the thread and let go of the model."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None
        for publisher in (*self._overlays.values(), *self._masks.values()):
            self.destroy_publisher(publisher)
        self._overlays.clear()
        self._masks.clear()
        self._policy = None
        self._observation_buffer = None
        self._last = None
        self._refusal = ''
        release_heap()
        self._settings.frozen = False

    def _build(self, values: Mapping[str, Any]) -> Policy | RemotePolicy:
        """In the inference thread."""
        policy, self._typical = load(values, self._params, self.get_logger())
        return policy

    # What queries came to, in the publisher's thread.

    def _publish(self, event: QueryEvent) -> None:
        """The chunk of a query first, then its account and images; or why there is none."""
        result, observation = event.result, event.observation
        if result is None:
            self._refuse(event.refusal)
            return
        self._sequence += 1
        header = Header(stamp=time_message(observation.stamp_ns), frame_id=self._base_frame)
        whole = self._chunking is not None and self._chunking.enabled
        message = chunk_message(event, self._policy.config, header, self._sequence, whole)
        self._chunks.publish(message)
        frame = self._inputs.speed_frame if self._inputs else ''
        self._stats.publish(stats_message(result, header, self._sequence, frame))
        self._latency.append((event.end_ns - observation.stamp_ns) / SECOND_NS)
        self._refreshes[0] += result.refreshes.done
        self._refreshes[1] += result.refreshes.given_up
        # Its images are drawn here and not held until the next.
        self._last, self._instruction = replace(result, overlay=None), observation.instruction
        self._chunk_rate.append(time.monotonic())
        if self._refusal:
            self.get_logger().info('chunks again')
            self._refusal = ''
        if result.reset:
            self._throttle.info('policy', f'episode {result.episode}: {result.reset}')
        if result.notes:
            self._throttle.warning('policy', '; '.join(result.notes))
        self._publish_overlays(header, result)
        self._policy.wants_overlay = self._overlay_wanted()

    def _overlay_wanted(self) -> bool:
        publishers = (*self._overlays.values(), *self._masks.values())
        return any(publisher.get_subscription_count() for publisher in publishers)

    def _follow_actions(self, result: PolicyResult, now_ns: int, plays: float) -> None:
        """The paper's speed source: the last chunk's own motion, which ``plays`` so many seconds,
        judges the next query. In the inference thread.
        """
        inputs, config = self._inputs, self._policy.config
        if inputs is None or config.action.kind != 'ee_delta':
            return
        deltas = for_robot(config, result.actions)
        speed = ActionSpeed(self._base_frame, self._policy.step_dt).update(deltas, now_ns)
        inputs.speed_frame = speed.frame
        self._observation_buffer.put_speed(sample(speed), now_ns, plays + PLAYED)

    def _publish_overlays(self, header: Header, result: PolicyResult) -> None:
        """What was kept, drawn and as masks, for subscribers; a waiting chunk comes first."""
        overlay, thread = result.overlay, self._thread
        if overlay is None:
            return
        for index, camera in enumerate(self._overlays):
            for publisher, make in (
                (self._masks[camera], patch_mask.of_overlay),
                (self._overlays[camera], drawn),
            ):
                if thread is None or thread.behind:
                    return
                if publisher.get_subscription_count():
                    message = make(overlay, index)
                    message.header.stamp = header.stamp
                    message.header.frame_id = camera
                    publisher.publish(message)

    def _refuse(self, reason: str) -> None:
        """No chunk was made, and why: once in the log, always in the diagnostics."""
        last, self._refusal = self._refusal, reason
        kind = NUMBERS.sub('#', reason)
        if kind != NUMBERS.sub('#', last):
            self._refused_guard.trigger()  # the diagnostics say so at once
            self._logged_refusal = ''
        if kind != self._logged_refusal and self._throttle.warning('no chunk', reason):
            self._logged_refusal = kind

    def _lose(self, reason: str) -> None:
        """The device is gone: no more chunks, and the executor's thread learns why."""
        self._refusal = reason
        self._loss = reason
        self._device_lost_guard.trigger()

    def _on_loss(self) -> None:
        reason, self._loss = self._loss, ''
        if not reason:
            return  # configured anew meanwhile
        self.fail(
            f'{reason}; no chunks are made: configure and activate again, and restart the node '
            'where that is refused'
        )
        self._report()

    # Parameters.

    def _check(
        self, values: Mapping[str, Any], request: Mapping[str, Any]
    ) -> PruningParams | None:
        """The pruning parameters after a request that changes some. Raises ``ValueError``."""
        check_names(values)
        if self._policy is not None:
            chunk_continuation.check(values, self._policy)
        if self._showing or not pruning_values(request):
            return None
        params = build_params(self._after(request))
        if self._policy is not None:
            self._policy.check_params(params)
        return params

    def _apply(self, values: Mapping[str, Any], request: Mapping[str, Any]) -> None:
        if self._settings.checked is not None:
            chosen, self._chosen = self._chosen, self._after(request)
            lost = sorted(chosen.keys() - self._chosen.keys() - {'preset'})
            if lost:
                self.get_logger().warning(
                    f'pruning.preset lets go of what was set before: {", ".join(lost)} (a file '
                    'for `ros2 param load` sets its values one by one: leave pruning.preset out)'
                )
            self._use(self._settings.checked, pruning_values(request))
        if self._policy is not None:
            self._policy.max_normalised_action = values['max_normalised_action']
            self._policy.measure_deviation = values['measure.action_deviation']
        if self._observation_buffer is not None:
            self._observation_buffer.limits = _limits(values)
        if self._thread is not None:
            self._thread.schedule = _schedule(values)

    def _after(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Pruning values chosen so far, with the request's: a preset lets go of all others."""
        changes = pruning_values(request)
        return changes if 'preset' in changes else {**self._chosen, **changes}

    def _use(self, params: PruningParams, changes: Mapping[str, Any]) -> None:
        self._params = params
        if self._policy is not None:
            version = self._policy.set_params(params, checked=True)
            self.get_logger().info(
                f'parameters version {version}: '
                + ', '.join(f'{name} = {value}' for name, value in changes.items())
            )
        if 'preset' in changes:
            self._show(params)

    def _show(self, params: PruningParams) -> None:
        """Make the ROS parameters say what is in force (a preset sets many at once)."""
        self._showing = True
        try:
            self._settings.write(
                {PREFIX + name: value for name, value in params.as_dict().items()}
            )
        finally:
            self._showing = False

    # Services and diagnostics.

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._policy is None:
            response.success, response.message = False, 'not configured'
        else:
            self._policy.reset('requested')
            if self._chunking is not None:
                self._chunking.follower.reset()
            response.success, response.message = True, 'the next query starts a new episode'
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        changed, self._wanted = request.data != self._wanted, request.data
        response.success = True
        response.message = 'enabled' if request.data else 'disabled: no chunks'
        if changed:
            self.get_logger().info(response.message)
            self._resume()
        return response

    def _resume(self) -> None:
        if self._thread is None or not self._working:
            return
        if self._wanted:
            self._policy.reset('start' if self._sequence == 0 else 'enabled')
            if self._chunking is not None:
                self._chunking.follower.reset()
            self._thread.activate()
        else:
            self._thread.deactivate()

    def _report(self) -> None:
        now_ns, now = self._now_ns(), time.monotonic()
        if now_ns != self._clock_moved[0]:
            self._clock_moved = now_ns, now
        status = DiagnosticStatus(
            name=f'{self.get_fully_qualified_name().lstrip("/")}: inference',
            hardware_id=self._last.device if self._last else '',
        )
        status.level, status.message = self._health()
        values: dict[str, object] = {'last error': self.last_error or self._refusal or 'none'}
        if self._observation_buffer is not None and self._inputs is not None:
            for camera, age in self._observation_buffer.image_ages(now_ns).items():
                values[f'image age {camera} (s)'] = f'{age:.3f}'
                values[f'image rate {camera} (Hz)'] = f'{self._inputs.rates[camera].rate(now):.1f}'
            values['state age (s)'] = f'{self._observation_buffer.state_age(now_ns):.3f}'
            values['late images dropped'] = self._observation_buffer.late
            values['instruction'] = self._observation_buffer.instruction or 'none'
        p50, p95 = self._latency.at(50, 95)
        values['chunk rate (Hz)'] = f'{self._chunk_rate.rate(now):.1f}'
        values['latency p50 (ms)'] = f'{1e3 * p50:.1f}'
        values['latency p95 (ms)'] = f'{1e3 * p95:.1f}'
        if self._policy is not None:
            self._policy.wants_overlay = self._overlay_wanted()
            version, pending = self._policy.params_version, self._policy.pending_version
            values['parameters version'] = (
                f'{version} ({pending} is being prepared)' if pending else version
            )
            values['engine'] = self._engine()
            crop = CROP_AREA**0.5 if self._policy.config.center_crop else 1.0
            values['image share seen'] = f'{crop:.4f}'  # of width and height, for viewers
            values['images prepared'] = self._prepared_where()
            if self._policy.device is not None:
                from specprune_ros.models.accel import fused

                values['kernels'] = fused.status()
        if self._last is not None:
            values['mode'] = f'{self._last.mode.value} ({self._last.reason})'
            values['tokens kept (mean)'] = (
                f'{self._last.tokens.mean:.0f} of {self._last.tokens.total}'
            )
            if self._params.refresh_when == 'slack':
                done, given_up = self._refreshes
                values['refreshes in the slack'] = f'{done}, given up {given_up}'
            if self._chunking is not None and self._chunking.enabled:
                follower = self._chunking.follower
                values['real-time chunking'] = (
                    follower.reason or f'goes on, delay {follower.delay} rows'
                )
            free = self._free_tokens(self._last)
            if free:
                values['kept more, free on this device'] = free
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._stamp_now()
        self._diagnostics.publish(message)

    def _free_tokens(self, last: PolicyResult) -> str:
        """Tokens beyond the plan after each prune of the last query; empty where none can be."""
        if self._policy is None or self._policy.device is None:
            return ''
        from specprune_ros.pruning.specprune import free_tokens

        layout = self._policy.layout(self._instruction)
        more = free_tokens(layout, self._policy.params, last.mode) or {}
        return ', '.join(f'{count} after layer {layer}' for layer, count in more.items())

    def _health(self) -> tuple[bytes, str]:
        if self.last_error:
            return DiagnosticStatus.ERROR, self.last_error
        if not self._working:
            return DiagnosticStatus.WARN, 'not active'
        if not self._wanted:
            return DiagnosticStatus.WARN, 'disabled'
        if self._thread is not None and not self._thread.is_alive():
            return DiagnosticStatus.ERROR, 'the inference thread ended; configure again'
        if self._refusal:
            return DiagnosticStatus.ERROR, f'no chunk: {self._refusal}'
        busy = self._thread.busy_for if self._thread is not None else 0.0
        if busy > max(HANGS, 10 * self._typical):
            return DiagnosticStatus.ERROR, f'no chunk: a query has been under way for {busy:.0f} s'
        if self._last is None:
            return DiagnosticStatus.WARN, 'waiting for input'
        if time.monotonic() - self._clock_moved[1] > CLOCK_STANDS:
            return DiagnosticStatus.WARN, 'the clock stands still: nobody publishes /clock'
        trouble = self._policy.engine_trouble if self._policy is not None else ''
        if trouble:
            return DiagnosticStatus.WARN, f'slower than meant: {trouble}'
        frozen = self._inputs.frozen() if self._inputs is not None else ''
        if frozen:
            return DiagnosticStatus.WARN, frozen
        return DiagnosticStatus.OK, f'{self._last.mode.value}, {self._last.pruner}'

    def _engine(self) -> str:
        status, trouble = self._policy.engine_status, self._policy.engine_trouble
        if trouble and trouble != self._trouble:
            self.get_logger().warning(f'engine: {trouble}')
        self._trouble = trouble
        return f'{status}; {trouble}' if trouble else status

    def _prepared_where(self) -> str:
        if self._policy.device is None:
            return 'on the server'
        trouble = self._policy.history.prefetch_trouble
        if trouble is None:
            return 'in the query'
        return f'on arrival; the last could not be: {trouble}' if trouble else 'on arrival'

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _stamp_now(self) -> TimeMessage:
        return Time(nanoseconds=self._now_ns()).to_msg()


def drawn(overlay: Overlay, camera: int) -> Image:
    """The overlay of one camera as a message."""
    return to_message(draw(overlay, camera))


def _schedule(values: Mapping[str, Any]) -> QuerySchedule:
    rate = values['query_rate']
    return QuerySchedule(
        period=1.0 / rate if rate > 0 else 0.0,
        newer_for=values['fresh_wait'],
        by_chunk=values['query_when'] == 'chunk',
    )


def _limits(values: Mapping[str, Any]) -> Limits:
    return Limits(
        image_age=values['max_age.image'],
        state_age=values['max_age.state'],
        sync=values['max_skew'],
    )


def main() -> int:
    """Entry point of ``ros2 run specprune_ros specprune_node``."""
    # What waits for a device or a socket comes back to a Python that another thread holds.
    sys.setswitchinterval(SWITCH_INTERVAL)
    status = run(SpecPruneNode)
    if any(isinstance(thread, InferenceThread) for thread in threading.enumerate()):
        # A model that is still loading cannot be interrupted, and Python's own end would take the
        # interpreter from under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == '__main__':
    raise SystemExit(main())
