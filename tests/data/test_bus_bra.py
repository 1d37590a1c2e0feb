"""BUS-BRA in its published layout: what is read, and what is said of a copy that is not whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fake import write_bus_bra

from sonobreast.data.folders import read_layout
from sonobreast.data.manifest import build, write
from sonobreast.data.masks_out import true_mask
from sonobreast.errors import SonobreastError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bus_bra(tmp_path / "data")


def edit(root: Path, change: Callable[[str], str], encoding: str = "utf-8") -> None:
    table = root / "bus_data.csv"
    table.write_bytes(change(table.read_text(encoding="utf-8")).encode(encoding))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_layout(tmp_path: Path, nested: bool, delimiter: str) -> None:
    write_bus_bra(tmp_path / "data", nested=nested, delimiter=delimiter)
    manifest = build(tmp_path / "data", strict=True)
    assert manifest.layout == "bus_bra"
    assert manifest.problems == ()
    assert manifest.counts == {"benign": 5, "malignant": 3}
    first = manifest.cases[0]
    assert (first.image, first.patient, first.group) == ("Images/bus_0001-l.png", "1", "1")
    assert first.masks == ("Masks/mask_0001-l.png",)
    assert first.source == "bus_bra"
    assert first.spacing_mm is None
    assert first.extra == {
        "histology": "fibroadenoma",
        "birads": "3",
        "device": "GE Logiq 5 @10-12MHz",
        "side": "left",
        "bbox": "[10,12,30,20]",
    }
    assert [c.patient for c in manifest.cases] == ["1", "1", "2", "3", "3", "4", "4", "5"]


def test_the_table_is_as_good_as_its_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(root / "bus_data.csv").cases == build(root).cases
    monkeypatch.chdir(root)
    assert build(Path("bus_data.csv")).cases == build(Path()).cases


def test_names_in_another_case(root: Path) -> None:
    expected = [c.label for c in build(root).cases]
    (root / "Images").rename(root / "images")
    (root / "Masks").rename(root / "MASKS")
    (root / "bus_data.csv").rename(root / "Bus_Data.csv")
    manifest = build(root)
    assert [c.label for c in manifest.cases] == expected
    assert all(c.masks for c in manifest.cases)


def test_manifest_reads_back(root: Path, tmp_path: Path) -> None:
    manifest = build(root)
    write(tmp_path / "out" / "manifest.csv", manifest)
    assert build(tmp_path / "out" / "manifest.csv").cases == manifest.cases


@pytest.mark.parametrize("column", ["ID", "Case", "Pathology"])
def test_missing_column(root: Path, column: str) -> None:
    edit(root, lambda t: t.replace(column, "X", 1))
    with pytest.raises(SonobreastError, match=f"column {column.lower()} is missing") as caught:
        build(root)
    assert caught.value.file == str(root / "bus_data.csv")
    assert caught.value.remedy


def test_columns_that_are_not_needed_may_be_missing(root: Path) -> None:
    edit(root, lambda t: t.replace("Histology", "Remark", 1).replace("BIRADS", "Score", 1))
    extra = build(root).cases[0].extra
    assert "birads" not in extra
    assert extra["remark"] == "fibroadenoma"


def test_image_without_row_and_row_without_image(root: Path) -> None:
    shutil.copy(root / "Images" / "bus_0002-s.png", root / "Images" / "bus_0099-s.png")
    (root / "Images" / "bus_0001-l.png").unlink()
    (root / "Images" / "bus_0001-r.png").unlink()
    manifest = build(root)
    assert len(manifest.cases) == 6
    said = {p.code: p for p in manifest.problems}
    assert set(said) == {"image-without-row", "rows-without-image"}
    assert said["image-without-row"].file == "Images/bus_0099-s.png"
    assert said["image-without-row"].severity == "error"
    assert said["rows-without-image"].file == "bus_data.csv"
    assert "2 of the 8 rows" in said["rows-without-image"].what
    assert "bus_0001-l" in said["rows-without-image"].what
    with pytest.raises(SonobreastError, match="no row for this image") as caught:
        build(root, strict=True)
    assert caught.value.file == "Images/bus_0099-s.png"


def test_no_image_at_all(root: Path) -> None:
    for path in (root / "Images").iterdir():
        path.unlink()
    with pytest.raises(SonobreastError, match="none of the 8 images") as caught:
        build(root)
    assert "beside the table" in caught.value.remedy


def test_missing_mask(root: Path) -> None:
    (root / "Masks" / "mask_0002-s.png").unlink()
    manifest = build(root)
    assert [(p.code, p.file) for p in manifest.problems] == [("mask-missing", "Images/bus_0002-s.png")]
    without = next(c for c in manifest.cases if c.image.endswith("0002-s.png"))
    assert without.masks == ()
    assert true_mask(root, without) is None


def test_missing_folders(root: Path) -> None:
    shutil.rmtree(root / "Masks")
    assert {p.code for p in build(root).problems} == {"mask-missing"}
    shutil.rmtree(root / "Images")
    with pytest.raises(SonobreastError, match="folder Images is missing") as caught:
        build(root)
    assert "bus_data.csv" in caught.value.remedy


def test_missing_table(root: Path) -> None:
    for path in root.glob("*.csv"):
        path.unlink()
    with pytest.raises(SonobreastError, match="holds masks") as caught:
        build(root)
    assert "bus_data.csv" in caught.value.remedy
    with pytest.raises(SonobreastError, match="side by side") as caught:
        build(root / "Images")
    assert "the folder that holds their table" in caught.value.remedy


def test_an_image_that_is_named_twice(root: Path) -> None:
    edit(root, lambda t: t + t.splitlines()[2] + "\n")
    with pytest.raises(SonobreastError, match=r"line 10 names 'bus_0001-r' again \(first on line 3\)") as caught:
        build(root)
    assert caught.value.file == str(root / "bus_data.csv")


@pytest.mark.parametrize("text", ["", "NaN", " "])
def test_empty_pathology(root: Path, text: str) -> None:
    edit(root, lambda t: t.replace(",benign,", f",{text},", 1))
    manifest = build(root)
    assert len(manifest.cases) == 7
    assert [(p.code, p.file, p.severity) for p in manifest.problems] == [
        ("row-without-label", "Images/bus_0001-l.png", "error")
    ]


def test_an_unknown_pathology_stays_what_it_is(root: Path) -> None:
    edit(root, lambda t: t.replace(",benign,", ",Phyllodes,", 1).replace(",malignant,", ",MALIGNANT ,", 1))
    manifest = build(root)
    assert manifest.counts == {"benign": 4, "malignant": 3, "Phyllodes": 1}


def test_windows_encoding_is_read_and_said(root: Path) -> None:
    edit(root, lambda t: t.replace("fibroadenoma", "fibroadénoma", 1), "cp1252")
    manifest = build(root)
    assert manifest.cases[0].extra["histology"] == "fibroadénoma"
    assert [(p.code, p.file, p.severity) for p in manifest.problems] == [("table-encoding", "bus_data.csv", "warning")]


def test_utf_16(root: Path) -> None:
    edit(root, lambda t: t.replace("fibroadenoma", "fibroadénoma", 1), "utf-16")
    manifest = build(root)
    assert manifest.cases[0].extra["histology"] == "fibroadénoma"
    assert manifest.problems == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: "", "column id and case and pathology is missing"),
        (lambda t: t.splitlines()[0] + "\n", "no rows"),
        (lambda t: t.replace("bus_0001-r,", ",", 1), "line 3 names no image"),
        (lambda t: t.replace('"[10,12,30,20]"', "[10,12,30,20]", 1), "line 2 has 13 cells, the header has 10"),
        (lambda t: t.replace("Device", "side", 1), "two columns have the same name"),
    ],
)
def test_damaged_table(root: Path, change: Callable[[str], str], said: str) -> None:
    edit(root, change)
    with pytest.raises(SonobreastError, match=said) as caught:
        build(root)
    assert caught.value.file == str(root / "bus_data.csv")
    assert caught.value.remedy


def test_separators_at_the_end_of_each_line(root: Path) -> None:
    expected = build(root).cases
    edit(root, lambda t: "\n".join(line + ",," for line in t.splitlines()))
    assert build(root).cases == expected


def test_several_data_sets_in_one_folder(tmp_path: Path) -> None:
    write_bus_bra(tmp_path / "a")
    write_bus_bra(tmp_path / "b", nested=True)
    with pytest.raises(SonobreastError, match="a data set of its own in a") as caught:
        read_layout(tmp_path)
    assert str(tmp_path / "a") in caught.value.remedy


# Real data


def test_real_sample(real_data: Path) -> None:
    if not (real_data / "bus_bra").is_dir():
        pytest.skip("no bus_bra/ beside the real BUSI")
    manifest = build(real_data / "bus_bra", strict=True)
    assert len(manifest.cases) == 27
    assert len({c.patient for c in manifest.cases}) == 16
    assert manifest.counts == {"benign": 23, "malignant": 4}
    assert manifest.problems == ()
    for case in manifest.cases:
        mask = true_mask(manifest.root, case)
        assert mask is not None
        left, top, width, height = map(int, case.extra["bbox"].strip("[]").split(","))
        # The table's own box is the mask's: another mask would not fit it.
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        assert abs(columns[0] - left) <= 2
        assert abs(rows[0] - top) <= 2
        assert abs(columns[-1] - columns[0] - width) <= 3
        assert abs(rows[-1] - rows[0] - height) <= 3
        assert case.extra["birads"] in {"2", "3", "4", "5"}
        assert case.extra["device"]
        assert case.extra["side"] in {"left", "right", "single"}
