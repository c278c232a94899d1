"""The last minute of queries as plots."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import viser
from viser import uplot

LENGTH = 400  # queries shown
SPAN = 60.0  # s shown
HEIGHT = 80  # pixels of one plot
GREY, BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    '#8a8f98',
    '#0072b2',
    '#e69f00',
    '#009e73',
    '#d55e00',
    '#cc79a7',
    '#56b4e9',
)
MODES = {'dense': GREY, 'coarse': BLUE, 'fine': ORANGE, 'skipped': PURPLE}
STAGES = {'preprocess': SKY, 'vision': GREEN, 'decoder': BLUE, 'head': ORANGE, 'rest': GREY}


@dataclass(frozen=True)
class Query:
    """One query, for the plots: seconds, tokens, shares, m/s, rad/s; NaN where unknown."""

    time: float
    mode: str
    tokens_in: float
    tokens_mean: float
    flops_ratio: float
    prior_recall: float
    stages: tuple[float, float, float, float]
    total: float
    speed_translation: float
    speed_rotation: float
    threshold_translation: float
    threshold_rotation: float


class Timelines:
    """Plots of the newest queries, in the container that is open when this is made."""

    def __init__(self, gui: viser.GuiApi) -> None:
        self._queries: deque[Query] = deque(maxlen=LENGTH)
        self._tokens = _Plot(
            gui,
            'vision tokens, mean over layers',
            [_line('in', GREY, dash=True), *(_dots(m, colour) for m, colour in MODES.items())],
        )
        self._shares = _Plot(
            gui, 'percent', [_line('operations of dense', BLUE), _line('recall of prior', GREEN)]
        )
        # Drawn from the whole down, so that each stage covers what is not its own or below it.
        self._latency = _Plot(
            gui, 'query, ms', [_area(name, colour) for name, colour in reversed(STAGES.items())]
        )
        self._translation = _Plot(
            gui, 'tool, m/s', [_line('speed', BLUE), _line('slow below', VERMILION, dash=True)]
        )
        self._rotation = _Plot(
            gui, 'tool, rad/s', [_line('speed', BLUE), _line('slow below', VERMILION, dash=True)]
        )

    def add(self, query: Query) -> None:
        """Take one query; one that is older than the last starts anew."""
        if self._queries and query.time < self._queries[-1].time:
            self._queries.clear()
        self._queries.append(query)

    def clear(self) -> None:
        """Forget all queries."""
        self._queries.clear()

    def draw(self) -> None:
        """Send what is known to the page."""
        newest = self._queries[-1].time if self._queries else 0.0
        shown = [q for q in self._queries if q.time >= newest - SPAN]
        if len(shown) < 2:
            return
        time = np.array([q.time - newest for q in shown])
        self._tokens.show(
            time,
            [q.tokens_in for q in shown],
            *([q.tokens_mean if q.mode == mode else math.nan for q in shown] for mode in MODES),
        )
        self._shares.show(
            time, [100 * q.flops_ratio for q in shown], [100 * q.prior_recall for q in shown]
        )
        parts = np.array([[*q.stages, max(q.total - sum(q.stages), 0.0)] for q in shown])
        sums = 1e3 * np.cumsum(parts, axis=1)
        self._latency.show(time, *(sums[:, i] for i in reversed(range(len(STAGES)))))
        self._translation.show(
            time,
            [q.speed_translation for q in shown],
            [q.threshold_translation for q in shown],
        )
        self._rotation.show(
            time,
            [q.speed_rotation for q in shown],
            [q.threshold_rotation for q in shown],
        )


class _Plot:
    """One plot under a caption that is its legend. From zero to a round number above all values:
    uPlot's own ranges do not cope with values that are missing.
    """

    def __init__(self, gui: viser.GuiApi, title: str, series: list[uplot.Series]) -> None:
        key = ' '.join(
            f'<span style="white-space:nowrap;margin-left:9px"><span style="color:{s["stroke"]}">'
            f'{"┅" if "dash" in s else "■"}</span> {s["label"]}</span>'
            for s in series
        )
        gui.add_html(
            f'<div style="font-size:11.5px;line-height:1.3;padding:2px 10px 0"><b>{title}</b>'
            f'{key}</div>'
        )
        self._most = 1.0
        self._handle = gui.add_uplot(
            (np.array([-SPAN, 0.0]), *(np.full(2, math.nan) for _ in series)),
            (uplot.Series(label='s'), *series),
            scales=self._scales(),
            axes=(
                uplot.Axis(size=20, gap=1, ticks=uplot.Axis_Ticks(size=3)),
                uplot.Axis(size=38, gap=2, ticks=uplot.Axis_Ticks(size=3)),
            ),
            height=HEIGHT,
            padding=(6, 6, 0, 0),
            legend=uplot.Legend(show=False),
            cursor=uplot.Cursor(show=False),
        )

    def show(self, time: np.ndarray, *columns: Sequence[float] | np.ndarray) -> None:
        """Columns of values over time in seconds."""
        values = np.array(columns, np.float64)
        values[~np.isfinite(values)] = math.nan
        highest = np.nanmax(values, initial=0.0)
        most = _above(float(highest)) if highest > 0 else 1.0
        if most != self._most:
            self._most = most
            self._handle.scales = self._scales()
        self._handle.data = (time, *values)

    def _scales(self) -> dict[str, uplot.Scale]:
        return {
            'x': uplot.Scale(time=False, auto=False, range=(-SPAN, 0.0)),
            'y': uplot.Scale(auto=False, range=(0.0, self._most)),
        }


def _above(value: float) -> float:
    """The next round number: 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(f * power for f in (1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15) if f * power >= value)


def _line(label: str, colour: str, dash: bool = False) -> uplot.Series:
    series = uplot.Series(
        label=label, stroke=colour, width=1.5, points=uplot.Series_Points(show=False)
    )
    if dash:
        series['dash'] = (5.0, 4.0)
    return series


def _dots(label: str, colour: str) -> uplot.Series:
    points = uplot.Series_Points(show=True, size=4, fill=colour, stroke=colour, width=0)
    return uplot.Series(label=label, stroke=colour, width=0, points=points)


def _area(label: str, colour: str) -> uplot.Series:
    return uplot.Series(
        label=label, stroke=colour, fill=colour, width=1, points=uplot.Series_Points(show=False)
    )
