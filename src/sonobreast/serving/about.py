"""``bundle.json``: what a bundle says of itself, and how it is read from somebody else's file."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sonobreast.config import Preprocess
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.domain import Domain, groups_needed
from sonobreast.records import check_version

ABOUT = "bundle.json"
MODEL = "model.onnx"
VARIANT_FILES = {"int8": "model.int8.onnx", "float16": "model.fp16.onnx"}
INTENDED_USE = "research use only, not a medical device"
LARGEST = 64 << 20  # bytes of bundle.json; domain statistics are its largest part, up to 2 MB a network
REMEDY = "get the bundle again from whoever made it, or write it anew with `sonobreast export`"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
Share = Annotated[float, Field(ge=0.0, le=1.0)]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """A group of values that no code changes; unknown keys are passed over, so that later versions may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class File(Part):
    """Digest and size of a file of the bundle."""

    sha256: Digest
    bytes: int = Field(ge=0)


class MemberCard(Part):
    """One run of the bundle.

    Attributes
    ----------
    run, architecture : str
    features : int
        Its share of the output ``features``, in the order of the members.
    feature_kind : {"stages", "pooled"}
        Means of the last map of each scale, or the pooled vector that the head sees.
    flips : bool
        Mirror images are averaged inside the graph.
    segments : bool
    no_map : str
        Why it has no Grad-CAM; empty where it has one.
    weights, licence : str
        Origin and licence of its pre-trained weights.
    """

    run: str
    architecture: str
    features: int = Field(ge=1)
    feature_kind: Literal["stages", "pooled"]
    flips: bool
    segments: bool
    no_map: str
    weights: str
    licence: str


class Threshold(Part):
    """An operating point, frozen on validation images.

    Attributes
    ----------
    value : float
        An image is called malignant when its calibrated probability of malignancy is at or above it.
    sensitivity : float
        Aimed at.
    cancers, images : int
        Validation images it was chosen on.
    """

    name: str
    value: Share
    sensitivity: Share
    cancers: int = Field(ge=0)
    images: int = Field(ge=0)


class Rule(Part):
    """How probabilities become decisions, frozen in the study; it takes the place of ``About.thresholds``.

    Attributes
    ----------
    classes : list of str
        Those of the bundle.
    temperature : float
        Calibrated probabilities are softmax(log p / temperature) (Guo 2017, section 4.2).
    thresholds : dict of str to float
        Name of an operating point -> threshold on the calibrated probability of malignancy. The first one decides.
    alpha : float
    quantiles : dict of str to (float or None)
        Class-conditional conformal sets: a class is in the set when 1 minus its probability *before* the temperature
        is at most its quantile; None: always in, because too few calibration cases are known.
    """

    classes: list[str]
    temperature: float = Field(gt=0.0, le=1000.0)
    thresholds: dict[str, Share]
    alpha: float = Field(gt=0.0, lt=1.0)
    quantiles: dict[str, Share | None]


class Statistics(Part):
    """`sonobreast.evaluation.domain.Domain` of one member as lists: k axes of F features.

    Attributes
    ----------
    member : int
        Which of ``About.members``, from 0.
    share : float
        Its say among the members that have statistics.
    features : str
    mean, spread : list of float, F
    axes : list of list of float, k times F
    variance : list of float, k
    threshold : float
        A picture farther away is refused.
    accept : float
        Share of the validation scans that it was to accept.
    calibrated_on : int
        Independent groups of validation images behind the threshold.
    """

    member: int = Field(default=0, ge=0)
    share: float = Field(default=1.0, gt=0.0, le=1.0)
    features: str
    mean: list[float]
    spread: list[Annotated[float, Field(gt=0.0)]]
    axes: list[list[float]]
    variance: list[Annotated[float, Field(gt=0.0)]]
    threshold: float = Field(gt=0.0)
    accept: float = Field(gt=0.0, lt=1.0)
    calibrated_on: int = Field(ge=0)

    @model_validator(mode="after")
    def _shapes(self) -> Statistics:
        if len({len(self.mean), len(self.spread), *map(len, self.axes)}) != 1 or len(self.axes) != len(self.variance):
            raise ValueError("mean, spread, axes and variance do not fit one another")
        if not self.axes:
            raise ValueError("there are no axes")
        domain = self.domain()
        single = (domain.mean, domain.spread, domain.axes, domain.variance)
        if not all(np.isfinite(v).all() for v in single) or min(domain.spread.min(), domain.variance.min()) <= 0:
            raise ValueError("mean, spread, axes or variance leave the range of single precision")
        return self

    def domain(self) -> Domain:
        """The statistics as arrays."""
        with np.errstate(over="ignore"):
            mean, spread, axes, variance = (
                np.asarray(v, np.float32) for v in (self.mean, self.spread, self.axes, self.variance)
            )
        return Domain(self.features, mean, spread, axes, variance, self.threshold, self.accept, self.calibrated_on)


