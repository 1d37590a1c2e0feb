"""Does one configuration draw lesions better than another? Paired differences in mean Dice on the same images."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.compare import Difference, bootstrap_p, holm, without_spread
from sonobreast.evaluation.comparison import resamples_for
from sonobreast.evaluation.intervals import FLAT, limits
from sonobreast.evaluation.metrics import Floats
from sonobreast.evaluation.predictions import KEYS, Key, configuration_title, configurations, folds_of
from sonobreast.evaluation.resampling import draw_statistics
from sonobreast.evaluation.segmentation_summary import Masked, masked


def compare_dice(table: pd.DataFrame, *, resamples: int = 2000) -> dict[str, Any] | None:
    """Differences in mean Dice of all pairs of configurations that segment, with Holm's correction over the pairs.

    Each resample of groups serves both sides and all their repeats, so lesions that both find hard cancel; the images
    are those with an outlined lesion, and a missed lesion has a Dice of 0.

    Parameters
    ----------
    table : DataFrame
        Rows of all configurations (`sonobreast.evaluation.segmentation_summary.read_segmentation`).
    resamples : int
        At least so many; more where there are many pairs (`sonobreast.evaluation.comparison.resamples_for`).

    Returns
    -------
    dict or None
        ``pairs``: ``a``, ``b`` (architecture, optimizer), ``n`` lesions, ``groups``, ``repeats``, ``left_out``,
        ``dice`` of both, their difference A minus B with its interval, p and Holm's p; ``not_compared`` and why;
        ``family``, ``resamples``. None for fewer than two configurations.
    """
    known = configurations(table)
    if len(known) < 2:
        return None
    folds = folds_of(table)
    pairs, impossible = list(combinations(known, 2)), []
    resamples = resamples_for(len(pairs), resamples)
    whole: dict[Key, Masked | str] = {}
    for key in known:
        rows = table[(table["architecture"] == key[0]) & (table["optimizer"] == key[1])]
        try:
            whole[key] = masked(rows, folds)
        except SonobreastError as error:
            whole[key] = error.what
    found = []
    for a, b in pairs:
        of_a, of_b = whole[a], whole[b]
        why = next((w for w in (of_a, of_b) if isinstance(w, str)), None) or _not_alike(of_a, of_b)  # type: ignore[arg-type]
        if why:
            impossible.append({"a": configuration_title(*a), "b": configuration_title(*b), "why": why})
        else:
            found.append(_compared(a, b, of_a, of_b, resamples))  # type: ignore[arg-type]
    _correct(found)
    return {
        "level": 0.95,
        "resamples": resamples,
        "family": sum(p["dice"]["p_holm"] is not None for p in found),
        "pairs": found,
        "not_compared": impossible,
    }


def _not_alike(a: Masked, b: Masked) -> str:
    """Why two cannot be compared; nothing where they can."""
    if not set(a.tables) & set(b.tables):
        return "they have no repeat and seed in common that both finished"
    for column in ("image", "group"):
        if a.first[column].tolist() != b.first[column].tolist():
            return "they were not tested on the same images in the same groups"
    if a.first["true_area_px"].fillna(-1).tolist() != b.first["true_area_px"].fillna(-1).tolist():
        return "they were scored against different true masks"
    return "" if (a.first["truth"] == "lesion").any() else "no test image has an outlined lesion"


def _compared(a: Key, b: Key, of_a: Masked, of_b: Masked, resamples: int) -> dict[str, Any]:
    common = [k for k in of_a.tables if k in of_b.tables]
    tried = dict.fromkeys([*of_a.tables, *of_a.left_out, *of_b.tables, *of_b.left_out])
    sides = [np.mean([side.tables[k]["dice"].to_numpy(np.float64) for k in common], axis=0) for side in (of_a, of_b)]
    lesion = np.isfinite(sides[0])  # a missed lesion has a Dice of 0, so both sides have one for the same images
    codes = of_a.codes
    moved = np.where(lesion, sides[0] - sides[1], 0.0)

    def mean(weight: Floats) -> dict[str, Floats]:
        below = weight @ lesion.astype(np.float64)
        return {"dice": np.divide(weight @ moved, below, out=np.full_like(below, np.nan), where=below > 0)}

    draws = draw_statistics(mean, codes, resamples=resamples, jackknife=False)["dice"]
    groups = len(np.unique(codes[lesion]))
    interval = limits(draws, level=0.95, method="percentile", n=int(lesion.sum()), groups=groups)
    test = "paired cluster bootstrap"
    if interval.note == FLAT:
        p_value = 1.0 if abs(draws.estimate) < 1e-12 else math.nan
        interval = without_spread(interval, groups)
    else:
        p_value = bootstrap_p(draws.resampled)
        separating = len(np.unique(codes[np.abs(moved) > 1e-12]))
        least = min(1.0, 2 * 0.5**separating)
        if p_value < least:  # as `sonobreast.evaluation.comparison` has it: few groups give no small p
            p_value, test = least, f"least p of a sign test over the {separating} group(s) that separate the two"
    difference = Difference(float(sides[0][lesion].mean()), float(sides[1][lesion].mean()), interval, p_value)
    return {
        **{side: dict(zip(KEYS, key, strict=True)) for side, key in (("a", a), ("b", b))},
        "n": int(lesion.sum()),
        "groups": groups,
        "repeats": len(common),
        "left_out": [k for k in tried if k not in common],
        "dice": {**difference.as_dict(), "test": test, "p_holm": None},
    }


def _correct(pairs: list[dict[str, Any]]) -> None:
    """Put Holm's p over all pairs that could be tested beside each."""
    tested = [p["dice"] for p in pairs if p["dice"]["p_value"] is not None]
    if tested:
        for one, p_holm in zip(tested, holm([t["p_value"] for t in tested]), strict=True):
            one["p_holm"] = float(p_holm)
