"""Reliability, ECE and Brier parts against hand-made values and scikit-learn."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from tests.tables import predictions

from sonobreast.evaluation.calibration import (
    bin_edges,
    bin_of,
    brier_parts,
    calibration_metrics,
    ece_if_calibrated,
    ece_interval,
    expected_calibration_error,
    reliability_diagram,
)
from sonobreast.evaluation.recalibration import recalibrated


def sample(n: int = 600, seed: int = 0, power: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and outcomes that happen with probability score ** power: calibrated for 1."""
    rng = np.random.default_rng(seed)
    s = rng.beta(0.7, 1.2, n)
    return s, rng.random(n) < s**power


def test_ece_by_hand() -> None:
    # Two bins of two: (.1, .2 | none happens) is .15 off, (.8, .9 | one of two) .35: (2*.15 + 2*.35)/4 = .25.
    assert expected_calibration_error([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 0], bins=2) == pytest.approx(0.25)


def test_ece_is_zero_where_every_bin_is_right() -> None:
    s, y = np.repeat([0.25, 0.75], 4), np.array([0, 0, 0, 1, 1, 1, 1, 0])
    assert expected_calibration_error(s, y, bins=2) == pytest.approx(0, abs=1e-15)
    assert expected_calibration_error([0.0, 0.0, 1.0], [0, 0, 1], bins=2) == 0


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_bins_are_those_of_scikit_learn(bins: int) -> None:
    s, y = sample()
    seen, said = calibration_curve(y, s, n_bins=bins, strategy="quantile")
    rows = reliability_diagram([s], [y], np.arange(len(s)), bins=bins, resamples=100)
    np.testing.assert_allclose([r["score"] for r in rows], said)
    np.testing.assert_allclose([r["estimate"] for r in rows], seen)
    count = np.bincount(bin_of(s, bin_edges(s, bins)))
    assert expected_calibration_error(s, y, bins) == pytest.approx(float(count @ np.abs(seen - said) / len(s)))


def test_equal_mass_bins_hold_equally_many_and_ties_stay_together() -> None:
    s, _ = sample(600)
    assert set(np.bincount(bin_of(s, bin_edges(s)))) == {60}
    tied = np.r_[np.zeros(500), np.linspace(0.1, 1, 100)]
    assert len(np.unique(bin_of(tied, bin_edges(tied))[:500])) == 1
    assert len(bin_edges(np.zeros(63))) - 1 == 3
    assert len(bin_edges(np.zeros(5))) - 1 == 1


def test_brier_is_scikit_learns_and_the_parts_add_up() -> None:
    s, y = sample(power=2.0)
    parts = brier_parts(s, y)
    assert parts.brier == pytest.approx(brier_score_loss(y, s))
    assert parts.reliability - parts.resolution + parts.uncertainty + parts.within == pytest.approx(
        parts.brier, abs=1e-14
    )
    index = bin_of(s, bin_edges(s))
    binned = (np.bincount(index, s) / np.bincount(index))[index]
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(brier_score_loss(y, binned))


def test_brier_parts_by_hand() -> None:
    # Murphy's own kind of table: forecasts of .2 (5 times, 1 hit) and .6 (5 times, 4 hits); overall .5.
    s, y = np.repeat([0.2, 0.6], 5), np.r_[1, 0, 0, 0, 0, 1, 1, 1, 1, 0]
    parts = brier_parts(s, y, bins=2)
    assert parts.reliability == pytest.approx(0.5 * 0.0 + 0.5 * 0.2**2)
    assert parts.resolution == pytest.approx(0.3**2)
    assert parts.uncertainty == 0.25
    assert parts.within == pytest.approx(0, abs=1e-15)


