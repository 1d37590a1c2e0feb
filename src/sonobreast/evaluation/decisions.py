"""Decisions at a threshold: operating points chosen on validation images and frozen, net benefit, decision curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.decision_rule import malignant_column
from sonobreast.evaluation.intervals import bootstrap, interval_of, percentile_limits
from sonobreast.evaluation.metrics import Floats, Scored, group_codes
from sonobreast.evaluation.predictions import classes_of, whole_repeats, whole_tables
from sonobreast.evaluation.recalibration import Recalibrated
from sonobreast.evaluation.resampling import draw_statistics

SENSITIVITIES = (0.95, 0.90)
CURVE = tuple(round(0.01 * k, 2) for k in range(1, 51))
"""Threshold probabilities of the decision curve."""
POINTS = (0.02, 0.05, 0.10, 0.20, 0.30)
"""Threshold probabilities that are said in numbers; BI-RADS recommends biopsy above 2 %."""


def threshold_for_sensitivity(score: Floats, malignant: npt.NDArray[Any], sensitivity: float) -> float:
    """The largest threshold at which at least this share of the cancers scores at or above it.

    Parameters
    ----------
    score : float (n,)
        Probability of malignancy of validation cases.
    malignant : bool (n,)
    sensitivity : float
        Above 0, up to 1.

    Raises
    ------
    SonobreastError
        If there is no malignant case.
    """
    cancers = np.sort(np.asarray(score, float)[np.asarray(malignant, bool)])[::-1]
    if not len(cancers):
        raise SonobreastError(
            "the validation images hold no cancer, so no threshold can be chosen on them",
            remedy="use a run whose validation subset has malignant images",
        )
    needed = math.ceil(sensitivity * len(cancers) - 1e-9)
    return float(cancers[max(1, needed) - 1])


def cancers_needed(sensitivity: float) -> int:
    """Validation cancers with which a threshold may miss one and still keep the sensitivity: ``1 / (1 - s)``.

    With fewer, the threshold is the lowest score of any of them: chance alone sets it. 0.95 needs 20.
    """
    return math.ceil(1 / (1 - sensitivity) - 1e-9) if sensitivity < 1 else 0


def net_benefit(
    score: npt.ArrayLike, malignant: npt.ArrayLike, threshold: float, weight: npt.ArrayLike | None = None
) -> float:
    """Net benefit: ``TP/n - FP/n * t/(1 - t)`` when everyone with a probability of at least t is worked up.

    A threshold t says how a missed cancer weighs against a needless biopsy: at 10 % one cancer found is worth nine
    needless biopsies. A net benefit of 0.2 is that of finding 20 cancers in 100 patients without any needless biopsy.

    Parameters
    ----------
    score : float (n,)
        Calibrated probability of malignancy: on others the threshold does not mean what it says.
    malignant : bool (n,)
    threshold : float
        In (0, 1).
    weight : float (n,), optional
        Case multiplicities.

    References
    ----------
    Vickers & Elkin 2006, Med Decis Making 26:565.
    """
    if not 0 < threshold < 1:
        raise SonobreastError(f"a threshold probability of {threshold}", remedy="give a share between 0 and 1")
    y = np.asarray(malignant, bool)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    called = np.asarray(score, np.float64) >= threshold
    found, needless = float(w[called & y].sum()), float(w[called & ~y].sum())
    return (found - needless * threshold / (1 - threshold)) / float(w.sum())


def net_benefit_of_all(prevalence: float, threshold: float) -> float:
    """Net benefit of working up everyone: ``P - (1 - P) t/(1 - t)``; 0 where the threshold is the prevalence."""
    return prevalence - (1 - prevalence) * threshold / (1 - threshold)


def decision_metrics(
    found: Recalibrated, *, sensitivities: Sequence[float] = SENSITIVITIES, resamples: int = 2000
) -> dict[str, Any]:
    """Operating points and decision curve of one configuration, JSON-ready, on temperature-scaled probabilities.

    Parameters
    ----------
    found : Recalibrated
    sensitivities : sequence of float
        Aimed at; each run's threshold is chosen on its validation images and applied to its test images.
    resamples : int

    Returns
    -------
    dict
        ``reason``: why there is nothing, else "". ``points``: for each sensitivity ``aim``, ``reason``, ``threshold``
        (least and greatest over the runs), ``cancers`` (fewest validation cancers of a run), ``sensitivity`` and
        ``specificity`` with interval, ``note``. ``curve``: ``threshold, model, low, high, all`` (lists). ``gains``: net
        benefit at `POINTS` of the model, of all, and the difference to the better of all and nobody with interval.
        ``better``: ranges of thresholds in which the interval of that difference is above 0. ``prevalence``,
        ``cancers``.
    """
    classes = classes_of(found.temperature)
    column = malignant_column(classes)
    if column is None:
        return {"reason": f"no class is malignant ({', '.join(classes)})"}
    name = classes[column]
    repeats = whole_repeats(found.temperature)
    sets = list(repeats.sets.values())
    cancer = sets[0].label == column
    content: dict[str, Any] = {
        "reason": "",
        "n": len(cancer),
        "cancers": int(cancer.sum()),
        "prevalence": float(cancer.mean()),
        "points": [_point(found.temperature, name, s, resamples) for s in sensitivities],
    }
    if not cancer.any() or cancer.all():
        return content | {"curve": None, "gains": [], "better": [], "curve_reason": "the test images are of one side"}
    return content | _curve([s.probability[:, column] for s in sets], cancer, repeats.group, resamples)


def _point(table: pd.DataFrame, name: str, aim: float, resamples: int) -> dict[str, Any]:
    """One operating point: a threshold a run, figures over all test images."""
    content: dict[str, Any] = {"aim": aim, "needed": cancers_needed(aim), "reason": "", "note": ""}
    cuts: dict[str, float] = {}
    cancers = []
    for run, rows in table.groupby("run", sort=False):
        validation = rows[rows["subset"] == "validation"]
        sick = (validation["label"] == name).to_numpy()
        if not sick.any():
            return content | {"reason": f"the validation images of {run} hold no cancer"}
        cancers.append(int(sick.sum()))
        cuts[str(run)] = threshold_for_sensitivity(validation[f"p_{name}"].to_numpy(float), sick, aim)
    if min(cancers) < content["needed"]:
        content["note"] = (
            f"a run chose its threshold for {100 * aim:.0f} % on {min(cancers)} validation cancers; "
            f"{content['needed']} are needed for it to rest on more than the lowest score"
        )
    whole, _ = whole_tables(table)
    first = next(iter(whole.values()))
    sets = [_called(part, cuts, name) for part in whole.values()]
    names = ["sensitivity_malignant", "specificity_malignant"]
    figures = bootstrap(sets, first["group"].to_numpy(), metrics=names, resamples=resamples, method="bca")
    return content | {
        "threshold": {"least": min(cuts.values()), "greatest": max(cuts.values())},
        "cancers": min(cancers),
        "sensitivity": figures[names[0]].as_dict(),
        "specificity": figures[names[1]].as_dict(),
    }


def _called(part: pd.DataFrame, cuts: dict[str, float], name: str) -> Scored:
    p = part[f"p_{name}"].to_numpy(float).clip(0.0, 1.0)
    says = p >= part["run"].map(cuts).to_numpy(float)
    label = (part["label"] == name).to_numpy()
    return Scored(label.astype(int), says.astype(int), np.stack([1.0 - p, p], axis=1), ("other", "malignant"))


def _curve(
    scores: Sequence[Floats], cancer: npt.NDArray[np.bool_], group: npt.ArrayLike, resamples: int
) -> dict[str, Any]:
    grid = np.array(sorted({*CURVE, *POINTS}))
    odds = grid / (1 - grid)
    called = np.mean([s[:, None] >= grid for s in scores], axis=0)  # (n, T)
    worth = called * np.where(cancer[:, None], 1.0, -odds)  # of each case, at each threshold
    worth_of_all = np.where(cancer[:, None], 1.0, -odds)

    def statistic(weight: Floats) -> dict[str, Floats]:
        total = weight.sum(axis=1, keepdims=True)
        model, everyone = weight @ worth / total, weight @ worth_of_all / total
        gain = model - np.maximum(everyone, 0.0)
        return {
            **{f"model {k}": model[:, k] for k in range(len(grid))},
            **{f"all {k}": everyone[:, k] for k in range(len(grid))},
            **{f"gain {k}": gain[:, k] for k in range(len(grid))},
        }

    codes, _ = group_codes(group, len(cancer))
    drawn = draw_statistics(statistic, codes, resamples=resamples, jackknife=False)
    groups = int(codes.max()) + 1
    behind = min(len(np.unique(codes[cancer])), len(np.unique(codes[~cancer])))

    def interval(what: str) -> dict[str, Any]:
        return interval_of(
            drawn[what], level=0.95, method="percentile", n=len(codes), groups=groups, behind=behind, share=False
        ).as_dict()

    band = [percentile_limits(drawn[f"model {k}"].resampled, 0.95) for k in range(len(grid))]
    ahead = [percentile_limits(drawn[f"gain {k}"].resampled, 0.95)[0] > 0 for k in range(len(grid))]
    return {
        "curve": {
            "threshold": grid.tolist(),
            "model": [drawn[f"model {k}"].estimate for k in range(len(grid))],
            "low": [low for low, _ in band],
            "high": [high for _, high in band],
            "all": [drawn[f"all {k}"].estimate for k in range(len(grid))],
        },
        "gains": [
            {
                "threshold": t,
                "model": interval(f"model {k}"),
                "all": drawn[f"all {k}"].estimate,
                "gain": interval(f"gain {k}"),
            }
            for k, t in enumerate(grid.tolist())
            if t in POINTS
        ],
        "better": _ranges(grid, ahead),
        "curve_reason": "",
    }


def _ranges(grid: Floats, inside: Sequence[bool]) -> list[list[float]]:
    """Stretches of neighbouring thresholds, as [first, last]."""
    found: list[list[float]] = []
    previous = False
    for t, here in zip(grid.tolist(), inside, strict=True):
        if here and previous:
            found[-1][1] = t
        elif here:
            found.append([t, t])
        previous = here
    return found
