"""The errors that are shown are the most confident ones, one of a group, missed cancers first."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from PIL import Image
from tests.fake import write_busi
from tests.studies import collect_quickly, shifted, write_study
from tests.tables import predictions

from sonobreast.data.manifest import Manifest, build
from sonobreast.data.masks_out import predicted_mask_file, write_mask
from sonobreast.evaluation.failures import (
    KINDS,
    choose,
    chosen_configuration,
    failure_plot,
    map_file,
    of_configuration,
    picture_file,
)
from sonobreast.evaluation.overlays import PREDICTED_OUTLINE, TRUE_OUTLINE
from sonobreast.evaluation.plots import png
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.records import read_json
from sonobreast.training.failures import draw_failures


def test_the_most_confident_errors_of_each_kind_in_order() -> None:
    table = predictions(images=200, strength=0.2)
    failures, counts = choose(table)
    test = table[(table["subset"] == "test") & (table["label"] != table["predicted"])]
    assert [f.kind for f in failures] == [k for k, n in KINDS.items() for _ in range(n)]
    assert sum(counts.values()) == len(test)
    missed = test[test["label"] == "malignant"]
    sure = np.sort(missed[["p_benign", "p_normal"]].max(axis=1).to_numpy())[::-1]
    assert counts["missed cancer"] == len(missed)
    assert [f.probability for f in failures[:6]] == sure[:6].tolist()
    assert all(f.label == "malignant" and f.predicted != "malignant" for f in failures[:6])
    assert all(f.label != "malignant" and f.predicted == "malignant" for f in failures[6:12])
    assert all(f.probability > f.of_truth for f in failures)
    assert choose(table.sample(frac=1, random_state=2))[0] == failures


def test_a_group_of_copies_is_shown_once_and_counted() -> None:
    table = predictions(images=200, strength=0.2)
    table["group"] = "one picture"
    failures, counts = choose(table)
    assert len(failures) == 1
    assert failures[0].kind == "missed cancer"
    assert failures[0].copies == counts["missed cancer"] - 1 > 0


def test_nothing_wrong_shows_nothing_and_two_classes_have_no_third_kind() -> None:
    table = predictions(images=60)
    right = table.assign(predicted=table["label"])
    assert choose(right) == ([], {})
    two = predictions(images=90, strength=0.1, classes=("benign", "normal"))
    assert {f.kind for f in choose(two)[0]} == {"other mix-up"}
    binary = predictions(images=90, strength=0.1, classes=("benign", "malignant"))
    assert {f.kind for f in choose(binary)[0]} == {"missed cancer", "false alarm"}


def test_only_the_first_repeat_and_seed_are_shown() -> None:
    runs = {f.run for f in choose(predictions(images=90, strength=0.1, folds=3, repeats=2, seeds=(4, 7)))[0]}
    assert runs <= {f"Net-adam-r0-f{f}-s4" for f in range(3)}
    assert len(runs) > 1


def test_files_have_names_of_their_own_that_every_system_takes() -> None:
    [first, second, *_] = choose(predictions(images=90, strength=0.1))[0]
    same_name = replace(first, image=f"other/{first.image}")
    files = {picture_file(Path("o"), f) for f in (first, second, same_name)} | {map_file(Path("o"), first)}
    assert len(files) == 4
    odd = replace(first, image="a/ü?*: " + "x" * 200 + ".png")
    assert len(picture_file(Path("o"), odd).name) < 80
    assert picture_file(Path("o"), odd).stem.replace("_", "").replace("-", "").isalnum()
    assert picture_file(Path("o"), odd).stem.isascii()


def test_both_outlines_are_drawn_and_the_picture_keeps_its_shape() -> None:
    picture = np.full((60, 90, 3), 80, np.uint8)
    mask = np.zeros((60, 90), bool)
    mask[20:40, 30:60] = True

    def colours(*masks: np.ndarray | None) -> set[str]:
        figure = failure_plot(picture, *masks)
        [axis] = figure.axes
        assert (axis.get_xlim(), axis.get_ylim()) == ((-0.5, 89.5), (59.5, -0.5))
        assert figure.get_figwidth() / figure.get_figheight() == pytest.approx(1.5)
        assert png(figure).startswith(b"\x89PNG")
        return {matplotlib.colors.to_hex(c.get_edgecolor()[0]).upper() for c in axis.collections}

    assert colours(mask, np.roll(mask, 5)) == {TRUE_OUTLINE[0], PREDICTED_OUTLINE[0]}
    assert colours(mask, None) == {TRUE_OUTLINE[0]}
    assert colours(None, np.zeros_like(mask)) == set()
    tall = failure_plot(np.zeros((900, 100, 3), np.uint8), None, None)
    assert tall.get_figheight() < 4.5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    base = tmp_path_factory.mktemp("failures")
    data = build(write_busi(base / "busi", {"benign": 9, "malignant": 9, "normal": 6}))
    out = base / "study"
    networks = {("joint:a", "adam"): shifted(4), ("plain", "adam"): None}
    collect_quickly(out, write_study(out, data, networks, folds=3, strength=0.1))
    return out, data


def test_a_study_gets_pictures_of_its_chosen_configuration(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    out = Path(shutil.copytree(made[0], tmp_path / "study"))
    key = chosen_configuration(read_json(out / "metrics.json"))
    failures, _ = choose(of_configuration(read_predictions(out / "predictions.csv"), key))
    stale = out / "figures" / "failures" / "stale.png"
    explained = map_file(out, failures[0])
    explained.parent.mkdir(parents=True)
    for file in (stale, explained):
        Image.new("L", (4, 4)).save(file)
    assert draw_failures(out, made[1]) == []
    assert {p for p in stale.parent.iterdir() if p != explained} == {picture_file(out, f) for f in failures}
    assert explained.is_file(), "somebody's explanation stays"
    with Image.open(picture_file(out, failures[0])) as picture:
        assert picture.width / picture.height == pytest.approx(80 / 60, abs=0.02)


def test_what_cannot_be_drawn_is_said(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    out = Path(shutil.copytree(made[0], tmp_path / "study"))
    key = chosen_configuration(read_json(out / "metrics.json"))
    failures, _ = choose(of_configuration(read_predictions(out / "predictions.csv"), key))
    write_mask(predicted_mask_file(out / "runs" / failures[0].run / "masks", failures[0].image), np.ones((3, 3), bool))
    [said] = draw_failures(out, made[1])
    assert failures[0].image in said
    assert "size" in said
    assert not picture_file(out, failures[0]).exists()
    assert picture_file(out, failures[1]).exists()
    assert draw_failures(tmp_path / "empty", made[1]) == []
