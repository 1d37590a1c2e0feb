"""An ensemble and a linear probe under each examination: judged as the study judged them, or refused in a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.fake import tiny_recipe, write_busi

from sonobreast.data.cohort import Sources
from sonobreast.data.manifest import build
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.ensemble import KEY
from sonobreast.evaluation.failure_report import failure_section
from sonobreast.evaluation.failures import choose, map_file, of_configuration, picture_file
from sonobreast.evaluation.inspections import find
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.inspection.domain import judge_domain
from sonobreast.inspection.explain import explain_runs
from sonobreast.inspection.failure_maps import draw_failure_maps
from sonobreast.inspection.judges import models_of
from sonobreast.inspection.shortcuts import find_shortcuts
from sonobreast.inspection.stress import stress_runs
from sonobreast.records import read_json, read_table, write_table
from sonobreast.training.failures import draw_failures
from sonobreast.training.study import run_study

PROBE, JOINT = "LinearProbe:test_resnet", "joint:test_resnet"
COLUMNS = ["p_benign", "p_malignant", "p_normal"]


@pytest.fixture(scope="module")
def study(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("ensembles")
    data = write_busi(base / "own")
    recipe = tiny_recipe(
        {
            "data.subsample": None,
            "split": {"kind": "kfold", "folds": 2, "validation": 0.3},
            "model.architectures": [PROBE, JOINT],
            "settings_of": {JOINT: {"model.backbone": "finetune"}},
            "segmentation": {"channels": [8, 8, 8], "shortcuts": 8},
            "training.epochs": 1,
            "training.optimizers": ["adam"],
            "ensemble": {"choice": "all"},
            "preprocess.size": 48,
        }
    )
    run_study(recipe, data, str(tiny_weights), base / "study", images=False)
    return base / "study", data


def of_study(out: Path, key: tuple[str, str]) -> pd.DataFrame:
    table = of_configuration(read_predictions(out / "predictions.csv"), key)
    return table[table["subset"] == "test"].set_index("image")[COLUMNS].sort_index()


@pytest.mark.parametrize("name", ["ensemble", "ensemble-none"])
def test_the_ensemble_under_stress_says_what_it_said_in_the_study(
    study: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    """Its own mean over the members of a fold, and beside it a member as it answers alone."""
    out, data = study
    names = [name, f"{JOINT}-adam"]
    stress_runs([out], Sources(data), tmp_path, configurations=names, kinds=["gain"], limit=None, resamples=50)
    found = pd.DataFrame(read_table(tmp_path / "predictions.csv"))
    clean = found[found["kind"] == "clean"].astype(dict.fromkeys(COLUMNS, float))
    titles = list(dict.fromkeys(clean["model"]))
    assert len(titles) == 2
    [whole] = [t for t in titles if t.startswith("Ensemble of ")]
    for title, key in ((whole, KEY), (next(t for t in titles if t != whole), (JOINT, "adam"))):
        mine = clean[clean["model"] == title].set_index("image")[COLUMNS].sort_index()
        wanted = of_study(out, key)
        assert list(mine.index) == list(wanted.index)
        np.testing.assert_allclose(mine.to_numpy(), wanted.to_numpy(), atol=2e-5)
    assert find(out)["stress"].file is None  # elsewhere: it is no part of this study's report


def test_short_cuts_of_the_ensemble(study: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = study
    find_shortcuts([out], Sources(data), tmp_path, configurations=["ensemble"], limit=None, resamples=50)
    found = pd.DataFrame(read_table(tmp_path / "predictions.csv")).astype(dict.fromkeys(COLUMNS, float))
    mine = found[found["view"] == "whole"].set_index("image")[COLUMNS].sort_index()
    np.testing.assert_allclose(mine.to_numpy(), of_study(out, KEY).to_numpy(), atol=2e-5)


def test_an_ensemble_that_is_not_there_is_refused(study: tuple[Path, Path], tmp_path: Path) -> None:
    run = next((study[0] / "runs").iterdir())
    with pytest.raises(SonobreastError, match="one run is no ensemble"):
        models_of([run], ["ensemble"])
    with pytest.raises(SonobreastError, match=r"no configuration|no run has.*ensemble"):
        models_of([study[0]], ["nothing"])


def test_the_domain_of_the_ensemble_and_of_a_probe(study: tuple[Path, Path], tmp_path: Path) -> None:
    """Every member has a detector of its own; the page names the ensemble and not its first member."""
    out, data = study
    judge_domain([out], data, tmp_path / "all", configuration="ensemble", per_kind=2)
    found = read_json(tmp_path / "all" / "domain.json")
    assert found["about"]["model"].startswith("Ensemble of ")
    assert len(found["thresholds"]) == 4
    assert len(list((tmp_path / "all" / "statistics").glob("*.npz"))) == 4
    judge_domain([out], data, tmp_path / "probe", configuration=f"{PROBE}-none", per_kind=2)
    one = read_json(tmp_path / "probe" / "domain.json")
    assert one["detector"] == "stages"
    assert one["about"]["model"].startswith("LinearProbe")


def test_maps_of_a_probe_and_none_of_an_ensemble(study: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = study
    with pytest.raises(SonobreastError, match="a map is of one network") as caught:
        explain_runs(out, tmp_path / "all", data=data, configuration="ensemble")
    assert "LinearProbe:test_resnet" in str(caught.value.remedy)
    explain_runs(out, tmp_path / "probe", data=data, configuration=f"{PROBE}-none", methods=("gradcam",), limit=4)
    rows = read_table(tmp_path / "probe" / "explanations.csv")
    assert {r["method"] for r in rows} == {"gradcam", "centre blob"}
    assert len({r["image"] for r in rows}) == 4


def with_errors(study: Path, out: Path) -> Path:
    """A copy of the study whose first three malignant test images of each configuration were called benign."""
    shutil.copytree(study, out)
    table = read_predictions(out / "predictions.csv")
    cancers = table[(table["subset"] == "test") & (table["label"] == "malignant")]
    wrong = cancers.groupby(["architecture", "optimizer"]).head(3).index
    table.loc[wrong, ["predicted", "p_benign", "p_malignant"]] = ["benign", 0.9, 0.05]
    write_table(out / "predictions.csv", tuple(table.columns), table.to_dict("records"))
    return out


@pytest.mark.parametrize("key", [KEY, (PROBE, "none")])
def test_the_errors_of_the_report_get_maps(
    study: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: tuple[str, str]
) -> None:
    """Of whatever configuration the report leads with, in the shape of the picture beside, in colour."""
    out = with_errors(study[0], tmp_path / "study")
    for module in ("inspection.failure_maps", "training.failures", "evaluation.failure_report"):
        monkeypatch.setattr(f"sonobreast.{module}.chosen_configuration", lambda metrics: key)
    failures, _ = choose(of_configuration(read_predictions(out / "predictions.csv"), key))
    assert failures
    manifest = build(study[1])
    draw_failures(out, manifest)
    assert draw_failure_maps(out, manifest) == (len(failures), [])
    for failure in failures:
        with Image.open(map_file(out, failure)) as shown, Image.open(picture_file(out, failure)) as beside:
            assert shown.size == beside.size
    section = failure_section(out, read_json(out / "metrics.json"))
    assert section["maps"] == ("Grad-CAM, mean of 2 networks" if key == KEY else "Grad-CAM")
    assert all(f["map"] for k in section["kinds"] for f in k["failures"])
    explain_runs(out, out / "explain", data=study[1], configuration=f"{PROBE}-none", methods=("gradcam",), limit=2)
    assert find(out)["explain"].content["about"]["model"].startswith("LinearProbe")


def test_another_data_set_leaves_the_maps_alone(study: tuple[Path, Path], tmp_path: Path) -> None:
    other = build(write_busi(tmp_path / "other", seed=9))
    assert draw_failure_maps(study[0], other) == (0, [])
    assert draw_failure_maps(tmp_path, other) == (0, [])
