"""An institution's own table of images: a CSV with the columns ``image`` and ``label`` and what else is known."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from sonobreast.data.listing import OURS, Entry, Listing, class_name
from sonobreast.errors import SonobreastError

# Columns of a table that have a meaning here; all others are kept as text beside the image.
_COLUMNS = {
    "image": ("image", "path", "file", "filename", "image_path"),
    "label": ("label", "class", "diagnosis"),
    "mask": ("mask", "masks", "mask_path"),
    "group": ("group",),
    "patient": ("patient", "patient_id", "case"),
    "spacing_mm": ("spacing_mm", "pixel_spacing_mm"),
}


def is_table(path: Path) -> bool:
    """Whether a CSV lists images and labels."""
    try:
        header = {c.strip().lower() for c in next(csv_rows(path), [])}
    except SonobreastError:
        return False
    return all(any(name in header for name in _COLUMNS[c]) for c in ("image", "label"))


def csv_rows(path: Path, encoding: str = "utf-8-sig") -> Iterator[list[str]]:
    """Rows of a CSV with commas, semicolons or tabs, whichever its first line has most of.

    Raises
    ------
    SonobreastError
        If the file cannot be read in this encoding, or is not CSV.
    """
    try:
        with path.open(encoding=encoding, newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=head.count)
            yield from csv.reader(stream, delimiter=delimiter)
    except (OSError, UnicodeError, csv.Error) as error:
        raise SonobreastError(
            f"the table cannot be read ({error})", file=path, remedy="save it as CSV in UTF-8"
        ) from error


def read_case_table(path: Path) -> Listing:
    """List the images of a table.

    Parameters
    ----------
    path : Path
        A CSV with the columns ``image`` and ``label`` (or a usual name for them) and, where known, ``group``,
        ``patient``, ``mask`` (several separated by ``|``) and ``spacing_mm``; all other columns are kept as text.

    Raises
    ------
    SonobreastError
        If a column is missing or there twice, a line is incomplete, an image is named twice, or a pixel spacing is
        not possible.
    """
    rows = csv_rows(path)
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
                label=class_name(cell["label"]),
                masks=tuple(root / m.strip() for m in cell.get("mask", "").split("|") if m.strip()),
                patient=cell.get("patient", ""),
                group=cell.get("group", ""),
                spacing_mm=_spacing(cell.get("spacing_mm", ""), number, path),
                source=row[lowered.index("source")].strip() if "source" in lowered else "",
                extra={
                    header[i]: row[i].strip() for i in range(len(header)) if i not in used and lowered[i] not in OURS
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
