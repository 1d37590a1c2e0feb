"""Random, grouped and curated divisions of the same images, on features that know every picture by heart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from tests.fake import tiny_recipe, write_busi

from sonobreast.config import Recipe
from sonobreast.data.cohort import Sources
from sonobreast.errors import SonobreastError
from sonobreast.records import read_json, read_table
from sonobreast.training.leakage import run_leakage

FOLDS = {
    "data.subsample": None,
    "split": {"kind": "kfold", "folds": 3, "repeats": 2, "validation": 0.2},
    "training.epochs": 3,
    "training.optimizers": ["adam"],
}


def recipe(**changes: object) -> Recipe:
    return tiny_recipe({**FOLDS, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_busi(tmp_path_factory.mktemp("data"))
    for i in (1, 2, 3):
        shutil.copy(root / f"benign/benign ({i}).png", root / f"benign/benign ({90 + i}).png")
    shutil.copy(root / "normal/normal (1).png", root / "malignant/malignant (90).png")
    return root


@pytest.fixture(scope="module")
def out(data: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "leak"
    report = run_leakage(recipe(), Sources(data), str(tiny_weights), out)
    assert report == out / "report.html"
    return out


def test_every_image_is_tested_once_a_repeat_under_each_division(out: Path) -> None:
    table = pd.DataFrame(read_table(out / "predictions.csv"))
    count = table.groupby(["design", "repeat"])["image"].agg(["size", "nunique"])
    assert (count["size"] == count["nunique"]).all()
    images = count["size"].groupby(level="design").first().to_dict()
    # Curated: three further copies, and both pictures of the double label.
    assert images == {"random": 25, "grouped": 25, "curated": 20}


def test_only_the_grouped_divisions_keep_copies_together(out: Path) -> None:
    table = pd.DataFrame(read_table(out / "predictions.csv"))
    split = table.groupby(["design", "repeat", "group"])["fold"].nunique().groupby(level="design").max()
    assert split["grouped"] == 1
    assert split["curated"] == 1
    assert split["random"] > 1


def test_figures_are_of_the_predictions(out: Path) -> None:
    figures = read_json(out / "leakage.json")["configurations"][0]
    table = pd.DataFrame(read_table(out / "predictions.csv"))
    right = table.assign(right=table["label"] == table["predicted"])
    accuracy = right.groupby(["design", "repeat"])["right"].mean().groupby(level="design").mean()
    for design in ("random", "grouped", "curated"):
        assert figures["designs"][design]["accuracy"]["estimate"] == pytest.approx(accuracy[design])
    gap = figures["differences"]["random - grouped"]
    assert gap["images"] == 25
    assert gap["accuracy"]["estimate"] == pytest.approx(accuracy["random"] - accuracy["grouped"])
    common = set(table.loc[table["design"] == "curated", "image"])
    rest = right[right["image"].isin(common)].groupby("design")["right"].mean()
    assert figures["differences"]["random - curated"]["accuracy"]["estimate"] == pytest.approx(
        rest["random"] - rest["curated"]
    )
    assert figures["copies"]["with a copy"]["images"] == 8
    assert figures["copies"]["without a copy"]["images"] == 17


def test_the_report_says_it_in_words(out: Path) -> None:
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "divided image by image" in html
    assert "Research use only" in html
    assert "https://" not in html
    assert list((out / "figures").glob("leakage-*-accuracy.png"))


def test_a_second_call_gives_the_same(out: Path, data: Path, tiny_weights: Path) -> None:
    before = (out / "predictions.csv").read_bytes()
    run_leakage(recipe(), Sources(data), str(tiny_weights), out)
    assert (out / "predictions.csv").read_bytes() == before


def test_data_without_copies_have_nothing_to_measure(tmp_path: Path, tiny_weights: Path) -> None:
    with pytest.raises(SonobreastError, match="no leakage to measure"):
        run_leakage(recipe(), Sources(write_busi(tmp_path / "b")), str(tiny_weights), tmp_path / "o")


def test_a_hold_out_and_a_foreign_folder_are_refused(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="folds"):
        run_leakage(tiny_recipe({"data.subsample": None}), Sources(data), str(tiny_weights), tmp_path / "o")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.txt").write_text("mine")
    with pytest.raises(SonobreastError, match="not empty"):
        run_leakage(recipe(), Sources(data), str(tiny_weights), tmp_path / "p")


def test_a_trained_backbone_is_refused(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="frozen"):
        run_leakage(recipe(**{"model.backbone": "finetune"}), Sources(data), str(tiny_weights), tmp_path / "o")
