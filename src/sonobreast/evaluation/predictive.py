"""Predictive values of malignancy where cancer is as common as it is there, not as in the study's mix of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.intervals import FLAT, Draws, Interval, checked_repeats, draw, limits
from sonobreast.evaluation.metrics import Floats, Scored, ppv_npv

PREVALENCES = (0.005, 0.1, 0.3)  # screening, a clinic, a biopsy clinic


def predictive_values(
    repeats: Sequence[Scored],
    group: npt.ArrayLike,
    intervals: Mapping[str, Interval],
    prevalences: Sequence[float] = PREVALENCES,
    *,
    resamples: int = 2000,
) -> list[dict[str, Any]] | None:
    """PPV and NPV of malignancy at stated prevalences, with cluster bootstrap intervals, JSON-ready.

    Bayes' theorem is applied to sensitivity and specificity in each resample. Where one of the two does not vary over
    the resamples (no cancer missed, no false alarm), the limits are those that the ends of their two intervals give,
    which is wider than needed but not untrue.

    Parameters
    ----------
    repeats, group
        As in `sonobreast.evaluation.intervals.bootstrap`.
    intervals : mapping of str to Interval
        ``sensitivity_malignant`` and ``specificity_malignant`` of the same cases.
    prevalences : sequence of float
        Each between 0 and 1.
    resamples : int

    Returns
    -------
    list of dict, or None
        ``prevalence``, ``ppv``, ``npv``; None where no class is malignant.

    Raises
    ------
    SonobreastError
        For a prevalence out of range.
    """
    for p in prevalences:
        if not 0 < p < 1:
            raise SonobreastError(f"a prevalence of {p}", remedy="give a share between 0 and 1, such as 0.02 for 2 %")
    if repeats[0].malignant is None:
        return None
    names = ["sensitivity_malignant", "specificity_malignant"]
    codes, _ = checked_repeats(repeats, group, names, resamples, 0.95, "bca")
    drawn = draw(repeats, codes, names, resamples=resamples, seed=0, jackknife=True)
    sensitivity, specificity = (drawn[m] for m in names)
    defined = [d for d in (sensitivity, specificity) if np.isfinite(d.estimate)]
    flat = any(np.nanmax(d.resampled) - np.nanmin(d.resampled) < 1e-12 for d in defined)
    of_sensitivity, of_specificity = (intervals[m] for m in names)
    caution = "; ".join(dict.fromkeys(i.note for i in (of_sensitivity, of_specificity) if i.note not in ("", FLAT)))
    rows = []
    for p in dict.fromkeys(prevalences):
        row: dict[str, Any] = {"prevalence": p}
        for which in ("ppv", "npv"):
            draws = Draws(
                float(_bayes(np.asarray([sensitivity.estimate]), np.asarray([specificity.estimate]), p, which)[0]),
                _bayes(sensitivity.resampled, specificity.resampled, p, which),
                _bayes(_left_out(sensitivity), _left_out(specificity), p, which),
            )
            interval = limits(draws, level=0.95, method="bca", n=len(codes), groups=int(codes.max()) + 1)
            if flat and np.isfinite(draws.estimate):
                low, high = (
                    _bayes(np.asarray([se]), np.asarray([sp]), p, which)[0]
                    for se, sp in ((of_sensitivity.low, of_specificity.low), (of_sensitivity.high, of_specificity.high))
                )
                label = "ends of the intervals of sensitivity and specificity (bootstrap without spread)"
                interval = replace(interval, low=float(low), high=float(high), method=label, note="")
            row[which] = replace(interval, note="; ".join(filter(None, [interval.note, caution]))).as_dict()
        rows.append(row)
    return rows


def _left_out(draws: Draws) -> Floats:
    assert draws.jackknife is not None
    return draws.jackknife


def _bayes(sensitivity: Floats, specificity: Floats, prevalence: float, which: str) -> Floats:
    """PPV or NPV of each pair of sensitivity and specificity; NaN where one of them is."""
    return np.asarray(
        [
            getattr(ppv_npv(se, sp, prevalence), which) if se == se and sp == sp else np.nan
            for se, sp in zip(np.clip(sensitivity, 0, 1), np.clip(specificity, 0, 1), strict=True)
        ]
    )
