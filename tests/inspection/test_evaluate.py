"""A frozen run on other images: what it wrote of its own images comes out again, and nothing is guessed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tests.fake import tiny_recipe, write_busi

from sonobreast.data.cohort import Sources
from sonobreast.errors import SonobreastError
from sonobreast.inspection.evaluate import evaluate_runs, find_runs, own_predictions
from sonobreast.inspection.judges import models_of
from sonobreast.records import read_json, read_table
from sonobreast.training.study import run_study


@pytest.fixture(scope="module")
def study(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study of a frozen network, of two optimizers, and of one that segments; with its data."""
    base = tmp_path_factory.mktemp("evaluate")
    data = write_busi(base / "own")
    out = base / "study"
    recipe = tiny_recipe(
        {
            "data.subsample": None,
            "split": {"kind": "kfold", "folds": 2, "validation": 0.3},
            "model.architectures": ["frozen:test_resnet", "joint:test_resnet"],
            "model.backbone": "finetune",
            "segmentation": {"channels": [8, 8, 8], "shortcuts": 8},
            "training.epochs": 2,
            "training.optimizers": ["adam"],
        }
    )
    run_study(recipe, data, str(tiny_weights), out, images=False)
    return out, data


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_busi(tmp_path_factory.mktemp("other") / "data", seed=77)


def evaluated(study: Path, data: Path, out: Path, **options: object) -> Path:
    return evaluate_runs([study], Sources(data), out, **options)  # type: ignore[arg-type]


