"""What a layout names before anything of it was read, and the looks at a folder that every reader needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sonobreast.data.dicom import SUFFIXES as DICOM_SUFFIXES
from sonobreast.data.dicom import is_dicom
from sonobreast.errors import SonobreastError
from sonobreast.records import LESION_CLASSES, Problem

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"}) | DICOM_SUFFIXES
OURS = frozenset({"width", "height", "sha256", "source", "schema_version", "root"})
"""Columns of ``manifest.csv`` that the program fills: never taken for what a data set says of an image."""
MASK_NAME = re.compile(r"^(?P<image>.+?)[ _-]mask(?:[ _-]?\(?\d+\)?)?$", re.IGNORECASE)
"""Stem of a mask that lies beside its image."""
MASK_FOLDERS = frozenset({"mask", "masks", "labels", "ground_truth", "groundtruth", "gt", "segmentation", "seg"})
_JUNK = frozenset({"thumbs.db", "desktop.ini", "problems.csv", "split.csv", "phantom.json", "dicomdir"})


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
    layout : {"busi", "bus_bra", "breast", "bus_uclm", "folders", "csv"}
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


def visible(folder: Path) -> list[Path]:
    """Files and folders inside, in natural order, without hidden ones and what operating systems leave behind."""
    try:
        names = sorted(folder.iterdir(), key=lambda p: natural(p.name))
    except OSError as error:
        raise SonobreastError(
            f"the folder cannot be read ({error.strerror})", file=folder, remedy="check its permissions"
        ) from error
    hidden = (".", "__MACOSX")
    return [p for p in names if not p.name.startswith(hidden) and p.name.lower() not in _JUNK]


def natural(name: str) -> tuple[object, ...]:
    """Sort key by which 2 comes before 10."""
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in re.split(r"(\d+)", name) if p)


def is_image(path: Path) -> bool:
    """Whether the name ends as an image's does, or the file is DICOM: on a PACS's discs these have no ending."""
    return path.suffix.lower() in IMAGE_SUFFIXES or (path.is_file() and is_dicom(path))


def is_file(path: Path) -> bool:
    """A file, or a link to one that is gone: that is named when it is opened, not lost in silence."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def folder_named(root: Path, name: str) -> Path | None:
    """The folder of this name inside, in upper or lower case."""
    return next((p for p in visible(root) if p.name.lower() == name and p.is_dir()), None)


def images_by_stem(folder: Path) -> dict[str, Path]:
    """Images of a folder by their names without ending, in lower case; of two, the first."""
    found: dict[str, Path] = {}
    for path in visible(folder):
        if is_image(path) and is_file(path):
            found.setdefault(path.stem.lower(), path)
    return found


def images_by_name(root: Path, depth: int = 3) -> tuple[dict[str, Path], list[tuple[Path, Path]]]:
    """Images of a folder and of those below it, by their names in lower case, the nearest first.

    Returns
    -------
    images : dict of str to Path
    twice : list of (Path, Path)
        An image, and another of the same name that is farther away.
    """
    found: dict[str, Path] = {}
    twice = []
    here = [root]
    for _ in range(depth + 1):
        inside = [p for folder in here for p in visible(folder)]
        for path in inside:
            if is_image(path) and is_file(path) and found.setdefault(path.name.lower(), path) != path:
                twice.append((found[path.name.lower()], path))
        here = [p for p in inside if p.is_dir()]
    return found, twice


def is_utf8(name: str) -> bool:
    """Whether a name can be written into a table."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A name that is not UTF-8, with its odd bytes spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def known_class(name: str) -> bool:
    """Whether a folder or a label is one of the three classes, in upper or lower case."""
    return name.lower() in LESION_CLASSES


def class_name(label: str) -> str:
    """A known class in lower case; any other label as it is."""
    return label.lower() if known_class(label) else label
