"""The tasks: the instruction, the scene, and when it counts as done, by the true state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from specprune_ros.sim.arm.layout import (
    COLOURS,
    CUBE_HALF,
    CUBES,
    PLATE_HEIGHT,
    PLATES,
    Layout,
    Thing,
    random_layout,
)
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.tasks.vocabulary import PHRASES

FAMILIES = ('move', 'lift', 'put', 'two_step')
CONTROL_HZ = 20.0
TIME_LIMIT = {'move': 6.0, 'lift': 9.0, 'put': 14.0, 'two_step': 28.0}  # s
HOVER = 0.08  # m above the cube's centre that "above" aims at
HELD_S = 0.2  # s the goal must hold

Outcome = Literal['running', 'success', 'time_out', 'collision']


@dataclass(frozen=True)
class Pace:
    """How the expert moves: ``control_hz`` rows per second of at most ``shift`` m and ``turn``
    rad, each ``gain`` of the way left.
    """

    control_hz: float = CONTROL_HZ
    shift: float = 0.006
    turn: float = 0.05
    gain: float = 0.2

    @property
    def speed(self) -> float:
        """Fastest translation, m/s."""
        return self.shift * self.control_hz


SLOW = Pace()
FAST = Pace(control_hz=10.0, shift=0.02, turn=0.15, gain=0.6)


@dataclass(frozen=True)
class Task:
    """One instruction and what it means: ``cube`` and ``plate`` index the scene's layout."""

    family: str
    instruction: str
    cube: int
    plate: int | None = None
    then: tuple[int, int] | None = None

    @property
    def parts(self) -> tuple[tuple[int, int | None], ...]:
        """Cube and plate of every step."""
        return ((self.cube, self.plate), *(() if self.then is None else (self.then,)))


@dataclass(frozen=True)
class Episode:
    """A task in a scene; made wholly from ``seed``."""

    seed: int
    task: Task
    layout: Layout


