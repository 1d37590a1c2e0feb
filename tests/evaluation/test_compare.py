"""Comparisons against published worked examples, direct definitions, and their own symmetries."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score
from statsmodels.stats.multitest import multipletests

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.compare import delong, holm, mcnemar_exact, paired_difference, spread
from sonobreast.evaluation.intervals import bootstrap, wilson
from sonobreast.evaluation.metrics import Scored, evaluate, metric_names

BUSI = ("benign", "malignant", "normal")


def make(n: int, seed: int = 0, skill: float = 1.5) -> Scored:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    logits = rng.normal(size=(n, 3)) + skill * np.eye(3)[label]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Scored(label, probability.argmax(axis=1), probability, BUSI)


# ---- McNemar


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


@pytest.mark.parametrize(
    ("table", "p"),
    [
        # Fagerland, Lydersen & Laake 2013, BMC Med Res Methodol 13:91: airway hyper-responsiveness (exact conditional
        # .070 = 2 P(X <= 1 | 8, 1/2) = 18/256) and complete response after chemotherapy (.052 = 2 P(X <= 6 | 22, 1/2)).
        ((1, 1, 7, 12), 18 / 256),
        ((59, 6, 16, 80), 0.0525),
        # Aulia 2026: three test images separate the best configuration from Adam; p cannot fall below .25.
        ((55, 3, 0, 5), 0.25),
        ((10, 0, 0, 3), 1.0),
    ],
)
def test_mcnemar_gives_the_published_p(table: tuple[int, int, int, int], p: float) -> None:
    result = mcnemar_exact(*pairs(*table))
    assert result.p_value == pytest.approx(p, abs=5e-5)
    assert (result.both_right, result.only_a, result.only_b, result.both_wrong) == table
    discordant = table[1] + table[2]
    assert result.smallest_p == pytest.approx(stats.binomtest(0, discordant).pvalue if discordant else 1.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(deadline=None)
def test_mcnemar_is_symmetric_and_equals_the_binomial_test(cases: list[tuple[bool, bool]]) -> None:
    a, b = np.array(cases).T
    forward, backward = mcnemar_exact(a, b), mcnemar_exact(b, a)
    assert forward.p_value == backward.p_value
    assert (forward.only_a, forward.only_b) == (backward.only_b, backward.only_a)
    discordant = int(np.sum(a != b))
    if discordant:
        assert forward.p_value == pytest.approx(stats.binomtest(forward.only_a, discordant).pvalue)
    assert forward.p_value >= forward.smallest_p - 1e-12


def test_mcnemar_refuses_groups_and_nonsense() -> None:
    a, b = pairs(2, 1, 1, 0)
    assert mcnemar_exact(a, b, group=[0, 1, 2, 3]) == mcnemar_exact(a, b)
    with pytest.raises(SonobreastError, match="paired_difference"):
        mcnemar_exact(a, b, group=[0, 0, 1, 2])
    for left, right in ((a, b[:-1]), ([], []), ([0.7, 1], [0, 1])):
        with pytest.raises(SonobreastError):
            mcnemar_exact(left, right)


# ---- DeLong


def placements(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition (DeLong 1988, equations 2 and 3): every cancer against every other case."""
    wins = (score[label][:, None] > score[~label]) + 0.5 * (score[label][:, None] == score[~label])
    return wins.mean(axis=1), wins.mean(axis=0)


