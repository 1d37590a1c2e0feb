"""DICOM files in a data set: what their headers add to the manifest, and the folders that a PACS makes inside a class.

Labels come from the class folders or the CSV, as for other images. Patient, pixel spacing and device come from the
files where the table does not give them. Every patient is written as a keyed hash, also one that the table names:
``data.pseudonym`` says with which key. File names and the table's further columns are written as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.dicom import OF_SPACING, DicomImage, as_rgb, is_dicom, read_dicom
from sonobreast.data.listing import Entry, is_utf8, known_class, visible
from sonobreast.data.pseudonym import pseudonym, pseudonym_key
from sonobreast.records import Problem

_REMEDIES = {
    "dicom-clip": "store the frame that shows the lesion best as an image of its own, if it is another one",
    "dicom-split-screen": "give the image without split screen, if the other half is meant",
    "dicom-no-regions": "look whether the picture shows text or a second scan; crop it, or export it with its regions",
    "dicom-burned-in": "look at the picture before it leaves the hospital",
    "dicom-no-spacing": "give spacing_mm in a table, if it is known",
    "dicom-doubtful-spacing": "give spacing_mm in a table, if it is known, or export the image as it was scanned",
    "dicom-no-patient": "give a table with the column patient, or look for copies with sonobreast data audit",
    "dicom-oblong-pixels": "give spacing_mm in a table, if lengths are needed",
}
_DEEPEST = 8


def dicom_below(folder: Path) -> Iterator[Path]:
    """DICOM files in the folders inside a class folder, as a PACS exports them: patient, study, series."""
    if known_class(folder.name):
        for inside in (p for p in visible(folder) if p.is_dir()):
            yield from _walk(inside, _DEEPEST)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for path in visible(folder):
        if path.is_dir() and depth and not path.is_symlink():
            yield from _walk(path, depth - 1)
        elif path.is_file() and is_utf8(path.name) and is_dicom(path):
            yield path


def read_entry(entry: Entry, name: str) -> tuple[Entry, NDArray[np.uint8], list[Problem]]:
    """Open an entry that is DICOM.

    Parameters
    ----------
    entry : Entry
    name : str
        What the manifest calls the image.

    Returns
    -------
    entry : Entry
        With patient, spacing, device and pseudonyms.
    image : ndarray, uint8, (h, w, 3)
        As `sonobreast.data.preprocess.decode` gives it: the largest B-mode region of the middle frame.
    problems : list of Problem
        Warnings: what of the file was not looked at or is not known.

    Raises
    ------
    SonobreastError
        As `sonobreast.data.dicom.read_dicom`.
    """
    key = pseudonym_key()
    image = read_dicom(entry.image, key=key)
    found = [(n.code, n.text) for n in image.notes if n.code not in OF_SPACING or entry.spacing_mm is None]
    patient = pseudonym("patient", entry.patient, key) or image.patient
    if not patient:
        found.append(("dicom-no-patient", "neither the file nor the table names a patient"))
    spacing = entry.spacing_mm
    if spacing is None and image.spacing_mm is not None:
        spacing = _square(image.spacing_mm)
        if spacing is None:
            found.append(
                ("dicom-oblong-pixels", "the pixels are not square: no single spacing, and no size in millimetres")
            )
    group = entry.group
    if group and group == entry.patient:
        group = patient
    elif group and os.path.normpath(group) != os.path.normpath(name):
        group = pseudonym("group", group, key)
    problems = [Problem(code=c, severity="warning", file=name, what=t, remedy=_REMEDIES[c]) for c, t in found]
    described = replace(entry, patient=patient, group=group, spacing_mm=spacing, extra={**entry.extra, **_extra(image)})
    return described, as_rgb(image.frames[0]), problems


def _square(spacing: tuple[float, float]) -> float | None:
    """One number for both directions where they agree within 1 %."""
    return round(sum(spacing) / 2, 6) if abs(spacing[0] - spacing[1]) <= 0.01 * max(spacing) else None


def _extra(image: DicomImage) -> dict[str, str]:
    """Further columns; ``device`` is called so in every data set."""
    burned_in = {True: "yes", False: "no", None: ""}[image.burned_in]
    frame = "" if image.n_frames == 1 else f"{image.numbers[0]} of {image.n_frames}"
    return {"device": image.device, "study": image.study, "frame": frame, "burned_in": burned_in}
