"""How much each patch of the image changed since the reference image."""

from __future__ import annotations

import torch
from torch import Tensor


def patch_cosine(now: Tensor, then: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosine between every patch and the same patch of an earlier image, from raw pixels.

    ``now`` and ``then``: uint8 ``[cameras, height, width, 3]`` as the policy saw them; ``grid``
    rows and columns of patches, which must divide height and width. Returns float32 ``[V]``,
    camera by camera, row-major, on the images' device. Two black patches are alike (1), a black
    and another one are not (0). Raw pixels as in the authors' code; P2 section 4.2 names only
    "cosine".

    Raises ValueError where shapes do not fit.
    """
    if now.shape != then.shape or now.ndim != 4:
        raise ValueError(
            f'images must share one shape [cameras, height, width, channels], '
            f'got {tuple(now.shape)} and {tuple(then.shape)}'
        )
    cameras, height, width, channels = now.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise ValueError(f'a {rows} x {columns} grid does not divide {height} x {width} pixels')

    def patches(images: Tensor) -> Tensor:
        tiles = images.reshape(cameras, rows, height // rows, columns, width // columns, channels)
        return tiles.permute(0, 1, 3, 2, 4, 5).reshape(cameras * rows * columns, -1).float()

    a, b = patches(now), patches(then)
    # Sums of products of bytes: exact in float32 up to 2^24, close enough beyond.
    dot = (a * b).sum(-1)
    norms = (a * a).sum(-1) * (b * b).sum(-1)
    same = (a == b).all(-1)
    cosine = dot * norms.clamp_min(1e-12).rsqrt()
    return torch.where(same, 1.0, torch.where(norms > 0, cosine.clamp(max=1.0), 0.0))


def changed_share(similarity: Tensor, tau: Tensor | float) -> Tensor:
    """Share of the patches whose cosine is below tau, a scalar tensor (for ``refresh_change``)."""
    return (similarity < tau).float().mean()
