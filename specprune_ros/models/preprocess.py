"""Camera images to network input, on the authors' path (``docs/how-to/checkpoints.md``) without
TensorFlow.

Stages, each a function on uint8 RGB: JPEG round trip, Lanczos-3 resize, centre crop of 90 % area
with bilinear sampling, then normalisation per tower.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from specprune_ros.models.config import CROP_AREA, PolicyConfig

MAX_SIDE = 4096


class ImageError(ValueError):
    """An image the policy cannot take; the message says what would be right."""


@dataclass(frozen=True)
class Pixels:
    """``tensor``: float ``[cameras, 3 * towers, S, S]``, normalised per tower. ``images``: uint8
    ``[cameras, S, S, 3]`` RGB as the policy sees them (after the crop), for frame differences.
    """

    tensor: Tensor
    images: Tensor


class Preprocessor:
    """Images of all cameras to :class:`Pixels`.

    ``fast`` leaves out the JPEG round trip (the robot's images never were JPEG files); ``note``
    then says so. Resizing, cropping and normalising run on ``device``.
    """

    def __init__(
        self,
        config: PolicyConfig,
        device: torch.device | str = 'cpu',
        dtype: torch.dtype = torch.float32,
        fast: bool = False,
    ) -> None:
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self.jpeg = config.jpeg and not fast
        skipped = config.jpeg and fast
        self.note = 'fast images: the JPEG round trip is left out' if skipped else ''
        shape = (len(config.towers), 3, 1, 1)
        # lerobot's resize does not round to whole numbers.
        rounds = not config.resize.startswith('pad_bilinear')
        self.seen_dtype = torch.uint8 if rounds else torch.float32
        self.mean, self.std = (
            torch.tensor([getattr(tower, name) for tower in config.towers])
            .reshape(shape)
            .to(self.device)
            for name in ('mean', 'std')
        )
        # A tensor, not a Python number: CUDA turns division by a number into a product.
        self.full = torch.tensor(255.0, device=self.device)

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Pixels:
        """One uint8 ``[H, W, 3]`` RGB array per camera, in the configuration's order.

        Raises ``ImageError``.
        """
        cameras = self.config.cameras
        check_count(len(images), cameras)
        seen = torch.stack([self.image(p, name) for p, name in zip(images, cameras, strict=True)])
        return Pixels(self.normalise(seen), seen)

    def image(self, image: NDArray[np.uint8], name: str = 'image') -> Tensor:
        """One camera's image as the policy sees it, ``[S, S, 3]`` in 0..255 on the device, of
        :attr:`seen_dtype`.
        """
        check_image(image, name)
        config, side = self.config, self.config.image_size
        if config.resize.startswith('pad_bilinear'):
            outside = -255.0 if config.resize == 'pad_bilinear_04' else 0.0
            return resize_with_pad(self._upload(image), side, outside)
        if config.resize == 'pad_pillow':
            return self._upload(resize_with_pad_pillow(image, side))
        if config.pre_resize:
            image = self._stretch(image, config.pre_resize)
        if config.resize == 'pad_bicubic':
            tower = config.towers[0]
            padded = pad_square(image, tuple(int(255 * m) for m in tower.mean))
            return self._upload(resize_bicubic(padded, side))
        if config.resize == 'square_lanczos':
            return self._upload(square_lanczos(image, side))
        ready = image.shape[:2] == (side, side) and not config.reencode
        if self.jpeg and not ready:
            image = jpeg_round_trip(image)
        if config.resize == 'bicubic':
            image, ready = resize_bicubic(image, side), True
        image = self._upload(image)
        if not ready:
            image = resize_lanczos3(image, side)
        return center_crop(image) if config.center_crop else image

    def _stretch(self, image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
        """To a square, as the client of the checkpoint's benchmark does."""
        if self.config.pre_filter == 'bicubic':
            return resize_bicubic(image, side)
        return resize_opencv(image, side, self.config.pre_filter)

    def _upload(self, image: NDArray[np.uint8]) -> Tensor:
        """On the device. A GPU copies from pinned memory, in the current stream and without the
        host waiting; PyTorch keeps that memory until the copy is done.
        """
        image = torch.from_numpy(np.ascontiguousarray(image))
        if self.device.type != 'cuda':
            return image.to(self.device)
        return image.pin_memory().to(self.device, non_blocking=True)

    def normalise(self, images: Tensor) -> Tensor:
        """``[N, S, S, 3]`` in 0..255 to ``[N, 3 * towers, S, S]``: (x / 255 - mean) / std."""
        x = images.permute(0, 3, 1, 2).to(torch.float32) / self.full
        x = (x[:, None] - self.mean) / self.std
        return x.flatten(1, 2).to(self.dtype)


def check_count(images: int, cameras: Sequence[str]) -> None:
    """Raise ``ImageError`` unless there is one image for each camera."""
    if images != len(cameras):
        raise ImageError(
            f'{images} images given, the policy takes {len(cameras)}: {", ".join(cameras)}'
        )


def check_image(image: NDArray[np.uint8], name: str = 'image') -> None:
    """Raise ``ImageError`` unless it is uint8 ``[H, W, 3]`` with sides of 1 to 4096 pixels."""
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
    ):
        kind = getattr(image, 'dtype', type(image).__name__)
        raise ImageError(
            f'{name}: must be a uint8 array [height, width, 3] (RGB), is {kind} '
            f'{list(getattr(image, "shape", []))}'
        )
    if not all(0 < side <= MAX_SIDE for side in image.shape[:2]):
        raise ImageError(
            f'{name}: {image.shape[1]} x {image.shape[0]} pixels; sides must be 1..{MAX_SIDE}'
        )


