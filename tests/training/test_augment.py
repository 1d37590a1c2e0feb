"""Views depend on name, number and seed alone, and are the changes that the settings say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests.fake import speckle

from sonobreast.config import Augment
from sonobreast.training.augment import Views, draw_views, warp

NAMES = [f"benign/benign ({i}).png" for i in range(400)]
PAPER = Augment(rotation=15, zoom=0.1, shift=0.1, horizontal_flip=True, fill="nearest")


def pictures(n: int = 2, side: int = 48) -> torch.Tensor:
    arrays = [speckle(i, "benign", side, side)[0] / 255.0 for i in range(n)]
    return torch.tensor(np.stack(arrays), dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)


def view(matrix: list[list[float]], n: int = 1, gain: float = 1.0) -> Views:
    return Views(torch.tensor([matrix] * n, dtype=torch.float32), torch.full((n,), gain))


def parts(views: Views) -> dict[str, np.ndarray]:
    """Angle (degrees), zoom and flip of each axis, and shift (share of the side), taken out of the matrices."""
    m = views.matrix.double().numpy()
    zoom = np.linalg.norm(m[:, :, :2], axis=1)
    flipped = np.linalg.det(m[:, :, :2]) < 0
    sign = np.where(flipped, -1.0, 1.0)  # of the first axis, where only horizontal flips are drawn
    angle = np.rad2deg(np.arctan2(m[:, 1, 0] * sign, m[:, 0, 0] * sign))
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    moved = np.stack([c * m[:, 0, 2] + s * m[:, 1, 2], -s * m[:, 0, 2] + c * m[:, 1, 2]], axis=1) / 2.0
    return {"angle": angle, "zoom": zoom, "flipped": flipped, "shift": moved}


@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
def test_all_zero_is_the_identity(fill: str) -> None:
    settings = Augment(fill=fill)
    images = pictures(3)
    views = draw_views(NAMES[:3], 5, 1, settings)
    torch.testing.assert_close(warp(images, views, settings), images, atol=1e-5, rtol=0)
    assert (views.gain == 1).all()


def test_a_view_depends_on_name_number_and_seed_alone() -> None:
    whole = draw_views(NAMES[:10], 3, 0, PAPER)
    turned = draw_views(NAMES[:10][::-1], 3, 0, PAPER)
    assert torch.equal(whole.matrix, turned.matrix.flip(0))
    alone = draw_views(NAMES[4:5], 3, 0, PAPER)
    assert torch.equal(whole.matrix[4:5], alone.matrix)
    for other in (
        draw_views(NAMES[:10], 4, 0, PAPER),
        draw_views(NAMES[:10], 3, 1, PAPER),
        draw_views(NAMES[10:20], 3, 0, PAPER),
    ):
        assert not torch.isclose(other.matrix, whole.matrix).all(dim=2).all(dim=1).any()
    torch.manual_seed(99)
    np.random.default_rng().random()
    assert torch.equal(draw_views(NAMES[:10], 3, 0, PAPER).matrix, whole.matrix)


def test_a_batch_is_its_images() -> None:
    images = pictures(4)
    views = draw_views(NAMES[:4], 0, 0, PAPER)
    whole = warp(images, views, PAPER)
    for i in range(4):
        alone = warp(images[i : i + 1], Views(views.matrix[i : i + 1], views.gain[i : i + 1]), PAPER)
        torch.testing.assert_close(alone[0], whole[i], atol=1e-6, rtol=0)


def test_ranges_of_the_paper() -> None:
    found = parts(draw_views(NAMES, 0, 0, PAPER))
    assert np.abs(found["angle"]).max() <= 15.0 + 1e-4
    assert np.abs(found["angle"]).max() > 14.0
    assert abs(found["angle"].mean()) < 1.5
    assert found["zoom"].min() >= 0.9 - 1e-5
    assert found["zoom"].max() <= 1.1 + 1e-5
    assert found["zoom"].max() - found["zoom"].min() > 0.19
    assert np.abs(found["shift"]).max() <= 0.1 + 1e-5
    assert (np.abs(found["shift"]).max(axis=0) > 0.095).all(), "both axes"
    assert np.corrcoef(found["shift"].T)[0, 1] == pytest.approx(0, abs=0.15)
    assert 0.4 < found["flipped"].mean() < 0.6


def test_settings_are_independent() -> None:
    alone = parts(draw_views(NAMES[:50], 0, 0, Augment(rotation=15)))
    np.testing.assert_allclose(alone["zoom"], 1.0, atol=1e-6)
    np.testing.assert_allclose(alone["shift"], 0.0, atol=1e-6)
    assert not alone["flipped"].any()
    both = parts(draw_views(NAMES[:50], 0, 0, PAPER))
    np.testing.assert_allclose(alone["angle"], both["angle"], atol=1e-4)


def test_flips() -> None:
    images = pictures(20)
    for settings, axis in ((Augment(horizontal_flip=True), 3), (Augment(vertical_flip=True), 2)):
        views = draw_views(NAMES[:20], 0, 0, settings)
        found = warp(images, views, settings)
        mirrored = views.matrix[:, 3 - axis, 3 - axis] < 0
        assert 3 < int(mirrored.sum()) < 17
        torch.testing.assert_close(found[mirrored], images[mirrored].flip(axis), atol=1e-5, rtol=0)
        torch.testing.assert_close(found[~mirrored], images[~mirrored], atol=1e-5, rtol=0)


def test_shift_by_whole_pixels_and_what_fills() -> None:
    image = pictures(1, 40)
    views = view([[1.0, 0.0, 2.0 * 4 / 40], [0.0, 1.0, 0.0]])  # four pixels to the right in the input
    left = image[..., 4:]
    edge = {
        "nearest": image[..., -1:].expand(-1, -1, -1, 4),
        "reflect": image[..., -4:].flip(3),
        "constant": torch.zeros(1, 3, 40, 4),
    }
    for fill, right in edge.items():
        found = warp(image, views, Augment(fill=fill))
        torch.testing.assert_close(found, torch.cat([left, right], dim=3), atol=1e-5, rtol=0, msg=fill)


@pytest.mark.parametrize("degrees", [-15.0, 7.5, 90.0])
def test_rotation_is_that_of_scipy(degrees: float) -> None:
    image = pictures(1, 48)
    angle = np.deg2rad(degrees)
    c, s = float(np.cos(angle)), float(np.sin(angle))
    found = warp(image, view([[c, -s, 0.0], [s, c, 0.0]]), Augment(rotation=90, fill="nearest"))[0, 0].numpy()
    middle = np.full(2, 23.5)
    matrix = np.array([[c, s], [-s, c]])  # the same in (row, column)
    expected = ndimage.affine_transform(
        image[0, 0].numpy(), matrix, middle - matrix @ middle, order=1, mode="nearest", output=np.float64
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_zoom_shows_more_above_one() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[..., 10:30, 10:30] = 1.0
    larger = warp(image, view([[1.1, 0.0, 0.0], [0.0, 1.0, 0.0]]), PAPER)[0, 0]
    assert float(larger[20].sum()) == pytest.approx(20 / 1.1, abs=0.3)
    assert float(larger[:, 20].sum()) == pytest.approx(20, abs=1e-3)


def test_brightness() -> None:
    settings = Augment(brightness=0.2)
    images = pictures(50, 8)
    views = draw_views(NAMES[:50], 0, 0, settings)
    assert 0.8 <= float(views.gain.min()) < 0.85
    assert 1.15 < float(views.gain.max()) <= 1.2
    found = warp(images, views, settings)
    torch.testing.assert_close(found, (images * views.gain[:, None, None, None]).clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
def test_values_stay_in_range(fill: str) -> None:
    settings = Augment(rotation=180, zoom=0.9, shift=0.9, shear=60, brightness=1.0, fill=fill)
    found = warp(pictures(20), draw_views(NAMES[:20], 0, 0, settings), settings)
    assert torch.isfinite(found).all()
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0
