"""Differences in Dice between configurations: paired, grouped, corrected."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tests.tables import masks, predictions, without

from sonobreast.evaluation.compare import holm
from sonobreast.evaluation.intervals import wilson_limits
from sonobreast.evaluation.segmentation_pairs import compare_dice


def drawn(optimizer: str, *, noise: int = 0, skill: float = 0.8, **options: object) -> pd.DataFrame:
    return masks(predictions(optimizer=optimizer, noise=noise, **options), noise=noise, skill=skill)  # type: ignore[arg-type]


def test_the_difference_is_that_of_a_plain_loop() -> None:
    table = pd.concat([drawn("adam", skill=0.9, group_of=3), drawn("sgdm", noise=1, skill=0.6, group_of=3)])
    found = compare_dice(table, resamples=300)
    assert found is not None
    pair = found["pairs"][0]
    a, b = (table[table["optimizer"] == o].sort_values("image") for o in ("adam", "sgdm"))
    difference = a["dice"].to_numpy() - b["dice"].to_numpy()
    codes = np.unique(a["group"], return_inverse=True)[1]
    count = codes.max() + 1
    values = []
    for chosen in np.random.default_rng(0).integers(count, size=(300, count)):
        rows = np.concatenate([np.flatnonzero(codes == g) for g in chosen])
        values.append(np.nanmean(difference[rows]))
    interval = pair["dice"]["interval"]
    assert (pair["a"]["optimizer"], pair["b"]["optimizer"]) == ("adam", "sgdm")
    assert interval["estimate"] == pytest.approx(np.nanmean(difference))
    assert (interval["low"], interval["high"]) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert pair["dice"]["a"] - pair["dice"]["b"] == pytest.approx(interval["estimate"])
    assert pair["n"] == np.isfinite(difference).sum()
    assert pair["dice"]["p_value"] == pytest.approx(2 / 301)
    assert found["family"] == 1
    assert pair["dice"]["p_holm"] == pair["dice"]["p_value"]


def test_pairing_is_narrower_than_two_sets_of_images() -> None:
    """What both find hard cancels: two that differ by little noise have a narrow interval."""
    one = drawn("adam", images=120)
    other = one.assign(optimizer="sgdm")
    other["dice"] = other["dice"] * 0.98
    found = compare_dice(pd.concat([one, other]), resamples=300)
    assert found is not None
    interval = found["pairs"][0]["dice"]["interval"]
    assert 0 < interval["low"] < interval["high"] < 0.02


def test_repeats_are_paired_seed_by_seed() -> None:
    table = pd.concat([drawn("adam", folds=2, seeds=(0, 1)), drawn("sgdm", noise=1, folds=2, seeds=(0, 1))])
    found = compare_dice(without(table, optimizer="sgdm", seed=1, fold=0), resamples=200)
    assert found is not None
    pair = found["pairs"][0]
    assert (pair["repeats"], pair["left_out"]) == (1, ["repeat 0, seed 1"])
    expected = compare_dice(without(table, seed=1), resamples=200)
    assert expected is not None
    assert pair["dice"] == expected["pairs"][0]["dice"]


def test_equal_ones_do_not_differ() -> None:
    one = drawn("adam")
    found = compare_dice(pd.concat([one, one.assign(optimizer="sgdm")]), resamples=200)
    assert found is not None
    dice, groups = found["pairs"][0]["dice"], found["pairs"][0]["groups"]
    assert (dice["interval"]["estimate"], dice["p_value"], dice["p_holm"]) == (0, 1, 1)
    reach = wilson_limits(0.0, groups, 0.95)[1]
    assert (dice["interval"]["low"], dice["interval"]["high"]) == pytest.approx((-reach, reach))


def test_few_lesions_that_separate_two_give_no_small_p() -> None:
    one = drawn("adam", images=100)
    other = one.assign(optimizer="sgdm")
    apart = other.index[other["dice"] > 0][:4]
    other.loc[apart, "dice"] = 0.0
    found = compare_dice(pd.concat([one, other]), resamples=2000)
    assert found is not None
    dice = found["pairs"][0]["dice"]
    assert dice["p_value"] == 2 * 0.5**4
    assert "sign test over the 4" in dice["test"]


def test_all_pairs_are_one_family() -> None:
    table = pd.concat([drawn(o, noise=i, skill=0.5 + 0.1 * i) for i, o in enumerate(("adam", "sgdm", "sgd", "adamw"))])
    found = compare_dice(table, resamples=500)
    assert found is not None
    tests = [p["dice"] for p in found["pairs"]]
    assert found["family"] == len(tests) == 6
    assert [t["p_holm"] for t in tests] == pytest.approx(list(holm([t["p_value"] for t in tests])))
    assert compare_dice(table[table["optimizer"] == "adam"]) is None


def test_what_cannot_be_compared_is_named() -> None:
    one, two, three = drawn("adam"), drawn("sgdm", noise=1), drawn("sgd", noise=2)
    two.loc[two["image"] == two["image"].iloc[0], "image"] = "another"
    three["true_area_px"] += 1
    found = compare_dice(pd.concat([one, two, three]), resamples=200)
    assert found is not None
    assert (found["pairs"], found["family"]) == ([], 0)
    said = [n["why"] for n in found["not_compared"]]
    assert sorted(said) == [
        "they were not tested on the same images in the same groups",
        "they were not tested on the same images in the same groups",
        "they were scored against different true masks",
    ]
    empty = pd.concat([t[t["truth"] == "empty"] for t in (drawn("adam"), drawn("sgdm", noise=1))])
    nothing = compare_dice(empty, resamples=200)
    assert nothing is not None
    assert nothing["not_compared"][0]["why"] == "no test image has an outlined lesion"
