"""Mask measures against golden values, brute force, scikit-learn, and their properties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, jaccard_score

from sonobreast.data.manifest import Manifest
from sonobreast.data.masks_out import true_mask
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.segmentation import dice, hausdorff95, iou, mask_row
from sonobreast.records import MASK_COLUMNS

EMPTY = np.zeros((12, 15), bool)


def box(top: int, left: int, height: int, width: int, shape: tuple[int, int] = (12, 15)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def blobs(seed: int, shape: tuple[int, int] = (14, 17)) -> np.ndarray:
    """A random mask: some large pieces, single pixels, holes, pieces at the edge; never empty."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < rng.choice([0.03, 0.3, 0.8])
    top, left = rng.integers(0, 9, 2)
    mask[top : top + 5, left : left + 6] ^= True
    mask[tuple(rng.integers(0, shape))] = True
    return mask


def border(mask: np.ndarray) -> np.ndarray:
    """Border pixels (k, 2) in plain loops: those with a 4-neighbour outside the mask or the image."""
    height, width = mask.shape
    found = []
    for y in range(height):
        for x in range(width):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            if mask[y, x] and not all(0 <= i < height and 0 <= j < width and mask[i, j] for i, j in around):
                found.append((y, x))
    return np.array(found, float)


def by_brute_force(a: np.ndarray, b: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    distance = cdist(border(a) * spacing, border(b) * spacing)
    return float(max(np.percentile(distance.min(axis=1), 95), np.percentile(distance.min(axis=0), 95)))


# ---- overlap


def test_overlap_of_two_boxes() -> None:
    # 4 x 5 and 4 x 5 pixels that share 2 x 3: Dice 12 / 40, intersection over union 6 / 34.
    a, b = box(2, 3, 4, 5), box(4, 5, 4, 5)
    assert dice(a, b) == 12 / 40
    assert iou(a, b) == 6 / 34


@pytest.mark.parametrize("seed", range(8))
def test_overlap_is_that_of_scikit_learn_and_symmetric(seed: int) -> None:
    a, b = blobs(seed), blobs(seed + 100)
    assert dice(a, b) == dice(b, a) == pytest.approx(f1_score(b.ravel(), a.ravel()))
    assert iou(a, b) == iou(b, a) == pytest.approx(jaccard_score(b.ravel(), a.ravel()))
    assert iou(a, b) == pytest.approx(dice(a, b) / (2 - dice(a, b)))
    assert dice(a, a) == iou(a, a) == 1


@pytest.mark.parametrize("measure", [dice, iou])
def test_empty_masks_are_no_perfect_overlap(measure: Any) -> None:
    assert math.isnan(measure(EMPTY, EMPTY))
    assert measure(EMPTY, box(1, 1, 3, 3)) == measure(box(1, 1, 3, 3), EMPTY) == 0
    assert measure(box(0, 0, 2, 2), box(8, 8, 2, 2)) == 0


# ---- distance


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.07, 0.11)])
def test_the_distance_is_that_of_brute_force(seed: int, spacing: tuple[float, float]) -> None:
    a, b = blobs(seed), blobs(seed + 100)
    assert hausdorff95(a, b, spacing) == pytest.approx(by_brute_force(a, b, spacing), rel=1e-12)


def test_distance_of_a_box_and_a_shifted_one() -> None:
    # 10 x 10 boxes, one 3 pixels to the right of the other. Recipe: no border pixel of the left box (36 of them) is
    # more than 3 away from the other border, and its left column, 10 of the 36, is 3 away. The other way round as well.
    a, b = box(5, 5, 10, 10, (30, 30)), box(5, 8, 10, 10, (30, 30))
    assert hausdorff95(a, b) == 3.0


def test_it_is_the_larger_of_the_two_directed_percentiles() -> None:
    # A line of 100 pixels, and the same line with a further dot 50 pixels off. From the line all distances are 0; from
    # the 101 pixels, 100 are 0 and one is 50: both 95th percentiles are 0. With 10 dots, 10 of 110 are 50 away:
    # the percentile of that direction is 50, that of both directions together (10 of 210) would be 0.
    line = box(10, 0, 1, 100, (100, 100))
    one, ten = line.copy(), line.copy()
    one[60, 0] = True
    ten[60, ::11] = True
    assert ten.sum() == 110
    assert hausdorff95(one, line) == 0
    assert hausdorff95(ten, line) == hausdorff95(line, ten) == 50


@pytest.mark.parametrize("seed", range(6))
def test_properties_of_the_distance(seed: int) -> None:
    a, b = blobs(seed), blobs(seed + 100)
    distance = hausdorff95(a, b)
    assert hausdorff95(a, a) == 0
    assert hausdorff95(b, a) == distance
    assert hausdorff95(a[::-1], b[::-1]) == pytest.approx(distance)
    assert hausdorff95(a.T, b.T) == pytest.approx(distance)
    assert hausdorff95(a, b, (0.08, 0.08)) == pytest.approx(0.08 * distance)
    assert hausdorff95(a, b, (2.0, 5.0)) == pytest.approx(hausdorff95(a.T, b.T, (5.0, 2.0)))


