"""Reader of BrEaST as TCIA publishes it (Breast-Lesions-USG): a spreadsheet and a folder of images and masks.

Pawlowska et al., Scientific Data 11 (2024) 148; doi:10.7937/9WKK-Q141.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sonobreast.data.clinical_table import ClinicalTable, Line, further, known, read_xlsx, xlsx_columns
from sonobreast.data.listing import Entry, Listing, class_name, images_by_name, visible
from sonobreast.data.table_problems import (
    image_without_row,
    mask_missing,
    refuse_twice,
    row_without_label,
    rows_without_files,
)
from sonobreast.errors import SonobreastError
from sonobreast.records import Problem

NAME = "breast"
_REQUIRED = ("caseid", "image_filename", "mask_tumor_filename", "classification")
_USED = (*_REQUIRED, "mask_other_filename", "pixel_size")
_MASK = re.compile(r"_(tumor|other)\d*$", re.IGNORECASE)
_POSSIBLE_MM = (0.02, 0.5)
"""At 0.02 mm a picture 500 pixels deep shows 1 cm of tissue, at 0.5 mm 25 cm; breast ultrasound shows 1 to 8 cm."""


def find(folder: Path) -> Path | None:
    """The spreadsheet of the data set, if this folder holds it.

    Raises
    ------
    SonobreastError
        If there are two, or one that has the data set's name is damaged.
    """
    found = []
    for path in visible(folder):
        if path.suffix.lower() != ".xlsx" or path.name.startswith("~$") or not path.is_file():
            continue
        try:
            columns = xlsx_columns(path)
        except SonobreastError:
            if not path.name.lower().startswith("breast"):
                continue  # somebody else's
            raise
        # Two of them: a column that was renamed is then named by the reader.
        if "image_filename" in columns and columns & {"classification", "mask_tumor_filename", "caseid"}:
            found.append(path)
    if len(found) > 1:
        raise SonobreastError(
            f"there are {len(found)} spreadsheets of BrEaST: {', '.join(sorted(p.name for p in found))}",
            file=folder,
            remedy="keep one of them here",
        )
    return found[0] if found else None


def read(table: Path) -> Listing:
    """List the images of BrEaST; one image a patient.

    The lesion is what ``Mask_tumor_filename`` names. The masks of ``Mask_other_filename`` ("other suspicious lesions")
    are no lesions here: among the seven images that have them are filled ducts and a silicone implant that takes up
    most of the picture (case 38), and class, BI-RADS category and histology are the tumour's. Their names are kept in
    ``extra["other_masks"]``. An image of the class normal has no mask.

    ``Pixel_size`` is in centimetres, as the spreadsheet's own dictionary says. In millimetres the pictures of 64 cases
    are 15 to 77 mm deep (median 42), and the tumours have the areas of circles of 4 to 47 mm (median 10): so it is in
    breast ultrasound, and ten times more or less is not.

    Parameters
    ----------
    table : Path
        The spreadsheet; the images lie beside it or in a folder below.

    Raises
    ------
    SonobreastError
        If the spreadsheet is damaged, lacks a column or names an image twice, or none of the images is there.
    """
    root = table.parent
    clinical = read_xlsx(table, _REQUIRED)
    pictures, twice = images_by_name(root)
    problems = [_twice(path, root) for path in twice]
    entries: list[Entry] = []
    absent: list[str] = []
    seen: dict[str, int] = {}
    masks_named: set[str] = set()
    for line in clinical.lines:
        name = line.cells["image_filename"]
        refuse_twice(clinical.path, line, name, seen)
        image = pictures.get(name.lower())
        named = _names(line, "mask_tumor_filename") + _names(line, "mask_other_filename")
        masks_named |= {n.lower() for n in named}
        if image is None:
            absent.append(name)
        else:
            entry, trouble = _entry(line, image, pictures, clinical, root)
            entries += entry
            problems += trouble
    problems += rows_without_files(clinical, absent)
    for name, path in pictures.items():
        if name not in seen and name not in masks_named and not _MASK.search(path.stem):
            problems.append(image_without_row(path.relative_to(root).as_posix(), clinical))
    return Listing(NAME, root, tuple(entries), (*clinical.problems, *problems), expects_masks=False)


def _names(line: Line, column: str) -> list[str]:
    """File names of a cell; several are joined by ``&``."""
    return [n.strip() for n in known(line.cells.get(column, "")).split("&") if n.strip()]


def _entry(
    line: Line, image: Path, pictures: dict[str, Path], clinical: ClinicalTable, root: Path
) -> tuple[list[Entry], list[Problem]]:
    shown = image.relative_to(root).as_posix()
    label = known(line.cells["classification"])
    if not label:
        return [], [row_without_label(shown, "Classification", clinical)]
    tumours = _names(line, "mask_tumor_filename")
    masks = [pictures[n.lower()] for n in tumours if n.lower() in pictures]
    problems = []
    if len(masks) < len(tumours) or not (tumours or label.lower() == "normal"):
        problems.append(mask_missing(shown))
    others = [pictures[n.lower()] for n in _names(line, "mask_other_filename") if n.lower() in pictures]
    spacing, trouble = _spacing(line, shown)
    entry = Entry(
        image=image,
        label=class_name(label),
        masks=tuple(masks),
        patient=known(line.cells["caseid"]),
        spacing_mm=spacing,
        extra={
            **further(line.cells, _USED, {"diagnosis": "histology"}),
            "other_masks": "|".join(p.relative_to(root).as_posix() for p in others),
        },
    )
    return [entry], problems + trouble


def _spacing(line: Line, image: str) -> tuple[float | None, list[Problem]]:
    """Pixel spacing in millimetres from centimetres; none where that is not possible."""
    text = known(line.cells.get("pixel_size", ""))
    if not text:
        return None, []
    try:
        value = 10.0 * float(text.replace(",", "."))
    except ValueError:
        value = float("nan")
    if _POSSIBLE_MM[0] <= value <= _POSSIBLE_MM[1]:
        return round(value, 9), []  # 0.00726979 cm is 0.0726979 mm, not 0.07269789999999999
    return None, [
        Problem(
            code="spacing-not-possible",
            severity="warning",
            file=image,
            what=f"a pixel size of {text!r} cm is not possible; the image is used without millimetres",
            remedy="correct the cell: centimetres a pixel, about 0.008",
        )
    ]


def _twice(paths: Sequence[Path], root: Path) -> Problem:
    first, other = (p.relative_to(root).as_posix() for p in paths[:2])
    return Problem(
        code="same-name",
        severity="warning",
        file=other,
        what="a file of this name lies in two folders; the first is used",
        remedy=f"remove the copy ({first} is used)",
    )
