"""How far a figure may be off: Wilson for independent proportions, the cluster bootstrap for everything else.

Images of one patient, and near-duplicates, are right or wrong together (on BUSI correctness correlates at about .7
within groups). What varies between samples is which groups come, so groups are drawn, not images. Several runs over the
same cases (seeds, repeats of k-fold) are averaged inside each resample: they add no cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.glossary import describe, metric_names
from sonobreast.evaluation.metrics import Floats, Ints, Scored, evaluate, group_codes
from sonobreast.evaluation.resampling import Draws as Draws
from sonobreast.evaluation.resampling import draw_statistics

Method = Literal["percentile", "bca"]

# Two values that differ by rounding alone are one value.
_SAME = 1e-12
# With fewer groups behind a figure a cluster bootstrap is too narrow (Cameron, Gelbach & Miller 2008, REStat 90:414).
_FEW = 20
FLAT = "the resamples do not vary"


@dataclass(frozen=True)
class Interval:
    """A figure with its interval.

    Parameters
    ----------
    estimate, low, high : float
        On the metric's own scale; `low` and `high` are NaN where no interval can be given (`note` says why).
    level : float
        Such as 0.95.
    method : str
        "wilson", "cluster bootstrap percentile", "cluster bootstrap BCa", "wilson on K groups (bootstrap without
        spread)" or "undefined".
    n : int
        Distinct cases. Repeats are not counted.
    groups : int
        Independent groups that the cases come from.
    resamples, dropped : int
        Bootstrap resamples drawn, and those left out because the metric was undefined in them.
    note : str
        What a reader must know beside the figure, else "".
    """

    estimate: float
    low: float
    high: float
    level: float
    method: str
    n: int
    groups: int
    resamples: int = 0
    dropped: int = 0
    note: str = ""

    def as_dict(self) -> dict[str, float | int | str | None]:
        """For JSON, which has no NaN: None instead."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion of independent cases.

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``, z the normal quantile: 58 of 63 gives 82.7-96.6 %.
    Too narrow where cases come in groups: use `bootstrap` or `accuracy_interval` there.

    Parameters
    ----------
    successes, n : int
        0 <= successes <= n, n >= 1.
    level : float
        In (0, 1).

    Raises
    ------
    SonobreastError
        For counts or a level outside these ranges.

    References
    ----------
    Wilson 1927, J Am Stat Assoc 22:209; Brown, Cai & DasGupta 2001, Stat Sci 16:101.
    """
    if not (n >= 1 and 0 <= successes <= n and successes == int(successes) and n == int(n)):
        raise SonobreastError(f"{successes} of {n} is no proportion", remedy="give whole numbers, 0 <= successes <= n")
    low, high = wilson_limits(successes / n, n, level)
    return Interval(successes / n, low, high, level, "wilson", int(n), int(n))


def wilson_limits(share: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's limits of a share of n cases; neither n nor the count need be whole (effective numbers, planning)."""
    low, high = proportion_confint(share * n, n, alpha=1 - checked_level(level), method="wilson")
    # The ends are exact here, and rounding would leave 0.9999999999999999.
    return (0.0 if share <= 0 else max(0.0, float(low))), (1.0 if share >= 1 else min(1.0, float(high)))


def checked_level(level: float) -> float:
    """The confidence level, if it is one."""
    if not 0 < level < 1:
        raise SonobreastError(f"a confidence level of {level}", remedy="give a share such as 0.95, not a percentage")
    return level


def draw(
    repeats: Sequence[Scored],
    codes: Ints,
    names: Sequence[str],
    *,
    resamples: int,
    seed: int,
    jackknife: bool,
) -> dict[str, Draws]:
    """Metrics, averaged over the repeats, on resamples of whole groups drawn with replacement.

    The same seed and groups give the same resamples whatever the predictions are: that is what pairs two models.

    Parameters
    ----------
    repeats : sequence of Scored
        The same n cases in the same order (see `checked_repeats`).
    codes : int (n,)
        Group of each case, 0 .. G-1, from `group_codes`.
    names : sequence of str
        Metrics.
    resamples, seed : int
        How many resamples, and the seed of their generator.
    jackknife : bool
        Whether to leave out each group in turn as well, which BCa needs.
    """

    def averaged(weight: Floats) -> dict[str, Floats]:
        each = [evaluate(r, weight, metrics=names) for r in repeats]
        return {name: sum((e[name] for e in each), np.zeros(len(weight))) / len(each) for name in names}

    return draw_statistics(averaged, codes, resamples=resamples, seed=seed, jackknife=jackknife)


