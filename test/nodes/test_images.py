"""Image messages to arrays, by encoding and stride, and what is wrong with the others."""

import io

import numpy as np
import pytest

pytestmark = pytest.mark.ros

RGB = np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)


@pytest.fixture(scope='module')
def images():
    from specprune_ros.nodes.common import images as images

    return images


def message(pixels, encoding, step=None):
    from sensor_msgs.msg import Image

    rows = pixels.reshape(len(pixels), -1)
    step = step or rows.shape[1]
    padded = np.zeros((len(rows), step), np.uint8)
    padded[:, : rows.shape[1]] = rows
    out = Image(height=len(pixels), width=pixels.shape[1], encoding=encoding, step=step)
    out.data = padded.tobytes()
    return out


@pytest.mark.parametrize('step', [None, 200])
def test_every_encoding_gives_the_same_colours(images, step):
    alpha = np.full((20, 24, 1), 9, np.uint8)
    bgr = RGB[..., ::-1]
    for encoding, pixels in (
        ('rgb8', RGB),
        ('bgr8', bgr),
        ('rgba8', np.concatenate((RGB, alpha), 2)),
        ('bgra8', np.concatenate((bgr, alpha), 2)),
    ):
        assert np.array_equal(images.to_rgb(message(pixels, encoding, step)), RGB), encoding


def test_grey_is_three_equal_channels(images):
    seen = images.to_rgb(message(RGB[..., :1], 'mono8'))
    assert np.array_equal(seen, np.repeat(RGB[..., :1], 3, 2))


def test_there_and_back(images):
    assert np.array_equal(images.to_rgb(images.to_message(RGB)), RGB)


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        (dict(encoding='yuv422'), "encoding 'yuv422' is not read; use one of rgb8"),
        (dict(step=10), 'step is 10 bytes, but 24 rgb8 pixels need 72'),
        (dict(data=b''), 'data has 0 bytes, but step 72 x height 20 is 1440'),
        (dict(height=19), 'data has 1440 bytes'),
        (dict(width=0, height=0), '0 x 0 pixels'),
        (dict(width=7680, height=4320), '7680 x 4320 pixels; each side must be between'),
        (dict(width=2**32 - 1), 'each side must be between'),
    ],
)
def test_what_is_wrong_is_named(images, changes, reason):
    broken = message(RGB, 'rgb8')
    for name, value in changes.items():
        setattr(broken, name, value)
    with pytest.raises(images.ImageError, match=reason):
        images.to_rgb(broken)


def compressed(data):
    from sensor_msgs.msg import CompressedImage

    out = CompressedImage(format='jpeg')
    out.data = data
    return out


def test_compressed_images(images):
    from PIL import Image

    for kind in ('PNG', 'JPEG'):
        buffer = io.BytesIO()
        Image.fromarray(RGB).save(buffer, format=kind)
        seen = images.compressed_to_rgb(compressed(buffer.getvalue()))
        assert seen.shape == RGB.shape
        if kind == 'PNG':
            assert np.array_equal(seen, RGB)


def test_compressed_rubbish_truncation_and_bombs_are_refused(images):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(buffer, format='JPEG')
    large = io.BytesIO()
    Image.new('L', (5000, 5000)).save(large, format='PNG')
    gif = io.BytesIO()
    Image.fromarray(RGB).save(gif, format='GIF')
    for data in (b'', b'rubbish', buffer.getvalue()[:300], large.getvalue(), gif.getvalue()):
        with pytest.raises(images.ImageError):
            images.compressed_to_rgb(compressed(data))
