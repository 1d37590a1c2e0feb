"""BrEaST in its published layout: what is read, and what is said of a copy that is not whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fake import BREAST, BREAST_COLUMNS, BREAST_TABLE, write_breast, write_busi

from sonobreast.data.manifest import build, write
from sonobreast.data.masks_out import true_mask
from sonobreast.errors import SonobreastError

PLACE = "BrEaST-Lesions_USG-images_and_masks"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_breast(tmp_path / "data")


def edit(root: Path, change: Callable[[Any], object]) -> None:
    """Change the first sheet."""
    from openpyxl import load_workbook

    book = load_workbook(root / BREAST_TABLE)
    change(book.worksheets[0])
    book.save(root / BREAST_TABLE)


def put(row: int, column: str, value: object) -> Callable[[Any], object]:
    place = BREAST_COLUMNS.index(column) + 1
    return lambda sheet: setattr(sheet.cell(row, place), "value", value)


def test_layout(root: Path) -> None:
    manifest = build(root, strict=True)
    assert manifest.layout == "breast"
    assert manifest.counts == BREAST
    first = manifest.cases[0]
    assert (first.image, first.patient, first.group) == (f"{PLACE}/case001.png", "1", "1")
    assert first.spacing_mm == 0.078125
    assert first.extra == {
        "age": "57",
        "shape": "oval",
        "birads": "3",
        "verification": "confirmed by follow-up care",
        "histology": "",
        "other_masks": f"{PLACE}/case001_other1.png|{PLACE}/case001_other2.png",
    }
    assert manifest.cases[1].extra["age"] == "", "'not available' is no age"
    assert manifest.cases[5].extra["birads"] == "4c"
    assert manifest.cases[5].extra["histology"] == "Invasive lobular carcinoma"
    assert [c.masks for c in manifest.cases if c.label == "normal"] == [(), ()]


def test_other_masks_are_no_lesion(root: Path) -> None:
    manifest = build(root)
    first = manifest.cases[0]
    assert first.masks == (f"{PLACE}/case001_tumor.png",)
    lesion = true_mask(root, first)
    assert lesion is not None
    assert lesion.any()
    assert not lesion[-8:, :20].any(), "the box at the left lower corner is the other masks'"


def test_rows_without_files_are_one_sentence(root: Path) -> None:
    problems = build(root).problems
    assert [(p.code, p.severity, p.file) for p in problems] == [("rows-without-image", "warning", BREAST_TABLE)]
    assert "3 of the 12 rows" in problems[0].what
    assert "9 others are used" in problems[0].what


def test_whole_set_has_no_problem(tmp_path: Path) -> None:
    assert build(write_breast(tmp_path, absent=0)).problems == ()


@pytest.mark.parametrize("where", ["beside", "deeper"])
def test_places_of_the_images(root: Path, where: str) -> None:
    expected = [c.sha256 for c in build(root).cases]
    if where == "beside":
        for path in (root / PLACE).iterdir():
            path.rename(root / path.name)
        (root / PLACE).rmdir()
    else:
        (root / "unpacked").mkdir()
        (root / PLACE).rename(root / "unpacked" / PLACE)
    manifest = build(root)
    assert [c.sha256 for c in manifest.cases] == expected
    assert all(c.masks for c in manifest.cases if c.label != "normal")


def test_nested_and_by_file(root: Path) -> None:
    assert build(root.parent).cases == build(root).cases == build(root / BREAST_TABLE).cases


def test_manifest_reads_back(root: Path, tmp_path: Path) -> None:
    manifest = build(root)
    write(tmp_path / "out" / "manifest.csv", manifest)
    assert build(tmp_path / "out" / "manifest.csv").cases == manifest.cases


@pytest.mark.parametrize("column", ["CaseID", "Mask_tumor_filename", "Classification"])
def test_missing_column(root: Path, column: str) -> None:
    edit(root, put(1, column, "X"))
    with pytest.raises(SonobreastError, match=f"column {column.lower()} is missing") as caught:
        build(root)
    assert caught.value.file == str(root / BREAST_TABLE)


def test_damaged_spreadsheet(root: Path) -> None:
    file = root / BREAST_TABLE
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"PK\x03\x04" + bytes(200)):
        file.write_bytes(damaged)
        with pytest.raises(SonobreastError, match="spreadsheet cannot be opened") as caught:
            build(root)
        assert caught.value.file == str(file)
        assert "download it again" in caught.value.remedy


def test_a_lock_file_and_other_spreadsheets_are_passed_over(root: Path) -> None:
    from openpyxl import Workbook

    (root / f"~${BREAST_TABLE}").write_bytes(b"locked by somebody")
    (root / "budget.xlsx").write_bytes(b"no spreadsheet")
    Workbook().save(root / "empty.xlsx")
    assert build(root).layout == "breast"


def test_spreadsheets_beside_class_folders_are_no_data_set(tmp_path: Path) -> None:
    write_busi(tmp_path, {"benign": 1, "malignant": 1})
    (tmp_path / "notes.xlsx").write_bytes(b"no spreadsheet")
    assert build(tmp_path).layout == "busi"


def test_two_spreadsheets(root: Path) -> None:
    shutil.copy(root / BREAST_TABLE, root / "BrEaST older.xlsx")
    with pytest.raises(SonobreastError, match="2 spreadsheets of BrEaST") as caught:
        build(root)
    assert caught.value.remedy == "keep one of them here"


def test_an_image_that_is_named_twice(root: Path) -> None:
    edit(root, put(4, "Image_filename", "case001.png"))
    with pytest.raises(SonobreastError, match=r"line 4 names 'case001.png' again \(first on line 2\)"):
        build(root)


def test_no_classification(root: Path) -> None:
    edit(root, put(3, "Classification", None))
    manifest = build(root)
    assert len(manifest.cases) == 8
    assert ("row-without-label", f"{PLACE}/case002.png") in [(p.code, p.file) for p in manifest.problems]


def test_unknown_classification_stays_what_it_is(root: Path) -> None:
    edit(root, put(3, "Classification", "borderline"))
    assert build(root).counts["borderline"] == 1


@pytest.mark.parametrize("value", [78.125, -1, "wide", 0, 0.78125])
def test_pixel_size_that_cannot_be(root: Path, value: object) -> None:
    edit(root, put(2, "Pixel_size", value))
    manifest = build(root)
    assert manifest.cases[0].spacing_mm is None
    assert manifest.cases[1].spacing_mm == 0.078125
    said = [p for p in manifest.problems if p.code == "spacing-not-possible"]
    assert [p.file for p in said] == [f"{PLACE}/case001.png"]
    assert repr(str(value)) in said[0].what


def test_no_pixel_size(root: Path) -> None:
    edit(root, put(2, "Pixel_size", "not available"))
    manifest = build(root)
    assert manifest.cases[0].spacing_mm is None
    assert [p.code for p in manifest.problems] == ["rows-without-image"]


def test_missing_mask_and_image_without_row(root: Path) -> None:
    (root / PLACE / "case002_tumor.png").unlink()
    shutil.copy(root / PLACE / "case003.png", root / PLACE / "case777.png")
    manifest = build(root)
    found = {(p.code, p.file) for p in manifest.problems}
    assert ("mask-missing", f"{PLACE}/case002.png") in found
    assert ("image-without-row", f"{PLACE}/case777.png") in found
    assert next(c for c in manifest.cases if "case002" in c.image).masks == ()


def test_a_file_in_two_folders(root: Path) -> None:
    (root / PLACE / "copy").mkdir()
    shutil.copy(root / PLACE / "case003.png", root / PLACE / "copy")
    manifest = build(root)
    assert len(manifest.cases) == 9
    assert ("same-name", f"{PLACE}/copy/case003.png") in [(p.code, p.file) for p in manifest.problems]


def test_without_openpyxl(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(SonobreastError, match="openpyxl") as caught:
        build(root)
    assert "sonobreast[study]" in caught.value.remedy


# Real data


def test_real_sample(real_data: Path) -> None:
    if not (real_data / "breast").is_dir():
        pytest.skip("no breast/ beside the real BUSI")
    manifest = build(real_data / "breast", strict=True)
    assert manifest.counts == {"benign": 36, "malignant": 25, "normal": 3}
    assert [p.code for p in manifest.problems] == ["rows-without-image"]
    assert "192 of the 256 rows" in manifest.problems[0].what
    assert len({c.patient for c in manifest.cases}) == 64
    depth, diameter = [], []
    for case in manifest.cases:
        assert case.spacing_mm is not None
        assert case.extra["birads"] in {"1", "2", "3", "4a", "4b", "4c", "5"}
        mask = true_mask(manifest.root, case)
        assert mask is not None
        assert mask.any() == (case.label != "normal")
        depth.append(case.height * case.spacing_mm)
        diameter += [2 * np.sqrt(mask.sum() / np.pi) * case.spacing_mm] if mask.any() else []
    # Millimetres: a picture of 3 to 6 cm, a tumour of about 1 cm.
    assert 30 < np.median(depth) < 60
    assert 5 < np.median(diameter) < 20
    assert sum(bool(c.extra["other_masks"]) for c in manifest.cases) == 3
    implant = next(c for c in manifest.cases if c.patient == "38")
    lesion = true_mask(manifest.root, implant)
    assert lesion is not None
    assert lesion.mean() < 0.05, "the silicone implant fills most of this picture and is no lesion"
