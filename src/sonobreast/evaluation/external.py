"""A frozen model on the images of another hospital: how it does there, for whom, and what local cases would mend.

Nothing is chosen on the external images: the model, its decision and its threshold come from the study. The figures are
about malignancy, for sets with two classes and with three are compared by nothing else; the accuracy over the model's
classes stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.decisions import threshold_for_sensitivity as threshold_for_sensitivity
from sonobreast.evaluation.intervals import Interval, bootstrap
from sonobreast.evaluation.metrics import Floats, Scored, group_codes
from sonobreast.evaluation.predictions import averaged as averaged
from sonobreast.evaluation.predictions import binary as binary
from sonobreast.evaluation.predictions import classes_of, scored_table
from sonobreast.evaluation.subgroups import SUBGROUPS as SUBGROUPS
from sonobreast.evaluation.subgroups import lesion_sizes as lesion_sizes
from sonobreast.evaluation.subgroups import rows as subgroup_rows

SENSITIVITY = 0.95
RECALIBRATED_ON = (10, 20, 40, 80, 160, 320)
_DRAWS = 200
_LEFT = 20  # images that have to remain for judging
_PRIOR = (2.0, 0.5)  # spread of intercept and slope around 0 and 1
_METRICS = ("auc_malignant", "sensitivity_malignant", "specificity_malignant", "brier")


def analyse(
    external: pd.DataFrame,
    internal: pd.DataFrame,
    validation: pd.DataFrame,
    *,
    sensitivity: float = SENSITIVITY,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Figures of the external images beside the internal ones, JSON-ready.

    Parameters
    ----------
    external : DataFrame
        One row an image: ``image, group, label, predicted, p_<class>`` and, where known, ``site, device, birads,
        spacing_mm, lesion_px, image_px`` (empty or NaN where not).
    internal : DataFrame
        The study's own test images, as `averaged` gives them.
    validation : DataFrame
        The study's validation images; the threshold is chosen on them.
    sensitivity : float
        Aimed at by the threshold.
    resamples : int

    Returns
    -------
    dict
        ``threshold`` (value, aimed sensitivity, validation cancers), ``classes`` (of the model), ``labels`` (counts),
        ``external`` and ``internal`` (``decision``: as the model decides; ``threshold``: at the frozen threshold;
        ``accuracy``), ``drop`` (internal minus external), ``subgroups``, ``recalibration``.
    """
    classes = classes_of(external)
    if "malignant" not in classes:
        raise SonobreastError(
            f"the model's classes are {', '.join(classes)}: none is malignant",
            remedy="evaluate a model that was trained on malignant images",
        )
    score = validation["p_malignant"].to_numpy(float)
    cut = threshold_for_sensitivity(score, (validation["label"] == "malignant").to_numpy(), sensitivity)

    def at_threshold(part: np.ndarray[Any, Any]) -> Mapping[str, Interval]:
        mine = external[part]
        return bootstrap([binary(mine, cut)], mine["group"].to_numpy(), metrics=_METRICS[:3], resamples=resamples)

    sides = {name: _figures(t, cut, resamples) for name, t in (("external", external), ("internal", internal))}
    return {
        "level": 0.95,
        "resamples": resamples,
        "classes": list(classes),
        "threshold": {
            "value": cut,
            "sensitivity": sensitivity,
            "cancers": int((validation["label"] == "malignant").sum()),
            "images": len(validation),
        },
        "labels": external["label"].value_counts().to_dict(),
        "predicted": external["predicted"].value_counts().to_dict(),
        **sides,
        "drop": _drops(sides["internal"], sides["external"]),
        "subgroups": list(subgroup_rows(external, at_threshold)),
        "recalibration": recalibration(external),
    }


def _figures(table: pd.DataFrame, cut: float, resamples: int) -> dict[str, Any]:
    group = table["group"].to_numpy()
    decided = bootstrap([binary(table)], group, metrics=_METRICS, resamples=resamples, method="bca")
    at_cut = bootstrap([binary(table, cut)], group, metrics=_METRICS[1:3], resamples=resamples, method="bca")
    return {
        "images": len(table),
        "groups": int(pd.Series(group).nunique()),
        "malignant": int((table["label"] == "malignant").sum()),
        "decision": {m: i.as_dict() for m, i in decided.items()},
        "threshold": {m: i.as_dict() for m, i in at_cut.items()},
        "accuracy": _accuracy(table, resamples),
    }


