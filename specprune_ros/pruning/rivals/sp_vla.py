"""SP-VLA (arXiv 2506.12723): contours and what the text attends to stay; steady motion needs no
model.

Here are the tokens (Canny edges on tensors, attention at one layer) and the scheduler that decides
whether the model runs.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specprune_ros.pruning.interface import (
    Mode,
    PruneSchedule,
    QueryContext,
    RowGroup,
    Selection,
    TokenLayout,
)
from specprune_ros.pruning.params import ParamError, PruningParams, param, share
from specprune_ros.pruning.rivals.base import BasePrunePass, at_boundary
from specprune_ros.pruning.scores import image_to_text
from specprune_ros.pruning.specprune import rows_or_action


def canny(grey: Tensor, low: float = 100.0, high: float = 200.0, reach: int = 8) -> Tensor:
    """Edge mask bool ``[n, height, width]`` of grey images float32 ``[n, height, width]``,
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


def _blur(images: Tensor) -> Tensor:
    offsets = torch.arange(-2, 3, device=images.device, dtype=images.dtype)
    line = torch.exp(-(offsets**2) / (2 * 1.4**2))
    line = line / line.sum()
    padded = F.pad(images, (2, 2, 2, 2), mode='replicate')
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


def edge_share(images: Tensor, grid: tuple[int, int], low: float, high: float) -> Tensor:
    """Share of edge pixels in each patch, float32 ``[V]``, of uint8 ``[cameras, h, w, 3]``."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    grey = images.float() @ weights
    edges = canny(grey, low, high).float()
    rows, columns = grid
    cameras, height, width = edges.shape
    tiles = edges.view(cameras, rows, height // rows, columns, width // columns)
    return tiles.mean((2, 4)).reshape(-1)


def threshold(speed: float | None, params: PruningParams) -> float:
    """Attention share of the best token below which a token is not semantic.

    Full at ``sp_vla_speed`` m/s and above, a quarter of it at rest or where the speed is unknown.
    """
    share = 0.25
    if speed is not None and params.sp_vla_speed > 0:
        share = min(1.0, max(0.25, speed / params.sp_vla_speed))
    return params.sp_vla_threshold * share


@dataclass(frozen=True)
class SPVLAParams:
    """Parameters of SPVLA."""

    sp_vla_layer: int = param(
        2,
        'Layer after which SP-VLA drops.',
        'ours; not printed',
        unit='layer of 32',
        low=1,
        high=31,
    )
    sp_vla_threshold: float = share(
        0.4, 'Attention, as a share of the best token, that makes a token semantic.', 'ours'
    )
    sp_vla_speed: float = param(
        0.35,
        'Speed from which the threshold holds in full; it relaxes to a quarter at rest.',
        'ours; the paper relaxes it at low speed',
        unit='m/s',
        low=0.0,
        high=10.0,
    )
    sp_vla_edges: float = share(
        0.1, 'Share of edge pixels that makes a patch spatial.', 'ours; not printed'
    )
    sp_vla_low: float = param(
        100.0, 'Lower Canny threshold.', 'a usual choice', low=0.0, high=2000.0
    )
    sp_vla_high: float = param(
        200.0, 'Upper Canny threshold.', 'a usual choice', low=0.0, high=2000.0
    )

    @staticmethod
    def check_together(params: PruningParams) -> None:
        """Raise :class:`ParamError` where values contradict each other."""
        if params.sp_vla_low > params.sp_vla_high:
            raise ParamError('sp_vla_low', f'{params.sp_vla_low:g} is above sp_vla_high')


class SPVLA:
    """Spatial and semantic tokens. Shapes depend on the data."""

    name = 'sp_vla'
    parameters = SPVLAParams

    def plan(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> PruneSchedule:
        """Observe the text at one layer, prune behind it."""
        if mode is Mode.DENSE:
            return PruneSchedule()
        boundary = max(1, at_boundary(params.sp_vla_layer, layout, 'sp_vla_layer'))
        group = rows_or_action(layout, 'text', [])
        return PruneSchedule({boundary: (group,)}, {boundary: None})

    def begin(self, context: QueryContext) -> SPVLAPass:
        """Start a pass."""
        return SPVLAPass(context, self.plan(context.layout, context.params, context.mode))


class SPVLAPass(BasePrunePass):
    """One query of :class:`SPVLA`."""

    score: Tensor | None = None

    def observe(self, layer: int, group: RowGroup, attention: Tensor) -> None:
        """Attention of the text."""
        self.score = image_to_text(attention)
        self.outcome.scores['attention'] = self.score

    def choose(self, boundary: int, rows: Tensor) -> Selection:
        """Contours, and whatever draws enough attention; the best token always."""
        params, images = self.params, self.context.images
        assert self.score is not None
        limit = threshold(self.context.speed_xyz, params)
        keep = self.score >= limit * self.score.max()
        self.outcome.sets['semantic'] = keep
        if images is None:
            self.outcome.notes.append('sp_vla: no images, so no spatial tokens')
        else:
            share = edge_share(
                images.to(rows.device), self.layout.grid, params.sp_vla_low, params.sp_vla_high
            )
            spatial = share >= params.sp_vla_edges
            self.outcome.sets['spatial'] = spatial
            keep = keep | spatial
        return Selection(torch.nonzero(keep).squeeze(1))


class RidgeScheduler:
    """Decides whether the model must run, and predicts actions when it need not.

    arXiv 2506.12723 section 3.2: the light generator is used if the last action's translation
    speed lies in ``[v_min, v_max]`` (m/s) and more than ``share`` of the last ``size`` actions
    came from the model. The generator is a ridge regression of each action dimension on time over
    that buffer; ``strength`` penalises the slope only.
    """

    def __init__(
        self,
        size: int = 6,
        v_min: float = 0.1,
        v_max: float = 1.0,
        share: float = 0.5,
        strength: float = 1.0,
    ) -> None:
        if size < 2:
            raise ValueError(f'size must be at least 2 actions, got {size}')
        if not 0 <= v_min <= v_max:
            raise ValueError(f'need 0 <= v_min <= v_max, got {v_min} and {v_max}')
        if strength < 0 or not 0 <= share <= 1:
            raise ValueError(f'need strength >= 0 and share in 0..1, got {strength} and {share}')
        self.size, self.v_min, self.v_max = size, v_min, v_max
        self.share, self.strength = share, strength
        self._actions: deque[tuple[Tensor, bool]] = deque(maxlen=size)

    def reset(self) -> None:
        """Forget the buffer."""
        self._actions.clear()

    def record(self, action: Tensor, from_model: bool) -> None:
        """Add one executed action, ``[D]``."""
        self._actions.append((action.detach().double().cpu(), from_model))

    def skips_model(self, speed: float | None) -> tuple[bool, str]:
        """Whether the light generator may act at this translation speed (m/s), and why."""
        if len(self._actions) < self.size:
            return False, f'{len(self._actions)} of {self.size} actions seen'
        if speed is None or not self.v_min <= speed <= self.v_max:
            return False, f'speed {speed} outside {self.v_min:g} to {self.v_max:g} m/s'
        share = sum(from_model for _, from_model in self._actions) / self.size
        if share <= self.share:
            return False, f'only {share:.0%} of the last actions came from the model'
        return True, f'gliding at {speed:.3f} m/s'

    def predict(self, steps: int) -> Tensor:
        """The next ``steps`` actions, float64 ``[steps, D]``; ValueError on a short buffer."""
        if len(self._actions) < self.size:
            raise ValueError(f'{len(self._actions)} of {self.size} actions seen')
        y = torch.stack([action for action, _ in self._actions])
        t = torch.arange(self.size, dtype=torch.float64)
        centred = t - t.mean()
        slope = (centred @ (y - y.mean(0))) / (centred @ centred + self.strength)
        ahead = torch.arange(self.size, self.size + steps, dtype=torch.float64) - t.mean()
        return y.mean(0) + ahead[:, None] * slope