def test_what_chance_gives_a_calibrated_model() -> None:
    s, _ = sample(300)
    mean, high = ece_if_calibrated([s], np.arange(300))
    rng = np.random.default_rng(1)
    seen = [expected_calibration_error(s, rng.random(300) < s) for _ in range(300)]
    assert mean == pytest.approx(np.mean(seen), rel=0.06)
    assert high == pytest.approx(np.quantile(seen, 0.95), rel=0.1)
    grouped, _ = ece_if_calibrated([s], np.arange(300) // 6)
    assert grouped > 1.1 * mean  # cases that happen together tell less


def test_the_interval_of_ece_covers_where_percentiles_do_not() -> None:
    hits = 0
    for k in range(60):
        s, y = sample(300, seed=k)
        codes = np.arange(300)
        found = ece_interval([s], [y], codes, ece_if_calibrated([s], codes, simulations=100)[1], resamples=200)
        hits += found.low == 0.0
        assert found.low <= found.estimate <= found.high
    assert hits >= 52  # a calibrated model: 0 belongs to the interval in 95 % of the sets
    s, y = sample(1500, power=3.0)
    off = ece_interval([s], [y], np.arange(1500), ece_if_calibrated([s], np.arange(1500))[1], resamples=200)
    truth = float(np.mean(s - s**3))
    assert 0 < off.low < truth < off.high


def test_luck_does_not_make_the_calibration_error_sure_to_be_small() -> None:
    """Scores above the median are too low, those below too high; resamples of a set that hides it are not believed."""

    def drawn(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        s = 1.0 - 0.5 * rng.beta(1, 2, n)
        return s, rng.random(n) < np.clip(s + 0.12 * np.sign(s - np.median(s)), 0.0, 1.0)

    true = expected_calibration_error(*drawn(200_000, np.random.default_rng(99)))
    codes = np.arange(150)
    held = []
    for seed in range(40):
        s, y = drawn(150, np.random.default_rng(seed))
        chance = ece_if_calibrated([s], codes, simulations=100)[1]
        found = ece_interval([s], [y], codes, chance, resamples=200)
        assert found.low <= found.estimate < found.high
        held.append(found.low <= true <= found.high)
    assert sum(held) >= 36


def test_the_metrics_of_a_study() -> None:
    found = calibration_metrics(recalibrated(predictions(images=180, folds=3, seeds=(0, 1), group_of=2)), resamples=100)
    assert found["reason"] == ""
    assert set(found["variants"]) == {"none", "temperature", "isotonic"}
    assert found["runs"] == 6
    assert found["bins"] == 9
    assert found["validation_images"] == 60
    for variant in found["variants"].values():
        event = variant["malignancy"]
        parts = event["parts"]
        assert math.fsum([parts["reliability"], -parts["resolution"], parts["uncertainty"], parts["within"]]) == (
            pytest.approx(event["brier"]["estimate"])
        )
        assert sum(row["n"] for row in event["diagram"]) == pytest.approx(180)
        assert event["ece"]["groups"] == 90
    warm, cold = found["variants"]["temperature"]["log_loss"], found["variants"]["none"]["log_loss"]
    assert warm["estimate"] < cold["estimate"]  # here validation rows are the test rows


def one_sided(table: pd.DataFrame, column: str) -> pd.DataFrame:
    names = ["p_benign", "p_malignant", "p_normal"]
    return table.assign(**{n: float(n == column) for n in names}, predicted=column.removeprefix("p_"))


@pytest.mark.parametrize(
    "table",
    [
        one_sided(predictions(images=60), "p_malignant"),
        one_sided(predictions(images=60), "p_normal"),
        predictions(images=60, strength=1e9),
        predictions(images=60, classes=("a", "b")),
        predictions(images=45).assign(group="one"),
        predictions(images=60).query("subset == 'test' or label != 'malignant'"),
        predictions(images=90).query("label != 'malignant'"),
        predictions(images=1),
    ],
    ids=["all malignant", "all normal", "sure", "no malignant class", "one group", "none to fit", "no cancer", "one"],
)
def test_bad_input_has_defined_answers_and_no_warnings(table: pd.DataFrame) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = calibration_metrics(recalibrated(table), resamples=100)
    json.dumps(found)
    if table["image"].nunique() == 1:
        assert found["reason"] == "1 test image: 40 are needed for two bins of 20"
    else:
        assert found["variants"]["none"]["top"]["ece"]["estimate"] >= 0
