"""From the files of runs with masks to the study's table, figures, overlays and report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fake import tiny_recipe, write_busi
from tests.studies import shifted, write_study

from sonobreast.data.manifest import Manifest, build
from sonobreast.data.masks_out import predicted_mask_file, true_mask, write_mask
from sonobreast.data.preprocess import decode_mask
from sonobreast.evaluation.report import write_report
from sonobreast.evaluation.segmentation import mask_row
from sonobreast.evaluation.segmentation_summary import read_segmentation, segmentation_metrics
from sonobreast.evaluation.summary import study_metrics
from sonobreast.records import SEGMENTATION_COLUMNS, Run, read_json, read_table, write_table
from sonobreast.training import study
from sonobreast.training.overlays import draw_overlays
from sonobreast.training.reporter import Reporter
from sonobreast.training.study import collect, run_study

COUNTS = {"benign": 16, "malignant": 14, "normal": 9}
NETWORKS = {("joint:a", "adam"): shifted(6), ("joint:b", "adam"): shifted(2, misses=0.0), ("plain", "adam"): None}


@pytest.fixture(scope="module", autouse=True)
def _quick_intervals() -> Iterator[None]:
    """The intervals have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "study_metrics", lambda *given: study_metrics(*given, resamples=200))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return build(write_busi(tmp_path_factory.mktemp("data") / "busi", COUNTS))


@pytest.fixture(scope="module")
def made(data: Manifest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Run]]:
    """A study of two networks that segment and one that does not; tests only read it."""
    out = tmp_path_factory.mktemp("made") / "out"
    runs = write_study(out, data, NETWORKS, folds=3, seeds=(0, 1))
    assert collect(out, runs) == 18
    assert draw_overlays(out, data) == []
    write_report(out)
    return out, runs


def figures(out: Path) -> set[str]:
    return {p.name for p in (out / "figures").glob("segmentation-*")}


def test_the_tables_of_the_runs_are_joined(made: tuple[Path, list[Run]]) -> None:
    out, runs = made
    table = read_segmentation(out / "segmentation.csv")
    rows = sum(len(read_table(out / "runs" / r.id / "segmentation.csv")) for r in runs if r.architecture != "plain")
    assert len(table) == rows == 2 * 2 * 39
    assert not table.duplicated(["architecture", "seed", "image"]).any()
    entries = {c["architecture"]: c["segmentation"] for c in read_json(out / "metrics.json")["configurations"]}
    assert entries["plain"] is None
    for name in ("joint:a", "joint:b"):
        expected = segmentation_metrics(table[table["architecture"] == name], resamples=200)
        assert entries[name] == json.loads(json.dumps(expected))
        assert entries[name]["images"] == {"lesion": 30, "empty": 9, "unknown": 0}
    assert entries["joint:b"]["metrics"]["dice"]["estimate"] > entries["joint:a"]["metrics"]["dice"]["estimate"]


def test_the_report_has_a_section(made: tuple[Path, list[Run]]) -> None:
    out, _ = made
    html = (out / "report.html").read_text(encoding="utf-8")
    dice = read_json(out / "metrics.json")["configurations"][0]["segmentation"]["metrics"]["dice"]
    assert "<h2>Segmentation</h2>" in html
    assert f"{dice['estimate']:.2f}<br><span" in html
    assert f"{dice['low']:.2f}–{dice['high']:.2f}" in html
    for said in (
        "HD95",
        "stand apart",
        "joint:a + Adam<br>joint:b + Adam",
        "malignant<br>but no mask",
        "normal<br>but a",
    ):
        assert said in html, said
    assert "does not segment: plain + Adam" in html
    assert html.count('<figure><img alt="True and predicted outlines') == 2
    assert "{{" not in html
    assert "None" not in html.split("<h2>Segmentation</h2>")[1].split("<h2>")[0]
    assert figures(out) == {"segmentation-joint_a-adam.png", "segmentation-joint_b-adam.png"}


