"""The linear probe: a logistic regression on frozen features, kept as an ordinary linear head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.fake import tiny_recipe, write_busi

from sonobreast.config import Recipe
from sonobreast.data.manifest import build
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.inspection.predict import predict
from sonobreast.models.networks import architecture, recipe_for
from sonobreast.models.zoo import Backbone, Coverage
from sonobreast.training.classical import PENALTIES, Prepared, fit_probe
from sonobreast.training.fit import Fold, load_run
from sonobreast.training.study import run_study

NAME = "LinearProbe:test_resnet"


def recipe(**more: object) -> Recipe:
    return tiny_recipe(
        {"data.subsample": None, "model.architectures": [NAME], "split": {"kind": "kfold", "folds": 2}, **more}
    )


def drawn(classes: int = 3) -> tuple[Prepared, NDArray[np.intp], Fold]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, 150)
    features = rng.normal(0, 1, (150, 20)) * rng.uniform(0.1, 30, 20) + rng.normal(0, 5, 20)
    features[:, :3] += 1.5 * label[:, None] * features[:, :3].std(axis=0)
    features[:, 7] = 4.0  # does not vary
    coverage = Coverage(source="folder", share=1.0, missing=(), cut_after=None, origin="", licence="")
    backbone = Backbone(
        torch.nn.Identity(),
        timm_name="x",
        cut=None,
        features=20,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        coverage=coverage,
    )
    fold = Fold(np.arange(80), np.arange(80, 110), np.arange(110, 150), tuple(str(i) for i in range(150)))
    return Prepared(backbone, features.astype(np.float32)), label.astype(np.intp), fold


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_with_the_penalty_of_least_validation_loss(classes: int) -> None:
    prepared, label, fold = drawn(classes)
    _, found = fit_probe(prepared, label, fold, classes, recipe_for(recipe(), NAME))
    losses, probabilities = [], []
    for penalty in PENALTIES:
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
        ).fit(prepared.features[fold.train].astype(float), label[fold.train])
        probabilities.append(model.predict_proba(prepared.features.astype(float)))
        losses.append(log_loss(label[fold.validation], probabilities[-1][fold.validation]))
    assert int(np.argmin(losses)) > 0
    np.testing.assert_allclose(found, probabilities[int(np.argmin(losses))], atol=2e-4)


def test_test_labels_have_no_say() -> None:
    prepared, label, fold = drawn()
    other = label.copy()
    other[fold.test] = (other[fold.test] + 1) % 3
    settings = recipe_for(recipe(), NAME)
    one, two = (fit_probe(prepared, k, fold, 3, settings)[0] for k in (label, other))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_class_that_training_never_saw_gets_next_to_nothing() -> None:
    prepared, label, fold = drawn()
    label[fold.train] = np.minimum(label[fold.train], 1)
    _, found = fit_probe(prepared, label, fold, 3, recipe_for(recipe(), NAME))
    assert found[:, 2].max() < 1e-6
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)


def test_its_runs_are_ordinary_heads_and_say_the_same_again(tiny_weights: Path, tmp_path: Path) -> None:
    data, out = write_busi(tmp_path / "busi"), tmp_path / "out"
    settings = recipe(**{"inference.flips": True, "head.hidden": [8]})
    outcome = run_study(settings, data, str(tiny_weights), out, images=False)
    assert (outcome.finished, outcome.failed) == (2, {})
    manifest = build(data, strict=True)
    table = read_predictions(out / "predictions.csv").set_index("image")
    for run in (out / "runs").iterdir():
        network, _, _ = load_run(run)
        assert not network.flips
        assert [type(k) for k in network.head] == [torch.nn.Linear]  # type: ignore[union-attr, arg-type]
        found = predict([run], manifest.root, manifest.cases)
        wanted = table[table["run"] == run.name].loc[[c.image for c in manifest.cases]]
        np.testing.assert_allclose(
            found.probability, wanted[["p_benign", "p_malignant", "p_normal"]].to_numpy(), atol=1e-4
        )


def test_its_name() -> None:
    one = architecture("linearprobe:mobilenetv2")
    assert (one.kind, one.timm_name, one.probe) == ("classical", "mobilenetv2_100", True)
    assert one.entry is not None
    assert one.entry.name == "LinearProbe"
    assert architecture("LinearProbe").timm_name == "densenet169"
    assert not architecture("DeepFusion:MobileNetV2").probe
