"""What was drawn is gone, what was not is untouched, and the fill is the smoothest one."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageDraw, ImageFont
from tests.data.test_marks import INK, LABELS, dim, plus, with_drawn

from sonobreast.config import Preprocess
from sonobreast.data.inpaint import fill, mark_pixels, without_marks
from sonobreast.data.manifest import Manifest
from sonobreast.data.marks import look
from sonobreast.data.preprocess import decode, prepare, resize
from sonobreast.data.store import VERSION, key_of, open_store
from sonobreast.errors import SonobreastError

WITHOUT = Preprocess(size=64, inpaint_marks=True)


def measured(grey: np.ndarray) -> np.ndarray:
    """Two calipers with numbers, a dotted line between them, and a line of text."""
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=11)

    def paint(draw: ImageDraw.ImageDraw) -> None:
        for x, y, number in ((90, 120, "1"), (200, 160, "2")):
            plus(x, y, 7, 2)(draw)
            draw.text((x + 10, y + 2), number, fill=(INK, INK, INK), font=small)
        for k in np.arange(12, 106, 5):
            draw.point((90 + k, 120 + round(k * 40 / 110)), fill=(INK, INK, INK))
        draw.text((30, 260), "LEFT BREAST", fill=(INK, INK, INK), font=font)

    return with_drawn(grey, paint)


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_marks_are_gone_and_the_rest_is_untouched(seed: int) -> None:
    grey = dim(seed)
    image = measured(grey)
    before = look(image)
    assert before.text
    assert before.calipers
    found = without_marks(image)
    after = look(found)
    assert not after.text
    assert not after.calipers
    drawn = (image != grey[..., None]).any(2)
    changed = (found != image).any(2)
    assert changed[drawn].mean() > 0.97, "nearly all of what was drawn"
    marked = mark_pixels(image)
    np.testing.assert_array_equal(found[~marked], image[~marked])
    assert marked.mean() < 0.06
    off = np.abs(found.astype(int) - grey[..., None])[drawn]
    assert off.mean() < 0.3 * np.abs(image.astype(int) - grey[..., None])[drawn].mean(), "near what lay below"


def test_dots_go_with_their_calipers_alone() -> None:
    grey = dim(4)
    image = measured(grey)
    dots = np.zeros(grey.shape, bool)
    for k in np.arange(12, 106, 5):
        dots[120 + round(k * 40 / 110), 90 + k] = True
    assert mark_pixels(image)[dots].mean() > 0.9
    plain = np.where(dots[..., None], INK, grey[..., None].repeat(3, axis=2)).astype(np.uint8)
    assert not mark_pixels(plain)[dots].any()


@pytest.mark.parametrize("seed", [1, 2, 7])
def test_a_picture_without_marks_is_the_very_same(seed: int) -> None:
    for image in (dim(seed), np.repeat(dim(seed)[..., None], 3, axis=2)):
        assert without_marks(image) is image


def test_coloured_ink() -> None:
    image = with_drawn(
        dim(3), lambda d: d.text((40, 240), "RIGHT", fill=(240, 230, 40), font=ImageFont.load_default(20))
    )
    found = without_marks(image)
    assert not look(found).text
    spread = found.astype(int).max(2) - found.astype(int).min(2)
    assert spread.max() < 60, "nothing of the yellow is left"


def test_the_fill_is_harmonic() -> None:
    """A plane is its own smoothest continuation, in each channel; inside, each pixel is the mean of its neighbours."""
    y, x = np.mgrid[:30, :40]
    plane = np.stack([2 * x + 3 * y, 4 * x + 10, 200 - 5 * y], axis=2).astype(np.uint8)
    marked = np.hypot(y - 15, x - 18) < 8
    spoiled = np.where(marked[..., None], 255, plane).astype(np.uint8)
    np.testing.assert_array_equal(fill(spoiled, marked), plane)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 20)).astype(np.uint8)
    hole = np.zeros((20, 20), bool)
    hole[0:6, 4:12] = True  # at the edge, across which nothing flows
    found = fill(noise, hole).astype(float)
    padded = np.pad(found, 1, mode="edge")
    mean = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
    assert np.abs(mean - found)[hole].max() <= 1.0
    np.testing.assert_array_equal(found[~hole], noise[~hole])


def test_settings_decide_and_masks_are_not_touched() -> None:
    image = measured(dim(0))
    np.testing.assert_array_equal(prepare(image, Preprocess(size=64)), resize(image, Preprocess(size=64)))
    np.testing.assert_array_equal(prepare(image, WITHOUT), resize(without_marks(image), Preprocess(size=64)))
    assert not np.array_equal(prepare(image, WITHOUT), resize(image, WITHOUT))


def test_the_store_keeps_both_apart(tmp_path: Path) -> None:
    image = measured(dim(0))
    file = tmp_path / "a.png"
    Image.fromarray(image).save(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    plain = Preprocess(size=64)
    old = [VERSION, PIL.__version__, 64, "bilinear", "stretch"]
    assert key_of([digest], plain) == hashlib.sha256(json.dumps([old, [digest]]).encode()).hexdigest()[:32]
    assert key_of([digest], WITHOUT) != key_of([digest], plain)
    for settings in (plain, WITHOUT, plain, WITHOUT):
        pixels = open_store([file], [digest], settings, folder=tmp_path / "store")
        np.testing.assert_array_equal(np.asarray(pixels)[0], prepare(image, settings))
    assert len([p for p in (tmp_path / "store").iterdir() if len(p.name) == 32]) == 2


def test_without_scipy_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(SonobreastError, match="needs SciPy"):
        prepare(dim(0)[..., None].repeat(3, axis=2), WITHOUT)


def test_busi(real_busi: Manifest) -> None:
    """Of 40 images judged by eye: no text and no caliper is found any more, and clean ones hardly change."""
    with LABELS.open(encoding="utf-8", newline="") as stream:
        rows = [r for r in csv.DictReader(line for line in stream if not line.startswith("#")) if r["calipers"]][:40]
    left, changed = [], []
    for row in rows:
        image = decode(real_busi.root / row["image"])
        found = without_marks(image)
        marks = look(found)
        left += [row["image"]] if marks.text or marks.calipers else []
        if row["text"] == row["calipers"] == row["arrows"] == "0":
            changed.append(float((found != image).any(2).mean()))
    assert left == []
    assert len(changed) >= 15
    assert max(changed) < 0.04
    assert np.median(changed) < 0.001, "the scanner's logo at most"
