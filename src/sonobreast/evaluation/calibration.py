"""Do probabilities mean what they say: reliability diagram, expected calibration error, Brier score and its parts.

Bins hold equal numbers of cases (equal mass). How many bins there are moves every binned figure, so it is always said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sonobreast.evaluation.intervals import FLAT, Interval, bootstrap, interval_of
from sonobreast.evaluation.metrics import Floats, Ints, Scored, group_codes
from sonobreast.evaluation.predictions import whole_repeats
from sonobreast.evaluation.recalibration import Recalibrated
from sonobreast.evaluation.resampling import Draws, draw_statistics

BINS, LEAST = 10, 20
"""At most so many bins, of at least so many cases on average."""
NEEDED = 2 * LEAST
"""Test images below which calibration cannot be looked at: there would be a single bin."""
_SIMULATIONS = 500

VARIANTS = {"none": "as the network gives them", "temperature": "temperature", "isotonic": "isotonic regression"}


def bin_edges(score: npt.ArrayLike, bins: int | None = None) -> Floats:
    """Edges of equal-mass bins: quantiles of the scores, as scikit-learn's ``strategy="quantile"`` takes them.

    Parameters
    ----------
    score : float (n,)
    bins : int, optional
        By default ``min(10, n // 20)``, at least 1.

    Returns
    -------
    float (bins + 1,)
        Equal scores fall into the same bin, so with many ties there are fewer filled bins.
    """
    s = np.asarray(score, np.float64)
    count = max(1, min(BINS, len(s) // LEAST)) if bins is None else bins
    edges: Floats = np.quantile(s, np.linspace(0.0, 1.0, count + 1))
    return edges


def bin_of(score: npt.ArrayLike, edges: Floats) -> Ints:
    """Bin of each score, int (n,), 0 .. B-1; a score on an inner edge belongs to the bin below it."""
    return np.searchsorted(edges[1:-1], np.asarray(score, np.float64)).astype(np.int64)


def expected_calibration_error(score: npt.ArrayLike, outcome: npt.ArrayLike, bins: int | None = None) -> float:
    """ECE: ``sum_b (n_b / n) |mean outcome in b - mean score in b|``, over equal-mass bins.

    It is too large by chance: the absolute value turns the noise of each bin into error. A perfectly calibrated model
    does not have 0, the less so the fewer cases there are. `ece_if_calibrated` gives what it would have.

    Parameters
    ----------
    score : float (n,)
        In [0, 1].
    outcome : bool (n,)
        Whether it happened.
    bins : int, optional
        See `bin_edges`.

    References
    ----------
    Naeini et al. 2015, AAAI, 2901; Nixon et al. 2019, CVPR workshops (equal mass); Roelofs et al. 2022, AISTATS (the
    bias).
    """
    s, y = np.asarray(score, np.float64), np.asarray(outcome, np.float64)
    gap = np.bincount(bin_of(s, bin_edges(s, bins)), weights=y - s)
    return float(np.abs(gap).sum() / len(s))


def ece_if_calibrated(
    scores: Sequence[Floats], codes: Ints, bins: int | None = None, *, simulations: int = _SIMULATIONS, seed: int = 0
) -> tuple[float, float]:
    """ECE that perfectly calibrated models with these scores would show: mean and 95th percentile of simulations.

    Each case happens with the probability that its score says. Cases of a group share their random number, so that they
    happen or not together, as those of one patient do.

    Parameters
    ----------
    scores : sequence of float (n,)
        One for each repeat and seed; their ECEs are averaged.
    codes : int (n,)
        Group of each case, 0 .. G-1.
    """
    u = np.random.default_rng(seed).random((simulations, int(codes.max()) + 1))[:, codes]  # (S, n)
    total = np.zeros(simulations)
    for s in scores:
        inside = _one_hot(bin_of(s, bin_edges(s, bins)))  # (n, B)
        total += np.abs(((u < s) - s) @ inside).sum(axis=1) / len(s)
    mean = total / len(scores)
    return float(mean.mean()), float(np.quantile(mean, 0.95))


def _one_hot(index: Ints) -> Floats:
    matrix: Floats = np.eye(int(index.max()) + 1)[index]
    return matrix


@dataclass(frozen=True)
class BrierParts:
    """The Brier score of a yes-or-no event, ``mean (score - outcome)^2`` (0 to 1), and what it is made of.

    ``brier = reliability - resolution + uncertainty + within``

    Attributes
    ----------
    brier : float
    reliability : float
        ``sum_b n_b/n (mean score - mean outcome)^2``: how far the probabilities are off; smaller is better.
    resolution : float
        ``sum_b n_b/n (mean outcome - overall outcome)^2``: how well the bins tell cases apart; larger is better.
    uncertainty : float
        ``o (1 - o)``, o the overall share: what the cases are like, whatever the model.
    within : float
        What scores differ by inside their bins (Stephenson et al. 2008); 0 where each bin holds one score. The first
        three add up to the Brier score of the binned scores exactly.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


def brier_parts(score: npt.ArrayLike, outcome: npt.ArrayLike, bins: int | None = None) -> BrierParts:
    """Murphy's decomposition of the Brier score over equal-mass bins.

    Parameters
    ----------
    score : float (n,)
        In [0, 1].
    outcome : bool (n,)
    bins : int, optional
        See `bin_edges`.

    References
    ----------
    Murphy 1973, J Appl Meteorol 12:595; Stephenson, Coelho & Jolliffe 2008, Weather Forecast 23:752.
    """
    s, y = np.asarray(score, np.float64), np.asarray(outcome, np.float64)
    index = bin_of(s, bin_edges(s, bins))
    count = np.bincount(index).astype(np.float64)
    share = count / len(s)
    filled = np.maximum(count, 1.0)
    said, seen = np.bincount(index, weights=s) / filled, np.bincount(index, weights=y) / filled
    overall = float(y.mean())
    brier = float(np.mean((s - y) ** 2))
    reliability = float(share @ (said - seen) ** 2)
    resolution = float(share @ (seen - overall) ** 2)
    # Variance of the scores in their bins, less twice their covariance with the outcomes.
    inner = s - said[index]
    within = float(np.mean(inner**2) - 2 * np.mean(inner * (y - seen[index])))
    return BrierParts(brier, reliability, resolution, overall * (1 - overall), within)


def reliability_diagram(
    scores: Sequence[Floats],
    outcomes: Sequence[npt.NDArray[np.bool_]],
    codes: Ints,
    *,
    bins: int | None = None,
    resamples: int = 2000,
) -> list[dict[str, Any]]:
    """The bins of a reliability diagram, repeats and seeds put together, with 95 % intervals over groups.

    Parameters
    ----------
    scores, outcomes : sequence of (n,)
        One for each repeat and seed of the same n cases.
    codes : int (n,)
    bins : int, optional
        By default as for n cases: repeats are no further cases.

    Returns
    -------
    list of dict
        ``score`` (mean of the bin), ``n`` (cases, mean over repeats) and the share that happened: ``estimate, low,
        high``.
    """
    n, r = len(codes), len(scores)
    count = max(1, min(BINS, n // LEAST)) if bins is None else bins
    s, y = np.concatenate(list(scores)), np.concatenate([np.asarray(o, np.float64) for o in outcomes])
    inside = _one_hot(bin_of(s, bin_edges(s, count)))  # (r n, B)
    kept = np.flatnonzero(inside.any(axis=0))
    inside = inside[:, kept]
    cases = inside.reshape(r, n, -1).sum(axis=0)  # (n, B)
    happened = (inside * y[:, None]).reshape(r, n, -1).sum(axis=0)

    def statistic(weight: Floats) -> dict[str, Floats]:
        below, above = weight @ cases, weight @ happened
        share = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
        return {str(b): share[:, b] for b in range(len(kept))}

    drawn = draw_statistics(statistic, codes, resamples=resamples, jackknife=False)
    rows = []
    for b in range(len(kept)):
        there = codes[cases[:, b] > 0]
        behind = len(np.unique(there))
        found = interval_of(
            drawn[str(b)], level=0.95, method="percentile", n=len(there), groups=behind, behind=behind, share=True
        ).as_dict()
        weight = inside[:, b]
        rows.append(
            {
                "score": float(s @ weight / weight.sum()),
                "n": float(weight.sum() / r),
                **{k: found[k] for k in ("estimate", "low", "high")},
            }
        )
    return rows


def calibration_metrics(found: Recalibrated, *, resamples: int = 2000) -> dict[str, Any]:
    """The calibration of one configuration's test images, as they are and through each map, JSON-ready.

    Parameters
    ----------
    found : Recalibrated
    resamples : int

    Returns
    -------
    dict
        ``reason``: why there are no figures, else "". ``runs``, ``temperature`` (mean, least, greatest over the runs),
        ``bins``, ``notes`` and ``variants``: name of `VARIANTS` -> ``log_loss``, ``top`` (is the most probable class as
        often right as it says) and ``malignancy`` (None without that class), each with ``ece``, ``if_calibrated``,
        ``said`` and ``seen`` (means), ``diagram``; malignancy also ``brier`` and ``parts``.
    """
    tables = {"none": found.raw, "temperature": found.temperature, "isotonic": found.isotonic}
    raw = whole_repeats(found.raw)
    n = len(raw.image)
    codes, _ = group_codes(raw.group, n)
    temperatures = list(found.temperatures.values())
    content: dict[str, Any] = {
        "reason": "",
        "runs": len(temperatures),
        "fitted": len(found.fitted),
        "validation_images": min(found.fitted.values(), default=0),
        "temperature": {
            "mean": float(np.mean(temperatures)),
            "least": min(temperatures),
            "greatest": max(temperatures),
        },
        "bins": len(bin_edges(np.zeros(n))) - 1,
        "n": n,
        "notes": list(found.notes),
        "variants": {},
    }
    if n < NEEDED:
        return content | {
            "reason": f"{n} test image{'s' if n > 1 else ''}: {NEEDED} are needed for two bins of {LEAST}",
            "bins": 0,
        }
    for name, table in tables.items():
        if table is not None:
            sets = list(whole_repeats(table).sets.values())
            content["variants"][name] = _variant(sets, raw.group, codes, resamples)
    return content


def _variant(sets: Sequence[Scored], group: npt.ArrayLike, codes: Ints, resamples: int) -> dict[str, Any]:
    losses = bootstrap(sets, group, metrics=["log_loss"], resamples=resamples, method="bca")
    top = [s.probability.max(axis=1) for s in sets]
    # A map may change the most probable class: the one that is judged is its own.
    right = [np.equal(s.probability.argmax(axis=1), s.label) for s in sets]
    content: dict[str, Any] = {
        "log_loss": losses["log_loss"].as_dict(),
        "top": _event(top, right, codes, resamples),
        "malignancy": None,
    }
    m = sets[0].malignant
    if m is not None:
        score, cancer = [s.probability[:, m] for s in sets], [s.label == m for s in sets]
        parts = [asdict(brier_parts(s, y)) for s, y in zip(score, cancer, strict=True)]
        content["malignancy"] = {
            **_event(score, cancer, codes, resamples),
            "brier": _brier_interval(score, cancer, codes, resamples).as_dict(),
            "parts": {k: float(np.mean([p[k] for p in parts])) for k in parts[0]},
        }
    return content


def _event(
    scores: Sequence[Floats], outcomes: Sequence[npt.NDArray[np.bool_]], codes: Ints, resamples: int
) -> dict[str, Any]:
    """Everything about one yes-or-no event: ECE, what chance gives, means, diagram."""
    mean, high = ece_if_calibrated(scores, codes)
    return {
        "ece": ece_interval(scores, outcomes, codes, high, resamples=resamples).as_dict(),
        "if_calibrated": {"mean": mean, "high": high},
        "said": float(np.mean(scores)),
        "seen": float(np.mean(outcomes)),
        "diagram": reliability_diagram(scores, outcomes, codes, resamples=resamples),
    }


def ece_interval(
    scores: Sequence[Floats],
    outcomes: Sequence[npt.NDArray[np.bool_]],
    codes: Ints,
    chance: float,
    *,
    resamples: int = 2000,
) -> Interval:
    """The ECE, averaged over repeats, with its 95 % interval by the basic cluster bootstrap; the bins stay.

    ``2 e - q(0.975)`` to ``2 e - q(0.025)``, q the quantiles of the resampled ECE: resampling adds its own noise to
    each bin, so resampled ECEs are too large by about as much as the ECE itself, and percentile limits leave the truth
    out: in simulations of 780 cases they covered a calibrated model's in none of 300 sets, the basic ones in .70. So
    the low end is 0 as well where the ECE is not above `chance`, which a calibrated model exceeds in 5 % of the sets.
    Nor may luck alone make the high end small (where the ECE is small by chance, the basic one is the ECE itself): it
    is q(0.975) where that is larger. In simulations of 60 to 600 cases and errors of 0 to .12 the limits then cover the
    true one in .91 to .99 of 150 sets; with the basic high end alone in .70 to .96.

    Parameters
    ----------
    scores, outcomes : sequence of (n,)
    codes : int (n,)
    chance : float
        95th percentile of `ece_if_calibrated`.
    resamples : int

    References
    ----------
    Davison & Hinkley 1997, section 5.2 (basic limits).
    """
    gaps = [binned_gaps(s, y) for s, y in zip(scores, outcomes, strict=True)]

    def statistic(weight: Floats) -> dict[str, Floats]:
        total = weight.sum(axis=1)
        mean = sum((np.abs(weight @ g).sum(axis=1) for g in gaps), np.zeros(len(weight))) / len(gaps)
        return {"ece": mean / total}

    drawn = draw_statistics(statistic, codes, resamples=resamples, jackknife=False)["ece"]
    return ece_limits(drawn, chance, len(codes), int(codes.max()) + 1)


def binned_gaps(score: npt.ArrayLike, outcome: npt.ArrayLike) -> Floats:
    """Outcome minus score of each case in the column of its bin, 0 elsewhere: float (n, B).

    With case weights w (R, n) the ECE is ``abs(w @ gaps).sum(1) / w.sum(1)``; with weights of one that of
    `expected_calibration_error`.
    """
    s, y = np.asarray(score, np.float64), np.asarray(outcome, np.float64)
    return _one_hot(bin_of(s, bin_edges(s))) * (y - s)[:, None]


def ece_limits(drawn: Draws, chance: float, n: int, groups: int) -> Interval:
    """The limits of `ece_interval` from resampled ECEs of n cases in so many groups."""
    resamples = len(drawn.resampled)
    least, most = np.quantile(drawn.resampled, [0.025, 0.975])
    low, high = 2 * drawn.estimate - most, max(2 * drawn.estimate - least, most)
    if not math.isfinite(low) or groups < 2:
        return Interval(drawn.estimate, math.nan, math.nan, 0.95, "undefined", n, groups, note="one group only")
    if high - low <= 1e-12:  # all right and sure of it: a width of zero would be untrue
        return Interval(drawn.estimate, math.nan, math.nan, 0.95, "undefined", n, groups, resamples, note=FLAT)
    low = 0.0 if drawn.estimate <= chance else max(0.0, float(low))
    few = f"only {groups} groups behind this figure: the interval may be too narrow" if groups < 20 else ""
    high = max(float(high), drawn.estimate)
    return Interval(
        drawn.estimate, low, min(1.0, high), 0.95, "cluster bootstrap basic", n, groups, resamples, note=few
    )


def _brier_interval(
    scores: Sequence[Floats], outcomes: Sequence[npt.NDArray[np.bool_]], codes: Ints, resamples: int
) -> Interval:
    loss = np.mean([(s - y) ** 2 for s, y in zip(scores, outcomes, strict=True)], axis=0)  # (n,)

    def statistic(weight: Floats) -> Mapping[str, Floats]:
        total = weight.sum(axis=1)
        return {"brier": np.divide(weight @ loss, total, out=np.full(len(total), np.nan), where=total > 0)}

    drawn = draw_statistics(statistic, codes, resamples=resamples, jackknife=True)["brier"]
    groups = int(codes.max()) + 1
    return interval_of(drawn, level=0.95, method="bca", n=len(codes), groups=groups, behind=groups, share=True)
