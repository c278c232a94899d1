"""How pi0's and pi0.5's folders scale state and action: lerobot's processors, openpi's assets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from specprune_ros.models.checkpoint.files import CheckpointError, SafetensorsFile, read_json
from specprune_ros.models.checkpoint.report import Report
from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.statistics import NEARLY_ALL, Statistics, StatisticsError, choose_key

_SCALES = {
    'MEAN_STD': ('mean', 'std'),
    'MIN_MAX': ('min', 'max'),
    'QUANTILES': ('q01', 'q99'),
    'QUANTILE10': ('q10', 'q90'),
}


def lerobot_scales(
    report: Report, pre: list[dict[str, Any]], post: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Per robot, the bounds of state and action as each processor says, and how many times their
    width the data have.
    """
    robots: dict[str, dict[str, Any]] = {}
    for steps, kind, feature in (
        (pre, 'normalizer_processor', 'STATE'),
        (post, 'unnormalizer_processor', 'ACTION'),
    ):
        step = next((step for step in steps if step['name'] == kind), None)
        if step is None or not step['state_file']:
            report.problem(f'{report.path}: the processors have no {kind} with a state_file')
            continue
        norms = step['config'].get('norm_map') or {}
        mode = str(norms.get(feature, ''))
        part = 'proprio' if feature == 'STATE' else 'action'
        images = norms.get('VISUAL') or 'IDENTITY'
        if images != 'IDENTITY':
            report.problem(
                f'{report.path}: {kind} normalises VISUAL by {images!r}; only images as they are '
                '(IDENTITY) are supported'
            )
        report.fact(f'{part} scale', mode, f'policy_{"pre" if steps is pre else "post"}processor')
        if mode != 'IDENTITY' and mode not in _SCALES:
            report.problem(
                f'{report.path}: {feature} is normalised by {mode!r}, which is not known'
            )
            continue
        path = report.path / Path(step['state_file']).name
        if not path.exists():
            report.problem(f'{path} is absent: the scales of {feature}; download it')
            continue
        for robot, stored in _by_robot(path, part).items():
            bounds = None
            if mode != 'IDENTITY':
                bounds = _bounds(path, robot, part, mode, stored, step['config'])
            robots.setdefault(robot, {})[part] = bounds
            robots[robot][f'{part}_reach'] = NEARLY_ALL if mode == 'MEAN_STD' else 1.0
    return robots


def _by_robot(path: Path, part: str) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of one part by robot; ``default`` where the keys name none."""
    name = 'observation\\.state' if part == 'proprio' else 'action'
    pattern = re.compile(rf'(?:(.+?)\.)??(?:buffer\.)?{name}\.(\w+)')
    source, robots = SafetensorsFile(path), {}
    for key in source.tensors:
        match = pattern.fullmatch(key)
        if match:
            robot = robots.setdefault(match.group(1) or 'default', {})
            robot[match.group(2)] = source.read(key).double().numpy().reshape(-1)
    source.close()
    if not robots:
        raise CheckpointError(
            f'{path}: holds no statistics of {"the state" if part == "proprio" else "actions"}: '
            'values would go to the robot unscaled'
        )
    return robots


def _bounds(
    path: Path,
    robot: str,
    part: str,
    mode: str,
    stored: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """The values that become -1 and 1."""
    names = _SCALES[mode]
    lost = [name for name in names if name not in stored]
    if lost:
        raise CheckpointError(
            f'{path}: {part} of {robot!r} is scaled by {mode}, but {lost[0]} is missing'
        )
    first, second = (stored[name] for name in names)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise CheckpointError(f'{path}: {part} of {robot!r} has scales that are not finite')
    epsilon = float(config.get('eps', 1e-8)) if part == 'proprio' else 0.0
    if mode == 'MEAN_STD':
        return first - (second + epsilon), first + (second + epsilon)
    same = first == second
    return first, np.where(same, second + epsilon, second)


def openpi_scales(report: Report, family: str) -> dict[str, dict[str, Any]]:
    """Bounds per ``assets/<asset id>``: mean and deviation for pi0, quantiles for pi0.5; with how
    many times their width the data have.
    """
    robots: dict[str, dict[str, Any]] = {}
    assets = report.path / 'assets'
    names = ('mean', 'std') if family == 'pi0' else ('q01', 'q99')
    report.fact('scale', ' and '.join(names), f'openpi, {family}')
    for path in sorted(assets.rglob('norm_stats.json')) if assets.is_dir() else ():
        stats = read_json(path).get('norm_stats', {})
        robot: dict[str, Any] = {}
        for part, key in (('proprio', 'state'), ('action', 'actions')):
            entry = stats.get(key) or {}
            if any(name not in entry for name in names):
                report.problem(
                    f'{path}: {key} lacks {" or ".join(names)}: values would not be scaled'
                )
                continue
            first, second = (np.asarray(entry[name], np.float64) for name in names)
            if not (np.isfinite(first).all() and np.isfinite(second).all()):
                report.problem(f'{path}: {key} has scales that are not finite')
                continue
            if family == 'pi0':
                robot[part] = first - (second + 1e-6), first + (second + 1e-6)
            else:
                robot[part] = first, second + 1e-6
        if len(robot) == 2:
            reach = NEARLY_ALL if family == 'pi0' else 1.0
            robot |= {'proprio_reach': reach, 'action_reach': reach}
            robots[path.parent.relative_to(assets).as_posix()] = robot
    if not robots and not report.problems:
        report.problem(
            f'{assets}: holds no <asset id>/norm_stats.json: copy assets/ of the JAX checkpoint '
            'into the folder (the converter leaves it out)'
        )
    return robots


def scales(report: Report, policy: PolicyConfig, key: str | None) -> Statistics:
    """The scales of one robot. Raises ``StatisticsError``."""
    name = choose_key(report.scales, key, f'{report.path}: statistics')
    robot = report.scales[name]
    sizes = {'action': policy.action_dim, 'proprio': policy.proprio_dim}
    for part, size in sizes.items():
        if size and part not in robot:
            raise StatisticsError(f'{report.path}: statistics {name!r} have no {part}')
    low, high = _cut(robot['action'], policy.action_dim)
    proprio: tuple[Any, Any] = (None, None)
    if policy.proprio_dim:
        proprio = _cut(robot['proprio'], policy.proprio_dim)
    return Statistics(
        low, high, None if low is None else np.ones(len(low), bool), *proprio,
        epsilon=0.0, clip_proprio=False, key=name,
        action_reach=robot['action_reach'], proprio_reach=robot.get('proprio_reach', 1.0),
    )  # fmt: skip


def _cut(bounds: tuple[np.ndarray, np.ndarray] | None, size: int) -> tuple[Any, Any]:
    """Bounds of ``size`` values: longer statistics are cut, beyond shorter ones nothing is
    scaled.
    """
    if bounds is None:
        return None, None
    low, high = -np.ones(size), np.ones(size)
    count = min(size, len(bounds[0]))
    low[:count], high[:count] = bounds[0][:count], bounds[1][:count]
    return low, high
