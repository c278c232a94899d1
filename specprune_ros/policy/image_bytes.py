"""JPEG and PNG bytes to pixels, bounded from the bytes alone before the decoder sees them.

A decoder's work is not bounded by the size of the image: a progressive JPEG may refine the same
pixels a thousand times, a PNG may bring megabytes of compressed text or a million empty chunks.
"""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

from specprune_ros.policy.input_limits import MAX_SIDE, MIN_SIDE

MAX_SCANS = 64  # of a JPEG; encoders write about 10
MAX_SCAN_PIXELS = 4 * MAX_SIDE * MAX_SIDE  # scans x pixels; decoding them takes about 0.4 s
MAX_PARTS = 4096  # segments of a JPEG, chunks of a PNG

_PNG = b'\x89PNG\r\n\x1a\n'
_PNG_KEPT = frozenset((b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND'))
_JPEG_SIZES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive
_JPEG_BARE = frozenset((0x01, 0xD8, *range(0xD0, 0xD8)))  # markers without a length
_SOS, _EOI = 0xDA, 0xD9
# What says how to read the colours; the orientation is searched for in the first Exif segment.
_JPEG_DROPPED = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))


cv2.setNumThreads(1)  # the cores belong to the policy


class ImageError(ValueError):
    """An image that cannot be read; says what is wrong and what would do."""


def check_size(width: int, height: int, most: int = MAX_SIDE) -> None:
    """Raise :class:`ImageError` for an image that is empty or larger than is read."""
    if not (MIN_SIDE <= width <= most and MIN_SIDE <= height <= most):
        raise ImageError(
            f'{width} x {height} pixels; each side must be between {MIN_SIDE} and {most}'
        )


def decode(data: bytes, max_side: int = MAX_SIDE) -> np.ndarray:
    """Decode a JPEG or PNG to uint8 ``[height, width, 3]`` RGB, upright where Exif says how; of
    16 bits the upper eight, without transparency. Raises :class:`ImageError`.
    """
    pixels = cv2.imdecode(np.frombuffer(essential(data, max_side), np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ImageError('broken image data')
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels)


def essential(data: bytes, max_side: int = MAX_SIDE) -> bytes:
    """The JPEG or PNG without metadata. Raises :class:`ImageError` where it is neither, its
    size is out of bounds, or decoding it would take too long.

    The first Exif segment of a JPEG stays, because it says which way is up.
    """
    if data[:2] == b'\xff\xd8':
        return _jpeg(data, max_side)
    if data[:8] == _PNG:
        return _png(data, max_side)
    raise ImageError('neither JPEG nor PNG')


def _jpeg(data: bytes, max_side: int) -> bytes:
    kept = [b'\xff\xd8']
    at, scans, pixels, parts, exif = 2, 0, 0, 0, False
    while at + 4 <= len(data):
        parts += 1
        if parts > MAX_PARTS:
            raise ImageError(f'JPEG of more than {MAX_PARTS} segments')
        if data[at] != 0xFF:
            raise ImageError('JPEG with bytes between its segments')
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == _EOI:
            break
        if marker in _JPEG_BARE:
            at += 2
            continue
        length = struct.unpack_from('>H', data, at + 2)[0]
        end = at + 2 + length
        if length < 2 or end > len(data):
            raise ImageError('JPEG is cut short')
        if marker in _JPEG_SIZES:
            if pixels or length < 8:
                raise ImageError('JPEG with more than one frame, or a broken one')
            height, width = struct.unpack_from('>HH', data, at + 5)
            check_size(width, height, max_side)
            pixels = width * height
        elif 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            raise ImageError('JPEG of a rare kind (lossless, hierarchical or arithmetic)')
        first_exif = marker == 0xE1 and not exif and data[at + 4 : at + 10] == b'Exif\x00\x00'
        exif = exif or first_exif
        if first_exif or marker not in _JPEG_DROPPED:
            kept.append(data[at:end])
        at = end
        if marker == _SOS:
            scans += 1
            if not pixels:
                raise ImageError('JPEG without a size')
            if scans > MAX_SCANS or scans * pixels > MAX_SCAN_PIXELS:
                raise ImageError(
                    f'JPEG of {pixels} pixels and {scans} scans or more; at most {MAX_SCANS}, '
                    'fewer for a large image'
                )
            at = _scan_end(data, at)
            kept.append(data[end:at])
    if not scans:
        raise ImageError('JPEG without image data')
    if data[at : at + 2] != b'\xff\xd9':
        raise ImageError('JPEG is cut short')
    kept.append(b'\xff\xd9')
    return b''.join(kept)


def _scan_end(data: bytes, at: int) -> int:
    """Where the entropy-coded data from ``at`` on end: at a marker that is no part of them."""
    for _ in range(len(data)):
        at = data.find(b'\xff', at)
        if at < 0 or at + 1 >= len(data):
            break
        if data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
            at += 2
            continue
        return at
    raise ImageError('JPEG is cut short')


def _png(data: bytes, max_side: int) -> bytes:
    at, parts, pixels = len(_PNG), 0, []
    kept: dict[bytes, bytes] = {}
    while at + 12 <= len(data):
        parts += 1
        if parts > MAX_PARTS:
            raise ImageError(f'PNG of more than {MAX_PARTS} chunks')
        length, kind = struct.unpack_from('>I4s', data, at)
        end = at + 12 + length
        if end > len(data):
            raise ImageError('PNG is cut short')
        body = data[at + 8 : end - 4]
        if kind == b'IDAT':
            pixels.append(body)
        elif kind == b'IEND':
            break
        elif kind in _PNG_KEPT:
            if kind in kept:
                raise ImageError(f'PNG with two {kind.decode()} chunks')
            kept[kind] = body
        at = end
    if len(kept.get(b'IHDR', b'')) != 13 or not pixels:
        raise ImageError('PNG without a header or without image data')
    check_size(*struct.unpack_from('>II', kept[b'IHDR']), max_side)
    order = [(k, kept[k]) for k in (b'IHDR', b'PLTE', b'tRNS') if k in kept]
    # One chunk of image data: decoders go through them one by one.
    chunks = [*order, (b'IDAT', b''.join(pixels)), (b'IEND', b'')]
    return _PNG + b''.join(
        struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
        for kind, body in chunks
    )
