"""The instructions the simulated arm is given, and the vocabulary that covers them."""

from __future__ import annotations

from collections.abc import Iterator

from specprune_ros.sim.arm.layout import COLOURS

# Paraphrases of each task family; {cube} and {plate} are colours.
PHRASES = {
    'move': (
        'move above the {cube} cube',
        'hover over the {cube} cube',
        'go above the {cube} cube',
    ),
    'lift': (
        'lift the {cube} cube',
        'pick up the {cube} cube',
        'raise the {cube} cube',
    ),
    'put': (
        'put the {cube} cube on the {plate} plate',
        'place the {cube} cube on the {plate} plate',
        'set the {cube} cube on the {plate} plate',
    ),
    'two_step': (
        'put the {cube} cube on the {plate} plate, then the {cube2} one on the {plate2} one',
        'place the {cube} cube on the {plate} plate, then the {cube2} one on the {plate2} one',
        'set the {cube} cube on the {plate} plate, then the {cube2} one on the {plate2} one',
    ),
}


def instructions() -> Iterator[str]:
    """Every instruction there is."""
    for family, phrases in PHRASES.items():
        for phrase in phrases:
            for cube in COLOURS:
                for plate in COLOURS if family in ('put', 'two_step') else ('',):
                    for cube2 in COLOURS if family == 'two_step' else ('',):
                        for plate2 in COLOURS if family == 'two_step' else ('',):
                            if not cube2 or (cube2 != cube and plate2 != plate):
                                yield phrase.format(
                                    cube=cube, plate=plate, cube2=cube2, plate2=plate2
                                )


def vocabulary() -> tuple[str, ...]:
    """All words of the instructions, in order of appearance."""
    return tuple(
        dict.fromkeys(word for instruction in instructions() for word in instruction.split())
    )


def compounds() -> tuple[str, ...]:
    """Noun phrases that are one token each: ``red cube``, ``blue plate``, ...

    FiLM sees the mean of the instruction's embeddings, in which "the red cube on the blue plate"
    and "the blue cube on the red plate" are the same; as one token a colour stays with its noun.
    """
    forms = ('{} cube', '{} plate', '{} one', 'on the {} one')
    return tuple(form.format(colour) for form in forms for colour in COLOURS)
