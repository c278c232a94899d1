"""Which patches of an image one query kept, as a small mono8 image: one pixel per patch.

A pixel of 0 was dropped. Otherwise the highest bit is set, and the lower ones name the sets that
requested the patch, so that it can be coloured as in the overlay.
"""

from __future__ import annotations

import array

import numpy as np
from sensor_msgs.msg import Image

from specprune_ros.nodes.common.images import ImageError
from specprune_ros.policy.overlay import COLOURS, OTHER, Overlay

KEPT = 128
BITS = {'global': 1, 'dynamic': 2, 'local': 4}
OTHER_BIT = 8  # a set of another pruner
MAX_PATCHES = 128  # on a side


def encode(kept: np.ndarray, sets: dict[str, np.ndarray]) -> np.ndarray:
    """Bool ``[rows, columns]`` of what was kept, and by which set, to uint8 of the same shape."""
    mask = np.where(kept, KEPT, 0).astype(np.uint8)
    for name, members in sets.items():
        mask[kept & members] |= BITS.get(name, OTHER_BIT)
    return mask


def of_overlay(overlay: Overlay, camera: int) -> Image:
    """The message about one camera of a query; the header is left to the caller."""
    shape = (-1, *overlay.grid)
    sets = {name: members.reshape(shape)[camera] for name, members in overlay.sets.items()}
    return to_message(encode(overlay.kept.reshape(shape)[camera], sets))


def colours(mask: np.ndarray) -> np.ndarray:
    """RGB, uint8 ``[..., 3]``: the mean colour of a patch's sets; dropped ones are black."""
    total, count = np.zeros((*mask.shape, 3)), np.zeros(mask.shape)
    for name, bit in (*BITS.items(), ('', OTHER_BIT)):
        inside = (mask & bit) > 0
        total[inside] += COLOURS.get(name, OTHER)
        count[inside] += 1
    bare = (mask >= KEPT) & (count == 0)
    total[bare] += COLOURS['fill']
    count[bare] += 1
    return np.rint(total / np.maximum(count, 1)[..., None]).astype(np.uint8)


def to_message(mask: np.ndarray) -> Image:
    """A mono8 message; the header is left to the caller."""
    rows, columns = mask.shape
    message = Image(height=rows, width=columns, encoding='mono8', step=columns)
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(mask).tobytes())
    message.data = data
    return message


def from_message(message: Image) -> np.ndarray:
    """The mask, uint8 ``[rows, columns]``. Raises :class:`ImageError`."""
    rows, columns = message.height, message.width
    if message.encoding != 'mono8':
        raise ImageError(f"the patch mask's encoding is '{message.encoding}'; mono8 is needed")
    if not (1 <= rows <= MAX_PATCHES and 1 <= columns <= MAX_PATCHES):
        raise ImageError(f'the patch mask is {columns} x {rows}; 1 to {MAX_PATCHES} on a side')
    if message.step < columns or len(message.data) != message.step * rows:
        raise ImageError(
            f'the patch mask has {len(message.data)} bytes; step {message.step} x height {rows} '
            f'is {message.step * rows}, and a row needs {columns}'
        )
    return np.frombuffer(message.data, np.uint8).reshape(rows, message.step)[:, :columns].copy()
