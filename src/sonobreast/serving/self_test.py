"""A bundle tests itself where it is to be used: nothing was altered, and its own image gives what it gave elsewhere."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from sonobreast.errors import SonobreastError
from sonobreast.serving.about import REMEDY
from sonobreast.serving.bundle import (
    SELF_TEST_EXPECTED,
    SELF_TEST_IMAGE,
    TOLERANCE,
    Bundle,
    open_bundle,
    plain_file,
)
from sonobreast.serving.predictor import load_predictor

VARIANT_TOLERANCE = 0.05
"""As TOLERANCE, of a variant between where it was written and anywhere: coarse numbers are rounded elsewhere there."""
_LARGEST = 1 << 20  # bytes of the expected output


@dataclass(frozen=True)
class Checked:
    """What `check` found.

    Attributes
    ----------
    bundle : Bundle
    difference : float
        Largest difference in probability between the self-test here and what was expected.
    """

    bundle: Bundle
    difference: float


def check(folder: Path) -> Checked:
    """Compare all files with their digests and run the self-test again.

    Raises
    ------
    SonobreastError
        As `open_bundle`; if the network cannot be run here; if the self-test differs by more than 1e-3 in probability.
    """
    bundle = open_bundle(folder)
    image = plain_file(folder, SELF_TEST_IMAGE)
    expected = _expected(folder / SELF_TEST_EXPECTED, bundle.about.classes)
    probability = load_predictor(bundle).probability(image)
    difference = max(abs(float(p) - expected[c]) for c, p in zip(bundle.about.classes, probability, strict=True))
    if not difference <= TOLERANCE:
        raise SonobreastError(
            f"the self-test differs by {difference:.2g} in probability; at most {TOLERANCE} is allowed",
            file=image,
            remedy="do not use the bundle here; say which processor and which version of onnxruntime this is",
        )
    for one in bundle.about.variants:
        found = load_predictor(bundle, variant=one.name).probability(image)
        gap = max(abs(float(p) - one.expected[c]) for c, p in zip(bundle.about.classes, found, strict=True))
        if not gap <= VARIANT_TOLERANCE:
            raise SonobreastError(
                f"the self-test of the variant {one.name} differs by {gap:.2g} in probability; at most "
                f"{VARIANT_TOLERANCE} is allowed",
                file=folder / one.file,
                remedy="use the bundle here without --variant; say which processor this is",
            )
    return Checked(bundle, difference)


def _expected(file: Path, classes: list[str]) -> dict[str, float]:
    """Expected probabilities, before calibration."""
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError("too large")
        stated = json.loads(file.read_text(encoding="utf-8"))["probability"]
        values = {c: float(stated[c]) for c in classes}
        if len(stated) != len(classes) or not all(math.isfinite(v) for v in values.values()):
            raise ValueError("not a probability for each class")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SonobreastError(f"not the expected output of a self-test ({error})", file=file, remedy=REMEDY) from error
    return values
