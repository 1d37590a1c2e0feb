"""A mask lies over its image at every size and under every view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.fake import tiny_recipe

from sonobreast.config import Preprocess
from sonobreast.data.masks import Masks, open_masks, resize_mask
from sonobreast.data.preprocess import resize
from sonobreast.errors import SonobreastError
from sonobreast.models.zoo import load_backbone
from sonobreast.records import Case
from sonobreast.training.batches import Inputs
from sonobreast.training.images import Images


def case(name: str, label: str = "benign", masks: tuple[str, ...] = (), width: int = 90, height: int = 70) -> Case:
    return Case(image=name, label=label, group=name, masks=masks, width=width, height=height, sha256="0", source="t")


def disc(x: float, y: float, r: float, width: int = 90, height: int = 70) -> NDArray[np.bool_]:
    yy, xx = np.mgrid[:height, :width]
    return np.asarray((xx - x) ** 2 + (yy - y) ** 2 <= r * r)


@pytest.fixture
def masks(tmp_path: Path) -> Masks:
    for name, mask in (("a", disc(30, 20, 12)), ("b", disc(60, 50, 9))):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    cases = [
        case("two", masks=("a.png", "b.png")),
        case("unknown", "malignant"),
        case("none", "normal"),
        case("one", masks=("a.png",)),
    ]
    return open_masks(tmp_path, cases, Preprocess(size=50))


def test_all_lesions_of_an_image_are_one_mask(masks: Masks) -> None:
    two = masks.original(0)
    assert two is not None
    np.testing.assert_array_equal(two, disc(30, 20, 12) | disc(60, 50, 9))
    assert masks.original(1) is None
    assert not np.any(masks.original(2))
    assert masks.known.tolist() == [True, False, True, True]


def test_packed_masks_are_what_was_resized(masks: Masks) -> None:
    for i in (0, 3):
        original = masks.original(i)
        assert original is not None
        np.testing.assert_array_equal(masks.resized(np.asarray([i]))[0], resize_mask(original, Preprocess(size=50)))
    assert masks.resized(np.asarray([3, 1])).shape == (2, 50, 50)
    assert not masks.resized(np.asarray([1, 2])).any()


@pytest.mark.parametrize("aspect", ["stretch", "pad"])
@pytest.mark.parametrize("size", [33, 64, 200])
def test_a_mask_is_resized_as_its_image_is(aspect: str, size: int) -> None:
    mask = disc(30, 25, 14)
    settings = Preprocess.model_validate({"size": size, "aspect": aspect, "interpolation": "area"})
    picture = resize(np.repeat(255 * mask[:, :, None].astype(np.uint8), 3, axis=2), settings)
    np.testing.assert_array_equal(resize_mask(mask, settings), picture[..., 0] >= 128)
    assert abs(resize_mask(mask, settings).mean() - picture.mean() / 255) < 0.01


def test_a_mask_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(disc(10, 10, 5)).save(tmp_path / "a.png")
    with pytest.raises(SonobreastError) as caught:
        open_masks(tmp_path, [case("x", masks=("a.png",), width=91)], Preprocess(size=32))
    assert "a.png" in str(caught.value.file)


def test_views_move_image_and_mask_alike(tiny_weights: Path) -> None:
    mask = np.stack([disc(22, 30, 10, 64, 64), disc(40, 20, 14, 64, 64)])
    pixels = np.repeat(150 * mask[..., None].astype(np.uint8), 3, axis=3)  # brightened, it stays below white
    cases = (case("a"), case("b"))
    packed = Masks(np.packbits(mask, axis=2), np.ones(2, bool), Path(), cases)
    images = Images(pixels, ("a", "b"), torch.zeros(2, dtype=torch.int64), ("benign",), packed)
    augment = {"rotation": 40.0, "zoom": 0.2, "shift": 0.2, "horizontal_flip": True, "brightness": 0.4, "shear": 10.0}
    recipe = tiny_recipe({"augment": augment, "preprocess.scaling": "unit"})
    backbone = load_backbone("joint:test_resnet", str(tiny_weights), cut_uncovered=False, image_size=64)
    inputs = Inputs(images, recipe, backbone, 5, torch.device("cpu"))
    moved = 0
    for view in range(6):
        shown, truth = inputs.with_masks(np.arange(2), view)
        assert truth is not None
        assert truth.shape == (2, 1, 64, 64)
        brightest = shown[:, :1].amax((2, 3), keepdim=True)
        seen = truth / truth.amax((2, 3), keepdim=True)
        torch.testing.assert_close(shown[:, :1] / brightest, seen, atol=1e-5, rtol=0)
        moved += int((truth[:, 0].numpy() > 0.5).tolist() != mask.tolist())
    assert moved == 6


def test_a_classifier_gets_no_masks(tiny_weights: Path) -> None:
    mask = np.zeros((1, 64, 64), bool)
    packed = Masks(np.packbits(mask, axis=2), np.ones(1, bool), Path(), (case("a"),))
    images = Images(np.zeros((1, 64, 64, 3), np.uint8), ("a",), torch.zeros(1, dtype=torch.int64), ("benign",), packed)
    backbone = load_backbone("test_resnet", str(tiny_weights), cut_uncovered=False, image_size=64)
    assert Inputs(images, tiny_recipe({}), backbone, 0, torch.device("cpu")).with_masks(np.arange(1), 0)[1] is None
