"""From the table of masks to figures: against pandas, a plain loop, and the intervals of classification figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.tables import masks, predictions, without

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.glossary import METRICS, SEGMENTATION_METRICS, describe
from sonobreast.evaluation.intervals import bootstrap, wilson_limits
from sonobreast.evaluation.metrics import Scored
from sonobreast.evaluation.segmentation_summary import (
    ordered_classes,
    read_segmentation,
    segmentation_metrics,
    weighted_median,
)
from sonobreast.evaluation.summary import is_complete, study_metrics
from sonobreast.records import SEGMENTATION_COLUMNS, write_json


def estimates(metrics: dict[str, Any]) -> dict[str, float | None]:
    return {m: None if f is None else f["estimate"] for m, f in metrics.items()}


# ---- figures


def test_figures_are_those_of_pandas() -> None:
    table = masks(predictions(images=150), spacing=0.08)
    found = segmentation_metrics(table, resamples=200)
    assert found["images"] == table["truth"].value_counts().to_dict()
    lesion, empty = table[table["truth"] == "lesion"], table[table["truth"] == "empty"]
    parts = [(lesion, found["metrics"])]
    parts += [(lesion[lesion["label"] == c], found["per_class"][c]["metrics"]) for c in ("benign", "malignant")]
    for rows, metrics in parts:
        expected = {m: rows[m].mean() for m in ("dice", "iou", "hd95_px", "hd95_mm")}
        expected |= {"median_dice": rows["dice"].median(), "missed": (rows["predicted_area_px"] == 0).mean()}
        assert estimates(metrics) == pytest.approx(expected)
        assert metrics["dice"]["n"] == len(rows)
        assert metrics["hd95_px"]["n"] == rows["hd95_px"].notna().sum() < len(rows)
        assert metrics["hd95_mm"]["n"] == rows["hd95_mm"].notna().sum() < metrics["hd95_px"]["n"]
        for interval in metrics.values():
            assert interval["low"] < interval["estimate"] < interval["high"]
    assert list(found["per_class"]) == ["benign", "malignant"]
    assert estimates(found["empty"]) == pytest.approx(
        {
            "false_positive": (empty["predicted_area_px"] > 0).mean(),
            "false_positive_share": empty["false_positive_share"].mean(),
        }
    )


def test_empty_and_unknown_images_do_not_move_the_dice() -> None:
    table = masks(predictions(images=120))
    found = segmentation_metrics(table, resamples=200)["metrics"]
    table.loc[table["truth"] == "empty", ["predicted_area_px", "false_positive_share"]] = [9999, 0.9999]
    table.loc[table["truth"] == "unknown", "predicted_area_px"] = 9999
    assert segmentation_metrics(table, resamples=200)["metrics"] == found
    fewer = segmentation_metrics(table[table["truth"] == "lesion"], resamples=200)
    assert fewer["images"] == {"lesion": found["dice"]["n"], "empty": 0, "unknown": 0}
    assert estimates(fewer["metrics"]) == pytest.approx(estimates(found))
    assert fewer["empty"]["false_positive"]["estimate"] is None


def test_a_missed_lesion_counts_zero_in_dice_and_not_at_all_in_the_distance() -> None:
    table = masks(predictions(images=100))
    table = table[table["truth"] == "lesion"].reset_index(drop=True)
    before = estimates(segmentation_metrics(table, resamples=100)["metrics"])
    found = table.index[table["predicted_area_px"] > 0][0]
    lost, distance = table.loc[found, "dice"], table.loc[found, "hd95_px"]
    table.loc[found, ["dice", "iou", "predicted_area_px"]] = 0
    table.loc[found, ["hd95_px", "hd95_mm"]] = np.nan
    after = estimates(segmentation_metrics(table, resamples=100)["metrics"])
    n = len(table)
    assert after["dice"] == pytest.approx(before["dice"] - lost / n)  # type: ignore[operator]
    assert after["missed"] == pytest.approx(before["missed"] + 1 / n)  # type: ignore[operator]
    k = round(n * (1 - before["missed"]))  # type: ignore[operator]
    assert after["hd95_px"] == pytest.approx((k * before["hd95_px"] - distance) / (k - 1))  # type: ignore[operator]


def test_without_a_spacing_there_are_no_millimetres() -> None:
    found = segmentation_metrics(masks(predictions()), resamples=100)
    assert found["metrics"]["hd95_mm"] is None
    assert found["per_class"]["benign"]["metrics"]["hd95_mm"] is None
    assert found["metrics"]["hd95_px"]["estimate"] > 0


# ---- agreement of class and mask

CALLED = [
    # called, drawn, truly
    ("malignant", 0, "malignant"),
    ("malignant", 5, "malignant"),
    ("malignant", 5, "benign"),
    ("benign", 0, "malignant"),
    ("benign", 0, "benign"),
    ("benign", 7, "benign"),
    ("normal", 9, "malignant"),
    ("normal", 0, "normal"),
    ("normal", 0, "normal"),
    ("normal", 0, "benign"),
]


def agreement_table(rows: list[tuple[str, int, str]]) -> pd.DataFrame:
    table = predictions(images=len(rows))
    table = masks(table).sort_values("image").reset_index(drop=True)
    table["predicted"] = [r[0] for r in rows]
    table["predicted_area_px"] = [r[1] for r in rows]
    table["label"] = [r[2] for r in rows]
    return table


def test_class_and_mask_that_contradict_each_other_are_counted() -> None:
    found = segmentation_metrics(agreement_table(CALLED), resamples=100)["agreement"]
    kinds = {k["what"]: (k["count"], k["of"], k["share"]["estimate"]) for k in found["kinds"]}
    assert kinds == {
        "benign but no mask": (2, 3, pytest.approx(2 / 3)),
        "malignant but no mask": (1, 3, pytest.approx(1 / 3)),
        "normal but a mask": (1, 4, pytest.approx(1 / 4)),
    }
    assert found["disagree"]["estimate"] == pytest.approx(4 / 10)
    assert found["accuracy_agree"]["estimate"] == pytest.approx(4 / 6)
    assert found["accuracy_disagree"]["estimate"] == pytest.approx(2 / 4)


def test_classes_of_ones_own_are_lesions_unless_they_are_called_normal() -> None:
    own = {"malignant": "scar", "benign": "cyst", "normal": "Normal"}
    rows = [(own[a], b, own[c]) for a, b, c in CALLED]
    found = segmentation_metrics(agreement_table(rows), resamples=100)["agreement"]
    kinds = {k["what"]: (k["count"], k["of"]) for k in found["kinds"]}
    assert kinds == {"scar but no mask": (1, 3), "cyst but no mask": (2, 3), "Normal but a mask": (1, 4)}
    assert ordered_classes(["b", "normal", "a", "benign"]) == ["benign", "normal", "a", "b"]


def test_where_all_agree_there_is_no_accuracy_of_the_others() -> None:
    rows = [r for r in CALLED if (r[0] == "normal") == (r[1] == 0)] * 3
    found = segmentation_metrics(agreement_table(rows), resamples=100)["agreement"]
    assert found["accuracy_disagree"]["estimate"] is None
    assert found["disagree"]["low"] == 0
    assert found["disagree"]["high"] == pytest.approx(wilson_limits(0.0, 18, 0.95)[1])
    for kind in found["kinds"]:
        assert kind["count"] == 0


# ---- repeats, groups, intervals


def test_repeats_and_seeds_are_no_further_images() -> None:
    table = masks(predictions(folds=3, repeats=2, seeds=(0, 1), images=90))
    found = segmentation_metrics(table, resamples=200)
    assert (found["n"], found["repeats"], found["groups"]) == (90, 4, 90)
    lesion = table[table["truth"] == "lesion"]
    assert found["metrics"]["dice"]["n"] == lesion["image"].nunique()
    assert found["metrics"]["dice"]["estimate"] == pytest.approx(lesion["dice"].mean())
    assert found["metrics"]["hd95_px"]["estimate"] == pytest.approx(lesion["hd95_px"].mean())
    by_repeat = lesion.groupby(["repeat", "seed"])["dice"].median()
    assert found["metrics"]["median_dice"]["estimate"] == pytest.approx(by_repeat.mean())
    kinds = {k["what"]: k for k in found["agreement"]["kinds"]}
    called = table[table["predicted"] == "malignant"]
    assert kinds["malignant but no mask"]["of"] == pytest.approx(len(called) / 4)
    assert kinds["malignant but no mask"]["count"] == pytest.approx((called["predicted_area_px"] == 0).sum() / 4)
    same = pd.concat([masks(predictions()).assign(seed=s) for s in range(3)])
    once, thrice = (segmentation_metrics(t, resamples=200) for t in (masks(predictions()), same))
    for m, interval in once["metrics"].items():
        if interval is not None:
            assert thrice["metrics"][m]["low"] == pytest.approx(interval["low"]), m


def test_the_order_of_the_rows_does_not_matter() -> None:
    table = masks(predictions(folds=3, group_of=2), spacing=0.1)
    shuffled = table.sample(frac=1, random_state=3)
    assert segmentation_metrics(table, resamples=150) == segmentation_metrics(shuffled, resamples=150)


def test_a_share_has_the_interval_of_the_classification_figures() -> None:
    """Missed lesions against the accuracy of a classifier that is right where the lesion is missed."""
    table = masks(predictions(images=120, group_of=3)).sort_values("image")
    table = table[table["truth"] == "lesion"]
    found = segmentation_metrics(table, resamples=500)["metrics"]["missed"]
    missed = (table["predicted_area_px"] == 0).to_numpy().astype(int)
    classifier = Scored(np.ones(len(missed), int), missed, np.full((len(missed), 2), 0.5), ("a", "b"))
    expected = bootstrap([classifier], table["group"], metrics=["accuracy"], resamples=500, method="bca")[
        "accuracy"
    ].as_dict()
    assert found == pytest.approx(expected, nan_ok=True)


def test_intervals_equal_a_plain_loop_over_groups() -> None:
    table = masks(predictions(images=80, group_of=4)).sort_values("image").reset_index(drop=True)
    found = segmentation_metrics(table, resamples=300)["metrics"]["median_dice"]
    names, codes = np.unique(table["group"], return_inverse=True)
    chosen = np.random.default_rng(0).integers(len(names), size=(300, len(names)))
    values = []
    for drawn in chosen:
        rows = np.concatenate([np.flatnonzero(codes == g) for g in drawn])
        values.append(np.nanmedian(table["dice"].to_numpy()[rows]))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    assert found["method"] == "cluster bootstrap percentile"


def test_groups_widen_the_interval() -> None:
    """Four copies of every image in one group say no more than one."""
    table = masks(predictions(images=60))
    copies = pd.concat([table.assign(image=table["image"] + f" copy {i}") for i in range(4)], ignore_index=True)
    alone = copies.assign(group=copies["image"])
    once, grouped, naive = (segmentation_metrics(t, resamples=400)["metrics"]["dice"] for t in (table, copies, alone))
    assert (grouped["low"], grouped["high"]) == pytest.approx((once["low"], once["high"]), abs=1e-9)
    assert naive["high"] - naive["low"] < 0.65 * (once["high"] - once["low"])


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_the_weighted_median_is_that_of_repeated_cases(n: int) -> None:
    rng = np.random.default_rng(n)
    values = np.round(rng.random(n), 1)  # ties
    values[rng.random(n) < 0.2] = np.nan
    weight = rng.integers(0, 4, (40, n)).astype(float)
    weight[0] = 0
    for w, found in zip(weight, weighted_median(values, weight), strict=True):
        repeated = np.repeat(values, w.astype(int))
        repeated = repeated[np.isfinite(repeated)]
        assert found == pytest.approx(np.median(repeated) if len(repeated) else math.nan, nan_ok=True)


def test_a_failed_fold_is_left_out_and_named() -> None:
    table = without(masks(predictions(folds=3, seeds=(0, 1))), fold=1, seed=1)
    found = segmentation_metrics(table, resamples=100)
    assert (found["repeats"], found["left_out"]) == (1, ["repeat 0, seed 1"])
    assert found["n"] == 60


def test_masks_that_changed_between_runs_are_refused() -> None:
    table = masks(predictions(seeds=(0, 1)))
    table.loc[table.index[(table["seed"] == 1) & (table["truth"] == "empty")][0], "truth"] = "unknown"
    with pytest.raises(SonobreastError, match="other true masks"):
        segmentation_metrics(table, resamples=100)


# ---- in the study's metrics.json


def test_a_network_that_does_not_segment_has_no_entry(tmp_path: Path) -> None:
    table = pd.concat([predictions(optimizer=o, noise=i) for i, o in enumerate(("adam", "sgdm", "sgd"))])
    drawn = masks(table[table["optimizer"] != "sgdm"])
    content = study_metrics(table, None, drawn, resamples=200)
    assert [c["segmentation"] is None for c in content["configurations"]] == [False, True, False]
    expected = segmentation_metrics(masks(predictions(optimizer="adam")), resamples=200)
    assert content["configurations"][0]["segmentation"] == expected
    assert len(content["segmentation_comparisons"]["pairs"]) == 1
    write_json(tmp_path / "metrics.json", content)
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    json.loads((tmp_path / "metrics.json").read_text())


def test_an_old_file_is_complete_unless_there_are_masks() -> None:
    content = study_metrics(predictions(), resamples=100)
    assert content["configurations"][0]["segmentation"] is None
    assert content["segmentation_comparisons"] is None
    assert is_complete(content, segments=True)
    del content["configurations"][0]["segmentation"], content["segmentation_comparisons"]
    assert is_complete(content)
    assert not is_complete(content, segments=True)


def test_the_glossary_knows_the_figures() -> None:
    found = segmentation_metrics(masks(predictions(), spacing=1.0), resamples=100)
    for name in (*found["metrics"], *found["empty"]):
        metric = describe(name)
        assert metric.meaning.endswith(".")
        assert metric.source
    assert not set(METRICS) & set(SEGMENTATION_METRICS)


# ---- reading


def written(folder: Path, table: pd.DataFrame) -> Path:
    table.to_csv(folder / "segmentation.csv", index=False)
    return folder / "segmentation.csv"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    table = masks(predictions(folds=2), spacing=0.1)
    table.loc[0, ["image", "group"]] = ["NA", "null"]
    found = read_segmentation(written(tmp_path, table))
    assert list(found.columns) == [*SEGMENTATION_COLUMNS, "schema_version"]
    pd.testing.assert_frame_equal(
        found[list(SEGMENTATION_COLUMNS)], table[list(SEGMENTATION_COLUMNS)], check_dtype=False
    )


@pytest.mark.parametrize(
    ("column", "of", "value"),
    [
        ("dice", "lesion", 1.2),
        ("dice", "lesion", np.nan),
        ("dice", "empty", 1.0),  # the mistake that this table is made to avoid
        ("dice", "unknown", 0.5),
        ("iou", "lesion", -0.1),
        ("hd95_px", "lesion", -1.0),
        ("false_positive_share", "empty", 1.5),
        ("false_positive_share", "lesion", 0.1),
        ("truth", "lesion", "full"),
        ("predicted_area_px", "unknown", np.nan),
        ("dice", "lesion", "much"),
    ],
)
def test_rows_that_cannot_be_are_refused(column: str, of: str, value: Any, tmp_path: Path) -> None:
    table = masks(predictions())
    where = table.index[table["truth"] == of][0]
    table[column] = table[column].astype(object)
    table.loc[where, column] = value
    with pytest.raises(SonobreastError) as caught:
        read_segmentation(written(tmp_path, table))
    assert "segmentation.csv" in str(caught.value)
    assert "run the study again" in caught.value.remedy


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    table = masks(predictions())
    for bad, said in (
        (table.drop(columns="iou"), "iou"),
        (table.iloc[:0], "no predicted masks"),
        (table.assign(schema_version=99), "schema_version"),
    ):
        with pytest.raises(SonobreastError, match=said):
            read_segmentation(written(tmp_path, bad))
    with pytest.raises(SonobreastError, match="cannot be read"):
        read_segmentation(tmp_path / "none.csv")
