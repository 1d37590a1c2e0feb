"""Image bytes to a prediction: ONNX Runtime, NumPy and Pillow, the preprocessing of training, and nothing else.

Sessions are set up as was measured on two cores (`load_predictor`): all graph optimisations, one thread a core and no
spinning, because threads that wait busily take the cores from decoding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.masks_out import to_original_size
from sonobreast.data.preprocess import padded_box, prepare, scale
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.domain import Domain, distance, together
from sonobreast.serving.about import MODEL, REMEDY, About, Rule
from sonobreast.serving.bundle import Bundle, network_bytes, open_bundle
from sonobreast.serving.lesion import Lesion, measure
from sonobreast.serving.onnx_file import inspect
from sonobreast.serving.readers import Limits, read

INPUT = "pixels"
_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What a bundle says of one image.

    Attributes
    ----------
    classes : tuple of str
    probability : ndarray, float64, (C,)
        Calibrated where the bundle has a decision rule; they sum to 1.
    predicted : str
        The most probable class.
    malignant : bool or None
        Whether the calibrated probability of malignancy reaches ``threshold``; None where the bundle has no threshold.
    threshold : float or None
        Frozen on validation images.
    conformal : tuple of str or None
        The conformal set: classes that cannot be ruled out; None where the bundle has no rule.
    domain_score : float or None
        How unlike the training images it is: its distance from them over the largest that is accepted, so that above 1
        it is no picture of the kind that the networks know (`sonobreast.evaluation.domain.together`); None where the
        bundle has no statistics, and where the networks' features of it are no finite numbers.
    in_domain : bool or None
        Whether the score is at most 1; None where the bundle has no statistics.
    width, height : int
        Of the image, in pixels.
    mask : ndarray, bool, (height, width), or None
        The lesion, at the image's own size; None where the networks do not segment.
    lesion : Lesion or None
        Its size.
    cam : ndarray, float32, (C, h, w), or None
        Grad-CAM of each class, not negative, in units of the logit; `cam_of` brings one to the image's size.
    """

    classes: tuple[str, ...]
    probability: NDArray[np.float64]
    predicted: str
    malignant: bool | None
    threshold: float | None
    conformal: tuple[str, ...] | None
    domain_score: float | None
    in_domain: bool | None
    width: int
    height: int
    mask: NDArray[np.bool_] | None
    lesion: Lesion | None
    cam: Floats | None


@dataclass(frozen=True)
class NetworkDomain:
    """What a member knows of its training images: where its features begin in the output, its share, statistics."""

    first: int
    share: float
    domain: Domain


def domains_of(about: About) -> tuple[NetworkDomain, ...]:
    """Of all members that have statistics."""
    if about.detector is None:
        return ()
    first = np.cumsum([0, *(m.features for m in about.members)])
    return tuple(NetworkDomain(int(first[s.member]), s.share, s.domain()) for s in about.detector.networks)


