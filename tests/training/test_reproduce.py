"""Many draws of one recipe: each is another sub-sample, the figures are those of the predictions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.fake import tiny_recipe, write_busi

from sonobreast.data.cohort import Sources
from sonobreast.errors import SonobreastError
from sonobreast.records import read_json, read_table
from sonobreast.training.reproduce import run_reproduction

COUNTS = {"benign": 12, "malignant": 11, "normal": 10}
CHANGES = {
    "data.subsample": {"benign": 9, "malignant": 9, "normal": 9},
    "training.epochs": 2,
    "training.optimizers": ["adam", "sgdm"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_busi(tmp_path_factory.mktemp("data"), COUNTS)
    for i in (1, 2, 3):
        shutil.copy(root / f"benign/benign ({i}).png", root / f"benign/benign ({90 + i}).png")
    return root


@pytest.fixture(scope="module")
def out(data: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "draws"
    run_reproduction(tiny_recipe(CHANGES), Sources(data), str(tiny_weights), out, 4)
    return out


def test_each_draw_is_another_one(out: Path) -> None:
    table = pd.DataFrame(read_table(out / "predictions.csv"))
    tested = table.groupby("design")["image"].agg(frozenset)
    assert len(tested) == 8
    assert len(set(tested)) > 5
    heads = pd.DataFrame(read_table(out / "heads.csv"))
    assert len(heads) == 4 * 2 * 2
    assert set(heads["test_images"].astype(int)) <= {3, 4, 5, 6}


def test_distribution_is_that_of_the_heads(out: Path) -> None:
    result = read_json(out / "reproduction.json")
    heads = pd.DataFrame(read_table(out / "heads.csv")).astype({"test_accuracy": float, "validation_accuracy": float})
    for grouping in ("random", "grouped"):
        mine = heads[heads["design"].str.startswith(grouping)]
        for c in result[grouping]["configurations"]:
            values = mine.loc[mine["optimizer"] == c["optimizer"], "test_accuracy"]
            assert c["mean"] == pytest.approx(values.mean(), abs=1e-5)
            assert c["sd"] == pytest.approx(values.std(), abs=1e-5)
        best = mine.groupby("design")["test_accuracy"].max()
        assert result[grouping]["best_of_all"]["mean"] == pytest.approx(best.mean(), abs=1e-5)
        shares = [c["best_in"] for c in result[grouping]["configurations"]]
        assert np.sum(shares) == pytest.approx(1)


def test_pooled_figures_are_those_of_the_predictions(out: Path) -> None:
    result = read_json(out / "reproduction.json")
    table = pd.DataFrame(read_table(out / "predictions.csv"))
    table["right"] = table["label"] == table["predicted"]
    for grouping in ("random", "grouped"):
        mine = table[table["design"].str.startswith(grouping)].groupby("optimizer")["right"].mean()
        pair = result[grouping]["differences"]["pairs"][0]
        assert (pair["a"][1], pair["b"][1]) == ("adam", "sgdm")
        assert pair["estimate"] == pytest.approx(mine["adam"] - mine["sgdm"])
        assert pair["low"] <= pair["estimate"] <= pair["high"]
        assert 0 < pair["p_value"] <= pair["p_holm"] <= 1


def test_report(out: Path) -> None:
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "4 draws" in html
    assert "https://" not in html
    assert html.count("data:image/png;base64,") == 2


def test_one_draw_is_no_distribution(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="no distribution"):
        run_reproduction(tiny_recipe(CHANGES), Sources(data), str(tiny_weights), tmp_path / "o", 1)


def test_folds_are_refused(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe({**CHANGES, "split.kind": "kfold"})
    with pytest.raises(SonobreastError, match="hold-out"):
        run_reproduction(recipe, Sources(data), str(tiny_weights), tmp_path / "o", 3)
