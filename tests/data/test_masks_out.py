"""True masks joined, predicted masks back at the image's size, and never anywhere but in their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.fake import save_mask

from sonobreast.config import Preprocess
from sonobreast.data.manifest import Manifest
from sonobreast.data.masks_out import predicted_mask_file, to_original_size, true_mask, write_mask
from sonobreast.data.preprocess import decode_mask, resize
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.segmentation import dice
from sonobreast.records import Case


def case(label: str = "benign", masks: tuple[str, ...] = (), width: int = 9, height: int = 6) -> Case:
    return Case(
        image="a.png", label=label, group="a", masks=masks, width=width, height=height, sha256="0" * 64, source="test"
    )


def pixels(*where: tuple[int, int], shape: tuple[int, int] = (6, 9)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    for place in where:
        mask[place] = True
    return mask


# ---- the true mask


def test_several_masks_are_joined(tmp_path: Path) -> None:
    save_mask(tmp_path / "one.png", pixels((1, 2), (1, 3)))
    save_mask(tmp_path / "two.png", pixels((1, 3), (4, 7)), "RGBA")
    found = true_mask(tmp_path, case(masks=("one.png", "two.png")))
    assert found is not None
    np.testing.assert_array_equal(found, pixels((1, 2), (1, 3), (4, 7)))


@pytest.mark.parametrize(
    ("label", "has_mask", "known"),
    [
        ("normal", False, True),
        ("Normal ", False, True),
        ("normal", True, True),
        ("benign", False, False),
        ("malignant", True, False),  # a lesion that nobody outlined
        ("scar", True, True),
        ("scar", False, False),
    ],
)
def test_an_empty_mask_is_known_only_where_no_lesion_is_expected(
    label: str, has_mask: bool, known: bool, tmp_path: Path
) -> None:
    save_mask(tmp_path / "empty.png", pixels())
    found = true_mask(tmp_path, case(label, ("empty.png",) if has_mask else ()))
    assert (found is not None) == known
    assert found is None or (found.shape == (6, 9) and not found.any())


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    save_mask(tmp_path / "large.png", pixels((0, 0), shape=(9, 6)))
    with pytest.raises(SonobreastError, match="6x9 px, its image 9x6") as caught:
        true_mask(tmp_path, case(masks=("large.png",)))
    assert "large.png" in str(caught.value)


def test_true_masks_of_busi(real_busi: Manifest) -> None:
    """798 masks of 780 images; 17 images have several; all but the normal ones show a lesion."""
    some = [c for c in real_busi.cases if len(c.masks) > 1] + list(real_busi.cases[::60])
    for one in some:
        mask = true_mask(real_busi.root, one)
        assert mask is not None
        assert mask.shape == (one.height, one.width)
        assert mask.any() == (one.label != "normal")
        parts = [int(decode_mask(real_busi.root / m).sum()) for m in one.masks]
        assert max(parts) <= mask.sum() <= sum(parts)


# ---- where a predicted mask goes


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("benign/benign (1).png", "benign/benign (1).png"),
        ("scans/p.17/a.b.jpg", "scans/p.17/a.b.png"),
        ("plain", "plain.png"),
        ("/archive/x.png", "archive/x.png"),
        ("../beside/x.bmp", "_/beside/x.png"),
        ("a/../../x.png", "a/_/_/x.png"),
    ],
)
def test_a_predicted_mask_stays_in_its_folder(image: str, expected: str, tmp_path: Path) -> None:
    file = predicted_mask_file(tmp_path, image)
    assert file == tmp_path / expected
    assert file.resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 8), (300, 401)])
def test_what_is_written_is_read(shape: tuple[int, int], tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.3
    mask.flat[0] = True
    file = tmp_path / "deep" / "er" / "mask.png"
    for given in (mask, np.asfortranarray(mask)):
        write_mask(file, given)
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("1", shape[::-1])
        np.testing.assert_array_equal(decode_mask(file), mask)
    assert [p.name for p in file.parent.iterdir()] == ["mask.png"]
    write_mask(file, np.zeros(shape, bool))
    assert not decode_mask(file).any()


@pytest.mark.parametrize("mask", [np.zeros((4, 4)), np.zeros((1, 4, 4), bool), np.zeros((0, 4), bool)])
def test_what_is_no_mask_is_not_written(mask: Any, tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="no mask"):
        write_mask(tmp_path / "mask.png", mask)
    assert not list(tmp_path.iterdir())


# ---- back to the image's size

SIZES = [(560, 470), (190, 335), (1050, 600), (224, 224), (300, 301)]
Aspect = Literal["stretch", "pad"]


@pytest.mark.parametrize("aspect", ["stretch", "pad"])
@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("where", [(0.5, 0.5), (0.22, 0.7)])
def test_a_disc_comes_back_where_it_was(width: int, height: int, where: tuple[float, float], aspect: Aspect) -> None:
    y, x = np.mgrid[:height, :width]
    disc = np.hypot(y - where[0] * height, x - where[1] * width) < 0.2 * min(width, height)
    picture = np.repeat((disc * np.uint8(255))[..., None], 3, axis=2)
    small = resize(picture, Preprocess(size=224, aspect=aspect, interpolation="bilinear"))[..., 0] / np.float32(255)
    back = to_original_size(small.astype(np.float32), width, height, aspect)
    assert back.shape == (height, width)
    assert back.dtype == np.float32
    assert 0 <= back.min() <= back.max() <= 1
    assert dice(back > 0.5, disc) > 0.98


@pytest.mark.parametrize("aspect", ["stretch", "pad"])
@pytest.mark.parametrize(("width", "height"), [*SIZES, (17, 5), (5, 170), (1, 1)])
def test_a_constant_map_stays_constant(width: int, height: int, aspect: Aspect) -> None:
    back = to_original_size(np.full((32, 32), 0.7, np.float32), width, height, aspect)
    np.testing.assert_array_equal(back, np.full((height, width), np.float32(0.7)))


@pytest.mark.parametrize(("width", "height"), [(90, 40), (40, 90), (9, 4), (400, 300)])
def test_the_padding_is_cut_off(width: int, height: int) -> None:
    """Whatever the network says of the padding, it does not reach the image."""
    white = np.full((height, width, 3), 255, np.uint8)
    inside = resize(white, Preprocess(size=32, aspect="pad", interpolation="bilinear"))[..., 0] > 0
    map_ = np.where(inside, 0.25, 1.0).astype(np.float32)
    np.testing.assert_array_equal(to_original_size(map_, width, height, "pad"), np.full((height, width), 0.25))


@pytest.mark.parametrize(("shape", "width"), [((4, 5), 9), ((4, 4, 1), 9), ((4, 4), 0)])
def test_what_is_no_square_map_is_refused(shape: tuple[int, ...], width: int) -> None:
    with pytest.raises(SonobreastError, match="cannot be brought"):
        to_original_size(np.zeros(shape, np.float32), width, 9, "stretch")
