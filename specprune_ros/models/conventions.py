"""What the numbers of a released checkpoint mean, per benchmark and robot: no file of one says it.

One table, :data:`CONVENTIONS`: which images, how they are stretched, at what rate rows are played
and how many of a chunk, what a delta is added to, which gripper value is open. The authors choose
these from the command line or in the clients of their benchmarks; ``source`` says where. A
checkpoint is matched by its platform and family (:func:`find`), the platform being given, or
recognised by a loader; ``specprune.json`` beside the checkpoint may change any field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specprune_ros.models.config import ActionConfig, PolicyConfig

DEXBOTIC = ('db-oft', 'db-cogact')
_EULER = ActionConfig(rotation='euler_xyz')
# LIBERO's actions are commands of a controller in -1..1 (0.05 m and 0.5 rad a unit, robosuite),
# which moves from where the arm is measured to be.
LIBERO_ACTION = ActionConfig(scale=(0.05,) * 3 + (0.5,) * 3 + (1.0,), accumulates='measurement')
_ARM = [f'joint_{i}' for i in range(1, 7)]
_TWO_ARMS = tuple(f'{side}_{name}' for side in ('left', 'right') for name in (*_ARM, 'gripper'))


@dataclass(frozen=True)
class Convention:
    """One row: fields of ``PolicyConfig`` that its checkpoints get, and where they come from.

    ``note`` is what a user must see to besides.
    """

    platform: str
    families: tuple[str, ...]
    fields: Mapping[str, Any]
    source: str
    note: str = ''

    @property
    def name(self) -> str:
        """Platform and families, as ``PolicyConfig.convention`` has it."""
        return f'{self.platform}/{"+".join(self.families)}'


CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        'libero',
        ('openvla-oft',),
        {
            'cameras': ('third_person', 'wrist'),
            'proprio_dim': 8,
            'action_dim': 7,
            'chunk': 8,
            'execute': 8,
            'norm': 'q99',
            'control_hz': 20.0,
            'action': LIBERO_ACTION,
        },
        'openvla-oft: constants.py, run_libero_eval.py',
        "turn the simulator's images by 180 degrees",
    ),
    Convention(
        'aloha',
        ('openvla-oft',),
        {
            'cameras': ('high', 'left_wrist', 'right_wrist'),
            'proprio_dim': 14,
            'action_dim': 14,
            'chunk': 25,
            'execute': 25,
            'norm': 'min_max',
            'control_hz': 25.0,
            'pre_resize': 256,
            'action': ActionConfig(
                dims=_TWO_ARMS,
                kind='joint_position',
                rotation='none',
                reference='none',
                gripper_dim=-1,
                accumulates='none',
            ),
        },
        'openvla-oft: constants.py, aloha real_env',
        "both gripper columns stay among the joints, in the robot's own unit",
    ),
    Convention(
        'bridge',
        ('openvla-oft',),
        {
            'cameras': ('third_person',),
            'proprio_dim': 7,
            'action_dim': 7,
            'chunk': 5,
            'execute': 5,
            'norm': 'q99',
            'control_hz': 5.0,
            'action': _EULER,
        },
        'openvla-oft: constants.py',
    ),
    Convention(
        'bridge',
        ('cogact',),
        {
            'cameras': ('third_person',),
            'control_hz': 5.0,
            'action': _EULER,
        },
        'CogACT: sim_cogact/cogact_policy.py, widowx_bridge',
        'queried at every step, joined by adaptive_ensemble over 7 chunks',
    ),
    Convention(
        'fractal',
        ('cogact',),
        {
            'cameras': ('third_person',),
            'control_hz': 3.0,
            'action': _EULER,
        },
        'CogACT: sim_cogact/cogact_policy.py, google_robot',
        'queried at every step, joined by adaptive_ensemble over 2 chunks; the simulator takes a '
        'change of the gripper above 0.5 as a relative command and holds it for 10 steps',
    ),
    Convention(
        'simpler',
        DEXBOTIC,
        {
            'cameras': ('third_person',),
            'control_hz': 5.0,
            'execute': 5,
            'pre_resize': 224,
            'pre_filter': 'area',
            'action': _EULER,
        },
        'dexbotic-benchmark: simpler_vla_agent.py (WidowX)',
    ),
    Convention(
        'libero',
        ('db-oft',),
        {
            'cameras': ('third_person',),
            'control_hz': 20.0,
            'execute': 12,
            'action': LIBERO_ACTION,
        },
        'dexbotic: libero_oft.py; dexbotic-benchmark: libero_spatial.yaml',
        "turn the simulator's images by 180 degrees; steps per query: spatial 12, goal and object "
        '16, 10: 15',
    ),
    Convention(
        'libero',
        ('db-cogact',),
        {
            'cameras': ('third_person',),
            'control_hz': 20.0,
            'execute': 12,
            'action': replace(
                LIBERO_ACTION, gripper_range=(-1.0, 1.0), gripper_sense='one_is_closed'
            ),
        },
        'dexbotic-benchmark: libero_vla_agent.py, libero_spatial.yaml',
        "turn the simulator's images by 180 degrees; steps per query: spatial 12, goal and object "
        '16, 10: 15',
    ),
    Convention(
        'calvin',
        DEXBOTIC,
        {
            'cameras': ('third_person',),
            'control_hz': 30.0,
            'execute': 7,
            'action': replace(_EULER, gripper_range=(-1.0, 1.0)),
        },
        'dexbotic-benchmark: calvin_vla_agent.py',
        'the client sends absolute poses: each delta added to the last command (at first the '
        'measured pose), angles wrapped to +-pi',
    ),
    Convention(
        'maniskill2',
        DEXBOTIC,
        {
            'cameras': ('third_person',),
            'control_hz': 20.0,
            'execute': 10,
            'pre_resize': 256,
            'pre_filter': 'linear',
            'action': ActionConfig(gripper_sense='one_is_closed', accumulates='measurement'),
        },
        'dexbotic-benchmark: maniskill2_vla_agent.py, example_maniskill2.yaml; 20 Hz is '
        "ManiSkill2's default",
        'actions are pd_ee_delta_pose commands as the simulator takes them, not metres: set '
        "action.scale for a robot; DB-OFT's state is tcp_pose (7), gripper state (-1 at first, "
        'then minus the last command), goal (3); the client sends JPEG at quality 95',
    ),
    Convention(
        'robotwin',
        DEXBOTIC,
        {
            'cameras': ('head', 'left_wrist', 'right_wrist'),
            'control_hz': 25.0,
            'execute': 8,
            'action': ActionConfig(
                dims=(*_TWO_ARMS, 'unused_1', 'unused_2'),
                kind='joint_delta',
                rotation='none',
                reference='observation',
                gripper_dim=-1,
                accumulates='measurement',
            ),
        },
        'dexbotic-benchmark: robotwin2_vla_agent.py, example_robotwin2.yaml; the rate is not '
        'given there (25 Hz is ours)',
        'all rows are relative to the joints at the observation, gripper columns (7th, 14th) are '
        'absolute; the last two of 16 numbers are padding',
    ),
)
# checkpoint/pi0.py says what they mean.
OPENPI = ('libero', 'droid', 'droid_joint_position', 'aloha', 'aloha_sim')
PLATFORMS = tuple(dict.fromkeys([*(each.platform for each in CONVENTIONS), *OPENPI]))
# As published, or as the cache of the Hugging Face Hub has it; a fine-tune adds words.
_FOLDER = re.compile(
    r'(?:models--Dexmal--)?(simpler|libero|calvin|maniskill2|robotwin)-db-(?:oft|cogact)', re.I
)
_STATISTICS = {'bridge_orig': 'bridge', 'fractal20220817_data': 'fractal'}


def find(platform: str | None, family: str) -> Convention | None:
    """The row of a platform and family, ``None`` where there is none."""
    rows = (c for c in CONVENTIONS if c.platform == platform and family in c.families)
    return next(rows, None)


def platforms(family: str) -> tuple[str, ...]:
    """Platforms there are rows for in a family."""
    return tuple(c.platform for c in CONVENTIONS if family in c.families)


def from_folder(path: Path) -> str | None:
    """The benchmark that a Dexbotic folder, or one of the two above it, is named after."""
    for name in reversed(path.absolute().parts[-3:]):
        found = _FOLDER.fullmatch(name)
        if found:
            return found.group(1).lower()
    return None


def from_statistics(key: str | None) -> str | None:
    """The platform of a key of CogACT's statistics."""
    return _STATISTICS.get(key or '')


