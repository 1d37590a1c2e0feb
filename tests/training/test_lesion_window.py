"""A window holds its lesion, and neither whether it is there nor its size says what the image shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from tests.fake import make_images, tiny_recipe, write_busi, write_class_folders

from sonobreast.config import Augment
from sonobreast.data.masks import Masks
from sonobreast.errors import SonobreastError
from sonobreast.models.zoo import load_backbone
from sonobreast.records import Case
from sonobreast.training.augment import draw_views, warp
from sonobreast.training.batches import Inputs
from sonobreast.training.head_settings import check_head_settings
from sonobreast.training.images import augmented_views
from sonobreast.training.lesion_window import LesionBoxes, draw_windows, measure_boxes
from sonobreast.training.study import run_study

NAMES = [f"benign/benign ({i}).png" for i in range(2000)]
ZOOM = Augment(lesion_zoom=1.0, lesion_window=0.4)
UNKNOWN = np.full((1, 4), np.nan)


def uniform(n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 5))


def some_boxes(n: int, seed: int = 1) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    middle, half = rng.uniform(-0.5, 0.5, (n, 2)), rng.uniform(0.05, 0.5, (n, 2))
    return np.concatenate([middle - half, middle + half], axis=1)


def masks_of(truth: NDArray[np.bool_], known: NDArray[np.bool_] | None = None) -> Masks:
    n, size, _ = truth.shape
    case = Case(image="a.png", label="benign", group="a", width=size, height=size, sha256="0" * 64, source="x")
    known = np.ones(n, bool) if known is None else known
    return Masks(np.packbits(truth, axis=2), known, Path(), (case,) * n)


def test_windows_hold_the_lesion_and_stay_in_the_picture() -> None:
    own = some_boxes(2000)
    scale, centre = draw_windows(uniform(2000), LesionBoxes(own, own), ZOOM)
    low, high = centre - scale[:, None], centre + scale[:, None]
    assert low.min() >= -1 - 1e-9
    assert high.max() <= 1 + 1e-9
    fits = own[:, 2:] - own[:, :2] <= 2 * scale[:, None]
    assert 0.3 < fits.mean() < 1.0
    assert (low <= own[:, :2] + 1e-9)[fits].all()
    assert (high >= own[:, 2:] - 1e-9)[fits].all()
    assert (low >= own[:, :2] - 1e-9)[~fits].all(), "too small for the lesion: full of it"
    assert (high <= own[:, 2:] + 1e-9)[~fits].all()


def test_the_scale_gives_no_class_away() -> None:
    """The same draws with a small, a large and no lesion: the same windows are zoomed, by the same factors."""
    u, pool = uniform(2000), some_boxes(50)
    settings = ZOOM.model_copy(update={"lesion_zoom": 0.6})
    small, large = ([[-0.1, -0.1, 0.1, 0.1]], [[-0.9, -0.8, 0.9, 0.8]])
    scales = [
        draw_windows(u, LesionBoxes(np.repeat(np.asarray(own), 2000, axis=0), pool), settings)[0]
        for own in (small, large, UNKNOWN)
    ]
    np.testing.assert_array_equal(scales[0], scales[1])
    np.testing.assert_array_equal(scales[0], scales[2])
    zoomed = scales[0] < 1
    assert zoomed.mean() == pytest.approx(0.6, abs=0.04)
    spread = np.log(scales[0][zoomed]) / np.log(0.4)
    assert stats.kstest(spread, "uniform").pvalue > 0.01


def test_places_without_a_lesion_are_spread_as_those_with_one() -> None:
    """Windows of images without a lesion and of images with one, whose lesions are those of the pool."""
    pool = some_boxes(400)
    of_lesion = draw_windows(uniform(2000, 5), LesionBoxes(np.tile(pool, (5, 1)), pool), ZOOM)[1]
    without = draw_windows(uniform(2000, 6), LesionBoxes(np.repeat(UNKNOWN, 2000, axis=0), pool), ZOOM)[1]
    for axis in (0, 1):
        assert stats.ks_2samp(of_lesion[:, axis], without[:, axis]).pvalue > 0.01


def test_probability_0_shows_all_of_it_and_is_the_plain_view() -> None:
    plain = Augment(rotation=10, shift=0.1)
    assert torch.equal(
        draw_views(NAMES[:5], 0, 0, plain).matrix,
        draw_views(NAMES[:5], 0, 0, plain, LesionBoxes(some_boxes(5), some_boxes(3))).matrix,
    )
    scale, centre = draw_windows(uniform(50), LesionBoxes(some_boxes(50), some_boxes(3)), Augment())
    assert (scale == 1).all()
    assert not centre.any()


def test_boxes_are_those_of_the_masks() -> None:
    truth = np.zeros((4, 20, 20), bool)
    truth[0, 4:10, 2:15] = True
    truth[2, 0:20, 19] = True
    truth[3, 5, 5] = True
    boxes = measure_boxes(masks_of(truth, np.array([True, True, True, True])), np.array([0, 1, 2]))
    np.testing.assert_allclose(boxes.own[0], [-0.8, -0.6, 0.5, 0.0])
    np.testing.assert_allclose(boxes.own[2], [0.9, -1.0, 1.0, 1.0])
    assert np.isnan(boxes.own[1]).all()
    np.testing.assert_array_equal(boxes.pool, boxes.own[[0, 2]])
    np.testing.assert_array_equal(boxes.of(np.array([3, 1])).own, boxes.own[[3, 1]])


def test_a_view_of_a_window_is_that_part_of_the_picture() -> None:
    truth = np.zeros((1, 64, 64), bool)
    truth[0, 40:50, 8:20] = True
    boxes = measure_boxes(masks_of(truth), np.array([0]))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.from_numpy(truth)[:, None].float()
    for view in range(10):
        drawn = draw_views(["a"], view, 0, ZOOM, boxes)
        scale = float(drawn.matrix[0, 0, 0])
        shown = warp(mask, drawn, ZOOM)
        assert float(shown.sum()) == pytest.approx(120 / scale**2, rel=0.12), "all of the lesion, enlarged"
        middle = drawn.matrix[0, :, 2]
        x, y = (int((float(v) + 1) * 32) for v in middle)
        seen = warp(image, drawn, ZOOM)[0, :, 31:33, 31:33].mean((1, 2))
        around = image[0, :, max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2]
        assert (seen <= around.amax((1, 2))).all()
        assert (seen >= around.amin((1, 2))).all()


def test_no_mask_no_zoom(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="lesion_zoom needs lesion masks"):
        draw_views(["a"], 0, 0, ZOOM)
    with pytest.raises(SonobreastError, match="no training image has one"):
        measure_boxes(None, np.arange(3))
    with pytest.raises(SonobreastError, match="no training image has one"):
        measure_boxes(masks_of(np.zeros((3, 8, 8), bool)), np.arange(3))
    with pytest.raises(SonobreastError, match=r"augment\.lesion_zoom"):
        check_head_settings(tiny_recipe({"augment.lesion_zoom": 0.5}))
    data = write_class_folders(tmp_path / "data")
    recipe = tiny_recipe({"augment.lesion_zoom": 0.5, "model.backbone": "finetune"})
    with pytest.raises(SonobreastError, match="no training image has one"):
        run_study(recipe, data, str(tiny_weights), tmp_path / "out")


def test_only_training_lesions_are_borrowed(tiny_weights: Path) -> None:
    images = make_images(18)
    truth = np.zeros((18, 64, 64), bool)
    truth[:9, 10:20, 10:20] = True
    truth[9:16, 30:60, 30:60] = True
    images = replace(images, masks=masks_of(truth))
    backbone = load_backbone("test_resnet", str(tiny_weights), cut_uncovered=False, image_size=64)
    recipe = tiny_recipe({"augment": {"lesion_zoom": 1.0, "lesion_window": 0.3}, "model.backbone": "finetune"})
    train = np.r_[0:9, 16:18]
    inputs = Inputs(images, recipe, backbone, 0, torch.device("cpu"), train)
    assert inputs.boxes is not None
    assert len(np.unique(inputs.boxes.pool, axis=0)) == 1
    other = replace(images, masks=masks_of(np.concatenate([truth[:9], truth[9:16, ::-1], truth[16:]])))
    again = Inputs(other, recipe, backbone, 0, torch.device("cpu"), train)
    assert torch.equal(inputs(train, 2), again(train, 2)), "masks of other images change no training input"
    assert not torch.equal(inputs(train, 2), inputs(train, 3))


@pytest.mark.parametrize("architecture", ["test_resnet", "joint:test_resnet"])
def test_a_study_zooms(architecture: str, tiny_weights: Path, tmp_path: Path) -> None:
    changes = {"model.architectures": [architecture], "model.backbone": "finetune", "training.epochs": 1}
    changes |= {"segmentation": {"channels": [8, 8], "shortcuts": 8}}
    augment = {"lesion_zoom": 0.5, "gain": 4, "depth_attenuation": 4, "contrast": 0.2, "speckle": 2, "blur": 0.004}
    data = write_busi(tmp_path / "busi")
    outcome = run_study(tiny_recipe({**changes, "augment": augment}), data, str(tiny_weights), tmp_path / "out")
    assert (outcome.finished, len(outcome.failed)) == (1, 0)
    assert (tmp_path / "out" / "figures" / "augmentation.png").is_file()


def test_sample_pictures_are_zoomed_too() -> None:
    truth = np.zeros((3, 64, 64), bool)
    truth[:, 20:40, 20:40] = True
    images = replace(make_images(3), masks=masks_of(truth))
    shown = augmented_views(images, 0, tiny_recipe({"augment": {"lesion_zoom": 1.0}}), 2)
    assert all(v.shape == (64, 64, 3) for v in shown)
    assert not np.array_equal(shown[0], shown[1])
