"""An image and its mirror image get the same answer, which is the mean of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.fake import make_images, tiny_recipe
from torch import Tensor

from sonobreast.data.masks import Masks
from sonobreast.errors import SonobreastError
from sonobreast.models.mirror import mean_logits, mean_mask, with_mirror
from sonobreast.models.zoo import load_backbone
from sonobreast.records import Case, Run
from sonobreast.training.fit import Fold, TrainedNetwork, load_run, write_run
from sonobreast.training.head_settings import check_head_settings
from sonobreast.training.images import Images, network_input
from sonobreast.training.module import fit_network

TRAIN, VALIDATION = np.arange(12), np.arange(12, 16)


def test_means_are_those_of_the_probabilities() -> None:
    random = torch.Generator().manual_seed(0)
    one, two = (6 * torch.randn(5, 3, generator=random) for _ in range(2))
    torch.testing.assert_close(mean_logits(one, two).softmax(1), (one.softmax(1) + two.softmax(1)) / 2)
    torch.testing.assert_close(mean_mask(one, two).sigmoid(), (one.sigmoid() + two.sigmoid()) / 2)
    torch.testing.assert_close(mean_mask(one, one), one)
    far = torch.tensor([[200.0, -200.0, 0.0]])
    assert torch.isfinite(mean_logits(far, -far)).all()
    torch.testing.assert_close(mean_mask(far, far), far)


def test_masks_are_mirrored_back() -> None:
    image = torch.zeros(1, 3, 4, 6)
    image[..., 1, 0] = 9.0
    _, mask = with_mirror(lambda seen: (torch.zeros(1, 3), seen[:, :1]), image)
    assert mask is not None
    torch.testing.assert_close(mask, image[:, :1])


def masked(n: int) -> Images:
    images = make_images(n)
    truth = np.zeros((n, 64, 64), bool)
    truth[:, 10:40, 5:30] = True
    case = Case(image="a.png", label="benign", group="a", width=64, height=64, sha256="0" * 64, source="x")
    masks = Masks(np.packbits(truth, axis=2), np.ones(n, bool), Path(), (case,) * n)
    return replace(images, masks=masks)


@pytest.mark.parametrize("name", ["test_resnet", "joint:test_resnet"])
def test_a_finished_run_answers_alike_for_image_and_mirror_image(
    name: str, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"model.backbone": "finetune", "inference.flips": True, "training.epochs": 1, "head.dropout": 0.0}
    recipe = tiny_recipe({**changes, "segmentation": {"channels": [8, 8], "shortcuts": 8}})
    backbone, images = load_backbone(name, str(tiny_weights), cut_uncovered=False, image_size=64), masked(18)
    fitted = fit_network(backbone, images, TRAIN, VALIDATION, recipe, "adam", 0)
    plain = fit_network(
        backbone,
        images,
        TRAIN,
        VALIDATION,
        tiny_recipe({**recipe_content(recipe), "inference.flips": False}),
        "adam",
        0,
    )
    assert all(torch.equal(fitted.state[k], plain.state[k]) for k in plain.state), "training sees no flips of this"
    monkeypatch.setattr("sonobreast.training.fit._write_lesions", lambda *_: None)
    (tmp_path / "backbones").mkdir()
    save_file({k: v.contiguous() for k, v in backbone.used_tensors().items()}, tmp_path / "backbones" / "b.safetensors")
    run = Run(architecture=name, optimizer="adam", repeat=0, fold=0, seed=0)
    folder = tmp_path / "runs" / run.id
    fold = Fold(TRAIN, VALIDATION, np.arange(16, 18), images.names)
    write_run(
        folder,
        fitted,
        backbone,
        images,
        fold,
        recipe,
        run,
        backbone_file="backbones/b.safetensors",
        data_fingerprint="x",
    )
    network, loaded, _ = load_run(folder)
    assert loaded.inference.flips
    once = TrainedNetwork(network.backbone, network.head).eval()
    given = network_input(images, np.arange(18), recipe, backbone, None)
    with torch.inference_mode():
        here, there, alone, other = (f(x).softmax(1) for f in (network, once) for x in (given, given.flip(3)))
        torch.testing.assert_close(here, there, rtol=0, atol=1e-6)
        torch.testing.assert_close(here, (alone + other) / 2, rtol=0, atol=1e-6)
        assert float((alone - other).abs().max()) > 1e-4, "the network alone does not treat them alike"
        np.testing.assert_allclose(fitted.probability, here.numpy(), atol=1e-5)
        assert not np.allclose(plain.probability, fitted.probability, atol=1e-5)
        if name.startswith("joint:"):
            mask, mirrored = mask_of(network, given), mask_of(network, given.flip(3))
            torch.testing.assert_close(mask, mirrored.flip(3), rtol=0, atol=1e-5)
            both = (mask_of(once, given) + mask_of(once, given.flip(3)).flip(3)) / 2
            torch.testing.assert_close(mask, both, rtol=0, atol=1e-5)
            assert fitted.lesions is not None
            found = fitted.lesions.probability.astype(int)
            assert np.abs(found - 255 * mask[fitted.lesions.index, 0].numpy()).max() < 0.51
        else:
            assert network.segment(given) is None
    p = fitted.probability[VALIDATION, images.label[VALIDATION].numpy()]
    if not name.startswith("joint:"):
        assert -np.log(p).mean() == pytest.approx(fitted.history[0].validation_loss, rel=1e-4)


def recipe_content(recipe: object) -> dict[str, object]:
    return {k: v for k, v in recipe.model_dump().items() if k != "schema_version"}  # type: ignore[attr-defined]


def mask_of(network: TrainedNetwork, given: Tensor) -> Tensor:
    logits = network.segment(given)
    assert logits is not None
    return logits.sigmoid()


def test_heads_on_stored_features_refuse_it() -> None:
    with pytest.raises(SonobreastError, match=r"inference\.flips"):
        check_head_settings(tiny_recipe({"inference.flips": True}))
