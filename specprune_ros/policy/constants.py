"""Colours of the sets that keep a patch. Kept apart, so that viewers need not import a model."""

from __future__ import annotations

# A colour-blind safe palette (Okabe and Ito), one colour per set. Other sets take OTHER.
COLOURS = {
    'global': (230, 159, 0),
    'dynamic': (0, 114, 178),
    'local': (0, 158, 115),
    'fill': (240, 228, 66),
}
OTHER = (204, 121, 167)


# Larger images are refused: nothing a policy of 224 pixels can use, and a way to exhaust memory.
MAX_SIDE = 4096
MIN_SIDE = 16
MAX_INSTRUCTION = 1000  # characters
MAX_ACTION = 1000.0  # m or rad of one action; the executor refuses more