def jpeg_round_trip(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As TensorFlow does by default: quality 95, 4:2:0, fast integer DCT on the way back."""
    import simplejpeg
    from PIL import Image

    # Pillow writes TensorFlow's very bytes; simplejpeg's encoder does not. For decoding it is the
    # other way round: Pillow has no fast DCT.
    data = io.BytesIO()
    Image.fromarray(image).save(data, 'JPEG', quality=95, subsampling='4:2:0')
    return simplejpeg.decode_jpeg(data.getvalue(), 'RGB', fastdct=True, fastupsample=False)


def resize_lanczos3(image: Tensor, side: int) -> Tensor:
    """uint8 ``[H, W, 3]`` to ``[side, side, 3]``, antialiased; rounds half to even, clips."""
    weights = (lanczos3_matrix(size, side, image.device) for size in image.shape[:2])
    return _resample(image, *weights)


def resize_opencv(image: NDArray[np.uint8], side: int, kind: str) -> NDArray[np.uint8]:
    """uint8 ``[H, W, 3]`` to ``[side, side, 3]`` as OpenCV's INTER_AREA (``area``) or INTER_LINEAR
    (``linear``) does, up to its rounding (1 of 255).
    """
    weights = (opencv_matrix(size, side, kind) for size in image.shape[:2])
    return _resample(torch.from_numpy(image), *weights).numpy()


def _resample(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows ``[side, H]``, then columns ``[side, W]``; rounds half to even, clips, uint8."""
    side, (height, width) = len(rows), image.shape[:2]
    x = (rows @ image.to(torch.float32).reshape(height, width * 3)).view(side, width, 3)
    x = (x.permute(0, 2, 1).reshape(side * 3, width) @ columns.T).view(side, 3, side)
    x = x.permute(0, 2, 1).contiguous()
    return x.round_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def lanczos3_matrix(size: int, side: int, device: torch.device | None = None) -> Tensor:
    """Resampling weights, float32 ``[side, size]``, rows summing to one; computed in float32, as
    TensorFlow does.
    """
    single, pi = np.float32, np.float32(math.pi)
    scale = single(1) / (single(side) / single(size))
    wide = max(scale, single(1))
    centre = (np.arange(side, dtype=single)[:, None] + single(0.5)) * scale
    x = np.abs((np.arange(size, dtype=single) + single(0.5) - centre) * (single(1) / wide))
    with np.errstate(divide='ignore', invalid='ignore'):
        kernel = single(3) * np.sin(pi * x) * np.sin(pi * x / single(3)) / (pi * pi * x * x)
    weights = np.where(x <= single(1e-3), single(1), np.where(x > single(3), single(0), kernel))
    total = np.cumsum(weights, 1, dtype=single)[:, -1:]  # one after the other
    return torch.from_numpy(weights * (single(1) / total)).to(device)


@lru_cache(maxsize=32)
def opencv_matrix(size: int, side: int, kind: str) -> Tensor:
    """Resampling weights of OpenCV, float32 ``[side, size]``: the share of each pixel's area that
    an output pixel covers, or bilinear between pixel centres. ``area`` is bilinear when enlarging.
    """
    scale = size / side
    index = torch.arange(size, dtype=torch.float64)
    place = torch.arange(side, dtype=torch.float64)[:, None]
    if kind == 'area' and scale > 1:
        covered = torch.minimum(index + 1, (place + 1) * scale) - torch.maximum(
            index, place * scale
        )
        weights = covered.clamp_min(0)
    else:
        centre = ((place + 0.5) * scale - 0.5).clamp(0, size - 1)
        weights = (1 - (index - centre).abs()).clamp_min(0)
    return (weights / weights.sum(1, keepdim=True)).float()


def square_lanczos(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """CogACT's ``scripts/deploy.py``: the middle square, Pillow's Lanczos to ``side``, the middle
    nine tenths of its area, Lanczos again. Raises ``ImageError`` for an upright image.
    """
    from PIL import Image

    height, width = image.shape[:2]
    if height > width:
        raise ImageError(
            f'{width} x {height} pixels: this image path takes landscape or square images only'
        )
    left = (width - height) // 2
    square = Image.fromarray(image).crop((left, 0, left + height, height))
    square = square.resize((side, side), Image.Resampling.LANCZOS)
    inner = int(side * math.sqrt(CROP_AREA))
    margin = (side - inner) // 2
    square = square.crop((margin, margin, margin + inner, margin + inner))
    return np.array(square.resize((side, side), Image.Resampling.LANCZOS))


def center_crop(image: Tensor, area: float = CROP_AREA) -> Tensor:
    """uint8 ``[S, S, 3]``: the centre of ``area``, bilinearly back to ``[S, S, 3]``, floor(255.5
    v).
    """
    low, high, part = _crop_samples(image.shape[0], area, image.device)
    x = image.to(torch.float32) * _unit(image.device)
    row_low, row_high = x.index_select(0, low), x.index_select(0, high)

    def across(rows: Tensor) -> Tensor:
        left, right = rows.index_select(1, low), rows.index_select(1, high)
        return left + (right - left) * part[:, None]

    top, bottom = across(row_low), across(row_high)
    value = top + (bottom - top) * part[:, None, None]
    return (value.clamp_(0, 1) * 255.5).floor_().clamp_(max=255).to(torch.uint8)


@lru_cache(maxsize=8)
def _unit(device: torch.device) -> Tensor:
    return torch.tensor(np.float32(1 / 255), device=device)


@lru_cache(maxsize=8)
def _crop_samples(side: int, area: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each output row: the rows below and above, and the fraction between them."""
    factor = np.sqrt(np.float32(area))  # in float32, as TensorFlow does
    first = np.float32((1 - factor) / 2)
    last = np.float32(first + factor)
    step = np.float32((last - first) * np.float32(side - 1) / np.float32(side - 1))
    where = np.float32(first * np.float32(side - 1)) + np.arange(side, dtype=np.float32) * step
    low, high = np.floor(where), np.ceil(where)
    return (
        torch.from_numpy(low.astype(np.int64)).to(device),
        torch.from_numpy(high.astype(np.int64)).to(device),
        torch.from_numpy((where - low).astype(np.float32)).to(device),
    )


def pad_square(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The image centred on a square of ``colour``."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def padded_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width that fit a square of ``side``, aspect kept, as openpi and lerobot cut
    them.
    """
    ratio = max(width / side, height / side)
    return max(1, int(height / ratio)), max(1, int(width / ratio))


def resize_with_pad(image: Tensor, side: int, outside: float) -> Tensor:
    """``[H, W, 3]`` to float32 ``[side, side, 3]`` in 0..255, as lerobot does: bilinear without
    antialiasing, aspect kept, centred on ``outside``. Not rounded.
    """
    x = image.to(torch.float32).permute(2, 0, 1)[None] / 255
    height, width = x.shape[2:]
    if (height, width) != (side, side):
        size = padded_size(height, width, side)
        x = F.interpolate(x, size, mode='bilinear', align_corners=False).clamp(0, 1)
    top, left = (side - x.shape[2]) // 2, (side - x.shape[3]) // 2
    around = (left, side - x.shape[3] - left, top, side - x.shape[2] - top)
    return F.pad(255 * x, around, value=outside)[0].permute(1, 2, 0)


def resize_with_pad_pillow(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 ``[H, W, 3]`` to ``[side, side, 3]``, as openpi does: Pillow's bilinear, which
    antialiases when it shrinks, aspect kept, centred on black.
    """
    from PIL import Image

    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    high, wide = padded_size(height, width, side)
    shrunk = Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR)
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - high) // 2, (side - wide) // 2
    square[top : top + high, left : left + wide] = np.asarray(shrunk)
    return square


def resize_bicubic(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pillow's bicubic, as the Hugging Face image processors use it."""
    from PIL import Image

    if image.shape[:2] == (side, side):
        return image
    image = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    return np.array(image)
