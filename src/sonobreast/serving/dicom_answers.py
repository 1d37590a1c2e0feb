"""What a bundle says of a DICOM image, as a DICOM report and segmentation beside the study it came from."""

from __future__ import annotations

from pathlib import Path

from sonobreast import __version__
from sonobreast.data.dicom import is_dicom
from sonobreast.serving.dicom_out import Algorithm, Finding, Made, Written, make_dicom, write_dicom
from sonobreast.serving.predictor import Prediction, Predictor


def write_answers(
    predictor: Predictor, source: Path | bytes, found: Prediction, folder: Path, *, stem: str = ""
) -> Written | None:
    """Write a structured report, and a segmentation where the bundle draws one, of one DICOM file.

    Parameters
    ----------
    predictor, source, found
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
    return write_dicom(source, folder, _finding(found), _algorithm(predictor), stem=stem)


def make_answers(predictor: Predictor, source: Path | bytes, found: Prediction) -> Made | None:
    """The same in memory.

    Parameters
    ----------
    predictor : Predictor
    source : Path or bytes
        The file that ``found`` is about; its middle frame was judged.
    found : Prediction

    Returns
    -------
    Made or None
        None where the source is no DICOM file.

    Raises
    ------
    SonobreastError
        As `sonobreast.serving.dicom_out.make_dicom`.
    """
    return make_dicom(source, _finding(found), _algorithm(predictor)) if is_dicom(source) else None


def _finding(found: Prediction) -> Finding:
    probabilities = {c: float(p) for c, p in zip(found.classes, found.probability, strict=True)}
    mask = found.mask if found.mask is not None and found.mask.any() else None
    return Finding(probabilities, mask, None, tuple(comments(found)))


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
