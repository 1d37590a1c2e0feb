"""A small study and bundles of it, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.fake import tiny_recipe, write_busi
from tests.serving.live import live

from sonobreast.inspection.evaluate import find_runs
from sonobreast.serving.bundle import SELF_TEST_IMAGE, Bundle
from sonobreast.serving.export import export
from sonobreast.serving.predictor import Predictor
from sonobreast.training.study import run_study


@pytest.fixture(scope="session")
def study(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study of two folds: dense head, a joint network, a linear probe, a forest; mirror images averaged; and
    its data."""
    base = tmp_path_factory.mktemp("serving")
    data = write_busi(base / "data")
    recipe = tiny_recipe(
        {
            "data.subsample": None,
            "split": {"kind": "kfold", "folds": 2, "validation": 0.3},
            "model.architectures": ["test_resnet", "joint:test_resnet", "LinearProbe:test_resnet", "RandomForest"],
            "model.backbone": "finetune",
            "segmentation": {"channels": [8, 8, 8], "shortcuts": 8},
            "head": {"hidden": [8], "dropout": 0.1, "init": "torch"},
            "training.epochs": 2,
            "training.learning_rate": 3e-3,
            "training.optimizers": ["adam"],
            "inference.flips": True,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sonobreast.training.classical.TREES", 5)  # keeping a forest takes longer than fitting it
        run_study(recipe, data, str(tiny_weights), base / "study", images=False)
    return base / "study", data


@pytest.fixture(scope="session")
def ensemble(study: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two folds of the joint network as one bundle."""
    out = tmp_path_factory.mktemp("ensemble") / "bundle"
    return export(find_runs([study[0]], "joint:test_resnet-adam"), out).bundle


@pytest.fixture(scope="session")
def single(study: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One run of the classifier, dense head."""
    out = tmp_path_factory.mktemp("single") / "bundle"
    return export(find_runs([study[0]], "test_resnet-adam")[:1], out).bundle


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[httpx.Client]:
    """Of a service of the module's own ``predictor``."""
    with live(predictor) as found:
        yield found


@pytest.fixture(scope="module")
def scan(predictor: Predictor) -> bytes:
    """The image of the self-test, as a file."""
    return (predictor.bundle.folder / SELF_TEST_IMAGE).read_bytes()
