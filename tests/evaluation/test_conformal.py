"""Conformal sets: quantiles by hand, coverage over many splits; risk-coverage by hand."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from tests.tables import predictions

from sonobreast.evaluation.abstention import (
    abstention_metrics,
    area_of_oracle,
    area_under_risk_coverage,
    risk_coverage,
)
from sonobreast.evaluation.conformal import (
    cases_needed,
    class_quantiles,
    conformal_metrics,
    expected_coverage,
    grouped_halves,
    halved,
    quantile_rank,
)
from sonobreast.evaluation.decision_rule import abstains, prediction_sets
from sonobreast.evaluation.metrics import Scored
from sonobreast.evaluation.predictions import scored, whole_repeats


def exchangeable(n: int, seed: int = 0, classes: int = 3) -> Scored:
    """Cases drawn alike, of a model that is right more often than not; scores have no ties."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    p = rng.dirichlet(np.ones(classes), n)
    p[np.arange(n), label] += rng.gamma(1.0, 0.5, n)
    return scored(label, p, ("benign", "malignant", "normal")[:classes])


def test_quantiles_by_hand() -> None:
    # Class 0: nine cases of scores .1 .. .9; ceil(10 * .8) = 8th is .8. Class 1: three; ceil(4 * .8) = 4 > 3: infinite.
    p0 = 1 - np.arange(1, 10) / 10
    p1 = np.array([0.6, 0.7, 0.8])
    p = np.r_[np.stack([p0, 1 - p0], axis=1), np.stack([1 - p1, p1], axis=1)]
    levels = class_quantiles(p, np.r_[np.zeros(9), np.ones(3)], alpha=0.2)
    assert levels[0] == pytest.approx(0.8)
    assert math.isinf(levels[1])
    sets = prediction_sets([[0.3, 0.7], [0.1, 0.9]], levels)
    assert sets.tolist() == [[True, True], [False, True]]
    assert abstains(sets).tolist() == [True, False]
    assert abstains(sets, [[0.3, 0.7], [0.1, 0.9]], least=0.95).tolist() == [True, True]


@pytest.mark.parametrize(
    ("n", "rank", "expected"), [(9, 9, 0.9), (10, 10, 10 / 11), (19, 18, 0.9), (99, 90, 0.9), (8, 9, 1)]
)
def test_ranks_are_exact(n: int, rank: int, expected: float) -> None:
    assert quantile_rank(n, 0.1) == rank
    assert expected_coverage(n, 0.1) == pytest.approx(expected)


def test_too_few_cases_make_the_class_certain() -> None:
    assert [cases_needed(a) for a in (0.1, 0.05, 0.2)] == [9, 19, 4]
    for n in (8, 9):
        p = np.c_[np.linspace(0.1, 0.9, n), 1 - np.linspace(0.1, 0.9, n)]
        assert math.isinf(class_quantiles(p, np.zeros(n), 0.1)[0]) == (n < 9)


@pytest.mark.parametrize("n", [66, 150, 333])
def test_mean_coverage_of_each_class_over_400_splits(n: int) -> None:
    """Within two standard errors of ceil(0.9 (m + 1)) / (m + 1), m calibration cases: groups of one, drawn alike."""
    cases = exchangeable(n, seed=n)
    half = grouped_halves(np.arange(n), cases.label, 400)
    found = halved(cases, half, 0.1)
    for c in range(3):
        m = found.calibration[:, c]
        assert len(set(m)) == 1
        expected = math.ceil(0.9 * (m[0] + 1) - 1e-9) / (m[0] + 1)
        coverage = found.coverage[:, c]
        error = coverage.std(ddof=1) / math.sqrt(len(coverage))
        assert abs(coverage.mean() - expected) <= 2 * error
        assert found.expected[0, c] == pytest.approx(expected)


def test_coverage_of_fresh_draws_as_well() -> None:
    """New cases for every split: what the guarantee is about."""
    covered = []
    for seed in range(200):
        cases = exchangeable(117, seed=1000 + seed)  # 39 a class: 20 calibrate
        half = grouped_halves(np.arange(117), cases.label, 1, seed)
        covered.append(halved(cases, half, 0.1).coverage[0])
    mean, error = np.mean(covered, axis=0), np.std(covered, axis=0, ddof=1) / math.sqrt(200)
    assert (np.abs(mean - 19 / 21) <= 2 * error).all()


