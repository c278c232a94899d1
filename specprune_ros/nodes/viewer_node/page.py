"""What the page looks like. No ROS in here: numbers and arrays in, a person's wishes out."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trimesh
import viser

from specprune_ros.nodes.viewer_node.controls import Controls, Parameter
from specprune_ros.nodes.viewer_node.robot_model import RobotModel
from specprune_ros.nodes.viewer_node.timelines import Timelines
from specprune_ros.policy.overlay import COLOURS

LEFT, RIGHT = 450, 390  # pixels, width of the panels
GAP = 6  # pixels between two cameras
BAR = 42  # pixels, height of the longest bar
REMEMBERED = 8  # instructions
PATH_COLOUR = (213, 94, 0)
LEGEND = {
    'global': 'last query',
    'dynamic': 'changed',
    'local': 'first layers',
    'fill': 'next best',
}
GOOD, WARNING, BAD, NEUTRAL = '#0f8a5f', '#b7791f', '#c53030', '#5a6270'


@dataclass(frozen=True)
class Object:
    """A shape in the scene: ``kind`` is box, sphere or cylinder (along z); ``size`` in metres
    along x, y and z; colour and opacity 0 to 1; position in metres; quaternion w x y z.
    """

    name: str
    kind: str
    size: tuple[float, float, float]
    rgba: tuple[float, float, float, float]
    position: np.ndarray
    wxyz: np.ndarray


@dataclass(frozen=True)
class Actions:
    """What a person may request. Called from the page's threads; must return at once."""

    say: Callable[[str], None]
    enable: Callable[[], None]
    hold: Callable[[], None]
    disable: Callable[[], None]
    reset: Callable[[], None]
    change: Callable[[str, Any], None]


@dataclass
class Layers:
    """Vision tokens through the decoder: ``steps`` are (where, how many are left)."""

    steps: Sequence[tuple[str, int]] = ()
    sets: Mapping[str, int] = field(default_factory=dict)
    headline: str = ''


