"""A study whose network also segments: masks for some images, for none, a frozen encoder, its table and report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.fake import tiny_recipe, write_busi

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.report import write_report
from sonobreast.records import read_json, read_table
from sonobreast.training.reporter import Reporter
from sonobreast.training.study import run_study

JOINT = {
    "data.subsample": None,
    "model.architectures": ["frozen:joint:test_resnet", "test_resnet"],
    "model.backbone": "finetune",
    "segmentation": {"channels": [8, 8, 8], "shortcuts": 8},
    "training.epochs": 2,
    "training.optimizers": ["adam"],
}


class Told(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def masks_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*_mask*.png"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_busi(tmp_path / "data")


def test_images_without_a_mask_teach_the_class_alone(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    gone = [m for m in masks_of(data / "benign") if "(1)" in m.name or "(2)" in m.name]
    for mask in gone:
        mask.unlink()
    told, out = Told(), tmp_path / "out"
    outcome = run_study(tiny_recipe(JOINT), data, str(tiny_weights), out, reporter=told)
    assert outcome.finished == 2
    assert any(s.startswith("2 of ") and "teach the class alone" in s for s in told.said)
    rows = read_table(out / "segmentation.csv")
    tested = {r["image"] for r in read_table(out / "split.csv") if r["subset"] == "test"}
    assert {r["image"] for r in rows} == tested
    assert {r["architecture"] for r in rows} == {"frozen:joint:test_resnet"}
    lost = {f"benign/benign ({i}).png" for i in (1, 2)} & tested
    assert {r["image"] for r in rows if r["truth"] == "unknown"} == lost
    plain, joint = sorted(
        read_json(out / "metrics.json")["configurations"], key=lambda c: c["segmentation"] is not None
    )
    assert plain["segmentation"] is None
    assert joint["segmentation"]["images"]["unknown"] == len(lost)
    text = write_report(out).read_text()
    assert "Segmentation" in text
    assert "frozen:joint:test_resnet" in text


def test_a_frozen_encoder_stays_as_it_came(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe({**JOINT, "model.architectures": ["frozen:joint:test_resnet"]})
    run_study(recipe, data, str(tiny_weights), tmp_path / "out", images=False)
    [run] = (tmp_path / "out" / "runs").iterdir()
    state = load_file(run / "weights.safetensors")
    assert state
    assert all(name.startswith("head.") for name in state)
    assert any(name.startswith("head.decoder.") for name in state)
    assert any(name.startswith("head.shortcuts.") for name in state)


def test_without_any_mask_nothing_can_learn_to_segment(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    for mask in masks_of(data):
        mask.unlink()
    for image in (data / "normal").iterdir():
        image.unlink()
    (data / "normal").rmdir()
    recipe = tiny_recipe({**JOINT, "data.classes": ["benign", "malignant"]})
    with pytest.raises(SonobreastError, match="no image has a mask") as caught:
        run_study(recipe, data, str(tiny_weights), tmp_path / "out")
    assert "classify only" in str(caught.value.remedy)


def test_a_damaged_mask_is_named(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    told = Told()
    broken = masks_of(data / "malignant")[0]
    broken.write_bytes(broken.read_bytes()[:20])
    run_study(tiny_recipe(JOINT), data, str(tiny_weights), tmp_path / "out", images=False, reporter=told)
    assert any(broken.name in s for s in told.said)


def test_two_calls_give_the_same_masks(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe({**JOINT, "model.architectures": ["joint:test_resnet"]})
    tables = []
    for name in ("a", "b"):
        run_study(recipe, data, str(tiny_weights), tmp_path / name, images=False)
        tables.append(read_table(tmp_path / name / "segmentation.csv"))
    assert tables[0] == tables[1]
    assert np.isfinite([float(r["predicted_area_px"]) for r in tables[0]]).all()
