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
from sonobreast.evaluation.domain import accept_of_each, distance, promised, together
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.evaluation.rule_fitting import fit_rule, shipped_together
from sonobreast.inspection.domain import domain_features, training_domains
from sonobreast.inspection.evaluate import find_runs
from sonobreast.inspection.predict import predict, shares
from sonobreast.models.listing import list_models
from sonobreast.serving import export as exports
from sonobreast.serving.about import Statistics, domain_statistics
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.export import export
from sonobreast.serving.predictor import domains_of, load_predictor, softmax
from sonobreast.training.fit import load_run
from sonobreast.training.graph import Together
from sonobreast.training.graph import together as together_graph


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


def test_the_domain_is_that_of_every_run(study: tuple[Path, Path], ensemble: Bundle, single: Bundle) -> None:
    runs = find_runs([study[0]], "joint:test_resnet-adam")
    found = manifests.build(study[1])
    known = ensemble.about.detector
    assert known is not None
    assert [(n.member, n.share) for n in known.networks] == [(0, 0.5), (1, 0.5)]
    each = []
    for run, kept in zip(runs, known.networks, strict=True):
        domains, _, network = training_domains(run, found, accept=accept_of_each(0.95, 2))
        domain, settings = domains["stages"], load_run(run)[1].preprocess
        np.testing.assert_array_equal(kept.domain().axes, domain.axes)
        assert kept.threshold == domain.threshold
        pixels = np.stack([prepare(decode(found.path(c)), settings) for c in found.cases])
        each.append(distance(domain, domain_features(network, settings.scaling, pixels)["stages"]) / domain.threshold)
    assert not np.allclose(each[0], each[1], rtol=0.05)  # or it would not matter whose it is
    wanted = together(np.stack(each, axis=1), [0.5, 0.5])
    predictor = load_predictor(ensemble)
    for case, score in zip(found.cases, wanted, strict=True):
        given = predictor.predict(found.path(case))
        assert given.domain_score == pytest.approx(score, rel=1e-3)
        assert given.in_domain == (given.domain_score is not None and given.domain_score <= 1.0)
    groups = [n.calibrated_on for n in known.networks]
    assert known.accept == pytest.approx(promised([0.975, 0.975], groups, [0.5, 0.5]))
    assert "statistics of each network" in ensemble.about.domain_in_words
    assert single.about.detector is not None
    assert single.about.detector.networks[0].accept == 0.95
    for one in (ensemble, single):
        assert one.about.domain_in_words in (one.folder / "model_card.md").read_text()


def test_a_bundle_of_before_says_whose_statistics_it_has(ensemble: Bundle) -> None:
    known = ensemble.about.detector
    assert known is not None
    first = known.networks[0].model_dump(exclude={"member", "share"})
    about = ensemble.about.model_copy(update={"domain": first})
    [only] = domains_of(about)
    assert (only.first, only.share, only.domain.threshold) == (0, 1.0, known.networks[0].threshold)
    assert "network 1 of 2 alone" in about.domain_in_words


def test_networks_without_finite_features_find_a_picture_outside(ensemble: Bundle) -> None:
    predictor = load_predictor(ensemble)
    outputs = predictor.run([np.zeros((64, 64, 3), np.uint8)])
    outputs["features"] = np.full_like(outputs["features"], np.inf)
    judged = predictor.judge(outputs, 0, 64, 64, None)
    assert (judged.domain_score, judged.in_domain) == (None, False)


def test_without_validation_images_or_on_other_images_it_is_said(study: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "deep" / "er" / "study"
    shutil.copytree(study[0], copy)
    [run, *_] = find_runs([copy], "test_resnet-adam")
    moved = exports._images(copy, None, lambda *_: None)
    assert moved is None
    given = exports._images(copy, study[1], lambda *_: None)
    assert given is not None
    members = [exports._loaded(run)]
    whole = together_graph([(m.network, m.recipe) for m in members])
    one = np.ones(1)
    content, why = exports._domain(members, whole, one, given, lambda *_: None)
    assert content is not None
    assert not why
    assert "--data" in exports._domain(members, whole, one, None, lambda *_: None)[1][run.name]
    table = run / "predictions.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if ",validation," not in line))
    content, why = exports._domain(members, whole, one, given, lambda *_: None)
    assert content is None
    assert "validation" in why[run.name]


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
