"""BUS-UCLM in its published layout: classes from colours, masks of other sizes, copies that are not whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fake import BUS_UCLM, save_colour_mask, speckle, write_bus_uclm

from sonobreast.data.bus_uclm import mask_labels
from sonobreast.data.manifest import build, write
from sonobreast.data.mask_size import fit_mask
from sonobreast.data.masks_out import true_mask
from sonobreast.data.preprocess import decode, decode_mask
from sonobreast.errors import SonobreastError
from sonobreast.records import Problem


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bus_uclm(tmp_path / "data")


def edit(root: Path, change: Callable[[str], str]) -> None:
    table = root / "INFO.csv"
    table.write_text(change(table.read_text(encoding="utf-8")), encoding="utf-8")


def said(problems: tuple[Problem, ...], *codes: str) -> list[tuple[str, str]]:
    return [(p.code, p.file) for p in problems if not codes or p.code in codes]


KNOWN = [  # what the writer puts into every set
    ("two-labels", "images/CRCI_000.png"),
    ("mask-scaled", "masks/ALWI_001.png"),
    ("mask-size", "masks/ALWI_002.png"),
    ("mask-scaled", "masks/ANFO_001.png"),
    ("mask-size", "masks/ANFO_002.png"),
    ("mask-scaled", "masks/CRCI_001.png"),
]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("upper", [False, True])
def test_layout(tmp_path: Path, nested: bool, upper: bool) -> None:
    write_bus_uclm(tmp_path / "data", nested=nested, upper=upper)
    manifest = build(tmp_path / "data", strict=True)
    assert manifest.layout == "bus_uclm"
    assert manifest.counts == {"benign": 3, "malignant": 3, "normal": 3}
    labels = [label if label != "both" else "malignant" for labels in BUS_UCLM.values() for label in labels]
    assert [c.label for c in manifest.cases] == labels
    assert [c.patient for c in manifest.cases] == [p for p, labels in BUS_UCLM.items() for _ in labels]
    assert manifest.cases[0].group == "ALWI"
    assert manifest.cases[0].extra == {"doppler": "No", "marks": "No"}
    assert [(c, f.lower()) for c, f in said(manifest.problems)] == [(c, f.lower()) for c, f in KNOWN]
    assert all(p.severity == "warning" for p in manifest.problems)


def test_colours_give_the_lesion(root: Path) -> None:
    manifest = build(root)
    for i, (patient, number, label) in enumerate((("ANFO", 0, "malignant"), ("CRCI", 0, "benign"))):
        lesion = speckle(100 * (i + 1) + number, label)[1]
        case = next(c for c in manifest.cases if c.image == f"images/{patient}_{number:03d}.png")
        mask = true_mask(root, case)
        assert mask is not None
        assert np.array_equal(mask, lesion), "both colours of CRCI_000 are its lesions"


def test_masks_of_another_size(root: Path) -> None:
    manifest = build(root)
    scaled = next(c for c in manifest.cases if c.image == "images/ANFO_001.png")
    mask = true_mask(root, scaled)
    assert mask is not None
    assert decode_mask(root / scaled.masks[0]).shape == (120, 160)
    assert np.array_equal(mask, speckle(101, "malignant")[1]), "twice the size, halved again by nearest"
    cut = next(c for c in manifest.cases if c.image == "images/ALWI_002.png")
    assert cut.masks == ()
    assert cut.label == "benign", "the colour says so, though the mask does not fit"
    assert true_mask(root, cut) is None


def test_manifest_reads_back(root: Path, tmp_path: Path) -> None:
    manifest = build(root)
    write(tmp_path / "out" / "manifest.csv", manifest)
    again = build(tmp_path / "out" / "manifest.csv")
    assert again.cases == manifest.cases
    for one, other in zip(manifest.cases, again.cases, strict=True):
        a, b = true_mask(manifest.root, one), true_mask(again.root, other)
        assert (a is None) == (b is None)
        assert a is None or np.array_equal(a, b)


def test_label_of_the_table_is_compared(root: Path) -> None:
    edit(root, lambda t: t.replace("ALWI_000.png;Benign", "ALWI_000.png;Malignant"))
    manifest = build(root)
    assert manifest.cases[0].label == "benign"
    differing = [p for p in manifest.problems if p.code == "label-differs"]
    assert [p.file for p in differing] == ["images/ALWI_000.png"]
    assert "colour says benign, INFO.csv malignant" in differing[0].what


@pytest.mark.parametrize("damage", ["missing", "unreadable", "blue"])
@pytest.mark.parametrize("label", ["Malignant", ""])
def test_without_a_mask_the_table_decides(root: Path, damage: str, label: str) -> None:
    mask = root / "masks" / "ANFO_000.png"
    if damage == "missing":
        mask.unlink()
    elif damage == "unreadable":
        mask.write_bytes(mask.read_bytes()[:60])
    else:
        Image.fromarray(np.full((60, 80, 3), (0, 0, 255), np.uint8)).save(mask)
    edit(root, lambda t: t.replace("ANFO_000.png;Malignant", f"ANFO_000.png;{label}"))
    manifest = build(root)
    case = next((c for c in manifest.cases if c.image == "images/ANFO_000.png"), None)
    codes = {c for c, f in said(manifest.problems) if "ANFO_000" in f}
    if label:
        assert case is not None
        assert case.label == "malignant"
        assert codes >= {"label-from-table"}
        assert {"missing": "mask-missing", "unreadable": "mask-unreadable"}.get(damage, "label-from-table") in codes
    else:
        assert case is None
        assert codes == {"no-label"}


def test_a_third_colour_is_said(root: Path) -> None:
    mask = np.asarray(Image.open(root / "masks" / "ALWI_000.png")).copy()
    mask[:5, :5] = 255
    Image.fromarray(mask).save(root / "masks" / "ALWI_000.png")
    manifest = build(root)
    assert manifest.cases[0].label == "benign"
    assert said(manifest.problems, "mask-colour") == [("mask-colour", "images/ALWI_000.png")]


def test_rows_and_images_that_do_not_meet(root: Path) -> None:
    edit(root, lambda t: t.replace("ALWI_000.png", "ZZZZ_000.png") + "YYYY_001.png;Benign;No;No\n")
    shutil.copy(root / "masks" / "ALWI_000.png", root / "masks" / "XXXX_000.png")
    manifest = build(root)
    assert len(manifest.cases) == 9
    assert manifest.cases[0].label == "benign"
    assert manifest.cases[0].extra == {"doppler": "", "marks": ""}
    found = said(manifest.problems)
    assert ("image-without-row", "images/ALWI_000.png") in found
    assert ("mask-without-image", "masks/XXXX_000.png") in found
    missing = [p for p in manifest.problems if p.code == "rows-without-image"]
    assert [p.file for p in missing] == ["INFO.csv"]
    assert "2 of the 10 rows" in missing[0].what


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.replace("Image;", "What;", 1), "no column names the images"),
        (lambda t: t + t.splitlines()[1] + "\n", r"line 11 names 'ALWI_000' again \(first on line 2\)"),
        (lambda t: t.splitlines()[0], "no rows"),
        (lambda t: t.replace("Benign;No", "Benign;No;No", 1), "line 2 has 5 cells, the header has 4"),
    ],
)
def test_damaged_table(root: Path, change: Callable[[str], str], expected: str) -> None:
    edit(root, change)
    with pytest.raises(SonobreastError, match=expected) as caught:
        build(root)
    assert caught.value.file == str(root / "INFO.csv")
    assert caught.value.remedy


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace(";", ","),
        lambda t: t.replace(".png", ""),
        lambda t: t.replace("ALWI", "alwi"),
        lambda t: "\ufeff" + t,
        lambda t: "\n".join(line + ";" for line in t.splitlines()),
        lambda t: t.replace("Image;", "file_name;", 1),
    ],
)
def test_variants_of_the_table(root: Path, change: Callable[[str], str]) -> None:
    expected = build(root).cases
    edit(root, change)
    assert build(root).cases == expected


def test_extra_columns_and_none(root: Path) -> None:
    lines = (root / "INFO.csv").read_text(encoding="utf-8").splitlines()
    edit(root, lambda _: "\n".join(line.split(";")[0] for line in lines))
    assert build(root).cases[0].extra == {}
    head, *rest = lines
    text = "\n".join([head + ";Width;Depth (cm)", *(line + ";9;4.5" for line in rest)])
    edit(root, lambda _: text)
    assert build(root).cases[0].extra == {"doppler": "No", "marks": "No", "depth_cm": "4.5"}


def test_no_images(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(SonobreastError, match="no images found") as caught:
        build(root)
    assert "archive of BUS-UCLM" in caught.value.remedy


def test_without_a_table_it_is_not_guessed(root: Path) -> None:
    (root / "INFO.csv").unlink()
    with pytest.raises(SonobreastError, match="holds masks") as caught:
        build(root)
    assert "INFO.csv" in caught.value.remedy


# Colours and sizes


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("benign", {"benign"}),
        ("malignant", {"malignant"}),
        ("normal", set()),
        ("both", {"benign", "malignant"}),
    ],
)
def test_mask_labels(tmp_path: Path, label: str, found: set[str]) -> None:
    lesion = speckle(0)[1]
    save_colour_mask(tmp_path / "mask.png", lesion, label)
    rgb = decode(tmp_path / "mask.png")
    assert mask_labels(rgb) == found
    assert mask_labels(rgb // 2) == found, "half as bright"
    assert np.array_equal(decode_mask(tmp_path / "mask.png"), lesion & (label != "normal"))


def test_one_pixel_is_a_lesion() -> None:
    rgb = np.zeros((9, 9, 3), np.uint8)
    rgb[:4] = (0, 255, 0)
    rgb[8, 8] = (255, 0, 0)
    assert mask_labels(rgb) == {"benign", "malignant"}


@pytest.mark.parametrize(
    ("size", "source", "fits"),
    [
        ((60, 80), "busi", True),
        ((120, 160), "bus_uclm", True),
        ((61, 80), "bus_uclm", True),  # 1.6 % off
        ((62, 80), "bus_uclm", False),  # 3.2 % off
        ((80, 60), "bus_uclm", False),
        ((120, 160), "busi", False),
        ((120, 160), "csv", False),
    ],
)
def test_fit_mask(size: tuple[int, int], source: str, fits: bool) -> None:
    mask = np.zeros(size, bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = True
    found = fit_mask(mask, 80, 60, source)
    assert (found is not None) == fits
    if found is not None:
        assert found.shape == (60, 80)
        assert found.dtype == bool
        assert found.mean() == pytest.approx(mask.mean(), abs=0.01)
        rows, columns = found.nonzero()
        assert (rows[0], columns[0]) == pytest.approx((15, 20), abs=1)