@dataclass(frozen=True)
class Predictor:
    """A bundle that is ready to run; may be shared by threads. From `load_predictor`."""

    bundle: Bundle
    session: Any
    domains: tuple[NetworkDomain, ...] = ()
    variant: str | None = None

    @property
    def identity(self) -> str:
        """What stands for it in tables: the bundle's fingerprint, with ``:VARIANT`` where one is run."""
        return self.bundle.fingerprint + (f":{self.variant}" if self.variant else "")

    def prepared(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A decoded image, uint8 (H, W, 3), as the networks see it: uint8 (S, S, 3)."""
        return prepare(image, self.bundle.about.preprocess)

    def run(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Floats]:
        """Outputs of the graph by name for prepared images; ``logits`` (n, C) are logarithms of probabilities.

        Raises
        ------
        SonobreastError
            If the network cannot be run, or gives something else than the bundle says.
        """
        about = self.bundle.about
        try:
            found = self.session.run(about.outputs, {INPUT: scale(np.stack(images), _ZERO, _ONE)})
        except Exception as error:  # ONNX Runtime has exceptions of its own for every status
            raise _unusable(self.bundle, f"cannot be run here ({str(error).splitlines()[0][:200]})") from error
        outputs = dict(zip(about.outputs, found, strict=True))
        n, size = len(images), about.preprocess.size
        wanted: dict[str, tuple[int | None, ...]] = {
            "logits": (n, len(about.classes)),
            "features": (n, sum(m.features for m in about.members)),
            "cam": (n, len(about.classes), None, None),
            "mask": (n, 1, size, size),
        }
        for name, value in outputs.items():
            shape = wanted[name]
            fits = value.ndim == len(shape) and all(w in (None, v) for v, w in zip(value.shape, shape, strict=True))
            if value.dtype != np.float32 or not fits:
                raise _unusable(self.bundle, f"gives {name} of the shape {value.shape}, which the bundle does not say")
        if not np.isfinite(outputs["logits"]).all():
            raise _unusable(self.bundle, "gives values that are no numbers")
        return outputs

    def probability(self, source: Path | bytes) -> NDArray[np.float64]:
        """Probabilities before calibration, (C,), of the first picture of a file: what the self-test compares."""
        [image] = [frame.image for frame in read(source) if frame.index == 0]
        return np.asarray(softmax(self.run([self.prepared(image)])["logits"])[0])

    def predict(
        self, source: Path | bytes, *, spacing_mm: float | None = None, limits: Limits | None = None
    ) -> Prediction:
        """Predict the first picture of a file.

        Parameters
        ----------
        source : Path or bytes
        spacing_mm : float or None
            Of its pixels, where it is known from elsewhere; what the file itself states goes before it.
        limits : Limits or None

        Raises
        ------
        SonobreastError
            If the file is no readable image, is too large, or the network cannot be run.
        """
        frame = next(read(source, limits))
        outputs = self.run([self.prepared(frame.image)])
        height, width = frame.image.shape[:2]
        return self.judge(outputs, 0, width, height, spacing_mm if frame.spacing_mm is None else frame.spacing_mm)

    def judge(
        self, outputs: dict[str, Floats], index: int, width: int, height: int, spacing_mm: float | None
    ) -> Prediction:
        """One image's prediction from what `run` gave; width and height are those of the image before preparation."""
        about, rule = self.bundle.about, self.bundle.about.rule
        raw = softmax(outputs["logits"][index])
        points = [t.value for t in about.thresholds] if rule is None else list(rule.thresholds.values())
        probability = raw if rule is None else softmax(outputs["logits"][index] / rule.temperature)
        threshold = points[0] if points and "malignant" in about.classes else None
        malignant = None
        if threshold is not None:
            malignant = bool(probability[about.classes.index("malignant")] >= threshold)
        score = _score(self.domains, outputs["features"][index])
        mask = None
        if about.mask_threshold is not None:
            whole = to_original_size(outputs["mask"][index, 0], width, height, about.preprocess.aspect)
            mask = np.asarray(whole >= about.mask_threshold)
        return Prediction(
            classes=tuple(about.classes),
            probability=probability,
            predicted=about.classes[int(probability.argmax())],
            malignant=malignant,
            threshold=threshold,
            conformal=None if rule is None else conformal_set(rule, raw),
            domain_score=score if score is not None and np.isfinite(score) else None,
            in_domain=None if score is None else score <= 1.0,
            width=width,
            height=height,
            mask=mask,
            lesion=None if mask is None else measure(mask, spacing_mm),
            cam=outputs["cam"][index] if "cam" in outputs else None,
        )


def load_predictor(bundle: Bundle | Path, *, threads: int | None = None, variant: str | None = None) -> Predictor:
    """Open the network of a bundle.

    Parameters
    ----------
    bundle : Bundle or Path
        A folder is opened first (`open_bundle`).
    threads : int or None
        Within one run of the network; None: one for each core, up to 4.
    variant : str or None
        ``int8`` or ``float16``, where the bundle has it; None: the network itself.

    Raises
    ------
    SonobreastError
        If the bundle was altered, keeps something in its network that does not belong there, or needs a library that
        is not installed.
    """
    # Only the network's own file is compared here; `open_bundle` looks at the names and sizes of the others
    opened = open_bundle(bundle, only=()) if isinstance(bundle, Path) else bundle
    for name in opened.about.requirements:
        _require(name, opened)
    file = MODEL
    if variant is not None:
        there = {str(v.name): v.file for v in opened.about.variants}
        if variant not in there:
            raise SonobreastError(
                f"this bundle has no variant {variant[:40]!r}" + (f"; it has {', '.join(there)}" if there else ""),
                file=opened.folder,
                remedy="leave --variant away, or write the bundle anew with --variants",
            )
        file = there[variant]
    content = network_bytes(opened, file)
    inspect(content, file)
    return Predictor(opened, open_session(content, opened, threads), domains_of(opened.about), variant)


def open_session(content: bytes, bundle: Bundle, threads: int | None = None) -> Any:
    """An ONNX Runtime session of a network's bytes, whose input and outputs are those that the bundle says."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # it may have been imported before this package could forbid it
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or max(1, min(4, os.cpu_count() or 1))
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        given = {i.name: i.type for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
    except Exception as error:  # ONNX Runtime has exceptions of its own for every status
        raise _unusable(bundle, f"cannot be opened here ({str(error).splitlines()[0][:200]})") from error
    if given != {INPUT: "tensor(float)"} or not set(bundle.about.outputs) <= set(names):
        raise _unusable(bundle, "has other inputs and outputs than the bundle says")
    return session


def _score(domains: Sequence[NetworkDomain], features: Floats) -> float | None:
    """Of the features (F,) of all members; not finite where theirs are not."""
    if not domains:
        return None
    each = [
        float(distance(d.domain, features[None, d.first : d.first + len(d.domain.mean)])[0]) / d.domain.threshold
        for d in domains
    ]
    return float(together([each], [d.share for d in domains])[0])


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Over the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def conformal_set(rule: Rule, probability: NDArray[np.float64]) -> tuple[str, ...]:
    """Classes that a rule's quantiles do not rule out, given probabilities (C,) before the temperature."""
    limits = [rule.quantiles[c] for c in rule.classes]
    return tuple(c for c, p, q in zip(rule.classes, probability, limits, strict=True) if q is None or 1.0 - p <= q)


def cam_of(prediction: Prediction, name: str, aspect: str = "stretch") -> Floats | None:
    """Grad-CAM of one class at the image's own size, float32 (height, width), bilinear; None where there is none.

    Parameters
    ----------
    aspect : {"stretch", "pad"}
        Of the bundle's preprocessing: padding is cut off.
    """
    if prediction.cam is None:
        return None
    from PIL import Image

    small = prediction.cam[prediction.classes.index(name)]
    side = max(prediction.width, prediction.height)
    size = (side, side) if aspect == "pad" else (prediction.width, prediction.height)
    whole = Image.fromarray(np.ascontiguousarray(small)).resize(size, Image.Resampling.BILINEAR)
    if aspect == "pad":
        whole = whole.crop(padded_box(prediction.width, prediction.height, side))
    return np.asarray(whole, np.float32)


def _require(name: str, bundle: Bundle) -> None:
    from importlib.util import find_spec

    try:
        found = find_spec(name) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise SonobreastError(
            f"this bundle needs {name[:60]}, which is not installed: it fills burned-in marks before an image is seen",
            file=bundle.folder,
            remedy="install it, such as: pip install sonobreast[study]",
        )


def _unusable(bundle: Bundle, what: str) -> SonobreastError:
    return SonobreastError(f"the bundle's network {what}", file=bundle.folder, remedy=REMEDY)
