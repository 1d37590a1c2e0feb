"""Predictive values at a stated prevalence, and how far they may be off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.intervals import bootstrap
from sonobreast.evaluation.metrics import Scored, ppv_npv
from sonobreast.evaluation.predictive import predictive_values

NAMES = ["sensitivity_malignant", "specificity_malignant"]


def decided(found: int, missed: int, spared: int, alarms: int) -> Scored:
    """Cancers found and missed, others spared and called."""
    label = np.repeat([1, 1, 0, 0], [found, missed, spared, alarms])
    said = np.repeat([1, 0, 0, 1], [found, missed, spared, alarms])
    return Scored(label, said, np.eye(2)[said] * 0.8 + 0.1, ("benign", "malignant"))


def values(runs: list[Scored], group: Any = None, **options: Any) -> list[dict[str, Any]]:
    groups = np.arange(runs[0].n) if group is None else group
    intervals = bootstrap(runs, groups, metrics=NAMES, resamples=500, method="bca")
    found = predictive_values(runs, groups, intervals, resamples=500, **options)
    assert found is not None
    return found


def test_the_estimates_are_bayes_theorem() -> None:
    for row in values([decided(36, 4, 80, 20)], prevalences=(0.01, 0.2)):
        expected = ppv_npv(0.9, 0.8, row["prevalence"])
        assert (row["ppv"]["estimate"], row["npv"]["estimate"]) == pytest.approx(tuple(expected))
        for which in ("ppv", "npv"):
            assert row[which]["low"] < row[which]["estimate"] < row[which]["high"]


def test_the_studys_own_mix_gives_precision_and_its_interval_is_near_its_own() -> None:
    run = decided(60, 20, 160, 40)
    row = values([run], prevalences=(80 / 280,))[0]
    own = bootstrap([run], np.arange(run.n), metrics=["precision_malignant"], resamples=2000, method="bca")
    assert row["ppv"]["estimate"] == pytest.approx(own["precision_malignant"].estimate)
    assert row["ppv"]["low"] == pytest.approx(own["precision_malignant"].low, abs=0.03)
    assert row["ppv"]["high"] == pytest.approx(own["precision_malignant"].high, abs=0.03)


def test_rarer_cancer_means_fewer_right_alarms() -> None:
    found = values([decided(36, 4, 80, 20)], prevalences=(0.001, 0.01, 0.1, 0.5))
    for end in ("estimate", "low", "high"):
        assert np.all(np.diff([r["ppv"][end] for r in found]) > 0)
        assert np.all(np.diff([r["npv"][end] for r in found]) < 0)


def test_copies_in_groups_widen_the_interval() -> None:
    run = decided(72, 8, 160, 40)
    alone = values([run], prevalences=(0.1,))[0]["ppv"]
    fours = values([run], np.arange(run.n) // 4, prevalences=(0.1,))[0]["ppv"]
    assert fours["high"] - fours["low"] > 1.5 * (alone["high"] - alone["low"])
    assert fours["groups"] == 70


def test_no_missed_cancer_is_no_certainty() -> None:
    """The bootstrap alone would give an NPV of 1 with no width."""
    row = values([decided(20, 0, 70, 30)], prevalences=(0.1,))[0]
    assert row["npv"]["estimate"] == 1.0
    assert row["npv"]["high"] == 1.0
    assert row["npv"]["low"] < 0.99
    assert "without spread" in row["npv"]["method"]
    assert row["ppv"]["low"] < row["ppv"]["estimate"] < row["ppv"]["high"]


def test_where_nobody_is_called_malignant_there_is_no_ppv() -> None:
    row = values([decided(0, 20, 50, 0)], prevalences=(0.1,))[0]
    assert row["ppv"]["estimate"] is None
    assert row["npv"]["estimate"] == pytest.approx(0.9)


def test_few_cancers_are_said_beside_the_figure() -> None:
    assert "only 8 groups" in values([decided(6, 2, 70, 30)], prevalences=(0.1,))[0]["npv"]["note"]


def test_repeats_are_averaged_before_bayes() -> None:
    runs = [decided(36, 4, 80, 20), decided(28, 12, 90, 10)]
    # The same cases in the same order, decided otherwise.
    assert np.array_equal(runs[0].label, runs[1].label)
    row = values(runs, prevalences=(0.1,))[0]
    assert row["ppv"]["estimate"] == pytest.approx(ppv_npv(0.8, 0.85, 0.1).ppv)


def test_without_a_malignant_class_there_are_none() -> None:
    run = decided(10, 2, 10, 2)
    other = Scored(run.label, run.predicted, run.probability, ("a", "b"))
    assert predictive_values([other], np.arange(other.n), {}) is None


@pytest.mark.parametrize("bad", [0.0, 1.0, 2.0, -0.1, math.nan])
def test_a_percentage_is_no_prevalence(bad: float) -> None:
    with pytest.raises(SonobreastError, match="prevalence") as error:
        values([decided(36, 4, 80, 20)], prevalences=(0.1, bad))
    assert "0.02" in error.value.remedy
