"""Verdicts as messages, so that ``ros2 topic echo`` can be read by people and machines."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from specprune_ros.sim.tasks.task_result import OPEN, SUCCESS, TaskResult

NAME = 'sim_arm: verdict'


def to_message(verdict: TaskResult) -> DiagnosticStatus:
    """Outcome as message and level (a failure is a warning), the rest as values."""
    good = verdict.outcome in (SUCCESS, *OPEN)
    return DiagnosticStatus(
        name=NAME,
        level=DiagnosticStatus.OK if good else DiagnosticStatus.WARN,
        message=verdict.outcome,
        values=[
            KeyValue(key='instruction', value=verdict.instruction),
            KeyValue(key='seconds', value=f'{verdict.seconds:.2f}'),
            KeyValue(key='detail', value=verdict.detail),
            KeyValue(key='number', value=str(verdict.number)),
        ],
    )


def from_message(message: DiagnosticStatus) -> TaskResult:
    """Back again."""
    values = {pair.key: pair.value for pair in message.values}
    return TaskResult(
        values.get('instruction', ''),
        message.message,
        float(values.get('seconds', 0.0)),
        values.get('detail', ''),
        int(values.get('number', 0)),
    )
