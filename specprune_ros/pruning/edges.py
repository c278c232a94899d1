"""Canny edges on tensors, for SP-VLA's spatial tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def canny(grey: Tensor, low: float = 100.0, high: float = 200.0, reach: int = 8) -> Tensor:
    """Edge mask bool ``[n, height, width]`` of grey pictures float32 ``[n, height, width]``,
    0-255.

    Gaussian blur (5 x 5, sigma 1.4), Sobel gradients, thinning across the edge, two thresholds.
    ``reach``: how many pixels a strong edge may follow a weak one; bounded so that no loop waits
    for the data (Canny 1986 follows without bound).
    """
    blurred = _blur(grey[:, None])
    kernel = grey.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = F.pad(blurred, (1, 1, 1, 1), mode='replicate')
    gx = F.conv2d(padded, kernel[None, None])[:, 0]
    gy = F.conv2d(padded, kernel.T.contiguous()[None, None])[:, 0]
    size = torch.hypot(gx, gy)
    thin = size * _is_ridge(size, torch.atan2(gy, gx))
    strong, weak = thin >= high, thin >= low
    for _ in range(reach):
        grown = F.max_pool2d(strong[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
        strong = grown & weak
    return strong


def _blur(pictures: Tensor) -> Tensor:
    offsets = torch.arange(-2, 3, device=pictures.device, dtype=pictures.dtype)
    line = torch.exp(-(offsets**2) / (2 * 1.4**2))
    line = line / line.sum()
    padded = F.pad(pictures, (2, 2, 2, 2), mode='replicate')
    return F.conv2d(F.conv2d(padded, line[None, None, None]), line[None, None, :, None])


def _is_ridge(size: Tensor, angle: Tensor) -> Tensor:
    """Where the gradient is not smaller than its two neighbours along its own direction."""
    sector = torch.round(angle / (math.pi / 4)).long() % 4
    padded = F.pad(size, (1, 1, 1, 1))
    height, width = size.shape[1:]

    def shifted(dy: int, dx: int) -> Tensor:
        return padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    ridge = torch.zeros_like(size, dtype=torch.bool)
    for index, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        highest = (size >= shifted(dy, dx)) & (size > shifted(-dy, -dx))
        ridge |= highest & (sector == index)
    return ridge


def edge_share(pictures: Tensor, grid: tuple[int, int], low: float, high: float) -> Tensor:
    """Share of edge pixels in each patch, float32 ``[V]``, of uint8 ``[cameras, h, w, 3]``."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=pictures.device)
    grey = pictures.float() @ weights
    edges = canny(grey, low, high).float()
    rows, columns = grid
    cameras, height, width = edges.shape
    tiles = edges.view(cameras, rows, height // rows, columns, width // columns)
    return tiles.mean((2, 4)).reshape(-1)
