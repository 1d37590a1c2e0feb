"""What a bundle says of a DICOM image, as a DICOM report and segmentation beside the study it came from."""

from __future__ import annotations

from pathlib import Path

from sonobreast import __version__
from sonobreast.data.dicom import is_dicom
from sonobreast.serving.dicom_codes import Algorithm
from sonobreast.serving.dicom_out import Finding, Made, Written, make_dicom, write_dicom
from sonobreast.serving.predictor import Prediction, Predictor
from sonobreast.serving.readers import Place


def write_answers(
    predictor: Predictor,
    source: Path | bytes,
    found: Prediction,
    folder: Path,
    *,
    stem: str = "",
    place: Place | None = None,
    spacing_mm: float | None = None,
) -> Written | None:
    """Write a structured report, and a segmentation where the bundle draws one, of one DICOM file.

    Parameters
    ----------
    predictor, source, found, place, spacing_mm
        As `make_answers`.
    folder : Path
    stem : str
        Begins the files' names.

    Returns
    -------
    Written or None
        None where the source is no DICOM file.

    Raises
    ------
    SonobreastError
        As `sonobreast.serving.dicom_out.write_dicom`.
    """
    if not is_dicom(source):
        return None
    finding, region = _finding(found, place, spacing_mm)
    return write_dicom(source, folder, finding, _algorithm(predictor), region=region, stem=stem)


def make_answers(
    predictor: Predictor,
    source: Path | bytes,
    found: Prediction,
    *,
    place: Place | None = None,
    spacing_mm: float | None = None,
) -> Made | None:
    """The same in memory.

    Parameters
    ----------
    predictor : Predictor
    source : Path or bytes
        The file that ``found`` is about.
    found : Prediction
    place : Place or None
        The frame and region that were judged, as ``Frame.place`` has it; None: the largest region of the middle frame.
    spacing_mm : float or None
        Of the pixels, where somebody gave it; None: what the file states.

    Returns
    -------
    Made or None
        None where the source is no DICOM file.

    Raises
    ------
    SonobreastError
        As `sonobreast.serving.dicom_out.make_dicom`.
    """
    if not is_dicom(source):
        return None
    finding, region = _finding(found, place, spacing_mm)
    return make_dicom(source, finding, _algorithm(predictor), region=region)


def _finding(found: Prediction, place: Place | None, spacing_mm: float | None) -> tuple[Finding, str | int]:
    """What was found, and of which region."""
    probabilities = {c: float(p) for c, p in zip(found.classes, found.probability, strict=True)}
    mask = found.mask if found.mask is not None and found.mask.any() else None
    frame = None if place is None else place.frame
    region = place.region if place is not None and place.region else "largest"
    return Finding(probabilities, mask, frame, tuple(comments(found)), spacing_mm), region


def _algorithm(predictor: Predictor) -> Algorithm:
    bundle = predictor.bundle
    return Algorithm(bundle.about.title, __version__, (f"bundle {bundle.fingerprint[:16]}",))


def comments(found: Prediction) -> list[str]:
    """Sentences that belong beside the probabilities."""
    said = []
    if found.in_domain is False:
        said.append("The picture is unlike the training images: the result should not be used.")
    if found.conformal is not None and len(found.conformal) != 1:
        left = ", ".join(found.conformal) or "no class"
        said.append(f"The model abstains: its conformal set holds {left}.")
    if found.malignant is not None and found.threshold is not None:
        side = "at or above" if found.malignant else "below"
        said.append(f"The probability of malignancy is {side} the frozen threshold {found.threshold:.3f}.")
    return said
