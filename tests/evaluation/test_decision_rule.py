"""The frozen rule: fitted on the right rows, the same after JSON, applied with NumPy alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from tests.tables import predictions

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.conformal import class_quantiles, grouped_halves
from sonobreast.evaluation.decision_rule import apply_rule, rule_from, temperature_scaled
from sonobreast.evaluation.metrics import group_codes
from sonobreast.evaluation.recalibration import fit_temperature
from sonobreast.evaluation.rule_fitting import fit_rule, mean_of_runs

P = ["p_benign", "p_malignant", "p_normal"]


def with_other(table: pd.DataFrame, subset: str, images: set[str] | None = None) -> pd.DataFrame:
    """The table with other probabilities in a subset, of these images only."""
    hit = table["subset"] == subset
    if images is not None:
        hit &= table["image"].isin(images)
    changed = table.copy()
    changed.loc[hit, P] = np.random.default_rng(5).dirichlet(np.ones(3), int(hit.sum()))
    return changed


def test_the_base_install_is_enough_to_apply_it() -> None:
    code = "import sys, sonobreast.evaluation.decision_rule; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "scipy", "sklearn", "matplotlib", "statsmodels"} & set(done.stdout.split())


def test_temperature_and_thresholds_come_from_validation_quantiles_from_test() -> None:
    table = predictions(images=120, folds=3, seeds=(0, 1))
    rule, _ = fit_rule(table)
    other_test, _ = fit_rule(with_other(table, "test"))
    other_validation, _ = fit_rule(with_other(table, "validation"))
    assert (rule.temperature, rule.thresholds) == (other_test.temperature, other_test.thresholds)
    assert rule.quantiles != other_test.quantiles
    assert rule.quantiles == other_validation.quantiles
    assert rule.temperature != other_validation.temperature != 1
    assert rule.runs == 6
    assert rule.validation_images == 120


def test_the_values_of_a_rule_by_its_definition() -> None:
    table = predictions(images=120, folds=3, seeds=(0, 1))
    rule, coverage = fit_rule(table, sensitivities=(0.9,))
    validation, _, _ = mean_of_runs(table[table["subset"] == "validation"])
    test, _, _ = mean_of_runs(table[table["subset"] == "test"])
    assert rule.temperature == fit_temperature(validation.probability, validation.label)
    warm = temperature_scaled(validation.probability, rule.temperature)[:, 1]
    assert (warm[validation.label == 1] >= rule.thresholds["sensitivity 0.9"]).mean() >= 0.9
    levels = class_quantiles(test.probability, test.label)
    assert list(rule.quantiles.values()) == pytest.approx(levels.tolist())
    assert coverage["kind"] == "folds"
    assert "not guaranteed" in rule.calibration_source
    assert coverage["images"] == {"calibration": 120, "report": 120}
    assert all(abs(v["coverage"] - 0.9) < 0.08 for v in coverage["per_class"].values())


def test_a_hold_out_calibrates_on_one_half_and_reports_on_the_other() -> None:
    table = predictions(images=160, group_of=2)
    rule, coverage = fit_rule(table, alpha=0.2, seed=3)
    test, image, group = mean_of_runs(table[table["subset"] == "test"])
    codes, _ = group_codes(group, test.n)
    half = grouped_halves(codes, test.label, 1, 3)[0]
    assert not {*codes[half]} & {*codes[~half]}
    assert coverage["kind"] == "half"
    reporting = {i for i, h in zip(image, half, strict=True) if not h}
    assert coverage["images"] == {"calibration": int(half.sum()), "report": len(reporting)}
    again, _ = fit_rule(with_other(table, "test", reporting), alpha=0.2, seed=3)
    assert again.quantiles == rule.quantiles
    sets = apply_rule(rule, test.probability[~half]).sets
    truth = test.label[~half]
    for c, name in enumerate(rule.classes):
        assert coverage["per_class"][name]["coverage"] == pytest.approx(sets[truth == c, c].mean())
        assert rule.calibration_images[name] == int((test.label[half] == c).sum())


def test_applied_it_says_what_it_is_made_of() -> None:
    table = predictions(images=120)
    rule, _ = fit_rule(table)
    p = table.loc[table["subset"] == "test", P].to_numpy()
    found = apply_rule(rule, p)
    np.testing.assert_allclose(found.probability, temperature_scaled(p, rule.temperature))
    for name, cut in rule.thresholds.items():
        assert np.array_equal(found.malignant[name], found.probability[:, 1] >= cut)
    assert np.array_equal(found.abstains, found.sets.sum(axis=1) != 1)
    one = apply_rule(rule, p[:1])
    np.testing.assert_array_equal(one.sets, found.sets[:1])
    assert apply_rule(rule, np.empty((0, 3))).sets.shape == (0, 3)


def test_the_rule_survives_json() -> None:
    few, _ = fit_rule(predictions(images=16))  # infinite quantiles, a temperature of 1
    assert None in few.quantiles.values()
    assert few.temperature == 1
    for rule in (few, fit_rule(predictions(images=200, folds=2))[0]):
        text = json.dumps(rule.as_dict(), allow_nan=False)
        assert rule_from(json.loads(text)) == rule
    assert all(
        apply_rule(few, [[1.0, 0.0, 0.0]]).sets[0, [c for c, q in enumerate(few.quantiles.values()) if q is None]]
    )


def test_too_few_cases_are_said_with_the_number_needed() -> None:
    rule, _ = fit_rule(predictions(images=16))
    said = "; ".join(rule.notes)
    assert "16 validation images, 20 are needed" in said
    assert "9 are needed for a coverage of 90 %" in said
    assert "20 are needed" in said.split("sensitivity 0.95")[1]


def test_many_images_of_few_groups_are_said() -> None:
    rule, _ = fit_rule(predictions(images=120, folds=2, group_of=15))
    assert None not in rule.quantiles.values()
    assert any("groups; 9 groups are needed" in note for note in rule.notes)


def test_without_the_class_malignant_there_is_no_threshold() -> None:
    rule, _ = fit_rule(predictions(images=60, classes=("a", "b")))
    assert rule.thresholds == {}
    assert apply_rule(rule, [[0.5, 0.5]]).malignant == {}
    table = predictions(images=60)
    rule, _ = fit_rule(table[(table["subset"] == "test") | (table["label"] != "malignant")])
    assert rule.thresholds == {}
    assert "the validation images hold no malignant" in rule.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "values that cannot be"),
        ({"alpha": 1.5}, "values that cannot be"),
        ({"quantiles": {"benign": 0.5}}, "do not fit its classes"),
        ({"quantiles": {"benign": 0.5, "malignant": math.nan, "normal": 1}}, "values that cannot be"),
        ({"classes": None}, "cannot be read"),
        ({"thresholds": {"a": "x"}}, "cannot be read"),
    ],
)
def test_a_damaged_rule_is_refused(change: dict[str, object], message: str) -> None:
    content = fit_rule(predictions(images=60))[0].as_dict() | change
    with pytest.raises(SonobreastError, match=message):
        rule_from(content)


def test_what_is_no_probability_is_refused() -> None:
    rule, _ = fit_rule(predictions(images=60))
    for wrong, message in (([[0.5, 0.5]], "the shape"), ([[2.0, -1.0, 0.0]], "no probabilities")):
        with pytest.raises(SonobreastError, match=message):
            apply_rule(rule, wrong)
    with pytest.raises(SonobreastError, match="no probabilities"):
        apply_rule(rule, [[math.nan, 0.5, 0.5]])


def test_tables_that_cannot_give_a_rule() -> None:
    table = predictions(images=60)
    with pytest.raises(SonobreastError, match="no predictions of validation"):
        fit_rule(table[table["subset"] != "validation"])
    with pytest.raises(SonobreastError, match="2 configurations"):
        fit_rule(pd.concat([table, predictions(images=60, optimizer="sgdm")]))
    with pytest.raises(SonobreastError, match="one group"):
        fit_rule(table.assign(group="one"))
