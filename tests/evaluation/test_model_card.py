"""The card is valid for the Hub, its figures are the study's, and what nobody knows it calls unknown."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml
from tests.fake import write_busi
from tests.studies import collect_quickly, shifted, write_study

from sonobreast.data.manifest import build
from sonobreast.errors import SonobreastError
from sonobreast.evaluation import evidence
from sonobreast.evaluation.failures import chosen_configuration
from sonobreast.evaluation.model_card import NOTICE, model_card
from sonobreast.evaluation.subgroups import study_subgroups
from sonobreast.records import read_json, read_table, write_json


@pytest.fixture(autouse=True)
def _quick_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals have tests of their own."""
    monkeypatch.setattr(evidence, "study_subgroups", partial(study_subgroups, resamples=100))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("card")
    data = build(write_busi(base / "busi", {"benign": 12, "malignant": 12, "normal": 9}))
    out = base / "alone" / "out"
    collect_quickly(out, write_study(out, data, {("joint:a", "adam"): shifted(4), ("plain", "adam"): None}, folds=3))
    return out


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "here" / "study"))


def header(text: str) -> dict[str, object]:
    _, front, _ = text.split("---\n", 2)
    content: dict[str, object] = yaml.safe_load(front)
    return content


def test_the_hub_reads_it(study: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    text = model_card(study, ("joint:a", "adam"))
    card = hub.ModelCard(text)
    data = card.data
    assert data.license == "unknown"
    assert data.library_name == "sonobreast"
    assert "research-use-only" in data.tags
    assert data.model_name == "joint:a + Adam"
    results = {r.metric_name: r for r in data.eval_results}
    figures = read_json(study / "metrics.json")["configurations"][0]
    accuracy = next(r for n, r in results.items() if n.startswith("Accuracy"))
    assert accuracy.metric_type == "accuracy"
    assert accuracy.metric_value == pytest.approx(figures["accuracy"]["estimate"], abs=5e-5)
    low, high = (100 * figures["accuracy"][k] for k in ("low", "high"))
    assert f"95 % interval {low:.1f} to {high:.1f} %" in accuracy.metric_name
    assert accuracy.dataset_type == "test"
    again = hub.ModelCardData(**yaml.safe_load(data.to_yaml()), ignore_metadata_errors=False)
    assert again.to_dict()["model-index"] == header(text)["model-index"]


def test_the_header_is_plain_yaml_and_the_body_says_what_a_reader_needs(study: Path) -> None:
    text = model_card(study)
    content = header(text)
    assert list(content)[:2] == ["license", "library_name"]
    assert {"tags", "datasets", "metrics", "model-index"} <= set(content)
    for said in (
        NOTICE,
        "## Intended use",
        "## Out of scope",
        "## Training data",
        "## How it was chosen",
        "## Evaluation",
        "## Subgroups",
        "## Limitations",
        "## Environmental cost",
        "## Licence",
        "Images used: 33 (12 benign, 12 malignant, 9 normal) in 33 groups",
        "Patients: unknown",
        "How often the test images were looked at is unknown.",
        "The weights it began with: unknown",
        "not tested in another hospital",
        "lesion size: ",
    ):
        assert said in text, said
    assert "None" not in text
    assert "nan" not in text.split()


def test_one_of_several_configurations_is_described(study: Path) -> None:
    metrics = read_json(study / "metrics.json")
    best = chosen_configuration(metrics)
    assert model_card(study) == model_card(study, best)
    plain = model_card(study, ("plain", "adam"))
    assert plain.split("---\n")[2].lstrip().startswith("# plain + Adam")
    assert "lesion mask" not in plain
    assert "image-segmentation" not in header(plain)["tags"]  # type: ignore[operator]
    with pytest.raises(SonobreastError, match=r"no configuration .*it has joint:a \+ Adam, plain \+ Adam"):
        model_card(study, ("other", "adam"))
    with pytest.raises(SonobreastError, match="no run of this study is finished"):
        model_card(study / "runs")


def test_hours_and_pretrained_share_are_the_runs(study: Path) -> None:
    text = model_card(study, ("plain", "adam"))
    seconds = sum(float(r["seconds"]) for r in read_table(study / "results.csv") if r["architecture"] == "plain")
    assert f"{seconds / 3600:.2f} hours for the 3 networks" in text
    assert "Energy and emissions were not measured" in text
    (study / "results.csv").unlink()
    assert "Unknown (results.csv is missing)" in model_card(study, ("plain", "adam"))


def test_licences_and_looks_are_told_where_they_are_known(study: Path) -> None:
    config = study / "runs" / "plain-adam-r0-f0-s0" / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["network"] = {"timm_name": "resnet18", "licence": "BSD-3-Clause", "origin": "torchvision"}
    config.write_text(yaml.safe_dump(content))
    study_config = yaml.safe_load((study / "config.yaml").read_text())
    (study / "config.yaml").write_text(yaml.safe_dump({**study_config, "source": "busi"}))
    write_json(study / "looks.json", {"test_sets": [{"test_set": "x", "images": 3, "here": 2, "before": 5}]})
    text = model_card(study, ("plain", "adam"), licence="cc-by-nc-4.0")
    assert header(text)["license"] == "cc-by-nc-4.0"
    assert header(text)["datasets"] == ["busi"]
    for said in (
        "The weights it began with: BSD-3-Clause",
        "CC BY 4.0",
        "Al-Dhabyani",
        "on this machine: 7",
        "resnet18",
    ):
        assert said in text, said


def test_simulated_images_are_said_first(study: Path) -> None:
    config = yaml.safe_load((study / "config.yaml").read_text())
    (study / "config.yaml").write_text(yaml.safe_dump({**config, "source": "phantom"}))
    text = model_card(study)
    assert "simulated-data" in header(text)["tags"]  # type: ignore[operator]
    assert "no figure here says anything about patients" in text
    assert "nothing here holds for patients" in text


def test_a_figure_without_interval_or_value_says_so(study: Path) -> None:
    content = json.loads((study / "metrics.json").read_text())
    for c in content["configurations"]:
        c["metrics"]["auc_malignant"] |= {"estimate": None, "low": None, "high": None}
        c["metrics"]["accuracy"] |= {"low": None, "high": None}
    (study / "metrics.json").write_text(json.dumps(content))
    text = model_card(study)
    assert "| AUC, malignant against rest | not defined | not given |" in text
    names = [m["name"] for m in header(text)["model-index"][0]["results"][0]["metrics"]]  # type: ignore[index]
    assert "Accuracy, 95 % interval not given" in names
    assert not [n for n in names if n.startswith("AUC")]
