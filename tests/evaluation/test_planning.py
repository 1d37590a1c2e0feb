"""Planned numbers of cases give the interval that was asked for, and one case fewer does not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.intervals import wilson, wilson_limits
from sonobreast.evaluation.planning import (
    PLAN_COLUMNS,
    auc_planner,
    cases_for_half,
    hanley_mcneil_error,
    proportion_planner,
    rows,
)


@given(st.floats(0.02, 0.4), st.integers(0, 20), st.sampled_from([0.8, 0.95, 0.99]))
@settings(deadline=None)
def test_the_planned_number_is_the_least_that_does(width: float, twentieths: int, level: float) -> None:
    expected = twentieths / 20
    n = proportion_planner(width, expected, level=level)

    def wilson_width(cases: int) -> float:
        # Wilson's formula, written out, for a count that need not be whole.
        from scipy.stats import norm

        z = norm.ppf((1 + level) / 2)
        return 2 * z / (1 + z**2 / cases) * (expected * (1 - expected) / cases + z**2 / (4 * cases**2)) ** 0.5

    assert wilson_width(n) <= width + 1e-12
    assert n == 1 or wilson_width(n - 1) > width - 1e-12


def test_the_planned_number_agrees_with_wilson_on_whole_counts() -> None:
    # 58 of 63 has a width of .139: the same share asked for that width needs 63 cases.
    interval = wilson(58, 63)
    assert proportion_planner(interval.high - interval.low + 1e-9, 58 / 63) == 63
    # Worst case 0.5, full width .1, about z^2 / width^2 = 384 less z^2: 381.
    assert proportion_planner(0.1, 0.5) == 381


def test_correlated_images_need_more() -> None:
    plain = proportion_planner(0.1, 0.9)
    assert proportion_planner(0.1, 0.9, design_effect=1.5) == pytest.approx(1.5 * plain, abs=2)
    one, more = auc_planner(0.1, 0.9, 0.3), auc_planner(0.1, 0.9, 0.3, design_effect=2)
    assert sum(more) == pytest.approx(2 * sum(one), abs=4)


def test_hanley_and_mcneil_give_their_published_error() -> None:
    # Hanley & McNeil 1982, Radiology 143:29: area .893 from 51 abnormal and 58 normal CT images, standard error .032.
    assert hanley_mcneil_error(0.893, 51, 58) == pytest.approx(0.032, abs=6e-4)
    # For a useless test and m = k the form is the Wilcoxon variance (2m + 1) / (12 m^2).
    assert hanley_mcneil_error(0.5, 40, 40) ** 2 == pytest.approx(81 / (12 * 1600))


@pytest.mark.parametrize(("expected", "share"), [(0.7, 0.5), (0.9, 0.3), (0.95, 0.05)])
def test_the_planned_auc_is_the_least_that_does(expected: float, share: float) -> None:
    malignant, others = auc_planner(0.08, expected, share)
    assert malignant / (malignant + others) == pytest.approx(share, abs=0.01)
    assert 2 * 1.959964 * hanley_mcneil_error(expected, malignant, others) <= 0.08 + 1e-9
    fewer = malignant + others - 2
    assert 2 * 1.959964 * hanley_mcneil_error(expected, share * fewer, (1 - share) * fewer) > 0.08


def test_bad_plans_are_refused() -> None:
    for width, expected, effect, level in (
        (0, 0.9, 1, 0.95),
        (5, 0.9, 1, 0.95),
        (0.1, 90, 1, 0.95),
        (0.1, 0.9, 0.5, 0.95),
        (0.1, 0.9, 1, 95),
        (1e-6, 0.5, 1, 0.95),
    ):
        with pytest.raises(SonobreastError):
            proportion_planner(width, expected, effect, level)
    for width, expected, share in ((0.1, 1.0, 0.5), (0.1, 0.4, 0.5), (0.1, 0.9, 0.0), (2, 0.9, 0.5)):
        with pytest.raises(SonobreastError):
            auc_planner(width, expected, share)


def test_half_the_interval_needs_about_four_times_the_cases() -> None:
    low, high = wilson_limits(0.85, 200, 0.95)
    found = cases_for_half(0.85, low, high, 200)
    assert found is not None
    assert found[1] == pytest.approx(1.0)
    assert 3.8 * 200 < found[0] < 4.2 * 200


def test_the_design_effect_of_a_wide_interval_is_kept() -> None:
    """An interval as wide as that of half the cases shows a design effect of 2."""
    low, high = wilson_limits(0.85, 200, 0.95)
    found = cases_for_half(0.85, low, high, 400)
    assert found is not None
    assert found[1] == pytest.approx(2.0, rel=0.03)
    independent = proportion_planner((high - low) / 2, 0.85)
    assert found[0] == pytest.approx(found[1] * independent, rel=0.01)
    assert cases_for_half(1.0, 1.0, 1.0, 20) is None


@pytest.mark.parametrize(("width", "share"), [(0.1, None), (0.1, 0.27), (0.7, None)])
def test_rows_are_plans_of_their_own(width: float, share: float | None) -> None:
    found = rows(width, 0.9, 1.5, share, 0.95)
    assert len(found) == (5 if width < 0.5 else 3)
    for w, images, malignant, _ in found:
        n = int(images.replace(",", ""))
        if share is None:
            assert n == proportion_planner(float(w), 0.9, 1.5)
        else:
            needed = auc_planner(float(w), 0.9, share, 1.5)
            assert (n, malignant) == (sum(needed), str(needed.malignant))
        assert all(len(r) == len(PLAN_COLUMNS) for r in found)
