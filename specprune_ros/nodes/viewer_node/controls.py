"""One control of the page for each live parameter, made from what its descriptor says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import viser

FIRST = ('preset', 'pruner', 'mode')
DENSE, PRUNED = 'dense', 'pruned'
STEPS = 200  # of a slider whose descriptor names no step


@dataclass(frozen=True)
class Parameter:
    """A parameter as its node describes it. ``kind``: bool, int, float, str, int[], float[] or
    str[]; ``low`` and ``high`` are ``None`` without a range.
    """

    name: str
    kind: str
    value: Any
    help: str = ''
    group: str = ''
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float = 0.0


class Controls:
    """The controls, in the container that is open when they are made.

    ``change`` is called with a name and a wanted value for each input of a person; the value may
    still be refused. Parameters of a group share a folder. ``kinds`` is the type of each.
    """

    def __init__(
        self,
        gui: viser.GuiApi,
        parameters: Sequence[Parameter],
        change: Callable[[str, Any], None],
    ) -> None:
        self._change = change
        self.kinds = {p.name: p.kind for p in parameters}
        self._handles: dict[str, Any] = {}
        self._values = {p.name: p.value for p in parameters}
        by_name = {p.name: p for p in parameters}
        self._method = 'specprune'  # what "pruned" goes back to
        if 'pruner' in by_name:
            self._switch = gui.add_button_group(
                'Compare', (PRUNED, DENSE), hint='Dense against pruned, from the next query on.'
            )
            self._switch.on_click(self._compare)
        for name in FIRST:
            if name in by_name:
                self._add(gui, by_name.pop(name))
        folders: dict[str, list[Parameter]] = {}
        for parameter in by_name.values():
            folders.setdefault(parameter.group or 'Other', []).append(parameter)
        for label, members in folders.items():
            with gui.add_folder(label, expand_by_default=False):
                for parameter in members:
                    self._add(gui, parameter)
        self.show(self._values)

    def show(self, values: Mapping[str, Any]) -> None:
        """Make the controls say what is in force."""
        for name, value in values.items():
            handle = self._handles.get(name)
            if handle is None:
                continue
            self._values[name] = value
            handle.value = _shown(self.kinds[name], value)
        pruner = self._values.get('pruner')
        if pruner and pruner != DENSE:
            self._method = pruner

    def restore(self, name: str) -> None:
        """Put a control back to the value in force."""
        handle, value = self._handles[name], _shown(self.kinds[name], self._values[name])
        if handle.value != value:
            handle.value = value

    async def _compare(self, event: viser.GuiEvent[Any]) -> None:
        self._change('pruner', DENSE if event.target.value == DENSE else self._method)

    def _add(self, gui: viser.GuiApi, parameter: Parameter) -> None:
        handle = _control(gui, parameter)
        name, kind = parameter.name, parameter.kind
        self._handles[name] = handle

        @handle.on_update
        async def _(event: viser.GuiEvent[Any]) -> None:
            if event.client is None:  # the node's own value, shown by us
                return
            try:
                value = _wanted(kind, event.target.value)
            except (ValueError, TypeError, OverflowError):
                return  # half typed
            if value != self._values[name]:
                self._change(name, value)


def _control(gui: viser.GuiApi, p: Parameter) -> Any:
    value, hint = _shown(p.kind, p.value), p.help
    if p.kind == 'bool':
        return gui.add_checkbox(p.name, value, hint=hint)
    if p.choices and p.kind == 'str':
        return gui.add_dropdown(p.name, p.choices, initial_value=value, hint=hint)
    if p.kind in ('int', 'float') and p.low is not None and p.high is not None:
        number = int if p.kind == 'int' else float
        low, high = number(p.low), number(p.high)
        step = p.step or (1 if p.kind == 'int' else _step(low, high, value))
        return gui.add_slider(p.name, low, high, number(step), value, hint=hint)
    if p.kind in ('int', 'float'):
        return gui.add_number(p.name, value, hint=hint)
    return gui.add_text(p.name, value, hint=hint)


def _step(low: float, high: float, value: float) -> float:
    """A round step, fine enough that the value in force is not rounded away."""
    step = 10.0 ** math.floor(math.log10((high - low) / STEPS))
    for _ in range(4):
        if abs(value / step - round(value / step)) < 1e-6:
            break
        step /= 10
    return step


def _shown(kind: str, value: Any) -> Any:
    if kind.endswith('[]'):
        return ', '.join(f'{item:g}' if kind == 'float[]' else str(item) for item in value)
    return value


def _wanted(kind: str, value: Any) -> Any:
    """What a control holds, as the parameter's type. Raises ``ValueError``."""
    if kind.endswith('[]'):
        items = [item.strip() for item in value.split(',') if item.strip()]
        return [{'int[]': int, 'float[]': float, 'str[]': str}[kind](item) for item in items]
    return {'bool': bool, 'int': int, 'float': float, 'str': str}[kind](value)
