"""Maps that mend probabilities, fitted on the validation images of each run and applied to its test images.

Temperature (one number) and isotonic regression (a staircase for each class). Validation images have also chosen the
epoch at which training stopped, so that the network looks a little better on them than elsewhere; a map of one number
suffers least from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import brentq
from scipy.special import softmax

from sonobreast.evaluation.decision_rule import CLIP, TEMPERATURES, temperature_scaled
from sonobreast.evaluation.metrics import Floats, Ints
from sonobreast.evaluation.predictions import classes_of

TEMPERATURE_NEEDS = 20
"""Validation images below which no temperature is fitted."""
ISOTONIC_NEEDS, ISOTONIC_NEEDS_OF_CLASS = 50, 5
"""Validation images, in all and of each class, below which no isotonic regression is fitted."""
ISOTONIC_WANTS = 1000
"""Below about so many cases isotonic regression follows chance (Niculescu-Mizil & Caruana 2005, ICML)."""


def fit_temperature(probability: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """The temperature of greatest likelihood, ``argmin_T -sum_i log softmax(log p_i / T)[y_i]``, within `TEMPERATURES`.

    The loss is convex in 1/T, so its derivative has one root. Where every case is right (the network can only gain by
    being surer) the lower bound is the answer, where chance does better than the network the upper one, and 1 where no
    temperature changes anything.

    Parameters
    ----------
    probability : float (n, C)
        Of cases that the network was not trained on; below 1e-12 they count as 1e-12.
    label : int (n,)

    References
    ----------
    Guo et al. 2017, ICML, section 4.2.
    """
    z = np.log(np.clip(np.asarray(probability, np.float64), CLIP, 1.0))  # (n, C)
    of_truth = z[np.arange(len(z)), np.asarray(label, np.int64)]

    def slope(log_beta: float) -> float:
        expected = (softmax(math.exp(log_beta) * z, axis=1) * z).sum(axis=1)
        return float(np.mean(expected - of_truth))

    low, high = -math.log(TEMPERATURES[1]), -math.log(TEMPERATURES[0])
    at_low, at_high = slope(low), slope(high)
    if abs(at_low) < 1e-15 and abs(at_high) < 1e-15:
        return 1.0
    if at_low >= 0:
        return TEMPERATURES[1]
    if at_high <= 0:
        return TEMPERATURES[0]
    return float(math.exp(-brentq(slope, low, high, xtol=1e-12)))


@dataclass(frozen=True, eq=False)
class Isotonic:
    """Staircases, one for each class against the rest: `steps[c]` holds increasing scores and their shares."""

    steps: tuple[tuple[Floats, Floats], ...]


def fit_isotonic(probability: npt.ArrayLike, label: npt.ArrayLike) -> Isotonic:
    """Isotonic regression of each class against the rest (scikit-learn's).

    The shares are kept within ``1/(n+2)`` and ``(n+1)/(n+2)`` (the rule of succession): n cases cannot show that
    something never happens, and a share of 0 would make one later case's log loss infinite.

    Parameters
    ----------
    probability : float (n, C)
    label : int (n,)
        Every class is there.

    References
    ----------
    Zadrozny & Elkan 2002, KDD, 694-699.
    """
    from sklearn.isotonic import IsotonicRegression

    p, y = np.asarray(probability, np.float64), np.asarray(label, np.int64)
    low, high = 1 / (len(y) + 2), (len(y) + 1) / (len(y) + 2)
    steps = []
    for c in range(p.shape[1]):
        found = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip").fit(p[:, c], y == c)
        steps.append((np.asarray(found.X_thresholds_, np.float64), np.asarray(found.y_thresholds_, np.float64)))
    return Isotonic(tuple(steps))


def isotonic_scaled(probability: npt.ArrayLike, fitted: Isotonic) -> Floats:
    """Probabilities (n, C) through the staircases, normalised to sum to 1 in each row.

    With two classes the order of the images is kept (ties aside); with more the normalisation can change it.
    """
    p = np.asarray(probability, np.float64)
    each = np.stack([np.interp(p[:, c], x, y) for c, (x, y) in enumerate(fitted.steps)], axis=1)
    scaled: Floats = each / each.sum(axis=1, keepdims=True)
    return scaled


@dataclass(frozen=True, eq=False)
class Recalibrated:
    """The validation and test rows of one configuration, as they are and through each map.

    Attributes
    ----------
    raw, temperature : DataFrame
        Same rows, other probabilities.
    isotonic : DataFrame or None
        None where a run has too few validation images (`notes` says how many are needed).
    temperatures : dict of str to float
        Run -> its temperature; 1 where it could not be fitted.
    fitted : dict of str to int
        Run -> its validation images, of those runs that could be fitted.
    notes : tuple of str
        What a reader must know, once each.
    """

    raw: pd.DataFrame
    temperature: pd.DataFrame
    isotonic: pd.DataFrame | None
    temperatures: dict[str, float]
    fitted: dict[str, int]
    notes: tuple[str, ...]


def recalibrated(table: pd.DataFrame) -> Recalibrated:
    """Fit the maps of each run on its validation rows and send its validation and test rows through them.

    Parameters
    ----------
    table : DataFrame
        Rows of one configuration.
    """
    classes = classes_of(table)
    columns = [f"p_{c}" for c in classes]
    raw = table[table["subset"].isin(("validation", "test"))]
    p = raw[columns].to_numpy(np.float64)
    p = p / p.sum(axis=1, keepdims=True)
    label = raw["label"].map({c: i for i, c in enumerate(classes)}).to_numpy(np.int64)
    validation = (raw["subset"] == "validation").to_numpy()
    warm, stairs = p.copy(), p.copy()
    temperatures: dict[str, float] = {}
    fitted: dict[str, int] = {}
    bound: list[str] = []
    few: list[int] = []
    no_stairs: list[str] = []
    missing: dict[str, int] = {}
    smallest = math.inf
    run_of = raw["run"].to_numpy()
    for run in dict.fromkeys(run_of):
        mine = run_of == run
        seen = mine & validation
        n = int(seen.sum())
        temperatures[str(run)] = 1.0
        if n < TEMPERATURE_NEEDS:
            few.append(n)
        else:
            value = fit_temperature(p[seen], label[seen])
            temperatures[str(run)], fitted[str(run)] = value, n
            if value in TEMPERATURES:
                bound.append(f"{value:g}")
            warm[mine] = temperature_scaled(p[mine], value)
        count = np.bincount(label[seen], minlength=len(classes))
        for c in np.flatnonzero(count == 0):
            missing[classes[c]] = missing.get(classes[c], 0) + 1
        if n < ISOTONIC_NEEDS or count.min() < ISOTONIC_NEEDS_OF_CLASS:
            no_stairs.append(_too_few(n, count, classes))
        else:
            smallest = min(smallest, n)
            stairs[mine] = isotonic_scaled(p[mine], fit_isotonic(p[seen], label[seen]))
    total = len(temperatures)
    notes = []
    if few:
        notes.append(
            f"too few validation images for a temperature in {len(few)} of {total} runs ({min(few)}; "
            f"{TEMPERATURE_NEEDS} are needed): it stays 1 there"
        )
    if bound:
        notes.append(
            f"the temperature of {len(bound)} of {total} runs is at its bound ({', '.join(dict.fromkeys(bound))}): "
            "the validation images are nearly all right, or the probabilities say nothing"
        )
    notes += [f"the validation images of {k} of {total} runs hold no {c}" for c, k in missing.items()]
    if no_stairs:
        notes.append(f"no isotonic regression: {no_stairs[0]}")
    elif smallest < ISOTONIC_WANTS:
        notes.append(
            f"isotonic regression on {smallest:.0f} validation images follows chance: it wants {ISOTONIC_WANTS} or more"
        )
    return Recalibrated(
        raw.assign(**_columns(columns, p)),
        raw.assign(**_columns(columns, warm)),
        None if no_stairs else raw.assign(**_columns(columns, stairs)),
        temperatures,
        fitted,
        tuple(notes),
    )


def _columns(names: Sequence[str], values: Floats) -> dict[str, Floats]:
    return {name: values[:, k] for k, name in enumerate(names)}


def _too_few(n: int, count: Ints, classes: Sequence[str]) -> str:
    rare = int(np.argmin(count))
    if n < ISOTONIC_NEEDS:
        return f"too few validation images in a run ({n}; {ISOTONIC_NEEDS} are needed)"
    return (
        f"too few validation images of class {classes[rare]} in a run ({int(count[rare])}; "
        f"{ISOTONIC_NEEDS_OF_CLASS} are needed)"
    )
