"""Parts of a scan: what is hidden leaves nothing of itself, and what is shown stays as it is."""

from __future__ import annotations

import numpy as np
import pytest

from sonobreast.data.marks import look
from sonobreast.data.phantom import simulate
from sonobreast.inspection import views
from sonobreast.inspection.corruptions import U8


@pytest.fixture(scope="module")
def scan() -> tuple[U8, views.Bits]:
    phantom = simulate(1, seed=3, size=320)
    return np.repeat(phantom.image[:, :, None], 3, axis=2), phantom.mask


@pytest.mark.parametrize("hide", [views.filled_smoothly, views.filled_grey])
def test_a_hidden_lesion_leaves_nothing(hide: object, scan: tuple[U8, views.Bits]) -> None:
    image, lesion = scan
    wide = views.widened(lesion)
    assert (wide & lesion).sum() == lesion.sum() < wide.sum()
    other = image.copy()
    other[lesion] = 255 - other[lesion]  # another lesion in the same place
    one, two = (hide(picture, wide) for picture in (image, other))  # type: ignore[operator]
    assert np.array_equal(one, two)
    assert np.array_equal(one[~wide], image[~wide])
    assert one.shape == image.shape
    assert one.dtype == np.uint8
    nothing = np.zeros_like(lesion)
    assert hide(image, nothing) is image  # type: ignore[operator]
    assert hide(image, ~nothing).std() == 0  # type: ignore[operator]


def test_a_smooth_filling_meets_its_rim() -> None:
    y, x = np.mgrid[:200, :240]
    slope = np.repeat(np.rint(40 + 0.4 * x + 0.3 * y).astype(np.uint8)[:, :, None], 3, axis=2)
    for size in (20, 140):  # solved as it is, and on a smaller picture
        hidden = np.zeros((200, 240), bool)
        hidden[30 : 30 + size, 50 : 50 + size] = True
        spoilt = slope.copy()
        spoilt[hidden] = 0
        assert np.abs(views.filled_smoothly(spoilt, hidden).astype(int) - slope).max() <= 4  # a plane is harmonic


def test_the_lesion_alone_and_the_border_alone(scan: tuple[U8, views.Bits]) -> None:
    image, lesion = scan
    alone = views.filled_grey_outside(image, lesion)
    assert np.array_equal(alone[lesion], image[lesion])
    assert len(np.unique(alone[~lesion])) == 1
    outline = views.outline_only(image, lesion)
    assert len(np.unique(outline)) == 2
    assert outline[lesion].max() < outline[~lesion].min()
    border = views.border_only(image)
    assert np.array_equal(border[:32], image[:32])
    assert np.array_equal(border[:, -32:], image[:, -32:])
    assert border[32:-32, 32:-32].std() == 0
    assert abs(float(border[32:-32, 32:-32].mean()) - np.r_[image[:32].ravel(), image[-32:].ravel()].mean()) < 60


def test_marks_that_are_added_are_marks(scan: tuple[U8, views.Bits]) -> None:
    image, lesion = scan
    assert not look(image).calipers
    measured = views.calipers_on(image, lesion, 1)
    assert look(measured).calipers
    rows, columns = (np.flatnonzero(lesion.any(axis=a)) for a in (1, 0))
    drawn = np.flatnonzero((measured != image).any(axis=(0, 2)))
    assert abs(drawn[0] - columns[0]) < 12
    drawn = np.flatnonzero((measured != image).any(axis=(1, 2)))
    assert abs(drawn[-1] - rows[-1]) < 12
    assert not np.array_equal(views.calipers_on(image, None, 1), views.calipers_on(image, None, 2))
    assert np.array_equal(views.calipers_on(image, np.zeros_like(lesion), 1), views.calipers_on(image, None, 1))
    assert look(views.text_on(image, 1)).text


def test_a_borrowed_outline_keeps_its_shape() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:20, 15:45] = True
    large = views.borrowed(mask, 80, 120)
    assert large.shape == (80, 120)
    assert large.sum() == 4 * mask.sum()
    assert views.borrowed(mask, 40, 60).tolist() == mask.tolist()