def make_episode(seed: int, family: str, jitter: float = 1.0) -> Episode:
    """The episode of this family with this seed (0 or more): same seed, same episode.

    Raises ``ValueError`` for an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f'family: {family!r}, want one of {list(FAMILIES)}')
    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    puts = family in ('put', 'two_step')
    plates = 2 if puts else int(rng.integers(0, 2))
    layout = random_layout(
        rng,
        cubes=int(rng.integers(3, 5)) if puts else 4,
        plates=plates,
        distractors=int(rng.integers(0, 2)) if plates < 2 else 0,
        jitter=jitter,
    )
    cube = int(rng.integers(len(layout.cubes)))
    plate = int(rng.integers(plates)) if puts else None
    phrase = PHRASES[family][int(rng.integers(len(PHRASES[family])))]
    then = None
    if family == 'two_step':
        others = [i for i in range(len(layout.cubes)) if i != cube]
        then = int(rng.choice(others)), 1 - plate
    text = _instruction(phrase, layout, cube, plate, then)
    return Episode(seed, Task(family, text, cube, plate, then), layout)


def _instruction(
    phrase: str,
    layout: Layout,
    cube: int,
    plate: int | None,
    then: tuple[int, int] | None = None,
) -> str:
    return phrase.format(
        cube=layout.cubes[cube].colour,
        plate='' if plate is None else layout.plates[plate].colour,
        cube2='' if then is None else layout.cubes[then[0]].colour,
        plate2='' if then is None else layout.plates[then[1]].colour,
    )


def wrong_colour(episode: Episode) -> str:
    """The same instruction naming another cube of the scene; the right one still counts."""
    rng = np.random.default_rng([episode.seed, 7])
    others = [
        thing.colour for i, thing in enumerate(episode.layout.cubes) if i != episode.task.cube
    ]
    own = episode.layout.cubes[episode.task.cube].colour
    return episode.task.instruction.replace(
        f'{own} cube', f'{others[int(rng.integers(len(others)))]} cube'
    )


def named_task(world: World, instruction: str) -> Task:
    """The task an instruction names in the world's present scene, for scoring free instructions.

    Raises ``ValueError`` where the instruction is none of ours or names a thing that is not there.
    """
    layout, wanted = world.layout, instruction.strip().lower()
    for family, phrases in PHRASES.items():
        cubes = range(len(layout.cubes))
        plates = range(len(layout.plates)) if family in ('put', 'two_step') else (None,)
        steps = list(product(cubes, plates))
        thens = steps if family == 'two_step' else (None,)
        for phrase, (cube, plate), then in product(phrases, steps, thens):
            if then is not None and (then[0] == cube or then[1] == plate):
                continue
            if _instruction(phrase, layout, cube, plate, then) == wanted:
                return Task(family, wanted, cube, plate, then)
    there = ', '.join(
        [f'{thing.colour} cube' for thing in world.layout.cubes]
        + [f'{thing.colour} plate' for thing in world.layout.plates]
    )
    raise ValueError(
        f'instruction {instruction!r}: want e.g. "lift the red cube" about what is there ({there})'
    )


def layout_for(instructions: Sequence[str], seed: int = 0) -> Layout:
    """A random scene that holds every coloured cube and plate the instructions name.

    Raises ``ValueError`` where they name more than the scene can hold.
    """
    text = ' '.join(instructions).lower()
    named = {
        noun: [colour for colour in COLOURS if f'{colour} {noun}' in text]
        for noun in ('cube', 'plate')
    }
    for noun, most in (('cube', CUBES), ('plate', PLATES)):
        if len(named[noun]) > most:
            raise ValueError(
                f'instructions name {len(named[noun])} {noun}s ({", ".join(named[noun])}); '
                f'the scene holds {most}'
            )
    layout = random_layout(np.random.default_rng([seed, 5]), CUBES, plates=PLATES)

    def painted(things: tuple[Thing, ...], wanted: list[str]) -> tuple[Thing, ...]:
        colours = wanted + [t.colour for t in things if t.colour not in wanted]
        return tuple(replace(t, colour=c) for t, c in zip(things, colours, strict=False))

    return replace(
        layout,
        cubes=painted(layout.cubes, named['cube']),
        plates=painted(layout.plates, named['plate']),
    )


class Judge:
    """Follows one task; :meth:`step` once per control step. The verdict is final once given."""

    def __init__(self, world: World, task: Task, limit_s: float | None = None) -> None:
        self.world, self.task = world, task
        self.limit_s = TIME_LIMIT[task.family] if limit_s is None else limit_s
        self.started = world.time
        self.outcome: Outcome = 'running'
        self._since: float | None = None  # when the goal began to hold
        self._ground = float(world.thing_pose(f'cube{task.cube}')[0][2])

    def step(self) -> Outcome:
        """Look at the world now and say how the task stands."""
        if self.outcome != 'running':
            return self.outcome
        if not self.goal():
            self._since = None
        elif self._since is None:
            self._since = self.world.time
        if self.world.collision:
            self.outcome = 'collision'
        elif self._since is not None and self.world.time - self._since >= HELD_S - 1e-6:
            self.outcome = 'success'
        elif self.world.time - self.started >= self.limit_s - 1e-6:
            self.outcome = 'time_out'
        return self.outcome

    def goal(self) -> bool:
        """Whether the goal holds at this moment."""
        task, world = self.task, self.world
        cube, _ = world.thing_pose(f'cube{task.cube}')
        if task.family == 'move':
            tool, _ = world.tcp_pose()
            beside = math.hypot(*(tool - cube)[:2])
            return beside < 0.025 and 0.04 < tool[2] - cube[2] < 0.13
        if task.family == 'lift':
            return cube[2] - self._ground > 0.06
        return all(self._rests(cube, plate) for cube, plate in task.parts)

    def _rests(self, cube: int, plate: int) -> bool:
        """Whether a cube lies on a plate and is let go."""
        place, _ = self.world.thing_pose(f'cube{cube}')
        beside = math.hypot(*(place - self.world.thing_pose(f'plate{plate}')[0])[:2])
        rests = abs(place[2] - (PLATE_HEIGHT + CUBE_HALF)) < 0.008
        return beside < 0.05 and rests and not self.world.touches(f'cube{cube}', 'finger')
