"""How large the lesion of each image is, for the report's subgroups, where no network segments and has measured it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sonobreast.data.manifest import Manifest
from sonobreast.data.masks_out import true_mask
from sonobreast.data.preprocess import quiet
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.subgroups import LESION_COLUMNS
from sonobreast.records import Case, write_table


def write_lesions(out: Path, manifest: Manifest) -> None:
    """Write ``lesions.csv``: image, truth (lesion, empty, unknown) and area in pixels of the image's own size.

    Nothing is written where ``segmentation.csv`` has the areas, where the data set has no masks, and where the file is
    there already (a study's data do not change).

    Parameters
    ----------
    out : Path
        Folder of the study.
    manifest : Manifest
        The data set, with its masks at hand; a mask that cannot be read is of unknown area.

    Raises
    ------
    SonobreastError
        If the file cannot be written.
    """
    file = out / "lesions.csv"
    if (out / "segmentation.csv").is_file():
        file.unlink(missing_ok=True)  # of a time before a network of this study segmented
        return
    if file.is_file() or not any(c.masks for c in manifest.cases):
        return

    def row(case: Case) -> dict[str, object]:
        try:
            mask = true_mask(manifest.root, case)
        except SonobreastError:
            mask = None
        area = None if mask is None else int(mask.sum())
        truth = "unknown" if area is None else "lesion" if area else "empty"
        return {"image": case.image, "truth": truth, "true_area_px": "" if area is None else area}

    with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(row, sorted(manifest.cases, key=lambda c: c.image)))
    write_table(file, LESION_COLUMNS, rows)