def test_a_run_says_the_same_of_its_own_images_again(study: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = study
    [run, *_] = find_runs([out], "joint:test_resnet-adam")
    evaluate_runs([run], Sources(data), tmp_path / "e", allow_overlap=True)
    before = pd.DataFrame(read_table(run / "predictions.csv")).set_index("image")
    after = pd.DataFrame(read_table(tmp_path / "e" / "predictions.csv")).set_index("image")
    both = before.join(after.add_suffix("_again"))
    assert len(after) == len(before)
    for c in ("benign", "malignant", "normal"):
        gap = (both[f"p_{c}"].astype(float) - both[f"p_{c}_again"].astype(float)).abs()
        assert gap.max() < 1e-5
    masks = pd.DataFrame(read_table(run / "segmentation.csv")).set_index("image")
    again = pd.DataFrame(read_table(tmp_path / "e" / "segmentation.csv")).set_index("image").loc[masks.index]
    area, second = (t["predicted_area_px"].astype(float) for t in (masks, again))
    assert ((area - second).abs() <= 0.01 * area.clip(lower=100)).all()


def test_another_set_gets_tables_and_a_page(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    page = evaluated(study[0], other, tmp_path / "e", configuration="joint:test_resnet-adam")
    text = page.read_text()
    assert "Research use only" in text
    assert "mean of 2 runs" in text
    content = read_json(tmp_path / "e" / "external.json")
    assert content["about"]["shared"] == 0
    assert content["segmentation"]["images"]["lesion"] > 0
    rows = read_table(tmp_path / "e" / "predictions.csv")
    assert len({r["image"] for r in rows}) == len(rows) == content["external"]["images"]
    assert all((tmp_path / "e" / "masks" / Path(r["image"]).with_suffix(".png")).is_file() for r in rows)


def test_a_normal_image_without_a_mask_has_no_lesion(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    shutil.copytree(other, tmp_path / "data")
    for mask in (tmp_path / "data" / "normal").glob("*_mask*.png"):
        mask.unlink()
    [run, *_] = find_runs([study[0]], "frozen:test_resnet-adam")
    evaluate_runs([run], Sources(tmp_path / "data"), tmp_path / "e", images=False)
    sizes = {
        r["value"]: r["images"] for r in read_json(tmp_path / "e" / "external.json")["subgroups"] if r["by"] == "size"
    }
    normal = sum(r["label"] == "normal" for r in read_table(tmp_path / "e" / "predictions.csv"))
    assert sizes["no lesion"] == normal > 0
    assert "not known" not in sizes


def test_folds_count_alike_in_what_the_runs_said_of_their_own_images(tmp_path: Path) -> None:
    """An ensemble of two networks in one fold and of one in the other: the second fold is half of the mean."""
    malignant = {("A", 0): 0.2, ("B", 0): 0.4, ("A", 1): 0.9}
    runs = []
    for (architecture, fold), p in malignant.items():
        runs.append(tmp_path / f"{architecture}-{fold}")
        row = {"run": runs[-1].name, "architecture": architecture, "optimizer": "adam", "repeat": 0, "fold": fold}
        row |= {"seed": 0, "subset": "validation", "image": "i.png", "group": "g", "label": "benign"}
        row |= {"predicted": "benign", "p_benign": 1.0 - p, "p_malignant": p, "schema_version": 1}
        runs[-1].mkdir()
        pd.DataFrame([row]).to_csv(runs[-1] / "predictions.csv", index=False)
    own = own_predictions(runs, "validation")
    assert own["image"].tolist() == ["i.png"]
    assert own["p_malignant"].to_numpy() == pytest.approx([(0.3 + 0.9) / 2])


def test_no_images_leaves_the_masks_out(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    evaluated(study[0], other, tmp_path / "e", configuration="joint:test_resnet-adam", images=False)
    assert not (tmp_path / "e" / "masks").exists()
    assert (tmp_path / "e" / "segmentation.csv").is_file()


def test_images_of_the_study_are_refused(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    out, own = study
    mixed = tmp_path / "mixed"
    shutil.copytree(other, mixed)
    shutil.copy(own / "benign" / "benign (1).png", mixed / "benign" / "benign (91).png")
    with pytest.raises(SonobreastError, match=r"1 of .* also in the study's own set") as caught:
        evaluated(out, mixed, tmp_path / "e", configuration="frozen:test_resnet-adam")
    assert "benign (91).png" in caught.value.what
    assert "--allow-overlap" in str(caught.value.remedy)
    said: list[str] = []
    page = evaluated(
        out, mixed, tmp_path / "e", configuration="frozen:test_resnet-adam", allow_overlap=True, say=said.append
    )
    assert "also in the study's own set" in page.read_text()
    assert any("1 of" in s for s in said)


def test_a_changed_copy_of_a_study_image_is_found_where_its_images_are(
    study: tuple[Path, Path], other: Path, tmp_path: Path
) -> None:
    out, own = study
    mixed = tmp_path / "mixed"
    shutil.copytree(other, mixed)
    with Image.open(own / "benign" / "benign (1).png") as picture:
        picture.save(mixed / "benign" / "benign (91).png", compress_level=1)  # other bytes, the same pixels
    with pytest.raises(SonobreastError, match=r"1 of .* \(identical-pixels\)"):
        evaluated(out, mixed, tmp_path / "e", configuration="frozen:test_resnet-adam")
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)  # the images are no longer where the table says
    said: list[str] = []
    evaluated(moved, mixed, tmp_path / "f", configuration="frozen:test_resnet-adam", say=said.append)
    assert any("not at hand" in s for s in said)


def test_labels_of_ones_own_are_mapped(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    data = tmp_path / "unknown"
    shutil.copytree(other, data)
    (data / "malignant").rename(data / "carcinoma")
    for file in (data / "carcinoma").iterdir():
        file.rename(file.with_name(file.name.replace("malignant", "carcinoma")))
    (tmp_path / "labels.csv").write_text("label,class\ncarcinoma,malignant\n")
    evaluate_runs(
        [study[0]],
        Sources(data, labels=tmp_path / "labels.csv"),
        tmp_path / "e",
        configuration="frozen:test_resnet-adam",
    )
    assert read_json(tmp_path / "e" / "external.json")["external"]["malignant"] > 0


def test_a_run_that_is_given_twice_counts_once(study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = study
    every = find_runs([out], "joint:test_resnet-adam")
    monkeypatch.chdir(out.parent)
    again = Path(out.name) / "runs" / every[0].name
    assert find_runs([out, again], "joint:test_resnet-adam") == every
    [model] = models_of([out, again], ["joint:test_resnet-adam"])
    assert list(model.runs) == every


def test_a_configuration_has_to_be_named(study: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="2 configurations"):
        find_runs([study[0]], None)
    with pytest.raises(SonobreastError, match="no configuration ResNet"):
        find_runs([study[0]], "ResNet")
    with pytest.raises(SonobreastError, match="neither a finished run"):
        find_runs([tmp_path], None)
    assert len(find_runs([study[0]], "frozen:test_resnet-adam")) == 2


def test_labels_are_not_guessed(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    data = tmp_path / "unknown"
    shutil.copytree(other, data)
    (data / "malignant").rename(data / "carcinoma")
    for file in (data / "carcinoma").iterdir():
        file.rename(file.with_name(file.name.replace("malignant", "carcinoma")))
    with pytest.raises(SonobreastError, match="carcinoma") as caught:
        evaluated(study[0], data, tmp_path / "e", configuration="frozen:test_resnet-adam")
    assert "--labels" in str(caught.value.remedy)


def test_a_folder_with_other_things_is_left_alone(study: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "thesis.txt").write_text("mine")
    with pytest.raises(SonobreastError, match="not empty"):
        evaluated(study[0], other, tmp_path / "e", configuration="frozen:test_resnet-adam")