def test_pictures_stay_out_where_they_are_not_wanted(made: tuple[Path, list[Run]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    html = write_report(out, images=False).read_text(encoding="utf-8")
    assert "<h2>Segmentation</h2>" in html
    assert "True and predicted outlines" not in html
    shutil.rmtree(out / "figures")
    assert "True and predicted outlines" not in write_report(out).read_text(encoding="utf-8")


def test_a_study_without_masks_says_nothing_of_them(data: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    collect(out, write_study(out, data, {("plain", "adam"): None}))
    assert draw_overlays(out, data) == []
    assert not (out / "segmentation.csv").exists()
    html = write_report(out).read_text(encoding="utf-8")
    assert "Segmentation" not in html


def test_metrics_of_a_version_without_masks_are_read(data: Manifest, tmp_path: Path) -> None:
    """Without masks as they are; with a table of masks beside them they are made anew."""
    out = tmp_path / "out"
    collect(out, write_study(out, data, {("joint:a", "adam"): shifted(3)}))
    content = json.loads((out / "metrics.json").read_text())
    del content["configurations"][0]["segmentation"], content["segmentation_comparisons"]
    (out / "metrics.json").write_text(json.dumps(content))
    table = (out / "segmentation.csv").rename(out / "aside.csv")
    assert "<h2>Segmentation</h2>" not in write_report(out).read_text(encoding="utf-8")
    assert json.loads((out / "metrics.json").read_text()) == content
    table.rename(out / "segmentation.csv")
    assert "<h2>Segmentation</h2>" in write_report(out).read_text(encoding="utf-8")
    assert read_json(out / "metrics.json")["configurations"][0]["segmentation"]["n"] > 0


def test_masks_that_are_not_those_measured_are_not_shown(
    made: tuple[Path, list[Run]], data: Manifest, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    shutil.rmtree(out / "figures")
    assert draw_overlays(out, data) == []
    changed = [f for fold in (0, 1) for f in (out / "runs" / f"joint_a-adam-r0-f{fold}-s0" / "masks").rglob("*.png")]
    for file in changed:
        write_mask(file, ~decode_mask(file))
    for fold in (0, 1, 2):
        shutil.rmtree(out / "runs" / f"joint_b-adam-r0-f{fold}-s0" / "masks")
    said = draw_overlays(out, data)
    assert any("joint:a + Adam" in s and "not the one that was measured" in s for s in said)
    assert any("joint:b + Adam" in s and "not a readable image" in s for s in said)
    assert figures(out) == {"segmentation-joint_a-adam.png"}, "the third fold is as it was, nothing of b is left"


def test_a_study_that_runs_collects_and_draws(tiny_weights: Path, data: Manifest, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []

    class Heard(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    recipe = tiny_recipe({"training.epochs": 1})
    run_study(recipe, data.root, str(tiny_weights), out, images=False)
    (folder,) = (p for p in (out / "runs").iterdir() if p.is_dir())
    cases = {c.image: c for c in data.cases}
    rows = []
    for row in read_table(folder / "predictions.csv"):
        if row["subset"] == "test":
            case = cases[row["image"]]
            truth = true_mask(data.root, case)
            assert truth is not None
            write_mask(predicted_mask_file(folder / "masks", case.image), truth)
            kept = {k: v for k, v in row.items() if k in SEGMENTATION_COLUMNS}
            rows.append(kept | mask_row(truth, truth, case.spacing_mm))
    write_table(folder / "segmentation.csv", SEGMENTATION_COLUMNS, rows)
    run_study(recipe, data.root, str(tiny_weights), out, images=False, reporter=Heard())
    assert not figures(out)
    metrics = read_json(out / "metrics.json")["configurations"][0]["segmentation"]["metrics"]
    assert (metrics["dice"]["estimate"], metrics["hd95_px"]["estimate"], metrics["missed"]["estimate"]) == (1, 0, 0)
    run_study(recipe, data.root, str(tiny_weights), out, reporter=Heard())
    assert figures(out) == {"segmentation-test_resnet-adam.png"}
    assert not [s for s in said if "not shown" in s]