def test_halving_keeps_groups_together_and_classes_balanced() -> None:
    label = np.repeat([0, 1, 2], 40)
    codes = np.arange(120) // 3
    half = grouped_halves(codes, label, 50)
    for g in range(40):
        assert (half[:, codes == g] == half[:, [3 * g]]).all()
    share = [half[:, label == c].mean(axis=1) for c in range(3)]
    assert all(s.min() >= 0.4 and s.max() <= 0.6 for s in share)
    assert not np.array_equal(half[0], half[1])


def test_halved_is_quantiles_and_sets_put_together() -> None:
    cases = exchangeable(90)
    half = grouped_halves(np.arange(90) // 2, cases.label, 5)
    found = halved(cases, half, 0.15)
    for k in range(5):
        levels = class_quantiles(cases.probability[half[k]], cases.label[half[k]], 0.15)
        sets = prediction_sets(cases.probability[~half[k]], levels)
        truth = cases.label[~half[k]]
        for c in range(3):
            assert found.coverage[k, c] == pytest.approx(sets[truth == c, c].mean())
            assert found.size[k, c] == pytest.approx(sets[truth == c].sum(axis=1).mean())
        one = sets.sum(axis=1) == 1
        assert found.single[k] == pytest.approx(one.mean())
        assert found.single_right[k] == pytest.approx(sets[one, truth[one]].mean())
        assert found.single[k] + found.empty[k] + found.several[k] == pytest.approx(1)


def test_smaller_alpha_gives_larger_sets() -> None:
    cases = exchangeable(300)
    half = grouped_halves(np.arange(300), cases.label, 20)
    sizes = [np.nanmean(halved(cases, half, a).size) for a in (0.3, 0.2, 0.1, 0.05)]
    assert sizes == sorted(sizes)


def test_many_images_of_few_groups_are_said() -> None:
    found = conformal_metrics(whole_repeats(predictions(images=150, group_of=25)))
    assert any("groups; 9 groups are needed" in note for note in found["notes"])


def test_risk_coverage_by_hand() -> None:
    # Confidence .9 right, .8 wrong, .7 right, .6 wrong: risks 0, 1/2, 1/3, 1/2; area their mean, 1/3.
    covered, risk = risk_coverage([0.7, 0.9, 0.6, 0.8], [0, 0, 1, 1])
    np.testing.assert_allclose(covered, [[0.25, 0.5, 0.75, 1]])
    np.testing.assert_allclose(risk, [[0, 1 / 2, 1 / 3, 1 / 2]])
    assert area_under_risk_coverage(covered, risk)[0] == pytest.approx(1 / 3)
    # The best order has both right ones first: risks 0, 0, 1/3, 1/2.
    assert area_of_oracle(0.5, 4) == pytest.approx((1 / 3 + 1 / 2) / 4)
    tied, risk = risk_coverage(np.ones(4), [0, 0, 1, 1])
    assert tied.tolist() == [[1.0]]
    assert area_under_risk_coverage(tied, risk)[0] == 0.5
    # A weight of 2 is a case twice.
    a = area_under_risk_coverage(*risk_coverage([0.9, 0.8], [0, 1], [[1.0, 2.0]]))
    b = area_under_risk_coverage(*risk_coverage([0.9, 0.8, 0.8], [0, 1, 1]))
    assert a[0] == pytest.approx(b[0])


def test_risk_at_full_coverage_is_the_error_and_the_area_lies_between_oracle_and_it() -> None:
    found = abstention_metrics(whole_repeats(predictions(images=150, folds=3, seeds=(0, 1))), resamples=100)
    assert found["points"][0]["risk"]["estimate"] == pytest.approx(found["risk"])
    assert found["area_of_oracle"] < found["area"]["estimate"] < found["risk"]
    last = found["points"][-1]
    assert last["cancers_referred"] > 0.2
    assert last["cancers_missed"] <= found["points"][0]["cancers_missed"]


def test_bad_input_has_defined_answers_and_no_warnings() -> None:
    few = predictions(images=30)
    tables = [
        few,
        few.assign(group="one"),
        predictions(images=1),
        predictions(images=40, strength=1e9),
        few[few["label"] != "malignant"],
        few.assign(p_benign=1.0, p_malignant=0.0, p_normal=0.0),
        predictions(images=40, classes=("a", "b")),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [
            (conformal_metrics(whole_repeats(t)), abstention_metrics(whole_repeats(t), resamples=100)) for t in tables
        ]
    json.dumps(found)
    assert any("9 are needed for a coverage of 90 %" in note for note in found[0][0]["notes"])
    assert found[1][0]["reason"]
    assert found[2][1]["reason"] == "the test images are of one group"
    assert found[3][0]["per_class"]["benign"]["coverage"]["mean"] == 1
