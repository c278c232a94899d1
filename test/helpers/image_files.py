"""JPEG and PNG files, harmless and harmful."""

import io

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


def encoded(form, pixels=PIXELS, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def many_scans(scans, size=(4096, 4096)):
    """A progressive JPEG that refines one coefficient again and again: 99 bytes a scan."""
    data = encoded('JPEG', np.zeros((*size[::-1], 3), np.uint8), progressive=True, quality=10)
    first = data.index(b'\xff\xda')
    after = data.index(b'\xff', first + 2)
    while data[after + 1] == 0:
        after = data.index(b'\xff', after + 2)
    return data[:after] + data[first:after] * scans + b'\xff\xd9'
