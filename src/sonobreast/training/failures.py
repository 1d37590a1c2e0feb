"""Pictures of a study's most confident errors, drawn while the images are at hand; the report takes them up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.manifest import Manifest
from sonobreast.data.masks_out import predicted_mask_file, true_mask
from sonobreast.data.preprocess import decode, decode_mask
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.failures import (
    Failure,
    choose,
    chosen_configuration,
    failure_plot,
    map_file,
    of_configuration,
    picture_file,
)
from sonobreast.evaluation.plots import png
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.records import Case, atomic, read_json


def draw_failures(out: Path, manifest: Manifest) -> list[str]:
    """Draw ``figures/failures/*.png`` of the configuration that is best on the validation images.

    Parameters
    ----------
    out : Path
        Folder of the study, with ``metrics.json`` and ``predictions.csv``; without them nothing is drawn.
    manifest : Manifest
        The data set, with its images at hand.

    Returns
    -------
    list of str
        What could not be drawn and why: a picture that is missing does not spoil a study.

    Raises
    ------
    SonobreastError
        If a table is damaged or a picture cannot be written.
    """
    if not (out / "metrics.json").is_file():
        return []
    key = chosen_configuration(read_json(out / "metrics.json"))
    failures, _ = choose(of_configuration(read_predictions(out / "predictions.csv"), key))
    cases = {c.image: c for c in manifest.cases}
    wanted = {p for f in failures for p in (picture_file(out, f), map_file(out, f))}
    for old in (out / "figures" / "failures").glob("*.png"):
        if old not in wanted:  # of a time when other runs were finished
            old.unlink(missing_ok=True)
    problems = []
    for failure in failures:
        try:
            picture, truth, predicted = failure_images(out, manifest, cases[failure.image], failure)
        except SonobreastError as error:
            problems.append(f"{failure.image}, a {failure.kind}, is not shown: {error.what}")
            picture_file(out, failure).unlink(missing_ok=True)
            continue
        with atomic(picture_file(out, failure), "wb") as stream:
            stream.write(png(failure_plot(picture, truth, predicted)))
    return problems


def failure_images(
    out: Path, manifest: Manifest, case: Case, failure: Failure
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """The picture, uint8 (H, W, 3), its true mask and the one its run predicted, bool (H, W), where there are such.

    Raises
    ------
    SonobreastError
        If a file cannot be read, or a predicted mask has another size.
    """
    picture = decode(manifest.path(case))
    file = predicted_mask_file(out / "runs" / failure.run / "masks", case.image)
    predicted = decode_mask(file) if file.is_file() else None
    if predicted is not None and predicted.shape != picture.shape[:2]:
        raise SonobreastError("the predicted mask does not have the image's size", file=file)
    return picture, true_mask(manifest.root, case), predicted
