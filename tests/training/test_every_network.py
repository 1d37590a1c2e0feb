"""Networks of every family are trained, written and read again as any timm network is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fake import make_images, tiny_recipe

from sonobreast.data.preprocess import scale, scaling_constants
from sonobreast.models.listing import list_models
from sonobreast.models.networks import NETWORKS
from sonobreast.models.zoo import load_backbone
from sonobreast.records import Run
from sonobreast.training.fit import Fold, load_run, write_run
from sonobreast.training.fitted import Fitted
from sonobreast.training.module import fit_network
from sonobreast.training.study import _save_backbone

LISTED = sorted({e.timm_name for e in NETWORKS if e.timm_name is not None})
LARGE = 3e8  # multiplications for one small image beyond which one step has to do
FOLD = Fold(np.arange(12), np.arange(4), np.arange(4, 12), tuple(f"g{i}" for i in range(12)))


def smallest_size(name: str) -> int:
    """Side of the images on which a network is tried: 64 px where it takes any."""
    [listed] = list_models([name], "none")
    return listed.size_px or 224 if listed.only_size else 96 if name == "inception_v3" else 64


def trained(name: str, optimizer: str, epochs: int, out: Path) -> tuple[Fitted, Path, int]:
    """A network after some epochs on twelve images, which are one batch, and its run folder."""
    size = smallest_size(name)
    recipe = tiny_recipe(
        {
            "preprocess.size": size,
            "augment": {},
            "head": {"hidden": [], "dropout": 0.0, "init": "torch"},
            "model.architectures": [name],
            "model.backbone": "finetune",
            "model.batch_norm": "train",
            "training.epochs": epochs,
            "training.early_stopping": None,
            "training.batch_size": 12,
            "training.learning_rate": 1e-3,
        }
    )
    images, run = make_images(12, size), Run(architecture=name, optimizer=optimizer)
    backbone = load_backbone(name, "none", image_size=size)
    fitted = fit_network(backbone, images, FOLD.train, FOLD.validation, recipe, optimizer, seed=0)
    folder = out / "runs" / run.id
    write_run(
        folder, fitted, backbone, images, FOLD, recipe, run,
        backbone_file=_save_backbone(backbone, out), data_fingerprint="f" * 64,
    )  # fmt: skip
    return fitted, folder, size


def reloaded(folder: Path, size: int) -> np.ndarray:
    network, recipe, _ = load_run(folder)
    mean, std = scaling_constants(recipe.preprocess.scaling, network.backbone.mean, network.backbone.std)
    with torch.inference_mode():
        pixels = make_images(12, size).pixels
        return network(torch.from_numpy(scale(pixels, mean, std))).softmax(1).numpy()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("lenet_modified", "nadam"), ("dscnet_fc", "adam"), ("test_resnet", "nadam")],
)
def test_a_tiny_one_of_each_family_learns_twelve_images_by_heart(name: str, optimizer: str, tmp_path: Path) -> None:
    fitted, folder, size = trained(name, optimizer, 20, tmp_path)
    assert fitted.history[-1].train_accuracy == 1.0
    assert fitted.history[-1].train_loss < 0.5 * fitted.history[0].train_loss
    np.testing.assert_allclose(reloaded(folder, size), fitted.probability, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTED)
def test_every_network_trains_and_is_read_again(name: str, tmp_path: Path) -> None:
    [listed] = list_models([name], "none")
    size = smallest_size(name)
    large = (listed.macs or 0) * (size / (listed.size_px or 224)) ** 2 > LARGE
    fitted, folder, size = trained(name, "adam", 1 if large else 40, tmp_path)
    assert np.isfinite([fitted.history[-1].train_loss, fitted.history[-1].validation_loss]).all()
    if not large:
        assert fitted.history[-1].train_accuracy == 1.0
    np.testing.assert_allclose(reloaded(folder, size), fitted.probability, atol=2e-5)
