"""Decoding, resizing, scaling: the same numbers for training and for serving."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.fake import make_images, speckle, tiny_recipe

from sonobreast.config import Augment, Preprocess
from sonobreast.data.preprocess import decode, decode_mask, is_mask, resize, scale, scaling_constants
from sonobreast.errors import SonobreastError
from sonobreast.training.images import network_input

GREY = np.arange(1, 241, dtype=np.uint8).reshape(12, 20)


def stored(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_modes_of_png(mode: str) -> None:
    found = decode(stored(Image.fromarray(GREY).convert(mode)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, rgb(GREY))


def test_one_bit() -> None:
    bits = GREY > 100
    np.testing.assert_array_equal(decode(stored(Image.fromarray(bits))), rgb(bits.astype(np.uint8) * 255))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bit(kind: str) -> None:
    deep = GREY.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(stored(Image.fromarray(deep), kind)), rgb(GREY))
    np.testing.assert_array_equal(decode(stored(Image.fromarray(deep + 100), kind)), rgb(GREY))
    with pytest.raises(SonobreastError):
        decode(stored(Image.fromarray(GREY.astype(np.int32) * 70000), "tiff"))


def test_float_has_no_range() -> None:
    with pytest.raises(SonobreastError, match="no known range"):
        decode(stored(Image.fromarray(GREY.astype(np.float32)), "tiff"))


def test_cmyk() -> None:
    image = Image.fromarray(GREY).convert("RGB").convert("CMYK")
    np.testing.assert_array_equal(decode(stored(image, "tiff")), rgb(GREY))
    assert np.abs(decode(stored(image, "jpeg", quality=100)).astype(int) - rgb(GREY)).mean() < 3


def test_transparent_pixels_are_black() -> None:
    layer = np.dstack([rgb(GREY), np.full(GREY.shape, 255, np.uint8)])
    layer[:4, :5, 3] = 0
    expected = rgb(GREY)
    expected[:4, :5] = 0
    np.testing.assert_array_equal(decode(stored(Image.fromarray(layer))), expected)


def test_transparent_palette_entry_is_black() -> None:
    image = Image.fromarray(GREY).quantize(240)
    entry = int(np.asarray(image)[0, 0])
    found = decode(stored(image, "png", transparency=entry))
    assert (found[0, 0] == 0).all()
    assert (found[-1, -1] > 200).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    undo = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY, -1),
        7: GREY[::-1, ::-1].T,
        8: np.rot90(GREY),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(stored(Image.fromarray(GREY), exif=exif.tobytes())), rgb(undo))


def test_one_pixel() -> None:
    image = decode(stored(Image.fromarray(np.full((1, 1), 7, np.uint8))))
    assert image.shape == (1, 1, 3)
    for aspect in ("stretch", "pad"):
        assert (resize(image, Preprocess(size=32, aspect=aspect)) == 7).all()


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "tiff", "gif", "webp"])
@given(share=st.floats(0.0, 0.95))
@settings(max_examples=12, deadline=None)
def test_truncated_files_are_never_half_an_image(kind: str, share: float) -> None:
    whole = stored(Image.fromarray(speckle(0)[0]).convert("RGB"), kind)
    with pytest.raises(SonobreastError):
        decode(whole[: int(len(whole) * share)])


@given(noise=st.binary(max_size=300))
@settings(max_examples=25, deadline=None)
def test_noise_is_no_image(noise: bytes) -> None:
    with pytest.raises(SonobreastError, match="not a readable image"):
        decode(noise)


@pytest.mark.parametrize("side", [40, 60])  # Pillow warns of the first and refuses the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SonobreastError) as caught:
        decode(path)
    assert caught.value.file == str(path)


def test_path_and_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(GREY).save(path)
    np.testing.assert_array_equal(decode(path), decode(path.read_bytes()))


# Masks


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
def test_mask_modes(mode: str) -> None:
    lesion = speckle(3)[1]
    image = Image.fromarray(lesion.astype(np.uint8) * 255)
    np.testing.assert_array_equal(decode_mask(stored(image.convert(mode))), lesion)


def test_mask_of_ones_and_empty_mask() -> None:
    lesion = speckle(3)[1]
    np.testing.assert_array_equal(decode_mask(stored(Image.fromarray(lesion.astype(np.uint8)))), lesion)
    assert not decode_mask(stored(Image.fromarray(np.zeros((9, 9), np.uint8)))).any()


shapes = st.tuples(st.integers(20, 300), st.integers(20, 300))


@given(seed=st.integers(0, 10**6), shape=shapes, label=st.sampled_from(["benign", "malignant", "normal"]))
@settings(max_examples=20, deadline=None)
def test_speckle_is_never_a_mask(seed: int, shape: tuple[int, int], label: str) -> None:
    picture = speckle(seed, label, *shape)[0]
    assert not is_mask(rgb(picture))
    saturated = np.where(picture > 60, 255, picture)  # a scan with far too much gain
    assert not is_mask(rgb(saturated.astype(np.uint8)))


@given(
    seed=st.integers(0, 10**6), shape=shapes, value=st.integers(1, 255), label=st.sampled_from(["benign", "malignant"])
)
@settings(max_examples=20, deadline=None)
def test_binary_pictures_are_masks(seed: int, shape: tuple[int, int], value: int, label: str) -> None:
    assert is_mask(rgb(speckle(seed, label, *shape)[1].astype(np.uint8) * np.uint8(value)))
    assert is_mask(np.zeros((*shape, 3), np.uint8))


@given(
    seed=st.integers(0, 10**6),
    side=st.integers(200, 500),
    quality=st.integers(75, 95),
    label=st.sampled_from(["benign", "malignant"]),
)
@settings(max_examples=12, deadline=None)
def test_masks_through_jpeg_are_masks(seed: int, side: int, quality: int, label: str) -> None:
    lesion = speckle(seed, label, side, side)[1]
    assert is_mask(decode(stored(Image.fromarray(lesion.astype(np.uint8) * 255), "jpeg", quality=quality)))


# Resizing


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 40),
    grey=st.floats(0.0, 0.2),
    values=st.lists(st.integers(0, 255), min_size=1, max_size=5),
)
def test_some_rows_decide_as_all_of_them_do(seed: int, height: int, grey: float, values: list[int]) -> None:
    """The short way out is taken only where the whole picture would say the same (its rule, written out)."""
    rng = np.random.default_rng(seed)
    picture = rng.choice(np.array([0, 255], np.uint8), (height, 50))
    picture[rng.random(picture.shape) < grey] = 0
    where = rng.random(picture.shape) < grey
    picture[where] = rng.choice(np.array(values, np.uint8), int(where.sum()))
    share = np.bincount(picture.ravel(), minlength=256) / picture.size
    whole = share[0] > 0 if np.count_nonzero(share) <= 2 else share[224:].sum() > 0.001
    whole = whole and (np.count_nonzero(share) <= 2 or share[224:].sum() + share[:32].sum() > 0.98)
    assert is_mask(np.repeat(picture[..., None], 3, axis=2)) == whole


def test_nearest_takes_the_pixel_at_the_centre() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    rows = np.floor((np.arange(32) + 0.5) * 50 / 32).astype(int)
    columns = np.floor((np.arange(32) + 0.5) * 70 / 32).astype(int)
    found = resize(image, Preprocess(size=32, interpolation="nearest"))
    np.testing.assert_array_equal(found, image[rows][:, columns])


def test_area_is_the_mean_of_the_pixels_inside() -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
    means = image.reshape(32, 4, 32, 2, 3).mean((1, 3))
    found = resize(image, Preprocess(size=32, interpolation="area"))
    assert np.abs(found - means).max() <= 1.0


def test_bilinear_and_bicubic_keep_a_ramp() -> None:
    ramp = rgb(np.tile(np.linspace(20, 220, 128), (128, 1)).round().astype(np.uint8))
    expected = np.interp((np.arange(64) + 0.5) * 2 - 0.5, np.arange(128), ramp[0, :, 0])
    for name in ("bilinear", "bicubic"):
        found = resize(ramp, Preprocess(size=64, interpolation=name))
        assert np.abs(found[30, 2:-2, 0] - expected[2:-2]).max() <= 1.5, name


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("shape", [(61, 97), (500, 33), (1, 1), (1, 2), (10, 10)])
def test_a_grey_image_is_resized_as_one_with_a_tint_would_be(shape: tuple[int, int], interpolation: str) -> None:
    """One channel is resized instead of three; a single coloured pixel takes the other way."""
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (*shape, 1), dtype=np.uint8), 3, axis=2)
    settings = Preprocess(size=32, interpolation=interpolation)
    filters = {"nearest": 0, "bilinear": 2, "bicubic": 3, "area": 4}  # Pillow's numbers
    whole = np.asarray(Image.fromarray(grey).resize((32, 32), Image.Resampling(filters[interpolation])))
    np.testing.assert_array_equal(resize(grey, settings), whole)
    for channel in range(3):
        coloured = grey.copy()
        coloured[-1, -1, channel] ^= 255
        wanted = np.asarray(Image.fromarray(coloured).resize((32, 32), Image.Resampling(filters[interpolation])))
        np.testing.assert_array_equal(resize(coloured, settings), wanted)


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (1, 500), (500, 1), (64, 64)])
def test_padding_keeps_the_aspect(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    found = resize(image, Preprocess(size=64, aspect="pad"))
    assert found.shape == (64, 64, 3)
    shown = found[..., 0] > 0
    height, width = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    inner = len(height), len(width)
    scale_of = 64 / max(shape)
    assert inner == tuple(max(1, round(s * scale_of)) for s in shape)
    for line, side in ((height, inner[0]), (width, inner[1])):
        assert abs(line[0] - (64 - 1 - line[-1])) <= 1, "not in the middle"
        assert line[-1] - line[0] + 1 == side
    assert (found[shown] == 200).all()


# Scaling: training = serving


@pytest.mark.parametrize("scaling", ["unit", "symmetric", "weights"])
def test_scale_against_its_formula(scaling: str) -> None:
    mean, std = scaling_constants(scaling, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    found = scale(images, mean, std)
    assert found.shape == (2, 3, 5, 7)
    assert found.dtype == np.float32
    expected = (images.transpose(0, 3, 1, 2) / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    low, high = {"unit": (0, 1), "symmetric": (-1, 1), "weights": (-2.2, 2.7)}[scaling]
    assert low <= found.min()
    assert found.max() <= high
    np.testing.assert_array_equal(scale(images[0], mean, std), found[0])


@pytest.mark.parametrize("scaling", ["unit", "symmetric", "weights"])
def test_training_scale_is_the_serving_scale(scaling: str) -> None:
    images = make_images(5)
    recipe = tiny_recipe({"preprocess.scaling": scaling, "augment": {}})
    backbone = SimpleNamespace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    served = scale(images.pixels, *scaling_constants(scaling, backbone.mean, backbone.std))
    trained = network_input(images, np.arange(5), recipe, backbone, None)
    np.testing.assert_array_equal(trained.numpy(), served)
    assert recipe.augment == Augment()
    augmented = network_input(images, np.arange(5), recipe, backbone, 0)  # a view without any change
    torch.testing.assert_close(augmented, trained, atol=5e-5, rtol=0)
