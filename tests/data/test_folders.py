"""Which file is an image, which a mask, and of which class; what is refused."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fake import COUNTS, save_mask, speckle, write_busi, write_class_folders, write_csv

from sonobreast.data.folders import read_layout
from sonobreast.errors import SonobreastError


def names(folder: Path) -> list[str]:
    listing = read_layout(folder)
    return [e.image.relative_to(listing.root).as_posix() for e in listing.entries]


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_busi_layout(tmp_path: Path, upper: bool, nested: bool) -> None:
    listing = read_layout(write_busi(tmp_path / "data", upper=upper, nested=nested))
    assert listing.layout == "busi"
    assert Counter(e.label for e in listing.entries) == COUNTS
    assert listing.problems == ()
    assert listing.expects_masks
    masks = {e.image.stem.lower(): len(e.masks) for e in listing.entries}
    assert masks["benign (1)"] == masks["malignant (1)"] == 3
    assert masks["benign (2)"] == masks["normal (1)"] == 1
    for entry in listing.entries:
        assert "mask" not in entry.image.stem.lower()
        assert all(
            "mask" in m.stem.lower() and m.stem.lower().startswith(entry.image.stem.lower()) for m in entry.masks
        )


def test_mask_of_another_image_with_a_similar_name(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 0, "malignant": 0})
    picture, lesion = speckle(0)
    for i in (1, 10, 11):
        Image.fromarray(picture).save(folder / "benign" / f"benign ({i}).png")
    Image.fromarray(picture).save(folder / "malignant" / "malignant (1).png")
    save_mask(folder / "benign" / "benign (1)_mask.png", lesion)
    save_mask(folder / "benign" / "benign (11)_mask_1.png", lesion)
    found = {e.image.stem: [m.stem for m in e.masks] for e in read_layout(folder).entries if e.label == "benign"}
    assert found == {"benign (1)": ["benign (1)_mask"], "benign (10)": [], "benign (11)": ["benign (11)_mask_1"]}


def test_images_in_natural_order(tmp_path: Path) -> None:
    folder = write_busi(tmp_path / "data", {"benign": 11, "malignant": 1})
    assert names(folder)[:11] == [f"benign/benign ({i}).png" for i in range(1, 12)]


def test_class_folders(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"cyst": 3, "Tumour": 2, "NORMAL": 1})
    listing = read_layout(folder)
    assert listing.layout == "folders"
    assert Counter(e.label for e in listing.entries) == {"cyst": 3, "Tumour": 2, "normal": 1}
    assert not listing.expects_masks


def test_hidden_junk_is_passed_over_and_other_files_are_named(tmp_path: Path) -> None:
    folder = write_busi(tmp_path / "data")
    expected = names(folder)
    (folder / "benign" / "Thumbs.db").write_bytes(b"junk")
    (folder / "benign" / ".DS_Store").write_bytes(b"junk")
    (folder / "benign" / "._benign (1).png").write_bytes(b"junk")
    (folder / "__MACOSX" / "benign").mkdir(parents=True)
    (folder / "__MACOSX" / "benign" / "._benign (1).png").write_bytes(b"junk")
    (folder / ".cache").mkdir()
    (folder / "benign" / "notes.txt").write_text("hello")
    (folder / "README").write_text("hello")
    listing = read_layout(folder)
    assert names(folder) == expected
    assert [(p.code, p.file) for p in listing.problems] == [("not-an-image", "benign/notes.txt")]


@pytest.mark.parametrize(
    "name",
    [
        "two  words.png",
        "Größe 5 µm.png",
        "扫描.png",
        "a;b=c,d.png",
        "<script>alert(1)</script>.png".replace("/", "_"),
        "'quotes\".png",
        "10²3.png",
        "²1.png",
        "١٢.png",
        "mask.png",
        "unmasked.png",
        "-rf.png",
        "%00.png",
    ],
)
def test_strange_names_are_images(tmp_path: Path, name: str) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 1, "normal": 1})
    shutil.copy(folder / "benign" / "scan_000.png", folder / "benign" / name)
    assert f"benign/{name}" in names(folder)


def test_folders_that_are_one_class(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 1, "Benign": 1, "normal": 1})
    if len(list(folder.iterdir())) < 3:
        pytest.skip("this file system does not tell upper from lower case")
    with pytest.raises(SonobreastError, match="same class") as caught:
        read_layout(folder)
    assert "merge" in caught.value.remedy


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="no such folder"):
        read_layout(tmp_path / "nowhere")


@pytest.mark.parametrize("inside", [(), ("benign", "malignant"), ("a/b/c/d/e",)])
def test_empty_folder(tmp_path: Path, inside: tuple[str, ...]) -> None:
    for name in inside:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(SonobreastError, match="no images found") as caught:
        read_layout(tmp_path)
    assert caught.value.remedy
    assert caught.value.file == str(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 2, "malignant": 2})
    (folder / "normal").mkdir()
    assert [(p.code, p.file) for p in read_layout(folder).problems] == [("folder-without-images", "normal")]


def test_single_file_is_no_data_set(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(speckle(0)[0]).save(path)
    with pytest.raises(SonobreastError, match="single file"):
        read_layout(path)


def test_images_side_by_side(tmp_path: Path) -> None:
    Image.fromarray(speckle(0)[0]).save(tmp_path / "a.png")
    with pytest.raises(SonobreastError, match="without a folder for each class"):
        read_layout(tmp_path)


def test_one_folder_that_names_no_class(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"images": 3})
    with pytest.raises(SonobreastError, match="names no class"):
        read_layout(folder)


def test_ready_split_is_refused(tmp_path: Path) -> None:
    for subset in ("train", "test"):
        write_busi(tmp_path / "data" / subset)
    with pytest.raises(SonobreastError, match="ready split") as caught:
        read_layout(tmp_path / "data")
    assert "train" in caught.value.what


@pytest.mark.parametrize("name", ["masks", "Masks", "GT", "labels"])
def test_folder_of_masks_beside_the_classes(tmp_path: Path, name: str) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 2, "normal": 2, name: 2})
    with pytest.raises(SonobreastError, match="holds masks"):
        read_layout(folder)


@pytest.mark.parametrize("classes", [("benign", "malignant"), ("benign",), ("other",)])
def test_class_of_masks_by_their_names(tmp_path: Path, classes: tuple[str, ...]) -> None:
    for label in classes:
        (tmp_path / label).mkdir()
        for i in range(3):
            save_mask(tmp_path / label / f"{label} ({i})_mask.png", speckle(i)[1])
    with pytest.raises(SonobreastError, match="3 pictures of the class"):
        read_layout(tmp_path)


def test_mask_without_image(tmp_path: Path) -> None:
    folder = write_busi(tmp_path / "data")
    (folder / "benign" / "benign (2).png").unlink()
    listing = read_layout(folder)
    assert [(p.code, p.file) for p in listing.problems] == [("mask-without-image", "benign/benign (2)_mask.png")]
    assert len(listing.entries) == sum(COUNTS.values()) - 1


def test_images_that_differ_in_ending_only_are_named(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 2, "normal": 1})
    shutil.copy(folder / "benign" / "scan_000.png", folder / "benign" / "scan_000.bmp")
    problems = read_layout(folder).problems
    assert {(p.code, p.file) for p in problems} == {
        ("same-name", "benign/scan_000.png"),
        ("same-name", "benign/scan_000.bmp"),
    }


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 2, "normal": 2})
    odd = os.fsencode(folder / "benign") + b"/caf\xe9.png"
    try:
        shutil.copy(folder / "benign" / "scan_000.png", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    listing = read_layout(folder)
    assert len(listing.entries) == 4
    assert [(p.code, p.severity) for p in listing.problems] == [("name-not-utf8", "error")]
    listing.problems[0].file.encode()


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need a right of their own on Windows")
def test_links_in_a_circle(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 2, "normal": 2})
    expected = names(folder)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "benign" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "self").symlink_to(folder / "self")
    assert names(folder) == expected
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    (lonely / "down").symlink_to(lonely, target_is_directory=True)
    with pytest.raises(SonobreastError):
        read_layout(lonely)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need a right of their own on Windows")
def test_dangling_link_is_not_lost_in_silence(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 2, "normal": 2})
    (folder / "benign" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    listing = read_layout(folder)
    assert "benign/gone.png" in names(folder) or any("gone.png" in p.file for p in listing.problems)


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 2, "normal": 2})
    original = Path.iterdir

    def refuse(self: Path) -> object:
        if self.name == "benign":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SonobreastError, match="Permission denied"):
        read_layout(folder)


# Tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("by_folder", [False, True])
def test_csv(tmp_path: Path, delimiter: str, bom: bool, by_folder: bool) -> None:
    table = write_csv(tmp_path / "data", delimiter=delimiter, bom=bom)
    listing = read_layout(table.parent if by_folder else table)
    assert listing.layout == "csv"
    assert Counter(e.label for e in listing.entries) == COUNTS
    first, second = listing.entries[:2]
    assert (first.patient, first.group, first.spacing_mm, second.spacing_mm) == ("B0", "group-B0", None, 0.08)
    assert first.masks == (table.parent / "masks/benign_0.png",)
    assert first.extra == {"birads": "4a"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "image and label is missing"),
        ("\n\n", "image and label is missing"),
        ("image,label\n", "no rows"),
        ("image,label\n\n,\n", "no rows"),
        ("image\na.png\n", "label is missing"),
        ("image,label,Image\na.png,benign,b.png\n", "same name"),
        ("image,label\na.png,benign,x\n", "line 2 has 3 cells"),
        ("image,label\na.png\n", "line 2 has 1 cells"),
        ("image,label\na.png,\n", "line 2 has no image or no label"),
        ("image,label\na.png,benign\nb.png,normal\na.png,normal\n", "line 4 names 'a.png' again .first on line 2"),
        ("image,label\na.png,benign\n./a.png,normal\n", "line 3 names .* again"),
        ("image,label\na.png,benign\nx/../a.png,normal\n", "line 3 names .* again"),
        ("image,label,spacing_mm\na.png,benign,-1\n", "spacing of '-1'"),
        ("image,label,spacing_mm\na.png,benign,nan\n", "spacing of 'nan'"),
        ("image,label,spacing_mm\na.png,benign,80\n", "spacing of '80'"),
        ('image,label\n"a.png,benign\nb.png,normal\n', "line 2"),
    ],
)
def test_corrupt_csv(tmp_path: Path, text: str, said: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(SonobreastError, match=said) as caught:
        read_layout(table)
    assert caught.value.file == str(table)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00\x01\x9c", b"image,label\na\x00b.png,benign\n", np.random.default_rng(0).bytes(400)]
)
def test_csv_that_is_none(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    if content.startswith(b"image"):
        assert len(read_layout(table).entries) == 1  # a NUL byte is a character like others to the csv module
        return
    with pytest.raises(SonobreastError) as caught:
        read_layout(table)
    assert caught.value.file == str(table)


def test_csv_with_a_huge_cell(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,label\n" + "x" * (csv.field_size_limit() + 1) + ",benign\n", encoding="utf-8")
    with pytest.raises(SonobreastError, match="cannot be read"):
        read_layout(table)


def test_csv_labels_are_the_classes(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("Path,Diagnosis\na.png,BENIGN\nb.png, Benign \nc.png,Cyst\n", encoding="utf-8")
    assert [e.label for e in read_layout(table).entries] == ["benign", "benign", "Cyst"]


def test_other_tables_beside_class_folders_are_no_data_set(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {"benign": 2, "normal": 2})
    (folder / "scanner.csv").write_text("device,year\nx,2018\n", encoding="utf-8")
    assert read_layout(folder).layout == "folders"


# Real data


def test_real_busi(real_data: Path) -> None:
    listing = read_layout(real_data / "busi")
    assert listing.layout == "busi"
    assert Counter(e.label for e in listing.entries) == {"benign": 437, "malignant": 210, "normal": 133}
    masks = Counter()
    for entry in listing.entries:
        masks[entry.label] += len(entry.masks)
    assert masks == {"benign": 454, "malignant": 211, "normal": 133}
    assert all(e.masks for e in listing.entries)
    assert listing.problems == ()
    used = [p for e in listing.entries for p in (e.image, *e.masks)]
    assert len(set(used)) == len(used) == 780 + 798


def test_real_masks_alone_are_refused(real_data: Path, tmp_path: Path) -> None:
    for label in ("benign", "malignant"):
        (tmp_path / label).mkdir()
        for path in sorted((real_data / "busi" / label).glob("*_mask*.png"))[:5]:
            shutil.copy(path, tmp_path / label)
    with pytest.raises(SonobreastError, match="masks by their names"):
        read_layout(tmp_path)


def test_speckle_is_what_the_tests_take_it_for() -> None:
    picture, lesion = speckle(0, "benign")
    assert picture.dtype == np.uint8
    assert lesion.any()
    assert not speckle(0, "normal")[1].any()