def _accuracy(table: pd.DataFrame, resamples: int) -> dict[str, Any]:
    """Accuracy over the model's classes, and with the probabilities of absent classes taken away.

    Where a hospital has no normal images, a model of three classes may still call a lesion normal: the first figure
    counts that as wrong, the second asks which of the classes that are there is the most probable.
    """
    classes = classes_of(table)
    known = table[table["label"].isin(classes)]
    present = [c for c in classes if (known["label"] == c).any()]
    found: dict[str, Any] = {
        "images": len(known),
        "left_out": len(table) - len(known),
        "absent": [c for c in classes if c not in present],
    }
    if known.empty:
        return found
    group = known["group"].to_numpy()
    whole = bootstrap([scored_table(known)], group, metrics=["accuracy"], resamples=resamples, method="bca")
    found["all_classes"] = whole["accuracy"].as_dict()
    if 2 <= len(present) < len(classes):
        p = known[[f"p_{c}" for c in present]].to_numpy(float) + 1e-12
        label = known["label"].map({c: i for i, c in enumerate(present)}).to_numpy()
        fewer = Scored(np.asarray(label, np.int64), p.argmax(axis=1), p / p.sum(axis=1, keepdims=True), tuple(present))
        there = bootstrap([fewer], group, metrics=["accuracy"], resamples=resamples, method="bca")
        found["present_classes"] = there["accuracy"].as_dict()
    return found


def difference_of_independent(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """a minus b with its 95 % interval, from the intervals of two figures of different people.

    MOVER: ``low = a - b - sqrt((a - a_low)^2 + (b_high - b)^2)``, and likewise up. It takes over what each interval
    knows of its figure (skewness, few groups, resamples without spread), which resampling both sides would lose.

    Parameters
    ----------
    a, b : mapping
        ``estimate, low, high``; each may be None.

    Returns
    -------
    dict
        ``estimate, low, high``, None where a side is not defined or has no interval; ``note`` of both sides.

    References
    ----------
    Newcombe 1998, Stat Med 17:873 (method 10); Zou & Donner 2008, Stat Med 27:1693.
    """
    note = "; ".join(dict.fromkeys(n for side in (a, b) if (n := str(side.get("note") or ""))))
    if a["estimate"] is None or b["estimate"] is None:
        return {"estimate": None, "low": None, "high": None, "note": note}
    gap = a["estimate"] - b["estimate"]
    if None in (a["low"], a["high"], b["low"], b["high"]):
        return {"estimate": gap, "low": None, "high": None, "note": note}
    return {
        "estimate": gap,
        "low": gap - math.hypot(a["estimate"] - a["low"], b["high"] - b["estimate"]),
        "high": gap + math.hypot(a["high"] - a["estimate"], b["estimate"] - b["low"]),
        "note": note,
    }


def _drops(internal: Mapping[str, Any], external: Mapping[str, Any]) -> dict[str, Any]:
    """Internal minus external of each figure, by where it stands and its name."""
    return {
        at: {m: difference_of_independent(internal[at][m], external[at][m]) for m in internal[at]}
        for at in ("decision", "threshold")
    }


def fit_recalibration(score: Floats, malignant: Floats) -> tuple[float, float]:
    """Intercept a and slope b of ``logit(q) = a + b logit(p)`` from a few local cases.

    Maximum of the likelihood times a normal prior (a around 0 with spread 2, b around 1 with spread 0.5), so that ten
    cases of one class still give an answer; the prior is ours. Without cases the model stays as it is.

    References
    ----------
    Cox 1958, Biometrika 45:562; Steyerberg 2019, Clinical Prediction Models, chapter 20 (updating).
    """
    x, y = logit(np.clip(score, 1e-6, 1 - 1e-6)), np.asarray(malignant, float)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        a, b = parameters
        z = a + b * x
        error = expit(z) - y
        value = float(np.sum(np.logaddexp(0.0, z) - y * z)) + 0.5 * ((a / _PRIOR[0]) ** 2 + ((b - 1) / _PRIOR[1]) ** 2)
        return value, np.asarray([error.sum() + a / _PRIOR[0] ** 2, (error * x).sum() + (b - 1) / _PRIOR[1] ** 2])

    found = minimize(loss, np.asarray([0.0, 1.0]), jac=True, method="BFGS")
    return float(found.x[0]), float(found.x[1])


def recalibration(table: pd.DataFrame, *, draws: int = _DRAWS, seed: int = 0) -> list[dict[str, Any]]:
    """What recalibrating on n local cases does to the probabilities of the others: a curve over n.

    Whole groups are drawn until n cases are reached; the rest of the images is judged. Draws of which fewer than 20
    images remain are left out.

    Returns
    -------
    list of dict
        ``n`` (0: as it is), ``used`` (images that the groups drawn hold, mean: a last large group goes beyond n; the
        next n is left out where it would use the same images), ``log_loss`` and ``brier`` (each mean, and 2.5 and 97.5
        percentiles over the draws: the spread of the choice of cases, no interval for other hospitals), ``judged``
        (mean number of images).
    """
    p = table["p_malignant"].to_numpy(float).clip(1e-6, 1 - 1e-6)
    y: Floats = (table["label"] == "malignant").to_numpy().astype(np.float64)
    codes, _ = group_codes(table["group"].to_numpy(), len(table))
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(int(codes.max()) + 1) for _ in range(draws)]
    rows: list[dict[str, Any]] = [{"n": 0, "used": 0.0, "judged": len(table), **_losses([(p, y)])}]
    for n in RECALIBRATED_ON:
        if n > len(table) - _LEFT or n > len(table) // 2:
            break
        judged = []
        for order in orders:
            rank = np.empty(len(order), int)
            rank[order] = np.arange(len(order))
            sizes = np.bincount(codes, minlength=len(order))[order]
            taken = int(np.searchsorted(np.cumsum(sizes), n)) + 1
            local = rank[codes] < taken
            if (~local).sum() < _LEFT:
                continue
            a, b = fit_recalibration(p[local], y[local])
            judged.append((expit(a + b * logit(p[~local])), y[~local]))
        left = float(np.mean([len(q) for q, _ in judged])) if judged else math.nan
        if left < rows[-1]["judged"]:
            rows.append({"n": n, "used": len(table) - left, "judged": left, **_losses(judged)})
    return rows


