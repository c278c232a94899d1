"""Overlay images show what was kept, and by whom."""

import numpy as np

from specprune_ros.policy.overlay import COLOURS, draw, patch_colours
from specprune_ros.policy.result import Overlay


def overlay():
    images = np.full((2, 32, 32, 3), 200, np.uint8)
    sets = {name: np.zeros(32, bool) for name in ('global', 'local')}
    sets['global'][[0, 16]] = True
    sets['local'][[0, 1]] = True
    kept = np.zeros(32, bool)
    kept[[0, 1, 2, 16]] = True
    return Overlay(images, (4, 4), sets, kept)


def test_a_patch_in_two_sets_has_their_mean_colour_and_the_unlabelled_one_is_fill():
    colours, coloured = patch_colours(overlay(), 0)
    mean = (np.array(COLOURS['global']) + COLOURS['local']) / 2
    assert np.allclose(colours[0, 0], mean)
    assert np.allclose(colours[0, 1], COLOURS['local'])
    assert np.allclose(colours[0, 2], COLOURS['fill'])
    assert coloured.sum() == 3


def test_dropped_patches_are_dark_and_kept_ones_keep_the_image():
    drawn = draw(overlay(), 0)
    assert drawn.shape == (32, 32, 3)
    assert drawn[20, 20].max() < 80
    assert np.abs(drawn[4, 12].astype(int) - 200).max() < 60


def test_each_camera_takes_its_own_patches():
    drawn = draw(overlay(), 1)
    assert drawn[4, 4].max() > 150
    assert drawn[4, 12].max() < 80


def test_a_dense_query_shows_the_image_itself_and_zoom_enlarges():
    whole = Overlay(overlay().images, (4, 4), {}, np.ones(32, bool))
    assert (draw(whole, 0, zoom=2) == 200).all()
    assert draw(whole, 0, zoom=2).shape == (64, 64, 3)
