"""Readers of the published layouts: which file is an image, which one a mask, and of which class."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sonobreast.errors import SonobreastError
from sonobreast.records import LESION_CLASSES, Problem

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"})
_MASK = re.compile(r"^(?P<image>.+?)[ _-]mask(?:[ _-]?\(?\d+\)?)?$", re.IGNORECASE)
_BUSI = re.compile(r"^(benign|malignant|normal) ?\(\d+\)$", re.IGNORECASE)
_JUNK = frozenset({"thumbs.db", "desktop.ini", "problems.csv", "split.csv", "phantom.json"})
_MASK_FOLDERS = frozenset({"mask", "masks", "labels", "ground_truth", "groundtruth", "gt", "segmentation", "seg"})
# Columns of a table that have a meaning here; all others are kept as text beside the image.
_COLUMNS = {
    "image": ("image", "path", "file", "filename", "image_path"),
    "label": ("label", "class", "diagnosis"),
    "mask": ("mask", "masks", "mask_path"),
    "group": ("group",),
    "patient": ("patient", "patient_id", "case"),
    "spacing_mm": ("spacing_mm", "pixel_spacing_mm"),
}
_OURS = frozenset({"width", "height", "sha256", "source", "schema_version", "root"})


@dataclass(frozen=True)
class Entry:
    """An image that a layout names, before anything of it was read."""

    image: Path
    label: str
    masks: tuple[Path, ...] = ()
    patient: str = ""
    group: str = ""
    spacing_mm: float | None = None
    source: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    Attributes
    ----------
    layout : {"busi", "folders", "csv"}
    root : Path
        Folder that the images' names are relative to.
    entries : tuple of Entry
    problems : tuple of Problem
    expects_masks : bool
        Whether an image without a mask is worth a warning.
    """

    layout: str
    root: Path
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]
    expects_masks: bool


def read_layout(source: Path) -> Listing:
    """Recognise the layout of a data set and list its images.

    Parameters
    ----------
    source : Path
        A folder in the BUSI layout (also one level deeper, also with upper-case names), a folder with one folder for
        each class, a folder with one CSV table, or a CSV file with the columns ``image`` and ``label`` and, where
        known, ``group``, ``patient``, ``mask`` and ``spacing_mm``.

    Raises
    ------
    SonobreastError
        If there is nothing there, or nothing that can be recognised.
    """
    if not source.exists():
        raise SonobreastError("there is no such folder or file", file=source, remedy="check the path")
    if source.is_file():
        if source.suffix.lower() not in (".csv", ".tsv", ".txt"):
            raise SonobreastError(
                "this is a single file, not a data set", file=source, remedy="give the folder that holds the classes"
            )
        return _read_csv(source)
    tables = [f for f in _visible(source) if f.is_file() and f.suffix.lower() == ".csv"]
    manifests = [f for f in tables if f.name == "manifest.csv"] or [f for f in tables if _is_table(f)]
    if len(manifests) == 1:
        return _read_csv(manifests[0])
    root = _class_root(source)
    return _read_class_folders(root)


def _visible(folder: Path) -> list[Path]:
    try:
        names = sorted(folder.iterdir(), key=lambda p: _natural(p.name))
    except OSError as error:
        raise SonobreastError(
            f"the folder cannot be read ({error.strerror})", file=folder, remedy="check its permissions"
        ) from error
    hidden = (".", "__MACOSX")
    return [p for p in names if not p.name.startswith(hidden) and p.name.lower() not in _JUNK]


