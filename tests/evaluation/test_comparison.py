"""Configurations against each other: the right cases, the right test, and no difference where none is shown."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from tests.tables import predictions, without

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.compare import DeLong, McNemar, mcnemar_exact, paired_difference
from sonobreast.evaluation.comparison import (
    HEADLINE_METRICS,
    beside,
    compare_all,
    compare_two,
    find,
    resamples_for,
)
from sonobreast.evaluation.predictions import repeats_of


def two(**options: object) -> pd.DataFrame:
    """Net-adam, and Net-sgdm, which is worse."""
    return pd.concat(
        [
            predictions(**{"strength": 0.9, **options}),  # type: ignore[arg-type]
            predictions(**{"strength": 0.2, "noise": 1, **options}, optimizer="sgdm"),  # type: ignore[arg-type]
        ]
    )


def part(table: pd.DataFrame, optimizer: str) -> pd.DataFrame:
    return table[table["optimizer"] == optimizer]


def relabelled(table: pd.DataFrame, wrong: list[int]) -> pd.DataFrame:
    """Every image right, but for these."""
    classes = np.asarray(["benign", "malignant", "normal"])
    label = table["label"].map({c: i for i, c in enumerate(classes)}).to_numpy()
    number = table["image"].str.split().str[1].astype(int)
    said = (label + number.isin(wrong).to_numpy()) % 3
    p = {f"p_{c}": np.where(said == k, 0.8, 0.1) for k, c in enumerate(classes)}
    return table.assign(**p, predicted=classes[said])


def test_the_differences_are_those_of_the_paired_bootstrap() -> None:
    table = two(folds=3, repeats=2, seeds=(0, 1), group_of=2)
    found = compare_two(table, "Net-adam", "Net-sgdm", resamples=300).comparisons[0]
    (a, group, _), (b, _, _) = (repeats_of(part(table, o)) for o in ("adam", "sgdm"))
    expected = paired_difference(a, b, group, metrics=HEADLINE_METRICS, resamples=800)
    assert found.differences == expected
    assert (found.n, found.groups, found.repeats, found.left_out) == (60, 30, 4, ())


def test_swapping_a_and_b_turns_the_sign_only() -> None:
    table = two(group_of=2)
    there = compare_two(table, "Net-adam", "Net-sgdm", resamples=300).comparisons[0]
    back = compare_two(table, "Net-sgdm", "Net-adam", resamples=300).comparisons[0]
    for m, test in there.tests.items():
        assert back.differences[m].interval.estimate == pytest.approx(-there.differences[m].interval.estimate)
        assert back.differences[m].interval.low == pytest.approx(-there.differences[m].interval.high)
        assert back.tests[m].p_value == pytest.approx(test.p_value)
        assert back.tests[m].p_holm == pytest.approx(test.p_holm)


def test_holm_is_over_all_metrics_of_the_pair() -> None:
    found = compare_two(two(group_of=2), "Net-adam", "Net-sgdm", resamples=300)
    p = sorted(t.p_value for t in found.comparisons[0].tests.values())
    assert found.tests == len(p) == len(HEADLINE_METRICS)
    expected = np.minimum(1, np.maximum.accumulate([v * (len(p) - i) for i, v in enumerate(p)]))
    assert sorted(t.p_holm for t in found.comparisons[0].tests.values()) == pytest.approx(list(expected))


def test_independent_images_and_one_run_get_the_exact_tests() -> None:
    table = two()
    found = compare_two(table, "Net-adam", "Net-sgdm", resamples=200).comparisons[0]
    (a, _, _), (b, _, _) = (repeats_of(part(table, o)) for o in ("adam", "sgdm"))
    assert found.mcnemar == mcnemar_exact(a[0].correct, b[0].correct)
    assert isinstance(found.delong, DeLong)
    assert found.delong.interval.estimate == pytest.approx(found.differences["auc_malignant"].interval.estimate)
    assert isinstance(found.mcnemar, McNemar)
    assert found.tests["accuracy"].p_value == found.mcnemar.p_value
    assert found.tests["accuracy"].method == "exact McNemar"


@pytest.mark.parametrize(
    ("options", "why"), [({"group_of": 2}, "30 groups"), ({"seeds": (0, 1)}, "2 repeats or seeds")]
)
def test_exact_tests_say_why_they_are_not_applicable(options: dict[str, object], why: str) -> None:
    found = compare_two(two(**options), "Net-adam", "Net-sgdm", resamples=200).comparisons[0]
    for test in (found.mcnemar, found.delong):
        assert isinstance(test, str)
        assert test.startswith("not applicable")
        assert why in test
    assert found.tests["accuracy"].method != "exact McNemar"


def test_without_a_malignant_class_there_is_no_delong() -> None:
    table = two(classes=("a", "b"))
    found = compare_two(table, "Net-adam", "Net-sgdm", resamples=200)
    assert "auc_malignant" not in found.metrics
    assert "malignant" in str(found.comparisons[0].delong)
    assert compare_all(table, resamples=200).metrics == ("accuracy",)


@pytest.mark.parametrize("group_of", [1, 2])
def test_three_images_cannot_show_a_difference(group_of: int) -> None:
    """The bootstrap alone would: it never sees the other model ahead in most resamples."""
    sure = predictions(group_of=group_of)
    table = pd.concat([relabelled(sure, []), relabelled(sure, [0, 10, 20]).assign(optimizer="sgdm")])
    found = compare_two(table, "Net-adam", "Net-sgdm", metrics=["accuracy"]).comparisons[0]
    assert found.differences["accuracy"].p_value < 0.2
    assert found.tests["accuracy"].p_value == pytest.approx(0.25)


def test_a_group_in_which_each_is_right_once_separates_nobody() -> None:
    sure = predictions(group_of=2)
    a, b = relabelled(sure, [2, 6, 40]), relabelled(sure, [3, 7, 41, 10, 20, 30]).assign(optimizer="sgdm")
    found = compare_two(pd.concat([a, b]), "Net-adam", "Net-sgdm", metrics=["accuracy"]).comparisons[0]
    assert found.tests["accuracy"].p_value == pytest.approx(0.25)
    assert "3 group(s)" in found.tests["accuracy"].method


def test_equal_sensitivity_in_all_but_few_cancers_is_not_called_different() -> None:
    sure = predictions(group_of=2, images=80)
    cancers = sorted(set(sure[sure["label"] == "malignant"]["image"]))
    missed = [int(c.split()[1]) for c in cancers[:8:2]]
    assert len({m // 2 for m in missed}) == 4
    table = pd.concat([relabelled(sure, []), relabelled(sure, missed).assign(optimizer="sgdm")])
    found = compare_two(table, "Net-adam", "Net-sgdm", metrics=["sensitivity_malignant"]).comparisons[0]
    assert found.differences["sensitivity_malignant"].p_value < 0.125
    assert found.tests["sensitivity_malignant"].p_value == pytest.approx(0.125)


def test_a_failed_fold_leaves_its_repeat_out_of_both() -> None:
    table = two(folds=3, repeats=2, seeds=(0, 1))
    failed = without(table, optimizer="sgdm", repeat=1, seed=0, fold=2)
    found = compare_two(failed, "Net-adam", "Net-sgdm", resamples=200).comparisons[0]
    assert found.left_out == ("repeat 1, seed 0",)
    assert found.repeats == 3
    expected = compare_two(without(table, repeat=1, seed=0), "Net-adam", "Net-sgdm", resamples=200).comparisons[0]
    assert found.differences == expected.differences


def test_a_seed_that_one_never_finished_is_left_out_of_both() -> None:
    found = compare_two(without(two(seeds=(0, 1)), optimizer="adam", seed=1), "Net-adam", "Net-sgdm", resamples=200)
    assert found.comparisons[0].left_out == ("repeat 0, seed 1",)
    assert found.comparisons[0].repeats == 1


def test_configurations_without_a_common_run_are_refused() -> None:
    table = two(seeds=(0, 1))
    apart = without(without(table, optimizer="adam", seed=1), optimizer="sgdm", seed=0)
    with pytest.raises(SonobreastError, match="no repeat and seed in common") as error:
        compare_two(apart, "Net-adam", "Net-sgdm")
    assert "failed" in error.value.remedy


def test_one_broken_configuration_does_not_stop_the_other_pairs() -> None:
    table = pd.concat([two(folds=3), predictions(folds=3, optimizer="rmsprop", noise=2)])
    broken = without(table, optimizer="sgdm", fold=1)
    found = compare_all(broken, resamples=200)
    assert [(c.a[1], c.b[1]) for c in found.comparisons] == [("adam", "rmsprop")]
    assert len(found.impossible) == 2
    assert all("Net + SGDM has all its folds" in why for _, _, why in found.impossible)
    with pytest.raises(SonobreastError, match="Net \\+ SGDM has all its folds"):
        compare_two(broken, "Net-adam", "Net-sgdm")


@pytest.mark.parametrize("column", ["image", "group", "label"])
def test_other_images_are_refused(column: str) -> None:
    table = two().reset_index(drop=True)
    row = table.index[(table["optimizer"] == "sgdm") & (table["subset"] == "test")][0]
    table.loc[row, column] = "normal" if table.loc[row, column] in ("benign", "malignant") else "benign"
    with pytest.raises(SonobreastError, match="same"):
        compare_two(table, "Net-adam", "Net-sgdm", resamples=200)


KNOWN = [("ResNet50V2", "adam"), ("ResNet50V2", "sgdm"), ("Net-mini", "sgdm"), ("resnet18", "sgd"), ("ResNet18", "sgd")]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ResNet50V2-adam", 0), ("resnet50v2 + Adam", 0), ("RESNET50V2+ADAM", 0), (" ResNet50V2  sgdm", 1),
        ("net-mini-SGDM", 2), ("Net-mini + SGDM", 2), ("resnet18-sgd", 3), ("ResNet18-sgd", 4),
    ],
)  # fmt: skip
def test_a_configuration_is_found_as_a_person_writes_it(name: str, found: int) -> None:
    assert find(name, KNOWN) == KNOWN[found]


def test_an_unknown_or_ambiguous_name_gets_help() -> None:
    with pytest.raises(SonobreastError, match="no configuration") as error:
        find("ResNet50V2-adm", KNOWN)
    assert "ResNet50V2-adam" in error.value.remedy
    with pytest.raises(SonobreastError, match="2 configurations") as error:
        find("RESNET18-sgd", KNOWN)
    assert "resnet18-sgd, ResNet18-sgd" in error.value.remedy


def test_a_configuration_is_not_compared_with_itself() -> None:
    with pytest.raises(SonobreastError, match="same configuration") as error:
        compare_two(two(), "Net-adam", "net + ADAM")
    assert "Net-sgdm" in error.value.remedy
    with pytest.raises(SonobreastError, match="one configuration only"):
        compare_all(predictions())


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(SonobreastError, match="acuracy") as error:
        compare_two(two(), "Net-adam", "Net-sgdm", metrics=["acuracy"])
    assert "accuracy" in error.value.remedy


def test_all_pairs_are_one_family() -> None:
    table = pd.concat([two(), predictions(optimizer="rmsprop", noise=2, strength=0.4)])
    found = compare_all(table, resamples=300)
    assert [(c.a[1], c.b[1]) for c in found.comparisons] == [("adam", "sgdm"), ("adam", "rmsprop"), ("sgdm", "rmsprop")]
    assert found.metrics == ("accuracy", "auc_malignant")
    assert found.tests == 6
    smallest = min(t.p_value for c in found.comparisons for t in c.tests.values())
    assert min(t.p_holm for c in found.comparisons for t in c.tests.values()) == pytest.approx(6 * smallest)
    alone = compare_two(table, "Net-adam", "Net-sgdm", metrics=["accuracy"], resamples=600).comparisons[0]
    assert found.comparisons[0].differences["accuracy"] == alone.differences["accuracy"]


def test_the_same_metric_twice_counts_once() -> None:
    assert compare_two(two(), "Net-adam", "Net-sgdm", metrics=["accuracy", "accuracy"], resamples=200).tests == 1


def test_resamples_grow_with_the_family() -> None:
    assert resamples_for(1) == 2000
    for tests in (30, 150):
        assert tests * 2 / (resamples_for(tests) + 1) <= 0.02
    assert resamples_for(10**6) == 20_000


def test_a_figure_that_is_not_defined_is_no_member_of_the_family() -> None:
    table = two()
    test = table["subset"] == "test"
    only = table[~(test & (table["label"] != "malignant"))]
    found = compare_two(only, "Net-adam", "Net-sgdm", metrics=["accuracy", "specificity_malignant"], resamples=200)
    assert found.tests == 1
    assert math.isnan(found.comparisons[0].tests["specificity_malignant"].p_holm)
    plain = found.as_dict()["pairs"][0]["metrics"]["specificity_malignant"]
    assert plain["p_holm"] is None


def test_two_studies_beside_each_other_are_one() -> None:
    table = two(folds=3)
    joined = beside(part(table, "adam"), part(table, "sgdm"))
    [one] = compare_two(table, "Net-adam", "Net-sgdm", metrics=["auc_malignant"]).comparisons
    [other] = compare_two(joined, "Net-adam", "Net-sgdm", metrics=["auc_malignant"]).comparisons
    assert one.as_dict() == other.as_dict()


def test_the_same_configuration_of_another_study_has_a_name_of_its_own() -> None:
    again = predictions(strength=0.4, noise=5)
    [pair] = compare_all(beside(predictions(), again), metrics=["accuracy"]).comparisons
    assert (pair.a, pair.b) == (("Net", "adam"), ("Net (other)", "adam"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (predictions(images=50), "not tested on the same images"),
        (predictions(folds=3), "not tested on the same images"),
        (predictions(seed=1), "not tested on the same images"),
        (predictions(group_of=2), "not tested on the same images"),
        (predictions(classes=("benign", "malignant")), "the classes differ"),
    ],
)
def test_studies_of_other_images_are_not_paired(other: pd.DataFrame, said: str) -> None:
    with pytest.raises(SonobreastError, match=said):
        beside(predictions(), other)
