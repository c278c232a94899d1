"""What the numbers of an action mean, where each part of that was read, and what nobody said.

A checkpoint's files hold next to none of it. It comes from ``specprune.json`` or a parameter, from
the table of conventions (:mod:`specprune_ros.models.conventions`), or from nowhere: then it must
be stated before the checkpoint loads, because a wrong guess moves an arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specprune_ros.models.checkpoint.report import Fact, Report
from specprune_ros.models.config import ActionConfig, PolicyConfig
from specprune_ros.models.statistics import Statistics

FILE = 'specprune.json'
NOBODY = 'assumed: no file says it'
# What must be stated where the robot of the statistics is not known.
STATED = (
    'control_hz',
    'action.scale',
    'action.rotation',
    'action.reference',
    'action.gripper_sense',
    'action.gripper_range',
)
# Where nothing is assumed, all that a robot needs; of pi0 also ``flow.relative``.
STATED_RAW = ('action.kind', 'action.dims', 'action.gripper_dim', *STATED)
# What ``specprune describe`` writes besides ``platform``, ``action`` and what was given.
FIELDS = (
    'cameras', 'control_hz', 'execute', 'resize', 'pre_resize', 'pre_filter', 'center_crop',
    'jpeg', 'reencode',
)  # fmt: skip
_ADDED = {
    'previous_step': 'where the row before it ended',
    'observation': 'where the arm was at the observation',
    'none': 'nothing: rows are absolute',
}


def without_nulls(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A file's content without what it leaves to be stated (``null``)."""
    return {
        key: without_nulls(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if value is not None
    }


def paths(tree: Mapping[str, Any], at: str = '') -> list[str]:
    """Dotted names of all that a tree states."""
    out = []
    for key, value in tree.items():
        name = f'{at}{key}'
        out += paths(value, f'{name}.') if isinstance(value, Mapping) else [name]
    return out


def require_stated(report: Report) -> None:
    """Make a problem of what was guessed (``report.guess``) and not stated since. Raw numbers are
    none as long as nobody says what a part of them means: no executor takes them.
    """
    if not report.guess:
        return
    names = STATED_RAW if report.raw else STATED
    if report.raw and report.config.flow is not None:
        names = (*names, 'flow.relative')
    report.unstated = [name for name in names if name not in report.stated]
    chosen = {report.requested_key, f'{report.requested_key}_no_noops'}
    known = bool(chosen & set(report.statistics_keys))
    if report.raw:
        known = any(name.startswith('action.') for name in report.stated)
    if not report.unstated or not known:
        return  # which robot's statistics are meant is open: a problem by itself
    keys = ', '.join(repr(key) for key in report.statistics_keys)
    confirm = (
        f'confirm with platform (model.platform:={report.guess}) that the policy was trained on '
        f'data that are scaled like those of {report.guess} ({_short(report.config)}), or '
        if report.row is not None
        else 'give platform, or '
        if report.raw
        else ''
    )
    report.problem(
        f'{report.path}: the statistics of {keys} are of no robot that is known here, and no file '
        f'says what the numbers of an action mean: {confirm}state {", ".join(report.unstated)} in '
        f'{report.path / FILE} (`specprune describe` writes one to fill in)'
    )


def _short(config: PolicyConfig) -> str:
    per = _per_unit(config.action)
    parts = [f'{value} {unit} per unit' for unit, value in per.items()]
    return ', '.join(
        [*parts, f'rotation as {config.action.rotation}', f'{config.control_hz:g} Hz']
    )


def _per_unit(action: ActionConfig) -> dict[str, str]:
    """Metres and radians that one unit of the columns of motion stands for."""
    columns = [i for i in range(len(action.dims)) if i != action.gripper_dim]
    if action.kind.startswith('joint'):
        groups = {'rad': columns}
    else:
        groups = {'m': columns[:3], 'rad': columns[3:]}
    out = {}
    for unit, chosen in groups.items():
        values = list(dict.fromkeys(f'{action.scale[i]:.6g}' for i in chosen))
        if values:
            out[unit] = values[0] if len(values) == 1 else ', '.join(values)
    return out


def meaning(report: Report, scales: Statistics | None) -> list[Fact]:
    """One row per part of the meaning; ``scales`` are the statistics in force."""
    config = report.config
    action = config.action
    if report.raw and 'action.kind' not in report.stated:
        return [Fact('a row is', 'raw numbers: no executor takes them', 'no file says more')]

    def source(*names: str) -> str:
        for name in names:
            if name in report.stated:
                return report.stated[name]
        if report.row is not None:
            guessed = f'GUESSED by dimensions: {report.row.name}' if report.guess else ''
            return guessed or f'{report.row.name} ({report.row.source})'
        return report.reported or NOBODY

    joints = action.kind.startswith('joint')
    names = {'m': 'metres per unit', 'rad': 'radians per unit'}
    rows = [Fact('a row is', action.kind.replace('_', ' '), source('action.kind'))]
    rows += [
        Fact(names[unit], value, source('action.scale'))
        for unit, value in _per_unit(action).items()
    ]
    if not joints:
        rows.append(Fact('rotation', action.rotation, source('action.rotation')))
        rows.append(
            Fact(
                'frame',
                "axes of the robot's base (base_frame of the robot profile)",
                'this package: deltas along other axes are not taken',
            )
        )
    added = _ADDED[action.reference]
    if action.accumulates == 'measurement':
        added += " (the authors' client: the measured state)"
    rows.append(Fact('added to', added, source('action.reference')))
    if action.gripper_dim >= 0:
        low, high = action.gripper_range
        sense = 'open' if action.gripper_sense == 'one_is_open' else 'closed'
        text = f'{low:g} to {high:g}, above {action.gripper_threshold:g} is {sense}'
        rows.append(Fact('gripper', text, source('action.gripper_sense', 'action.gripper_range')))
    else:
        rows.append(Fact('gripper', 'among the columns', source('action.gripper_dim')))
    run = f'{config.control_hz:g} Hz, {config.rows_run} of {config.chunk} rows run'
    rows.append(Fact('rate', run, source('control_hz')))
    fastest = _fastest(config, scales)
    if fastest:
        rows.append(Fact('fastest in the training data', fastest, 'statistics, by the rows above'))
    return rows


def _fastest(config: PolicyConfig, scales: Statistics | None) -> str:
    """The largest motion of a step by the statistics: a check of the units above."""
    action, flow = config.action, config.flow
    largest = None if scales is None else scales.largest_action
    if largest is None or not action.kind.endswith('delta') or len(largest) < 6:
        return ''
    if flow is not None and flow.relative:
        return ''  # the statistics are of action minus state
    bounds = [a * abs(b) for a, b in zip(largest, action.scale, strict=False)]
    if action.kind == 'joint_delta':
        most = max(b for i, b in enumerate(bounds) if i != action.gripper_dim)
        return f'{most:.3g} rad a step, {most * config.control_hz:.2g} rad/s'
    far, turn = max(bounds[:3]), max(bounds[3:6])
    rate = config.control_hz
    return (
        f'{far:.3g} m and {turn:.3g} rad a step, {far * rate:.2g} m/s and {turn * rate:.2g} rad/s'
    )


def describe(data: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``specprune.json`` for a report's plain data: all that was given, what is in
    force, and ``null`` for what must be stated.
    """
    config, unstated = data['config'], data['unstated']
    out = dict(data['given'])
    if data['platform'] and not unstated:
        out['platform'] = data['platform']
    out |= {name: config[name] for name in FIELDS}
    out['action'] = dict(config['action'])
    for name in unstated:
        head, _, rest = name.partition('.')
        out[head] = {**out.get(head, {}), rest: None} if rest else None
    return out
