"""The list of images to leave out: read as a person edits it, applied, refused where it cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonobreast.data.exclusions import Exclusion, apply, read, write
from sonobreast.data.manifest import build
from sonobreast.errors import SonobreastError


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_as_a_person_writes_it(tmp_path: Path) -> None:
    text = "image,reason\na.png,copy of b.png\n\nb.png, axilla \n"
    assert read(table(tmp_path / "e.csv", text)) == (
        Exclusion(image="a.png", reason="copy of b.png"),
        Exclusion(image="b.png", reason="axilla"),
    )


def test_no_keeps_the_image(tmp_path: Path, busi: Path) -> None:
    manifest = build(busi)
    a, b = (c.image for c in manifest.cases[:2])
    rows = (Exclusion(image=a, exclude="no", reason="a hint"), Exclusion(image=b, reason="a copy"))
    write(tmp_path / "e.csv", rows)
    assert read(tmp_path / "e.csv") == rows
    rest, left_out = apply(manifest, rows, tmp_path / "e.csv")
    assert [r.image for r in left_out] == [b]
    assert {c.image for c in manifest.cases} - {c.image for c in rest.cases} == {b}
    assert rest.fingerprint != manifest.fingerprint


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("image,why\na.png,x\n", "column reason is missing"),
        ("image,reason\na.png,\n", "line 2 has no reason"),
        ("image,reason\n,why\n", "line 2 has no image"),
        ("image,reason\na.png,x\na.png,y\n", "again"),
        ("image,exclude,reason\na.png,maybe,x\n", "'maybe'"),
        ("image,reason\na.png,copy, of b\n", "line 2 has more or fewer cells"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(SonobreastError, match=what):
        read(table(tmp_path / "e.csv", text))


def test_unknown_image_gets_the_nearest_name(tmp_path: Path, busi: Path) -> None:
    rows = (Exclusion(image="benign/benign (1).jpg", reason="x"),)
    with pytest.raises(SonobreastError, match=r"benign \(1\)\.png"):
        apply(build(busi), rows, tmp_path / "e.csv")


def test_a_list_of_everything_is_refused(tmp_path: Path, busi: Path) -> None:
    manifest = build(busi)
    with pytest.raises(SonobreastError, match="leaves no image"):
        apply(manifest, [Exclusion(image=c.image, reason="x") for c in manifest.cases], tmp_path / "e.csv")
