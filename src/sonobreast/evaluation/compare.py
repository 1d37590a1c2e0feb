"""Is one model better than another on the same cases? Differences with intervals, tests, and a family's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata
from statsmodels.stats.contingency_tables import mcnemar

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.intervals import (
    FLAT,
    Draws,
    Interval,
    Method,
    checked_level,
    checked_repeats,
    draw,
    groups_behind,
    limits,
    wilson_limits,
)
from sonobreast.evaluation.metrics import Floats, Ints, Scored, group_codes

Value = float | int | str | None


@dataclass(frozen=True)
class McNemar:
    """Cases by who was right, and the exact test that neither is right more often.

    `smallest_p` is the least p that so many cases decided differently could give at all: where it is above 0.05, no
    outcome could have shown a difference.
    """

    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    p_value: float
    smallest_p: float


def mcnemar_exact(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike, *, group: npt.ArrayLike | None = None) -> McNemar:
    """Exact McNemar test: two-sided binomial test of `only_a` against `only_b`, half each.

    It takes the cases for independent. Correlated pictures make it call too much significant, so give `group`: then
    that is checked.

    Parameters
    ----------
    correct_a, correct_b : bool (n,)
        Whether each model is right, for the same n >= 1 cases in the same order.
    group : (n,), optional
        Group of each case.

    Raises
    ------
    SonobreastError
        For other shapes, values that are neither true nor false, or groups of more than one case.

    References
    ----------
    McNemar 1947, Psychometrika 12:153; the exact conditional form as in Fagerland, Lydersen & Laake 2013, BMC Med Res
    Methodol 13:91.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.ndim != 1 or a.shape != b.shape or not a.size or not np.isin(a, (0, 1)).all() or not np.isin(b, (0, 1)).all():
        raise SonobreastError(
            f"right or wrong of two models has the shapes {a.shape} and {b.shape}, or values besides true and false",
            remedy="give one true or false for each case, of the same cases for both",
        )
    if group is not None:
        _check_independent(group, len(a), "McNemar's test", "use paired_difference, the paired cluster bootstrap")
    a, b = a.astype(bool), b.astype(bool)
    table = np.array([[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]])
    only_a, only_b = int(table[0, 1]), int(table[1, 0])
    return McNemar(
        int(table[0, 0]),
        only_a,
        only_b,
        int(table[1, 1]),
        float(mcnemar(table, exact=True).pvalue),
        min(1.0, 2 * 0.5 ** (only_a + only_b)),
    )


def _check_independent(group: npt.ArrayLike, n: int, what: str, remedy: str) -> None:
    codes, names = group_codes(group, n)
    if len(names) < n:
        sizes = np.bincount(codes)
        raise SonobreastError(
            f"{what} needs independent cases, but {n} cases come from {len(names)} groups (the largest, "
            f"{names[sizes.argmax()]}, has {sizes.max()})",
            remedy=remedy,
        )


@dataclass(frozen=True)
class Difference:
    """A metric of A, of B, and A minus B with its interval.

    `p_value` inverts the percentile interval: ``2 (1 + min(#{d* <= 0}, #{d* >= 0})) / (R + 1)``, at most 1, over the R
    resamples. It cannot fall below 2 / (R + 1). NaN where the metric is undefined, and where the
    resamples do not vary (equal models then get 1).
    """

    a: float
    b: float
    interval: Interval
    p_value: float

    def as_dict(self) -> dict[str, Value | dict[str, Value]]:
        """For JSON, which has no NaN: None instead."""
        plain = {k: v if math.isfinite(v) else None for k, v in (("a", self.a), ("b", self.b), ("p", self.p_value))}
        return {"a": plain["a"], "b": plain["b"], "p_value": plain["p"], "interval": self.interval.as_dict()}


def paired_difference(
    repeats_a: Sequence[Scored],
    repeats_b: Sequence[Scored],
    group: npt.ArrayLike,
    *,
    metrics: Sequence[str] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    method: Method = "percentile",
) -> dict[str, Difference]:
    """Differences A minus B of metrics, with paired cluster bootstrap intervals.

    Each resample of groups serves A and B and all their repeats, so what both find hard cancels. The statistic is the
    mean over A's repeats minus that over B's. Which is better stands in ``METRICS`` (`higher_is_better`).

    Where the resamples do not vary (the two never differ), a zero width would be untrue: shares of cases then get the
    reach of Wilson's upper limit for 0 of the K groups behind the figure, others no interval.

    Parameters
    ----------
    repeats_a, repeats_b : sequence of Scored
        As many of each, of the same n cases in the same order: seed by seed, or repeat by repeat.
    group, metrics, resamples, level, seed, method
        As in `sonobreast.evaluation.intervals.bootstrap`.

    Raises
    ------
    SonobreastError
        Where the two are not of the same cases or not as many, and as in `bootstrap`.

    References
    ----------
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 and section 15.4 (significance levels).
    """
    codes, names = checked_repeats([*repeats_a, *repeats_b], group, metrics, resamples, level, method)
    if len(repeats_a) != len(repeats_b):
        raise SonobreastError(
            f"{len(repeats_a)} runs of A are compared with {len(repeats_b)} of B",
            remedy="compare the same seeds and repeats of both",
        )
    sides = [
        draw(repeats, codes, names, resamples=resamples, seed=seed, jackknife=method == "bca")
        for repeats in (repeats_a, repeats_b)
    ]
    runs = [*repeats_a, *repeats_b]
    return {
        name: difference_of_draws(name, sides[0][name], sides[1][name], runs, codes, level=level, method=method)
        for name in names
    }


