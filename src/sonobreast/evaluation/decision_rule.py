"""What is frozen when a model is shipped: temperature, thresholds and conformal quantiles, and how they are applied.

NumPy alone: a hospital's install applies the rule without pandas, SciPy or scikit-learn. `sonobreast.evaluation.
rule_fitting` makes the rule from a study's predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sonobreast.errors import SonobreastError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CLIP = 1e-12
"""Probabilities below it count as it, so that the logarithm of an exact 0 is defined."""
TEMPERATURES = (0.05, 20.0)
"""Temperatures are kept within these bounds: beyond them probabilities are 0 and 1, or all alike."""


@dataclass(frozen=True)
class DecisionRule:
    """A shipped model's frozen decisions. Everything in it is JSON-ready (`as_dict`, `rule_from`).

    Attributes
    ----------
    classes : tuple of str
        The C classes, in the order of the probabilities' columns.
    temperature : float
        Divides the logarithms of the probabilities; within `TEMPERATURES`.
    thresholds : dict of str to float
        Name of an operating point ("sensitivity 0.95") -> threshold on the temperature-scaled probability of
        malignancy: at or above it an image is called malignant. Empty where no class is malignant.
    alpha : float
        The sets aim to hold the true class with probability 1 - alpha, in each class.
    quantiles : dict of str to (float or None)
        Class -> quantile of the conformal score, 1 minus the probability *before* the temperature; None stands for
        infinity: too few calibration cases, the class is in every set.
    calibration_images, calibration_groups : dict of str to int
        Cases of each class behind the quantiles, and independent groups of them.
    calibration_source : str
        Where these groups come from, and what they guarantee.
    validation_images : int
        Images that temperature and thresholds come from.
    runs : int
        Networks whose mean probability is shipped.
    notes : tuple of str
        What must be said beside the rule: too few cases, a temperature at its bound.
    """

    classes: tuple[str, ...]
    temperature: float
    thresholds: Mapping[str, float]
    alpha: float
    quantiles: Mapping[str, float | None]
    calibration_images: Mapping[str, int]
    calibration_groups: Mapping[str, int]
    calibration_source: str
    validation_images: int
    runs: int
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        c = tuple(self.classes)
        inside = TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]
        levels = list(self.quantiles.values())
        whole = all(q is None or 0 <= q <= 1 for q in levels) and all(0 <= t <= 1 for t in self.thresholds.values())
        if len(c) < 2 or len(set(c)) < len(c) or not inside or not 0 < self.alpha < 1 or not whole:
            raise SonobreastError(
                "a decision rule holds values that cannot be: classes, temperature, thresholds, alpha or quantiles",
                remedy="make the rule anew from the study's predictions",
            )
        if set(self.quantiles) != set(c) or (self.thresholds and malignant_column(c) is None):
            raise SonobreastError(
                f"a decision rule's quantiles ({', '.join(self.quantiles)}) or thresholds do not fit its classes "
                f"({', '.join(c)})",
                remedy="make the rule anew from the study's predictions",
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        content = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in content.items()}


def rule_from(content: Mapping[str, Any]) -> DecisionRule:
    """The rule of `DecisionRule.as_dict`, read back.

    Raises
    ------
    SonobreastError
        Where a part is missing, unknown or cannot be.
    """
    try:
        return DecisionRule(
            classes=tuple(str(c) for c in content["classes"]),
            temperature=float(content["temperature"]),
            thresholds={str(k): float(v) for k, v in content["thresholds"].items()},
            alpha=float(content["alpha"]),
            quantiles={str(k): None if v is None else float(v) for k, v in content["quantiles"].items()},
            calibration_images={str(k): int(v) for k, v in content["calibration_images"].items()},
            calibration_groups={str(k): int(v) for k, v in content["calibration_groups"].items()},
            calibration_source=str(content["calibration_source"]),
            validation_images=int(content["validation_images"]),
            runs=int(content["runs"]),
            notes=tuple(str(n) for n in content.get("notes", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SonobreastError(
            f"a decision rule cannot be read: {type(error).__name__} {error}",
            remedy="make the rule anew from the study's predictions",
        ) from error


@dataclass(frozen=True, eq=False)
class Applied:
    """A rule applied to n images.

    Attributes
    ----------
    probability : float (n, C)
        Temperature-scaled; rows sum to 1.
    malignant : dict of str to bool (n,)
        Operating point -> who is called malignant at it.
    sets : bool (n, C)
        Which classes the conformal set of each image holds.
    abstains : bool (n,)
        Where the set is not exactly one class.
    """

    probability: Floats
    malignant: Mapping[str, Bools]
    sets: Bools
    abstains: Bools


def apply_rule(rule: DecisionRule, probability: npt.ArrayLike) -> Applied:
    """Temperature, thresholds and conformal sets of a frozen rule on a model's probabilities.

    Parameters
    ----------
    rule : DecisionRule
    probability : float (n, C)
        As the model gives them (softmax, the mean over its networks), in the order of ``rule.classes``.

    Raises
    ------
    SonobreastError
        For another number of columns, and values that are no probabilities.
    """
    given = checked_probability(probability, len(rule.classes))
    scaled = temperature_scaled(given, rule.temperature)
    column = malignant_column(rule.classes)
    called = {} if column is None else {name: scaled[:, column] >= cut for name, cut in rule.thresholds.items()}
    sets = prediction_sets(given, [rule.quantiles[c] for c in rule.classes])
    return Applied(scaled, called, sets, abstains(sets))


def checked_probability(probability: npt.ArrayLike, classes: int) -> Floats:
    """Probabilities (n, C) as float64 whose rows sum to 1 exactly, after checking that they are some."""
    p = np.asarray(probability, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != classes:
        raise SonobreastError(
            f"probabilities have the shape {p.shape}, not (images, {classes})",
            remedy="give one row for each image and one column for each class",
        )
    # Written so that NaN fails as well.
    if not np.all((p >= -1e-6) & (p <= 1 + 1e-6)) or not np.all(np.abs(p.sum(axis=1) - 1) <= 1e-4):
        raise SonobreastError(
            "some values are no probabilities", remedy="give finite values from 0 to 1 that sum to 1 in each row"
        )
    p = np.clip(p, 0.0, 1.0)
    scaled: Floats = p / p.sum(axis=1, keepdims=True)
    return scaled


def malignant_column(classes: Sequence[str]) -> int | None:
    """Index of the class named "malignant" (spaces and capitals aside), None where there is none."""
    folded = [c.strip().casefold() for c in classes]
    return folded.index("malignant") if "malignant" in folded else None


def temperature_scaled(probability: npt.ArrayLike, temperature: float) -> Floats:
    """Temperature scaling: ``softmax(log p / T)``.

    The logits of a softmax are ``log p`` up to a constant, which the softmax takes away: nothing but the probabilities
    is needed. T above 1 makes them less sure, below 1 surer. The most probable class stays the most probable one; with
    two classes the order of the images stays as well (and the AUC), with more only nearly.

    Parameters
    ----------
    probability : float (n, C)
        In [0, 1]; values below `CLIP` count as it.
    temperature : float
        Above 0.

    Returns
    -------
    float (n, C)
        Rows sum to 1.

    References
    ----------
    Guo et al. 2017, On calibration of modern neural networks, ICML, section 4.2.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise SonobreastError(f"a temperature of {temperature}", remedy="give a number above 0")
    z = np.log(np.clip(np.asarray(probability, np.float64), CLIP, 1.0)) / temperature
    raised = np.exp(z - z.max(axis=1, keepdims=True))
    scaled: Floats = raised / raised.sum(axis=1, keepdims=True)
    return scaled


