"""From predictions to the figures of a study."""

from __future__ import annotations

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score
from tests.tables import CLASSES, predictions

from sonobreast.evaluation.summary import configuration, study_metrics


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