def difference_of_draws(
    name: str, a: Draws, b: Draws, runs: Sequence[Scored], codes: Ints, *, level: float = 0.95, method: Method
) -> Difference:
    """One metric's difference from resamples of A and of B that were drawn with the same seed and groups.

    What `paired_difference` does after drawing, for callers that compare many models and draw each one once.

    Parameters
    ----------
    name : str
        The metric.
    a, b : Draws
        From `sonobreast.evaluation.intervals.draw`.
    runs : sequence of Scored
        All repeats of A and B, of the same n cases.
    codes : int (n,)
        Group of each case, 0 .. G-1.
    level, method
        As in `paired_difference`.
    """
    both_left_out = None if a.jackknife is None or b.jackknife is None else a.jackknife - b.jackknife
    draws = Draws(a.estimate - b.estimate, a.resampled - b.resampled, both_left_out)
    interval = limits(draws, level=level, method=method, n=len(codes), groups=int(codes.max()) + 1)
    p_value = bootstrap_p(draws.resampled) if interval.method != "undefined" else math.nan
    if interval.note == FLAT:
        p_value = 1.0 if abs(draws.estimate) < 1e-12 else math.nan
        if name == "accuracy" or name.startswith(("recall_", "balanced_", "sensitivity_m", "specificity_m")):
            interval = without_spread(interval, groups_behind(name, runs, codes))
    return Difference(a.estimate, b.estimate, interval, p_value)


def bootstrap_p(resampled: Floats) -> float:
    """Two-sided p-value from resampled differences (R,), as `Difference` says; resamples that are NaN are left out."""
    finite = resampled[np.isfinite(resampled)]
    fewer = min(int(np.sum(finite <= 1e-12)), int(np.sum(finite >= -1e-12)))
    return min(1.0, 2 * (1 + fewer) / (len(finite) + 1))


def without_spread(interval: Interval, behind: int) -> Interval:
    """An interval for a difference d of two means over cases, each value in [0, 1], that is the same in every resample.

    At most the share u of groups (Wilson's upper limit for 0 of those seen) is unlike what was seen, and such a group
    can differ by -1 or 1 instead of d: d moves by at most (1 + |d|) u.

    Parameters
    ----------
    interval : Interval
    behind : int
        Groups that the difference rests on.
    """
    if not behind:
        return interval
    reach = (1 + abs(interval.estimate)) * wilson_limits(0.0, behind, interval.level)[1]
    return replace(
        interval,
        low=max(-1.0, interval.estimate - reach),
        high=min(1.0, interval.estimate + reach),
        method=f"wilson on {behind} groups (bootstrap without spread)",
    )


@dataclass(frozen=True)
class DeLong:
    """Two AUCs on the same cases with their standard errors, and A minus B with its interval and two-sided test."""

    auc_a: float
    auc_b: float
    error_a: float
    error_b: float
    covariance: float
    interval: Interval
    z: float
    p_value: float


