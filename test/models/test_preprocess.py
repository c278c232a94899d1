"""The image path, stage by stage, against slow transcriptions of what TensorFlow computes."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from specprune_ros.models.preprocess import (
    ImageError,
    Preprocessor,
    center_crop,
    jpeg_round_trip,
    lanczos3_matrix,
    pad_square,
    resize_lanczos3,
)
from specprune_ros.models.presets import CLIP_L_336, preset

LIBERO = replace(preset('tiny'), jpeg=True)


def scene(height, width, seed=0):
    """A smooth image with edges, like a rendered table."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.stack([120 + 60 * np.sin(x / 31 + c) * np.cos(y / 23) for c in range(3)], -1)
    for _ in range(12):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        size = rng.integers(6, 60)
        image[top : top + size, left : left + size] = rng.integers(0, 256, 3)
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def test_jpeg_is_encoded_as_pillow_does_and_decoded_with_the_fast_dct():
    import simplejpeg

    image = scene(256, 256)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=95, subsampling='4:2:0')
    expected = simplejpeg.decode_jpeg(buffer.getvalue(), 'RGB', fastdct=True, fastupsample=False)
    assert np.array_equal(jpeg_round_trip(image), expected)
    accurate = np.array(Image.open(buffer))
    share = (accurate == expected).mean()
    assert 0.1 < share < 0.9  # the accurate DCT is a different image: the trap


def test_lanczos_weights_are_those_of_the_definition():
    for size, side in ((256, 224), (480, 224), (100, 224)):
        matrix = lanczos3_matrix(size, side).double()
        scale = size / side
        for j in (0, 1, 111, 223):
            centre, wide = (j + 0.5) * scale, max(scale, 1.0)
            taps = []
            for i in range(size):
                x = (i + 0.5 - centre) / wide
                if abs(x) >= 3:
                    taps.append(0.0)
                elif x == 0:
                    taps.append(1.0)
                else:
                    a = math.pi * x
                    taps.append(3 * math.sin(a) * math.sin(a / 3) / a**2)
            taps = np.array(taps) / sum(taps)
            # TensorFlow computes them in float32, where the distance to a far pixel is rough.
            np.testing.assert_allclose(matrix[j].numpy(), taps, atol=2e-5)


@pytest.mark.parametrize('shape', [(256, 256), (480, 640), (120, 90)])
def test_lanczos_resize_rounds_half_to_even(shape):
    image = scene(*shape)
    rows = lanczos3_matrix(shape[0], 224).double()
    columns = lanczos3_matrix(shape[1], 224).double()
    exact = torch.einsum('ih,hwc,jw->ijc', rows, torch.from_numpy(image).double(), columns)
    expected = exact.round().clamp(0, 255).to(torch.uint8).numpy()
    ours = resize_lanczos3(torch.from_numpy(image), 224).numpy()
    different = ours != expected
    assert different.mean() < 2e-4  # 99.998 % equal, at most 1
    assert np.abs(ours.astype(int) - expected).max() <= 1
    pillow = np.array(Image.fromarray(image).resize((224, 224), Image.Resampling.LANCZOS))
    assert (pillow != ours).mean() > 0.02  # Pillow's is another image


def test_crop_samples_at_the_published_coordinates():
    """Row i of the crop is at 5.7218 + 0.948683 i; values by floor(255.5 v)."""
    image = scene(224, 224)
    ours = center_crop(torch.from_numpy(image)).numpy()
    side = math.sqrt(0.9)
    offset = (1 - side) / 2
    assert offset * 223 == pytest.approx(5.7218, abs=1e-4)
    where = offset * 223 + np.arange(224) * side
    low, high = np.floor(where).astype(int), np.ceil(where).astype(int)
    part = where - low
    v = image / 255.0
    rows = v[low] + (v[high] - v[low]) * part[:, None, None]
    value = rows[:, low] + (rows[:, high] - rows[:, low]) * part[None, :, None]
    expected = np.minimum(np.floor(255.5 * value), 255).astype(np.uint8)
    different = ours != expected
    assert different.mean() < 1e-3 and np.abs(ours.astype(int) - expected).max() <= 1
    rounded = np.round(255 * value).astype(np.uint8)
    assert (ours != rounded).mean() > 0.1  # round(255 v) is off by one in many pixels: the trap
    naive = Image.fromarray(image[6:218, 6:218]).resize((224, 224), Image.Resampling.BILINEAR)
    assert (np.array(naive) != ours).mean() > 0.1


