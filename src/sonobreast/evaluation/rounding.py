"""Printed figures as intervals, and the whole numbers of images that lie inside them.

A printed 0.86 is anything from 0.855 to 0.865; on 21 images only 18/21 is in there.
`sonobreast.evaluation.plausibility` builds its checks on this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

Span = tuple[Fraction, Fraction]


class ClassFigures(NamedTuple):
    """What is printed for one class: its images, and the spans (0-1) of its figures, None where not printed."""

    support: int
    precision: Span | None = None
    recall: Span | None = None
    f1: Span | None = None


def span(cell: Decimal, percent: bool = False) -> Span:
    """The values from 0 to 1 that round to a printed cell, both ends included.

    Decimals beyond the twelfth are not trusted: they are the rounding of the machine that printed them.
    """
    exponent = cell.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f"{cell} is not a number")
    half = Fraction(10) ** max(exponent, -12) / 2
    scale = 100 if percent else 1
    # Both ends are cut to the scale, so that 1.00 means 0.995 to 1.
    low, high = ((Fraction(cell) + side * half) / scale for side in (-1, 1))
    return min(max(low, Fraction(0)), Fraction(1)), min(max(high, Fraction(0)), Fraction(1))


def counts_in(interval: Span, n: int) -> range:
    """The whole numbers k for which k/n lies in the interval; empty where there is none."""
    return range(math.ceil(interval[0] * n), math.floor(interval[1] * n) + 1)


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of k of n, as fractions 0-1; for images that are independent of each other."""
    from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def smallest_mcnemar_p(d: int) -> float:
    """The smallest p that an exact two-sided McNemar test can give two models whose correct images differ by `d`.

    It is reached where the better one is right on `d` images that the other misses, and never the reverse:
    p = 2 × 0.5^d, at most 1. Every further disagreement makes p larger.
    """
    return min(1.0, 2 * 0.5**d)


def harmonic(precision: Fraction, recall: Fraction) -> Fraction:
    """F1 of a class, 0-1; 0 where precision and recall are both 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else Fraction(0)


def matrix_exists(classes: Sequence[ClassFigures], accuracies: Sequence[Span] = ()) -> bool | None:
    """Whether a confusion matrix gives all figures of all classes, and all accuracies, within rounding.

    The unknowns are the hits h and false alarms f of each class, whole numbers. With support S the misses are S - h;
    precision, recall, F1 and accuracy between given bounds are all linear in h and f:
    low (h + f) <= h <= high (h + f), low (h + f + S) <= 2 h <= high (h + f + S). The cells off the diagonal exist
    where misses and false alarms have the same sum E and no class has more than E of both together (a transportation
    problem with a forbidden diagonal). An integer program decides, in a moment for any number of classes.

    Parameters
    ----------
    classes : sequence of ClassFigures
        All classes of the test set.
    accuracies : sequence of Span
        Accuracies (0-1) that the matrix must have.

    Returns
    -------
    bool or None
        None where the solver did not decide within five seconds.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    k = len(classes)
    size = sum(figures.support for figures in classes)
    # Hits of all classes, then their false alarms: (2k,)
    lower, upper = [0.0] * 2 * k, [float(c.support) for c in classes] + [float(size - c.support) for c in classes]
    factors: list[list[float]] = []
    bounds: list[tuple[float, float]] = []

    def require(terms: dict[int, float], low: float, high: float) -> None:
        factors.append([terms.get(index, 0.0) for index in range(2 * k)])
        bounds.append((low, high))

    for i, (support, precision, recall, f1) in enumerate(classes):
        if recall is not None and support:
            hits = counts_in(recall, support)
            if not hits:
                return False
            lower[i], upper[i] = hits[0], hits[-1]
        if precision is not None:
            low, high = map(float, precision)
            require({i: 1 - low, k + i: -low}, 0, math.inf)
            require({i: 1 - high, k + i: -high}, -math.inf, 0)
            if low > 0:  # a class that no image is called has no precision; 0 or nothing is printed
                require({i: 1, k + i: 1}, 1, math.inf)
        if f1 is not None:
            low, high = map(float, f1)
            require({i: 2 - low, k + i: -low}, low * support, math.inf)
            require({i: 2 - high, k + i: -high}, -math.inf, high * support)
        # (support - hits) + false alarms <= size - sum of hits
        require({j: 1.0 - (j == i) for j in range(k)} | {k + i: 1}, -math.inf, size - support)
    require(dict.fromkeys(range(2 * k), 1.0), size, size)
    for low_accuracy, high_accuracy in accuracies:
        require(dict.fromkeys(range(k), 1.0), float(low_accuracy * size), float(high_accuracy * size))
    # Room for the floating-point error of bounds that a figure meets exactly, such as 21/24 = 0.875 printed as 0.88.
    slack = 1e-6
    limits = np.array(bounds)
    result = milp(
        np.zeros(2 * k),
        integrality=np.ones(2 * k, dtype=np.int64),
        bounds=Bounds(np.array(lower), np.array(upper)),
        constraints=LinearConstraint(np.array(factors), limits[:, 0] - slack, limits[:, 1] + slack),
        options={"time_limit": 5.0},
    )
    return {0: True, 2: False}.get(int(result.status))