class Detector(Part):
    """What tells pictures of another kind: the statistics of the members, each on its own training images.

    An image is outside where members with at least half of the shares find it farther away than their thresholds
    (`sonobreast.evaluation.domain.together`).

    Attributes
    ----------
    accept : float
        Share of new scans of the domain that are found inside at the least.
    networks : list of Statistics
    """

    accept: Share
    networks: Annotated[list[Statistics], Field(min_length=1, max_length=1000)]


def domain_statistics(domain: Domain) -> dict[str, Any] | None:
    """What `Statistics` reads; None where no threshold could be set."""
    if not math.isfinite(domain.threshold) or domain.threshold <= 0:
        return None
    return {
        "features": domain.features,
        **{k: _listed(getattr(domain, k)) for k in ("mean", "spread", "axes", "variance")},
        "threshold": domain.threshold,
        "accept": domain.accept,
        "calibrated_on": domain.calibrated_on,
    }


def _listed(values: NDArray[np.float32]) -> Any:
    """Nested lists of numbers that are the same single-precision numbers when they are read, in few letters."""
    if values.ndim > 1:
        return [_listed(row) for row in values]
    return [float(str(v)) for v in values]


class Parity(Part):
    """Largest difference in probability between the graph and PyTorch, on how many and which images."""

    images: int = Field(ge=1)
    simulated: bool
    largest_difference: float = Field(ge=0.0)
    tolerance: float = Field(gt=0.0)


class Variant(Part):
    """A smaller form of the network, and how it compared with the network itself on the study's test images.

    Attributes
    ----------
    name, file : str
    images, groups : int
        Test images of the members' runs that it was judged on, and independent groups among them.
    seen_in_training : int
        Of those images, how many another member was trained on: on them the network is surer of itself.
    accuracy : float
        Of the variant.
    accuracy_difference, low, high : float
        Variant minus network, with its paired interval over groups (95 %).
    agreement : float
        Share of the images with the same class, the same decision about malignancy and the same one about the domain.
    largest_difference : float
        In probability.
    mask_overlap : float or None
        Mean Dice coefficient of its masks with the network's; None where nothing segments.
    milliseconds, milliseconds_float32 : float
        Median for one image through the variant and through the network, where the bundle was written.
    expected : dict of str to float
        Probabilities of the self-test, before calibration.
    """

    name: Literal["int8", "float16"]
    file: str
    images: int = Field(ge=1)
    groups: int = Field(ge=1)
    seen_in_training: int = Field(ge=0)
    accuracy: Share
    accuracy_difference: float
    low: float
    high: float
    agreement: Share
    largest_difference: Share
    mask_overlap: float | None
    milliseconds: float = Field(ge=0.0)
    milliseconds_float32: float = Field(ge=0.0)
    expected: dict[str, Share]


