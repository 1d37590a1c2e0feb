"""What a layout names before anything of it was read, and the looks at a folder that every reader needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sonobreast.errors import SonobreastError
from sonobreast.records import LESION_CLASSES, Problem

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"})
OURS = frozenset({"width", "height", "sha256", "source", "schema_version", "root"})
"""Columns of ``manifest.csv`` that the program fills: never taken for what a data set says of an image."""
_JUNK = frozenset({"thumbs.db", "desktop.ini", "problems.csv", "split.csv", "phantom.json"})


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
    """Whether the name ends as an image's does."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_file(path: Path) -> bool:
    """A file, or a link to one that is gone: that is named when it is opened, not lost in silence."""
    return path.is_file() or (path.is_symlink() and not path.exists())


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
