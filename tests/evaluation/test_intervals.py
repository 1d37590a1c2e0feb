"""Intervals against published worked examples, a plain loop, SciPy's bootstrap, and by simulation of their coverage."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from sonobreast.errors import SonobreastError
from sonobreast.evaluation import resampling
from sonobreast.evaluation.intervals import (
    accuracy_interval,
    bca_limits,
    bootstrap,
    draw,
    groups_behind,
    percentile_limits,
    wilson,
)
from sonobreast.evaluation.metrics import Scored, evaluate, metric_names

BUSI = ("benign", "malignant", "normal")


def make(n: int, seed: int = 0, classes: tuple[str, ...] = BUSI) -> Scored:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % len(classes)
    logits = rng.normal(size=(n, len(classes))) + 1.5 * np.eye(len(classes))[label]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Scored(label, probability.argmax(axis=1), probability, classes)


def from_correct(correct: np.ndarray) -> Scored:
    """Two classes, with the given cases right."""
    label = np.zeros(len(correct), dtype=int)
    label[1::2] = 1
    predicted = np.where(correct, label, 1 - label)
    return Scored(label, predicted, 0.1 + 0.8 * np.eye(2)[predicted], ("benign", "malignant"))


# ---- Wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # 58 of 63 = 92.06 %, the test accuracy of Aulia 2026: 82.7-96.6 %.
        (58, 63, 0.827, 0.966),
        # Newcombe 1998, Stat Med 17:857, table I, method 3 (score method without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    digits = 3 if n == 63 else 4
    assert (round(interval.low, digits), round(interval.high, digits)) == (low, high)
    assert interval.estimate == successes / n
    assert interval.method == "wilson"


def test_wilson_equals_scipy_and_is_symmetric() -> None:
    for n in (1, 7, 63, 780):
        for k in range(0, n + 1, max(1, n // 9)):
            ours = wilson(k, n, 0.9)
            reference = stats.binomtest(k, n).proportion_ci(0.9, "wilson")
            assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=1e-9)
            mirrored = wilson(n - k, n, 0.9)
            assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((ours.low, ours.high), abs=1e-9)
            assert 0 <= ours.low <= ours.estimate <= ours.high <= 1


@pytest.mark.parametrize(("successes", "n", "level"), [(5, 4, 0.95), (-1, 4, 0.95), (0, 0, 0.95), (1, 2, 95)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int, level: float) -> None:
    with pytest.raises(SonobreastError):
        wilson(successes, n, level)


def test_intervals_are_json() -> None:
    interval = bootstrap([from_correct(np.ones(4, dtype=bool))], [0, 0, 1, 1], resamples=100)["log_loss"]
    assert math.isnan(interval.low)
    text = json.dumps(interval.as_dict(), allow_nan=False)
    assert json.loads(text)["low"] is None


# ---- the resamples


def test_the_bootstrap_equals_a_plain_loop_over_scikit_learn() -> None:
    # Groups of different sizes, two repeats; the loop draws the same groups and repeats the rows.
    first, second = make(90, 1), make(90, 2)
    group = np.random.default_rng(0).integers(30, size=90)
    codes = np.unique(group, return_inverse=True)[1]
    count = codes.max() + 1
    drawn = draw(
        [first, second], codes, ["accuracy", "auc_malignant", "f1_macro"], resamples=25, seed=7, jackknife=True
    )
    chosen = np.random.default_rng(7).integers(count, size=(25, count))
    for r in range(25):
        rows = np.concatenate([np.flatnonzero(codes == g) for g in chosen[r]])
        sides = [(s.label[rows], s.predicted[rows], s.probability[rows]) for s in (first, second)]
        expected = {
            "accuracy": np.mean([sk.accuracy_score(y, p) for y, p, _ in sides]),
            "auc_malignant": np.mean([sk.roc_auc_score(y == 1, s[:, 1]) for y, _, s in sides]),
            "f1_macro": np.mean([sk.f1_score(y, p, average="macro") for y, p, _ in sides]),
        }
        for name, value in expected.items():
            assert drawn[name].resampled[r] == pytest.approx(value, rel=1e-12)
    for g in range(count):
        rest = codes != g
        expected_rest = np.mean([sk.accuracy_score(s.label[rest], s.predicted[rest]) for s in (first, second)])
        left_out = drawn["accuracy"].jackknife
        assert left_out is not None
        assert left_out[g] == pytest.approx(expected_rest, rel=1e-12)


def test_chunks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    scored, group = make(50), np.arange(50) // 2
    whole = bootstrap([scored], group, resamples=300, method="bca")
    monkeypatch.setattr(resampling, "_CHUNK", 50 * 7)
    for name, interval in bootstrap([scored], group, resamples=300, method="bca").items():
        assert (interval.low, interval.high) == pytest.approx((whole[name].low, whole[name].high), rel=1e-12), name


def test_repeats_are_no_further_cases() -> None:
    scored, group = make(60), np.arange(60)
    once, thrice = bootstrap([scored], group), bootstrap([scored] * 3, group)
    for name, interval in once.items():
        assert (thrice[name].low, thrice[name].high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert thrice[name].n == 60


def test_copies_of_every_case_within_its_group_change_nothing() -> None:
    scored, group = make(40), np.arange(40)
    twice = Scored(*(np.repeat(a, 2, axis=0) for a in (scored.label, scored.predicted, scored.probability)), BUSI)
    single, double = bootstrap([scored], group), bootstrap([twice], np.repeat(group, 2))
    for name, interval in single.items():
        assert (double[name].low, double[name].high) == pytest.approx((interval.low, interval.high), abs=1e-9), name
        assert (double[name].n, double[name].groups) == (80, 40)


def test_the_names_of_the_groups_do_not_matter_and_the_seed_does() -> None:
    scored, group = make(60), np.arange(60) // 3
    assert bootstrap([scored], group) == bootstrap([scored], [f"patient {g:03d}" for g in group])
    assert bootstrap([scored], group)["brier"] != bootstrap([scored], group, seed=1)["brier"]


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_single_cases_agree_with_scipy(method: str) -> None:
    # SciPy draws other resamples, so only as close as 9,999 resamples allow.
    scored = make(80, 3)
    ours = bootstrap([scored], np.arange(80), metrics=["accuracy", "brier"], resamples=9999, method=method)  # type: ignore[arg-type]
    loss = ((scored.probability - np.eye(3)[scored.label]) ** 2).sum(axis=1)
    for name, values in (("accuracy", scored.correct.astype(float)), ("brier", loss)):
        reference = stats.bootstrap((values,), np.mean, method=method, n_resamples=9999, random_state=1)
        assert (ours[name].low, ours[name].high) == pytest.approx(tuple(reference.confidence_interval), abs=0.013)
    assert ours["brier"].method == f"cluster bootstrap {'BCa' if method == 'bca' else 'percentile'}"


def test_bca_gives_the_published_worked_example() -> None:
    # Efron & Tibshirani 1993, section 14.3: the 26 spatial test scores A of table 14.1 have the variance (divisor n)
    # 171.5; 90 % intervals from 2,000 resamples: percentile (100.8, 233.9), BCa (115.8, 259.6), a = .061, z0 = .146.
    # Recipe: as there, with 20,000 resamples of our own; the book's Monte Carlo error is a few units.
    score = np.array(
        [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41.0]
    )
    assert score.var() == pytest.approx(171.5, abs=0.05)
    resampled = np.random.default_rng(0).choice(score, size=(20_000, 26)).var(axis=1)
    jackknife = np.array([np.delete(score, i).var() for i in range(26)])
    deviation = jackknife.mean() - jackknife
    assert (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5) == pytest.approx(0.061, abs=5e-4)
    assert percentile_limits(resampled, 0.9) == pytest.approx((100.8, 233.9), abs=4)
    assert bca_limits(171.534, resampled, jackknife, 0.9) == pytest.approx((115.8, 259.6), abs=4)


def test_bca_counts_ties_half() -> None:
    # Symmetric about the estimate, most of it tied with it: no bias, no acceleration: BCa is the percentile interval.
    resampled = np.repeat([0.0, 1.0, 2.0], [10, 80, 10])
    jackknife = np.array([0.5, 1.5, 1.0])
    assert bca_limits(1.0, resampled, jackknife, 0.8) == pytest.approx(percentile_limits(resampled, 0.8))


# ---- coverage


def clustered(rng: np.random.Generator, groups: int, correlation: float, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong in groups of 1 to 6, any two of a group correlated as said.

    With probability sqrt(correlation) a member takes its group's draw, else one of its own.
    """
    group = np.repeat(np.arange(groups), rng.integers(1, 7, size=groups))
    shared = rng.random(groups)[group] < share
    own = rng.random(len(group)) < share
    return np.where(rng.random(len(group)) < math.sqrt(correlation), shared, own), group


