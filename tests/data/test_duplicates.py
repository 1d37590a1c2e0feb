"""Copies are found whatever was done to them, unrelated pictures are left alone; BUSI's known copies are found."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from sonobreast.data.duplicates import Pair, find_pairs, groups
from sonobreast.data.keypoints import MIRROR, describe
from sonobreast.errors import SonobreastError

KINDS = ("shift", "crop", "rescale", "stretch", "mirror", "gamma", "gain", "overlay", "jpeg", "all")


def texture(seed: int, height: int = 330, width: int = 420) -> np.ndarray:
    """Speckle with layers and a dark lesion, (H, W) uint8."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, height, width))
    envelope = np.hypot(*(ndimage.gaussian_filter(n, (1.5, 2.8)) for n in noise))
    y, x = np.mgrid[0:height, 0:width]
    echo = sum(rng.uniform(-0.8, 0.8) * (y > rng.uniform(0, height) + 9 * np.sin(x / 40 + k)) for k in range(5))
    lesion = ((x - rng.uniform(80, width - 80)) / 60) ** 2 + ((y - rng.uniform(60, height - 60)) / 35) ** 2 < 1
    bright = 110 + 40 * (echo - 1.5 * lesion + np.log(envelope / envelope.mean() + 0.05))
    return np.clip(bright, 0, 255).astype(np.uint8)


def middle(whole: np.ndarray) -> np.ndarray:
    """The picture proper: scenes are larger, so that a shift brings in something real."""
    return whole[30:300, 40:380]


def changed(whole: np.ndarray, kind: str) -> np.ndarray:
    picture = middle(whole)
    if kind == "shift":
        return whole[3:273, 74:414]  # 10 % each way
    if kind in ("crop", "all"):
        picture = picture[10:235, 60:340]  # 83 % of the sides
    image = Image.fromarray(picture)
    if kind in ("rescale", "all"):
        image = image.resize((round(image.width * 1.4), round(image.height * 1.4)), Image.Resampling.BICUBIC)
    if kind == "stretch":
        image = image.resize((224, 224))
    if kind in ("mirror", "all"):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind in ("gamma", "all"):
        image = image.point([round(255 * (v / 255) ** 1.5) for v in range(256)])
    if kind == "gain":
        image = image.point([min(255, round(v * 1.4) + 15) for v in range(256)])
    if kind in ("overlay", "all"):
        pen = ImageDraw.Draw(image)
        pen.text((20, 200), "RT BREAST 3 OCL", fill=255, font_size=24)
        for x, y in ((60, 60), (200, 150), (130, 90)):
            pen.line((x - 8, y, x + 8, y), fill=255, width=3)
            pen.line((x, y - 8, x, y + 8), fill=255, width=3)
    if kind == "jpeg":
        image.save(coded := io.BytesIO(), "JPEG", quality=50)
        image = Image.open(coded)
    return np.asarray(image)


@pytest.fixture(scope="module")
def planted() -> tuple[list[np.ndarray], list[Pair]]:
    """One original and its copy for every kind, then ten pictures without any."""
    scenes = [texture(seed) for seed in range(len(KINDS) + 10)]
    images = [middle(s) for s in scenes] + [changed(scenes[i], kind) for i, kind in enumerate(KINDS)]
    return images, find_pairs(images)


@pytest.mark.parametrize("kind", KINDS)
def test_finds_each_change(planted: tuple[list[np.ndarray], list[Pair]], kind: str) -> None:
    _, pairs = planted
    found = [p for p in pairs if p.a == KINDS.index(kind)]
    assert [p.b for p in found] == [len(KINDS) + 10 + KINDS.index(kind)]
    assert found[0].kind == "near-duplicate"
    assert found[0].mirrored == (kind in ("mirror", "all"))


def test_pairs_nothing_else(planted: tuple[list[np.ndarray], list[Pair]]) -> None:
    assert len(planted[1]) == len(KINDS)


def test_tells_the_transform(planted: tuple[list[np.ndarray], list[Pair]]) -> None:
    by_kind = {KINDS[p.a]: p for p in planted[1]}
    shift, crop, rescale = by_kind["shift"], by_kind["crop"], by_kind["rescale"]
    assert (shift.scale_x, shift.dx, shift.dy) == pytest.approx((1, -34, 27), abs=1.5)
    assert (crop.scale_x, crop.dx, crop.dy) == pytest.approx((1, -60, -10), abs=1.5)
    assert rescale.scale_x == pytest.approx(1.4, abs=0.02)
    assert "scale 1.40" in rescale.remark
    stretch = by_kind["stretch"]
    assert (stretch.scale_x, stretch.scale_y) == pytest.approx((224 / 340, 224 / 270), abs=0.02)
    mirror = by_kind["mirror"]
    assert (mirror.scale_x, mirror.dx, mirror.dy) == pytest.approx((1, 0, 0), abs=1.5)
    assert "mirrored" in mirror.remark


def test_order_does_not_matter(planted: tuple[list[np.ndarray], list[Pair]]) -> None:
    images, pairs = planted
    order = np.random.default_rng(1).permutation(len(images))
    again = find_pairs([images[i] for i in order])
    place = np.argsort(order)  # where each image went
    wanted = {(*sorted((int(place[p.a]), int(place[p.b]))), p.score, p.mirrored) for p in pairs}
    assert {(p.a, p.b, p.score, p.mirrored) for p in again} == wanted