def delong(
    label: npt.ArrayLike, score_a: npt.ArrayLike, score_b: npt.ArrayLike, *, group: npt.ArrayLike, level: float = 0.95
) -> DeLong:
    """DeLong's test of two correlated AUCs, for cases that are independent of each other.

    With m cancers and k others, a cancer's placement is the share of others that it outranks (ties half), another's the
    share of cancers that outrank it. The covariance of two AUCs is S10/m + S01/k, where S10 and S01 are the sample
    covariances (divisors m - 1, k - 1) of the placements of cancers and of others; z is the difference over its error.

    Parameters
    ----------
    label : bool or 0/1 (n,)
        Whether each case is a cancer; at least two are and two are not.
    score_a, score_b : float (n,)
        Scores of the two models; higher means more malignant. Finite.
    group : (n,)
        Group of each case. Needed, because plain DeLong ignores clustering.
    level : float
        In (0, 1).

    Returns
    -------
    DeLong
        Where the error is 0 the interval and z are NaN, and p is 1 for equal AUCs, else NaN.

    Raises
    ------
    SonobreastError
        Where a group has more than one case, or for other shapes or values.

    References
    ----------
    DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837; by midranks as in Sun & Xu 2014, IEEE Signal Process Lett
    21:1389.
    """
    truth, scores = np.asarray(label), np.array([score_a, score_b], dtype=np.float64)
    if truth.ndim != 1 or scores.shape != (2, len(truth)) or not np.isfinite(scores).all():
        raise SonobreastError(
            f"scores of the shape {scores.shape} do not fit {truth.shape} labels, or are not finite",
            remedy="give one finite score for each case and model",
        )
    if not np.isin(truth, (0, 1)).all() or min(np.sum(truth == 1), np.sum(truth == 0)) < 2:
        raise SonobreastError(
            "DeLong's test needs labels 0 and 1, at least two of each",
            remedy="give 1 for malignant and 0 for the rest, or more cases",
        )
    _check_independent(group, len(truth), "DeLong's test", "use paired_difference, the paired cluster bootstrap")
    aucs, covariance = _delong_covariance(truth == 1, scores)
    difference = float(aucs[0] - aucs[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    interval = Interval(
        difference, math.nan, math.nan, checked_level(level), "undefined", len(truth), len(truth), note="no spread"
    )
    z, p_value = math.nan, 1.0 if abs(difference) < 1e-12 else math.nan
    if variance > 1e-15:
        error = math.sqrt(variance)
        z = difference / error
        p_value = float(2 * norm.sf(abs(z)))
        reach = error * float(norm.ppf((1 + level) / 2))
        low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
        interval = replace(interval, low=low, high=high, method="delong", note="")
    return DeLong(
        float(aucs[0]),
        float(aucs[1]),
        math.sqrt(covariance[0, 0]),
        math.sqrt(covariance[1, 1]),
        float(covariance[0, 1]),
        interval,
        z,
        p_value,
    )


def _delong_covariance(positive: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """AUCs (k,) and their covariance (k, k) for scores (k, n), in n log n by midranks."""
    inside, outside = scores[:, positive], scores[:, ~positive]  # (k, m), (k, others)
    m, others = inside.shape[1], outside.shape[1]
    ranks = rankdata(scores, axis=1)  # midranks among all
    # A case's rank among all, less its rank among its own kind, counts the other kind below it (ties half).
    of_inside = (ranks[:, positive] - rankdata(inside, axis=1)) / others  # (k, m)
    of_outside = 1 - (ranks[:, ~positive] - rankdata(outside, axis=1)) / m  # (k, others)
    covariance: Floats = np.cov(of_inside) / m + np.cov(of_outside) / others
    return of_inside.mean(axis=1), covariance


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values of one family, in the order given: float (n,).

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection at or below alpha,
    however the tests depend on each other. The family is all the comparisons made, also those that are not shown.

    Raises
    ------
    SonobreastError
        For values outside [0, 1] or NaN: a test that could not be done has to be left out, or counted as 1, on purpose.

    References
    ----------
    Holm 1979, Scand J Stat 6:65.
    """
    given = np.asarray(p_values, dtype=np.float64)
    if given.ndim != 1 or not given.size or not np.all((given >= 0) & (given <= 1)):
        raise SonobreastError(
            f"{given.tolist()} are no p-values",
            remedy="give values from 0 to 1; leave out tests that could not be done",
        )
    # statsmodels gives the same, but collects garbage at every call (a tenth of a second beside PyTorch).
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(given[order] * np.arange(given.size, 0, -1)))
    return adjusted


@dataclass(frozen=True)
class Spread:
    """How a figure varies over runs (folds, seeds). Not an interval: it says nothing of the sampling of the cases.

    `sd` has the divisor count - 1 and is NaN for a single run.
    """

    mean: float
    sd: float
    minimum: float
    maximum: float
    count: int

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, which has no NaN: None instead."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def spread(values: npt.ArrayLike) -> Spread:
    """Mean, standard deviation, least and greatest of a figure over runs.

    Kept apart from the sampling error: over folds and seeds the same cases come again, so sd / sqrt(count) is not the
    uncertainty of the mean on new patients (Nadeau & Bengio 2003, Mach Learn 52:239).

    Parameters
    ----------
    values : float (k,)
        One for each run, k >= 1. NaN makes everything NaN, for a failed run must not vanish.

    Raises
    ------
    SonobreastError
        For no values.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or not given.size:
        raise SonobreastError("no runs to describe the spread of", remedy="give one value for each run")
    sd = float(given.std(ddof=1)) if given.size > 1 else math.nan
    return Spread(float(given.mean()), sd, float(given.min()), float(given.max()), given.size)
