"""Pieces and diameters of masks against SciPy and against all pairs of corners."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from sonobreast.serving.lesion import feret, largest, measure, pieces


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8])
def test_pieces_are_those_of_scipy(seed: int, share: float) -> None:
    mask = np.random.default_rng([seed, int(100 * share)]).random((37, 53)) < share
    label, n = ndimage.label(mask, structure=np.ones((3, 3)))
    found = pieces(mask)
    assert len(found) == n
    drawn = np.zeros(mask.shape, int)
    for k, runs in enumerate(found, start=1):
        for row, start, stop in runs:
            assert not drawn[row, start:stop].any()
            drawn[row, start:stop] = k
        assert len(np.unique(label[drawn == k])) == 1
    assert np.array_equal(drawn > 0, mask)


def test_the_diameter_is_the_largest_distance_of_corners() -> None:
    y, x = np.mgrid[:60, :80]
    mask = np.hypot((y - 30) / 0.5, x - 40 + 0.7 * (y - 30)) < 25
    rows, columns = np.nonzero(mask)
    corners = np.unique(
        np.concatenate([np.stack([rows + i, columns + j], 1) for i in (0, 1) for j in (0, 1)]).astype(float), axis=0
    )
    longest = max(float(np.hypot(*(corners - c).T).max()) for c in corners)
    found = measure(mask, 0.1)
    assert found.diameter_px == pytest.approx(longest)
    assert found.diameter_mm == pytest.approx(0.1 * longest)
    assert (found.area_px, found.pieces) == (int(mask.sum()), 1)


def test_specks_far_away_do_not_make_a_lesion_large() -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:20, 10:16] = True
    mask[49, 49] = True
    found = measure(mask)
    assert found.diameter_px == pytest.approx(np.hypot(10, 6))
    assert (found.pieces, found.area_px, found.diameter_mm) == (2, 61, None)


def test_no_lesion_has_no_size() -> None:
    found = measure(np.zeros((5, 7), bool), 0.2)
    assert (found.area_px, found.pieces, found.diameter_px, found.diameter_mm) == (0, 0, 0.0, 0.0)


def test_one_pixel_and_a_full_mask() -> None:
    one = np.zeros((4, 4), bool)
    one[3, 0] = True
    assert measure(one).diameter_px == pytest.approx(np.sqrt(2))
    assert measure(np.ones((3, 4), bool)).diameter_px == pytest.approx(5.0)


def test_the_long_axis_is_measured_with_the_spacing_of_both_directions() -> None:
    box = np.zeros((60, 80), bool)
    box[10:40, 5:45] = True
    [runs] = pieces(box)
    assert feret(runs) == pytest.approx(50.0)  # 30 x 40
    assert feret(runs, (0.1, 0.2)) == pytest.approx(np.hypot(3.0, 8.0))
    y, x = np.mgrid[:200, :200]
    for angle in np.linspace(0, np.pi, 7):
        u, v = (
            (x - 100) * np.cos(angle) + (y - 100) * np.sin(angle),
            (y - 100) * np.cos(angle) - (x - 100) * np.sin(angle),
        )
        ellipse = (u / 70) ** 2 + (v / 30) ** 2 <= 1
        assert feret(largest(pieces(ellipse)), (0.5, 0.5)) == pytest.approx(70.0, abs=1.0)
