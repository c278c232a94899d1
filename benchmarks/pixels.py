"""OpenCV against NumPy and Pillow, on the same images: time, difference, start-up and size.

    python benchmarks/pixels.py --json benchmarks/results/pixels.json

(after `. scripts/env.sh`). What is here beside OpenCV is what the package did before; it is why
`policy/image_bytes.py`, `nodes/common/images.py` and `policy/overlay.py` use OpenCV.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from record import write

from specprune_ros.policy.image_bytes import decode, essential
from specprune_ros.policy.overlay import DIM, EDGE, TINT, Overlay, draw, patch_colours

SIZE = (640, 480)


def decode_with_pillow(data: bytes) -> np.ndarray:
    """Upright, 16 bits to the upper eight, RGB."""
    with Image.open(io.BytesIO(essential(data)), formats=('JPEG', 'PNG')) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith('I'):
            grey = np.asarray(upright).astype(np.uint16) >> 8
            return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
        return np.array(upright.convert('RGB'))


def draw_with_numpy(overlay: Overlay) -> np.ndarray:
    """The first camera's overlay."""
    rows, columns = overlay.grid
    image = overlay.images[0]
    height, width = image.shape[0] // rows, image.shape[1] // columns

    def spread(patches: np.ndarray) -> np.ndarray:
        return patches.repeat(height, axis=0).repeat(width, axis=1)

    kept = overlay.kept.reshape(rows, columns)
    colours, coloured = patch_colours(overlay, 0)
    shade = np.full((height, width), TINT)
    shade[[0, -1], :] = shade[:, [0, -1]] = EDGE
    strength = (np.tile(shade, (rows, columns)) * spread(coloured & kept))[..., None]
    drawn = image * (1 - strength) + spread(colours) * strength
    drawn = np.where(spread(kept)[..., None], drawn, image.mean(axis=2, keepdims=True) * DIM)
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8)


def tasks() -> dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]]:
    """By name: with NumPy and Pillow, with OpenCV."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
    smooth = small.resize(SIZE, Image.Resampling.BICUBIC)
    rgb = np.asarray(smooth)
    bgr, bgra = rgb[..., ::-1].copy(), np.dstack((rgb[..., ::-1], rgb[..., 0]))

    def file(kind: str, image: Image.Image = smooth, **options: object) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    files = {
        'JPEG': file('JPEG', quality=90),
        'progressive JPEG': file('JPEG', quality=90, progressive=True),
        'PNG': file('PNG'),
        'PNG of 16 bits': file('PNG', Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)),
    }
    kept = rng.random(256) > 0.5
    sets = {n: kept & (rng.random(256) > 0.7) for n in ('global', 'dynamic', 'local')}
    overlay = Overlay(np.ascontiguousarray(rgb[None, :224, :224]), (16, 16), sets, kept)
    return {
        'bgr8 to RGB': (
            lambda: np.ascontiguousarray(bgr[:, :, [2, 1, 0]]),
            lambda: cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB),
        ),
        'bgra8 to RGB': (
            lambda: np.ascontiguousarray(bgra[:, :, [2, 1, 0]]),
            lambda: cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGB),
        ),
        **{
            name: (lambda data=data: decode_with_pillow(data), lambda data=data: decode(data))
            for name, data in files.items()
        },
        'overlay of 224 x 224': (lambda: draw_with_numpy(overlay), lambda: draw(overlay, 0)),
    }


def cost_of_import(name: str) -> dict[str, float]:
    """CPU milliseconds and resident MiB that importing adds to a Python with NumPy; the least of
    five.
    """
    code = (
        'import time, numpy\n'
        'rss = lambda: int(open("/proc/self/statm").read().split()[1]) / 256\n'
        f'before, begin = rss(), time.process_time()\nimport {name}\n'
        'print(1e3 * (time.process_time() - begin), rss() - before)'
    )
    runs = [
        [float(v) for v in subprocess.check_output([sys.executable, '-c', code]).split()]
        for _ in range(5)
    ]
    return {'import_cpu_ms': min(r[0] for r in runs), 'memory_mib': min(r[1] for r in runs)}


def size_of(distribution: str) -> float:
    """MB that a distribution takes where it is installed."""
    files = importlib.metadata.files(distribution) or ()
    paths = (Path(f.locate()) for f in files if '__pycache__' not in str(f))
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=60, help='runs of each, interleaved')
    parser.add_argument('--json', type=Path, help='write the result to this file')
    args = parser.parse_args()
    rows = []
    for name, ways in tasks().items():
        before, after = (way().astype(int) for way in ways)
        seconds: list[list[float]] = [[], []]
        for _ in range(args.repeats):
            for way, spent in zip(ways, seconds, strict=True):
                begin = time.process_time()
                way()
                spent.append(time.process_time() - begin)
        old, new = (1e3 * float(np.median(spent)) for spent in seconds)
        row = {
            'task': name,
            'numpy_pillow_ms': round(old, 3),
            'opencv_ms': round(new, 3),
            'times': round(old / new, 1),
            'largest_difference': int(np.abs(before - after).max()),
        }
        rows.append(row)
        print('  '.join(f'{key} {value}' for key, value in row.items()), flush=True)
    libraries = {
        'opencv': {**cost_of_import('cv2'), 'size_mb': size_of('opencv-python-headless')},
        'pillow': {**cost_of_import('PIL.Image'), 'size_mb': size_of('pillow')},
    }
    for name, cost in libraries.items():
        print(name, '  '.join(f'{key} {value:.1f}' for key, value in cost.items()))
    result = {'benchmark': 'pixels', 'image': list(SIZE), 'rows': rows, 'libraries': libraries}
    write(args.json, {**result, 'opencv': cv2.__version__, 'times_are': 'CPU time of the process'})
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
