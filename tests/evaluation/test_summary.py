"""From predictions to the figures of a study."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from tests.tables import CLASSES, predictions, without

from sonobreast.evaluation.summary import (
    configuration,
    is_complete,
    nested_choice,
    patient_clusters,
    study_metrics,
)


def test_figures_are_those_of_scikit_learn() -> None:
    table = predictions()
    test = table[table["subset"] == "test"]
    content = configuration(table, resamples=200)
    truth, said = test["label"], test["predicted"]
    assert content["accuracy"]["estimate"] == pytest.approx(accuracy_score(truth, said))
    assert content["confusion"] == confusion_matrix(truth, said, labels=CLASSES).tolist()
    for function, name in ((precision_score, "precision"), (recall_score, "recall"), (f1_score, "f1")):
        expected = function(truth, said, labels=CLASSES, average=None)
        found = [content["per_class"][c][name]["estimate"] for c in CLASSES]
        assert found == pytest.approx(list(expected))
    assert [content["per_class"][c]["support"] for c in CLASSES] == [int((truth == c).sum()) for c in CLASSES]


def test_wilson_only_where_every_image_stands_alone() -> None:
    assert configuration(predictions(group_of=1), resamples=200)["accuracy"]["method"] == "wilson"
    grouped = configuration(predictions(group_of=3), resamples=200)["accuracy"]
    assert grouped["method"].startswith("cluster bootstrap")
    assert grouped["groups"] == 20
    assert grouped["n"] == 60


def test_repeats_and_seeds_are_no_further_cases() -> None:
    once = configuration(predictions(folds=5), resamples=400)
    often = configuration(predictions(folds=5, repeats=3, seeds=(0, 1)), resamples=400)
    assert once["n"] == often["n"] == 60
    assert often["repeats"] == 6
    assert often["runs"] == 30
    assert sum(map(sum, often["confusion"])) == pytest.approx(60)
    assert often["accuracy"]["groups"] == 60


def test_the_order_of_the_rows_does_not_matter() -> None:
    table = predictions(folds=3, group_of=2)
    shuffled = table.sample(frac=1, random_state=5)
    assert configuration(table, resamples=200) == configuration(shuffled, resamples=200)


def test_configurations_keep_their_order() -> None:
    grid = [(a, o) for a in ("Z", "A") for o in ("sgdm", "adam")]
    table = pd.concat([predictions(seed=1).assign(architecture=a, optimizer=o) for a, o in grid])
    names = [(c["architecture"], c["optimizer"]) for c in study_metrics(table, resamples=100)["configurations"]]
    assert names == grid


def test_spread_is_over_all_runs() -> None:
    table = predictions(folds=3, seeds=(0, 1))
    test = table[table["subset"] == "test"]
    per_run = (test["label"] == test["predicted"]).groupby(test["run"]).mean()
    content = configuration(table, resamples=200)["spread"]
    assert content["count"] == 6
    assert content["mean"] == pytest.approx(per_run.mean())
    assert content["sd"] == pytest.approx(per_run.std(ddof=1))
    assert (content["minimum"], content["maximum"]) == pytest.approx((per_run.min(), per_run.max()))


def patients_of(images: int, size: int) -> dict[str, str]:
    return {f"image {i:03d}": f"P{i // size}" for i in range(images)}


def test_figures_by_patient_count_patients() -> None:
    table = predictions(classes=("benign", "malignant"), images=80)
    content = configuration(table, patients_of(80, 2), resamples=300)
    found = content["patients"]
    assert (found["n"], found["images"], content["patients_reason"]) == (40, 80, "")
    test = table[table["subset"] == "test"].assign(patient=lambda t: t["image"].map(patients_of(80, 2)))
    each = test.groupby("patient").agg(
        p=("p_malignant", "mean"), cancer=("label", lambda labels: (labels == "malignant").any())
    )
    assert found["metrics"]["accuracy"]["estimate"] == pytest.approx(((each["p"] > 0.5) == each["cancer"]).mean())
    assert found["metrics"]["auc_malignant"]["estimate"] == pytest.approx(roc_auc_score(each["cancer"], each["p"]))
    assert found["metrics"]["auc_malignant"]["low"] < found["metrics"]["auc_malignant"]["estimate"]


def test_patients_of_one_near_duplicate_group_are_one_cluster() -> None:
    patient = ["P2", "P2", "P1", "P3", "P4"]
    assert patient_clusters(patient, ["a", "b", "b", "c", "d"]).tolist() == [0, 0, 1, 2]  # P1 and P2 share b
    content = configuration(predictions(images=60, group_of=6), patients_of(60, 2), resamples=200)
    assert (content["patients"]["n"], content["patients"]["groups"]) == (30, 10)


@pytest.mark.parametrize(
    ("patients", "why"),
    [
        ({}, "no patients are known"),
        (dict.fromkeys(patients_of(60, 1), ""), "no patients are known"),
        ({**patients_of(60, 2), "image 007": ""}, "1 of 60 test images have no patient"),
        (patients_of(60, 1), "each patient has one test image"),
    ],
)
def test_why_there_are_no_figures_by_patient(patients: dict[str, str], why: str) -> None:
    content = configuration(predictions(), patients, resamples=200)
    assert content["patients"] is None
    assert why in content["patients_reason"]


def test_patients_of_unordered_classes_are_said_and_not_counted() -> None:
    content = configuration(predictions(classes=("cyst", "fibroadenoma")), patients_of(60, 10), resamples=200)
    assert content["patients"] is None
    assert "several classes" in content["patients_reason"]


def grid(folds: int = 1, **options: Any) -> pd.DataFrame:
    """Three configurations whose validation predictions are not their test predictions."""
    parts = []
    for i, optimizer in enumerate(("adam", "rmsprop", "sgdm")):
        table = predictions(folds=folds, noise=i, optimizer=optimizer, **options)
        other = predictions(folds=folds, noise=10 + i, optimizer=optimizer, **options)
        parts += [table[table["subset"] != "validation"], other[other["subset"] == "validation"]]
    return pd.concat(parts, ignore_index=True)


def by_hand(table: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """The choice in plain loops: optimizer of each fold, and the test rows that follow from it."""
    right = table["label"] == table["predicted"]
    chosen, rows = [], []
    for (repeat, fold), part in table.groupby(["repeat", "fold"]):
        names = list(dict.fromkeys(table["optimizer"]))
        value = {
            o: right[part.index[(part["optimizer"] == o) & (part["subset"] == "validation")]].mean() for o in names
        }
        best = max(names, key=lambda o: value[o])
        chosen.append(best)
        mine = (table["optimizer"] == best) & (table["repeat"] == repeat) & (table["fold"] == fold)
        rows.append(table[mine & (table["subset"] == "test")])
    return chosen, pd.concat(rows)


def test_the_choice_in_each_fold_is_that_of_its_validation_images() -> None:
    table = grid(folds=5, repeats=2, seeds=(0, 1))
    found = nested_choice(table, resamples=200)
    chosen, rows = by_hand(table)
    assert found is not None
    assert {c["optimizer"]: c["times"] for c in found["chosen"]} == dict(Counter(chosen))
    assert len(set(chosen)) > 1
    assert (found["choices"], found["repeats"], found["n"]) == (10, 4, 60)
    assert found["accuracy"]["estimate"] == pytest.approx((rows["label"] == rows["predicted"]).mean())


def test_on_a_hold_out_the_choice_is_the_best_on_validation() -> None:
    table = grid()
    found = nested_choice(table, resamples=300)
    assert found is not None
    content = study_metrics(table, resamples=300)
    best = max(content["configurations"], key=lambda c: c["subset_accuracy"]["validation"])
    assert found["chosen"] == [{"architecture": "Net", "optimizer": best["optimizer"], "times": 1}]
    assert found["accuracy"] == best["accuracy"]
    assert content["nested_choice"] is None


def test_of_equal_ones_the_first_named_is_chosen() -> None:
    one = predictions(folds=3)
    found = nested_choice(pd.concat([one.assign(optimizer=o) for o in ("sgdm", "adam")]), resamples=200)
    assert found is not None
    assert found["chosen"] == [{"architecture": "Net", "optimizer": "sgdm", "times": 3}]


def test_the_best_of_many_guessers_is_no_better_than_guessing() -> None:
    """The best test figure of twenty configurations that know nothing is far too high; the nested one is not."""
    names = [f"o{i}" for i in range(20)]
    table = pd.concat(
        [predictions(folds=4, images=120, strength=0.0, noise=i, optimizer=o) for i, o in enumerate(names)],
        ignore_index=True,
    )
    # The validation rows are those of another configuration: they say nothing of this one's test images.
    validation = table["subset"] == "validation"
    other = dict(zip(names, names[7:] + names[:7], strict=True))
    table.loc[validation, "optimizer"] = table.loc[validation, "optimizer"].map(other)
    test = table[table["subset"] == "test"]
    best = (test["label"] == test["predicted"]).groupby(test["optimizer"]).mean().max()
    found = nested_choice(table, resamples=200)
    assert found is not None
    assert best > 1 / 3 + 0.06
    assert found["accuracy"]["low"] < 1 / 3 < found["accuracy"]["high"]


def test_a_failed_run_is_no_candidate_where_it_failed() -> None:
    table = grid(folds=3, seeds=(0, 1))
    whole = nested_choice(table, resamples=200)
    assert whole is not None
    first = by_hand(table)[0][0]
    failed = without(table, optimizer=first, fold=0, seed=1)
    found = nested_choice(failed, resamples=200)
    assert found is not None
    assert found["left_out"] == []
    assert found["n"] == 60
    expected = nested_choice(without(table, optimizer=first, fold=0), resamples=200)
    assert found == expected


def test_a_seed_that_failed_in_all_is_left_out_and_named() -> None:
    found = nested_choice(without(grid(folds=3, seeds=(0, 1)), fold=1, seed=1), resamples=200)
    assert found is not None
    assert found["left_out"] == ["repeat 0, seed 1"]


def test_one_configuration_is_no_choice() -> None:
    assert nested_choice(predictions(folds=3)) is None
    content = study_metrics(predictions(folds=3), resamples=200)
    assert content["nested_choice"] is None
    assert content["comparisons"] is None
    assert is_complete(content)


def test_images_that_a_failed_fold_leaves_out_are_counted() -> None:
    content = study_metrics(without(grid(folds=3), optimizer="adam", fold=1), resamples=200)
    assert [c["missing"] for c in content["configurations"]] == [20, 0, 0]
    assert [c["n"] for c in content["configurations"]] == [40, 60, 60]
    assert len(content["comparisons"]["not_compared"]) == 2


def test_prevalences_are_those_asked_for() -> None:
    content = study_metrics(grid(), prevalences=(0.02, 0.02, 0.5), resamples=200)
    assert content["prevalences"] == [0.02, 0.5]
    assert [v["prevalence"] for v in content["configurations"][0]["predictive_values"]] == [0.02, 0.5]


def test_metrics_of_an_earlier_version_are_recognised() -> None:
    content = study_metrics(predictions(), resamples=200)
    assert is_complete(content)
    assert not is_complete({k: v for k, v in content.items() if k != "comparisons"})
    del content["configurations"][0]["spread"]
    assert not is_complete(content)
