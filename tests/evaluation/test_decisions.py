"""Operating points and net benefit against values by hand."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from tests.tables import predictions

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.decisions import (
    POINTS,
    cancers_needed,
    decision_metrics,
    net_benefit,
    net_benefit_of_all,
    threshold_for_sensitivity,
)
from sonobreast.evaluation.predictions import whole_tables
from sonobreast.evaluation.recalibration import recalibrated


def test_net_benefit_by_hand() -> None:
    # Ten patients, at threshold .2 the odds are 1 to 4: 3 found, 2 needless: 3/10 - 2/10/4 = .25.
    score = [0.9, 0.8, 0.2, 0.1, 0.3, 0.2, 0.1, 0.1, 0.0, 0.0]
    sick = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert net_benefit(score, sick, 0.2) == pytest.approx(0.25)
    assert net_benefit(score, sick, 0.2, weight=[2] * 10) == pytest.approx(0.25)
    assert net_benefit(np.ones(10), sick, 0.2) == pytest.approx(net_benefit_of_all(0.4, 0.2))
    assert net_benefit(np.zeros(10), sick, 0.2) == 0
    with pytest.raises(SonobreastError, match="threshold probability of 1"):
        net_benefit(score, sick, 1.0)


@pytest.mark.parametrize("prevalence", [0.01, 0.27, 0.5])
def test_treating_all_is_worth_nothing_where_the_threshold_is_the_prevalence(prevalence: float) -> None:
    assert net_benefit_of_all(prevalence, prevalence) == pytest.approx(0, abs=1e-15)
    assert net_benefit_of_all(prevalence, prevalence / 2) > 0 > net_benefit_of_all(prevalence, 0.9)


def test_the_curve_is_the_formula_at_every_threshold() -> None:
    found = recalibrated(predictions(images=120, folds=3, seeds=(0, 1)))
    content = decision_metrics(found, resamples=100)
    tables, _ = whole_tables(found.temperature)
    curve = content["curve"]
    for k in (0, 1, 9, 49):
        t = curve["threshold"][k]
        each = [net_benefit(p["p_malignant"], p["label"] == "malignant", t) for p in tables.values()]
        assert curve["model"][k] == pytest.approx(np.mean(each))
        assert curve["all"][k] == pytest.approx(net_benefit_of_all(content["prevalence"], t))
        assert curve["low"][k] <= curve["model"][k] <= curve["high"][k]
    assert [g["threshold"] for g in content["gains"]] == list(POINTS)
    gain = content["gains"][2]
    assert gain["gain"]["estimate"] == pytest.approx(gain["model"]["estimate"] - max(0, gain["all"]))


def test_a_threshold_comes_from_the_runs_own_validation_images() -> None:
    table = predictions(images=150, folds=3)
    found = recalibrated(table)
    point = decision_metrics(found, sensitivities=(0.9,), resamples=100)["points"][0]
    warm = found.temperature
    cuts = {}
    for run, rows in warm[warm["subset"] == "validation"].groupby("run"):
        cuts[run] = threshold_for_sensitivity(rows["p_malignant"].to_numpy(), rows["label"] == "malignant", 0.9)
    assert point["threshold"] == {"least": min(cuts.values()), "greatest": max(cuts.values())}
    test = warm[warm["subset"] == "test"]
    called, sick = test["p_malignant"] >= test["run"].map(cuts), test["label"] == "malignant"
    assert point["sensitivity"]["estimate"] == pytest.approx(called[sick].mean())
    assert point["specificity"]["estimate"] == pytest.approx(1 - called[~sick].mean())
    assert point["sensitivity"]["estimate"] >= 0.9  # here validation rows are the test rows


def test_how_many_cancers_a_sensitivity_needs() -> None:
    assert [cancers_needed(s) for s in (0.9, 0.95, 0.98, 1.0)] == [10, 20, 50, 0]
    few = decision_metrics(recalibrated(predictions(images=30)), sensitivities=(0.98,), resamples=100)
    assert "50 are needed" in few["points"][0]["note"]


def test_what_cannot_be_decided_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        no_class = decision_metrics(recalibrated(predictions(images=40, classes=("a", "b"))), resamples=100)
        assert no_class == {"reason": "no class is malignant (a, b)"}
        table = predictions(images=60)
        blind = decision_metrics(
            recalibrated(table[(table["subset"] == "test") | (table["label"] != "malignant")]), resamples=100
        )
        assert "hold no cancer" in blind["points"][0]["reason"]
        assert blind["curve"] is not None
        healthy = decision_metrics(recalibrated(table[table["label"] != "malignant"]), resamples=100)
        assert healthy["curve"] is None
        assert healthy["curve_reason"] == "the test images are of one side"
        one = decision_metrics(recalibrated(predictions(images=1)), resamples=100)
        assert one["curve"] is None
        sure = decision_metrics(recalibrated(predictions(images=40, strength=1e9)), resamples=100)
        assert sure["points"][0]["sensitivity"]["estimate"] == 1 == sure["points"][0]["specificity"]["estimate"]
        group = decision_metrics(recalibrated(table.assign(group="one")), resamples=100)
    json.dumps([no_class, blind, healthy, one, sure, group])