@pytest.mark.parametrize("seed", range(6))
def test_the_distance_does_not_depend_on_where_the_lesions_lie(seed: int) -> None:
    a, b = blobs(seed), blobs(seed + 100)
    places = [((0, 0), (0, 0)), ((3, 7), (11, 2)), ((200, 0), (0, 300))]
    values = [hausdorff95(np.pad(a, p), np.pad(b, p)) for p in places]
    assert values == pytest.approx([values[0]] * 3)


def test_a_shift_is_the_distance_of_a_single_pixel_and_bounds_that_of_a_lesion() -> None:
    dot = box(4, 4, 1, 1, (60, 60))
    assert hausdorff95(dot, np.roll(dot, (3, 4), (0, 1))) == 5
    y, x = np.mgrid[:60, :60]
    disc = np.hypot(y - 28, x - 30) < 14
    assert 0 < hausdorff95(disc, np.roll(disc, (3, 4), (0, 1))) <= 5


def test_a_missed_lesion_has_no_distance() -> None:
    assert math.isnan(hausdorff95(EMPTY, box(1, 1, 3, 3)))
    assert math.isnan(hausdorff95(box(1, 1, 3, 3), EMPTY))
    assert math.isnan(hausdorff95(EMPTY, EMPTY))


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_spacing_that_is_none_is_refused(spacing: tuple[float, float]) -> None:
    with pytest.raises(SonobreastError, match="pixel spacing"):
        hausdorff95(box(1, 1, 3, 3), box(1, 1, 3, 3), spacing)


@pytest.mark.parametrize("measure", [dice, iou, hausdorff95])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (EMPTY, EMPTY.T),
        (EMPTY.astype(int), EMPTY),
        (EMPTY, EMPTY.astype(float)),
        (EMPTY[0], EMPTY[0]),
        (EMPTY[:0], EMPTY[:0]),
    ],
)
def test_what_are_no_masks_of_one_image_is_refused(measure: Any, a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(SonobreastError, match="mask"):
        measure(a, b)


# ---- the row of an image


def test_the_row_of_a_lesion() -> None:
    a, b = box(2, 3, 4, 5), box(4, 5, 4, 5)
    assert mask_row(a, b, 0.5) == {
        "truth": "lesion",
        "true_area_px": 20,
        "predicted_area_px": 20,
        "dice": 0.3,
        "iou": 6 / 34,
        "hd95_px": by_brute_force(a, b),
        "hd95_mm": 0.5 * by_brute_force(a, b),
        "false_positive_share": None,
    }
    assert mask_row(a, b)["hd95_mm"] is None


def test_the_row_of_a_missed_lesion() -> None:
    row = mask_row(EMPTY, box(4, 5, 4, 5), 0.5)
    assert (row["truth"], row["dice"], row["iou"], row["predicted_area_px"]) == ("lesion", 0, 0, 0)
    assert row["hd95_px"] is row["hd95_mm"] is row["false_positive_share"] is None


@pytest.mark.parametrize(("predicted", "share"), [(EMPTY, 0.0), (box(0, 0, 6, 3), 18 / 180)])
def test_the_row_of_an_image_without_a_lesion(predicted: np.ndarray, share: float) -> None:
    row = mask_row(predicted, EMPTY, 0.5)
    assert (row["truth"], row["true_area_px"], row["false_positive_share"]) == ("empty", 0, share)
    assert row["dice"] is row["iou"] is row["hd95_px"] is row["hd95_mm"] is None


def test_the_row_of_an_image_that_nobody_outlined() -> None:
    row = mask_row(box(0, 0, 6, 3), None, 0.5)
    assert {k: v for k, v in row.items() if v is not None} == {"truth": "unknown", "predicted_area_px": 18}


def test_rows_have_the_columns_of_the_table_and_bad_ones_are_refused() -> None:
    for truth in (None, EMPTY, box(1, 1, 3, 3)):
        assert tuple(mask_row(box(0, 0, 6, 3), truth)) == MASK_COLUMNS
    with pytest.raises(SonobreastError, match="mask"):
        mask_row(EMPTY.T, EMPTY)
    with pytest.raises(SonobreastError, match="mask"):
        mask_row(EMPTY.astype(float), None)  # type: ignore[arg-type]
    with pytest.raises(SonobreastError, match="spacing"):
        mask_row(box(0, 0, 6, 3), box(0, 0, 6, 3), 0.0)


def test_shifted_lesions_of_busi(real_busi: Manifest) -> None:
    """A lesion that is moved 3 down and 4 across is at most 5 pixels away, and the same distance as by scikit-learn."""
    for case in [c for c in real_busi.cases if c.label != "normal"][::40]:
        truth = true_mask(real_busi.root, case)
        assert truth is not None
        moved = np.zeros_like(truth)
        moved[3:, 4:] = truth[:-3, :-4]
        row = mask_row(moved, truth)
        assert row["dice"] == pytest.approx(f1_score(truth.ravel(), moved.ravel()))
        assert isinstance(row["hd95_px"], float)
        assert 0 < row["hd95_px"] <= 5.0001 or moved.sum() < truth.sum()  # part of it was pushed out of the image
