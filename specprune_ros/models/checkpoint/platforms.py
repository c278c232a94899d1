"""What no OpenVLA-OFT file says: images, chunk length, scales and control of each robot.

The authors choose these from the command line; sources are the constants of their code.
"""

from __future__ import annotations

from typing import Any

from specprune_ros.models.config import ActionConfig
from specprune_ros.models.presets import LIBERO_ACTION

_ARM = [f'joint_{i}' for i in range(1, 7)]

PLATFORMS: dict[str, dict[str, Any]] = {
    'libero': {
        'cameras': ('third_person', 'wrist'),
        'proprio_dim': 8,
        'action_dim': 7,
        'chunk': 8,
        'norm': 'q99',
        'control_hz': 20.0,
        'action': LIBERO_ACTION,
    },
    'aloha': {
        'cameras': ('high', 'left_wrist', 'right_wrist'),
        'proprio_dim': 14,
        'action_dim': 14,
        'chunk': 25,
        'norm': 'min_max',
        'control_hz': 25.0,
        'pre_resize': 256,
        'action': ActionConfig(
            dims=tuple(
                f'{side}_{name}' for side in ('left', 'right') for name in (*_ARM, 'gripper')
            ),
            kind='joint_position',
            rotation='none',
            reference='none',
            gripper_dim=-1,
        ),
    },
    'bridge': {
        'cameras': ('third_person',),
        'proprio_dim': 7,
        'action_dim': 7,
        'chunk': 5,
        'norm': 'q99',
        'control_hz': 5.0,
        'action': ActionConfig(rotation='euler_xyz'),
    },
}


def guess(keys: list[str], action_dim: int | None, proprio_dim: int | None) -> str | None:
    """The platform whose dimensions (and, failing those, statistics keys) fit; ``None`` if
    unclear.
    """
    if action_dim is None and any('libero' in key for key in keys):
        return 'libero'
    fits = [
        name
        for name, constants in PLATFORMS.items()
        if action_dim == constants['action_dim']
        and (proprio_dim in (None, constants['proprio_dim']))
    ]
    if len(fits) > 1:
        named = [name for name in fits if any(name in key for key in keys)]
        fits = named or fits
    return fits[0] if len(fits) == 1 else None
