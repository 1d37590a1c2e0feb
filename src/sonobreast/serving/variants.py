"""Smaller forms of a bundle's network, int8 and float16, kept only if they decide as the network does. Needs onnx.

int8 quantises weights and activations of convolutions and matrix products (static, QDQ: Jacob 2018, arXiv:1712.05877),
with ranges of activations from training images; weights take 7 bits, so that processors without VNNI do not overflow.
float16 keeps input and outputs in float32. Whether either is faster hangs on the processor, and is measured.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonobreast.config import Preprocess
from sonobreast.data.preprocess import decode, prepare, quiet, scale
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.compare import paired_difference
from sonobreast.evaluation.metrics import Scored
from sonobreast.records import read_table
from sonobreast.serving.about import MODEL, VARIANT_FILES, About
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.onnx_file import inspect
from sonobreast.serving.predictor import INPUT, Prediction, Predictor, domains_of, open_session, softmax

CALIBRATION_IMAGES = 64
MARGIN = 0.02
"""What the interval of the accuracy difference must stay within."""
AGREEMENT = 0.99
"""Share of images on which all decisions must be the same."""
_BATCH = 8
_TIMED = 25  # runs of one image
Progress = Callable[[str, int, int], None]
Pixels = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Judges:
    """Images that variants are made and judged with.

    Attributes
    ----------
    calibration : list of ndarray, uint8, (S, S, 3)
        Prepared training images for the ranges of activations.
    images : list of ndarray, uint8, (S, S, 3)
        Prepared images of the runs' test subsets, none of ``calibration`` among them.
    label, group : sequence of str
        Of ``images``.
    seen_in_training : int
        How many of ``images`` some run of the bundle was trained on: those of other folds of an ensemble. On such
        images a network is surer of itself, and a variant agrees with it more easily.
    """

    calibration: Pixels
    images: Pixels
    label: Sequence[str]
    group: Sequence[str]
    seen_in_training: int


@dataclass(frozen=True)
class Made:
    """What came of the variants that were asked for.

    Attributes
    ----------
    about : list of dict
        What `sonobreast.serving.about.Variant` reads, one for each that is kept.
    files : dict of str to bytes
    refused : dict of str to str
        Name -> why it is not kept.
    """

    about: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def check_names(names: Sequence[str]) -> None:
    """Refuse variants that do not exist.

    Raises
    ------
    SonobreastError
    """
    for name in names:
        if name not in VARIANT_FILES:
            raise SonobreastError(
                f"there is no variant {name!r}", remedy=f"give {', '.join(VARIANT_FILES)}, with commas between them"
            )


def judges(
    study: Path, table: pd.DataFrame, settings: Preprocess, data: Path | None = None, tell: Progress | None = None
) -> Judges:
    """Read the images that variants are judged on.

    Parameters
    ----------
    study : Path
    table : DataFrame
        Predictions of all runs of the bundle.
    settings : Preprocess
    data : Path or None
        Where the images are; None: where the study's manifest says.
    tell : callable or None
        Told the stage, what is done, and of how many.

    Raises
    ------
    SonobreastError
        If images are not at hand, or are others than those of the study.
    """
    manifest = study / "manifest.csv"
    rows = {r["image"]: r for r in read_table(manifest, ("image", "root", "sha256"))}
    trained = list(dict.fromkeys(table[table["subset"] == "train"]["image"]))
    step = np.linspace(0, max(0, len(trained) - 1), min(len(trained), CALIBRATION_IMAGES)).round().astype(int)
    calibration = [trained[i] for i in step]
    tested = table[table["subset"] == "test"].drop_duplicates("image")
    tested = tested[~tested["image"].isin(calibration)]
    if tested.empty or not calibration:
        raise SonobreastError(
            "the runs have no training images or no test images to judge variants on",
            file=study,
            remedy="export without variants",
        )
    wanted = [*calibration, *tested["image"]]
    found: Pixels = []
    with quiet():
        for done, name in enumerate(wanted, start=1):
            found.append(prepare(decode(_same(name, rows, manifest, data)), settings))
            if tell is not None:
                tell("reading images for variants", done, len(wanted))
    n = len(calibration)
    seen = int(tested["image"].isin(set(trained)).sum())
    return Judges(found[:n], found[n:], list(tested["label"]), list(tested["group"]), seen)


def _same(name: str, rows: Mapping[str, Mapping[str, str]], manifest: Path, data: Path | None) -> bytes:
    """Content of an image, which is the one that the study saw."""
    remedy = "give the folder of the study's images with --data, or export without variants"
    if name not in rows:
        raise SonobreastError(
            f"the image {name} of the runs is not in the study's manifest", file=manifest, remedy=remedy
        )
    file = (data or manifest.parent / rows[name]["root"]) / name
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SonobreastError(
            f"variants are judged on the study's images ({error.strerror})", file=file, remedy=remedy
        ) from error
    if rows[name]["sha256"] and hashlib.sha256(content).hexdigest() != rows[name]["sha256"]:
        raise SonobreastError("this image is another one than the study saw", file=file, remedy=remedy)
    return content


def make_variants(
    names: Sequence[str],
    content: bytes,
    about: Mapping[str, Any],
    judged: Judges,
    self_test: NDArray[np.uint8],
    tell: Progress | None = None,
) -> Made:
    """Make variants of a network and judge them.

    Parameters
    ----------
    names : sequence of str
        Of `VARIANT_FILES`.
    content : bytes
        The network as ONNX.
    about : mapping
        `About` without ``files``.
    judged : Judges
    self_test : ndarray, uint8, (S, S, 3)
        The prepared image of the bundle's self-test.
    tell : callable or None

    Raises
    ------
    SonobreastError
        Unknown names.
    """
    check_names(names)
    say = tell or (lambda stage, done, total: None)
    plain = _predictor(content, about)
    say("predicting without variants", 0, 0)
    wanted = _judge(plain, judged.images)
    made = Made()
    for name in dict.fromkeys(names):
        say(f"making the variant {name}", 0, 0)
        file = VARIANT_FILES[name]
        try:
            smaller = float16(content) if name == "float16" else int8(content, judged.calibration)
            inspect(smaller, file)
            variant = _predictor(smaller, about)
            found = _judge(variant, judged.images)
        except Exception as error:  # quantisers hand on whatever a network's operators bring
            lines = str(error).strip().splitlines()
            made.refused[name] = f"it cannot be made of this network ({lines[0][:200] if lines else type(error)})"
            continue
        figures = _compare(found, wanted, judged)
        if why := _why_not(figures):
            made.refused[name] = why
            continue
        [logits] = variant.session.run(["logits"], {INPUT: _scaled([self_test])})
        expected = dict(zip(about["classes"], map(float, softmax(logits)[0]), strict=True))
        times = _times(plain, variant, judged.images[0])
        made.about.append({"name": name, "file": file, **figures, **times, "expected": expected})
        made.files[file] = smaller
    return made


def int8(content: bytes, images: Pixels) -> bytes:
    """Statically quantised, with ranges of activations from prepared images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[NDArray[np.uint8]] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.left, None)
            return None if image is None else {INPUT: _scaled([image])}

    with tempfile.TemporaryDirectory() as folder:
        given, folded, out = (Path(folder) / n for n in ("given.onnx", "folded.onnx", "out.onnx"))
        given.write_bytes(content)
        # Norms are folded into convolutions first, or their own ranges would be lost
        quant_pre_process(str(given), str(folded), skip_symbolic_shape=True)
        quantize_static(
            str(folded),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            # The head and the sums behind it stay: there a rounded number is a rounded probability
            op_types_to_quantize=["Conv", "MatMul"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return out.read_bytes()


def float16(content: bytes) -> bytes:
    """Weights and arithmetic in half precision, input and outputs in single precision."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True)
    return bytes(made.SerializeToString())


def _predictor(content: bytes, about: Mapping[str, Any]) -> Predictor:
    """A stand-in for the bundle that is not there yet."""
    files = {MODEL: {"sha256": "0" * 64, "bytes": len(content)}}
    settings = Preprocess.model_validate(about["preprocess"])
    waiting = Bundle(Path(), About.model_validate({**about, "preprocess": settings, "files": files}), "")
    return Predictor(waiting, open_session(content, waiting), domains_of(waiting.about))


@dataclass(frozen=True)
class _Seen:
    """What a form of the network says of the judges' images: decisions, and masks (n, S, S) where it segments."""

    predictions: list[Prediction]
    masks: NDArray[np.bool_] | None


def _judge(predictor: Predictor, images: Pixels) -> _Seen:
    about = predictor.bundle.about
    # Masks are compared at the network's size; bringing each to its image's size and measuring it takes long
    bundle = replace(predictor.bundle, about=about.model_copy(update={"mask_threshold": None}))
    plain = replace(predictor, bundle=bundle)
    size = about.preprocess.size
    found: list[Prediction] = []
    masks: list[NDArray[np.bool_]] = []
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        outputs = plain.run(part)
        found += [plain.judge(outputs, k, size, size, None) for k in range(len(part))]
        if about.mask_threshold is not None:
            masks.append(outputs["mask"][:, 0] >= about.mask_threshold)
    return _Seen(found, np.concatenate(masks) if masks else None)


def _compare(found: _Seen, wanted: _Seen, judged: Judges) -> dict[str, Any]:
    """Figures of a variant on the judges' images."""
    a, b = _scored(found.predictions, judged.label), _scored(wanted.predictions, judged.label)
    difference = paired_difference([a], [b], judged.group, metrics=["accuracy"])["accuracy"]
    same = [
        (f.predicted, f.malignant, f.in_domain) == (w.predicted, w.malignant, w.in_domain)
        for f, w in zip(found.predictions, wanted.predictions, strict=True)
    ]
    low, high = (float(v) if np.isfinite(v) else None for v in (difference.interval.low, difference.interval.high))
    return {
        "images": len(same),
        "groups": len(set(judged.group)),
        "seen_in_training": judged.seen_in_training,
        "accuracy": float(difference.a),
        "accuracy_difference": float(difference.interval.estimate),
        "low": low,
        "high": high,
        "agreement": float(np.mean(same)),
        "largest_difference": float(np.abs(a.probability - b.probability).max()),
        "mask_overlap": _overlap(found.masks, wanted.masks),
    }


def _overlap(found: NDArray[np.bool_] | None, wanted: NDArray[np.bool_] | None) -> float | None:
    """Mean Dice coefficient where either mask has a pixel; None where no image has."""
    if found is None or wanted is None:
        return None
    both, total = (found & wanted).sum((1, 2)), found.sum((1, 2)) + wanted.sum((1, 2))
    return float(np.mean(2.0 * both[total > 0] / total[total > 0])) if (total > 0).any() else None


def _scored(found: Sequence[Prediction], label: Sequence[str]) -> Scored:
    classes = found[0].classes
    return Scored(
        np.array([classes.index(c) for c in label]),
        np.array([classes.index(f.predicted) for f in found]),
        np.stack([f.probability for f in found]),
        classes,
    )


def _why_not(figures: Mapping[str, Any]) -> str:
    """Why a variant is not kept; empty where it is."""
    on = f"on {figures['images']} test images in {figures['groups']} groups"
    low, high = figures["low"], figures["high"]
    if low is None or high is None:
        return f"the interval of its accuracy difference is not known {on}"
    if low < -MARGIN or high > MARGIN:
        return (
            f"its accuracy differs by {100 * low:+.1f} to {100 * high:+.1f} points {on}, and {100 * MARGIN:g} either "
            "way are allowed"
        )
    if figures["agreement"] < AGREEMENT:
        return f"it decides alike on {100 * figures['agreement']:.1f} % {on}, and {100 * AGREEMENT:g} % are needed"
    return ""


def _times(plain: Predictor, variant: Predictor, image: NDArray[np.uint8]) -> dict[str, float]:
    """Median milliseconds of one image through each, in turns, so that both see the same load."""
    given = {INPUT: _scaled([image])}
    taken: dict[str, list[float]] = {"milliseconds": [], "milliseconds_float32": []}
    for _ in range(_TIMED):
        for name, one in (("milliseconds", variant), ("milliseconds_float32", plain)):
            start = time.perf_counter()
            one.session.run(None, given)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in taken.items()}


def _scaled(images: Pixels) -> NDArray[np.float32]:
    return scale(np.stack(images), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
