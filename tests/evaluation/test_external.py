"""What is said of another hospital: frozen thresholds, drops with the right sign, recalibration that recovers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.external import (
    analyse,
    averaged,
    binary,
    difference_of_independent,
    fit_recalibration,
    lesion_sizes,
    recalibration,
    sentences,
    threshold_for_sensitivity,
)
from sonobreast.evaluation.intervals import wilson


def cases(
    n: int, signal: float, *, seed: int = 0, prevalence: float = 0.3, classes: int = 3, **extra: Any
) -> pd.DataFrame:
    """Images whose malignant probability follows the truth with a given strength; calibrated when drawn so."""
    rng = np.random.default_rng(seed)
    label = rng.random(n) < prevalence
    z = rng.normal(size=n) + signal * label
    # P(malignant | z) for two normals a distance apart
    p = expit(signal * z - signal**2 / 2 + math.log(prevalence / (1 - prevalence)))
    rest = 1 - p
    table = pd.DataFrame(
        {
            "image": [f"{seed}-{i:04d}" for i in range(n)],
            "group": [f"{seed}-{i:04d}" for i in range(n)],
            "label": np.where(label, "malignant", "benign"),
            "p_benign": rest * (0.9 if classes == 3 else 1.0),
            "p_malignant": p,
            **({"p_normal": rest * 0.1} if classes == 3 else {}),
            **extra,
        }
    )
    columns = [c for c in table if str(c).startswith("p_")]
    return table.assign(predicted=[str(columns[k])[2:] for k in table[columns].to_numpy().argmax(1)])


@pytest.mark.parametrize("sensitivity", [0.5, 0.8, 0.95, 1.0])
def test_the_threshold_is_the_largest_that_finds_enough(sensitivity: float) -> None:
    rng = np.random.default_rng(3)
    score, malignant = rng.random(60), rng.random(60) < 0.4
    cut = threshold_for_sensitivity(score, malignant, sensitivity)
    cancers = score[malignant]
    assert np.mean(cancers >= cut) >= sensitivity
    above = np.sort(cancers[cancers > cut])
    assert not len(above) or np.mean(cancers >= above[0]) < sensitivity
    assert cut in cancers


def test_a_threshold_needs_a_cancer() -> None:
    with pytest.raises(SonobreastError, match="no cancer"):
        threshold_for_sensitivity(np.ones(4), np.zeros(4, bool), 0.9)


def test_runs_are_averaged_image_by_image() -> None:
    one, other = cases(20, 1.0), cases(20, 1.0)
    other["p_malignant"] = 1 - one["p_malignant"]
    other["p_benign"] = one["p_malignant"]
    other["p_normal"] = 0.0
    found = averaged(pd.concat([one, other]))
    assert list(found["image"]) == sorted(one["image"])
    np.testing.assert_allclose(found["p_malignant"], 0.5)
    assert set(found["predicted"]) == {"malignant"}  # .5 against .45 or less


def test_decision_and_threshold_are_two_things() -> None:
    table = cases(50, 1.5)
    assert (binary(table).predicted == (table["predicted"] == "malignant")).all()
    assert (binary(table, 0.1).predicted == (table["p_malignant"] >= 0.1)).all()
    assert binary(table, 0.0).predicted.all()


def found(external: pd.DataFrame, internal: pd.DataFrame | None = None) -> dict[str, Any]:
    own = cases(400, 2.5, seed=7) if internal is None else internal
    return analyse(external, own, cases(200, 2.5, seed=8), resamples=400)


def test_a_drop_is_internal_minus_external() -> None:
    worse = found(cases(300, 0.5, seed=1))["drop"]["decision"]["auc_malignant"]
    assert worse["low"] > 0.1
    assert worse["estimate"] == pytest.approx(worse["estimate"])
    same = found(cases(300, 2.5, seed=2))["drop"]["decision"]["auc_malignant"]
    assert same["low"] < 0 < same["high"]
    better = found(cases(300, 2.5, seed=2), cases(400, 0.5, seed=7))["drop"]["decision"]["auc_malignant"]
    assert better["high"] < 0


def test_the_interval_of_a_drop_is_as_wide_as_two_independent_sets_make_it() -> None:
    """Variance of a difference of independent figures is the sum of theirs."""
    result = found(cases(250, 1.5, seed=4), cases(250, 1.5, seed=5))
    width = {k: v["high"] - v["low"] for k, v in (
        ("a", result["internal"]["decision"]["auc_malignant"]),
        ("b", result["external"]["decision"]["auc_malignant"]),
        ("drop", result["drop"]["decision"]["auc_malignant"]),
    )}  # fmt: skip
    assert width["drop"] == pytest.approx(math.hypot(width["a"], width["b"]), rel=0.2)


def test_the_difference_of_two_shares_is_newcombe_s() -> None:
    """Newcombe 1998, table II, (a): 56/70 - 48/80 by method 10 (Wilson's intervals): .0524 to .3339."""
    a, b = wilson(56, 70), wilson(48, 80)
    gap = difference_of_independent(a.as_dict(), b.as_dict())
    assert (gap["low"], gap["high"]) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    back = difference_of_independent(b.as_dict(), a.as_dict())
    assert (back["low"], back["high"]) == pytest.approx((-gap["high"], -gap["low"]))


def test_a_side_whose_resamples_do_not_vary_widens_the_difference() -> None:
    few = cases(12, 0.0, seed=9)
    few["label"] = ["malignant"] * 4 + ["benign"] * 8
    few.loc[:3, "p_malignant"], few.loc[:3, "p_benign"], few.loc[:3, "p_normal"] = 1.0, 0.0, 0.0
    drop = found(few)["drop"]["threshold"]["sensitivity_malignant"]
    assert drop["high"] - drop["low"] > 0.3  # four of four cancers found say little
    assert difference_of_independent({"estimate": None, "low": None, "high": None}, drop)["estimate"] is None


def test_the_threshold_comes_from_validation_alone() -> None:
    validation = cases(200, 2.5, seed=8)
    cut = threshold_for_sensitivity(
        validation["p_malignant"].to_numpy(), (validation["label"] == "malignant").to_numpy(), 0.95
    )
    for seed in (1, 2):
        assert found(cases(100, 1.0, seed=seed))["threshold"]["value"] == cut


def test_classes_that_are_absent_are_named_and_taken_away() -> None:
    table = cases(200, 1.5)
    table.loc[:19, ["p_benign", "p_malignant", "p_normal"]] = [0.3, 0.1, 0.6]
    table.loc[:19, "predicted"] = "normal"
    table.loc[:19, "label"] = "benign"
    accuracy = found(table)["external"]["accuracy"]
    assert accuracy["absent"] == ["normal"]
    assert accuracy["present_classes"]["estimate"] == pytest.approx(accuracy["all_classes"]["estimate"] + 0.1)


def test_a_label_beyond_the_classes_counts_as_not_malignant() -> None:
    table = cases(120, 1.5, classes=2)
    table.loc[:29, "label"] = "normal"
    own, validation = cases(300, 2.0, seed=7, classes=2), cases(200, 2.0, seed=8, classes=2)
    result = analyse(table, own, validation, resamples=200)
    assert result["external"]["accuracy"]["left_out"] == 30
    assert result["external"]["images"] == 120
    assert result["external"]["malignant"] == int((table["label"] == "malignant").sum())


def test_one_side_only_has_a_defined_answer() -> None:
    table = cases(30, 1.0)
    table["label"] = "benign"
    result = found(table)
    assert result["external"]["decision"]["auc_malignant"]["estimate"] is None
    assert any("one side" in s for s in sentences(result, "X"))


def test_a_model_without_malignancy_is_refused() -> None:
    table = cases(30, 1.0).rename(columns={"p_malignant": "p_bad"})
    with pytest.raises(SonobreastError, match="none is malignant"):
        analyse(table, table, table)


def test_subgroups_divide_all_images() -> None:
    table = cases(150, 1.5, device=["a", "b", ""] * 50, birads=["4"] * 150)
    rows = found(table)["subgroups"]
    assert {r["by"] for r in rows} == {"device"}  # one BI-RADS category alone is no subgroup
    assert sum(r["images"] for r in rows) == 150
    assert [r["value"] for r in rows] == ["a", "b", "not known"]


def test_lesion_sizes_are_in_one_unit() -> None:
    area = math.pi * 50.0**2  # equivalent diameter of 100 px
    table = pd.DataFrame(
        {"lesion_px": [area, area, None, 0], "spacing_mm": [0.05, 0.15, None, 0.1], "image_px": [200000] * 4}
    )
    assert list(lesion_sizes(table)) == ["below 10 mm", "10 to 20 mm", "", ""]
    table["spacing_mm"] = [0.05, None, None, 0.1]
    assert list(lesion_sizes(table)) == ["2 to 8 % of the image"] * 2 + ["", ""]


def test_recalibration_is_the_penalised_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 4000)
    y = (rng.random(4000) < expit(0.8 + 0.5 * logit(p))).astype(float)
    a, b = fit_recalibration(p, y)
    assert (a, b) == pytest.approx((0.8, 0.5), abs=0.12)
    plain = LogisticRegression(C=1e9).fit(logit(p)[:, None], y)
    assert (a, b) == pytest.approx((plain.intercept_[0], plain.coef_[0, 0]), abs=0.02)  # the prior hardly counts here
    few_a, few_b = fit_recalibration(p[:0], y[:0])
    assert (few_a, few_b) == pytest.approx((0.0, 1.0), abs=1e-4)
    a, b = fit_recalibration(np.asarray([0.2, 0.3, 0.6]), np.zeros(3))
    assert np.isfinite([a, b]).all()
    assert a < 0


