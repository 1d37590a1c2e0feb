"""Parts of the test images: all of them, in order, with the figures of the part; nothing is told apart by guessing."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.fake import write_busi, write_csv
from tests.studies import collect_quickly, shifted, write_study
from tests.tables import predictions

from sonobreast.data import manifest as manifests
from sonobreast.data.manifest import Manifest, build
from sonobreast.data.masks_out import true_mask
from sonobreast.evaluation.intervals import bootstrap
from sonobreast.evaluation.predictions import read_predictions, scored_table
from sonobreast.evaluation.subgroups import attributes, lesion_areas, rows, study_subgroups
from sonobreast.records import read_table, write_json, write_table
from sonobreast.training.lesions import write_lesions


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A study of three folds of a network that segments; tests copy it."""
    base = tmp_path_factory.mktemp("subgroups")
    data = build(write_busi(base / "busi", {"benign": 16, "malignant": 14, "normal": 9}))
    out = base / "study"
    collect_quickly(out, write_study(out, data, {("joint:a", "adam"): shifted(4)}, folds=3))
    return out, data


@pytest.fixture
def study(made: tuple[Path, Manifest], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "study"))


def described(out: Path, **columns: list[str]) -> None:
    """Further columns in the study's manifest, the values taken in turn."""
    lines = read_table(out / "manifest.csv")
    names = [c for c in lines[0] if c != "schema_version"]
    for name, values in columns.items():
        lines = [{**r, name: values[i % len(values)]} for i, r in enumerate(lines)]
    write_table(out / "manifest.csv", (*names, *columns), [{**r, "schema_version": 1} for r in lines])


def found(out: Path, **options: int) -> list[dict[str, object]]:
    return study_subgroups(out, read_predictions(out / "predictions.csv"), resamples=options.get("resamples", 100))


def test_each_attribute_divides_all_test_images(study: Path) -> None:
    described(study, device=["GE", "Toshiba", ""], age=["35", "61", "47.5", "82"], birads=["2", "4a", "5", "10"])
    lines = pd.DataFrame(found(study))
    assert set(lines["by"]) == {"device", "birads", "age", "size"}
    assert (lines.groupby("by")["images"].sum() == 39).all()
    assert (lines.groupby("by")["malignant"].sum() == 14).all()
    assert lines.loc[lines["by"] == "device", "value"].tolist() == ["GE", "Toshiba", "not known"]
    assert lines.loc[lines["by"] == "age", "value"].tolist() == ["below 40", "40 to 49", "50 to 69", "70 or more"]
    assert lines.loc[lines["by"] == "birads", "value"].tolist() == ["2", "4a", "5", "10"]
    assert lines.loc[lines["by"] == "size", "value"].tolist()[-1] == "no lesion"


def test_the_figures_are_those_of_the_part(study: Path) -> None:
    described(study, device=["GE", "GE", "Toshiba"])
    table = read_predictions(study / "predictions.csv")
    ge = {r["image"] for r in read_table(study / "manifest.csv") if r["device"] == "GE"}
    test = table[(table["subset"] == "test") & table["image"].isin(ge)].sort_values("image")
    expected = bootstrap(
        [scored_table(test)],
        test["group"].to_numpy(),
        metrics=["auc_malignant", "accuracy"],
        resamples=100,
        method="bca",
    )
    [row] = [r for r in found(study) if r["value"] == "GE"]
    for name, interval in expected.items():
        assert row[name] == interval.as_dict()
    assert row["images"] == len(test)