def percentile_limits(resampled: Floats, level: float) -> tuple[float, float]:
    """Percentile bootstrap limits: the (1 - level)/2 and (1 + level)/2 quantiles (Efron & Tibshirani 1993, ch. 13)."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bca_limits(estimate: float, resampled: Floats, jackknife: Floats, level: float) -> tuple[float, float] | None:
    """Bias-corrected and accelerated bootstrap limits, or None where they are not defined.

    With z0 = Phi^-1(share of resamples below the estimate, ties half) and a = sum d^3 / (6 (sum d^2)^1.5) over the
    jackknife deviations d = mean - value, each end is the quantile Phi(z0 + (z0 + z) / (1 - a (z0 + z))), where
    z = Phi^-1((1 -+ level)/2).
    Not defined where all resamples lie on one side of the estimate, or where no group, or a NaN, moves the statistic.

    Parameters
    ----------
    estimate : float
    resampled : float (R,)
        Finite.
    jackknife : float (G,)
        The statistic without each group.
    level : float
        In (0, 1).

    References
    ----------
    Efron 1987, J Am Stat Assoc 82:171; Efron & Tibshirani 1993, An Introduction to the Bootstrap, equations 14.9-14.15.
    """
    tied = np.abs(resampled - estimate) <= _SAME
    below = float(np.mean(np.where(tied, 0.5, resampled < estimate)))
    deviation = jackknife.mean() - jackknife
    scale = float((deviation**2).sum())
    if not (0 < below < 1 and scale > _SAME**2):  # a NaN in the jackknife fails here as well
        return None
    bias = norm.ppf(below)
    acceleration = float((deviation**3).sum()) / (6 * scale**1.5)
    shifted = bias + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    if np.any(1 - acceleration * shifted <= 0):  # past the pole the ends would change places
        return None
    low, high = np.quantile(resampled, norm.cdf(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)


def limits(draws: Draws, *, level: float, method: Method, n: int, groups: int) -> Interval:
    """The interval of bootstrap draws; where the resamples do not vary it has NaN ends, for the caller to replace."""
    finite = draws.resampled[np.isfinite(draws.resampled)]
    total = len(draws.resampled)
    common: dict[str, Any] = {"level": level, "n": n, "groups": groups}
    common |= {"resamples": total, "dropped": total - len(finite)}
    nothing = Interval(draws.estimate, math.nan, math.nan, method="undefined", **common)
    if not math.isfinite(draws.estimate):
        return replace(nothing, note="not defined for these cases")
    if len(finite) <= total / 2:
        return replace(nothing, note=f"not defined in {total - len(finite)} of {total} resamples")
    note = f"{total - len(finite)} of {total} resamples left out: not defined in them" if len(finite) < total else ""
    label, ends = "cluster bootstrap percentile", percentile_limits(finite, level)
    if method == "bca" and draws.jackknife is not None:
        better = bca_limits(draws.estimate, finite, draws.jackknife, level)
        if better is None:
            note = "; ".join(filter(None, [note, "BCa is not defined here"]))
        else:
            label, ends = "cluster bootstrap BCa", better
    if ends[1] - ends[0] <= _SAME:
        return replace(nothing, note=FLAT)
    return Interval(draws.estimate, *ends, method=label, note=note, **common)


def bootstrap(
    repeats: Sequence[Scored],
    group: npt.ArrayLike,
    *,
    metrics: Sequence[str] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    method: Method = "percentile",
) -> dict[str, Interval]:
    """Cluster bootstrap intervals of metrics.

    Groups are drawn with replacement, as many as there are. The statistic is the mean over the repeats of the metric,
    and one resample serves all repeats. The interval is for sampling of cases; spread over seeds stands apart
    (`sonobreast.evaluation.compare.spread`).

    Where the resamples do not vary (all right, all wrong) the bootstrap has nothing to say, and a zero width would be
    untrue: metrics from 0 to 1 then get Wilson's interval on the number of groups behind the figure (for an AUC, the
    smaller side's; for a macro average, the smallest class's), the others no interval; `method` says so.

    Parameters
    ----------
    repeats : sequence of Scored
        Predictions of the same n cases in the same order: one, or one for each seed or repeat of k-fold.
    group : (n,)
        Patient or near-duplicate group of each case; its own for each case that is alone.
    metrics : sequence of str, optional
        All of `metric_names` by default.
    resamples : int
        At least 100.
    level : float
        In (0, 1).
    seed : int
        The same seed gives the same interval.
    method : {"percentile", "bca"}
        BCa corrects for bias and skewness, and costs as many evaluations more as there are groups.

    Returns
    -------
    dict of str to Interval

    Notes
    -----
    Simulated (1,200 sets of groups of 1 to 6 cases whose results correlate at .7), 95 % intervals of an accuracy of .8
    cover it in .94 (percentile) and .95 (BCa) of the sets of 90 groups, .92 and .94 of 40, .91 and .92 of 20; Wilson's
    in .71 to .74. At an accuracy of .92, where errors are few, .91 and .93 of 90 groups, .87 and .89 of 40, .85 and .91
    of 20. BCa is the better choice throughout.

    Raises
    ------
    SonobreastError
        Where the repeats are not of the same cases, a group is missing, or a setting is out of range.

    References
    ----------
    Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8; Field & Welsh 2007, J R Stat Soc B
    69:369 (the cluster bootstrap).
    """
    codes, names = checked_repeats(repeats, group, metrics, resamples, level, method)
    drawn = draw(repeats, codes, names, resamples=resamples, seed=seed, jackknife=method == "bca")
    n, groups = len(codes), int(codes.max()) + 1
    return {
        name: interval_of(
            drawn[name],
            level=level,
            method=method,
            n=n,
            groups=groups,
            behind=groups_behind(name, repeats, codes),
            share=describe(name).high == 1.0,
        )
        for name in names
    }


def interval_of(
    draws: Draws, *, level: float, method: Method, n: int, groups: int, behind: int, share: bool
) -> Interval:
    """The interval of bootstrap draws as `bootstrap` gives it: with Wilson's where the resamples do not vary.

    Parameters
    ----------
    draws : Draws
    level, method
        As in `bootstrap`.
    n, groups : int
        Distinct cases, and groups that were drawn.
    behind : int
        Groups that the figure rests on.
    share : bool
        Whether the statistic is a mean of values from 0 to 1.
    """
    interval = limits(draws, level=level, method=method, n=n, groups=groups)
    if interval.note == FLAT and behind and share:
        low, high = wilson_limits(interval.estimate, behind, level)
        return replace(interval, low=low, high=high, method=f"wilson on {behind} groups (bootstrap without spread)")
    if behind < _FEW and interval.method.startswith("cluster"):
        few = f"only {behind} groups behind this figure: the interval may be too narrow"
        return replace(interval, note="; ".join(filter(None, [interval.note, few])))
    return interval


def checked_repeats(
    repeats: Sequence[Scored],
    group: npt.ArrayLike,
    metrics: Sequence[str] | None,
    resamples: int,
    level: float,
    method: Method,
) -> tuple[Ints, list[str]]:
    """Group codes (n,) and metric names, after checking that the repeats are of the same cases."""
    if not repeats:
        raise SonobreastError("no predictions to evaluate", remedy="give at least one run's predictions")
    first = repeats[0]
    for other in repeats[1:]:
        if other.classes != first.classes or not np.array_equal(other.label, first.label):
            raise SonobreastError(
                "the runs are not of the same cases in the same order: their labels or classes differ",
                remedy="sort each run's predictions by image, and average only runs over the same images",
            )
    checked_level(level)
    if method not in ("percentile", "bca"):
        raise SonobreastError(f'no interval method is named "{method}"', remedy="take percentile or bca")
    if resamples < 100:
        raise SonobreastError(f"{resamples} resamples are too few for an interval", remedy="take 1000 or more")
    codes, _ = group_codes(group, first.n)
    return codes, metric_names(first.classes) if metrics is None else list(metrics)


def groups_behind(name: str, repeats: Sequence[Scored], codes: Ints) -> int:
    """How many groups a metric rests on: those in its denominator, of the smallest where it has several."""
    label, classes, malignant = repeats[0].label, repeats[0].classes, repeats[0].malignant

    def count(mask: npt.NDArray[np.bool_]) -> int:
        return len(np.unique(codes[mask]))

    inside = [count(label == c) for c in range(len(classes))]
    outside = [count(label != c) for c in range(len(classes))]
    kind, _, of = name.partition("_")
    if kind in ("recall", "f1", "precision") and of in classes:
        c = classes.index(of)
        return min(count(r.predicted == c) for r in repeats) if kind == "precision" else inside[c]
    if name == "auc_ovr_macro":
        return min(inside + outside)
    if name == "balanced_accuracy" or of == "macro":
        return min(inside)
    if malignant is not None and name == "sensitivity_malignant":
        return inside[malignant]
    if malignant is not None and name == "specificity_malignant":
        return outside[malignant]
    if malignant is not None and (name == "auc_malignant" or "_at_90_" in name):
        return min(inside[malignant], outside[malignant])
    return count(label >= 0)


def accuracy_interval(
    repeats: Sequence[Scored],
    group: npt.ArrayLike,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    method: Method = "percentile",
) -> Interval:
    """The interval of the accuracy: Wilson where each group is one image and there is one run, else `bootstrap`.

    Parameters, errors and units as in `bootstrap`.
    """
    codes, _ = checked_repeats(repeats, group, ["accuracy"], resamples, level, method)
    if len(repeats) == 1 and int(codes.max()) + 1 == len(codes):
        return wilson(int(repeats[0].correct.sum()), len(codes), level)
    return bootstrap(repeats, group, metrics=["accuracy"], resamples=resamples, level=level, seed=seed, method=method)[
        "accuracy"
    ]