def test_the_cluster_bootstrap_covers_and_wilson_does_not() -> None:
    rng = np.random.default_rng(2026)
    runs, covered, wilson_covered = 400, 0, 0
    for run in range(runs):
        correct, group = clustered(rng, 90, 0.7, 0.8)
        scored = from_correct(correct)
        cluster = bootstrap([scored], group, metrics=["accuracy"], resamples=500, seed=run)["accuracy"]
        naive = wilson(int(correct.sum()), len(correct))
        covered += cluster.low <= 0.8 <= cluster.high
        wilson_covered += naive.low <= 0.8 <= naive.high
    assert 0.925 <= covered / runs <= 0.975
    assert wilson_covered / runs < 0.85


# ---- where the bootstrap has nothing to say


def test_all_right_gets_wilson_on_groups_and_no_zero_width() -> None:
    scored, group = from_correct(np.ones(40, dtype=bool)), np.arange(40) // 4  # 10 groups, each with both classes
    for method in ("percentile", "bca"):
        for name, interval in bootstrap([scored], group, method=method).items():  # type: ignore[arg-type]
            if name in ("brier", "log_loss"):
                assert math.isnan(interval.low)
                assert interval.method == "undefined"
                assert interval.note
            else:
                assert (interval.estimate, interval.high) == (1.0, 1.0)
                assert interval.low == pytest.approx(wilson(10, 10).low)
                assert interval.method == "wilson on 10 groups (bootstrap without spread)"


