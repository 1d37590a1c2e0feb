"""Class-conditional (Mondrian) split conformal sets: which classes cannot be ruled out for an image.

The score of a class is 1 minus its probability, as the network gives it. The sets need no calibrated probabilities, so
the temperature stays out of them: calibration cases that stopping has not seen are then seen by nothing at all. With
two classes a temperature would not change a set, with three hardly.

What a set promises: of new images of class c at least the share 1 - alpha have c in their set, on average over draws of
calibration cases, if the new cases come from where the calibration cases come from. It promises nothing for a single
patient, for another hospital, or for images that get a certain set.

Of the test images, which stopping has not seen, half of the groups calibrate and the other half are judged, over many
random halvings. The folds are put together, so with several folds the scores come from several networks; each has not
seen the cases it scores, but has been trained on cases that another one scores: the promise then holds nearly, not
exactly (Vovk 2015, Ann Math Artif Intell 74:9, on cross-conformal predictors). Within groups of several images, too, it
holds nearly: it is exact for one image of each group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sonobreast.evaluation.metrics import Floats, Ints, Scored, group_codes
from sonobreast.evaluation.predictions import Repeats

ALPHA = 0.10
SPLITS = 200

Bools = npt.NDArray[np.bool_]


def cases_needed(alpha: float) -> int:
    """Calibration cases of a class below which its quantile is infinite: ``ceil(1/alpha) - 1``; 9 for 0.1."""
    return math.ceil(1 / alpha - 1e-9) - 1


def quantile_rank(n: int, alpha: float) -> int:
    """Rank of the conformal quantile among n scores, ``ceil((n + 1)(1 - alpha))``; above n it is infinite."""
    return math.ceil((n + 1) * (1 - alpha) - 1e-9)


def expected_coverage(n: int, alpha: float) -> float:
    """Coverage to be expected of n exchangeable calibration cases without ties, ``ceil((n+1)(1-alpha)) / (n+1)``."""
    return min(1.0, quantile_rank(n, alpha) / (n + 1))


def class_quantiles(probability: npt.ArrayLike, label: npt.ArrayLike, alpha: float = ALPHA) -> Floats:
    """Conformal quantile of each class: the ``ceil((n_c + 1)(1 - alpha))``-th smallest score of its n_c cases.

    Parameters
    ----------
    probability : float (n, C)
        Of calibration cases: neither training nor stopping has seen their groups.
    label : int (n,)
    alpha : float
        In (0, 1).

    Returns
    -------
    float (C,)
        Infinity where a class has fewer than `cases_needed` cases: it is then in every set.

    References
    ----------
    Vovk, Gammerman & Shafer 2005, Algorithmic Learning in a Random World, chapter 4 (Mondrian); Sadinle, Lei &
    Wasserman 2019, J Am Stat Assoc 114:223 (class-conditional sets with this score).
    """
    p, y = np.asarray(probability, np.float64), np.asarray(label, np.int64)
    levels = np.full(p.shape[1], np.inf)
    for c in range(p.shape[1]):
        scores = np.sort(1.0 - p[y == c, c])
        rank = quantile_rank(len(scores), alpha)
        if rank <= len(scores):
            levels[c] = scores[rank - 1]
    return levels


def grouped_halves(codes: Ints, label: Ints, splits: int = SPLITS, seed: int = 0) -> Bools:
    """Random halvings by group, class by class: a group of several classes counts to its most frequent one.

    Parameters
    ----------
    codes : int (n,)
        Group of each case, 0 .. G-1.
    label : int (n,)
    splits, seed : int

    Returns
    -------
    bool (splits, n)
        Whether a case calibrates. Of an odd number of groups the larger half does.
    """
    groups, classes = int(codes.max()) + 1, int(label.max()) + 1
    of_class = np.zeros((groups, classes))
    np.add.at(of_class, (codes, label), 1)
    stratum = of_class.argmax(axis=1)
    rng = np.random.default_rng(seed)
    chosen = np.zeros((splits, groups), bool)
    for c in np.unique(stratum):
        members = np.flatnonzero(stratum == c)
        order = rng.random((splits, len(members))).argsort(axis=1)
        chosen[:, members] = order < (len(members) + 1) // 2
    half: Bools = chosen[:, codes]
    return half


@dataclass(frozen=True, eq=False)
class Halved:
    """What the sets do on the other half of each of S halvings. NaN where that half has no case of a class.

    Attributes
    ----------
    calibration : int (S, C)
        Cases of each class that calibrate.
    expected : float (S, C)
        `expected_coverage` of that many.
    coverage, size : float (S, C)
        Share of a class's cases whose set holds their class; mean number of classes in their sets.
    single, empty, several, single_right : float (S,)
        Shares of all judged cases by how many classes their set holds; of the single ones, how many are right.
    """

    calibration: Ints
    expected: Floats
    coverage: Floats
    size: Floats
    single: Floats
    empty: Floats
    several: Floats
    single_right: Floats


def halved(scored: Scored, calibrates: Bools, alpha: float = ALPHA) -> Halved:
    """Calibrate on one half of each halving, judge the other.

    Parameters
    ----------
    scored : Scored
        n cases.
    calibrates : bool (S, n)
        From `grouped_halves`.
    alpha : float
    """
    score = 1.0 - scored.probability  # (n, C)
    splits, classes = len(calibrates), len(scored.classes)
    levels = np.full((splits, classes), np.inf)
    count = np.zeros((splits, classes), np.int64)
    for c in range(classes):
        own = np.flatnonzero(scored.label == c)
        own = own[np.argsort(score[own, c], kind="stable")]
        inside = calibrates[:, own]
        count[:, c] = inside.sum(axis=1)
        rank = np.array([quantile_rank(int(k), alpha) for k in count[:, c]])
        finite = rank <= count[:, c]
        if len(own):
            place = (inside.cumsum(axis=1) >= rank[:, None]).argmax(axis=1)
            levels[finite, c] = score[own, c][place[finite]]
    sets = score[None] <= levels[:, None, :]  # (S, n, C)
    judged = ~calibrates
    held = sets[:, np.arange(scored.n), scored.label]  # (S, n)
    number = sets.sum(axis=2)  # (S, n)
    one = judged & (number == 1)
    of_class = [judged & (scored.label == c) for c in range(classes)]
    total = judged.sum(axis=1)
    return Halved(
        count,
        np.array([[expected_coverage(int(k), alpha) for k in row] for row in count]),
        np.stack([_share(held & m, m) for m in of_class], axis=1),
        np.stack([_quotient((number * m).sum(axis=1), m.sum(axis=1)) for m in of_class], axis=1),
        _quotient(one.sum(axis=1), total),
        _quotient((judged & (number == 0)).sum(axis=1), total),
        _quotient((judged & (number > 1)).sum(axis=1), total),
        _share(one & held, one),
    )


def _share(part: Bools, of: Bools) -> Floats:
    return _quotient(part.sum(axis=1), of.sum(axis=1))


def _quotient(above: npt.ArrayLike, below: npt.ArrayLike) -> Floats:
    a, b = np.asarray(above, np.float64), np.asarray(below, np.float64)
    found: Floats = np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)
    return found


def conformal_metrics(repeats: Repeats, *, alpha: float = ALPHA, splits: int = SPLITS) -> dict[str, Any]:
    """Coverage and size of the sets of one configuration over random grouped halvings of its test images, JSON-ready.

    Parameters
    ----------
    repeats : Repeats
        With the probabilities as the network gives them.
    alpha : float
    splits : int

    Returns
    -------
    dict
        ``reason``: why there is nothing, else "". ``alpha``, ``splits``, ``needed`` (calibration cases a class),
        ``per_class`` with ``calibration`` (mean number of cases), ``coverage`` and ``size`` (mean over the halvings,
        ``low`` and ``high``: where 95 % of them lie), ``expected`` coverage, ``always`` (share of halvings with an
        infinite quantile); ``single``, ``empty``, ``several``, ``single_right`` (spread as well), ``notes``.
    """
    sets = list(repeats.sets.values())
    n, classes, label = sets[0].n, sets[0].classes, sets[0].label
    codes, names = group_codes(repeats.group, n)
    content: dict[str, Any] = {"reason": "", "alpha": alpha, "splits": splits, "needed": cases_needed(alpha), "n": n}
    if len(names) < 2:
        return content | {"reason": "the test images are of one group, which cannot be halved"}
    half = grouped_halves(codes, label, splits)
    found = [halved(s, half, alpha) for s in sets]
    per_class, notes = {}, []
    for c, name in enumerate(classes):
        count = found[0].calibration[:, c]
        always = float((count < content["needed"]).mean())
        there = int((label == c).sum())
        per_class[name] = {
            "images": there,
            "groups": len(np.unique(codes[label == c])),
            "calibration": float(count.mean()),
            "coverage": _spread([f.coverage[:, c] for f in found]),
            "size": _spread([f.size[:, c] for f in found]),
            "expected": float(found[0].expected[:, c].mean()),
            "always": always,
        }
        if always:
            notes.append(
                f"{name} is in every set of {100 * always:.0f} % of the halvings: {int(count.min())} calibration "
                f"cases, {content['needed']} are needed for a coverage of {100 * (1 - alpha):.0f} %"
            )
        elif there and _half(per_class[name]["groups"]) < content["needed"]:
            notes.append(
                f"the calibration images of {name} come from about {_half(per_class[name]['groups'])} groups; "
                f"{content['needed']} groups are needed for a coverage of {100 * (1 - alpha):.0f} % to mean something"
            )
    shares = {k: _spread([getattr(f, k) for f in found]) for k in ("single", "empty", "several", "single_right")}
    return content | {"per_class": per_class, **shares, "notes": notes}


def _half(groups: object) -> int:
    """Groups on the calibrating side of a halving."""
    return (int(str(groups)) + 1) // 2


def _spread(values: Sequence[Floats]) -> dict[str, float]:
    """Mean over repeats and halvings, and where 95 % of the halvings lie; NaN where there is nothing."""
    each = np.stack(values)  # (repeats, S)
    there = np.isfinite(each).all(axis=0)
    if not there.any():
        return {"mean": math.nan, "low": math.nan, "high": math.nan}
    mean = each[:, there].mean(axis=0)
    low, high = np.quantile(mean, [0.025, 0.975])
    return {"mean": float(mean.mean()), "low": float(low), "high": float(high)}
