"""ROS parameters from tables: declared once with range, unit and description, checked together,
applied between queries.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from specprune_ros.nodes.common.compat import start_overrides

Value = bool | int | float | str | list[int] | list[float] | list[str]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter: name, default, meaning, and what it may be.

    ``live`` settings may change at any time; the others only while the node is unconfigured.
    ``kind`` (``int[]``, ``float[]``, ``str[]``) is needed only where the default is an empty list.
    ``group`` is a heading to show it under.
    ``formerly`` is the name before a renaming; it still sets the parameter, with a warning.
    """

    name: str
    default: Value
    description: str
    unit: str = ''
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False
    kind: str = ''
    formerly: str = ''
    group: str = ''

    def descriptor(self) -> ParameterDescriptor:
        """The ROS descriptor: description with unit and group, choices and range."""
        text = self.description
        if self.unit:
            text += f' Unit: {self.unit}.'
        constraints = f'one of: {", ".join(self.choices)}' if self.choices else ''
        if not self.live:
            text += ' Fixed once the node is configured.'
        if self.group:
            text += f' Group: {self.group}.'
        descriptor = ParameterDescriptor(description=text, additional_constraints=constraints)
        if self.low is not None and self.high is not None:
            if isinstance(self.default, bool):
                pass
            elif isinstance(self.default, int):
                descriptor.integer_range = [
                    IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)
                ]
            elif isinstance(self.default, float):
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(self.low), to_value=float(self.high))
                ]
        return descriptor

    def refuse(self, value: Value) -> str | None:
        """Why ``value`` (of the right type) cannot be set, or ``None``."""
        if self.choices:
            wrong = [
                v for v in (value if isinstance(value, list) else [value]) if v not in self.choices
            ]
            if wrong:
                return f"{self.name} is '{wrong[0]}'; it must be one of {', '.join(self.choices)}"
        return None


ARRAYS = {
    'int[]': Parameter.Type.INTEGER_ARRAY,
    'float[]': Parameter.Type.DOUBLE_ARRAY,
    'str[]': Parameter.Type.STRING_ARRAY,
}


def declare_read_only(node: Node, name: str, default: Value, description: str) -> None:
    """Declare a parameter that only the command line or a file can set."""
    node.declare_parameter(
        name, default, ParameterDescriptor(description=description, read_only=True)
    )


