"""The detector of a run: fitted on its training images, whatever else is in the batch, on any kind of network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fake import tiny_recipe, write_busi
from torch import nn

from sonobreast.cli import _call
from sonobreast.data.manifest import build
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.domain import distance, read_domain
from sonobreast.inspection.domain import domain_features, judge_domain, training_domains
from sonobreast.inspection.evaluate import find_runs
from sonobreast.models.zoo import load_backbone
from sonobreast.records import read_json, read_table
from sonobreast.training.classical import handcrafted_backbone
from sonobreast.training.fit import TrainedNetwork
from sonobreast.training.study import run_study


@pytest.fixture(scope="module")
def study(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("domain")
    data = write_busi(base / "own", {"benign": 14, "malignant": 12, "normal": 10})
    out = base / "study"
    recipe = tiny_recipe(
        {
            "data.subsample": None,
            "split": {"kind": "holdout", "validation": 0.25, "test": 0.25},
            "model.architectures": ["frozen:test_resnet", "joint:test_resnet"],
            "model.backbone": "finetune",
            "segmentation": {"channels": [8, 8, 8], "shortcuts": 8},
            "training.epochs": 1,
            "training.optimizers": ["adam"],
            "preprocess.size": 48,
        }
    )
    run_study(recipe, data, str(tiny_weights), out, images=False)
    return out, data


def of(study: Path, name: str) -> Path:
    [run] = find_runs([study], name)
    return run


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "joint:test_resnet", "partial"])
def test_features_do_not_depend_on_the_batch(tiny_weights: Path, name: str) -> None:
    weights = tiny_weights / "partial" if name == "partial" else tiny_weights
    backbone = load_backbone("test_resnet" if name == "partial" else name, str(weights), image_size=160)
    network = TrainedNetwork(backbone, nn.Identity()).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 160, 160, 3)).astype(np.uint8)
    together = domain_features(network, "weights", images)
    assert set(together) == {"picture", "pooled", "stages"}
    alone = domain_features(network, "weights", images[3:4])
    if name == "partial":  # its last stage is the pooled one
        assert np.allclose(together["stages"][:, -backbone.features :], together["pooled"], atol=1e-5)
    for k, v in together.items():
        assert np.allclose(v[3], alone[k][0], rtol=1e-4, atol=1e-5)


def test_nobody_judges_what_was_made_of_a_scan_that_it_learnt(tiny_weights: Path, tmp_path: Path) -> None:
    data = write_busi(tmp_path / "own", {"benign": 14, "malignant": 12, "normal": 10})
    recipe = tiny_recipe(
        {
            "data.subsample": None,
            "split": {"kind": "kfold", "folds": 2, "validation": 0.3},
            "model.architectures": ["test_resnet"],
            "training.epochs": 1,
            "training.optimizers": ["adam"],
            "preprocess.size": 48,
        }
    )
    run_study(recipe, data, str(tiny_weights), tmp_path / "study", images=False)
    judge_domain([tmp_path / "study"], data, tmp_path / "d", per_kind=6)
    tested = {
        (run.name, r["group"])
        for run in find_runs([tmp_path / "study"], None)
        for r in read_table(run / "predictions.csv")
        if r["subset"] == "test"
    }
    rows = [
        r for r in read_table(tmp_path / "d" / "domain.csv") if r["features"] == "pooled" and r["set"] == "outsider"
    ]
    made = [r for r in rows if "scan" in r["kind"]]
    assert {(r["run"], r["group"]) for r in made} <= tested
    assert len(made) == 12  # six scans, two kinds, each by the run that tested it
    assert len([r for r in rows if r["kind"] == "blank"]) == 2 * 6
    figures = read_json(tmp_path / "d" / "domain.json")["detectors"]["pooled"]["outsiders"]["scan upside down"]
    assert figures["images"] == 6
    assert figures["auc"]["estimate"] is not None


def test_the_command_leaves_figures_a_page_and_small_statistics(
    study: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = study
    other = write_busi(tmp_path / "elsewhere", {"benign": 3, "malignant": 2}, seed=9)
    arguments = ["domain", out, "--configuration", "joint:test_resnet-adam", "--data", data, "--other", other]
    assert _call([*map(str, arguments), "--out", str(tmp_path / "d"), "--outsiders", "2"], debug=True) == 0
    found = read_json(tmp_path / "d" / "domain.json")
    assert found["detector"] == "stages"
    assert set(found["detectors"]) == {"stages", "pooled", "picture"}
    assert found["detectors"]["stages"]["outsiders"]["blank"]["refused"]["estimate"] == 1.0
    assert found["detectors"]["stages"]["others"]["elsewhere"]["images"] == 5
    assert found["groups_least"] < found["groups_needed"] == 19
    page = (tmp_path / "d" / "domain.html").read_text(encoding="utf-8")
    assert "Too few validation images" in page
    assert "http" not in page
    [run] = {r["run"] for r in read_table(tmp_path / "d" / "domain.csv")}
    statistics = tmp_path / "d" / "statistics" / f"{run}.npz"
    assert statistics.stat().st_size < 5 << 20
    # The file says of the test images what the table says.
    domains, features, _ = training_domains(of(out, "joint:test_resnet-adam"), build(data))
    again = distance(read_domain(statistics), features["test"]["stages"])
    rows = read_table(tmp_path / "d" / "domain.csv")
    told = [float(r["distance"]) for r in rows if r["set"] == "test" and r["features"] == "stages"]
    assert np.allclose(again, told, rtol=1e-3)
    assert domains["stages"].threshold == pytest.approx(float(rows[0]["threshold"]), rel=1e-3)


def test_a_forest_is_guarded_by_the_picture() -> None:
    forest = TrainedNetwork(handcrafted_backbone(tiny_recipe({}), shape=True), nn.Identity())
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    assert set(domain_features(forest, "unit", images)) == {"picture"}


def test_other_data_are_refused(study: tuple[Path, Path], tmp_path: Path) -> None:
    run = of(study[0], "frozen:test_resnet-adam")
    few = write_busi(tmp_path / "few", {"benign": 3, "malignant": 3, "normal": 3})
    with pytest.raises(SonobreastError, match="are not in this data set"):
        judge_domain([run], few, tmp_path / "a", per_kind=2)
    changed = write_busi(tmp_path / "changed", {"benign": 14, "malignant": 12, "normal": 10})
    Image.new("L", (80, 60), 90).save(changed / "benign" / "benign (1).png")
    noisy = np.random.default_rng(0).integers(0, 256, (60, 80)).astype(np.uint8)
    Image.fromarray(noisy).save(changed / "benign" / "benign (1).png")
    with pytest.raises(SonobreastError, match="not those that"):
        judge_domain([run], changed, tmp_path / "b", per_kind=2)
    with pytest.raises(SonobreastError, match="outsiders"):
        judge_domain([run], study[1], tmp_path / "c", per_kind=1)
