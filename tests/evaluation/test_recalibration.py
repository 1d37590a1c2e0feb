"""Temperature and isotonic regression against brute force and scikit-learn; what they do with too few cases."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score
from tests.tables import predictions

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.decision_rule import TEMPERATURES, temperature_scaled
from sonobreast.evaluation.recalibration import fit_isotonic, fit_temperature, isotonic_scaled, recalibrated


def drawn(n: int, classes: int = 3, true_temperature: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the probabilities at `true_temperature`: what a model surer than it may be looks like."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, (n, classes))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    cumulative = temperature_scaled(p, true_temperature).cumsum(axis=1)
    return p, (rng.random(n)[:, None] > cumulative[:, :-1]).sum(axis=1)


def loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-300)).mean())


@pytest.mark.parametrize("truth", [0.6, 1.0, 2.0, 5.0])
def test_temperature_is_the_minimum_of_a_fine_grid(truth: float) -> None:
    p, y = drawn(400, true_temperature=truth)
    grid = np.exp(np.linspace(np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1]), 6001))
    best = grid[np.argmin([loss(temperature_scaled(p, t), y) for t in grid])]
    assert fit_temperature(p, y) == pytest.approx(best, rel=2e-3)


def test_temperature_finds_the_one_that_made_the_labels() -> None:
    p, y = drawn(20_000, true_temperature=2.5)
    assert fit_temperature(p, y) == pytest.approx(2.5, rel=0.03)


def test_temperature_one_changes_nothing_and_two_undo_each_other() -> None:
    p, _ = drawn(50)
    np.testing.assert_allclose(temperature_scaled(p, 1.0), p, atol=1e-12)
    np.testing.assert_allclose(temperature_scaled(temperature_scaled(p, 3.0), 1 / 3.0), p, atol=1e-9)


def test_temperature_keeps_the_decision_and_with_two_classes_the_auc() -> None:
    p, _ = drawn(300)
    assert np.array_equal(temperature_scaled(p, 4.0).argmax(axis=1), p.argmax(axis=1))
    q, label = drawn(300, classes=2)
    warm = temperature_scaled(q, 4.0)
    assert roc_auc_score(label, warm[:, 1]) == pytest.approx(roc_auc_score(label, q[:, 1]), abs=1e-12)


def test_temperature_of_the_extremes() -> None:
    sure = np.eye(3)[[0, 1, 2, 0]]  # exact zeros and ones
    assert fit_temperature(sure, np.array([0, 1, 2, 0])) == TEMPERATURES[0]
    assert fit_temperature(sure, np.array([1, 2, 0, 1])) == TEMPERATURES[1]
    assert fit_temperature(np.full((4, 3), 1 / 3), np.array([0, 1, 2, 0])) == 1.0
    assert np.isfinite(temperature_scaled(sure, TEMPERATURES[0])).all()
    with pytest.raises(SonobreastError, match="temperature of 0"):
        temperature_scaled(sure, 0.0)


def test_isotonic_is_scikit_learns_within_its_bounds() -> None:
    p, y = drawn(300, classes=2)
    own = np.interp(p[:, 1], *fit_isotonic(p, y).steps[1])
    reference = IsotonicRegression(out_of_bounds="clip").fit(p[:, 1], y == 1).predict(p[:, 1])
    np.testing.assert_allclose(own, np.clip(reference, 1 / 302, 301 / 302), atol=1e-9)
    np.testing.assert_allclose(isotonic_scaled(p, fit_isotonic(p, y))[:, 1], own, atol=1e-9)


def test_isotonic_is_monotone_and_improves_the_loss_it_was_fitted_on() -> None:
    p, y = drawn(400, classes=2, true_temperature=3.0)
    q = isotonic_scaled(p, fit_isotonic(p, y))
    assert (np.diff(q[np.argsort(p[:, 1]), 1]) >= -1e-12).all()
    assert loss(q, y) < loss(p, y)
    three, label = drawn(400, true_temperature=3.0)
    scaled = isotonic_scaled(three, fit_isotonic(three, label))
    np.testing.assert_allclose(scaled.sum(axis=1), 1.0)
    assert loss(scaled, label) < loss(three, label)


def test_the_maps_of_a_run_know_its_validation_images_only() -> None:
    table = predictions(images=180, folds=3)
    other = table.copy()
    test = other["subset"] == "test"
    other.loc[test, ["p_benign", "p_malignant", "p_normal"]] = np.roll(
        other.loc[test, ["p_benign", "p_malignant", "p_normal"]].to_numpy(), 1, axis=1
    )
    a, b = recalibrated(table), recalibrated(other)
    assert a.temperatures == b.temperatures
    assert len(set(a.temperatures.values())) == 3
    run = next(iter(a.temperatures))
    rows = (table["run"] == run) & (table["subset"] == "test")
    p = table.loc[rows, ["p_benign", "p_malignant", "p_normal"]].to_numpy()
    found = a.temperature.loc[rows[rows].index, ["p_benign", "p_malignant", "p_normal"]].to_numpy()
    np.testing.assert_allclose(found, temperature_scaled(p, a.temperatures[run]), atol=1e-12)
    assert set(a.raw["subset"]) == {"validation", "test"}


def test_too_few_validation_images_are_said_with_the_number_needed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few = recalibrated(predictions(images=12))
    assert set(few.temperatures.values()) == {1.0}
    assert few.isotonic is None
    assert not few.fitted
    assert "too few validation images for a temperature in 1 of 1 runs (12; 20 are needed)" in few.notes[0]
    assert "(12; 50 are needed)" in few.notes[1]
    some = predictions(images=60)
    lacking = recalibrated(some[(some["subset"] == "test") | (some["label"] != "malignant")])
    assert "the validation images of 1 of 1 runs hold no malignant" in lacking.notes
    assert lacking.isotonic is None
    assert lacking.fitted


def test_a_perfect_network_is_at_the_bound_and_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = recalibrated(predictions(images=60, strength=1e6))
    assert set(found.temperatures.values()) == {TEMPERATURES[0]}
    assert any("at its bound (0.05)" in note for note in found.notes)