@given(st.integers(0, 10**6), st.integers(4, 60), st.integers(2, 30))
@settings(deadline=None, max_examples=80)
def test_delong_equals_the_direct_definition(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.random(n) < 0.4
    label[:4] = [True, True, False, False]
    first, second = rng.integers(levels, size=(2, n)) + label * rng.integers(0, 3, size=(2, n))
    result = delong(label, first, second, group=np.arange(n))
    (a10, a01), (b10, b01) = placements(label, first), placements(label, second)
    covariance = np.cov(a10, b10) / label.sum() + np.cov(a01, b01) / (~label).sum()
    assert (result.auc_a, result.auc_b) == pytest.approx((roc_auc_score(label, first), roc_auc_score(label, second)))
    assert result.error_a**2 == pytest.approx(covariance[0, 0], abs=1e-14)
    assert result.error_b**2 == pytest.approx(covariance[1, 1], abs=1e-14)
    assert result.covariance == pytest.approx(covariance[0, 1], abs=1e-14)
    variance = np.array([1, -1]) @ covariance @ np.array([1, -1])
    if variance > 1e-12:
        z = (a10.mean() - b10.mean()) / math.sqrt(variance)
        assert result.z == pytest.approx(z)
        assert result.p_value == pytest.approx(2 * stats.norm.sf(abs(z)))
        other_way = delong(label, second, first, group=np.arange(n))
        assert (other_way.z, other_way.p_value) == pytest.approx((-result.z, result.p_value))
        assert other_way.interval.low == pytest.approx(-result.interval.high)


# Albumin, total protein, K-G score, outcome of 43 patients: the data of DeLong et al. 1988, as in the SAS/STAT example
# "Comparing Receiver Operating Characteristic Curves" (PROC LOGISTIC; the score is 10 minus the printed one, event 0).
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def test_delong_gives_the_published_worked_example() -> None:
    # SAS/STAT prints for total protein the area .6478 (standard error .1000), for the K-G score .7258 (.1028), for the
    # first less the second -.0780 and -.2830 to .1271.
    _, protein, printed, outcome = np.array(OVARIAN.split(), dtype=float).reshape(43, 4).T
    event, group = outcome == 0, np.arange(43)
    result = delong(event, -protein, -(10 - printed), group=group)
    assert [round(v, 4) for v in (result.auc_a, result.error_a)] == [0.6478, 0.1000]
    assert [round(v, 4) for v in (result.auc_b, result.error_b)] == [0.7258, 0.1028]
    interval = result.interval
    assert [round(v, 4) for v in (interval.estimate, interval.low, interval.high)] == [-0.0780, -0.2830, 0.1271]


def test_delong_agrees_with_the_bootstrap_of_independent_cases() -> None:
    a, b = make(300, 1, 2.0), make(300, 2, 1.0)
    test = delong(a.label == 1, a.probability[:, 1], b.probability[:, 1], group=np.arange(300))
    resampled = paired_difference([a], [b], np.arange(300), metrics=["auc_malignant"])["auc_malignant"]
    assert resampled.interval.estimate == pytest.approx(test.interval.estimate)
    assert (resampled.interval.low, resampled.interval.high) == pytest.approx(
        (test.interval.low, test.interval.high), abs=0.01
    )


def test_delong_with_equal_scores_claims_nothing() -> None:
    label, score = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.4, 0.5, 0.2, 0.1])
    result = delong(label, score, score, group=np.arange(5))
    assert result.p_value == 1.0
    assert math.isnan(result.interval.low)
    assert result.interval.method == "undefined"


def test_delong_refuses_groups_and_nonsense() -> None:
    label, score = np.array([1, 1, 0, 0]), np.array([0.9, 0.4, 0.5, 0.2])
    with pytest.raises(SonobreastError, match=r"independent cases.*\n.*paired_difference"):
        delong(label, score, score, group=[0, 0, 1, 2])
    for bad_label, bad_score in (([1, 0, 0, 0], score), ([1, 2, 0, 0], score), (label, [math.nan, 1, 2, 3])):
        with pytest.raises(SonobreastError):
            delong(bad_label, bad_score, score, group=np.arange(4))


# ---- the paired bootstrap


def test_paired_differences_equal_a_plain_loop() -> None:
    runs_a, runs_b = [make(60, 1), make(60, 2)], [make(60, 3, 1.0), make(60, 4, 1.0)]
    group = np.arange(60) // 2
    found = paired_difference(runs_a, runs_b, group, metrics=["accuracy"], resamples=200, seed=5)["accuracy"]
    chosen = np.random.default_rng(5).integers(30, size=(200, 30))
    resampled = []
    for groups in chosen:
        rows = np.concatenate([np.flatnonzero(group == g) for g in groups])
        a, b = (np.mean([accuracy_score(r.label[rows], r.predicted[rows]) for r in runs]) for runs in (runs_a, runs_b))
        resampled.append(a - b)
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=1e-12)
    fewer = min(np.sum(np.array(resampled) <= 1e-12), np.sum(np.array(resampled) >= -1e-12))
    assert found.p_value == pytest.approx(min(1, 2 * (1 + fewer) / 201))
    assert found.interval.estimate == pytest.approx(found.a - found.b)
    assert found.interval.n == 60


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_the_other_way_round_is_the_negative(method: str) -> None:
    a, b, group = make(90, 1), make(90, 2, 1.0), np.arange(90) // 3
    forward = paired_difference([a], [b], group, method=method)  # type: ignore[arg-type]
    backward = paired_difference([b], [a], group, method=method)  # type: ignore[arg-type]
    assert list(forward) == metric_names(BUSI)
    for name in forward:
        assert forward[name].p_value == backward[name].p_value
        assert forward[name].interval.low == pytest.approx(-backward[name].interval.high, abs=1e-9)
        assert forward[name].interval.method.startswith("cluster bootstrap")
        json.dumps(forward[name].as_dict(), allow_nan=False)


def test_pairing_is_narrower_than_two_intervals_apart() -> None:
    # B is A with one group in ten decided otherwise: most of what varies is common.
    a = make(200, 1)
    predicted = np.where(np.arange(200) % 10 == 0, (a.predicted + 1) % 3, a.predicted)
    b = Scored(a.label, predicted, a.probability, BUSI)
    group = np.arange(200)
    paired = paired_difference([a], [b], group, metrics=["accuracy"])["accuracy"].interval
    alone = bootstrap([a], group, metrics=["accuracy"])["accuracy"]
    assert paired.high - paired.low < 0.9 * (alone.high - alone.low)


