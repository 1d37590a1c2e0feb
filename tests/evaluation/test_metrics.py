"""The reference of every metric is scikit-learn, called on rows that are really repeated where there are weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.glossary import METRICS, describe, metric_names
from sonobreast.evaluation.metrics import Scored, by_patient, confusion, evaluate, group_codes, ppv_npv

BUSI = ("benign", "malignant", "normal")


def make(n: int, classes: tuple[str, ...] = BUSI, seed: int = 0, levels: int = 8, present: bool = True) -> Scored:
    """Random predictions that are better than chance, with few distinct probabilities so that there are many ties."""
    rng = np.random.default_rng(seed)
    count = len(classes)
    label = rng.integers(count, size=n)
    if present:
        label[:count] = np.arange(count)
    parts = rng.integers(1, levels, size=(n, count)).astype(float)
    parts[np.arange(n), label] += rng.integers(0, levels, size=n)
    probability = parts / parts.sum(axis=1, keepdims=True)
    # Not always the argmax: a threshold may have decided.
    predicted = np.where(rng.random(n) < 0.9, probability.argmax(axis=1), rng.integers(count, size=n))
    return Scored(label, predicted, probability, classes)


def repeated(scored: Scored, weight: np.ndarray) -> Scored:
    rows = np.repeat(np.arange(scored.n), weight.astype(int))
    return Scored(scored.label[rows], scored.predicted[rows], scored.probability[rows], scored.classes)


def reference(scored: Scored) -> dict[str, float]:
    """Every metric by scikit-learn, or by a plain loop over thresholds where it has none. All classes are there."""
    y, p, prob = scored.label, scored.predicted, scored.probability
    every = np.arange(len(scored.classes))
    per = sk.precision_recall_fscore_support(y, p, labels=every, zero_division=np.nan)
    macro = sk.precision_recall_fscore_support(y, p, labels=every, average="macro", zero_division=0)
    values = {
        "accuracy": sk.accuracy_score(y, p),
        "balanced_accuracy": sk.balanced_accuracy_score(y, p),
        "precision_macro": macro[0],
        "recall_macro": macro[1],
        "f1_macro": macro[2],
        "auc_ovr_macro": np.mean([sk.roc_auc_score(y == c, prob[:, c]) for c in every]),
        "brier": np.mean(((prob - np.eye(len(every))[y]) ** 2).sum(axis=1)),
        "log_loss": sk.log_loss(y, prob, labels=every),
    }
    for c, name in enumerate(scored.classes):
        values |= {f"precision_{name}": per[0][c], f"recall_{name}": per[1][c], f"f1_{name}": per[2][c]}
    if "malignant" in scored.classes:
        m = scored.classes.index("malignant")
        truth, score = y == m, prob[:, m]
        values["sensitivity_malignant"] = sk.recall_score(truth, p == m)
        values["specificity_malignant"] = sk.recall_score(~truth, p != m)
        values["auc_malignant"] = sk.roc_auc_score(truth, score)
        points = [(np.mean(score[truth] >= t), np.mean(score[~truth] < t)) for t in [*np.unique(score), np.inf]]
        values["sensitivity_at_90_specificity"] = max(se for se, sp in points if sp >= 0.9 - 1e-12)
        values["specificity_at_90_sensitivity"] = max(sp for se, sp in points if se >= 0.9 - 1e-12)
    return values


CLASS_SETS = [BUSI, ("benign", "malignant"), ("a", "b", "c", "d")]


@pytest.mark.parametrize("classes", CLASS_SETS)
@pytest.mark.parametrize("n", [12, 63, 780])
def test_every_metric_equals_scikit_learn(n: int, classes: tuple[str, ...]) -> None:
    for seed in range(5):
        scored = make(n, classes, seed)
        ours = evaluate(scored)
        assert list(ours) == metric_names(classes)
        assert ours == pytest.approx(reference(scored), rel=1e-10, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("classes", CLASS_SETS)
def test_whole_weights_equal_repeated_rows(classes: tuple[str, ...]) -> None:
    scored = make(60, classes, seed=3)
    weight = np.random.default_rng(1).integers(0, 4, size=(30, 60))
    weight[:, : len(classes)] = 1  # every class is there
    ours = evaluate(scored, weight)
    for r, row in enumerate(weight):
        here = {name: values[r] for name, values in ours.items()}
        assert here == pytest.approx(reference(repeated(scored, row)), rel=1e-10, abs=1e-12, nan_ok=True)


def test_fractional_weights_equal_scikit_learn() -> None:
    scored = make(200, seed=4)
    weight = np.random.default_rng(2).random(200)
    ours = evaluate(scored, weight[None])
    y, m = scored.label, scored.label == 1
    assert ours["accuracy"][0] == pytest.approx(sk.accuracy_score(y, scored.predicted, sample_weight=weight))
    assert ours["auc_malignant"][0] == pytest.approx(
        sk.roc_auc_score(m, scored.probability[:, 1], sample_weight=weight)
    )
    assert ours["log_loss"][0] == pytest.approx(sk.log_loss(y, scored.probability, sample_weight=weight))
    assert ours["f1_macro"][0] == pytest.approx(sk.f1_score(y, scored.predicted, average="macro", sample_weight=weight))


def test_brier_is_twice_the_one_column_score_for_two_classes() -> None:
    scored = make(90, ("benign", "malignant"))
    one_column = sk.brier_score_loss(scored.label == 1, scored.probability[:, 1])
    assert evaluate(scored)["brier"] == pytest.approx(2 * one_column)


def test_auc_of_a_hand_made_example_with_a_tie() -> None:
    # Malignant scores .8 .5, others .5 .2 .1: pairs won 3 + (.5 tied + 2) = 5.5 of 6.
    score = np.array([0.8, 0.5, 0.5, 0.2, 0.1])
    scored = Scored([1, 1, 0, 0, 0], [1, 1, 1, 0, 0], np.c_[1 - score, score], ("benign", "malignant"))
    assert evaluate(scored)["auc_malignant"] == pytest.approx(5.5 / 6)


def test_exactly_ninety_percent_specificity_counts_as_reached() -> None:
    # 70 others, 7 of them above the cancer's score: specificity is 63/70, and 0.9 * 70 must not round past it.
    for others in (10, 30, 70, 110, 290):
        score = np.r_[0.5, np.linspace(0.6, 0.9, others // 10), np.full(others - others // 10, 0.1)]
        label = np.r_[1, np.zeros(others, dtype=int)]
        scored = Scored(label, label, np.c_[1 - score, score], ("benign", "malignant"))
        assert evaluate(scored)["sensitivity_at_90_specificity"] == 1.0
        flipped = Scored(1 - label, 1 - label, np.c_[score, 1 - score], ("benign", "malignant"))
        assert evaluate(flipped)["specificity_at_90_sensitivity"] == 1.0


def test_confusion_has_the_truth_in_rows() -> None:
    scored = make(100, seed=5)
    np.testing.assert_array_equal(confusion(scored), sk.confusion_matrix(scored.label, scored.predicted))
    assert scored.label[0] == 0  # the row of class 0 holds the cases that are of class 0
    assert confusion(scored)[0].sum() == (scored.label == 0).sum()
    weight = np.random.default_rng(3).integers(0, 3, size=(4, 100))
    stack = confusion(scored, weight)
    assert stack.shape == (4, 3, 3)
    again = repeated(scored, weight[2])
    np.testing.assert_array_equal(stack[2], sk.confusion_matrix(again.label, again.predicted, labels=[0, 1, 2]))


# ---- what is not defined is NaN


def test_an_absent_class_makes_its_metrics_and_the_macro_averages_undefined() -> None:
    scored = Scored([0, 0, 1, 1], [0, 2, 1, 1], np.full((4, 3), 1 / 3), BUSI)  # no normal case
    values = evaluate(scored)
    undefined = {name for name, value in values.items() if math.isnan(value)}
    assert undefined == {
        "balanced_accuracy",
        "precision_macro",
        "recall_macro",
        "f1_macro",
        "recall_normal",
        "auc_ovr_macro",
    }
    assert values["precision_normal"] == 0.0  # one was called normal, wrongly
    assert values["accuracy"] == 0.75
    assert values["auc_malignant"] == 0.5


def test_a_class_never_predicted_has_no_precision_but_counts_zero_in_the_macro_average() -> None:
    scored = Scored([0, 1, 2, 2], [0, 1, 1, 1], np.full((4, 3), 1 / 3), BUSI)
    values = evaluate(scored)
    assert math.isnan(values["precision_normal"])
    assert values["f1_normal"] == 0.0
    assert values["recall_normal"] == 0.0
    assert values["precision_macro"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert values["precision_macro"] == pytest.approx(
        sk.precision_score(scored.label, scored.predicted, average="macro", zero_division=0)
    )


def test_no_cancer_and_only_cancer() -> None:
    probability = np.array([[0.6, 0.4], [0.3, 0.7]])
    none = evaluate(Scored([0, 0], [0, 1], probability, ("benign", "malignant")))
    assert math.isnan(none["sensitivity_malignant"])
    assert none["specificity_malignant"] == 0.5
    only = evaluate(Scored([1, 1], [0, 1], probability, ("benign", "malignant")))
    assert math.isnan(only["specificity_malignant"])
    assert only["sensitivity_malignant"] == 0.5
    for values in (none, only):
        for name in ("auc_malignant", "sensitivity_at_90_specificity", "specificity_at_90_sensitivity"):
            assert math.isnan(values[name])


def test_a_resample_without_weight_is_undefined_everywhere() -> None:
    values = evaluate(make(20), np.zeros((2, 20)))
    assert all(np.isnan(v).all() for v in values.values())


def test_metrics_of_malignancy_are_left_out_without_such_a_class() -> None:
    names = set(evaluate(make(20, ("a", "b"))))
    assert not any("malignant" in n or "_at_" in n for n in names)
    assert Scored([0, 1], [0, 1], np.eye(2), ("Benign", "Malignant")).malignant == 1
    assert "auc_malignant" in evaluate(Scored([0, 1], [0, 1], np.eye(2), ("Benign", "Malignant")))


def test_a_sure_mistake_has_a_finite_log_loss_as_in_scikit_learn() -> None:
    scored = Scored([0, 1], [1, 1], [[0.0, 1.0], [0.0, 1.0]], ("benign", "malignant"))
    assert evaluate(scored)["log_loss"] == pytest.approx(-math.log(np.finfo(float).eps) / 2)


# ---- properties


sets = st.builds(
    make, st.integers(6, 40), st.sampled_from(CLASS_SETS), st.integers(0, 10**6), st.integers(2, 9), st.booleans()
)


def same(a: dict[str, float], b: dict[str, float]) -> bool:
    return a == pytest.approx(b, rel=1e-9, abs=1e-12, nan_ok=True)


@given(sets, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_the_order_of_the_cases_does_not_matter(scored: Scored, random) -> None:  # type: ignore[no-untyped-def]
    rows = np.array(random.sample(range(scored.n), scored.n))
    shuffled = Scored(scored.label[rows], scored.predicted[rows], scored.probability[rows], scored.classes)
    assert same(evaluate(scored), evaluate(shuffled))


@given(sets, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_the_order_of_the_classes_does_not_matter(scored: Scored, random) -> None:  # type: ignore[no-untyped-def]
    new = np.array(random.sample(range(len(scored.classes)), len(scored.classes)))  # new[k]: old index at place k
    place = np.argsort(new)
    moved = Scored(
        place[scored.label],
        place[scored.predicted],
        scored.probability[:, new],
        tuple(scored.classes[k] for k in new),
    )
    assert same(evaluate(scored), evaluate(moved))


@given(sets)
@settings(deadline=None, max_examples=60)
def test_values_stay_in_their_range_and_weights_of_one_change_nothing(scored: Scored) -> None:
    plain = evaluate(scored)
    for name, value in plain.items():
        entry = describe(name)
        assert math.isnan(value) or entry.low <= value <= entry.high + 1e-12, name
    weighted = evaluate(scored, np.stack([np.ones(scored.n), np.full(scored.n, 3.0)]))
    for r in (0, 1):  # three copies of everything are the same set as well
        assert same(plain, {name: values[r] for name, values in weighted.items()})


@given(sets)
@settings(deadline=None, max_examples=40)
def test_auc_turns_over_with_the_score(scored: Scored) -> None:
    if scored.malignant is None:
        return
    other = np.delete(np.arange(len(scored.classes)), scored.malignant)
    score = scored.probability[:, scored.malignant]
    two = np.c_[scored.probability[:, other].sum(axis=1), score]
    label = (scored.label == scored.malignant).astype(int)
    forward = evaluate(Scored(label, label, two, ("rest", "malignant")))["auc_malignant"]
    backward = evaluate(Scored(1 - label, label, two, ("rest", "malignant")))["auc_malignant"]
    assert (math.isnan(forward) and math.isnan(backward)) or forward + backward == pytest.approx(1)


def test_only_the_metrics_asked_for_come_back() -> None:
    scored = make(30)
    everything = evaluate(scored)
    assert evaluate(scored, metrics=["brier", "accuracy"]) == {k: everything[k] for k in ("brier", "accuracy")}
    for name, value in everything.items():
        assert evaluate(scored, metrics=[name]) == {name: value}


# ---- the table


def test_the_table_explains_every_metric() -> None:
    for name in metric_names(BUSI):
        entry = describe(name)
        assert entry.name == name
        for text in (entry.title, entry.formula, entry.meaning, entry.source, entry.undefined):
            assert text
            assert "<class>" not in text
    assert {name for name, entry in METRICS.items() if not entry.higher_is_better} == {"brier", "log_loss"}
    with pytest.raises(SonobreastError, match="accurracy"):
        describe("accurracy")


# ---- patients


def test_by_patient_averages_probabilities_and_decides_again() -> None:
    probability = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]])
    scored = Scored([1, 1, 1, 2], [0, 1, 1, 2], probability, BUSI)
    patients = by_patient(scored, ["b", "b", "b", "a"])
    np.testing.assert_allclose(patients.probability, [[0.2, 0.1, 0.7], [0.3, 0.6, 0.1]])
    assert patients.label.tolist() == [2, 1]
    assert patients.predicted.tolist() == [2, 1]


def test_by_patient_with_one_image_each_only_sorts() -> None:
    scored = make(30)
    patients = by_patient(scored, np.arange(30))
    np.testing.assert_allclose(patients.probability, scored.probability)
    np.testing.assert_array_equal(patients.label, scored.label)


def test_by_patient_takes_the_gravest_label_and_refuses_what_has_no_order() -> None:
    flat = np.full((3, 3), 1 / 3)
    assert by_patient(Scored([0, 1, 2], [0, 1, 2], flat, BUSI), ["p"] * 3).label.tolist() == [1]
    assert by_patient(Scored([0, 2, 2], [0, 2, 2], flat, BUSI), ["p"] * 3).label.tolist() == [0]
    with pytest.raises(SonobreastError, match="several classes"):
        by_patient(Scored([0, 1, 0], [0, 1, 0], flat, ("cyst", "fibroadenoma", "malignant")), ["p"] * 3)


@pytest.mark.parametrize(
    "missing", [[1.0, float("nan")], ["a", ""], ["a", None], ["a", "nan"], [["a"], ["b"]], ["a", "b", "c"]]
)
def test_a_missing_group_is_an_error_and_not_one_large_group(missing: list[object]) -> None:
    with pytest.raises(SonobreastError, match="group"):
        group_codes(missing, 2)  # type: ignore[arg-type]


# ---- predictive values


def test_predictive_values_of_the_published_example() -> None:
    # Altman & Bland 1994, BMJ 309:102: liver scan, 231 / 27 / 32 / 54 patients; at prevalence 0.75 (258 of 344) PPV
    # .88 and NPV .67; at prevalence 0.25, PPV .45 and NPV .95 (se 231/258 = .90, sp 54/86 = .63).
    sensitivity, specificity = 231 / 258, 54 / 86
    high = ppv_npv(sensitivity, specificity, 258 / 344)
    assert high.ppv == pytest.approx(231 / 263)
    assert high.npv == pytest.approx(54 / 81)
    low = ppv_npv(sensitivity, specificity, 0.25)
    assert round(low.ppv, 2) == 0.45
    assert round(low.npv, 2) == 0.95
    assert math.isnan(ppv_npv(1.0, 1.0, 0.0).ppv)
    with pytest.raises(SonobreastError, match="percentage"):
        ppv_npv(90, 0.9, 0.1)


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"probability": [[0.5, 0.4], [0.5, 0.5]]}, "row 0"),
        ({"probability": [[0.5, 0.5], [float("nan"), 0.5]]}, "row 1"),
        ({"probability": [[0.5, 0.5], [1.5, -0.5]]}, "row 1"),
        ({"probability": [[0.5, 0.5]]}, "labels"),
        ({"probability": [0.5, 0.5]}, "shape"),
        ({"probability": np.zeros((0, 2))}, "shape"),
        ({"label": [0, 2]}, "labels"),
        ({"label": [0, -1]}, "labels"),
        ({"label": [0.5, 1]}, "labels"),
        ({"label": ["benign", "malignant"]}, "labels"),
        ({"predicted": [0]}, "predicted"),
        ({"classes": ("benign", "benign")}, "names"),
        ({"classes": ("benign", "Benign ")}, "names"),
        ({"classes": ("benign", "macro")}, "names"),
        ({"classes": ("benign",)}, "names"),
    ],
)
def test_bad_predictions_are_refused(change: dict[str, object], match: str) -> None:
    good: dict[str, object] = {
        "label": [0, 1],
        "predicted": [0, 1],
        "probability": [[0.9, 0.1], [0.2, 0.8]],
        "classes": ("benign", "malignant"),
    }
    Scored(**good)  # type: ignore[arg-type]
    with pytest.raises(SonobreastError, match=match):
        Scored(**(good | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", [np.ones(20), np.ones((3, 19)), -np.ones((3, 20)), np.full((3, 20), np.nan)])
def test_bad_weights_are_refused(weight: np.ndarray) -> None:
    with pytest.raises(SonobreastError, match="weights"):
        evaluate(make(20), weight)


def test_the_arrays_cannot_change_after_the_check() -> None:
    label = np.array([0, 1])
    scored = Scored(label, label, np.eye(2), ("benign", "malignant"))
    label[0] = 1
    assert scored.label.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        scored.probability[0, 0] = 0.5
