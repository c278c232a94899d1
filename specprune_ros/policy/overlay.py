"""Images of one query: what was kept, coloured by the set that kept it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:  # viewers have no PyTorch
    from torch import Tensor

# Of the sets that keep a patch: colour-blind safe (Okabe and Ito). Other sets take OTHER.
COLOURS = {
    'global': (230, 159, 0),
    'dynamic': (0, 114, 178),
    'local': (0, 158, 115),
    'fill': (240, 228, 66),
}
OTHER = (204, 121, 167)
TINT = 0.16  # share of the colour on a kept patch
EDGE = 0.85  # the same on its rim
DIM = 0.32  # brightness left to a dropped patch


@dataclass(frozen=True)
class Overlay:
    """What an image of the query needs: the policy's images and the patches kept, by set.

    ``images``: uint8 ``[cameras, height, width, 3]``; ``sets`` and ``kept``: bool ``[V]``.
    """

    images: np.ndarray
    grid: tuple[int, int]
    sets: Mapping[str, np.ndarray]
    kept: np.ndarray

    @classmethod
    def of(
        cls,
        images: Tensor,
        grid: tuple[int, int],
        sets: Mapping[str, Tensor],
        left: Tensor | None,
    ) -> Overlay:
        """From the tensors of a query; ``left`` are the patch ids it ended with (``None``: all).
        Copies: an engine may use their places again.
        """
        pixels = images.cpu().numpy()
        if pixels.dtype != np.uint8:
            pixels = pixels.clip(0, 255).round().astype(np.uint8)
        kept = np.full(len(pixels) * grid[0] * grid[1], left is None)
        if left is not None:
            ids = left.cpu().numpy()
            kept[ids[ids >= 0]] = True
        return cls(pixels, grid, {n: m.cpu().numpy().copy() for n, m in sets.items()}, kept)


def patch_colours(overlay: Overlay, camera: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour per patch, float ``[rows, columns, 3]``, and which patches have one, bool.

    A patch in several sets takes the mean of their colours; kept patches that no set requested
    (fill) have the fill colour.
    """
    rows, columns = overlay.grid
    span = slice(camera * rows * columns, (camera + 1) * rows * columns)
    total = np.zeros((rows * columns, 3))
    count = np.zeros(rows * columns)
    for name, members in overlay.sets.items():
        inside = members[span]
        total[inside] += COLOURS.get(name, OTHER)
        count[inside] += 1
    bare = overlay.kept[span] & (count == 0)
    total[bare] += COLOURS['fill']
    count[bare] += 1
    coloured = count > 0
    total[coloured] /= count[coloured, None]
    return total.reshape(rows, columns, 3), coloured.reshape(rows, columns)


def draw(overlay: Overlay, camera: int, zoom: int = 1) -> np.ndarray:
    """One camera's image, uint8 ``[zoom * height, zoom * width, 3]``.

    Kept patches are tinted and rimmed in the colour of the set that kept them, dropped ones are
    dark. A query that dropped nothing gives the image unchanged.
    """
    image = overlay.images[camera]
    if zoom > 1:
        image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    if overlay.kept.all():
        return np.array(image)
    rows, columns = overlay.grid
    kept = overlay.kept.reshape(-1, rows, columns)[camera]
    height, width = image.shape[0] // rows, image.shape[1] // columns
    size = (columns * width, rows * height)
    image = np.ascontiguousarray(image[: size[1], : size[0]])

    def spread(patches: np.ndarray) -> np.ndarray:
        return cv2.resize(patches.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)

    colours, coloured = patch_colours(overlay, camera)
    tint = spread(np.rint(colours))
    rim = np.zeros((height, width), np.uint8)
    rim[[0, -1], :] = rim[:, [0, -1]] = 1
    drawn = cv2.addWeighted(image, 1 - TINT, tint, TINT, 0)
    edge = cv2.addWeighted(image, 1 - EDGE, tint, EDGE, 0)
    cv2.copyTo(edge, np.tile(rim, (rows, columns)), drawn)
    cv2.copyTo(image, spread(kept & ~coloured), drawn)
    cv2.copyTo(cv2.transform(image, np.full((3, 3), DIM / 3)), spread(~kept), drawn)
    return drawn
