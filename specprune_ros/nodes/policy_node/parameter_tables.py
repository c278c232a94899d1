"""The node's parameters as YAML for ``config/specprune.yaml`` and as Markdown for documents."""

from __future__ import annotations

import textwrap
from typing import Any

from specprune_ros.nodes.common.parameters import ParameterSpec
from specprune_ros.nodes.policy_node.parameters import NODE_PARAMETERS, pruning_parameters

WIDTH = 96
# Pruning parameters that no preset sets.
FREE = ('pruning.preset', 'pruning.pruner', 'pruning.mode')
YAML_HEAD = """\
# Every parameter of specprune_node with its default, for a node of any name. Made by
# `specprune params --yaml`; a test keeps it so. What the preset sets is commented out, so that
# another preset is not overruled: uncomment what you choose yourself. Pass a copy
# with --params-file, or set one live: ros2 param set /specprune_node pruning.alpha 0.6
# Sources: P1, P2: SpecPrune-VLA (arXiv 2509.05614), first version and ICML 2026; C2: its
# authors' code.
/**:
  ros__parameters:
"""


def all_settings() -> tuple[ParameterSpec, ...]:
    """Every parameter, the node's own first."""
    return (*NODE_PARAMETERS, *pruning_parameters())


def as_yaml() -> str:
    """``config/specprune.yaml``."""
    lines = [YAML_HEAD]
    for setting in all_settings():
        limits = _limits(setting)
        if limits:
            limits = f'One of {limits}.' if setting.choices else f'Allowed: {limits}.'
        said = f'{setting.description} {limits}'.strip()
        lines += [f'    # {line}\n' for line in textwrap.wrap(said, WIDTH - 6)]
        # Nor has an empty list a type in a parameter file.
        preset = setting.name.startswith('pruning.') and setting.name not in FREE
        hidden = '# ' if setting.default == [] or preset else ''
        lines.append(f'    {hidden}{setting.name}: {_scalar(setting.default)}\n')
    return ''.join(lines)


def as_markdown() -> str:
    """A table of all parameters."""
    rows = ['| parameter | default | allowed | live | meaning |', '|---|---|---|---|---|']
    for setting in all_settings():
        rows.append(
            f'| `{setting.name}` | `{_scalar(setting.default)}` | {_limits(setting) or " "} | '
            f'{"yes" if setting.live else "no"} | {setting.description} |'
        )
    return '\n'.join(rows) + '\n'


def as_data() -> list[dict[str, Any]]:
    """Every parameter as plain values, for JSON."""
    names = ('name', 'default', 'description', 'unit', 'low', 'high', 'choices', 'live', 'group')
    return [{name: getattr(setting, name) for name in names} for setting in all_settings()]


def _limits(setting: ParameterSpec) -> str:
    unit = f' {setting.unit}' if setting.unit else ''
    if setting.choices:
        return ', '.join(setting.choices)
    if setting.low is None or isinstance(setting.default, bool):
        return unit.strip()
    return f'{setting.low:.10g} to {setting.high:.10g}{unit}'


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, float):
        # Exact, so that a file that repeats the defaults changes nothing; YAML wants a point.
        mantissa, e, exponent = repr(value).partition('e')
        return f'{mantissa if "." in mantissa else mantissa + ".0"}{e}{exponent}'
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, list):
        return '[' + ', '.join(_scalar(item) for item in value) + ']'
    return str(value)
