"""What can be wrong between the table of a published data set and its files, in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sonobreast.data.clinical_table import ClinicalTable, Line
from sonobreast.data.listing import printable
from sonobreast.errors import SonobreastError
from sonobreast.records import Problem


def rows_without_files(table: ClinicalTable, missing: Sequence[str]) -> list[Problem]:
    """One sentence for all lines whose image is not here: a part of a data set is no error.

    Raises
    ------
    SonobreastError
        If that is every line.
    """
    if not missing:
        return []
    total = len(table.lines)
    if len(missing) == total:
        raise SonobreastError(
            f"none of the {total} images that the table names is here (the first: {missing[0]})",
            file=table.path,
            remedy="put the folder of images beside the table, as it was published",
        )
    return [
        Problem(
            code="rows-without-image",
            severity="warning",
            file=table.path.name,
            what=f"{len(missing)} of the {total} rows name an image that is not here (the first: {missing[0]}); "
            f"the {total - len(missing)} others are used",
            remedy="nothing, if a part of the data set is meant; else download the rest of the images",
        )
    ]


def image_without_row(name: str, table: ClinicalTable) -> Problem:
    """An image of which the table says nothing."""
    return Problem(
        code="image-without-row",
        severity="error",
        file=printable(name),
        what=f"{table.path.name} has no row for this image, so its class is not known; left out",
        remedy="add a row to the table, or remove the image",
    )


def row_without_label(name: str, column: str, table: ClinicalTable) -> Problem:
    """A line that gives no class."""
    return Problem(
        code="row-without-label",
        severity="error",
        file=name,
        what=f"{table.path.name} has nothing in the column {column} for this image; left out",
        remedy="complete the row, or remove the image",
    )


def mask_missing(name: str) -> Problem:
    """An image whose mask is not where the layout has it."""
    return Problem(
        code="mask-missing",
        severity="warning",
        file=name,
        what="the image's mask is missing; the image is used for classification only",
        remedy="put the mask where the data set has it, under its published name",
    )


def refuse_twice(path: Path, line: Line, name: str, seen: dict[str, int]) -> None:
    """Keep an image's line in ``seen``.

    Raises
    ------
    SonobreastError
        If another line named the image, or this one names none.
    """
    if not name:
        raise SonobreastError(f"line {line.number} names no image", file=path, remedy="complete or remove the line")
    if name.lower() in seen:
        raise SonobreastError(
            f"line {line.number} names {name!r} again (first on line {seen[name.lower()]})",
            file=path,
            remedy="keep one line for each image",
        )
    seen[name.lower()] = line.number
