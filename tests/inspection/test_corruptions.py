"""Corruptions: strength 0 is the picture, a seed is a picture, and each does what its name says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sonobreast.config import Augment
from sonobreast.data.phantom import simulate
from sonobreast.errors import SonobreastError
from sonobreast.inspection.corruptions import (
    CORRUPTIONS,
    FLOOR,
    RANGE,
    STRENGTHS,
    contact_sheet,
    corrupt,
    corrupt_mask,
    kind_named,
)
from sonobreast.training import appearance

U8 = NDArray[np.uint8]
KINDS = list(CORRUPTIONS)


@pytest.fixture(scope="module")
def scan() -> U8:
    return simulate(1, seed=3, size=240).image


def detail(image: U8) -> float:
    """Energy between neighbours along rows."""
    return float(np.square(np.diff(image.astype(float), axis=1)).mean())


def change(image: U8, other: U8) -> float:
    return float(np.abs(image.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [0, 3])
def test_a_seed_is_a_picture(kind: str, channels: int, scan: U8) -> None:
    image = scan if not channels else np.stack([scan, scan, np.roll(scan, 1, 0)], axis=2)  # coloured
    before = image.copy()
    assert corrupt(image, kind, 0, 1) is image
    for strength in (1, 5):
        one = corrupt(image, kind, strength, 7)
        assert np.array_equal(one, corrupt(image, kind, strength, 7))
        assert np.array_equal(one, corrupt(image, kind, strength, [7]))
        assert one.dtype == np.uint8
        assert one.ndim == image.ndim
        assert one.flags.c_contiguous
        if kind != "crop":
            assert one.shape == image.shape
    assert np.array_equal(image, before)  # the picture itself is never written on
    if kind != "mirror":
        assert not np.array_equal(corrupt(image, kind, 5, 7), image)


@pytest.mark.parametrize("kind", KINDS)
def test_grey_channels_change_alike(kind: str, scan: U8) -> None:
    rgb = np.repeat(scan[:, :, None], 3, axis=2)
    changed = corrupt(rgb, kind, 4, 3)
    assert np.array_equal(changed[..., 0], changed[..., 2])
    assert np.array_equal(changed[..., 0], corrupt(scan, kind, 4, 3))


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("crop", "mirror")])
def test_stronger_is_further_away(kind: str, scan: U8) -> None:
    distance = [change(scan, corrupt(scan, kind, s, 11)) for s in range(STRENGTHS + 1)]
    assert all(a < b for a, b in pairwise(distance)), distance


@pytest.mark.parametrize("kind", KINDS)
def test_any_shape_of_picture(kind: str) -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (2, 90), (90, 3, 3)):
        assert corrupt(rng.integers(0, 256, shape, np.uint8), kind, 5, 2).size


def test_each_does_what_it_says(scan: U8) -> None:
    means = [corrupt(scan, "gain", s).mean() for s in range(6)]
    assert means == sorted(means)
    assert [corrupt(scan, "contrast", s).mean() for s in range(6)] == sorted(
        (corrupt(scan, "contrast", s).mean() for s in range(6)), reverse=True
    )
    black = [(corrupt(scan, "dynamic-range", s) == 0).mean() for s in range(6)]
    assert black == sorted(black)
    assert corrupt(scan, "dynamic-range", 5).max() == scan.max() == 255
    for kind in ("blur", "down-sampling"):
        energy = [detail(corrupt(scan, kind, s)) for s in range(6)]
        assert energy == sorted(energy, reverse=True)
    darker = scan.astype(int) - corrupt(scan, "depth-attenuation", 3)
    assert darker.min() >= 0
    assert not darker[0].any()
    assert darker[:80].mean() < darker[-80:].mean() or scan[-80:].mean() < scan[:80].mean()
    sizes = [corrupt(scan, "crop", s, 5).shape for s in range(6)]
    assert [h for h, _ in sizes] == [240, 228, 216, 192, 168, 144]
    for strength, factor in ((1, 1.1), (3, 1.35), (5, 1.75)):
        squeezed = corrupt(scan, "aspect", strength)
        inner = round(scan.shape[1] / factor)
        left = (scan.shape[1] - inner) // 2
        wanted = np.asarray(Image.fromarray(scan).resize((inner, scan.shape[0]), Image.Resampling.BILINEAR))
        assert (squeezed[:, left : left + inner] == wanted).all()
        assert (squeezed[:, :left] == wanted[:, :left][:, ::-1]).all()  # the mirror image, no black bar


def test_crops_leave_the_pixels_that_stay(scan: U8) -> None:
    window = corrupt(scan, "crop", 3, 9)
    views = np.lib.stride_tricks.sliding_window_view(scan, window.shape)
    assert (views == window).all(axis=(2, 3)).any()


def test_a_mirror_image_of_the_share_that_it_says(scan: U8) -> None:
    share = [
        np.mean([np.array_equal(corrupt(scan, "mirror", s, i), scan[:, ::-1]) for i in range(200)]) for s in range(1, 6)
    ]
    assert share[-1] == 1.0
    assert share == sorted(share)
    assert np.abs(np.array(share[:-1]) - [0.2, 0.4, 0.6, 0.8]).max() < 0.1
    turned = corrupt(scan, "rotation", 5, 1)
    assert min(change(corrupt(scan, "rotation", 5, i), turned) for i in range(2, 12)) == 0.0  # there are two sides only


def test_the_physics_is_that_of_the_augmentation(scan: U8) -> None:
    assert (RANGE, FLOOR) == (appearance.RANGE, appearance._FLOOR)
    image = torch.from_numpy(scan.astype(np.float32) / 255.0)[None, None]
    settings = Augment(gain=12.0)
    zero = torch.zeros(1)
    look = appearance.Look(torch.tensor([12.0]), zero, zero, torch.ones(1), zero, zero, None)
    theirs = appearance.change_look(image, look, torch.zeros_like(image), settings)[0, 0].numpy()
    assert np.abs(theirs * 255.0 - corrupt(scan, "gain", 4)).max() <= 0.5001


def test_speckle_has_the_decibels_it_says() -> None:
    grey = np.full((480, 480), 128, np.uint8)
    for strength, decibels in enumerate(CORRUPTIONS["speckle"].levels, start=1):
        spread = np.mean([corrupt(grey, "speckle", strength, i).astype(float).std() for i in range(4)])
        assert spread / 255.0 * RANGE == pytest.approx(decibels, rel=0.03)


def test_masks_follow_where_pixels_move() -> None:
    phantom = simulate(1, seed=3, size=240)
    assert phantom.mask.any()
    for kind in KINDS:
        moved = corrupt_mask(phantom.mask, kind, 4, 5)
        picture = corrupt(phantom.image, kind, 4, 5)
        assert moved.dtype == bool
        assert moved.shape == picture.shape
        if not CORRUPTIONS[kind].geometric:
            assert moved is phantom.mask
    painted = phantom.image // 2
    painted[phantom.mask] = 255
    for kind in ("rotation", "aspect", "mirror"):
        moved = corrupt_mask(phantom.mask, kind, 4, 5)
        white = corrupt(painted, kind, 4, 5) > 200
        assert (moved & white).sum() / (moved | white).sum() > 0.93


def test_what_cannot_be_changed_is_said(scan: U8) -> None:
    with pytest.raises(SonobreastError, match="speckel") as caught:
        kind_named("speckel")
    assert "did you mean speckle" in caught.value.remedy
    with pytest.raises(SonobreastError, match="strength 6"):
        corrupt(scan, "gain", 6)
    with pytest.raises(SonobreastError, match="float64"):
        corrupt(scan.astype(float), "gain", 1)  # type: ignore[arg-type]


def test_every_kind_is_on_the_sheet(scan: U8) -> None:
    sheet = contact_sheet(scan, width=48)
    rows = np.asarray(sheet)[:, 112:].reshape(len(KINDS), -1, sheet.width - 112)
    assert all((row < 250).mean() > 0.3 for row in rows)
    for kind in CORRUPTIONS.values():
        assert len(kind.levels) == len(kind.labels) == STRENGTHS
        assert len(set(kind.labels)) == STRENGTHS
