"""Frozen runs on corrupted images: who judges what, and what the files and the page say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tests.fake import tiny_recipe, write_busi, write_class_folders

from sonobreast import cli
from sonobreast.data.cohort import Sources
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.shortcuts import COLUMNS
from sonobreast.inspection import judges
from sonobreast.inspection.judges import appoint, models_of
from sonobreast.inspection.sample import drawn
from sonobreast.inspection.shortcuts import PARTS, find_shortcuts
from sonobreast.inspection.stress import stress_runs
from sonobreast.records import read_json, read_table
from sonobreast.training.study import run_study

FIRST = "test_resnet-adam"


@pytest.fixture(scope="module")
def study(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("stress")
    data = write_busi(base / "own")
    recipe = tiny_recipe(
        {
            "data.subsample": None,
            "split": {"kind": "kfold", "folds": 2, "validation": 0.3},
            "model.architectures": ["test_resnet"],
            "model.backbone": "finetune",
            "training.epochs": 1,
            "training.optimizers": ["adam", "sgdm"],
        }
    )
    run_study(recipe, data, str(tiny_weights), base / "study", images=False)
    return base / "study", data


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_busi(tmp_path_factory.mktemp("other") / "data", {"benign": 4, "malignant": 3, "normal": 2}, seed=77)


def stressed(study: Path, data: Path, out: Path, **options: object) -> Path:
    chosen = {"configurations": [FIRST], "kinds": ["blur"], "resamples": 200} | options
    return stress_runs([study], Sources(data), out, **chosen)  # type: ignore[arg-type]


def test_own_images_are_judged_by_the_runs_that_tested_them(study: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = study
    judged = appoint(models_of([out], [FIRST]), Sources(data))
    tested = {
        r["image"]: run.name
        for run in judged.models[0].runs
        for r in read_table(run / "predictions.csv")
        if r["subset"] == "test"
    }
    assert judged.own == len(judged.cases) == len(tested) == 21
    assert all(
        [run.name for run in runs] == [tested[c.image]] for c, runs in zip(judged.cases, judged.runs[0], strict=True)
    )
    stressed(out, data, tmp_path / "s", limit=None)
    found = pd.DataFrame(read_table(tmp_path / "s" / "predictions.csv"))
    clean = found[found["kind"] == "clean"].set_index("image")["p_malignant"].astype(float)
    for run in judged.models[0].runs:
        rows = [r for r in read_table(run / "predictions.csv") if r["subset"] == "test"]
        assert all(abs(clean[r["image"]] - float(r["p_malignant"])) < 1e-5 for r in rows)
    metrics = read_json(tmp_path / "s" / "stress.json")["models"][0]["clean"]
    assert metrics["accuracy"]["n"] == 21


def test_one_run_judges_its_own_test_images_only(study: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = study
    [run, _] = models_of([out], [FIRST])[0].runs
    judged = appoint(models_of([run]), Sources(data))
    tested = {r["image"] for r in read_table(run / "predictions.csv") if r["subset"] == "test"}
    assert {c.image for c in judged.cases} == tested
    assert judged.skipped == {"not test images of the runs that were given": 21 - len(tested)}
    checked = appoint(models_of([run]), Sources(data), subset="validation")
    held = {r["image"] for r in read_table(run / "predictions.csv") if r["subset"] == "validation"}
    assert {c.image for c in checked.cases} == held
    with pytest.raises(SonobreastError, match="train"):
        appoint(models_of([run]), Sources(data), subset="train")


def test_images_of_another_set_are_judged_by_all(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    out, own = study
    mixed = tmp_path / "mixed"
    shutil.copytree(other, mixed)
    with Image.open(own / "benign" / "benign (1).png") as picture:
        picture.save(mixed / "benign" / "benign (91).png", compress_level=1)  # other bytes, the same pixels
    judged = appoint(models_of([out]), Sources(mixed))
    assert judged.own == 0
    assert len(judged.models) == 2
    assert all(len(runs) == 2 for of in judged.runs for runs in of)
    assert judged.skipped == {"copies of the study's images, changed": 1}
    assert "benign/benign (91).png" not in {c.image for c in judged.cases}


def test_two_models_on_a_page(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    page = stressed(study[0], other, tmp_path / "s", configurations=None)
    text = page.read_text()
    assert "Research use only" in text
    assert "None is in the study's own set" in text.replace("&#39;", "'")
    assert "Models against each other" in text
    assert 'src="http' not in text
    rows = read_table(tmp_path / "s" / "stress.csv")
    assert len(rows) == 2 * (1 + 5)
    content = read_json(tmp_path / "s" / "stress.json")
    assert content["images"] == 9
    assert len(content["pairs"]) == 1
    assert {p.name for p in (tmp_path / "s" / "figures").iterdir()} >= {
        "summary.png",
        "accuracy.png",
        "corruptions.jpg",
    }


def test_a_draw_keeps_the_mix_and_takes_other_groups_first(study: tuple[Path, Path]) -> None:
    judged = appoint(models_of([study[0]], [FIRST]), Sources(study[1]))
    twins = tuple(c.model_copy(update={"group": f"g{i // 2}"}) for i, c in enumerate(judged.cases))
    pairs = judges.replace(judged, cases=twins)
    nine = drawn(pairs, 9)
    assert [sum(c.label == k for c in nine.cases) for k in ("benign", "malignant", "normal")] == [3, 3, 3]
    assert len({c.group for c in nine.cases if c.label == "benign"}) == 3
    assert nine == drawn(pairs, 9)
    assert nine != drawn(pairs, 9, seed=1)
    assert len(nine.runs[0]) == 9
    assert drawn(pairs, 99) is drawn(pairs, None) is pairs
    assert len(drawn(pairs, 1).cases) == 1


def test_unreadable_files_are_survived(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(other, data)
    (data / "normal" / "normal (9).png").write_bytes(b"no image")
    said: list[str] = []
    broken = data / "benign" / "benign (2).png"

    def spoil(stage: str, done: int, total: int) -> None:
        if stage.startswith("judging") and done == 1:
            broken.write_bytes(b"")

    stressed(study[0], data, tmp_path / "s", progress=spoil, say=said.append)
    assert read_json(tmp_path / "s" / "stress.json")["about"]["unreadable"] == 0 or any("left out" in s for s in said)
    judged = appoint(models_of([study[0]], [FIRST]), Sources(other))
    lost = judges.replace(judged, root=tmp_path / "nowhere")
    with pytest.raises(SonobreastError, match="none of the images"):
        judges.answers(lost, lambda i, image: [image], stage="x")


def test_small_sets_and_single_classes(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    write_busi(one, {"benign": 2}, seed=5)
    stressed(study[0], one, tmp_path / "s", limit=1)
    content = read_json(tmp_path / "s" / "stress.json")
    assert content["images"] == 1
    assert content["models"][0]["clean"]["auc_malignant"]["estimate"] is None
    find_shortcuts([study[0]], Sources(one), tmp_path / "c", configurations=[FIRST], limit=1, resamples=200)
    assert (tmp_path / "c" / "shortcuts.html").is_file()


def test_shortcuts_of_two_models(study: tuple[Path, Path], tmp_path: Path) -> None:
    page = find_shortcuts([study[0]], Sources(study[1]), tmp_path / "c", resamples=200)
    text = page.read_text()
    assert "Research use only" in text
    content = read_json(tmp_path / "c" / "shortcuts.json")
    assert content["images"] == 21
    assert content["about"]["borrowed"] == 6
    for model in content["models"]:
        assert set(model["parts"]) == {"whole", *PARTS}
        assert model["parts"]["whole"]["loss"]["accuracy"]["estimate"] == 0.0
        for part in model["parts"].values():
            assert part["chance"]["accuracy"] == pytest.approx(8 / 21)
            for metric, loss in part["loss"].items():
                assert loss["estimate"] == pytest.approx(
                    part["whole"][metric]["estimate"] - part["value"][metric]["estimate"]
                )
        added = model["shifts"]["calipers"]
        assert added[0]["images"] == sum(r["images"] for r in added[1:])
        shift = sum(r["shift"]["estimate"] * r["images"] for r in added[1:]) / added[0]["images"]
        assert added[0]["shift"]["estimate"] == pytest.approx(shift)
        assert added[0]["after"] - added[0]["before"] == pytest.approx(shift)
    rows = read_table(tmp_path / "c" / "shortcuts.csv", COLUMNS)
    assert {r["view"] for r in rows} >= {"border", "calipers", "text"}


def test_without_masks_the_lesion_is_not_applicable(study: tuple[Path, Path], tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "plain", {"benign": 3, "malignant": 3, "normal": 2}, seed=9, size=60)
    page = find_shortcuts([study[0]], Sources(data), tmp_path / "c", configurations=[FIRST], resamples=200)
    content = read_json(tmp_path / "c" / "shortcuts.json")
    assert set(content["models"][0]["parts"]) == {"whole", "border", "unmarked"}
    assert "there are no masks" in content["not_applicable"]["lesion"]
    assert "Not applicable" in page.read_text()


def test_what_is_mistyped_is_said(
    study: tuple[Path, Path], other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SonobreastError, match="blurr") as caught:
        stressed(study[0], other, tmp_path / "s", kinds=["blurr"])
    assert "did you mean blur" in caught.value.remedy
    assert not (tmp_path / "s").exists()
    with pytest.raises(SonobreastError, match="no run has the configuration ResNet"):
        stressed(study[0], other, tmp_path / "s", configurations=["ResNet"])
    with pytest.raises(SonobreastError, match="neither a finished run"):
        models_of([tmp_path])
    arguments = ["stress", str(study[0]), "--data", str(other), "--out", str(tmp_path / "x"), "--limit", "-1"]
    assert cli._call([*arguments, "--kinds", "blur", "--configuration", FIRST], debug=False) == 1
    assert "--limit -1" in capsys.readouterr().err


def test_the_commands(
    study: tuple[Path, Path], other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(study[0]), "--data", str(other), "--configuration", FIRST]
    assert cli._call(["stress", *common, "--kinds", "mirror", "--out", str(tmp_path / "s")], debug=False) == 0
    assert cli._call(["shortcuts", *common, "--limit", "4", "--out", str(tmp_path / "c")], debug=False) == 0
    said = capsys.readouterr()
    assert "stress.html" in said.out
    assert "shortcuts.html" in said.out
    assert "4 of 9 images are drawn" in said.err
    assert cli._call(["stress", *common, "--out", str(tmp_path / "c")], debug=False) == 1  # holds other work
