"""Messages that several nodes read or write, to and from this package's own types."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from specprune_ros.msg import ActionChunk
from specprune_ros.nodes.common.time import SECOND_NS, stamp_ns
from specprune_ros.robot.chunk import Chunk
from specprune_ros.sim.tasks.task_result import OPEN, SUCCESS, TaskResult

TASK_RESULT = 'sim_arm: verdict'


def task_result_message(verdict: TaskResult) -> DiagnosticStatus:
    """A task result for people and machines: outcome as message and level (a failure is a
    warning), the rest as values.
    """
    good = verdict.outcome in (SUCCESS, *OPEN)
    return DiagnosticStatus(
        name=TASK_RESULT,
        level=DiagnosticStatus.OK if good else DiagnosticStatus.WARN,
        message=verdict.outcome,
        values=[
            KeyValue(key='instruction', value=verdict.instruction),
            KeyValue(key='seconds', value=f'{verdict.seconds:.2f}'),
            KeyValue(key='detail', value=verdict.detail),
            KeyValue(key='number', value=str(verdict.number)),
        ],
    )


def task_result_of(message: DiagnosticStatus) -> TaskResult:
    """Inverse of :func:`task_result_message`."""
    values = {pair.key: pair.value for pair in message.values}
    return TaskResult(
        values.get('instruction', ''),
        message.message,
        float(values.get('seconds', 0.0)),
        values.get('detail', ''),
        int(values.get('number', 0)),
    )


def chunk_of(message: ActionChunk) -> Chunk:
    """The fields of a message that motion depends on."""
    step = message.step_dt
    return Chunk(
        stamp_ns=stamp_ns(message),
        frame=message.header.frame_id,
        sequence=message.sequence,
        episode=message.episode,
        step_dt=step.sec + step.nanosec / SECOND_NS,
        horizon=message.horizon,
        dims=tuple(message.dims),
        kind=message.kind,
        rotation=message.rotation,
        reference=message.reference,
        data=message.data,
        gripper_dim=message.gripper_dim,
        gripper_sense=message.gripper_sense,
        first_valid_step=message.first_valid_step,
        instruction=message.instruction,
    )