class About(Part):
    """The content of ``bundle.json``.

    Attributes
    ----------
    schema_version : int
    sonobreast : str
        Version that wrote it.
    title : str
        Configuration, such as ``joint:MobileNetV2 + AdamW``.
    intended_use : str
    classes : tuple of str
        In the order of the logits.
    members : tuple of MemberCard
    preprocess : Preprocess
        From a decoded image to the input of the graph. Scaling is ``unit``: what a member wants beyond pixel values in
        [0, 1] is inside the graph.
    requirements : tuple of str
        Libraries beyond the serving install that the preprocessing needs.
    outputs : tuple of str
        Of the graph: ``logits``, ``features``, and where there are any ``cam`` and ``mask``.
    opset : int
    mask_threshold : float or None
        A pixel is lesion at or above it; None where nothing segments.
    thresholds : list of Threshold
        On the probabilities as the graph gives them; the first one decides where there is no ``decision_rule``.
    decision_rule : dict or None
        What `Rule` reads, and what else is known of it. None: probabilities are not calibrated, and there are no
        conformal sets.
    domain : dict or None
        What `Detector` reads; None: none is known.
    training : dict
        Fingerprint of the training data, images, data sets.
    metrics : dict or None
        Of the configuration's test images, with intervals, as in the study's ``metrics.json``.
    licences : dict
        Of code, weights and data.
    parity : Parity
    variants : list of Variant
        Other forms of the network, which `predict` takes when it is told to.
    files : dict
        Name in the bundle -> digest and size; ``bundle.json`` and its own digest excepted.
    """

    schema_version: int
    sonobreast: str
    title: str
    intended_use: Literal["research use only, not a medical device"]
    classes: Annotated[list[ClassName], Field(min_length=2, max_length=1000)]
    members: Annotated[list[MemberCard], Field(min_length=1, max_length=1000)]
    preprocess: Preprocess
    requirements: list[Literal["scipy"]]
    outputs: list[Literal["logits", "features", "cam", "mask"]]
    opset: int
    mask_threshold: Share | None
    thresholds: list[Threshold]
    decision_rule: dict[str, Any] | None
    domain: dict[str, Any] | None
    training: dict[str, Any]
    metrics: dict[str, Any] | None
    licences: dict[str, Any]
    parity: Parity
    variants: list[Variant] = []
    files: dict[str, File]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, File]) -> dict[str, File]:
        for name in files:
            if not _NAME.fullmatch(name) or name == ABOUT:
                raise ValueError(f"{name[:80]!r} is no name of a file inside a bundle")
        if MODEL not in files:
            raise ValueError(f"{MODEL} is missing")
        return files

    @model_validator(mode="after")
    def _agrees(self) -> About:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        if not all(c.isprintable() for c in self.classes):
            raise ValueError("the name of a class has signs that cannot be printed")  # a table has one line a row
        if self.outputs[:2] != ["logits", "features"] or len(set(self.outputs)) != len(self.outputs):
            raise ValueError("outputs begin with logits and features, and each stands there once")
        if self.preprocess.scaling != "unit":
            raise ValueError("preprocess.scaling is unit in a bundle: the rest is inside the graph")
        if ("mask" in self.outputs) != (self.mask_threshold is not None):
            raise ValueError("mask_threshold belongs to an output mask")
        for one in self.variants:
            if (
                one.file != VARIANT_FILES[one.name]
                or one.file not in self.files
                or set(one.expected) != set(self.classes)
            ):
                raise ValueError(f"variant {one.name} is not of this bundle")
        rule = self.rule
        if rule is not None and (rule.classes != self.classes or set(rule.quantiles) != set(self.classes)):
            raise ValueError("decision_rule is of other classes")
        known = self.detector
        of = [] if known is None else [n.member for n in known.networks]
        if len(set(of)) != len(of) or any(k >= len(self.members) for k in of):
            raise ValueError("domain is of other members")
        for of_one in [] if known is None else known.networks:
            if len(of_one.mean) != self.members[of_one.member].features:
                raise ValueError(f"domain is of other features than those of member {of_one.member}")
        return self

    @property
    def rule(self) -> Rule | None:
        """``decision_rule``, read."""
        return None if self.decision_rule is None else Rule.model_validate(self.decision_rule)

    @property
    def detector(self) -> Detector | None:
        """``domain``, read; statistics of the first member alone, as bundles had them before, are a detector of one."""
        if self.domain is None:
            return None
        if "networks" in self.domain:
            return Detector.model_validate(self.domain)
        alone = Statistics.model_validate(self.domain)
        return Detector(accept=alone.accept, networks=[alone])

    @property
    def domain_in_words(self) -> str:
        """Whose training images an image is compared with, and what the threshold promises."""
        found = self.detector
        if found is None:
            return "none: the bundle cannot tell whether an image is unlike its training images"
        count, of = len(found.networks), len(self.members)
        whose = "each network" if count == of else f"{count} of the {of} networks"
        if count == of == 1:
            whose = "the network"
        elif count == 1:
            whose = f"network {found.networks[0].member + 1} of {of} alone"
        text = f"statistics of {whose}"
        text += "" if count == 1 else "; an image is outside where networks with half of the say find it outside"
        text += f"; of new scans like the training images at least {100 * found.accept:.3g} % are found inside"
        few = min(found.networks, key=lambda one: one.calibrated_on)
        if few.calibrated_on < groups_needed(few.accept):
            text += f" (no more, because {few.calibrated_on} independent validation groups are few)"
        return text


def read_about(file: Path) -> tuple[About, bytes]:
    """Read ``bundle.json``; also its bytes, for their digest.

    Raises
    ------
    SonobreastError
        If it is missing, too large, no JSON, of a newer version, or not what a bundle says of itself.
    """
    try:
        if file.is_symlink() or not file.is_file():
            raise SonobreastError("this is no bundle: its bundle.json is missing", file=file.parent, remedy=REMEDY)
        if file.stat().st_size > LARGEST:
            raise SonobreastError(f"larger than {LARGEST >> 20} MiB", file=file, remedy=REMEDY)
        content = file.read_bytes()
        value = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except OSError as error:
        raise SonobreastError(f"cannot be read ({error.strerror})", file=file, remedy=REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise SonobreastError(f"not readable ({str(error)[:200]})", file=file, remedy=REMEDY) from error
    check_version(value.get("schema_version"), file)
    try:
        # JSON has lists where settings have tuples, and whole numbers where settings have fractions.
        if isinstance(value.get("preprocess"), dict):
            value["preprocess"] = Preprocess.model_validate(value["preprocess"])
        return About.model_validate(value), content
    except (ValidationError, RecursionError) as error:
        raise SonobreastError(f"not what a bundle says of itself: {_first(error)}", file=file, remedy=REMEDY) from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)[:200]
    found = error.errors(include_url=False, include_input=False)[0]
    text = f"{'.'.join(map(str, found['loc']))[:120]}: {found['msg'][:200]}"
    return text.encode("utf-8", "backslashreplace").decode()
