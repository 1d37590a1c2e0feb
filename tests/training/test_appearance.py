"""Changes of the grey levels are the ones that the docstrings state, and a strength of 0 is no change at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests.fake import speckle

from sonobreast.config import Augment
from sonobreast.training.appearance import RANGE, Look, change_look, grains
from sonobreast.training.augment import draw_views, warp

NAMES = [f"benign/benign ({i}).png" for i in range(400)]
ALL = Augment(gain=6, depth_attenuation=9, contrast=0.3, speckle=3, blur=0.01, aspect=0.3)


def pictures(n: int = 2, side: int = 48) -> torch.Tensor:
    arrays = [speckle(i, "benign", side, side)[0] / 255.0 for i in range(n)]
    return torch.tensor(np.stack(arrays), dtype=torch.float32)[:, None].repeat(1, 3, 1, 1)


def look(n: int = 1, **values: float) -> Look:
    plain = {"gain": 0.0, "tilt": 0.0, "bow": 0.0, "exponent": 1.0, "blur": 0.0, "speckle": 0.0, **values}
    return Look(**{k: torch.full((n,), v) for k, v in plain.items()}, noise=None)


def rows(n: int, side: int) -> torch.Tensor:
    y = (torch.arange(side) + 0.5) / side * 2 - 1
    return y[None, None, :, None].expand(n, 1, side, side)


@pytest.mark.parametrize("fill", ["nearest", "reflect", "constant"])
def test_settings_of_0_change_no_bit(fill: str) -> None:
    """Golden values of this call, printed by the version that knew the first nine draws only."""
    settings = Augment(rotation=15, zoom=0.1, shift=0.1, horizontal_flip=True, brightness=0.2, fill=fill)
    views = draw_views(NAMES[:2], 3, 7, settings)
    golden = [
        [-0.9176478385925293, 0.22261804342269897, 0.13906043767929077],
        [0.22656011581420898, 0.9016810655593872, 0.14736270904541016],
    ]
    assert views.look is None
    np.testing.assert_array_equal(views.matrix[0].numpy(), np.float32(golden))
    np.testing.assert_array_equal(views.gain.numpy(), np.float32([1.1144981384277344, 1.1556763648986816]))
    zeroes = settings.model_copy(update={"lesion_window": 0.3})
    images = pictures()
    assert torch.equal(warp(images, views, settings), warp(images, draw_views(NAMES[:2], 3, 7, zeroes), zeroes))


def test_what_was_drawn_before_stays() -> None:
    old = Augment(rotation=15, zoom=0.1, shift=0.1, horizontal_flip=True, brightness=0.2)
    more = old.model_copy(update={"gain": 6.0, "depth_attenuation": 9.0, "contrast": 0.3, "speckle": 3.0, "blur": 0.01})
    one, two = draw_views(NAMES[:20], 3, 7, old), draw_views(NAMES[:20], 3, 7, more)
    assert torch.equal(one.matrix, two.matrix)
    assert torch.equal(one.gain, two.gain)


def test_a_view_depends_on_name_number_and_seed_alone() -> None:
    images = pictures(6)
    whole = warp(images, draw_views(NAMES[:6], 3, 0, ALL), ALL)
    turned = warp(images.flip(0), draw_views(NAMES[:6][::-1], 3, 0, ALL), ALL)
    torch.testing.assert_close(whole, turned.flip(0), rtol=0, atol=1e-6)
    for i in range(6):
        alone = warp(images[i : i + 1], draw_views(NAMES[i : i + 1], 3, 0, ALL), ALL)
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-6)
    for view, seed in ((4, 0), (3, 1)):
        assert not torch.isclose(warp(images, draw_views(NAMES[:6], view, seed, ALL), ALL), whole).all(3).any()


def test_ranges() -> None:
    found = draw_views(NAMES, 0, 0, ALL).look
    assert found is not None
    for values, low, high in (
        (found.gain, -6.0, 6.0),
        (found.tilt, -4.5, 4.5),
        (found.bow, -4.5, 4.5),
        (found.exponent.log(), -np.log(1.3), np.log(1.3)),
        (found.blur, 0.0, 0.01),
        (found.speckle, 0.0, 3.0),
    ):
        width = high - low
        assert low - 1e-5 <= float(values.min()) < low + 0.03 * width
        assert high + 1e-5 >= float(values.max()) > high - 0.03 * width
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.08 * width)
    drawn = torch.stack([found.gain, found.tilt, found.bow, found.exponent, found.blur, found.speckle]).numpy()
    assert np.abs(np.corrcoef(drawn) - np.eye(6)).max() < 0.2


def test_gain_adds_decibels_and_leaves_black_black() -> None:
    grey = torch.tensor([0.0, 0.05, 0.1, 0.5, 0.9, 1.0]).view(1, 1, 1, 6).expand(1, 3, 2, 6)
    found = change_look(grey, look(gain=6.0), rows(1, 2)[..., :1], Augment(gain=6))[0, 0, 0]
    step = 6.0 / RANGE
    torch.testing.assert_close(found, torch.tensor([0.0, 0.05 + step / 2, 0.1 + step, 0.5 + step, 1.0, 1.0]))


def test_attenuation_is_smooth_along_the_depth_of_the_picture() -> None:
    side = 32
    images, settings = torch.full((1, 3, side, side), 0.5), Augment(depth_attenuation=12)
    tilted = change_look(images, look(tilt=6.0), rows(1, side), settings)[0, 0]
    np.testing.assert_allclose(tilted[:, 3].numpy(), 0.5 + rows(1, side)[0, 0, :, 0].numpy() / 10, atol=1e-6)
    bowed = change_look(images, look(bow=-6.0), rows(1, side), settings)[0, 0]
    assert float(bowed[0, 0]) < 0.42 < 0.54 < float(bowed[side // 2, 0])
    assert float(bowed.mean()) == pytest.approx(0.5, abs=1e-3)
    assert (tilted.std(1) < 1e-7).all(), "the same from side to side"


def test_depth_is_that_of_the_picture_and_not_of_the_view() -> None:
    """Turned upside down, the change turns with the picture."""
    settings = Augment(vertical_flip=True, depth_attenuation=12)
    images = torch.full((20, 3, 16, 16), 0.5)
    views = draw_views(NAMES[:20], 0, 0, settings)
    turned = views.matrix[:, 1, 1] < 0
    found = warp(images, views, settings)
    upright = views.matrix.clone()
    upright[:, 1, 1] = 1.0
    straight = warp(images, replace(views, matrix=upright), settings)
    assert 3 < int(turned.sum()) < 17
    torch.testing.assert_close(found[turned], straight[turned].flip(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[~turned], straight[~turned])
    assert float((found[turned] - straight[turned]).abs().max()) > 0.01


def test_contrast_is_a_power_of_the_grey_value() -> None:
    images = pictures(1, 16)
    found = change_look(images, look(exponent=1.3), rows(1, 16), Augment(contrast=0.5))
    torch.testing.assert_close(found, images**1.3)


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_blur_is_that_of_scipy(sigma: float) -> None:
    images = pictures(3, 40)
    drawn = look(3, blur=sigma / 40)
    found = change_look(images, drawn, rows(3, 40), Augment(blur=sigma / 40))
    radius = int(np.ceil(3 * sigma))
    expected = ndimage.gaussian_filter(
        images.numpy(), (0, 0, sigma, sigma), mode="nearest", radius=(0, 0, radius, radius)
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_blur_of_0_in_a_batch_with_others() -> None:
    images = pictures(2, 24)
    drawn = replace(look(2), blur=torch.tensor([0.0, 0.04]))
    found = change_look(images, drawn, rows(2, 24), Augment(blur=0.05))
    torch.testing.assert_close(found[0], images[0], rtol=0, atol=1e-6)
    assert float((found[1] - images[1]).abs().max()) > 0.05


@pytest.mark.parametrize("side", [96, 224])
def test_speckle_has_its_strength_and_its_grain(side: int) -> None:
    images, settings = torch.full((8, 1, side, side), 0.5), Augment(speckle=3)
    views = draw_views(NAMES[:8], 0, 0, settings)
    found = (warp(images, views, settings) - 0.5) * RANGE  # decibels
    assert views.look is not None
    near = found.std((1, 2, 3)) / views.look.speckle
    assert ((near > 0.75) & (near < 1.05)).all()
    noise = found[0, 0].numpy() - float(found[0].mean())
    across, down = ((noise[:, 1:] * noise[:, :-1]).mean(), (noise[1:] * noise[:-1]).mean())
    variance = (noise**2).mean()
    assert across > down > 0.3 * variance, "wider than high, and more than a pixel"
    assert abs((noise[:, 12:] * noise[:, :-12]).mean()) < 0.1 * variance
    assert np.abs(np.corrcoef(found[:, 0].flatten(1).numpy()) - np.eye(8)).max() < 0.1, "each image its own"


def test_grains_of_white_noise_keep_its_variance() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 1, 160, 160), dtype=np.float32))
    assert float(grains(noise, 160, 160).var()) == pytest.approx(1.0, abs=0.05)


def test_values_stay_in_range() -> None:
    settings = Augment(gain=30, depth_attenuation=30, contrast=2, speckle=15, blur=0.05, aspect=2, brightness=1)
    found = warp(pictures(20), draw_views(NAMES[:20], 0, 0, settings), settings)
    assert torch.isfinite(found).all()
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0


def test_aspect_changes_the_ratio_and_not_the_area() -> None:
    matrix = draw_views(NAMES, 0, 0, Augment(aspect=0.5)).matrix.double()
    ratio = matrix[:, 0, 0] / matrix[:, 1, 1]
    torch.testing.assert_close(matrix[:, 0, 0] * matrix[:, 1, 1], torch.ones(400).double(), rtol=1e-6, atol=0)
    assert 1 / 1.5 <= float(ratio.min()) < 0.69
    assert 1.46 < float(ratio.max()) <= 1.5
    assert not matrix[:, 0, 1].any()


def test_a_mask_goes_where_its_image_goes_and_is_not_tinted() -> None:
    geometry = ALL.model_copy(update={"rotation": 10.0, "brightness": 0.3}).geometry()
    assert geometry == Augment(rotation=10, aspect=0.3)
    full = ALL.model_copy(update={"rotation": 10.0})
    mask = torch.zeros(5, 1, 32, 32)
    mask[..., 8:20, 10:28] = 1.0
    views = draw_views(NAMES[:5], 1, 0, geometry)
    assert torch.equal(views.matrix, draw_views(NAMES[:5], 1, 0, full).matrix)
    assert views.look is None
    assert float(warp(mask, views, geometry).max()) == pytest.approx(1.0)
