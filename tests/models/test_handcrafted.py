"""Handcrafted features against values worked out by hand, and properties that they have by their definition."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.fake import make_images

from sonobreast.models import handcrafted
from sonobreast.models.handcrafted import SHAPE_NAMES, grey, names, shape, shapes, texture, textures


def scan(size: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.random((size // 8, size // 8)), np.ones((8, 8)))
    return (200 * smooth + 55 * rng.random((size, size))).astype(np.uint8)


def named(values: NDArray[np.float32], *, of_shape: bool = False) -> dict[str, float]:
    return dict(zip(SHAPE_NAMES if of_shape else names(), values.tolist(), strict=True))


def test_names_and_lengths() -> None:
    assert len(texture(scan())) == len(names()) == len(set(names())) == 11 + 36 + 28 + 144
    assert len(set(names(shape=True))) == len(names()) + len(SHAPE_NAMES)


@pytest.mark.parametrize("size", [32, 63, 224])
@pytest.mark.parametrize("value", [0, 7, 255])
def test_an_image_of_one_value_is_finite(size: int, value: int) -> None:
    found = texture(np.full((size, size), value, np.uint8))
    assert np.isfinite(found).all()
    assert named(found)["mean"] == pytest.approx(value / 255)
    for name in ("std", "skewness", "entropy", "range", "glcm_contrast_d1_mean", "glcm_entropy_d3_mean"):
        assert named(found)[name] == pytest.approx(0.0, abs=1e-12)


def test_first_order_by_hand() -> None:
    image = np.zeros((32, 32), np.uint8)
    image[:8] = 255  # a quarter is white: p = .25
    found = named(texture(image))
    assert found["mean"] == pytest.approx(0.25)
    assert found["std"] == pytest.approx(np.sqrt(0.1875))
    assert found["skewness"] == pytest.approx((1 - 0.5) / np.sqrt(0.1875))
    assert found["kurtosis"] == pytest.approx((1 - 6 * 0.1875) / 0.1875)
    assert found["entropy"] == pytest.approx(-(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75)))
    assert (found["p5"], found["p50"], found["p95"], found["range"]) == (0.0, 0.0, 1.0, 1.0)


def test_co_occurrence_by_hand() -> None:
    """Columns of two grey levels in turn: across, every neighbour differs by one level; along, none does."""
    image = np.tile(np.asarray([0, 8], np.uint8), (32, 16))
    found = named(texture(image))
    # contrast at 1 px: 0 deg 1, 45 deg 1, 90 deg 0, 135 deg 1
    assert found["glcm_contrast_d1_mean"] == pytest.approx(0.75)
    assert found["glcm_contrast_d1_range"] == pytest.approx(1.0)
    assert found["glcm_contrast_d3_mean"] == pytest.approx(0.25)  # 0 deg 1; the diagonals are 2 steps, 90 deg 0
    assert found["glcm_contrast_d5_mean"] == pytest.approx(0.25)  # the diagonals are 4 steps
    assert found["glcm_homogeneity_d1_mean"] == pytest.approx((3 * 0.5 + 1) / 4)
    assert found["glcm_entropy_d1_mean"] == pytest.approx(1.0)  # two pairs of levels, half each, in every direction
    assert found["glcm_correlation_d1_range"] == pytest.approx(2.0)
    assert found["glcm_correlation_d3_mean"] == pytest.approx(0.5)


def test_patterns_and_gradients_by_hand() -> None:
    flat = named(texture(np.full((64, 64), 90, np.uint8)))
    assert (flat["lbp8_8"], flat["lbp16_16"]) == (1.0, 1.0)  # no neighbour is darker
    ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    found = named(texture(ramp))
    cells = [(r, c) for r in range(4) for c in range(4)]
    assert all(found[f"hog_{r}_{c}_0"] > 0.99 for r, c in cells)  # brighter to the right: 0 deg
    turned = named(texture(np.ascontiguousarray(ramp.T)))
    assert all(turned[f"hog_{r}_{c}_4"] > 0.99 for r, c in cells)  # 90 deg lies in the fifth of nine


@pytest.mark.parametrize(
    "turn", [lambda i: i[:, ::-1], lambda i: i[::-1], np.rot90], ids=["mirror", "upside down", "turn"]
)
def test_what_does_not_change_with_a_turn(turn: object) -> None:
    image = scan()
    turned = np.ascontiguousarray(turn(image))  # type: ignore[operator]
    before, after = named(texture(image)), named(texture(turned))
    kept = [n for n in names() if not n.startswith(("hog", "lbp")) or n.startswith("lbp8")]
    np.testing.assert_allclose([after[n] for n in kept], [before[n] for n in kept], rtol=1e-4, atol=3e-3)
    assert any(abs(before[n] - after[n]) > 0.05 for n in names() if n.startswith("hog"))


def test_histograms_sum_to_one() -> None:
    found = named(texture(scan()))
    for prefix in ("lbp8_", "lbp16_"):
        assert sum(v for n, v in found.items() if n.startswith(prefix)) == pytest.approx(1.0, abs=1e-6)


def test_grey() -> None:
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(grey(np.repeat(values[:, None], 3, axis=1)), values)
    assert grey(np.asarray([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)).tolist() == [76, 149, 28]


def test_many_images_are_each_by_itself() -> None:
    images = make_images(5)
    steps: list[int] = []
    found = textures(images.pixels, threads=3, progress=steps.append)
    assert steps == [1] * 5
    for i in range(5):
        np.testing.assert_array_equal(found[i], texture(grey(images.pixels[i])))
    assert found.dtype == np.float32
    assert textures(images.pixels[:0]).shape == (0, len(names()))


# Shape


def ellipse(height: int, width: int, a: float, b: float, angle: float = 0.0) -> NDArray[np.bool_]:
    """Half-axes ``a`` along the columns and ``b`` along the rows, then turned."""
    y, x = np.mgrid[:height, :width]
    y, x = y - height / 2, x - width / 2
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.asarray((along / a) ** 2 + (across / b) ** 2 <= 1)


def test_shape_of_a_disc() -> None:
    found = named(shape(ellipse(200, 300, 60, 60)), of_shape=True)
    assert found["lesion"] == 1.0
    assert found["area"] == pytest.approx(np.pi * 60**2 / 60000, rel=0.01)
    assert found["perimeter"] == pytest.approx(2 * np.pi * 60 / 1000, rel=0.05)
    assert found["compactness"] == pytest.approx(1.0, abs=0.1)
    assert found["eccentricity"] < 0.1
    assert found["solidity"] > 0.97
    assert found["width_to_height"] == pytest.approx(1.0, abs=0.02)


def test_shape_of_an_ellipse() -> None:
    found = named(shape(ellipse(200, 300, 80, 40)), of_shape=True)
    assert found["eccentricity"] == pytest.approx(np.sqrt(1 - 0.25), abs=0.01)
    assert found["width_to_height"] == pytest.approx(2.0, abs=0.05)
    assert abs(found["orientation"]) == pytest.approx(np.pi / 2, abs=0.02)
    upright = named(shape(ellipse(200, 300, 80, 40).T), of_shape=True)
    assert upright["width_to_height"] == pytest.approx(0.5, abs=0.02)
    assert abs(upright["orientation"]) == pytest.approx(0.0, abs=0.02)


def test_shape_does_not_change_with_the_size_of_the_picture() -> None:
    small, large = shape(ellipse(100, 150, 30, 20)), shape(ellipse(300, 450, 90, 60))
    np.testing.assert_allclose(large, small, rtol=0.06, atol=0.03)


def test_spikes_are_seen() -> None:
    disc = ellipse(200, 200, 50, 50)
    spiky = disc.copy()
    spiky[98:102, 10:190] = spiky[10:190, 98:102] = True
    smooth, star = named(shape(disc), of_shape=True), named(shape(spiky), of_shape=True)
    assert star["solidity"] < 0.85 * smooth["solidity"]
    assert star["compactness"] < 0.7 * smooth["compactness"]


@pytest.mark.parametrize("points", [[(3, 4)], [(3, 2), (3, 3), (3, 4)], [(1, 1), (8, 8)]])
def test_shape_of_a_few_pixels_is_finite(points: list[tuple[int, int]]) -> None:
    mask = np.zeros((10, 10), bool)
    for p in points:
        mask[p] = True
    found = named(shape(mask), of_shape=True)
    assert np.isfinite(list(found.values())).all()
    assert found["area"] == pytest.approx(len(points) / 100)


def test_an_empty_mask_is_zeros() -> None:
    assert not shape(np.zeros((4, 5), bool)).any()
    masks = [np.zeros((4, 5), bool), np.ones((3, 3), bool)]
    assert shapes(masks.__getitem__, 2, threads=2)[:, 0].tolist() == [0.0, 1.0]


def test_a_mistake_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(handcrafted, "texture", broken)
    with pytest.raises(ZeroDivisionError):
        textures(make_images(3).pixels, threads=2)