class Page:
    """The page on a running server. ``actions`` of ``None`` is a page to look at only."""

    def __init__(
        self, server: viser.ViserServer, title: str, actions: Actions | None = None
    ) -> None:
        self._server, self._actions = server, actions
        self._robot: list[Any] = []
        self._objects: dict[str, tuple[Any, Any]] = {}
        self._path: Any = None
        self._points: Any = None
        self._said: list[str] = []
        self.controls: Controls | None = None
        self._scene(title)
        self._left()
        self._right(title)

    # Layout.

    def _scene(self, title: str) -> None:
        scene = self._server.scene
        scene.set_up_direction('+z')
        scene.configure_default_lights(cast_shadow=False)
        scene.world_axes.visible = False
        scene.add_grid(
            '/grid',
            width=3.0,
            height=3.0,
            cell_size=0.1,
            section_size=0.5,
            cell_color=(225, 228, 232),
            section_color=(190, 195, 202),
            position=(0.4, 0.0, -0.75),
        )
        camera = self._server.initial_camera
        camera.position, camera.look_at = (1.75, -1.2, 1.0), (0.36, -0.08, 0.24)
        camera.fov = math.radians(45)
        self._server.gui.configure_theme(
            show_logo=False, show_share_button=False, brand_color=(0, 114, 178)
        )

    def _left(self) -> None:
        gui = self._server.gui
        panel = gui.add_panel()
        with panel.add_tab('Cameras'):
            self._cameras = gui.add_image(np.full((8, 16, 3), 235, np.uint8), format='jpeg')
            self._kept = gui.add_html('')
        panel.dock_left()
        panel.set_width(LEFT)
        lines = gui.add_panel()
        with lines.add_tab('Time lines'):
            self.timelines = Timelines(gui)
        lines.dock_below(panel)
        self.show_layers(Layers())

    def _right(self, title: str) -> None:
        gui = self._server.gui
        gui.set_panel_label(title)
        gui.main_panel.dock_right()
        gui.main_panel.set_width(RIGHT)
        self._banner = gui.add_html('')
        if self._actions is not None:
            self._steering(self._actions)
        self._cursor = gui.add_folder(None)
        tabs = gui.add_tab_group()
        if self._actions is not None:
            with tabs.add_tab('Pruning'):
                self._parameters = gui.add_folder(None)
        with tabs.add_tab('State'):
            self._state = gui.add_html(_note('nothing received yet'))
        self.banner('waiting', NEUTRAL, '')

    def _steering(self, actions: Actions) -> None:
        gui = self._server.gui
        text = gui.add_text('Instruction', '', hint='What the arm should do.')
        send = gui.add_button('Send', icon=viser.Icon.MESSAGE)
        self._last = gui.add_dropdown(
            'Last ones', ('-',), hint='Instructions given before; choosing one puts it in the box.'
        )
        enable = gui.add_button('Enable', color='green', icon=viser.Icon.PLAYER_PLAY)
        hold = gui.add_button('Hold', color='yellow', icon=viser.Icon.PLAYER_PAUSE)
        disable = gui.add_button('Disable', color='red', icon=viser.Icon.PLAYER_STOP)
        reset = gui.add_button(
            'Reset', color='gray', icon=viser.Icon.REFRESH, hint='A new episode.'
        )
        self._answer = gui.add_html('')
        self._text = text

        # Coroutines run on the page's event loop at once: none waits for a free thread.
        @send.on_click
        async def _(_: Any) -> None:
            if text.value.strip():
                actions.say(text.value.strip())

        @self._last.on_update
        async def _(event: Any) -> None:
            if event.client is not None and event.target.value != '-':
                text.value = event.target.value

        for button, action in (
            (enable, actions.enable),
            (hold, actions.hold),
            (disable, actions.disable),
            (reset, actions.reset),
        ):
            button.on_click(_calling(action))

    def add_time(self, seconds: float, start: float) -> viser.GuiSliderHandle[float]:
        """A slider over a recording of so many seconds, and where it begins."""
        most = max(math.ceil(20 * seconds) / 20, 0.1)
        start = math.ceil(20 * start) / 20
        with self._cursor:
            return self._server.gui.add_slider('Time (s)', 0.0, most, 0.05, min(start, most))

    def add_play(self) -> viser.GuiCheckboxHandle:
        """A box to tick for moving on by itself."""
        with self._cursor:
            return self._server.gui.add_checkbox('Play', False)

    # What is shown. Each may be called from any thread.

    def banner(self, text: str, colour: str, detail: str, task: str = '') -> None:
        """The one line that matters: what the arm does, and how the instruction stands."""
        second = f'<div style="margin-top:2px">{html.escape(task)}</div>' if task else ''
        self._write(
            self._banner,
            f'<div id="banner" style="{FONT};border-left:5px solid {colour};padding:4px 10px;'
            f'margin:2px 0"><b style="color:{colour}">{html.escape(text)}</b>'
            f'<span style="color:{NEUTRAL}"> {html.escape(detail)}</span>{second}</div>',
        )

    def answer(self, text: str, good: bool) -> None:
        """What came of the last thing a person requested."""
        if self._actions is not None:
            colour = GOOD if good else BAD
            self._write(
                self._answer,
                f'<div id="answer" style="{FONT};color:{colour};padding:0 10px">'
                f'{html.escape(text)}</div>',
            )

    @staticmethod
    def _write(handle: viser.GuiHtmlHandle, content: str) -> None:
        """Text is sent only where it differs: most of it stays the same for long."""
        if handle.content != content:
            handle.content = content

    def show_instruction(self, text: str) -> None:
        """The instruction in force, remembered among the last ones."""
        if self._actions is None or not text:
            return
        if self._said[:1] == [text]:
            return
        if text in self._said:
            self._said.remove(text)
        self._said.insert(0, text)
        del self._said[REMEMBERED:]
        self._last.options = tuple(self._said)
        self._last.value = text
        if not self._text.value:
            self._text.value = text

    def show_parameters(self, parameters: Sequence[Parameter]) -> None:
        """Make the controls, once the node has described its parameters."""
        if self._actions is None:
            return
        if self.controls is not None:
            self.controls.show({p.name: p.value for p in parameters})
            return
        with self._parameters:
            self.controls = Controls(self._server.gui, parameters, self._actions.change)

    def show_state(self, sections: Mapping[str, Mapping[str, str]]) -> None:
        """Tables of names and values under headings."""
        parts = []
        for heading, values in sections.items():
            rows = ''.join(
                f'<tr><td style="color:{NEUTRAL};padding:1px 10px 1px 0;white-space:nowrap;'
                f'vertical-align:top">{html.escape(name)}</td>'
                f'<td style="padding:1px 0;overflow-wrap:anywhere">{html.escape(value)}</td></tr>'
                for name, value in values.items()
            )
            parts.append(
                f'<div style="font-weight:600;margin:8px 0 2px">{html.escape(heading)}</div>'
                f'<table style="border-collapse:collapse;width:100%">{rows}</table>'
            )
        self._write(
            self._state,
            f'<div id="state" style="{FONT};padding:0 10px">{"".join(parts)}</div>',
        )

    def show_layers(self, layers: Layers) -> None:
        """The counts layer by layer, under the cameras, with the legend."""
        most = max([1, *(count for _, count in layers.steps)])
        legend = ''.join(
            f'<span style="white-space:nowrap;margin-right:10px">{_swatch(COLOURS[name])}'
            f'{text}{_count(layers.sets.get(name))}</span>'
            for name, text in LEGEND.items()
        )
        bars = ''.join(
            f'<div style="flex:1;min-width:0;text-align:center"><div>{count}</div>'
            f'<div style="height:{max(BAR * count / most, 1):.1f}px;margin:0 2px;'
            f'border-radius:2px 2px 0 0;background:#0072b2"></div></div>'
            for _, count in layers.steps
        )
        names = ''.join(
            f'<div style="flex:1;min-width:0;text-align:center;color:{NEUTRAL}">'
            f'{html.escape(where)}</div>'
            for where, _ in layers.steps
        )
        self._write(
            self._kept,
            f'<div id="layers" style="{FONT};padding:0 10px 6px">'
            f'<div style="line-height:1.6">{legend}</div>'
            f'<div style="margin:2px 0 4px">{html.escape(layers.headline)}</div>'
            f'<div style="display:flex;align-items:flex-end;line-height:1.2">{bars}</div>'
            f'<div style="display:flex;line-height:1.3">{names}</div></div>',
        )

    def show_cameras(self, images: Mapping[str, np.ndarray]) -> None:
        """Camera images, uint8 ``[height, width, 3]``, side by side."""
        if not images:
            return
        height = max(image.shape[0] for image in images.values())
        parts: list[np.ndarray] = []
        for image in images.values():
            if parts:
                parts.append(np.full((height, GAP, 3), 255, np.uint8))
            padded = np.full((height, image.shape[1], 3), 255, np.uint8)
            padded[: image.shape[0]] = image
            parts.append(padded)
        self._cameras.image = np.concatenate(parts, axis=1)

    def show_robot(self, robot: RobotModel) -> None:
        """Draw another arm."""
        scene = self._server.scene
        for handle in self._robot:
            handle.remove()
        self._robot = [
            scene.add_frame(f'/robot/{number}', show_axes=False) for number in robot.joints
        ]
        for index, visual in enumerate(robot.visuals):
            scene.add_mesh_simple(
                f'/robot/{visual.joint}/{index}',
                vertices=np.asarray(visual.mesh.vertices, np.float32),
                faces=np.asarray(visual.mesh.faces, np.uint32),
                color=visual.colour,
                flat_shading=False,
                position=visual.position,
                wxyz=visual.wxyz,
            )
        self.move_robot(robot)

    def move_robot(self, robot: RobotModel) -> None:
        """Put the arm where the model's joints are."""
        with self._server.atomic():
            for number, handle in enumerate(self._robot):
                handle.position, handle.wxyz = robot.pose_of_joint(number)

    def show_objects(self, objects: Sequence[Object]) -> None:
        """The things in the scene; those not named any more are removed."""
        with self._server.atomic():
            gone = set(self._objects) - {thing.name for thing in objects}
            for thing in objects:
                look = (thing.kind, thing.size, thing.rgba)
                known = self._objects.get(thing.name)
                if known is None or known[0] != look:
                    if known is not None:
                        known[1].remove()
                    self._objects[thing.name] = look, self._draw(thing)
                handle = self._objects[thing.name][1]
                handle.position, handle.wxyz = thing.position, thing.wxyz
            for name in gone:
                self._objects.pop(name)[1].remove()

    def _draw(self, thing: Object) -> Any:
        if thing.kind == 'box':
            mesh = trimesh.creation.box(thing.size)
        elif thing.kind == 'cylinder':
            mesh = trimesh.creation.cylinder(0.5, 1.0, sections=48)
            mesh.apply_scale(thing.size)
        else:
            mesh = trimesh.creation.icosphere(3, 0.5)
            mesh.apply_scale(thing.size)
        return self._server.scene.add_mesh_simple(
            f'/objects/{thing.name}',
            vertices=np.asarray(mesh.vertices, np.float32),
            faces=np.asarray(mesh.faces, np.uint32),
            color=tuple(round(255 * min(max(c, 0.0), 1.0)) for c in thing.rgba[:3]),
            opacity=thing.rgba[3] if thing.rgba[3] < 1.0 else None,
            flat_shading=thing.kind == 'box',
        )

    def show_path(self, points: np.ndarray | None) -> None:
        """The chunk's predicted path, ``[n, 3]`` in metres; ``None`` for none."""
        if points is None or len(points) < 2:
            if self._path is not None:
                self._path.visible = False
            return
        segments = np.stack([points[:-1], points[1:]], axis=1).astype(np.float32)
        if self._path is not None and self._path.points.shape == segments.shape:
            self._path.points, self._path.visible = segments, True
            return
        self._path = self._server.scene.add_line_segments(
            '/path', segments, colors=PATH_COLOUR, line_width=5.0
        )

    def show_points(self, points: np.ndarray, colours: np.ndarray) -> None:
        """The kept patches where their depth is known: ``[n, 3]`` in metres, uint8 ``[n, 3]``."""
        self._points = self._server.scene.add_point_cloud(
            '/kept', points.astype(np.float32), colours, point_size=0.005, point_shape='circle'
        )


FONT = 'font-size:12.5px;line-height:1.45;font-variant-numeric:tabular-nums'


def _calling(action: Callable[[], None]) -> Any:
    async def call(_: Any) -> None:
        action()

    return call


def _note(text: str) -> str:
    return f'<div style="{FONT};color:{NEUTRAL};padding:4px 10px">{html.escape(text)}</div>'


def _swatch(colour: Sequence[int]) -> str:
    return (
        f'<span style="display:inline-block;width:10px;height:10px;border-radius:2px;'
        f'background:rgb{tuple(colour)};margin-right:4px"></span>'
    )


def _count(count: int | None) -> str:
    return '' if count is None else f' <b>{count}</b>'
