"""From predictions to the figures of a study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.summary import configuration, read_predictions, repeats_of, scored, study_metrics

CLASSES = ("benign", "malignant", "normal")


def predictions(
    *,
    images: int = 60,
    folds: int = 1,
    repeats: int = 1,
    seeds: tuple[int, ...] = (0,),
    group_of: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """A predictions table: each image is a test image once in each repeat and seed."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, images)
    rows = []
    for repeat in range(repeats):
        for s in seeds:
            fold_of = rng.permutation(images) % folds
            p = rng.dirichlet(np.ones(3), images)
            p[np.arange(images), label] += 0.6
            p /= p.sum(axis=1, keepdims=True)
            for i in range(images):
                rows.append(
                    {
                        "run": f"Net-adam-r{repeat}-f{fold_of[i]}-s{s}",
                        "architecture": "Net",
                        "optimizer": "adam",
                        "repeat": repeat,
                        "fold": int(fold_of[i]),
                        "seed": s,
                        "subset": "test",
                        "image": f"image {i:03d}",
                        "group": f"group {i // group_of}",
                        "label": CLASSES[label[i]],
                        "predicted": CLASSES[int(p[i].argmax())],
                        **{f"p_{c}": v for c, v in zip(CLASSES, p[i], strict=True)},
                        "schema_version": 1,
                    }
                )
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)
    extra = [table.assign(subset=s) for s in ("train", "validation")]
    return pd.concat([table, *extra])


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


def test_folds_of_a_repeat_make_one_set_of_cases() -> None:
    repeats, group, left_out = repeats_of(predictions(folds=4, repeats=2))
    assert [r.n for r in repeats] == [60, 60]
    assert len(group) == 60
    assert left_out == []
    assert np.array_equal(repeats[0].label, repeats[1].label)


def test_a_repeat_with_a_missing_fold_is_left_out_and_named() -> None:
    table = predictions(folds=4, repeats=2)
    cut = table[~((table["repeat"] == 1) & (table["fold"] == 2))]
    repeats, _, left_out = repeats_of(cut)
    assert len(repeats) == 1
    assert left_out == ["repeat 1, seed 0"]


def test_an_image_tested_twice_in_one_repeat_is_refused() -> None:
    table = predictions()
    test = table[table["subset"] == "test"]
    with pytest.raises(SonobreastError, match="not those of the other repeats"):
        repeats_of(pd.concat([table, test.iloc[:1]]))


def test_the_order_of_the_rows_does_not_matter() -> None:
    table = predictions(folds=3, group_of=2)
    shuffled = table.sample(frac=1, random_state=5)
    assert configuration(table, resamples=200) == configuration(shuffled, resamples=200)


def test_configurations_keep_their_order() -> None:
    grid = [(a, o) for a in ("Z", "A") for o in ("sgdm", "adam")]
    table = pd.concat([predictions(seed=1).assign(architecture=a, optimizer=o) for a, o in grid])
    names = [(c["architecture"], c["optimizer"]) for c in study_metrics(table, resamples=100)["configurations"]]
    assert names == grid


def test_single_precision_probabilities_are_taken() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(3), 50).astype(np.float32)
    assert scored(np.zeros(50, int), p, CLASSES).probability.sum(axis=1) == pytest.approx(1.0, abs=1e-12)


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    with pytest.raises(SonobreastError, match="cannot be read"):
        read_predictions(file)
    file.write_text("image,label\na,b\n")
    with pytest.raises(SonobreastError, match="is missing"):
        read_predictions(file)
    predictions().iloc[:0].to_csv(file, index=False)
    with pytest.raises(SonobreastError, match="no predictions"):
        read_predictions(file)


def test_names_that_look_like_missing_values_survive(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    predictions().assign(image="NA", group="null").to_csv(file, index=False)
    table = read_predictions(file)
    assert set(table["image"]) == {"NA"}
    assert set(table["group"]) == {"null"}
