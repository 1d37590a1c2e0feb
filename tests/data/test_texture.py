"""The cheap texture generator: what is said to be planted is there, and nothing else is a copy."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sonobreast.data.texture import COPY_KINDS, Kind, Texture, generate, plan, write
from sonobreast.errors import SonobreastError


def _digest(texture: Texture) -> str:
    return hashlib.sha256(texture.image.tobytes() + repr((texture.image.shape, *texture[2:])).encode()).hexdigest()


def _pairs(kind: Kind, *, n: int = 40, seed: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """(original, copy) of every planted copy of one kind."""
    made = {texture.name: texture for texture in generate(n, seed=seed, size=96, copies=0.5, kinds=[kind])}
    return [(made[t.copy_of].image, t.image) for t in made.values() if t.copy_of is not None]


def _best_match(picture: np.ndarray, patch: np.ndarray) -> float:
    """Largest normalised correlation of a patch with a window of the picture of its size."""
    height, width = patch.shape
    windows = np.lib.stride_tricks.sliding_window_view(picture.astype(np.float64), (height, width))
    mean = windows.mean(axis=(2, 3), keepdims=True)
    centred = patch - patch.mean()
    top = np.einsum("abij,ij->ab", windows - mean, centred)
    return float((top / (windows.std(axis=(2, 3)) * patch.std() * patch.size)).max())


def test_same_seed_same_pictures_and_a_longer_plan_begins_like_a_shorter_one() -> None:
    first = [_digest(t) for t in generate(30, seed=3, size=64)]
    assert first == [_digest(t) for t in generate(30, seed=3, size=64)]
    assert first[:12] == [_digest(t) for t in generate(12, seed=3, size=64)]
    assert first != [_digest(t) for t in generate(30, seed=4, size=64)]


def test_originals_are_different_pictures() -> None:
    """Neither as thumbnails nor in their fine structure are two originals alike; a mirror image counts as like."""
    images = [t.image.astype(np.float64) for t in generate(150, seed=1, size=64, copies=0.0)]
    images += [image[:, ::-1] for image in images[:75]]

    def closest(vectors: np.ndarray) -> float:
        vectors = vectors - vectors.mean(axis=1, keepdims=True)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return float((vectors @ vectors.T - np.eye(len(vectors))).max())

    fine = np.stack([(image - ndimage.gaussian_filter(image, 4)).ravel() for image in images])
    coarse = np.stack([ndimage.zoom(ndimage.gaussian_filter(image, 3), 0.25).ravel() for image in images])
    assert closest(fine) < 0.5  # the outline of a blob is what is left in common; copies reach 0.9
    assert closest(coarse) < 0.93


def test_every_kind_is_what_it_says() -> None:
    for original, copy in _pairs("exact"):
        np.testing.assert_array_equal(original, copy)
    for original, copy in _pairs("mirror"):
        np.testing.assert_array_equal(original[:, ::-1], copy)
        assert (original != copy).any()
    for original, copy in _pairs("window"):
        # A monotonic map of the grey levels: sorting by the original sorts the copy.
        order = np.argsort(original.ravel(), kind="stable")
        assert (np.diff(copy.ravel()[order].astype(int)) >= 0).all()
        assert np.abs(original.astype(int) - copy).mean() > 2
    for original, copy in _pairs("overlay"):
        changed = original != copy
        assert 0.001 < changed.mean() < 0.2
        assert copy[changed].max() == 255
    for original, copy in _pairs("rescale"):
        assert copy.shape[0] == copy.shape[1] != original.shape[0]
        back = np.asarray(Image.fromarray(copy).resize(original.shape[::-1], Image.Resampling.BICUBIC))
        assert np.corrcoef(back.ravel(), original.ravel())[0, 1] > 0.9
    for original, copy in _pairs("crop", n=12):
        assert copy.shape[0] < original.shape[0]
        assert copy.shape[1] < original.shape[1]
        assert _best_match(original, copy) > 0.999
    for original, copy in _pairs("shift", n=12):
        assert copy.shape == original.shape
        middle = copy[10:-10, 10:-10]
        assert _best_match(original, middle) > 0.999
        assert np.corrcoef(original.ravel(), copy.ravel())[0, 1] < 0.98


def test_shares_labels_and_origins() -> None:
    plans = plan(4000, seed=2, copies=0.3, labels={"benign": 3, "malignant": 1}, cross_label=0.25)
    copies = [p for p in plans if p.origin is not None]
    assert abs(len(copies) / len(plans) - 0.3) < 0.03
    assert abs(Counter(p.label for p in plans)["benign"] / len(plans) - 0.75) < 0.03
    assert set(Counter(p.kind for p in copies)) == set(COPY_KINDS)
    assert all(plans[p.origin].origin is None and p.origin < p.number for p in copies if p.origin is not None)
    crossed = [p for p in copies if p.origin is not None and plans[p.origin].label != p.label]
    assert abs(len(crossed) / len(copies) - 0.25) < 0.05
    plain = plan(500, seed=2)
    assert all(plain[p.origin].label == p.label for p in plain if p.origin is not None)
    chosen = ["a", "b", "b", "a", "b"]
    assert [p.label for p in plan(5, seed=0, labels=chosen)] == chosen


def test_written_folders_agree_with_the_generator(tmp_path: Path) -> None:
    seen: list[int] = []
    table = write(tmp_path / "set", n=30, seed=6, size=48, copies=0.4, progress=lambda done, of: seen.append(done))
    made = {t.name: t for t in generate(30, seed=6, size=48, copies=0.4)}
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [tuple(row.values()) for row in rows] == [(t.name, t.copy_of, t.kind) for t in made.values() if t.copy_of]
    files = {p.relative_to(tmp_path / "set").as_posix(): p for p in (tmp_path / "set").rglob("*.png")}
    assert files.keys() == made.keys()
    for name, path in files.items():
        np.testing.assert_array_equal(np.asarray(Image.open(path)), made[name].image)
    assert seen == list(range(1, 31))


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"seed": -1},
        {"size": 31},
        {"copies": 1.0},
        {"copies": -0.1},
        {"cross_label": 1.1},
        {"kinds": []},
        {"kinds": ["original"]},
        {"labels": []},
        {"labels": {"a": 0.0}},
        {"labels": ["../a"]},
    ],
)
def test_bad_values_are_refused_before_anything_is_written(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(SonobreastError) as caught:
        write(tmp_path / "set", **({"n": 3, "seed": 0} | wrong))  # type: ignore[arg-type]
    assert caught.value.remedy
    assert not (tmp_path / "set").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SonobreastError, match="not empty"):
        write(tmp_path, n=3, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(SonobreastError):
        write(tmp_path / "mine.txt", n=3, seed=0)