def test_transform_is_inverted_when_the_order_is(planted: tuple[list[np.ndarray], list[Pair]]) -> None:
    images, pairs = planted
    for there in pairs:
        (back,) = find_pairs([images[there.b], images[there.a]])
        for x in (20.0, 200.0):
            # To the copy and back is where it began; a mirrored x is counted from the right edge.
            at = images[there.a].shape[1] - 1 - x if there.mirrored else x
            at = there.scale_x * at + there.dx
            at = images[there.b].shape[1] - 1 - at if back.mirrored else at
            assert back.scale_x * at + back.dx == pytest.approx(x, abs=2)


def test_unrelated_pictures_with_the_same_overlays_are_not_paired() -> None:
    images = []
    for seed in range(100, 108):
        image = Image.fromarray(texture(seed))
        pen = ImageDraw.Draw(image)
        for row in range(6):
            pen.text((10, 10 + 26 * row), f"LOGIQ E9  {row}.4 cm", fill=255, font_size=18)
        pen.rectangle((150, 60, 330, 220), outline=200)
        images.append(np.asarray(image))
    assert find_pairs(images) == []


def test_different_pictures_in_the_same_black_frame_are_not_paired() -> None:
    images = []
    for seed in range(200, 212):
        framed = np.zeros((420, 520), np.uint8)
        framed[40:310, 60:400] = middle(texture(seed))
        images.append(framed)
    assert find_pairs(images) == []


def test_identical_files_and_pixels(tmp_path: Path) -> None:
    picture = Image.fromarray(texture(0))
    picture.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    picture.convert("RGB").save(tmp_path / "c.png", compress_level=1)  # grey stored as colour
    (tmp_path / "d.png").write_bytes((tmp_path / "c.png").read_bytes())
    files = [tmp_path / f"{name}.png" for name in "abcd"]
    told: list[str] = []
    found = find_pairs(files, near=False, progress=lambda stage, done, total: told.append(f"{stage} {done}/{total}"))
    assert [(p.a, p.b, p.kind) for p in found] == [
        (0, 1, "identical-file"),
        (0, 2, "identical-pixels"),
        (2, 3, "identical-file"),
    ]
    assert told[-1] == "reading 4/4"
    assert find_pairs(str(f) for f in files) == found  # a generator, and the search for near ones adds nothing


def test_empty_and_tiny_images() -> None:
    black, grey = np.zeros((200, 300), np.uint8), np.full((200, 300), 77, np.uint8)
    tiny = np.arange(9, dtype=np.uint8).reshape(3, 3)
    found = find_pairs([black, grey, tiny, tiny.copy(), texture(3), black.copy()])
    assert [(p.a, p.b, p.kind) for p in found] == [(0, 5, "identical-pixels"), (2, 3, "identical-pixels")]
    assert find_pairs([]) == []
    assert find_pairs([black]) == []


def test_bad_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"not an image")
    with pytest.raises(SonobreastError, match=r"no\.png"):
        find_pairs([tmp_path / "no.png"])
    with pytest.raises(SonobreastError, match="window"):
        find_pairs([np.zeros((20, 20), np.float32)])  # type: ignore[list-item]
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SonobreastError, match=r"deep\.png"):
        find_pairs([tmp_path / "deep.png"])


def test_mirrored_descriptors_are_those_of_the_mirrored_image() -> None:
    image = texture(5)[:, :383]
    plain, mirrored = describe(image), describe(np.ascontiguousarray(image[:, ::-1]))
    flipped = plain.place * (-1, 1, 1) + (image.shape[1] - 1, 0, 0)
    near = np.abs(flipped[:, None] - mirrored.place[None]).sum(axis=2)
    twin = near.argmin(axis=1)
    same = near.min(axis=1) < 0.05
    assert same.mean() > 0.7  # the second octave starts at another pixel
    likeness = (plain.patch * MIRROR * mirrored.patch[twin]).sum(axis=1)
    assert likeness[same].min() > 0.98


def test_groups_are_connected_components() -> None:
    pairs = [Pair(0, 3, "near-duplicate"), Pair(3, 5, "near-duplicate"), Pair(2, 4, "identical-file")]
    assert groups(7, pairs).tolist() == [0, 1, 2, 0, 2, 0, 3]
    assert groups(7, pairs[::-1]).tolist() == groups(7, pairs).tolist()
    assert groups(3, []).tolist() == [0, 1, 2]
    with pytest.raises(SonobreastError, match="image 5 of 5"):
        groups(5, pairs)


def _busi() -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("SONOBREAST_DATA", beside)) / "busi"
    if not folder.is_dir():
        pytest.skip(f"BUSI is not in {folder}: set SONOBREAST_DATA to the folder that holds busi/")
    return folder


@pytest.mark.slow
def test_busi() -> None:
    files = [f for f in sorted(_busi().rglob("*.png")) if "_mask" not in f.name]
    assert len(files) == 780
    pairs = find_pairs(files)
    names = [f.stem for f in files]
    exact = [(names[p.a], names[p.b]) for p in pairs if p.kind in ("identical-file", "identical-pixels")]
    assert exact == [("benign (433)", "malignant (145)")]
    group = groups(len(files), pairs)
    count = np.bincount(group)
    # Three published audits: 235-344 images in about 150 groups.
    assert 325 <= count[count > 1].sum() <= 365
    assert 140 <= (count > 1).sum() <= 165
    assert count.max() <= 10
    label = [f.parent.name for f in files]
    labels = [{label[i] for i in np.flatnonzero(group == g)} for g in np.flatnonzero(count > 1)]
    assert 8 <= sum(len(each) > 1 for each in labels) <= 10
