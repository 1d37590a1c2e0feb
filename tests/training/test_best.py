"""The recipe ``best`` runs from images to tables, in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.fake import write_busi

from sonobreast.config import Augment, Inference, Preprocess, Training, load_recipe
from sonobreast.data.manifest import build
from sonobreast.inspection.predict import predict
from sonobreast.training.study import run_study

SMALL = [
    "model.architectures=['joint:test_resnet']",
    "model.precision=float32",
    "preprocess.size=64",
    "segmentation.channels=[8,8]",
    "training.epochs=4",
    "training.batch_size=4",
    "training.seeds=[0]",
    "split.folds=2",
]


def test_what_it_adds_is_explained() -> None:
    """Every setting of those that only this recipe has is on, and says why."""
    recipe = load_recipe("best")
    for group, default, names in (
        ("preprocess", Preprocess(), ("inpaint_marks",)),
        (
            "augment",
            Augment(),
            ("aspect", "lesion_zoom", "gain", "depth_attenuation", "contrast", "speckle", "blur"),
        ),
        (
            "training",
            Training(),
            ("schedule", "warmup", "weight_decay", "label_smoothing", "gradient_clip", "averaging"),
        ),
        ("inference", Inference(), ("flips",)),
    ):
        for name in names:
            assert getattr(getattr(recipe, group), name) != getattr(default, name), name
            assert recipe.ours[f"{group}.{name}"], name
    assert recipe.split.grouping == "group"
    assert not recipe.augment.vertical_flip


def test_it_runs_and_its_runs_say_the_same_again(tmp_path: Path, tiny_weights: Path) -> None:
    data, out = write_busi(tmp_path / "busi"), tmp_path / "out"
    outcome = run_study(load_recipe("best", SMALL), data, str(tiny_weights), out)
    assert (outcome.finished, len(outcome.failed)) == (2, 0)
    manifest = build(data, strict=True)
    for run in sorted((out / "runs").iterdir()):
        lines = [line.split(",") for line in (run / "predictions.csv").read_text().splitlines()]
        column = {name: k for k, name in enumerate(lines[0])}
        written = {
            line[column["image"]]: [float(line[column[f"p_{c}"]]) for c in ("benign", "malignant", "normal")]
            for line in lines[1:]
        }
        found = predict([run], manifest.root, manifest.cases)
        wanted = np.array([written[c.image] for c in manifest.cases])
        np.testing.assert_allclose(found.probability, wanted, atol=1e-4)
        assert (run / "segmentation.csv").is_file()
