"""A strip and a GIF of what the policy saw and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from specprune_ros.policy.overlay import COLOURS

PANEL = 256  # pixels, side of one image
STILL = 1.5  # s that the end of the animation is shown
GAP = 8
HEADER = 54
FOOTER = 34
PAPER = (250, 250, 248)
INK = (34, 34, 34)
FAINT = (110, 110, 110)
GOOD, BAD = (0, 122, 84), (190, 60, 40)
LEGEND = {
    'global': 'previous attention',
    'dynamic': 'image changed',
    'local': 'first layers',
    'fill': 'next best',
}


@dataclass(frozen=True)
class Frame:
    """One query: overlay images by camera (uint8 ``[H, W, 3]``) and what to write above them.

    ``scene`` is a camera's image as it was taken, and stands before them. ``verdict`` is
    written at the right, in green where it begins with ``success``.
    """

    images: Mapping[str, np.ndarray]
    title: str
    detail: str
    seconds: float
    scene: np.ndarray | None = None
    verdict: str = ''


class GifRecorder:
    """Collects frames, at most ``rate`` a second, and at most ``limit`` of them."""

    def __init__(self, rate: float = 4.0, limit: int = 160) -> None:
        self._period = 1.0 / rate
        self._limit = limit
        self.frames: list[Frame] = []

    def due(self, seconds: float) -> bool:
        """Whether a frame of this time would be kept."""
        if len(self.frames) >= self._limit:
            return False
        # Queries come a little early or late: what is nearly due is due.
        return not self.frames or seconds - self.frames[-1].seconds >= 0.8 * self._period

    def add(self, frame: Frame) -> None:
        """Keep a frame if the last one is old enough."""
        if self.due(frame.seconds):
            self.frames.append(frame)

    def save_gif(self, path: Path) -> None:
        """Write an animated GIF. Raises ``ValueError`` without frames."""
        images = [render(frame) for frame in self._some()]
        # One palette for all frames: colours do not flicker from frame to frame.
        sample = [round(i) for i in np.linspace(0, len(images) - 1, min(12, len(images)))]
        width, height = images[0].size
        sheet = Image.new('RGB', (width, height * len(sample)))
        for row, index in enumerate(sample):
            sheet.paste(images[index], (0, row * height))
        palette = sheet.quantize(colors=256, method=Image.Quantize.FASTOCTREE)
        frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        frames[0].save(
            path,
            save_all=True,
            append_images=frames[1:],
            duration=[round(1000 * t) for t in self._durations()],
            loop=0,
            optimize=True,
        )

    def _durations(self) -> list[float]:
        """Seconds each frame is shown: as they were apart, but no pause is waited out."""
        times = [frame.seconds for frame in self.frames]
        apart = [b - a for a, b in zip(times, times[1:], strict=False)]
        return [min(max(t, 0.1), STILL) for t in apart] + [STILL]

    def save_strip(self, path: Path, count: int = 4) -> None:
        """Write a PNG of ``count`` moments. Raises ``ValueError`` without frames."""
        chosen = self._spread(count)
        images = [render(frame) for frame in chosen]
        width, height = images[0].size
        sheet = Image.new(
            'RGB', (width + 2 * GAP, len(images) * height + (len(images) + 1) * GAP), PAPER
        )
        for row, image in enumerate(images):
            sheet.paste(image, (GAP, GAP + row * (height + GAP)))
        sheet.save(path)

    def _some(self) -> Sequence[Frame]:
        if not self.frames:
            raise ValueError('no frames: no overlay image arrived')
        return self.frames

    def _spread(self, count: int) -> list[Frame]:
        frames = self._some()
        # The very first query is dense; moments from the middle say more.
        at = np.linspace(0, len(frames) - 1, count + 2)[1:-1] if len(frames) > count else None
        return [frames[round(i)] for i in at] if at is not None else list(frames)


def render(frame: Frame) -> Image.Image:
    """One frame as an image: title and verdict, scene and cameras side by side, a legend."""
    panels = {} if frame.scene is None else {'scene': frame.scene}
    panels |= {f'{name}: kept' if panels else name: image for name, image in frame.images.items()}
    width = len(panels) * (PANEL + GAP) + GAP
    canvas = Image.new('RGB', (width, PANEL + HEADER + FOOTER), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP + 2, 6), frame.title, font=_font(20), fill=INK)
    draw.text((GAP + 2, 31), frame.detail, font=_font(15), fill=FAINT)
    if frame.verdict:
        colour = FAINT
        if not frame.verdict.startswith('running'):
            colour = GOOD if frame.verdict.startswith('success') else BAD
        draw.text((width - GAP - 2, 6), frame.verdict, font=_font(20), fill=colour, anchor='ra')
    for index, (name, image) in enumerate(panels.items()):
        x = GAP + index * (PANEL + GAP)
        canvas.paste(_sized(image), (x, HEADER))
        box = draw.textbbox((x + 8, HEADER + 6), name, font=_font(15))
        draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=(0, 0, 0))
        draw.text((x + 8, HEADER + 6), name, font=_font(15), fill=(255, 255, 255))
    height = PANEL
    x, y = GAP + 2, HEADER + height + 9
    for name, text in LEGEND.items():
        draw.rectangle((x, y + 1, x + 15, y + 16), fill=COLOURS[name])
        draw.text((x + 21, y), text, font=_font(15), fill=INK)
        x += 33 + round(draw.textlength(text, font=_font(15)))
    draw.rectangle((x, y + 1, x + 15, y + 16), fill=(60, 60, 60))
    draw.text((x + 21, y), 'dropped', font=_font(15), fill=INK)
    return canvas


def _sized(image: np.ndarray) -> Image.Image:
    """An image at the size of a panel; whole multiples keep their pixels."""
    image = Image.fromarray(image)
    whole = PANEL % image.width == 0 and PANEL % image.height == 0
    return image.resize(
        (PANEL, PANEL), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    )


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
