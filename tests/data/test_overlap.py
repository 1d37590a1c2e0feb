"""Images of one data set in another, with planted copies of every kind; nothing is found where nothing was planted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fake import write_class_folders

from sonobreast.data import texture
from sonobreast.data.manifest import Manifest, build
from sonobreast.data.overlap import overlap
from sonobreast.errors import SonobreastError

SIZE = 300


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Manifest, dict[str, tuple[str, str]]]:
    """A set of originals; another of copies of them and of pictures of its own; copy -> original and kind."""
    folder = tmp_path_factory.mktemp("overlap")
    drawn = list(texture.generate(44, seed=3, size=SIZE, copies=0.5))
    copied = {t.copy_of for t in drawn if t.copy_of is not None}
    truth = {t.name: (t.copy_of, t.kind) for t in drawn if t.copy_of is not None}
    for i, t in enumerate(drawn):
        # Copies, and every second picture that nothing was copied from, are the second hospital's.
        second = t.copy_of is not None or (t.name not in copied and i % 2 == 0)
        path = folder / ("b" if second else "a") / t.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(t.image).save(path)
    return build(folder / "a"), build(folder / "b"), truth


def test_every_planted_copy_is_found_and_nothing_else(
    planted: tuple[Manifest, Manifest, dict[str, tuple[str, str]]],
) -> None:
    a, b, truth = planted
    found = overlap(a, b)
    assert {s.b: s.a for s in found} == {copy: original for copy, (original, _) in truth.items()}
    assert len(found) == len(truth) == 18
    assert {kind for _, kind in truth.values()} == set(texture.COPY_KINDS)
    for s in found:
        exact = truth[s.b][1] == "exact"
        assert s.kind == ("identical-file" if exact else "near-duplicate")
        assert (s.score == 1) == exact
    assert any("shift" in s.remark for s in found)
    assert [s.b for s in found] == [c.image for c in b.cases if c.image in truth], "in the order of the second set"


def test_the_other_way_round(planted: tuple[Manifest, Manifest, dict[str, tuple[str, str]]]) -> None:
    a, b, _ = planted
    there, back = overlap(a, b), overlap(b, a)
    # An original with an exact copy in the other set comes back with that one alone, without its changed copies.
    assert {(s.b, s.a) for s in back} < {(s.a, s.b) for s in there}
    assert {s.b for s in back} == {s.a for s in there}


def small(folder: Path, seed: int) -> Manifest:
    for label in ("benign", "malignant"):
        (folder / label).mkdir(parents=True)
    for i, t in enumerate(texture.generate(4, seed=seed, size=SIZE, copies=0.0)):
        Image.fromarray(t.image).save(folder / ("benign", "malignant")[i % 2] / f"{i}.png")
    return build(folder)


def test_sets_that_share_nothing(tmp_path: Path) -> None:
    assert overlap(small(tmp_path / "a", 1), small(tmp_path / "b", 2)) == []


def test_copies_inside_one_set_are_no_overlap(tmp_path: Path) -> None:
    a, b = small(tmp_path / "a", 1), small(tmp_path / "b", 2)
    for manifest in (a, b):
        shutil.copy(manifest.root / "benign" / "0.png", manifest.root / "benign" / "9.png")
    assert overlap(build(a.root), build(b.root)) == []


def test_each_copy_of_a_changed_picture_is_given(tmp_path: Path) -> None:
    a = small(tmp_path / "a", 1)
    b = tmp_path / "b"
    small(b, 2)
    picture = np.asarray(Image.open(a.root / "benign" / "0.png"))
    moved = Image.fromarray(np.ascontiguousarray(picture[20:, 30:]))
    moved.save(b / "benign" / "moved.png")
    moved.save(b / "benign" / "moved too.png", compress_level=1)  # the same pixels, other bytes
    shutil.copy(a.root / "benign" / "0.png", a.root / "malignant" / "again.png")
    found = overlap(build(a.root), build(b))
    assert {(s.a, s.b) for s in found} == {
        (one, other)
        for one in ("benign/0.png", "malignant/again.png")
        for other in ("benign/moved.png", "benign/moved too.png")
    }
    assert {s.kind for s in found} == {"near-duplicate"}


def test_identical_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = small(tmp_path / "a", 1)
    shutil.copytree(a.root, tmp_path / "b")
    same = build(tmp_path / "b")
    monkeypatch.setattr("sonobreast.data.duplicates.find_pairs", lambda *_, **__: pytest.fail("nothing to search"))
    found = overlap(a, same)
    assert [(s.a, s.b, s.kind) for s in found] == [(c.image, c.image, "identical-file") for c in a.cases]
    monkeypatch.undo()
    for case in same.cases:
        picture = Image.open(same.path(case)).convert("RGB")
        picture.save(same.path(case), compress_level=1)  # grey stored as colour is the same picture
    found = overlap(a, build(tmp_path / "b"))
    assert [(s.a, s.b, s.kind) for s in found] == [(c.image, c.image, "identical-pixels") for c in a.cases]


def test_progress_and_a_file_that_is_gone(tmp_path: Path) -> None:
    a, b = small(tmp_path / "a", 1), small(tmp_path / "b", 2)
    seen: dict[str, int] = {}
    overlap(a, b, workers=1, progress=lambda stage, done, total: seen.update({stage: total}))
    assert seen["reading"] == 8
    b.path(b.cases[0]).unlink()
    with pytest.raises(SonobreastError) as caught:
        overlap(a, b)
    assert caught.value.file == str(b.path(b.cases[0]))


def test_speckle_without_structure_is_not_paired(tmp_path: Path) -> None:
    a = build(write_class_folders(tmp_path / "a", {"benign": 4, "malignant": 4}, seed=1, size=120))
    b = build(write_class_folders(tmp_path / "b", {"benign": 4, "malignant": 4}, seed=2, size=120))
    assert overlap(a, b) == []


# Real data


@pytest.mark.slow
def test_real_sets_share_nothing(real_busi: Manifest, real_data: Path) -> None:
    for name in ("bus_bra", "breast"):
        if (real_data / name).is_dir():
            assert overlap(real_busi, build(real_data / name)) == []
