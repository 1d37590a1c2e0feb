"""Reader of BUS-BRA as it is published: ``Images/bus_0137-l.png``, ``Masks/mask_0137-l.png``, ``bus_data.csv``.

Gomez-Flores et al., Medical Physics 51 (2024) 3110-3123.
"""

from __future__ import annotations

from pathlib import Path

from sonobreast.data.clinical_table import ClinicalTable, further, known, read_csv
from sonobreast.data.listing import Entry, Listing, class_name, folder_named, images_by_stem, visible
from sonobreast.data.table_problems import (
    image_without_row,
    mask_missing,
    refuse_twice,
    row_without_label,
    rows_without_files,
)
from sonobreast.errors import SonobreastError
from sonobreast.records import Problem

NAME = "bus_bra"
_TABLE = "bus_data.csv"
_REQUIRED = ("id", "case", "pathology")


def find(folder: Path) -> Path | None:
    """The table of the data set, if this folder holds it."""
    return next((p for p in visible(folder) if p.name.lower() == _TABLE and p.is_file()), None)


def read(table: Path) -> Listing:
    """List the images of BUS-BRA.

    ``Case`` is the patient, ``Pathology`` the class. Every image shows one lesion and has one mask. The table gives no
    pixel spacing.

    Parameters
    ----------
    table : Path
        ``bus_data.csv``; ``Images`` and ``Masks`` lie beside it.

    Raises
    ------
    SonobreastError
        If the table cannot be read, lacks a column or names an image twice; if there is no folder of images, or none
        of the images is there.
    """
    root = table.parent
    folder, masks = folder_named(root, "images"), folder_named(root, "masks")
    if folder is None:
        raise SonobreastError(
            "the folder Images is missing",
            file=root,
            remedy="unpack the whole archive of BUS-BRA: Images, Masks and bus_data.csv lie side by side",
        )
    clinical = read_csv(table, _REQUIRED)
    pictures = images_by_stem(folder)
    outlines = {} if masks is None else images_by_stem(masks)
    entries, problems = _entries(clinical, pictures, outlines, root)
    return Listing(NAME, root, tuple(entries), (*clinical.problems, *problems), expects_masks=False)


def _entries(
    clinical: ClinicalTable, pictures: dict[str, Path], outlines: dict[str, Path], root: Path
) -> tuple[list[Entry], list[Problem]]:
    entries: list[Entry] = []
    problems: list[Problem] = []
    absent: list[str] = []
    seen: dict[str, int] = {}
    for line in clinical.lines:
        name = line.cells["id"]
        refuse_twice(clinical.path, line, name, seen)
        image = pictures.get(name.lower())
        if image is None:
            absent.append(name)
            continue
        shown = image.relative_to(root).as_posix()
        label = known(line.cells["pathology"])
        if not label:
            problems.append(row_without_label(shown, "Pathology", clinical))
            continue
        mask = outlines.get("mask_" + name.lower().removeprefix("bus_"))
        if mask is None:
            problems.append(mask_missing(shown))
        entries.append(
            Entry(
                image=image,
                label=class_name(label),
                masks=() if mask is None else (mask,),
                patient=known(line.cells["case"]),
                extra=further(line.cells, _REQUIRED, {}),
            )
        )
    problems += rows_without_files(clinical, absent)
    problems += [
        image_without_row(path.relative_to(root).as_posix(), clinical)
        for stem, path in pictures.items()
        if stem not in seen
    ]
    return entries, problems