def from_dimensions(
    keys: list[str], action_dim: int | None, proprio_dim: int | None
) -> str | None:
    """The OpenVLA-OFT platform whose dimensions (and, failing those, statistics keys) fit;
    ``None`` if unclear.
    """
    if action_dim is None and any('libero' in key for key in keys):
        return 'libero'
    fits = [
        c.platform
        for c in CONVENTIONS
        if 'openvla-oft' in c.families
        and action_dim == c.fields['action_dim']
        and proprio_dim in (None, c.fields['proprio_dim'])
    ]
    if len(fits) > 1:
        named = [name for name in fits if any(name in key for key in keys)]
        fits = named or fits
    return fits[0] if len(fits) == 1 else None


def named(platform: str, key: str | None, keys: list[str]) -> bool:
    """Whether the statistics in use (``key``, or all of ``keys`` where none is chosen) are by
    their name those of ``platform``.
    """
    names = [key] if key else keys
    return bool(names) and all(platform in name.lower() for name in names)


def plain_action(dims: tuple[str, ...]) -> ActionConfig:
    """Numbers nothing is known of: published as they are; no end-effector executor takes them."""
    return ActionConfig(
        dims=dims,
        kind='joint_position',
        rotation='none',
        reference='none',
        gripper_dim=-1,
        accumulates='none',
    )


