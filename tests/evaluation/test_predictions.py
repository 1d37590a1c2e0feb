"""The table of predictions, read and put together into sets of the same cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.tables import CLASSES, predictions, without

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.predictions import (
    folds_of,
    read_patients,
    read_predictions,
    repeats_of,
    scored,
    whole_repeats,
)


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


def test_a_whole_repeat_has_every_fold_that_any_configuration_finished() -> None:
    a, b = predictions(folds=3), predictions(folds=3, optimizer="sgdm")
    study = pd.concat([without(a, fold=2), b])
    assert folds_of(study) == {0: frozenset({0, 1, 2})}
    assert len(whole_repeats(b, folds=folds_of(study)).image) == 60
    with pytest.raises(SonobreastError, match=r"no repeat of Net \+ Adam has all its folds"):
        whole_repeats(without(a, fold=2), folds=folds_of(study))


def test_patients_are_read_and_may_be_unknown(tmp_path: Path) -> None:
    file = tmp_path / "manifest.csv"
    file.write_text("image,label,patient,schema_version\na.png,benign,P1,1\nNA,benign,,1\n", encoding="utf-8")
    assert read_patients(file) == {"a.png": "P1", "NA": ""}
    with pytest.raises(SonobreastError, match="missing"):
        read_patients(tmp_path / "nothing.csv")