def _natural(name: str) -> tuple[object, ...]:
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in re.split(r"(\d+)", name) if p)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_file(path: Path) -> bool:
    """A file, or a link to one that is gone: that is named when it is opened, not lost in silence."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _class_root(source: Path) -> Path:
    """The folder whose folders are the classes: ``source`` itself, or the only one inside it."""
    here = source
    for _ in range(3):
        inside = _visible(here)
        folders = [p for p in inside if p.is_dir()]
        with_images = [f for f in folders if any(_is_image(p) for p in _visible(f))]
        if with_images:
            if len(with_images) == 1 and not _known_class(with_images[0].name) and len(folders) == 1:
                _refuse_single(with_images[0])
            return here
        if len(folders) == 1:
            here = folders[0]
            continue
        nested = [f for f in folders if any(p.is_dir() for p in _visible(f))]
        if nested:
            raise SonobreastError(
                f"the classes lie in {', '.join(sorted(f.name for f in folders))}: this looks like a ready split",
                file=source,
                remedy="put all images of a class into one folder, or list them in a CSV with the columns image,label",
            )
        break
    if any(_is_image(p) for p in _visible(source)):
        raise SonobreastError(
            "the images lie side by side without a folder for each class",
            file=source,
            remedy="make one folder for each class, or give a CSV with the columns image,label",
        )
    raise SonobreastError(
        "no images found", file=source, remedy="give the folder that holds one folder of images for each class"
    )


def _refuse_single(folder: Path) -> None:
    if all(_MASK.match(p.stem) for p in _visible(folder) if _is_image(p)):
        return  # said better, with the count, when the folder is read
    raise SonobreastError(
        f"there is a single folder of images, {folder.name!r}, and it names no class",
        file=folder,
        remedy="make one folder for each class, or give a CSV with the columns image,label",
    )


def _known_class(name: str) -> bool:
    return name.lower() in LESION_CLASSES


def _class_name(folder: str) -> str:
    return folder.lower() if _known_class(folder) else folder


def _read_class_folders(root: Path) -> Listing:
    entries: list[Entry] = []
    problems: list[Problem] = []
    busi = True
    any_mask = False
    seen: dict[str, str] = {}
    for folder in (p for p in _visible(root) if p.is_dir()):
        if folder.name.lower() in _MASK_FOLDERS:
            raise SonobreastError(
                f"the folder {folder.name!r} holds masks, not a class of images",
                file=folder,
                remedy="name each mask after its image (`NAME_mask.png`) and put it beside the image, "
                "or give a CSV with the columns image,label,mask",
            )
        if not _is_utf8(folder.name):
            raise SonobreastError(
                f"the folder's name {_printable(folder.name)!r} is not UTF-8", file=root, remedy="rename it"
            )
        label = _class_name(folder.name)
        if label in seen:
            raise SonobreastError(
                f"the folders {seen[label]!r} and {folder.name!r} are the same class", file=root, remedy="merge them"
            )
        named = _visible(folder)
        files = [p for p in named if _is_utf8(p.name)]
        problems += [
            Problem(
                code="name-not-utf8",
                severity="error",
                file=f"{folder.name}/{_printable(p.name)}",
                what="the file's name is not UTF-8; left out",
                remedy="rename the file",
            )
            for p in named
            if not _is_utf8(p.name)
        ]
        images = [p for p in files if _is_file(p) and _is_image(p)]
        if not images:
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
        problems += [_not_an_image(p, root) for p in files if p.is_file() and not _is_image(p)]
        if not found:
            raise SonobreastError(
                f"the {len(images)} pictures of the class {label!r} are masks by their names, not images",
                file=folder,
                remedy="give the folder that holds the images themselves",
            )
        entries += found
        busi &= _known_class(label) and all(_BUSI.match(e.image.stem) for e in found)
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
        match = _MASK.match(path.stem)
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


def _is_table(path: Path) -> bool:
    try:
        header = {c.strip().lower() for c in next(_rows(path), [])}
    except SonobreastError:
        return False
    return all(any(name in header for name in _COLUMNS[c]) for c in ("image", "label"))


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=head.count)
            yield from csv.reader(stream, delimiter=delimiter)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SonobreastError(
            f"the table cannot be read ({error})", file=path, remedy="save it as CSV in UTF-8"
        ) from error


def _read_csv(path: Path) -> Listing:
    rows = _rows(path)
    header = [c.strip() for c in next(rows, [])]
    lowered = [c.lower() for c in header]
    if len(set(lowered)) != len(lowered):
        raise SonobreastError("two columns have the same name", file=path, remedy="rename one of them")
    where = {
        meaning: lowered.index(name)
        for meaning, names in reversed(_COLUMNS.items())
        for name in reversed(names)
        if name in lowered
    }
    missing = [c for c in ("image", "label") if c not in where]
    if missing:
        raise SonobreastError(
            f"column {' and '.join(missing)} is missing; there are: {', '.join(header) or 'none'}",
            file=path,
            remedy="name the columns image and label; group, patient, mask and spacing_mm are optional",
        )
    used = set(where.values())
    root = path.parent
    if "root" in lowered:
        used.add(lowered.index("root"))
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise SonobreastError(
                f"line {number} has {len(row)} cells, the header has {len(header)}",
                file=path,
                remedy="check quotes and separators of that line",
            )
        cell = {meaning: row[i].strip() for meaning, i in where.items()}
        if not cell["image"] or not cell["label"]:
            raise SonobreastError(f"line {number} has no image or no label", file=path, remedy="complete the line")
        if "root" in lowered and not entries:
            root = path.parent / row[lowered.index("root")].strip()
        place = os.path.normpath(root / cell["image"])  # ./a.png is a.png
        if place in seen:
            raise SonobreastError(
                f"line {number} names {cell['image']!r} again (first on line {seen[place]})",
                file=path,
                remedy="keep one line for each image",
            )
        seen[place] = number
        entries.append(
            Entry(
                image=root / cell["image"],
                label=_class_name(cell["label"]),
                masks=tuple(root / m.strip() for m in cell.get("mask", "").split("|") if m.strip()),
                patient=cell.get("patient", ""),
                group=cell.get("group", ""),
                spacing_mm=_spacing(cell.get("spacing_mm", ""), number, path),
                source=row[lowered.index("source")].strip() if "source" in lowered else "",
                extra={
                    header[i]: row[i].strip() for i in range(len(header)) if i not in used and lowered[i] not in _OURS
                },
            )
        )
    if not entries:
        raise SonobreastError("the table has no rows", file=path, remedy="list one image on each line")
    return Listing("csv", root, tuple(entries), (), expects_masks=any(e.masks for e in entries))


def _spacing(text: str, line: int, path: Path) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 < value < 10.0:
        raise SonobreastError(
            f"line {line}: a pixel spacing of {text!r} mm is not possible",
            file=path,
            remedy="correct or empty the cell",
        )
    return value