def _losses(judged: Sequence[tuple[Floats, Floats]]) -> dict[str, Any]:
    """Log loss and Brier score (of both classes, 0 to 2, as elsewhere) of each draw's probabilities and truths."""
    log_loss, brier = [], []
    for q, y in judged:
        inside = np.clip(q, 1e-9, 1 - 1e-9)
        log_loss.append(float(-np.mean(y * np.log(inside) + (1 - y) * np.log1p(-inside))))
        brier.append(float(2.0 * np.mean((q - y) ** 2)))
    return {"log_loss": _spread(log_loss), "brier": _spread(brier)}


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) > 1 else (math.nan, math.nan)
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def sentences(found: Mapping[str, Any], name: str) -> list[str]:
    """What the figures say, in words."""
    outside, inside, drop = found["external"], found["internal"], found["drop"]["decision"]["auc_malignant"]
    text = []
    auc, own = outside["decision"]["auc_malignant"], inside["decision"]["auc_malignant"]
    if auc["estimate"] is None or auc["estimate"] != auc["estimate"]:
        text.append(f"{name} has images of one side only, so no AUC can be given.")
    else:
        text.append(
            f"On {outside['images']} images of {name} the AUC for malignancy is {_with(auc)}; on the study's own "
            f"{inside['images']} test images it is {_with(own)}. {_gap(drop)}"
        )
    at, value = outside["threshold"], found["threshold"]
    found_here, spared = (_with(at[m], True) for m in ("sensitivity_malignant", "specificity_malignant"))
    text.append(
        f"The threshold {value['value']:.3f}, chosen on the study's validation images for a sensitivity of "
        f"{100 * value['sensitivity']:.0f} %, finds {found_here} of the cancers here, and leaves {spared} of the "
        "others without an alarm."
    )
    if outside["groups"] < 30:
        few = "One independent case is" if outside["groups"] == 1 else f"{outside['groups']} independent cases are"
        text.append(f"{few} few: the intervals are wide, and probably still too narrow.")
    return text


def _gap(drop: Mapping[str, Any]) -> str:
    if drop["low"] is None or drop["low"] != drop["low"]:
        return ""
    size = f"{drop['estimate']:+.3f} (95 % interval {drop['low']:+.3f} to {drop['high']:+.3f})".replace("-", "−")
    if drop["low"] > 0:
        return f"It does worse here: internal minus external is {size}."
    if drop["high"] < 0:
        return f"It does better here: internal minus external is {size}."
    return f"Internal minus external is {size}: these images do not show a drop, and do not exclude one of that size."


def _with(figure: Mapping[str, Any], percent: bool = False) -> str:
    estimate, low, high = figure["estimate"], figure["low"], figure["high"]
    if estimate is None or estimate != estimate:
        return "– (not defined)"
    factor, digits = (100.0, 1) if percent else (1.0, 3)
    unit = "\u00a0%" if percent else ""
    if low is None or low != low:
        return f"{factor * estimate:.{digits}f}{unit} (no interval)"
    return f"{factor * estimate:.{digits}f}{unit} ({factor * low:.{digits}f}–{factor * high:.{digits}f})"
