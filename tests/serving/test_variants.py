"""Smaller forms of a network: judged on test images, kept only if they decide alike, and chosen by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sonobreast.cli import _call
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.inspection.evaluate import find_runs
from sonobreast.records import read_table
from sonobreast.serving import export as exports
from sonobreast.serving import variants
from sonobreast.serving.bundle import SELF_TEST_IMAGE, Bundle, open_bundle
from sonobreast.serving.export import export
from sonobreast.serving.inference import infer
from sonobreast.serving.predictor import load_predictor
from sonobreast.serving.self_test import check
from sonobreast.training.fit import load_run


@pytest.fixture
def ready(study: tuple[Path, Path], single: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The run of ``single``, whose graph is not written again."""
    monkeypatch.setattr(exports, "onnx_bytes", lambda *_: (single.folder / "model.onnx").read_bytes())
    return find_runs([study[0]], "test_resnet-adam")[:1]


def test_too_few_images_say_too_little(
    ready: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert _call(["export", str(ready[0]), str(tmp_path / "b"), "--variants", "int8, float16"], True) == 0
    said = capsys.readouterr().out
    for name in ("int8", "float16"):
        assert f"variant {name}: not written; its accuracy differs by" in said
    bundle = open_bundle(tmp_path / "b")
    assert bundle.about.variants == []
    assert {p.name for p in bundle.folder.glob("*.onnx")} == {"model.onnx"}
    with pytest.raises(SonobreastError, match="no variant"):
        load_predictor(bundle, variant="int8")


def test_a_variant_that_is_kept_is_run_by_name(
    ready: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "MARGIN", 1.0)
    monkeypatch.setattr(variants, "AGREEMENT", 0.0)
    done = export(ready, tmp_path / "b", parity_images=3, variants=["int8", "float16"])
    assert not done.refused
    tested = read_predictions(ready[0] / "predictions.csv").query("subset == 'test'")
    sizes = {name: done.bundle.about.files[name].bytes for name in done.bundle.about.files}
    assert sizes["model.int8.onnx"] < 0.5 * sizes["model.onnx"]
    assert sizes["model.fp16.onnx"] < 0.7 * sizes["model.onnx"]
    image = done.bundle.folder / SELF_TEST_IMAGE
    plain = load_predictor(done.bundle).probability(image)
    for one in done.bundle.about.variants:
        assert (one.images, one.seen_in_training) == (len(tested), 0)
        predictor = load_predictor(done.bundle, variant=one.name)
        found = predictor.probability(image)
        np.testing.assert_allclose(found, list(one.expected.values()), atol=1e-5)
        np.testing.assert_allclose(found, plain, atol=0.1)
        assert np.abs(found - plain).max() > 1e-7  # it is not the network itself
        assert predictor.identity == f"{done.bundle.fingerprint}:{one.name}"
    check(done.bundle.folder)
    table = tmp_path / "inference.csv"
    assert _call(["predict", str(done.bundle.folder), str(image), "--out", str(table), "--variant", "int8"], True) == 0
    assert read_table(table)[0]["bundle"].endswith(":int8")
    with pytest.raises(SonobreastError, match="another variant"):
        infer(load_predictor(done.bundle), [image], table)


def test_what_decides_otherwise_is_refused() -> None:
    fine = {"images": 600, "groups": 500, "low": -0.01, "high": 0.02, "agreement": 0.99}
    assert variants._why_not(fine) == ""
    for change, why in (
        ({"low": -0.0201}, "points"),
        ({"high": 0.021}, "points"),
        ({"low": None}, "not known"),
        ({"agreement": 0.989}, "decides alike on 98.9 %"),
    ):
        assert why in variants._why_not({**fine, **change})


def test_an_ensemble_says_what_its_members_were_trained_on(study: tuple[Path, Path]) -> None:
    import pandas as pd

    runs = find_runs([study[0]], "test_resnet-adam")
    settings = load_run(runs[0])[1].preprocess
    tables = [read_predictions(r / "predictions.csv") for r in runs]
    assert variants.judges(study[0], tables[0], settings).seen_in_training == 0
    both = variants.judges(study[0], pd.concat(tables), settings)
    assert both.seen_in_training == sum(
        image in set(tables[1 - k].query("subset == 'train'")["image"])
        for k, table in enumerate(tables)
        for image in table.query("subset == 'test'")["image"]
    ) - len(both.calibration)


def test_other_images_do_not_judge(study: tuple[Path, Path], tmp_path: Path) -> None:
    [run, *_] = find_runs([study[0]], "test_resnet-adam")
    table, settings = read_predictions(run / "predictions.csv"), load_run(run)[1].preprocess
    with pytest.raises(SonobreastError, match="study's images") as caught:
        variants.judges(study[0], table, settings, tmp_path)
    assert "--data" in caught.value.remedy
    content = (study[1] / table["image"][0]).read_bytes()
    for name in table["image"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SonobreastError, match="another one than the study saw"):
        variants.judges(study[0], table, settings, tmp_path)


def test_unknown_variants_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match=r"no variant 'int4'"):
        export([tmp_path / "none"], tmp_path / "b", variants=["int4"])


def test_a_forged_variant_is_refused(single: Bundle, tmp_path: Path) -> None:
    from sonobreast.serving.about import About, read_about

    about, _ = read_about(single.folder / "bundle.json")
    content = json.loads((single.folder / "bundle.json").read_text())
    assert content["variants"] == []
    figures = {"images": 9, "groups": 9, "seen_in_training": 0, "accuracy": 0.5, "accuracy_difference": 0.0}
    figures |= {"low": -0.01, "high": 0.01, "agreement": 1.0, "largest_difference": 0.0, "mask_overlap": None}
    figures |= {"milliseconds": 1.0, "milliseconds_float32": 1.0, "expected": dict.fromkeys(about.classes, 0.3)}
    forged = {**content, "preprocess": about.preprocess}
    forged["variants"] = [{"name": "int8", "file": "model.onnx", **figures}]
    with pytest.raises(ValueError, match="variant int8"):
        About.model_validate(forged)
