"""What stands where in one episode, and how it is lit and seen: drawn from a seed, then fixed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

COLOURS = {
    'red': (0.80, 0.06, 0.07),
    'green': (0.10, 0.58, 0.16),
    'blue': (0.08, 0.20, 0.80),
    'yellow': (0.96, 0.84, 0.08),
    'purple': (0.48, 0.12, 0.62),
    'orange': (0.97, 0.45, 0.04),
}
CUBES, PLATES, DISTRACTORS = 4, 2, 2  # bodies the scene holds; a layout may use fewer
CUBE_HALF = 0.0225  # m
PLATE_RADIUS, PLATE_HEIGHT = 0.06, 0.008  # m
AREA_X, AREA_Y = (0.45, 0.71), (-0.263, 0.037)  # m, where things may stand (centred on the tool)
_GAP = 0.025  # m kept free between the circles around two things


@dataclass(frozen=True)
class Thing:
    """Something on the table: its colour's name, position in metres and rotation in radians."""

    colour: str
    x: float
    y: float
    yaw: float = 0.0


@dataclass(frozen=True)
class Layout:
    """One episode's start.

    ``light`` scales the lamps (1 is nominal), ``light_shift`` moves the main lamp (m), ``tint`` is
    the table's colour. ``camera_shift`` (m) and ``camera_turn`` (rad) jitter the agent camera,
    ``joint_shift`` (rad, 7) the arm's start.
    """

    cubes: tuple[Thing, ...]
    plates: tuple[Thing, ...] = ()
    distractors: tuple[Thing, ...] = ()
    light: float = 1.0
    light_shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tint: tuple[float, float, float] = (0.72, 0.62, 0.50)
    camera_shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    camera_turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    joint_shift: tuple[float, ...] = (0.0,) * 7

    def __post_init__(self) -> None:
        for name, things, most in (
            ('cubes', self.cubes, CUBES),
            ('plates', self.plates, PLATES),
            ('distractors', self.distractors, DISTRACTORS),
        ):
            if len(things) > most:
                raise ValueError(f'layout.{name}: {len(things)} given, the scene holds {most}')
            for thing in things:
                if name != 'distractors' and thing.colour not in COLOURS:
                    raise ValueError(
                        f'layout.{name}: unknown colour {thing.colour!r}, not in {list(COLOURS)}'
                    )


class NoRoom(RuntimeError):
    """The things requested do not fit on the table."""


def _place(rng: np.random.Generator, radii: list[float]) -> list[tuple[float, float]]:
    """Positions in the work area such that the circles do not touch, by rejection."""
    for _ in range(200):
        placed: list[tuple[float, float]] = []
        for radius in radii:
            for _ in range(60):
                inset = max(radius - 2 * CUBE_HALF, 0.0)  # a plate's rim stays in the arm's reach
                x = rng.uniform(AREA_X[0] + inset, AREA_X[1] - inset)
                y = rng.uniform(AREA_Y[0] + inset, AREA_Y[1] - inset)
                others = zip(placed, radii, strict=False)
                if all(math.hypot(x - u, y - v) > radius + r + _GAP for (u, v), r in others):
                    placed.append((x, y))
                    break
            else:
                break
        if len(placed) == len(radii):
            return placed
    raise NoRoom(f'no room on the table for {len(radii)} things')


def random_layout(
    rng: np.random.Generator,
    cubes: int = CUBES,
    plates: int = 0,
    distractors: int = 0,
    jitter: float = 1.0,
) -> Layout:
    """A random start: things of different colours within a kind, any rotation, jittered light.

    ``jitter`` scales the changes of light, camera, table colour and arm start; 0 gives the nominal
    scene with random placement only.
    """
    radius = CUBE_HALF * math.sqrt(2)
    spots = _place(rng, [PLATE_RADIUS] * plates + [radius] * cubes + [radius] * distractors)
    colours = list(COLOURS)

    def things(count: int) -> tuple[Thing, ...]:
        names = rng.permutation(colours)[:count]
        taken = [spots.pop(0) for _ in range(count)]
        yaws = rng.uniform(-math.pi, math.pi, count)
        return tuple(
            Thing(str(n), float(x), float(y), float(a))
            for n, (x, y), a in zip(names, taken, yaws, strict=True)
        )

    on_plates, on_table, others = things(plates), things(cubes), things(distractors)

    def spread(scale: float, size: int) -> tuple[float, ...]:
        return tuple(float(v) for v in jitter * scale * rng.uniform(-1, 1, size))

    base, tint = spread(0.08, 1)[0], spread(0.04, 3)
    return Layout(
        cubes=on_table,
        plates=on_plates,
        distractors=others,
        light=1.0 + spread(0.2, 1)[0],
        light_shift=spread(0.5, 3),
        tint=tuple(c + base + t for c, t in zip((0.72, 0.62, 0.50), tint, strict=True)),
        camera_shift=spread(0.02, 3),
        camera_turn=spread(0.015, 3),
        joint_shift=spread(0.04, 7),
    )
