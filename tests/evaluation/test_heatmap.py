"""Overlays: the image's own size, the image where nothing speaks, the outline where it is known."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sonobreast.evaluation.heatmap import overlay, panel, png_of

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def test_where_nothing_speaks_the_image_stays() -> None:
    assert (overlay(PICTURE, np.zeros((40, 60)), None) == PICTURE).all()
    r = np.zeros((40, 60))
    r[:10] = 1.0
    mixed = overlay(PICTURE, r, None)
    assert (mixed[10:] == PICTURE[10:]).all()
    assert (mixed[:10] != PICTURE[:10]).any()


def test_a_faint_probability_looks_faint() -> None:
    faint = np.full((40, 60), 0.02)
    assert (overlay(PICTURE, faint, None) != PICTURE).any()
    gap = overlay(PICTURE, faint, None, top=1.0).astype(int) - PICTURE
    assert np.abs(gap).max() < 10


def test_a_panel_holds_two_images_and_a_scale() -> None:
    both = panel(PICTURE, np.ones((40, 60)), None)
    assert both.shape == (40, 2 * 60 + 78, 3)
    assert (both[:, :60] == PICTURE).all()
    assert (both[:, 60:64] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_odd_sizes_can_be_drawn(size: tuple[int, int]) -> None:
    picture, lesion = np.zeros((*size, 3), np.uint8), np.ones(size, bool)
    for r in (np.zeros(size), np.ones(size)):
        assert panel(picture, r, lesion).shape[0] == size[0]


def test_the_outline_is_drawn_at_the_border_only() -> None:
    lesion = np.zeros((40, 60), bool)
    lesion[10:30, 20:40] = True
    drawn = (overlay(PICTURE, np.zeros((40, 60)), lesion) != PICTURE).any(axis=2)
    assert drawn[10, 20:40].all()
    assert not drawn[14:26, 24:36].any()
    assert not drawn[:8].any()


def test_the_same_picture_gives_the_same_file() -> None:
    assert png_of(PICTURE) == png_of(PICTURE.copy())
    assert Image.open(BytesIO(png_of(PICTURE, 30))).size == (30, 20)
