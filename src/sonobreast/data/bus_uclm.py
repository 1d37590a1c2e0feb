"""Reader of BUS-UCLM as it is published: ``images``, colour ``masks`` of the same names, ``INFO.csv``.

Vallez et al., Scientific Data 12 (2025), doi:10.1038/s41597-025-04562-3: black is normal tissue, green a benign and red
a malignant lesion.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.clinical_table import ClinicalTable, further, known, read_csv
from sonobreast.data.listing import Entry, Listing, class_name, folder_named, images_by_stem, printable, visible
from sonobreast.data.preprocess import decode, quiet
from sonobreast.data.table_problems import mask_missing, refuse_twice, rows_without_files
from sonobreast.errors import SonobreastError
from sonobreast.records import Problem

NAME = "bus_uclm"
_TABLE = "info.csv"
_IMAGE = ("image", "image_name", "image_filename", "filename", "file_name", "file", "name", "id")
_LABEL = ("label", "class", "pathology", "classification", "diagnosis")
_PATIENT = re.compile(r"^([A-Za-z]{4})[_-]")


def find(folder: Path) -> Path | None:
    """The table of the data set, if this folder holds it and the two folders."""
    table = next((p for p in visible(folder) if p.name.lower() == _TABLE and p.is_file()), None)
    there = table is not None and folder_named(folder, "images") and folder_named(folder, "masks")
    return table if there else None


def read(table: Path) -> Listing:
    """List the images of BUS-UCLM.

    The class of an image is the colour of its mask; an image with both colours is malignant, because the graver
    finding decides what happens to the patient, and it is named as a problem. Where ``INFO.csv`` has a label it is
    compared; it decides only for an image without a readable mask. The first four letters of a name are the patient.
    A mask of another size than its image is scaled if both have the same shape
    (`sonobreast.data.mask_size.fit_mask`).

    Parameters
    ----------
    table : Path
        ``INFO.csv``; ``images`` and ``masks`` lie beside it.

    Raises
    ------
    SonobreastError
        If the table cannot be read, has no column of image names or names an image twice; if there is no image.
    """
    root = table.parent
    folder, masks = folder_named(root, "images"), folder_named(root, "masks")
    if folder is None or masks is None:
        missing = "images" if folder is None else "masks"
        raise SonobreastError(
            f"the folder {missing} is missing",
            file=root,
            remedy="unpack the whole archive of BUS-UCLM: images, masks and INFO.csv lie side by side",
        )
    clinical = read_csv(table, ())
    pictures, outlines = images_by_stem(folder), images_by_stem(masks)
    if not pictures:
        raise SonobreastError("no images found", file=folder, remedy="unpack the whole archive of BUS-UCLM")
    lines, absent = _lines(clinical, pictures)
    with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        colours = dict(zip(outlines, pool.map(_mask_labels, outlines.values()), strict=True))
    entries: list[Entry] = []
    problems = [*clinical.problems, *rows_without_files(clinical, absent)]
    for stem, path in pictures.items():
        shown = printable(path.relative_to(root).as_posix())
        said, extra = lines.get(stem, ("", dict.fromkeys(_empty(clinical), "")))
        if stem not in lines:
            problems.append(_not_listed(shown, clinical))
        label, trouble = _label(colours.get(stem), said, shown)
        problems += trouble
        if not label:
            continue
        mask = outlines.get(stem)
        if mask is None:
            problems.append(mask_missing(shown))
        patient = _PATIENT.match(path.stem)
        entries.append(
            Entry(
                image=path,
                label=label,
                masks=() if mask is None else (mask,),
                patient=patient[1].upper() if patient else "",
                extra=extra,
            )
        )
    problems += [_no_image(p.relative_to(root).as_posix()) for stem, p in outlines.items() if stem not in pictures]
    return Listing(NAME, root, tuple(entries), tuple(problems), expects_masks=False)


def _lines(
    clinical: ClinicalTable, pictures: Mapping[str, Path]
) -> tuple[dict[str, tuple[str, dict[str, str]]], list[str]]:
    """What the table says: stem of an image -> label and the rest; and the images that are not here."""
    image = next((c for c in _IMAGE if c in clinical.columns), None)
    if image is None:
        raise SonobreastError(
            f"no column names the images; there are: {', '.join(clinical.columns)}",
            file=clinical.path,
            remedy="take INFO.csv as it was published, or name the column Image",
        )
    label = next((c for c in _LABEL if c in clinical.columns), "")
    lines: dict[str, tuple[str, dict[str, str]]] = {}
    absent: list[str] = []
    seen: dict[str, int] = {}
    for line in clinical.lines:
        name = line.cells[image]
        stem = Path(name).stem if Path(name).suffix.lower() == ".png" else name
        refuse_twice(clinical.path, line, stem, seen)
        if stem.lower() not in pictures:
            absent.append(name)
            continue
        lines[stem.lower()] = known(line.cells.get(label, "")), further(line.cells, (image, label), {})
    return lines, absent


def _empty(clinical: ClinicalTable) -> list[str]:
    used = {next((c for c in names if c in clinical.columns), "") for names in (_IMAGE, _LABEL)}
    return list(further(dict.fromkeys(clinical.columns, ""), used, {}))


def mask_labels(rgb: NDArray[np.uint8]) -> frozenset[str]:
    """The classes of the lesions in a colour mask.

    Parameters
    ----------
    rgb : ndarray, uint8, (H, W, 3)

    Returns
    -------
    frozenset of {"benign", "malignant", "other"}
        Empty for a black mask; ``other`` for a colour that the legend does not have.
    """
    level = rgb.max(axis=2)
    red, green, blue = (rgb[..., i].astype(np.int16) for i in range(3))
    # Half of the largest value, as `decode_mask` has it: both must find the same lesion.
    lesion = level > level.max() // 2
    benign = lesion & (green > np.maximum(red, blue))
    malignant = lesion & (red > np.maximum(green, blue))
    found = {"benign": benign.any(), "malignant": malignant.any(), "other": (lesion & ~benign & ~malignant).any()}
    return frozenset(name for name, there in found.items() if there)


def _mask_labels(path: Path) -> frozenset[str] | None:
    try:
        return mask_labels(decode(path))
    except SonobreastError:
        return None  # said when the image is read


def _label(colours: frozenset[str] | None, said: str, image: str) -> tuple[str, list[Problem]]:
    """The class of an image and what is to be said about it; no class where neither mask nor table has one."""
    said = class_name(said)
    problems = []
    if colours is None or colours == {"other"}:
        why = "its mask has no colour of the legend" if colours else "it has no readable mask"
        if said:
            return said, [_problem("label-from-table", image, f"{why}; its class is that of INFO.csv", "add the mask")]
        what = f"{why}, and INFO.csv has no label for it; left out"
        return "", [
            Problem(code="no-label", severity="error", file=image, what=what, remedy="add the mask, or a label")
        ]
    if "other" in colours:
        problems.append(
            _problem("mask-colour", image, "its mask has a third colour beside green and red", "look at the mask")
        )
    label = "malignant" if "malignant" in colours else "benign" if "benign" in colours else "normal"
    if {"benign", "malignant"} <= colours:
        what = "its mask shows a benign and a malignant lesion; the image counts as malignant"
        problems.append(_problem("two-labels", image, what, "exclude it with --exclude, if that is not wanted"))
    if said and said != label:
        what = f"the mask's colour says {label}, INFO.csv {said}; the mask decides"
        problems.append(_problem("label-differs", image, what, "look at the image; correct the mask or INFO.csv"))
    return label, problems


def _problem(code: str, image: str, what: str, remedy: str) -> Problem:
    return Problem(code=code, severity="warning", file=image, what=what, remedy=remedy)


def _not_listed(image: str, clinical: ClinicalTable) -> Problem:
    what = f"{clinical.path.name} has no row for this image; its class is that of the mask"
    return _problem("image-without-row", image, what, "nothing; or take the table that belongs to the images")


def _no_image(mask: str) -> Problem:
    what = "a mask whose image is missing; left out"
    return _problem("mask-without-image", printable(mask), what, "add the image or remove the mask")
