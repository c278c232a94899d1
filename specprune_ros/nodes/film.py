"""A strip and a GIF of what the policy saw and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from specprune_ros.policy.overlay import COLOURS

ZOOM = 2
GIF_SCALE = 0.65  # a minute of pictures should stay a file one can send
GAP = 8
HEADER = 54
FOOTER = 34
PAPER = (250, 250, 248)
INK = (34, 34, 34)
FAINT = (110, 110, 110)
LEGEND = {
    'global': 'previous attention',
    'dynamic': 'picture changed',
    'local': 'first layers',
    'fill': 'next best',
}


@dataclass(frozen=True)
class Frame:
    """One query: overlay pictures by camera (uint8 ``[H, W, 3]``) and what to write above them."""

    pictures: Mapping[str, np.ndarray]
    title: str
    detail: str
    seconds: float


class Film:
    """Collects frames, at most ``rate`` a second, and at most ``limit`` of them."""

    def __init__(self, rate: float = 2.0, limit: int = 120) -> None:
        self._period = 1.0 / rate
        self._limit = limit
        self.frames: list[Frame] = []

    def add(self, frame: Frame) -> None:
        """Keep a frame if the last one is old enough."""
        if self.frames and frame.seconds - self.frames[-1].seconds < self._period:
            return
        if len(self.frames) < self._limit:
            self.frames.append(frame)

    def save_gif(self, path: Path) -> None:
        """Write an animated GIF. Raises ``ValueError`` without frames."""
        images = [_shrunk(render(frame)) for frame in self._some()]
        # One palette for all frames: colours do not flicker from frame to frame.
        sheet = Image.new('RGB', (images[0].width, images[0].height * min(4, len(images))))
        for row, index in enumerate(np.linspace(0, len(images) - 1, min(4, len(images)))):
            sheet.paste(images[round(index)], (0, row * images[0].height))
        palette = sheet.quantize(colors=255, method=Image.Quantize.MEDIANCUT)
        frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        frames[0].save(
            path,
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 * self._period),
            loop=0,
            optimize=True,
        )

    def save_strip(self, path: Path, count: int = 4) -> None:
        """Write a PNG of ``count`` moments. Raises ``ValueError`` without frames."""
        chosen = self._spread(count)
        images = [render(frame) for frame in chosen]
        columns = min(2, len(images))
        rows = -(-len(images) // columns)
        width, height = images[0].size
        sheet = Image.new(
            'RGB', (columns * width + (columns + 1) * GAP, rows * height + (rows + 1) * GAP), PAPER
        )
        for index, image in enumerate(images):
            row, column = divmod(index, columns)
            sheet.paste(image, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
        sheet.save(path)

    def _some(self) -> Sequence[Frame]:
        if not self.frames:
            raise ValueError('no frames: no overlay picture arrived')
        return self.frames

    def _spread(self, count: int) -> list[Frame]:
        frames = self._some()
        # The very first query is dense; moments from the middle say more.
        at = np.linspace(0, len(frames) - 1, count + 2)[1:-1] if len(frames) > count else None
        return [frames[round(i)] for i in at] if at is not None else list(frames)


def render(frame: Frame) -> Image.Image:
    """One frame as a picture with title, cameras side by side, and a legend."""
    pictures = [
        Image.fromarray(p).resize((ZOOM * p.shape[1], ZOOM * p.shape[0]), Image.Resampling.NEAREST)
        for p in frame.pictures.values()
    ]
    width = sum(p.width for p in pictures) + GAP * (len(pictures) + 1)
    height = max(p.height for p in pictures)
    canvas = Image.new('RGB', (width, height + HEADER + FOOTER), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP + 2, 6), frame.title, font=_font(20), fill=INK)
    draw.text((GAP + 2, 31), frame.detail, font=_font(15), fill=FAINT)
    x = GAP
    for name, picture in zip(frame.pictures, pictures, strict=True):
        canvas.paste(picture, (x, HEADER))
        label = ImageDraw.Draw(canvas)
        box = label.textbbox((x + 8, HEADER + 6), name, font=_font(15))
        label.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=(0, 0, 0))
        label.text((x + 8, HEADER + 6), name, font=_font(15), fill=(255, 255, 255))
        x += picture.width + GAP
    x, y = GAP + 2, HEADER + height + 9
    for name, text in LEGEND.items():
        draw.rectangle((x, y + 1, x + 15, y + 16), fill=COLOURS[name])
        draw.text((x + 21, y), text, font=_font(15), fill=INK)
        x += 33 + round(draw.textlength(text, font=_font(15)))
    draw.rectangle((x, y + 1, x + 15, y + 16), fill=(60, 60, 60))
    draw.text((x + 21, y), 'dropped', font=_font(15), fill=INK)
    return canvas


def _shrunk(image: Image.Image) -> Image.Image:
    size = (round(GIF_SCALE * image.width), round(GIF_SCALE * image.height))
    return image.resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