def test_all_wrong_gets_it_too() -> None:
    interval = bootstrap([from_correct(np.zeros(40, dtype=bool))], np.arange(40))["accuracy"]
    assert (interval.low, interval.high) == (0.0, pytest.approx(wilson(0, 40).high))


def test_one_group_alone_gives_no_false_certainty() -> None:
    interval = bootstrap([make(30)], np.zeros(30))["accuracy"]
    assert interval.high - interval.low > 0.5
    assert "1 groups" in interval.method


def test_groups_behind_a_figure() -> None:
    label = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 2])
    scored = Scored(label, predicted, np.full((6, 3), 1 / 3), BUSI)
    codes = np.array([0, 0, 1, 2, 3, 1])
    expected = {
        "accuracy": 4,
        "recall_benign": 2,
        "f1_benign": 2,
        "precision_benign": 1,
        "precision_malignant": 3,
        "sensitivity_malignant": 2,
        "specificity_malignant": 2,
        "auc_malignant": 2,
        "auc_ovr_macro": 1,
        "recall_macro": 1,
        "balanced_accuracy": 1,
        "brier": 4,
    }
    assert {name: groups_behind(name, [scored], codes) for name in expected} == expected


def test_undefined_resamples_are_dropped_counted_and_said() -> None:
    # One normal case among 30: a resample misses it with probability (29/30)^30 = .36.
    label = np.r_[np.arange(29) % 2, 2]
    base = make(30, 5)
    scored = Scored(label, base.predicted, base.probability, BUSI)
    found = bootstrap([scored], np.arange(30), resamples=1000)
    assert found["balanced_accuracy"].dropped == pytest.approx(362, abs=50)
    assert "left out" in found["balanced_accuracy"].note
    assert found["accuracy"].dropped == 0
    assert found["balanced_accuracy"].low < found["balanced_accuracy"].estimate
    absent = Scored(label % 2, base.predicted, base.probability, BUSI)
    nothing = bootstrap([absent], np.arange(30), resamples=1000)["recall_normal"]
    assert math.isnan(nothing.estimate)
    assert math.isnan(nothing.low)
    assert nothing.method == "undefined"


def test_few_groups_are_said() -> None:
    assert "only 5 groups" in bootstrap([make(30)], np.arange(30) % 5)["accuracy"].note
    assert bootstrap([make(60)], np.arange(60))["accuracy"].note == ""


def test_bca_says_where_it_falls_back() -> None:
    # A single malignant case in one group: without that group its recall is undefined, and so is the jackknife.
    label = np.r_[1, 1, np.zeros(28, dtype=int)]
    predicted = np.r_[1, 0, np.zeros(28, dtype=int)]
    scored = Scored(label, predicted, np.full((30, 2), 0.5), ("benign", "malignant"))
    group = np.r_[0, 0, np.arange(1, 29)]
    interval = bootstrap([scored], group, metrics=["f1_malignant"], method="bca")["f1_malignant"]
    assert interval.method != "cluster bootstrap BCa"
    assert interval.high - interval.low > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = bootstrap([make(30)], np.arange(30), method="bca")
    assert {i.method for i in values.values()} <= {"cluster bootstrap BCa", "cluster bootstrap percentile"}


# ---- accuracy


def test_wilson_only_for_independent_images_of_one_run() -> None:
    scored = make(63, 4)
    assert accuracy_interval([scored], np.arange(63)) == wilson(int(scored.correct.sum()), 63)
    assert accuracy_interval([scored], np.arange(63) // 2).method == "cluster bootstrap percentile"
    assert accuracy_interval([scored, make(63, 5)], np.arange(63)).method == "cluster bootstrap percentile"
    assert accuracy_interval([scored], np.arange(63) // 2, method="bca").method == "cluster bootstrap BCa"


def test_the_estimate_is_the_mean_over_the_repeats() -> None:
    runs = [make(60, seed) for seed in range(3)]
    found = bootstrap(runs, np.arange(60), resamples=100)
    assert list(found) == metric_names(BUSI)
    for name, interval in found.items():
        assert interval.estimate == pytest.approx(np.mean([evaluate(r)[name] for r in runs]))


# ---- what is refused


def test_bad_input_is_refused() -> None:
    scored, group = make(30), np.arange(30)
    moved = Scored(*(a[::-1] for a in (scored.label, scored.predicted, scored.probability)), BUSI)
    renamed = Scored(scored.label, scored.predicted, scored.probability, ("a", "b", "c"))
    for repeats, match in (([], "no predictions"), ([scored, moved], "same cases"), ([scored, renamed], "same cases")):
        with pytest.raises(SonobreastError, match=match):
            bootstrap(repeats, group)
    for setting in ({"resamples": 10}, {"level": 95}, {"method": "basic"}, {"metrics": ["acuracy"]}):
        with pytest.raises(SonobreastError):
            bootstrap([scored], group, **setting)  # type: ignore[arg-type]
    with pytest.raises(SonobreastError, match="group"):
        bootstrap([scored], group[:-1])