def test_local_cases_mend_a_shift_and_spoil_nothing_that_is_right() -> None:
    right = cases(800, 1.5, seed=11)
    shifted = right.assign(p_malignant=expit(logit(right["p_malignant"]) * 2.0 + 2.0))
    curve = {r["n"]: r["log_loss"]["mean"] for r in recalibration(shifted, draws=40)}
    assert list(curve) == [0, 10, 20, 40, 80, 160, 320]
    assert curve[320] < curve[20] < curve[0]
    kept = {r["n"]: r["log_loss"]["mean"] for r in recalibration(right, draws=40)}
    assert kept[160] < kept[0] + 0.02
    assert curve[320] == pytest.approx(kept[0], abs=0.02)


def test_the_curve_says_how_many_images_whole_groups_bring() -> None:
    table = cases(90, 1.5, seed=3)
    rows = recalibration(table.assign(group=[f"g{i // 15}" for i in range(90)]), draws=10)
    assert [(r["n"], r["used"], r["judged"]) for r in rows] == [(0, 0, 90), (10, 15, 75), (20, 30, 60), (40, 45, 45)]
    # one patient of 40 images is 40 cases, whatever was asked for; and of two of them too few would remain
    table = cases(100, 1.5, seed=3)
    rows = recalibration(table.assign(group=[f"g{i // 40}" for i in range(80)] + ["g1"] * 20), draws=10)
    assert [r["n"] for r in rows] == [0, 10]
    assert rows[1]["judged"] + rows[1]["used"] == 100
    rows = recalibration(table.assign(group=["g0"] * 85 + [f"h{i}" for i in range(15)]), draws=40)
    assert all(r["judged"] >= 20 for r in rows)


def test_few_images_give_no_curve() -> None:
    assert [r["n"] for r in recalibration(cases(25, 1.0), draws=10)] == [0]
    assert [r["n"] for r in recalibration(cases(45, 1.0), draws=10)] == [0, 10, 20]
