"""What the service answers of a file: values with their names and units, words, layers. Also its description."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sonobreast.data.dicom import is_dicom
from sonobreast.errors import SonobreastError
from sonobreast.serving import layers, wording
from sonobreast.serving.costly import refuse_costly
from sonobreast.serving.predictor import Prediction, Predictor
from sonobreast.serving.readers import USUAL, Choice, Frame, Limits, Place, beside, read, refuse_mask

_ADDRESS = re.compile(r"<[^<>]* object at 0x[0-9a-fA-F]+>")
_LONGEST, _SHORT = 8, 256  # the longer side is at most 8 times the shorter one; small pictures may be anything
_ORDER = ("report", "segmentation", "image").index
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Problem(_Part):
    """Why there is no result."""

    what: str = Field(description="What is wrong, one sentence.")
    remedy: str = Field(description="What to do; may be empty.")


class Lesion(_Part):
    """Size of the outlined lesion."""

    area_px: int = Field(description="Pixels of all pieces together.")
    pieces: int
    diameter_px: float = Field(description="Feret diameter of the largest piece.")
    diameter_mm: float | None = Field(description="null where the pixel spacing is not known.")


class Map(_Part):
    """Grad-CAM of one class."""

    png: str = Field(
        description="Base64; transparent, to be stretched over the image; its longer side has at most 1024 px."
    )
    maximum: float = Field(description="Where the colours end, in units of the logit.")


class Layers(_Part):
    """Pictures; only where they were asked for and the bundle has them."""

    maps: dict[str, Map] = Field(description="By class; empty where the bundle has no maps.")
    mask: str | None = Field(description="Base64 PNG, transparent outside the lesion.")
    picture: str | None = Field(description="The image itself as base64 PNG, for formats that a browser cannot show.")


class DicomFile(_Part):
    """One DICOM object, to be sent to the archive by whoever wants it there."""

    kind: str = Field(description="report (SR), segmentation (SEG), or image: the frame of a clip that was segmented.")
    content: str = Field(description="Base64 of a DICOM file. It names the patient as the source file does.")


class DicomAnswer(_Part):
    """What is said of a DICOM image in DICOM; only where it was asked for."""

    files: list[DicomFile]
    notes: list[str] = Field(description="What a person has to know about them.")
    error: Problem | None = Field(default=None, description="Why there are no files.")


class Where(_Part):
    """Which part of a DICOM file a result is about."""

    frame: int = Field(description="From 1, as DICOM counts.")
    frames: int
    region: int = Field(description="B-mode region from the left, from 1; 0 where the file names no regions.")
    regions: int


class Result(_Part):
    """Of one picture of one file: either ``error``, or everything else."""

    file: int = Field(description="Place of the file in the upload, from 0.")
    frame: int = Field(default=0, description="Which of the pictures that were judged, from 0.")
    frames: int = Field(default=1, description="Pictures of the file that were judged.")
    where: Where | None = Field(default=None, description="Of DICOM.")
    error: Problem | None = None
    width: int | None = Field(default=None, description="Pixels.")
    height: int | None = Field(default=None, description="Pixels.")
    probability: dict[str, Share] | None = Field(default=None, description="By class; they sum to 1.")
    calibrated: bool | None = Field(default=None, description="Whether a temperature was applied.")
    predicted: str | None = Field(default=None, description="Most probable class.")
    malignant: bool | None = Field(default=None, description="Decision at the frozen threshold; null: there is none.")
    threshold: float | None = Field(default=None, description="On the probability of malignancy.")
    conformal_set: list[str] | None = Field(default=None, description="Classes that cannot be ruled out.")
    abstains: bool | None = Field(default=None, description="Whether the conformal set is not one class.")
    domain_score: float | None = Field(default=None, description="How unlike the training images it is.")
    in_domain: bool | None = None
    lesion: Lesion | None = None
    warnings: list[str] = Field(default_factory=list, description="What must not be overlooked.")
    notes: list[str] = Field(default_factory=list, description="Of DICOM: what was not looked at or is not known.")
    words: dict[str, str] = Field(default_factory=dict, description="decision, reason, set, size: in plain words.")
    layers: Layers | None = None
    dicom: DicomAnswer | None = Field(
        default=None, description="null where the file is no DICOM, or was not asked for."
    )


class BundleName(_Part):
    """Which bundle answered."""

    title: str
    fingerprint: str = Field(description="SHA-256 of its bundle.json.")
    variant: str | None = Field(default=None, description="int8 or float16; null: the network itself.")


class Answer(_Part):
    """Of an upload."""

    intended_use: str
    sonobreast: str = Field(description="Version.")
    bundle: BundleName
    unknown: list[str] = Field(description="What this bundle cannot say of any image.")
    results: list[Result]


class ErrorAnswer(_Part):
    """A request that was not carried out."""

    error: Problem
    request: str = Field(description="Number of the request in the log.")


@dataclass(frozen=True)
class Wanted:
    """What a sender wants beside the values.

    Attributes
    ----------
    layers : bool
        Maps and mask.
    picture : bool
        The image itself.
    dicom : bool
        Report and segmentation of a DICOM file.
    choice : Choice
        Which frames and regions of one.
    """

    layers: bool = False
    picture: bool = False
    dicom: bool = False
    choice: Choice = USUAL

    @property
    def heavy(self) -> bool:
        """Whether it is given for one file at a time only."""
        return self.layers or self.picture or self.dicom


class NetworkFault(Exception):
    """The network itself cannot be run: a fault of this service, not of the image."""


def answer_file(
    predictor: Predictor,
    index: int,
    content: bytes,
    *,
    limits: Limits,
    spacing_mm: float | None = None,
    wanted: Wanted | None = None,
) -> list[Result]:
    """Results of one file: one for each of its pictures, or one that says what is wrong with it.

    Parameters
    ----------
    predictor : Predictor
    index : int
        Place of the file in its upload.
    content : bytes
    limits : Limits
    spacing_mm : float or None
        Stated by the sender; what the file itself states goes before it.
    wanted : Wanted or None
        None: the values alone.

    Raises
    ------
    NetworkFault
        If the network cannot be run.
    MemoryError
        Which is no fault of the file.
    """
    results: list[Result] = []
    wanted = wanted or Wanted()
    try:
        refuse_costly(content, limits)
        for frame in read(content, limits, choice=wanted.choice):
            _refuse_strip(frame)
            refuse_mask(frame)
            found, result = _result(predictor, index, frame, spacing_mm, wanted)
            if wanted.dicom and is_dicom(content):
                by_hand = spacing_mm if frame.spacing_mm is None else None
                result = result.model_copy(update={"dicom": _dicom(predictor, content, found, frame.place, by_hand)})
            results.append(result)
    except SonobreastError as error:
        if _short_of_memory(error):
            raise MemoryError from None
        what = _ADDRESS.sub("the file", error.what)[:300]
        # A film that is damaged at its end has told no whole story: nothing of it is shown
        return [Result(file=index, error=Problem(what=what, remedy=error.remedy))]
    return results


def _result(
    predictor: Predictor, index: int, frame: Frame, spacing_mm: float | None, wanted: Wanted
) -> tuple[Prediction, Result]:
    height, width = frame.image.shape[:2]
    spacing = spacing_mm if frame.spacing_mm is None else frame.spacing_mm
    prepared = predictor.prepared(frame.image)
    try:
        found = predictor.judge(predictor.run([prepared]), 0, width, height, spacing)
    except SonobreastError as error:
        raise NetworkFault(error.what) from error
    about = predictor.bundle.about
    words = {
        "set": wording.which_classes(found, about),
        "decision": wording.decision(found),
        "reason": wording.reason(found, about),
        "size": wording.size(found),
    }
    return found, Result(
        file=index,
        frame=frame.index,
        frames=frame.count,
        where=None if frame.place is None else Where(**vars(frame.place)),
        width=width,
        height=height,
        probability={c: min(1.0, max(0.0, float(p))) for c, p in zip(found.classes, found.probability, strict=True)},
        calibrated=about.rule is not None,
        predicted=found.predicted,
        malignant=found.malignant,
        threshold=found.threshold,
        conformal_set=None if found.conformal is None else list(found.conformal),
        abstains=wording.abstains(found),
        domain_score=None if found.domain_score is None else float(found.domain_score),
        in_domain=found.in_domain,
        lesion=_lesion(found),
        warnings=wording.warnings(found, about),
        notes=[note.text for note in beside(frame.notes, spacing_mm)],
        words={k: v for k, v in words.items() if v},
        layers=_layers(found, frame, about.preprocess.aspect, wanted) if wanted.layers or wanted.picture else None,
    )


def _dicom(
    predictor: Predictor, content: bytes, found: Prediction, place: Place | None, by_hand: float | None
) -> DicomAnswer | None:
    from sonobreast.serving.dicom_answers import make_answers  # pydicom and highdicom are slow to import

    try:
        made = make_answers(predictor, content, found, place=place, spacing_mm=by_hand)
    except SonobreastError as error:
        return DicomAnswer(files=[], notes=[], error=Problem(what=error.what, remedy=error.remedy))
    if made is None:
        return None
    files = [DicomFile(kind=kind, content=layers.text(made.files[kind])) for kind in sorted(made.files, key=_ORDER)]
    return DicomAnswer(files=files, notes=list(made.notes))


def _lesion(found: Prediction) -> Lesion | None:
    if found.lesion is None:
        return None
    return Lesion(
        area_px=found.lesion.area_px,
        pieces=found.lesion.pieces,
        diameter_px=found.lesion.diameter_px,
        diameter_mm=found.lesion.diameter_mm,
    )


def _layers(found: Prediction, frame: Frame, aspect: str, wanted: Wanted) -> Layers:
    maps = {
        name: Map(png=layers.text(png), maximum=top) for name, (png, top) in layers.map_layers(found, aspect).items()
    }
    return Layers(
        maps=maps,
        mask=None if found.mask is None else layers.text(layers.mask_layer(found.mask)),
        picture=layers.text(layers.picture(frame.image)) if wanted.picture else None,
    )


def _refuse_strip(frame: Frame) -> None:
    """A strip of many rows makes measuring its mask slow, and is no scan (found by mutated uploads: 64 x 41008)."""
    height, width = frame.image.shape[:2]
    if max(height, width) > _LONGEST * min(height, width) + _SHORT:
        raise SonobreastError(
            f"too long and narrow to be a scan: {width}x{height} pixels", remedy="export the picture itself"
        )


def _short_of_memory(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__
    return error is not None