def test_a_constant_image_stays_constant():
    for level in (0, 1, 127, 254, 255):
        flat = np.full((256, 256, 3), level, np.uint8)
        seen = Preprocessor(LIBERO).image(flat).numpy()
        assert (seen == level).all()


def test_statistics_are_rounded_to_bfloat16_and_towers_keep_their_order():
    flat = np.full((224, 224, 3), 100, np.uint8)
    tensor = Preprocessor(LIBERO)([flat, flat]).tensor
    assert tensor.shape == (2, 6, 224, 224)
    value = np.float32(100) / np.float32(255)
    dino = (value - np.float32([0.484375, 0.455078125, 0.40625])) / np.float32(
        [0.228515625, 0.2236328125, 0.224609375]
    )
    siglip = (value - np.float32(0.5)) / np.float32(0.5)
    assert tensor[0, :, 5, 5].tolist() == [*dino.tolist(), *[siglip.item()] * 3]
    unrounded = (value - 0.485) / 0.229
    assert abs(tensor[0, 0, 5, 5].item() - unrounded) > 1e-3
    # CogACT's are not rounded.
    cogact = Preprocessor(preset('cogact-7b'))([flat]).tensor
    assert cogact[0, 0, 5, 5].item() == pytest.approx(unrounded, abs=1e-6)


def test_fast_images_leave_out_the_jpeg_and_say_so():
    image = scene(256, 256)
    exact, fast = Preprocessor(LIBERO), Preprocessor(LIBERO, fast=True)
    assert exact.note == '' and 'JPEG round trip is left out' in fast.note
    expected = center_crop(resize_lanczos3(torch.from_numpy(image), 224))
    assert torch.equal(fast.image(image), expected)
    assert not torch.equal(exact.image(image), expected)
    through = center_crop(resize_lanczos3(torch.from_numpy(jpeg_round_trip(image)), 224))
    assert torch.equal(exact.image(image), through)


def test_images_of_the_right_size_are_only_cropped():
    """One JPEG round trip at most: a 224 x 224 frame went through it already."""
    image = scene(224, 224)
    expected = center_crop(torch.from_numpy(image))
    assert torch.equal(Preprocessor(LIBERO).image(image), expected)


def test_images_seen_are_those_after_the_crop():
    images = [scene(480, 640, 1), scene(224, 224, 2)]
    pre = Preprocessor(LIBERO)
    pixels = pre(images)
    assert pixels.images.shape == (2, 224, 224, 3) and pixels.images.dtype == torch.uint8
    assert torch.equal(pre.normalise(pixels.images), pixels.tensor)
    half = Preprocessor(LIBERO, dtype=torch.bfloat16)(images)
    assert torch.equal(half.tensor, pixels.tensor.bfloat16())


def test_db_oft_pads_to_a_square_with_the_mean_colour():
    image = scene(100, 200)
    square = pad_square(image, (122, 116, 104))
    assert square.shape == (200, 200, 3)
    assert np.array_equal(square[50:150], image)
    assert (square[:50] == [122, 116, 104]).all()
    config = preset('db-oft-7b')
    pixels = Preprocessor(config)([image])
    assert pixels.tensor.shape == (1, 3, 336, 336)
    expected = np.array(Image.fromarray(square).resize((336, 336), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels.images[0].numpy(), expected)
    mean, std = torch.tensor(CLIP_L_336.mean), torch.tensor(CLIP_L_336.std)
    normal = (torch.from_numpy(expected) / 255 - mean) / std
    assert torch.allclose(pixels.tensor[0], normal.permute(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (
            np.zeros((4, 4), np.uint8),
            r'uint8 array \[height, width, 3\] \(RGB\), is uint8 \[4, 4\]',
        ),
        (np.zeros((4, 4, 3), np.float32), 'is float32'),
        (np.zeros((4, 4, 4), np.uint8), r'\[4, 4, 4\]'),
        (np.zeros((0, 4, 3), np.uint8), 'sides must be 1..4096'),
        (np.zeros((4320, 7680, 3), np.uint8), '7680 x 4320 pixels; sides must be 1..4096'),
        (None, 'is NoneType'),
    ],
)
def test_images_that_cannot_be_used(image, message):
    with pytest.raises(ImageError, match=f'wrist: .*{message}'):
        Preprocessor(LIBERO)([np.zeros((9, 9, 3), np.uint8), image])


def test_the_number_of_images_is_checked():
    with pytest.raises(ImageError, match='1 images given, the policy takes 2: third_person'):
        Preprocessor(LIBERO)([np.zeros((9, 9, 3), np.uint8)])
