"""Overlays of a study's predicted masks, drawn while the images are at hand; the report takes up the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sonobreast.data.manifest import Manifest
from sonobreast.data.masks_out import predicted_mask_file, true_mask
from sonobreast.data.preprocess import decode, decode_mask
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.overlays import Chosen, Overlay, choose, overlays_name, overlays_plot
from sonobreast.evaluation.plots import png
from sonobreast.evaluation.predictions import configuration_title, configurations
from sonobreast.evaluation.segmentation_summary import read_segmentation
from sonobreast.records import Case, atomic


def draw_overlays(out: Path, manifest: Manifest) -> list[str]:
    """Draw ``figures/segmentation-<configuration>.png`` of every configuration that segments.

    Parameters
    ----------
    out : Path
        Folder of the study, with ``segmentation.csv`` and the masks of its runs; without the table nothing is drawn.
    manifest : Manifest
        The data set, with its images at hand.

    Returns
    -------
    list of str
        What could not be drawn and why: a picture that is missing does not spoil a study.

    Raises
    ------
    SonobreastError
        If the table is damaged or a figure cannot be written.
    """
    if not (out / "segmentation.csv").is_file():
        return []
    table = read_segmentation(out / "segmentation.csv")
    cases = {c.image: c for c in manifest.cases}
    problems = []
    for architecture, optimizer in configurations(table):
        title = configuration_title(architecture, optimizer)
        overlays = []
        for chosen in choose(table[(table["architecture"] == architecture) & (table["optimizer"] == optimizer)]):
            try:
                overlays.append(_read(out, manifest, cases[chosen.image], chosen))
            except SonobreastError as error:
                problems.append(f"{title}: {chosen.image} is not shown: {error.what}")
        file = out / "figures" / f"{overlays_name(architecture, optimizer)}.png"
        if overlays:
            with atomic(file, "wb") as stream:
                stream.write(png(overlays_plot(overlays, title)))
        else:
            file.unlink(missing_ok=True)
    return problems


def _read(out: Path, manifest: Manifest, case: Case, chosen: Chosen) -> Overlay:
    file = predicted_mask_file(out / "runs" / chosen.run / "masks", case.image)
    picture, predicted = decode(manifest.path(case)), decode_mask(file)
    if predicted.shape != picture.shape[:2] or int(predicted.sum()) != chosen.area:
        raise SonobreastError("the predicted mask is not the one that was measured", file=file)
    truth = true_mask(manifest.root, case)
    return Overlay(chosen, picture, np.zeros(predicted.shape, bool) if truth is None else truth, predicted)
