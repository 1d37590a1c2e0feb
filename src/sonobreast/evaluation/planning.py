"""How many cases a study needs, so that its interval comes out as narrow as wanted.

Correlated pictures carry less: with a mean of m images a group whose results correlate at r, the design effect is about
1 + (m - 1) r (Kish 1965), and as many times more images are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from scipy.stats import norm

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.intervals import checked_level, wilson_limits

_MOST = 10**9


class CasesNeeded(NamedTuple):
    """Images of cancers and of others."""

    malignant: int
    others: int


def proportion_planner(width: float, expected: float, design_effect: float = 1.0, level: float = 0.95) -> int:
    """The least number of cases for which Wilson's interval of a proportion is at most so wide.

    For a sensitivity this counts cancers, for an accuracy images.

    Parameters
    ----------
    width : float
        Full width wanted (high minus low), in (0, 1): 0.1 is plus or minus about five points.
    expected : float
        The proportion that is expected, in [0, 1]. An interval is widest at 0.5.
    design_effect : float
        At least 1: how many images carry as much as one independent case.
    level : float
        In (0, 1).

    Raises
    ------
    SonobreastError
        For a value out of range.

    References
    ----------
    Wilson 1927, J Am Stat Assoc 22:209. The width falls steadily with n, so the least n is found by halving.
    """
    _check(width, design_effect)
    if not 0 <= expected <= 1:
        raise SonobreastError(f"an expected proportion of {expected}", remedy="give a share from 0 to 1")

    def fits(n: int) -> bool:
        low, high = wilson_limits(expected, n / design_effect, level)
        return high - low <= width

    return _least(fits, 1)


def auc_planner(
    width: float, expected: float, malignant_share: float, design_effect: float = 1.0, level: float = 0.95
) -> CasesNeeded:
    """The least number of cases for which the interval of an AUC, estimate -+ z standard errors, is at most so wide.

    Parameters
    ----------
    width : float
        Full width wanted, in (0, 1).
    expected : float
        The AUC that is expected, in [0.5, 1).
    malignant_share : float
        Share of cancers among the cases, in (0, 1).
    design_effect, level : float
        As in `proportion_planner`.

    Raises
    ------
    SonobreastError
        For a value out of range.

    References
    ----------
    Hanley & McNeil 1982, Radiology 143:29 (see `hanley_mcneil_error`).
    """
    _check(width, design_effect)
    if not 0.5 <= expected < 1:
        raise SonobreastError(f"an expected AUC of {expected}", remedy="give a value from 0.5 to below 1")
    if not 0 < malignant_share < 1:
        raise SonobreastError(f"a malignant share of {malignant_share}", remedy="give a share between 0 and 1")
    reach = 2 * float(norm.ppf((1 + checked_level(level)) / 2))

    def fits(n: int) -> bool:
        effective = n / design_effect
        error = hanley_mcneil_error(expected, malignant_share * effective, (1 - malignant_share) * effective)
        return reach * error <= width

    start = math.ceil(design_effect / min(malignant_share, 1 - malignant_share))  # one effective case on each side
    n = _least(fits, start)
    return CasesNeeded(math.ceil(malignant_share * n - 1e-9), math.ceil((1 - malignant_share) * n - 1e-9))


def neighbouring_widths(width: float) -> list[float]:
    """Half, three quarters, once, one and a half times and twice a full width, as far as they are below 1."""
    return [w for w in (round(width * f, 6) for f in (0.5, 0.75, 1.0, 1.5, 2.0)) if 0 < w < 1]


PLAN_COLUMNS = ("full width", "images", "of them malignant", "independent cases")


def rows(
    width: float, expected: float, design_effect: float, malignant_share: float | None, level: float
) -> list[tuple[str, ...]]:
    """What the interval's width costs, for `neighbouring_widths`, as text under ``PLAN_COLUMNS``.

    Parameters and errors as in `auc_planner`; without ``malignant_share`` as in `proportion_planner`.
    """
    table: list[tuple[str, ...]] = []
    for w in neighbouring_widths(width):
        images, malignant = _images(w, expected, design_effect, malignant_share, level)
        table.append((f"{w:.3g}", f"{images:,}", malignant, f"{math.ceil(images / design_effect):,}"))
    return table


def sentence(width: float, expected: float, design_effect: float, malignant_share: float | None, level: float) -> str:
    """How many cases an interval of a width needs, in words; see `rows`."""
    images, malignant = _images(width, expected, design_effect, malignant_share, level)
    figure = "A share" if malignant_share is None else "An AUC"
    cancers = "" if malignant_share is None else f", {malignant} of them malignant,"
    one_by_one = math.ceil(images / design_effect)
    said = (
        f"{figure} near {expected:g} needs {images:,} images{cancers} for a {100 * level:g} % interval that is at most "
        f"{width:g} wide from end to end. "
    )
    if design_effect > 1:
        said += (
            f"With a design effect of {design_effect:g} they carry as much as {one_by_one:,} independent images: that "
            "many patients or groups with one image each would do. "
        )
    else:
        said += (
            f"That is one image from each of {one_by_one:,} patients or groups: images of one patient, and copies, are "
            "right or wrong together and more of them are needed (--design-effect, about 1.5 on BUSI). "
        )
    if malignant_share is None:
        said += "For an accuracy count all images, for a sensitivity the cancers, for a specificity the others."
    return said


def _images(
    width: float, expected: float, design_effect: float, malignant_share: float | None, level: float
) -> tuple[int, str]:
    if malignant_share is None:
        return proportion_planner(width, expected, design_effect, level), "–"
    needed = auc_planner(width, expected, malignant_share, design_effect, level)
    return sum(needed), f"{needed.malignant:,}"


def cases_for_half(estimate: float, low: float, high: float, n: int, level: float = 0.95) -> tuple[int, float] | None:
    """Cases for an interval half as wide as one that was found, and the design effect that it shows.

    The design effect is the square of the interval's width over that of Wilson's on n independent cases, at least 1:
    further cases are taken to come in groups like the ones seen.

    Parameters
    ----------
    estimate, low, high : float
        A proportion and its interval, in [0, 1].
    n : int
        Cases that it rests on.
    level : float
        In (0, 1).

    Returns
    -------
    tuple of int and float, or None
        None where the interval has no width.
    """
    if not high - low > 0:
        return None
    below, above = wilson_limits(estimate, n, level)
    effect = max(1.0, ((high - low) / (above - below)) ** 2)
    return proportion_planner((high - low) / 2, estimate, effect, level), effect


def hanley_mcneil_error(auc: float, malignant: float, others: float) -> float:
    """Standard error of an AUC A from m cancers and k others, before there are data.

    ``sqrt((A(1-A) + (m-1)(Q1 - A^2) + (k-1)(Q2 - A^2)) / (m k))``, Q1 = A/(2-A), Q2 = 2A^2/(1+A). With data, use DeLong
    or the bootstrap: this form rests on exponential scores.

    References
    ----------
    Hanley & McNeil 1982, Radiology 143:29, equations 1 and 2.
    """
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    above = auc * (1 - auc) + (malignant - 1) * (q1 - auc**2) + (others - 1) * (q2 - auc**2)
    return math.sqrt(above / (malignant * others))


def _check(width: float, design_effect: float) -> None:
    if not 0 < width < 1:
        raise SonobreastError(f"an interval width of {width}", remedy="give a share between 0 and 1, such as 0.1")
    if not 1 <= design_effect < math.inf:
        raise SonobreastError(f"a design effect of {design_effect}", remedy="give 1 (independent cases) or more")


def _least(fits: Callable[[int], bool], start: int) -> int:
    """The least n >= start for which a condition holds that stays true from there on."""
    high = start
    while not fits(high):
        high *= 2
        if high > _MOST:
            raise SonobreastError(
                "the interval wanted needs over a thousand million cases", remedy="ask for a wider one"
            )
    low = start - 1
    while high - low > 1:
        middle = (low + high) // 2
        if middle >= start and fits(middle):
            high = middle
        else:
            low = middle
    return high
