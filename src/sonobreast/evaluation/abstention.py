"""What a model gains by leaving its least certain images to a person: risk against coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sonobreast.evaluation.intervals import interval_of
from sonobreast.evaluation.metrics import Floats, Ints, Scored, group_codes
from sonobreast.evaluation.predictions import Repeats
from sonobreast.evaluation.resampling import draw_statistics

COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of images that the model decides itself."""
_GRID = np.round(np.arange(0.05, 1.0001, 0.01), 2)


def risk_coverage(
    confidence: npt.ArrayLike, wrong: npt.ArrayLike, weight: npt.ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """Risk (share of wrong decisions) among the most confident cases, for each number of them.

    Parameters
    ----------
    confidence : float (n,)
        The largest probability, for example.
    wrong : bool (n,)
    weight : float (R, n), optional
        Case multiplicities.

    Returns
    -------
    coverage, risk : float (R, T)
        At each of the T distinct confidences, from the highest down; cases of equal confidence are decided together.
        (1, T) without weights. NaN risk where nothing is covered.
    """
    c, w = np.asarray(confidence, np.float64), np.asarray(wrong, np.float64)
    weights = np.ones((1, len(c))) if weight is None else np.asarray(weight, np.float64)
    order = np.argsort(-c, kind="stable")
    ranked = c[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    taken = np.cumsum(np.add.reduceat(weights[:, order], starts, axis=1), axis=1)
    errors = np.cumsum(np.add.reduceat(weights[:, order] * w[order], starts, axis=1), axis=1)
    risk = np.divide(errors, taken, out=np.full_like(errors, np.nan), where=taken > 0)
    return taken / taken[:, -1:], risk


def area_under_risk_coverage(coverage: Floats, risk: Floats) -> Floats:
    """AURC, float (R,): mean risk over the cases as they are taken in one after another (a step at each confidence).

    References
    ----------
    Geifman, Uziel & El-Yaniv 2019, ICLR (bias-reduced uncertainty estimation).
    """
    steps = np.diff(coverage, axis=1, prepend=0.0)
    area: Floats = (steps * np.nan_to_num(risk)).sum(axis=1)
    return area


def area_of_oracle(risk: float, n: int) -> float:
    """AURC of a confidence that ranks every right decision above every wrong one, n cases, overall risk `risk`."""
    wrong = round(risk * n)
    return float(np.sum(np.arange(1, wrong + 1) / np.arange(n - wrong + 1, n + 1)) / n)


def abstention_metrics(repeats: Repeats, *, resamples: int = 2000) -> dict[str, Any]:
    """Risk-coverage curve of one configuration, confidence being the largest probability, JSON-ready.

    Returns
    -------
    dict
        ``reason``, ``curve`` (``coverage, risk, low, high``: lists), ``area`` with interval, ``area_of_oracle``,
        ``risk`` (of deciding everything: the area of a confidence that says nothing), ``points``: for each coverage the
        error with interval, its ``threshold`` on the largest probability (mean over repeats), and ``cancers_missed``
        (share of the cancers that are decided and not called malignant) with ``cancers_referred``.
    """
    sets = list(repeats.sets.values())
    n = sets[0].n
    codes, names = group_codes(repeats.group, n)
    if len(names) < 2:
        return {"reason": "the test images are of one group"}
    confidence = [s.probability.max(axis=1) for s in sets]
    wrong = [~np.equal(s.predicted, s.label) for s in sets]

    def statistic(weight: Floats) -> dict[str, Floats]:
        area = np.zeros(len(weight))
        at = np.zeros((len(weight), len(_GRID)))
        for c, w in zip(confidence, wrong, strict=True):
            covered, risk = risk_coverage(c, w, weight)
            area += area_under_risk_coverage(covered, risk) / len(sets)
            at += np.stack([_at(covered, risk, g) for g in _GRID], axis=1) / len(sets)
        return {"area": area, **{f"{g:.2f}": at[:, k] for k, g in enumerate(_GRID)}}

    drawn = draw_statistics(statistic, codes, resamples=resamples, jackknife=False)
    groups = len(names)

    def interval(what: str, behind: int) -> dict[str, Any]:
        return interval_of(
            drawn[what], level=0.95, method="percentile", n=n, groups=groups, behind=behind, share=True
        ).as_dict()

    at = [interval(f"{g:.2f}", max(1, round(g * groups))) for g in _GRID]
    risk = float(np.mean(wrong))
    return {
        "reason": "",
        "n": n,
        "risk": risk,
        "area": interval("area", groups),
        "area_of_oracle": float(np.mean([area_of_oracle(float(w.mean()), n) for w in wrong])),
        "curve": {
            "coverage": _GRID.tolist(),
            "risk": [a["estimate"] for a in at],
            "low": [a["low"] for a in at],
            "high": [a["high"] for a in at],
        },
        "points": [
            {
                "coverage": g,
                "risk": at[int(np.flatnonzero(g == _GRID)[0])],
                "threshold": float(np.mean([_threshold(c, g) for c in confidence])),
                **_cancers(sets, confidence, g, codes),
            }
            for g in COVERAGES
        ],
    }


def _at(covered: Floats, risk: Floats, coverage: float) -> Floats:
    """Risk (R,) when at least the share `coverage` is decided: at the first confidence that reaches it."""
    reached = (covered >= coverage - 1e-9).argmax(axis=1)
    found: Floats = risk[np.arange(len(risk)), reached]
    return found


def _threshold(confidence: Floats, coverage: float) -> float:
    return float(np.sort(confidence)[::-1][max(1, int(np.ceil(coverage * len(confidence) - 1e-9))) - 1])


def _cancers(sets: Sequence[Scored], confidence: Sequence[Floats], coverage: float, codes: Ints) -> dict[str, Any]:
    m = sets[0].malignant
    if m is None or not (sets[0].label == m).any():
        return {"cancers": 0, "cancers_missed": None, "cancers_referred": None}
    missed, referred = [], []
    for s, c in zip(sets, confidence, strict=True):
        decided, sick = c >= _threshold(c, coverage), s.label == m
        referred.append(float((sick & ~decided).sum() / sick.sum()))
        missed.append(float((sick & decided & (s.predicted != m)).sum() / sick.sum()))
    return {
        "cancers": int((sets[0].label == m).sum()),
        "cancers_missed": float(np.mean(missed)),
        "cancers_referred": float(np.mean(referred)),
    }