class NodeParameters:
    """A node's declared parameters: values by name, refusals with reasons, one callback after a
    change.

    ``check`` sees all values together, as they would be after the change, and the values that the
    request itself names; it raises ``ValueError`` to refuse and must not have side effects.
    ``apply`` is called with the same once a change was accepted; :attr:`checked` is then what
    ``check`` returned for it, so that nothing is made or validated twice.
    """

    def __init__(
        self,
        node: Node,
        settings: Iterable[ParameterSpec],
        check: Callable[[Mapping[str, Value], Mapping[str, Value]], Any] | None = None,
        apply: Callable[[Mapping[str, Value], Mapping[str, Value]], None] | None = None,
    ) -> None:
        self._node = node
        self._settings = {setting.name: setting for setting in settings}
        self._check = check
        self._apply = apply
        self.checked: Any = None
        self._renamed = {s.formerly: s.name for s in self._settings.values() if s.formerly}
        self.frozen = False
        self._convert_integers()
        for setting in self._settings.values():
            self._declare(setting)
        for old, new in self._renamed.items():
            self._declare_alias(old, self._settings[new])
        self._warn_unknown()
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)

    def _convert_integers(self) -> None:
        """``-p query_rate:=5`` means 5.0: rclpy refuses the type."""
        overrides = start_overrides(self._node)
        for name, given in list(overrides.items()):
            setting = self._settings.get(self._renamed.get(name, name))
            whole = given.type_ is Parameter.Type.INTEGER
            if setting is not None and isinstance(setting.default, float) and whole:
                overrides[name] = Parameter(name, Parameter.Type.DOUBLE, float(given.value))

    def _warn_unknown(self) -> None:
        """Name what was given at start and is no parameter: a typo must not pass in silence."""
        for name in start_overrides(self._node):
            if self._node.has_parameter(name) or name.startswith('qos_overrides.'):
                continue
            near = difflib.get_close_matches(name, self._settings, 1)
            self._node.get_logger().warning(
                f"parameter '{name}' is unknown and ignored"
                + (f'; is {near[0]} meant?' if near else '')
            )

    def _declare(self, setting: ParameterSpec) -> None:
        if setting.default != []:
            self._node.declare_parameter(setting.name, setting.default, setting.descriptor())
            return
        # An empty list has no type of its own: declare by type, then give it its value.
        kind = ARRAYS[setting.kind]
        given = self._node.declare_parameter(setting.name, kind, setting.descriptor())
        if given.type_ is Parameter.Type.NOT_SET:
            self._node.set_parameters([Parameter(setting.name, kind, [])])

    def _declare_alias(self, old: str, setting: ParameterSpec) -> None:
        """Declare the former name, and take what the command line or a file gave it."""
        descriptor = setting.descriptor()
        descriptor.description = f'Former name of {setting.name}, accepted for one release.'
        given = self._node.declare_parameter(old, setting.default, descriptor).value
        if old in start_overrides(self._node):
            self._warn_renamed(old)
            self._node.set_parameters([Parameter(setting.name, value=_plain(given))])

    def _warn_renamed(self, old: str) -> None:
        self._node.get_logger().warning(
            f'parameter {old} is now called {self._renamed[old]}; the old name goes in the next '
            'release'
        )

    def values(self) -> dict[str, Any]:
        """Every parameter's value by name."""
        return {name: _plain(self._node.get_parameter(name).value) for name in self._settings}

    def given(self) -> dict[str, Any]:
        """Values that the command line or a file gave at start."""
        overridden = start_overrides(self._node)
        return {name: value for name, value in self.values().items() if name in overridden}

    def write(self, values: Mapping[str, Value]) -> None:
        """Set several parameters together, as the node itself, where they differ."""
        now = self.values()
        changed = [
            Parameter(name, self._node.get_parameter(name).type_, value)
            for name, value in values.items()
            if value != now[name]
        ]
        if changed:
            result = self._node.set_parameters_atomically(changed)
            if not result.successful:
                raise ValueError(result.reason)

    def check_now(self) -> None:
        """Check the start-up values, which bypass the set callback. Raises ``ValueError``."""
        values = self.values()
        for name, setting in self._settings.items():
            reason = setting.refuse(values[name])
            if reason:
                raise ValueError(reason)
        if self._check is not None:
            self._check(values, {})

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        request = self._requested(parameters)
        for name, value in request.items():
            setting = self._settings[name]
            if self.frozen and not setting.live:
                return _refused(
                    f'{name} is fixed while the node is configured; deactivate and clean up first'
                )
            reason = setting.refuse(value)
            if reason:
                return _refused(reason)
        if self._check is not None and request:
            try:
                self.checked = self._check({**self.values(), **request}, request)
            except ValueError as error:
                return _refused(str(error))
            except Exception as error:  # of a plugin: it must not end the node
                return _refused(f'{type(error).__name__}: {error}')
        return SetParametersResult(successful=True)

    def _after_set(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            if parameter.name in self._renamed:
                self._warn_renamed(parameter.name)
                self._node.set_parameters(
                    [Parameter(self._renamed[parameter.name], value=_plain(parameter.value))]
                )
        request = {p.name: _plain(p.value) for p in parameters if p.name in self._settings}
        if request and self._apply is not None:
            self._apply(self.values(), request)

    def _requested(self, parameters: list[Parameter]) -> dict[str, Any]:
        names = ((self._renamed.get(p.name, p.name), p.value) for p in parameters)
        return {name: _plain(value) for name, value in names if name in self._settings}


def _refused(reason: str) -> SetParametersResult:
    return SetParametersResult(successful=False, reason=reason)


def _plain(value: Any) -> Any:
    """Arrays come back as ``array.array`` or tuples; compare and store them as lists."""
    return value if isinstance(value, (bool, int, float, str)) or value is None else list(value)
