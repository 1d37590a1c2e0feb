"""What is frozen with a bundle: decision rule, training domain and the members' shares, the same as in the study."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.fake import write_busi

from sonobreast.data import manifest as manifests
from sonobreast.data.preprocess import decode, prepare, scale
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.decision_rule import apply_rule, rule_from
from sonobreast.evaluation.domain import distance
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.evaluation.rule_fitting import fit_rule, shipped_together
from sonobreast.inspection.domain import training_domains
from sonobreast.inspection.evaluate import find_runs
from sonobreast.inspection.predict import predict, shares
from sonobreast.models.listing import list_models
from sonobreast.serving import export as exports
from sonobreast.serving.about import Statistics, domain_statistics
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.export import export
from sonobreast.serving.predictor import load_predictor, softmax
from sonobreast.training.fit import load_run
from sonobreast.training.graph import Together


def test_the_rule_is_the_studys(study: tuple[Path, Path], ensemble: Bundle) -> None:
    runs = find_runs([study[0]], "joint:test_resnet-adam")
    wanted, _ = fit_rule(shipped_together([read_predictions(r / "predictions.csv") for r in runs]))
    assert ensemble.about.decision_rule is not None
    kept = rule_from(ensemble.about.decision_rule)
    assert (kept.temperature, kept.quantiles) == (wanted.temperature, wanted.quantiles)
    assert kept.thresholds == wanted.thresholds
    assert kept.runs == len(runs)
    assert "coverage" in ensemble.about.decision_rule


def test_the_rule_is_applied_as_in_the_study(study: tuple[Path, Path], ensemble: Bundle) -> None:
    content = {**(ensemble.about.decision_rule or {}), "temperature": 1.7}
    content["quantiles"] = {"benign": 0.7, "malignant": 0.65, "normal": None}
    bundle = replace(ensemble, about=ensemble.about.model_copy(update={"decision_rule": content}))
    predictor = replace(load_predictor(ensemble), bundle=bundle)
    found = manifests.build(study[1])
    for case in found.cases[:6]:
        raw = load_predictor(ensemble).probability(found.path(case))
        wanted = apply_rule(rule_from(content), raw[None])
        given = predictor.predict(found.path(case))
        np.testing.assert_allclose(given.probability, wanted.probability[0], atol=1e-9)
        assert given.conformal == tuple(c for c, inside in zip(given.classes, wanted.sets[0], strict=True) if inside)
        assert given.malignant == next(iter(wanted.malignant.values()))[0]


def test_the_domain_is_that_of_the_first_run(study: tuple[Path, Path], ensemble: Bundle) -> None:
    [first, _] = find_runs([study[0]], "joint:test_resnet-adam")
    found = manifests.build(study[1])
    domains, features, _ = training_domains(first, found)
    assert ensemble.about.statistics is not None
    kept = ensemble.about.statistics.domain()
    np.testing.assert_array_equal(kept.axes, domains["stages"].axes)
    predictor = load_predictor(ensemble)
    tested = [r for r in read_predictions(first / "predictions.csv").itertuples() if r.subset == "test"]
    wanted = distance(domains["stages"], features["test"]["stages"]) / domains["stages"].threshold
    for row, score in zip(tested, wanted, strict=True):
        given = predictor.predict(found.root / str(row.image))
        assert given.domain_score == pytest.approx(score, rel=1e-3)
        assert given.in_domain == (given.domain_score is not None and given.domain_score <= 1.0)


def test_noise_is_farther_than_any_scan(study: tuple[Path, Path], ensemble: Bundle, tmp_path: Path) -> None:
    from PIL import Image

    predictor = load_predictor(ensemble)
    found = manifests.build(study[1])
    scans = [predictor.predict(found.path(c)).domain_score or 0.0 for c in found.cases[:8]]
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    judged = predictor.predict(tmp_path / "noise.png")
    assert judged.domain_score is not None
    assert judged.domain_score > max(scans)
    assert judged.in_domain is False


def test_folds_count_alike_in_the_graph(
    study: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint, dense = (find_runs([study[0]], f"{n}test_resnet-adam") for n in ("joint:", ""))
    runs = [joint[0], dense[0], joint[1]]
    np.testing.assert_allclose(shares(runs), [0.25, 0.25, 0.5])
    taken: list[Together] = []

    def take(whole: Together, size: int) -> bytes:
        taken.append(whole)
        raise SonobreastError("taken before it is written, which takes long")

    monkeypatch.setattr(exports, "onnx_bytes", take)
    with pytest.raises(SonobreastError, match="taken"):
        export(runs, tmp_path / "bundle")
    found = manifests.build(study[1])
    wanted = predict(runs, found.root, found.cases[:5]).probability
    settings = load_run(runs[0])[1].preprocess
    pixels = np.stack([prepare(decode(found.path(c)), settings) for c in found.cases[:5]])
    with torch.inference_mode():
        [logits, *_] = taken[0](torch.from_numpy(scale(pixels, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))))
    np.testing.assert_allclose(softmax(logits.numpy()), wanted, atol=1e-5)


def test_a_linear_probe_is_exported_and_without_the_studys_images_has_no_domain(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "study"
    shutil.copytree(study[0], moved)
    (moved / "manifest.csv").unlink()
    [run, *_] = find_runs([moved], "LinearProbe:test_resnet-none")
    bundle = export([run], tmp_path / "bundle", parity_images=3).bundle
    assert list_models(["LinearProbe:test_resnet"], "none")[0].export.possible
    assert bundle.about.parity.simulated
    assert bundle.about.parity.largest_difference < 1e-5
    assert bundle.about.members[0].no_map == ""
    assert bundle.about.domain is None
    assert bundle.about.decision_rule is not None
    other = write_busi(tmp_path / "other", seed=5)
    image = next(iter(sorted(other.rglob("*.png"))))
    assert load_predictor(bundle).predict(image).in_domain is None


def test_statistics_that_do_not_fit_are_refused(study: tuple[Path, Path]) -> None:
    [run, *_] = find_runs([study[0]], "test_resnet-adam")
    domains, _, _ = training_domains(run, manifests.build(study[1]))
    content = domain_statistics(domains["stages"])
    assert content is not None
    assert Statistics.model_validate(content).domain().threshold == domains["stages"].threshold
    for broken in (
        {"mean": content["mean"][:-1]},
        {"variance": [*content["variance"][:-1], 0.0]},
        {"threshold": float("nan")},
        {"axes": content["axes"][:-1]},
    ):
        with pytest.raises(ValidationError):
            Statistics.model_validate({**content, **broken})
