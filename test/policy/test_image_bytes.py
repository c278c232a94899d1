"""Compressed images are bounded by their bytes, before a decoder works on them."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import PIXELS, encoded, many_scans
from PIL import Image, ImageOps, PngImagePlugin

from specprune_ros.policy.image_bytes import MAX_SCANS, ImageError, decode, essential


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert('RGB'))


@pytest.mark.parametrize(
    'data',
    [
        encoded('JPEG', quality=90),
        encoded('JPEG', quality=90, progressive=True),
        encoded('JPEG', quality=90, optimize=True, restart_marker_blocks=2),
        encoded('JPEG', PIXELS[..., 0], quality=90),
        encoded('PNG'),
        encoded('PNG', PIXELS[..., 0]),
        encoded('PNG', np.dstack((PIXELS, PIXELS[..., :1]))),
    ],
)
def test_an_image_comes_through_with_the_same_pixels(data):
    assert np.array_equal(decoded(essential(data)), decoded(data))
    # OpenCV and Pillow may bring different versions of a decoder.
    assert np.abs(decode(data).astype(int) - decoded(data)).max() <= 2


@pytest.mark.parametrize('orientation', range(1, 9))
def test_which_way_is_up_is_read_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded('JPEG', quality=90, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.array(ImageOps.exif_transpose(image))
    assert np.abs(decode(data).astype(int) - upright).max() <= 2


def test_of_16_bits_the_upper_eight_are_taken():
    deep = np.random.default_rng(1).integers(0, 1 << 16, (48, 64)).astype(np.uint16)
    assert np.array_equal(decode(encoded('PNG', deep)), np.repeat((deep >> 8)[..., None], 3, 2))


def test_a_palette_and_its_transparency_stay():
    out = io.BytesIO()
    Image.fromarray(PIXELS).quantize(16).save(out, 'PNG', transparency=0)
    assert np.array_equal(decoded(essential(out.getvalue())), decoded(out.getvalue()))


def test_a_thousand_scans_are_refused_before_they_are_decoded():
    data = many_scans(1000)
    begin = time.process_time()
    with pytest.raises(ImageError, match='scans'):
        essential(data)
    assert time.process_time() - begin < 0.1
    # Fewer are allowed for a large image than for a small one.
    with pytest.raises(ImageError, match='scans'):
        essential(many_scans(4))
    assert essential(many_scans(20, (640, 480)))
    with pytest.raises(ImageError, match='scans'):
        essential(many_scans(MAX_SCANS + 1, (64, 64)))


def test_metadata_do_not_reach_the_decoder():
    text = PngImagePlugin.PngInfo()
    text.add_text('bomb', 'a' * 2_000_000, zip=True)
    png = essential(encoded('PNG', pnginfo=text, icc_profile=b'0' * 100_000))
    assert len(png) < len(encoded('PNG')) + 100 and b'bomb' not in png
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encoded(
        'JPEG', quality=90, exif=exif, comment=b'c' * 60_000, icc_profile=b'0' * 300_000
    )
    kept = essential(jpeg)
    assert len(kept) < len(jpeg) - 300_000
    # Which way is up is read from the file; nothing else is.
    assert Image.open(io.BytesIO(kept)).getexif()[0x0112] == 6


def chunk(kind, body=b''):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


BAD = {
    'nothing': b'',
    'text': b'GIF89a' + b'0' * 100,
    'PNG of a million chunks': encoded('PNG')[:33] + chunk(b'tEXt') * 100_000,
    'PNG without pixels': encoded('PNG')[:33] + chunk(b'IEND'),
    'PNG with two headers': encoded('PNG')[:33] + encoded('PNG')[8:],
    'PNG too large': encoded('PNG')[:8]
    + chunk(b'IHDR', struct.pack('>IIBBBBB', 5000, 5000, 8, 2, 0, 0, 0))
    + chunk(b'IDAT', zlib.compress(b'0')),
    'PNG cut short': encoded('PNG')[:60],
    'JPEG cut before its pixels': encoded('JPEG')[:80],
    'JPEG cut in its pixels': encoded('JPEG')[:-200],
    'JPEG without its end': encoded('JPEG')[:-2],
    'JPEG cut between scans': encoded('JPEG', progressive=True).rpartition(b'\xff\xda')[0],
    'JPEG of many segments': b'\xff\xd8' + b'\xff\xfe\x00\x02' * 10_000,
    'JPEG in JPEG': encoded('JPEG')[:-2] + encoded('JPEG')[2:],
    'JPEG of padding': b'\xff\xd8' + b'\xff' * 100_000,
    'JPEG with a scan first': b'\xff\xd8\xff\xda\x00\x02abc\xff\xd9',
}


@pytest.mark.parametrize('name', BAD)
def test_what_is_no_image_is_refused(name):
    with pytest.raises(ImageError):
        essential(BAD[name])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(['JPEG', 'PNG']), st.data())
def test_harmed_bytes_are_refused_or_stay_bounded(form, data):
    raw = bytearray(encoded(form, progressive=True) if form == 'JPEG' else encoded(form))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        kept = essential(bytes(raw))
    except ImageError:
        return
    assert kept.count(b'\xff\xda') <= MAX_SCANS * 2 and len(kept) <= len(raw) + 200