def prediction_sets(probability: npt.ArrayLike, quantiles: Sequence[float | None] | Floats) -> Bools:
    """Class-conditional conformal sets: class c is in the set where ``1 - p_c <= q_c``.

    Parameters
    ----------
    probability : float (n, C)
    quantiles : (C,)
        From `sonobreast.evaluation.conformal.class_quantiles`; None or infinity: the class is in every set.

    Returns
    -------
    bool (n, C)
        A row may be empty (no class fits) or hold several.
    """
    levels = np.array([math.inf if q is None else float(q) for q in quantiles])
    sets: Bools = 1.0 - np.asarray(probability, np.float64) <= levels
    return sets


def abstains(sets: Bools, probability: npt.ArrayLike | None = None, *, least: float = 0.0) -> Bools:
    """Where the model should not decide alone: the set is not one class, or the largest probability is below `least`.

    Parameters
    ----------
    sets : bool (n, C)
    probability : float (n, C), optional
        Needed where `least` is above 0.
    least : float
        In [0, 1].

    Returns
    -------
    bool (n,)
    """
    unsure: Bools = np.asarray(sets).sum(axis=1) != 1
    if probability is None:
        return unsure
    doubtful: Bools = unsure | (np.asarray(probability, np.float64).max(axis=1) < least)
    return doubtful