def test_equal_predictions_get_a_reach_and_no_zero_width() -> None:
    a = make(60)
    found = paired_difference([a], [a], np.arange(60) // 2)
    reach = wilson(0, 30).high
    assert (found["accuracy"].interval.low, found["accuracy"].interval.high) == pytest.approx((-reach, reach))
    assert "30 groups" in found["accuracy"].interval.method
    assert found["accuracy"].p_value == 1.0
    assert math.isnan(found["auc_malignant"].interval.low)
    right = Scored(a.label, a.label, np.eye(3)[a.label], BUSI)
    wrong = Scored(a.label, (a.label + 1) % 3, np.eye(3)[(a.label + 1) % 3], BUSI)
    apart = paired_difference([right], [wrong], np.zeros(60))["accuracy"]  # one group: no test can be made
    assert apart.interval.estimate == 1.0
    assert apart.interval.high - apart.interval.low > 1
    assert math.isnan(apart.p_value)


def test_the_paired_interval_covers() -> None:
    # True difference .1; groups of 3 that are right or wrong together; 300 sets of 80 groups.
    rng = np.random.default_rng(11)
    covered = false_alarms = 0
    label = np.arange(240) % 2
    group = np.repeat(np.arange(80), 3)
    for run in range(300):
        hard = rng.random(80)[group]
        sides = []
        for share in (0.8, 0.7, 0.7):
            right = 0.5 * hard + 0.5 * rng.random(80)[group] < stats.triang.ppf(share, 0.5)
            predicted = np.where(right, label, 1 - label)
            sides.append(Scored(label, predicted, np.eye(2)[predicted], ("benign", "malignant")))
        settings_ = {"metrics": ["accuracy"], "resamples": 400, "seed": run}
        different = paired_difference([sides[0]], [sides[1]], group, **settings_)["accuracy"]  # type: ignore[arg-type]
        alike = paired_difference([sides[1]], [sides[2]], group, **settings_)["accuracy"]  # type: ignore[arg-type]
        covered += different.interval.low <= 0.1 <= different.interval.high
        false_alarms += alike.p_value <= 0.05
    assert 0.92 <= covered / 300 <= 0.98
    assert 0.015 <= false_alarms / 300 <= 0.085


def test_unequal_sides_are_refused() -> None:
    a, group = make(30), np.arange(30)
    with pytest.raises(SonobreastError, match="same seeds"):
        paired_difference([a, a], [a], group)
    other = Scored(a.label[::-1], a.predicted, a.probability, BUSI)
    with pytest.raises(SonobreastError, match="same cases"):
        paired_difference([a], [other], group)


# ---- Holm, spread


def test_holm_gives_the_worked_example() -> None:
    # p = .01 .04 .03 .005: sorted .005 .01 .03 .04 times 4 3 2 1 gives .02 .03 .06 .04, made to rise: .02 .03 .06 .06.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.4]), [0.4])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(deadline=None)
def test_holm_lies_between_the_raw_values_and_bonferroni(p_values: list[float]) -> None:
    adjusted, raw = holm(p_values), np.array(p_values)
    assert np.all(adjusted >= raw - 1e-12)
    assert np.all(adjusted <= np.minimum(1, raw * len(raw)) + 1e-12)
    assert adjusted.min() == pytest.approx(min(1, raw.min() * len(raw)))
    order = np.argsort(raw, kind="stable")
    assert np.all(np.diff(adjusted[order]) >= -1e-12)


def test_holm_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(0).uniform(0, 0.1, 30).round(3)  # with ties
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


@pytest.mark.parametrize("bad", [[], [1.2], [-0.1], [math.nan, 0.1], [[0.1]]])
def test_holm_refuses_what_is_no_p_value(bad: list[float]) -> None:
    with pytest.raises(SonobreastError):
        holm(bad)


def test_spread_of_runs() -> None:
    found = spread([0.8, 0.9, 0.7])
    assert (found.mean, found.sd, found.minimum, found.maximum, found.count) == pytest.approx((0.8, 0.1, 0.7, 0.9, 3))
    assert math.isnan(spread([0.8]).sd)
    assert spread([0.8]).as_dict()["sd"] is None
    assert math.isnan(spread([0.8, math.nan]).mean)
    with pytest.raises(SonobreastError):
        spread([])


def test_evaluation_loads_without_torch() -> None:
    code = (
        "import sys, sonobreast.evaluation.compare, sonobreast.evaluation.planning;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'sonobreast.training')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_study_of_equal_models_needs_no_more_than_evaluate() -> None:
    a = make(60)
    found = paired_difference([a], [make(60, 1)], np.arange(60), resamples=100)
    assert {name: d.a for name, d in found.items()} == pytest.approx(evaluate(a))
