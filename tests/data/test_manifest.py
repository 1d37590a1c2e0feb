"""Every file opened once, what is wrong named and counted, the rest listed; the table reads back as it was."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fake import COUNTS, save_mask, speckle, write_busi, write_class_folders, write_csv

from sonobreast.data import manifest as manifests
from sonobreast.data.manifest import Manifest, build
from sonobreast.errors import SonobreastError
from sonobreast.records import read_table


def codes(manifest: Manifest) -> dict[str, str]:
    return {p.file: p.code for p in manifest.problems}


def test_whole_busi_is_listed(busi: Path) -> None:
    steps = []
    manifest = build(busi, strict=True, progress=lambda done, total: steps.append((done, total)))
    assert manifest.counts == COUNTS
    assert manifest.layout == "busi"
    assert manifest.problems == ()
    assert steps == [(i + 1, 21) for i in range(21)]
    case = manifest.cases[0]
    assert (case.image, case.label, case.group) == ("benign/benign (1).png", "benign", "benign/benign (1).png")
    assert (case.width, case.height, len(case.masks)) == (80, 60, 3)
    assert manifest.path(case).is_file()


def test_group_is_the_patient_where_no_group_is_known(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "data")
    text = table.read_text(encoding="utf-8").replace("group-B0", "", 1)
    table.write_text(text, encoding="utf-8")
    first, second = build(table).cases[:2]
    assert (first.group, second.group) == ("B0", "group-B0")


def damage(busi: Path) -> dict[str, str]:
    """Spoil files in every way; returns file -> code of the problem that must be named."""
    benign = busi / "benign"
    whole = (benign / "benign (1).png").read_bytes()
    (benign / "benign (1).png").write_bytes(whole[: len(whole) // 2])
    (benign / "benign (2).png").write_bytes(b"this is no image")
    (benign / "benign (3).png").write_bytes(b"")
    (benign / "benign (4).png").write_bytes(whole[:8])
    (benign / "benign (5)_mask.png").unlink()
    save_mask(benign / "benign (6)_mask.png", np.ones((10, 20), bool))
    (benign / "benign (7)_mask.png").write_bytes(b"no mask")
    shutil.copy(benign / "benign (8)_mask.png", busi / "malignant" / "malignant (1).png")
    return {
        "benign/benign (1).png": "unreadable-image",
        "benign/benign (2).png": "unreadable-image",
        "benign/benign (3).png": "unreadable-image",
        "benign/benign (4).png": "unreadable-image",
        "benign/benign (5).png": "mask-missing",
        "benign/benign (6)_mask.png": "mask-size",
        "benign/benign (7)_mask.png": "mask-unreadable",
        "malignant/malignant (1).png": "mask-as-image",
    }


def test_bad_files_are_named_and_the_rest_goes_on(busi: Path) -> None:
    expected = damage(busi)
    manifest = build(busi)
    assert codes(manifest) == expected
    assert manifest.counts == {"benign": 4, "malignant": 6, "normal": 6}
    assert all(p.what and p.remedy for p in manifest.problems)
    by_name = {c.image: c for c in manifest.cases}
    assert by_name["benign/benign (6).png"].masks == ()
    assert by_name["benign/benign (8).png"].masks == ("benign/benign (8)_mask.png",)


def test_strict_stops_and_counts(busi: Path) -> None:
    expected = damage(busi)
    errors = sum(code != "mask-missing" for code in expected.values())
    with pytest.raises(SonobreastError, match=rf"\({errors} such") as caught:
        build(busi, strict=True)
    assert caught.value.file in expected


def test_strict_lets_a_missing_mask_pass(busi: Path) -> None:
    (busi / "benign" / "benign (5)_mask.png").unlink()
    assert build(busi, strict=True).counts == COUNTS


def test_nothing_readable(tmp_path: Path) -> None:
    for label in ("benign", "normal"):
        (tmp_path / label).mkdir()
        for i in range(2):
            (tmp_path / label / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(SonobreastError, match="none of the 4 images"):
        build(tmp_path)


def test_one_image(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 1})
    assert build(folder).counts == {"benign": 1}


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_plain_folder_of_masks_by_content(tmp_path: Path, ending: str) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 4, "normal": 3})
    (folder / "tumour").mkdir()
    for i in range(4):
        save_mask(folder / "tumour" / f"{i}.{ending}", speckle(i, "benign", 200, 200)[1], "L")
    with pytest.raises(SonobreastError, match=r"all 4 pictures of the class 'tumour'"):
        build(folder)


def test_masks_among_images_without_names_are_left_out(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 4, "normal": 3})
    for i in range(2):
        save_mask(folder / "benign" / f"lesion{i}.png", speckle(i)[1], "RGB")
    manifest = build(folder)
    assert manifest.counts == {"benign": 4, "normal": 3}
    assert set(codes(manifest).values()) == {"mask-as-image"}
    assert len(manifest.problems) == 2


def test_table_that_names_a_file_that_is_gone(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "data")
    (table.parent / "images/benign_0.png").unlink()
    manifest = build(table)
    assert codes(manifest) == {"images/benign_0.png": "unreadable-image"}
    assert manifest.counts == {**COUNTS, "benign": COUNTS["benign"] - 1}


def test_formats_and_modes(tmp_path: Path) -> None:
    picture = speckle(0)[0]
    for label in ("benign", "normal"):
        (tmp_path / label).mkdir()
    grey = Image.fromarray(picture)
    place = tmp_path / "benign"
    grey.save(place / "grey.png")
    grey.convert("RGB").save(place / "rgb.jpg", quality=95)
    grey.convert("CMYK").save(place / "cmyk.jpg", quality=95)
    grey.convert("CMYK").save(place / "cmyk.tif")
    grey.convert("P").save(place / "palette.gif")
    grey.convert("RGBA").save(place / "alpha.webp", lossless=True)
    grey.save(place / "grey.bmp")
    Image.fromarray(picture.astype(np.uint16) * 257).save(place / "deep.png")
    Image.fromarray(picture.astype(np.uint16) * 257).save(place / "deep.tiff")
    Image.fromarray(np.full((1, 1), 90, np.uint8)).save(tmp_path / "normal" / "one pixel.png")
    manifest = build(tmp_path, strict=True)
    assert manifest.counts == {"benign": 9, "normal": 1}
    assert {(c.width, c.height) for c in manifest.cases} == {(80, 60), (1, 1)}


def test_warning_filters_are_left_alone(busi: Path) -> None:
    before = list(warnings.filters)
    build(busi)
    assert warnings.filters == before


# Fingerprint


def test_fingerprint_is_of_the_content(busi: Path, tmp_path: Path) -> None:
    manifest = build(busi)
    shutil.copytree(busi, tmp_path / "elsewhere")
    assert build(tmp_path / "elsewhere").fingerprint == manifest.fingerprint
    assert Manifest(manifest.root, manifest.cases[::-1]).fingerprint == manifest.fingerprint


@pytest.mark.parametrize(
    "change", [{"label": "normal"}, {"group": "another"}, {"sha256": "1" * 64}, {"image": "benign/renamed.png"}]
)
def test_fingerprint_changes(busi: Path, change: dict[str, str]) -> None:
    manifest = build(busi)
    first, *rest = manifest.cases
    other = Manifest(manifest.root, (first.model_copy(update=change), *rest))
    assert other.fingerprint != manifest.fingerprint
    assert Manifest(manifest.root, tuple(rest)).fingerprint != manifest.fingerprint


def test_fingerprint_changes_with_any_byte(busi: Path) -> None:
    before = build(busi).fingerprint
    path = busi / "benign" / "benign (1).png"
    path.write_bytes(path.read_bytes() + b"\0")  # every decoder passes over what follows the last block
    assert build(busi).fingerprint != before


# manifest.csv


@pytest.mark.parametrize("layout", ["busi", "folders", "csv"])
@pytest.mark.parametrize("inside", [False, True])
def test_written_manifest_reads_back(tmp_path: Path, layout: str, inside: bool) -> None:
    folder = tmp_path / "data"
    if layout == "busi":
        source = write_busi(folder, nested=True)
    elif layout == "folders":
        source = write_class_folders(folder)
    else:
        source = write_csv(folder)
    manifest = build(source)
    file = (folder if inside else tmp_path / "out") / "manifest.csv"
    manifests.write(file, manifest)
    again = build(file)
    assert again.cases == manifest.cases
    assert again.problems == manifest.problems
    assert again.fingerprint == manifest.fingerprint
    assert again.root.resolve() == manifest.root.resolve()
    if not inside:
        assert build(file.parent).cases == manifest.cases
    manifests.write(file, again)
    assert build(file).cases == manifest.cases


@pytest.mark.parametrize("name", ["a,b.png", 'quo"te.png', "línea é.png", "a;b=c.png", "=1+1.png", "<script>.png"])
def test_strange_names_survive_the_table(tmp_path: Path, name: str) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 2, "normal": 2})
    os.rename(folder / "benign" / "scan_000.png", folder / "benign" / name)
    manifest = build(folder)
    manifests.write(tmp_path / "out" / "manifest.csv", manifest)
    assert build(tmp_path / "out").cases == manifest.cases


def test_problems_are_written_and_go_when_they_are_mended(busi: Path, tmp_path: Path) -> None:
    mask = busi / "benign" / "benign (5)_mask.png"
    content = mask.read_bytes()
    mask.unlink()
    out = tmp_path / "out"
    manifests.write(out / "manifest.csv", build(busi))
    rows = read_table(out / "problems.csv", ("code", "severity", "file"))
    assert [(r["code"], r["file"]) for r in rows] == [("mask-missing", "benign/benign (5).png")]
    mask.write_bytes(content)
    manifests.write(out / "manifest.csv", build(busi))
    assert not (out / "problems.csv").exists()


@pytest.mark.parametrize("name", ["manifest.csv", "problems.csv"])
def test_files_of_others_are_not_overwritten(busi: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("device,year\nx,2018\n", encoding="utf-8")
    with pytest.raises(SonobreastError, match="a file of this name exists"):
        manifests.write(out / "manifest.csv", build(busi))
    assert (out / name).read_text(encoding="utf-8") == "device,year\nx,2018\n"


# Real data


@pytest.mark.slow
def test_real_busi(real_busi: Manifest, tmp_path: Path) -> None:
    manifest = real_busi
    assert manifest.counts == {"benign": 437, "malignant": 210, "normal": 133}
    assert len(manifest.cases) == 780
    assert sum(len(c.masks) for c in manifest.cases) == 798
    assert manifest.problems == ()
    assert len({c.image for c in manifest.cases}) == 780
    assert not any("mask" in c.image for c in manifest.cases)
    manifests.write(tmp_path / "manifest.csv", manifest)
    assert build(tmp_path).cases == manifest.cases


@pytest.mark.slow
def test_real_masks_without_their_names(real_data: Path, tmp_path: Path) -> None:
    """All 798 masks of BUSI are recognised by content, and none of its 780 images is."""
    from sonobreast.data.preprocess import decode, is_mask

    files = sorted((real_data / "busi").glob("*/*.png"))
    found = Counter(("_mask" in f.name, is_mask(decode(f))) for f in files)
    assert found == {(True, True): 798, (False, False): 780}
    (tmp_path / "scans").mkdir()
    (tmp_path / "others").mkdir()
    for i, f in enumerate(p for p in files[:40] if "_mask" in p.name):
        shutil.copy(f, tmp_path / "scans" / f"{i}.png")
    for i, f in enumerate(p for p in files[:40] if "_mask" not in p.name):
        shutil.copy(f, tmp_path / "others" / f"{i}.png")
    with pytest.raises(SonobreastError, match="class 'scans' are black and white"):
        build(tmp_path)