def for_robot(config: PolicyConfig, actions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of a chunk as a robot takes them: SI units, gripper 0 to 1 (``action.gripper_sense``
    says of what), and only those that the authors run before the next query.

    ``actions`` ``[K, D]`` as :meth:`Policy.act` gives them, in the statistics' own units.
    """
    action = config.action
    rows = np.array(actions[: config.rows_run], np.float64) * np.asarray(action.scale)
    if action.gripper_dim >= 0:
        low, high = action.gripper_range
        # A head that regresses gives 1.02 and means open.
        grip = (rows[:, action.gripper_dim] - low) / (high - low)
        rows[:, action.gripper_dim] = grip.clip(0.0, 1.0)
    return rows


def as_markdown() -> str:
    """The table of conventions, as docs/how-to/checkpoints.md has it."""
    lines = [
        '| platform, families | images, first stretched to | actions | gripper | Hz | rows run '
        '| added to |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in CONVENTIONS:
        fields, action = row.fields, row.fields['action']
        side, kind = fields.get('pre_resize', 0), fields.get('pre_filter', 'bicubic')
        words = (
            f'`{row.platform}`, {", ".join(row.families)}',
            f'{len(fields["cameras"])}{f", {side} ({kind})" if side else ""}',
            action.kind + ('' if action.rotation == 'none' else f', {action.rotation}'),
            'among the joints'
            if action.gripper_dim < 0
            else f'above {action.gripper_threshold:g} '
            + ('open' if action.gripper_sense == 'one_is_open' else 'closed'),
            f'{fields["control_hz"]:g}',
            str(fields.get('execute', 'all')),
            {'none': '-', 'command': 'the command', 'measurement': 'the measured state'}[
                action.accumulates
            ],
        )
        lines.append(f'| {" | ".join(words)} |')
    return '\n'.join(lines) + '\n'