def test_lesion_sizes_are_those_of_the_masks_whoever_measured_them(study: Path, made: tuple[Path, Manifest]) -> None:
    """The same areas from the network's table, and from the masks where no network segments."""
    _, data = made
    areas = lesion_areas(study)
    for case in data.cases:
        mask = true_mask(data.root, case)
        assert mask is not None
        assert areas[case.image] == mask.sum()
    before = [r for r in found(study) if r["by"] == "size"]
    write_lesions(study, data)
    assert not (study / "lesions.csv").exists(), "segmentation.csv has them"
    (study / "segmentation.csv").unlink()
    assert lesion_areas(study) == {}
    assert not [r for r in found(study) if r["by"] == "size"]
    write_lesions(study, data)
    assert lesion_areas(study) == areas
    assert [r for r in found(study) if r["by"] == "size"] == before


def test_a_lesion_that_nobody_outlined_has_no_area(tmp_path: Path) -> None:
    data = build(write_csv(tmp_path / "csv", {"benign": 4, "malignant": 4}, with_masks=True))
    cases = [c.model_copy(update={"masks": ()}) if i == 0 else c for i, c in enumerate(data.cases)]
    some = Manifest(data.root, tuple(cases))
    write_lesions(tmp_path, some)
    areas = lesion_areas(tmp_path)
    assert math.isnan(areas[cases[0].image])
    assert all(areas[c.image] > 0 for c in cases[1:])
    none = Manifest(data.root, tuple(c.model_copy(update={"masks": ()}) for c in cases))
    (tmp_path / "lesions.csv").unlink()
    write_lesions(tmp_path, none)
    assert not (tmp_path / "lesions.csv").exists(), "a data set without masks knows no sizes"


def test_an_audit_of_these_images_tells_what_is_burned_in(study: Path, made: tuple[Path, Manifest]) -> None:
    _, data = made
    assert "marks" not in attributes(study, [c.image for c in data.cases])
    audit = study.parent / "audit"
    manifests.write(audit / "manifest.csv", data)
    marked = [c.image for c in data.cases[::3]]
    findings = [
        {"code": "burned-in-text", "files": [[i] for i in marked]},
        {"code": "axilla", "files": [[c.image] for c in data.cases]},
    ]
    write_json(audit / "audit.json", {"findings": findings})
    lines = {r["value"]: r["images"] for r in found(study) if r["by"] == "marks"}
    assert lines == {"found": 13, "none found": 26}
    other = [c.model_copy(update={"sha256": "0" * 64}) for c in data.cases]
    manifests.write(audit / "manifest.csv", Manifest(data.root, tuple(other)))
    assert "marks" not in attributes(study, [c.image for c in data.cases]), "an audit of other pictures"


def test_few_cases_are_said_and_rare_values_put_together() -> None:
    table = predictions(images=120).query("subset == 'test'").sort_values("image")
    kinds = [f"kind {i}" if i < 12 else "common" for i in range(120)]
    lines = list(rows(table.assign(histology=kinds), lambda part: {}))
    assert len(lines) == 8
    assert lines[0]["value"] == "common"
    assert lines[-1]["value"] == "6 others"
    assert sum(r["images"] for r in lines) == 120
    assert [r["few"] for r in lines] == [r["malignant"] < 10 or r["images"] - r["malignant"] < 10 for r in lines]
    assert any(r["few"] for r in lines)
    assert not all(r["few"] for r in lines)


def test_classes_without_malignant_have_an_accuracy_only(tmp_path: Path) -> None:
    data = build(write_busi(tmp_path / "busi", {"benign": 12, "normal": 12}))
    out = tmp_path / "study"
    collect_quickly(out, write_study(out, data, {("a", "adam"): None}, folds=3))
    described(out, device=["x", "y"])
    lines = found(out)
    assert {k for r in lines for k, v in r.items() if isinstance(v, dict)} == {"accuracy"}
    assert all(r["malignant"] == 0 for r in lines)


def test_pictures_of_one_size_are_no_subgroups(study: Path) -> None:
    table = attributes(study, [r["image"] for r in read_table(study / "manifest.csv")])
    assert set(table["picture"]) == {"longer side below 500 px"}
    assert not [r for r in found(study) if r["by"] == "picture"]
    assert np.isfinite(table["lesion_px"]).all()
