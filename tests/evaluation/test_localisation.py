"""Scores of a map against a mask: by hand, by their properties, and on maps that show nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.localisation import (
    CENTRE,
    centre_blob,
    energy_inside,
    iou_of_area,
    iou_of_top,
    localisation_figures,
    pointing_game,
    sanity_figures,
    score_map,
    similarity,
)

LESION = np.zeros((10, 10), bool)
LESION[2:4, 2:4] = True  # 4 of 100 pixels


def spot(*places: tuple[int, int], value: float = 1.0) -> np.ndarray:
    r = np.zeros((10, 10))
    for p in places:
        r[p] = value
    return r


def test_the_pointing_game_by_hand() -> None:
    assert pointing_game(spot((2, 2)), LESION) == 1.0
    assert pointing_game(spot((2, 4)), LESION, tolerance=0.0) == 0.0
    assert pointing_game(spot((2, 4)), LESION, tolerance=0.1) == 1.0  # one pixel of ten beside it
    assert pointing_game(spot((2, 2), (9, 9)), LESION, tolerance=0.0) == 0.5
    assert pointing_game(np.zeros((10, 10)), LESION) == 0.0
    assert np.isnan(pointing_game(spot((2, 2)), np.zeros((10, 10), bool)))


def test_energy_by_hand() -> None:
    r = spot((2, 2), (3, 3), (9, 9)) + spot((0, 0), value=-5.0)
    assert energy_inside(r, LESION) == pytest.approx(2 / 3)  # what speaks against the class does not count
    assert energy_inside(np.ones((10, 10)), LESION) == pytest.approx(0.04)
    assert np.isnan(energy_inside(np.zeros((10, 10)), LESION))


def test_iou_by_hand() -> None:
    r = spot((2, 2), (2, 3), value=5.0) + spot((9, 8), (9, 9), value=4.0) + 0.1
    assert iou_of_area(r, LESION) == pytest.approx(2 / 6)  # four pixels, two of them in the lesion
    assert iou_of_top(r, LESION, share=0.02) == pytest.approx(2 / 4)
    assert iou_of_area(LESION.astype(float), LESION) == 1.0
    assert iou_of_area(np.ones((10, 10)), LESION) == pytest.approx(0.04)  # ties all count
    assert iou_of_top(spot((2, 2)), LESION) == pytest.approx(1 / 4)  # pixels without relevance are never on top


def test_scores_do_not_depend_on_the_size_of_the_values() -> None:
    r = np.random.default_rng(0).random((10, 10))
    a, b = score_map(r, LESION), score_map(1e-6 * r, LESION)
    assert a == pytest.approx(b)
    turned = score_map(r[::-1].T, LESION[::-1].T)
    assert a == pytest.approx(turned)
    assert a["gain"] == pytest.approx(a["energy"] - 0.04)


def test_without_a_lesion_there_are_no_scores() -> None:
    assert all(np.isnan(v) for v in score_map(spot((2, 2)), np.zeros((10, 10), bool)).values())


@pytest.mark.parametrize("bad", [np.full((10, 10), np.nan), np.zeros((9, 10)), np.zeros((0, 0)), np.zeros(10)])
def test_what_is_no_map_is_said(bad: np.ndarray) -> None:
    with pytest.raises(SonobreastError, match="map"):
        score_map(bad, LESION)


def test_the_blob_is_in_the_middle() -> None:
    blob = centre_blob(11, 21)
    assert np.unravel_index(blob.argmax(), blob.shape) == (5, 10)
    assert blob.max() == 1.0
    assert np.allclose(blob, blob[::-1, ::-1])
    assert centre_blob(1, 1).tolist() == [[1.0]]


def test_similarity_of_a_map_with_itself_and_with_its_negative() -> None:
    r = np.random.default_rng(1).random((16, 16))
    assert similarity(r, 3 * r + 1) == pytest.approx({"spearman": 1.0, "ssim": 1.0})
    assert similarity(r, -r)["spearman"] == pytest.approx(-1.0)
    assert np.isnan(similarity(r, np.zeros((16, 16)))["spearman"])


def rows(method: str, energies: list[float], **more: object) -> list[dict[str, object]]:
    scores = {"pointing": 1.0, "iou_area": 0.5, "iou_top": 0.5, "area": 0.1}
    return [
        {"image": f"i{i}", "group": f"g{i // 2}", "method": method, "label": "benign", "correct": i % 2, **scores}
        | {"energy": e, "gain": e - 0.1}
        | more
        for i, e in enumerate(energies)
    ]


def test_means_per_part_and_against_the_blob_on_the_same_images() -> None:
    table = pd.DataFrame([*rows("gradcam", [0.2, 0.4, 0.6, 0.8]), *rows(CENTRE, [0.1, 0.1, 0.3, 0.3, 0.9, 0.9])])
    found = {(f["method"], f["part"]): f for f in localisation_figures(table, resamples=200)}
    mine = found["gradcam", "all"]
    assert mine["energy"]["estimate"] == pytest.approx(0.5)
    assert mine["gain"]["estimate"] == pytest.approx(0.4)
    assert mine["over_centre"]["energy"]["estimate"] == pytest.approx(0.3)  # not against the blob's own mean of 0.43
    assert mine["groups"] == 2
    assert found["gradcam", "right"]["energy"]["estimate"] == pytest.approx(0.6)
    assert found["gradcam", "wrong"]["energy"]["estimate"] == pytest.approx(0.4)
    assert found["gradcam", "benign"]["images"] == 4
    assert mine["energy"]["low"] <= 0.5 <= mine["energy"]["high"]


def test_empty_maps_are_counted_and_left_out_of_the_energy() -> None:
    table = pd.DataFrame([*rows("gradcam", [0.2, float("nan")]), *rows(CENTRE, [0.1, 0.1])])
    [mine] = [f for f in localisation_figures(table, resamples=100) if (f["method"], f["part"]) == ("gradcam", "all")]
    assert mine["empty"] == 1
    assert mine["energy"]["estimate"] == pytest.approx(0.2)


def test_unlabelled_images_belong_to_no_class_and_are_neither_right_nor_wrong() -> None:
    table = pd.DataFrame(rows("gradcam", [0.2, 0.4], label="", correct=""))
    assert {f["part"] for f in localisation_figures(table, resamples=100)} == {"all"}


def test_a_map_that_hardly_changes_is_marked() -> None:
    common = {"ssim": 0.5, "gain": 0.1, "gain_trained": 0.3}
    given = [
        {"method": "a", "step": "all", "spearman": 0.9, **common},
        {"method": "a", "step": "all", "spearman": 0.3, **common},
        {"method": "b", "step": "all", "spearman": float("nan"), **common},
    ]
    a, b = sanity_figures(given)
    assert (a["spearman"], a["unchanged"], a["vanished"]) == (pytest.approx(0.6), True, 0)
    assert (b["unchanged"], b["vanished"]) == (False, 1)
    assert sanity_figures([]) == []


def test_gains_before_and_after_are_of_the_same_images() -> None:
    """A map that vanished has no gain: the trained one of that image is then no part of the comparison, either."""
    row = {"method": "gradcam", "step": "all", "spearman": 0.1, "ssim": 0.1}
    given = [row | {"gain": 0.1, "gain_trained": 0.2}, row | {"gain": np.nan, "gain_trained": 0.8}]
    [found] = sanity_figures(given)
    assert (found["gain"], found["gain_trained"]) == (pytest.approx(0.1), pytest.approx(0.2))
    [none] = sanity_figures(given[1:])
    assert np.isnan(none["gain"])
    assert np.isnan(none["gain_trained"])
