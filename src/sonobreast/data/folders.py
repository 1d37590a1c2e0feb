"""Readers of the published layouts: which file is an image, which one a mask, and of which class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from sonobreast.data import breast, bus_bra, bus_uclm
from sonobreast.data.case_table import is_table, read_case_table
from sonobreast.data.dicom_folder import dicom_below
from sonobreast.data.listing import (
    MASK_FOLDERS,
    MASK_NAME,
    Entry,
    Listing,
    class_name,
    is_file,
    is_image,
    is_utf8,
    known_class,
    printable,
    visible,
)
from sonobreast.errors import SonobreastError
from sonobreast.records import Problem

_BUSI = re.compile(r"^(benign|malignant|normal) ?\(\d+\)$", re.IGNORECASE)
_PUBLISHED: tuple[tuple[Callable[[Path], Path | None], Callable[[Path], Listing]], ...] = (
    (bus_bra.find, bus_bra.read),
    (bus_uclm.find, bus_uclm.read),
    (breast.find, breast.read),
)


def read_layout(source: Path) -> Listing:
    """Recognise the layout of a data set and list its images.

    Parameters
    ----------
    source : Path
        A folder in the layout of BUSI, BUS-BRA, BrEaST or BUS-UCLM (also one level deeper, also with upper-case
        names), a folder with one folder for each class, a folder with one CSV table, or a CSV file with the columns
        ``image`` and ``label`` and, where known, ``group``, ``patient``, ``mask`` and ``spacing_mm``.

    Raises
    ------
    SonobreastError
        If there is nothing there, or nothing that can be recognised.
    """
    if not source.exists():
        raise SonobreastError("there is no such folder or file", file=source, remedy="check the path")
    if source.is_file():
        return _read_file(source)
    tables = [f for f in visible(source) if f.is_file() and f.suffix.lower() == ".csv"]
    ours = [f for f in tables if f.name == "manifest.csv"]
    if not ours:
        published = _published(source)
        if published is not None:
            return published
    named = ours or [f for f in tables if is_table(f)]
    if len(named) == 1:
        return read_case_table(named[0])
    return _read_class_folders(_class_root(source))


def _read_file(source: Path) -> Listing:
    for find, read in _PUBLISHED if source.suffix.lower() in (".csv", ".xlsx") else ():
        if (find is breast.find) == (source.suffix.lower() == ".xlsx") and find(source.parent) == source:
            return read(source)
    if source.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise SonobreastError(
            "this is a single file, not a data set", file=source, remedy="give the folder that holds the classes"
        )
    return read_case_table(source)


def _published(source: Path) -> Listing | None:
    """The data set of another hospital in this folder, or in the only folder inside it."""
    here = source
    for _ in range(3):
        for find, read in _PUBLISHED:
            table = find(here)
            if table is not None:
                return read(table)
        folders = [p for p in visible(here) if p.is_dir()]
        if len(folders) != 1:
            break
        here = folders[0]
    folders = [p for p in visible(here) if p.is_dir()]
    deeper = [f.name for f in folders if any(find(f) for find, _ in _PUBLISHED)]
    if deeper:
        raise SonobreastError(
            f"there is more than one folder here, and a data set of its own in {', '.join(deeper)}",
            file=here,
            remedy=f"give one data set, for example {here / deeper[0]}",
        )
    return None


def _class_root(source: Path) -> Path:
    """The folder whose folders are the classes: ``source`` itself, or the only one inside it."""
    here = source
    for _ in range(3):
        inside = visible(here)
        folders = [p for p in inside if p.is_dir()]
        with_images = [f for f in folders if any(is_image(p) for p in visible(f)) or any(dicom_below(f))]
        if with_images:
            if len(with_images) == 1 and not known_class(with_images[0].name) and len(folders) == 1:
                _refuse_single(with_images[0])
            return here
        if len(folders) == 1:
            here = folders[0]
            continue
        nested = [f for f in folders if any(p.is_dir() for p in visible(f))]
        if nested:
            raise SonobreastError(
                f"the classes lie in {', '.join(sorted(f.name for f in folders))}: this looks like a ready split",
                file=source,
                remedy="put all images of a class into one folder, or list them in a CSV with the columns image,label",
            )
        break
    if any(is_image(p) for p in visible(source)):
        raise SonobreastError(
            "the images lie side by side without a folder for each class",
            file=source,
            remedy="make one folder for each class, or give a CSV with the columns image,label; for BUS-BRA, BrEaST "
            "and BUS-UCLM give the folder that holds their table, too (bus_data.csv, the spreadsheet, INFO.csv)",
        )
    raise SonobreastError(
        "no images found", file=source, remedy="give the folder that holds one folder of images for each class"
    )


def _refuse_single(folder: Path) -> None:
    if all(MASK_NAME.match(p.stem) for p in visible(folder) if is_image(p)):
        return  # said better, with the count, when the folder is read
    raise SonobreastError(
        f"there is a single folder of images, {folder.name!r}, and it names no class",
        file=folder,
        remedy="make one folder for each class, or give a CSV with the columns image,label",
    )


def _read_class_folders(root: Path) -> Listing:
    entries: list[Entry] = []
    problems: list[Problem] = []
    busi = True
    any_mask = False
    seen: dict[str, str] = {}
    for folder in (p for p in visible(root) if p.is_dir()):
        if folder.name.lower() in MASK_FOLDERS:
            raise SonobreastError(
                f"the folder {folder.name!r} holds masks, not a class of images",
                file=folder,
                remedy="name each mask after its image (`NAME_mask.png`) and put it beside the image, "
                "or give a CSV with the columns image,label,mask; for BUS-BRA or BUS-UCLM put their table "
                "(bus_data.csv, INFO.csv) beside the folders",
            )
        if not is_utf8(folder.name):
            raise SonobreastError(
                f"the folder's name {printable(folder.name)!r} is not UTF-8", file=root, remedy="rename it"
            )
        label = class_name(folder.name)
        if label in seen:
            raise SonobreastError(
                f"the folders {seen[label]!r} and {folder.name!r} are the same class", file=root, remedy="merge them"
            )
        named = visible(folder)
        files = [p for p in named if is_utf8(p.name)]
        problems += [
            Problem(
                code="name-not-utf8",
                severity="error",
                file=f"{folder.name}/{printable(p.name)}",
                what="the file's name is not UTF-8; left out",
                remedy="rename the file",
            )
            for p in named
            if not is_utf8(p.name)
        ]
        images = [p for p in files if is_file(p) and is_image(p)]
        nested = list(dicom_below(folder))
        if not images and not nested:
            problems.append(
                Problem(
                    code="folder-without-images",
                    severity="warning",
                    file=folder.name,
                    what="no image in this folder; it is not a class",
                    remedy="put the images directly into the class folder",
                )
            )
            continue
        seen[label] = folder.name
        found, trouble = _pair_masks(images, label, root)
        problems += trouble
        problems += [_not_an_image(p, root) for p in files if p.is_file() and not is_image(p)]
        if images and not found:
            raise SonobreastError(
                f"the {len(images)} pictures of the class {label!r} are masks by their names, not images",
                file=folder,
                remedy="give the folder that holds the images themselves",
            )
        found += [Entry(path, label) for path in nested]
        entries += found
        busi &= known_class(label) and all(_BUSI.match(e.image.stem) for e in found)
        any_mask |= any(e.masks for e in found)
    if not entries:
        raise SonobreastError(
            "no images found", file=root, remedy="give the folder that holds one folder of images for each class"
        )
    layout = "busi" if busi else "folders"
    return Listing(layout, root, tuple(entries), tuple(problems), expects_masks=busi or any_mask)


def _not_an_image(path: Path, root: Path) -> Problem:
    return Problem(
        code="not-an-image",
        severity="warning",
        file=path.relative_to(root).as_posix(),
        what=f"{path.suffix or 'a file without an ending'} is not an image format; left out",
        remedy="remove the file, or convert it to PNG",
    )


def _pair_masks(images: list[Path], label: str, root: Path) -> tuple[list[Entry], list[Problem]]:
    masks: dict[str, list[Path]] = defaultdict(list)
    plain: list[Path] = []
    for path in images:
        match = MASK_NAME.match(path.stem)
        if match:
            masks[match["image"].lower()].append(path)
        else:
            plain.append(path)
    entries = [Entry(path, label, tuple(masks.pop(path.stem.lower(), ()))) for path in plain]
    twins = [s for s, n in Counter(p.stem.lower() for p in plain).items() if n > 1]
    problems = [
        Problem(
            code="mask-without-image",
            severity="warning",
            file=mask.relative_to(root).as_posix(),
            what="a mask whose image is missing; left out",
            remedy="add the image or remove the mask",
        )
        for orphans in masks.values()
        for mask in orphans
        if plain
    ]
    problems += [
        Problem(
            code="same-name",
            severity="warning",
            file=path.relative_to(root).as_posix(),
            what="two images differ in the ending or the case of their names only",
            remedy="check whether one is a copy of the other; a mask goes to the first",
        )
        for path in plain
        if path.stem.lower() in twins
    ]
    return entries, problems
