"""From the table of predicted masks to the figures of each configuration, with intervals.

Three kinds of images are told apart. Those with an outlined lesion give Dice, intersection over union, distances and
the share of missed lesions. Those without a lesion give false positives only. Where nobody knows what is lesion,
nothing is scored. Whether predicted class and predicted mask agree is asked of all images, for that needs no truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.intervals import Interval, interval_of
from sonobreast.evaluation.metrics import Floats, Ints, group_codes
from sonobreast.evaluation.predictions import whole_tables
from sonobreast.evaluation.resampling import draw_statistics
from sonobreast.records import LESION_CLASSES, MASK_COLUMNS, SEGMENTATION_COLUMNS, check_version

TRUTHS = ("lesion", "empty", "unknown")
_NUMBERS = MASK_COLUMNS[1:]
_ANEW = "run the study again"


def read_segmentation(path: Path) -> pd.DataFrame:
    """Read a ``segmentation.csv``, of a run or of a study; an empty cell is NaN.

    Raises
    ------
    SonobreastError
        If it is missing, lacks a column, has no rows, holds what cannot be (a Dice above 1, a lesion without a Dice),
        or was written by a newer version.
    """
    try:
        # Names such as "NA" and "null" are classes and images like others.
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
        for column in (*(c for c in _NUMBERS if c in table), *(c for c in ("repeat", "fold", "seed") if c in table)):
            table[column] = pd.to_numeric(table[column].replace("", np.nan))
    except (OSError, ValueError) as error:
        raise SonobreastError(f"the masks' table cannot be read ({error})", file=path, remedy=_ANEW) from error
    missing = [c for c in (*SEGMENTATION_COLUMNS, "schema_version") if c not in table]
    if missing:
        raise SonobreastError(f"column {', '.join(missing)} is missing", file=path, remedy=_ANEW)
    if table.empty:
        raise SonobreastError("there are no predicted masks", file=path, remedy="run the study to its end")
    check_version(table["schema_version"].iloc[0], path)
    wrong = ~table["truth"].isin(TRUTHS) | table["predicted_area_px"].isna()
    wrong |= (table["truth"] == "lesion") != table["dice"].notna()
    wrong |= (table["truth"] == "empty") != table["false_positive_share"].notna()
    for column in ("dice", "iou", "false_positive_share"):
        wrong |= (table[column] < 0) | (table[column] > 1)
    wrong |= (table["hd95_px"] < 0) | (table["hd95_mm"] < 0)
    if wrong.any():
        raise SonobreastError(
            f"{int(wrong.sum())} of {len(table)} rows cannot be; the first is that of {table['image'][wrong].iloc[0]}",
            file=path,
            remedy="the table was changed by hand; " + _ANEW,
        )
    return table


@dataclass(frozen=True, eq=False)
class Masked:
    """The predicted masks of one configuration: r repeats and seeds of the same n images, sorted.

    Attributes
    ----------
    tables : dict of str to DataFrame
        "repeat 0, seed 1" -> its n rows, the folds of the repeat put together.
    codes : int (n,)
        Group of each image, 0 .. G-1.
    left_out : tuple of str
        Repeats and seeds that do not cover all images.
    """

    tables: Mapping[str, pd.DataFrame]
    codes: Ints
    left_out: tuple[str, ...]

    @property
    def first(self) -> pd.DataFrame:
        """The rows of the first repeat: what does not depend on the network is the same in all."""
        return next(iter(self.tables.values()))

    def values(self, column: str) -> Floats:
        """A column of all repeats, (r, n)."""
        return np.stack([t[column].to_numpy(np.float64) for t in self.tables.values()])


def masked(table: pd.DataFrame, folds: Mapping[int, frozenset[int]] | None = None) -> Masked:
    """The rows of one configuration as repeats of the same images (see `whole_tables`)."""
    tables, left_out = whole_tables(table, folds=folds)
    first = next(iter(tables.values()))
    for name, part in tables.items():
        if part["truth"].tolist() != first["truth"].tolist():
            raise SonobreastError(
                f"{name} was scored against other true masks than the other repeats",
                remedy="the data's masks have changed between the runs; run the study again in a new --out",
            )
    return Masked(tables, group_codes(first["group"].to_numpy(), len(first))[0], left_out)


def ordered_classes(names: Iterable[str]) -> list[str]:
    """Classes in the usual order: benign, malignant, normal, then the others by name."""
    found = set(names)
    return [c for c in LESION_CLASSES if c in found] + sorted(found - set(LESION_CLASSES))


def segmentation_metrics(table: pd.DataFrame, *, resamples: int = 2000) -> dict[str, Any]:
    """Figures of one configuration's predicted masks on its test images, JSON-ready.

    Repeats and seeds are no further images: they are averaged inside each resample of groups. What depends on the
    prediction for its denominator (distances of the lesions that were found, shares of those called malignant) is the
    ratio of sums over the repeats.

    Parameters
    ----------
    table : DataFrame
        Rows of one configuration (`read_segmentation`).
    resamples : int

    Returns
    -------
    dict
        ``n``, ``groups``, ``repeats``, ``left_out``; ``images`` (lesion, empty, unknown: how many); ``metrics`` over
        the images with a lesion: ``dice``, ``median_dice``, ``iou``, ``hd95_px``, ``hd95_mm`` (None where no spacing
        is known), ``missed``, each with its 95 % interval, its ``n`` and ``groups`` those behind it; ``per_class`` with
        ``lesions`` and the same metrics; ``empty`` with ``false_positive`` and ``false_positive_share``; ``agreement``
        of predicted class and predicted mask: ``kinds`` (``what``, mean ``count`` over the repeats ``of`` so many,
        ``share`` of those), ``disagree`` (share of all images), ``accuracy_agree`` and ``accuracy_disagree``.

    Raises
    ------
    SonobreastError
        As `sonobreast.evaluation.predictions.whole_repeats`.
    """
    data = masked(table)
    truth = data.first["truth"].to_numpy(str)
    label = data.first["label"].to_numpy(str)
    classes = ordered_classes(label[truth == "lesion"])
    means: dict[str, Floats] = {}
    medians: dict[str, Floats] = {}
    for c in (None, *classes):
        means |= {_of(m, c): v for m, v in _lesion_values(data, truth, label, c).items()}
        medians[_of("median_dice", c)] = means[_of("dice", c)]
    agreement, kinds = _agreement_values(data, label)
    means |= _empty_values(data, truth) | agreement | kinds
    found = _intervals(data.codes, means, medians, resamples)
    return {
        "n": len(truth),
        "groups": int(data.codes.max()) + 1,
        "repeats": len(data.tables),
        "left_out": list(data.left_out),
        "images": {t: int(np.sum(truth == t)) for t in TRUTHS},
        "metrics": _lesion_metrics(found, None),
        "per_class": {
            c: {
                "lesions": int(np.sum((truth == "lesion") & (label == c))),
                "metrics": _lesion_metrics(found, c),
            }
            for c in classes
        },
        "empty": {m: found[m].as_dict() for m in ("false_positive", "false_positive_share")},
        "agreement": {
            "kinds": [_kind(what, called, found[what]) for what, called in kinds.items()],
            **{m: found[m].as_dict() for m in agreement},
        },
    }


_LESION_METRICS = ("dice", "median_dice", "iou", "hd95_px", "hd95_mm", "missed")


def _of(metric: str, class_name: str | None) -> str:
    return metric if class_name is None else f"{metric} of {class_name}"


def _lesion_values(data: Masked, truth: Any, label: Any, class_name: str | None) -> dict[str, Floats]:
    """Values (r, n) that are averaged over the images with a lesion (of one class); NaN where an image has none."""
    counted = truth == "lesion"
    if class_name is not None:
        counted = counted & (label == class_name)
    values = {m: data.values(m) for m in ("dice", "iou", "hd95_px", "hd95_mm")}
    values["missed"] = (data.values("predicted_area_px") == 0).astype(np.float64)
    return {m: np.where(counted, v, np.nan) for m, v in values.items()}


def _empty_values(data: Masked, truth: Any) -> dict[str, Floats]:
    any_pixel = (data.values("predicted_area_px") > 0).astype(np.float64)
    return {
        "false_positive": np.where(truth == "empty", any_pixel, np.nan),
        "false_positive_share": np.where(truth == "empty", data.values("false_positive_share"), np.nan),
    }


def _agreement_values(data: Masked, label: Any) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Whether predicted class and predicted mask say the same: a lesion class has a mask, normal has none.

    Returns what counts over all images, and the kinds of disagreement over those that were called so: (r, n) each.
    """
    called = np.stack([t["predicted"].to_numpy(str) for t in data.tables.values()])  # (r, n)
    drawn = data.values("predicted_area_px") > 0
    normal = np.char.lower(np.char.strip(called)) == "normal"
    disagree = drawn == normal
    right = (called == label).astype(np.float64)
    over_all = {
        "disagree": disagree.astype(np.float64),
        "accuracy_agree": np.where(disagree, np.nan, right),
        "accuracy_disagree": np.where(disagree, right, np.nan),
    }
    kinds = {}
    for c in ordered_classes([*called.ravel(), *label]):
        what = "a mask" if c.strip().casefold() == "normal" else "no mask"
        kinds[f"{c} but {what}"] = np.where(called == c, over_all["disagree"], np.nan)
    return over_all, kinds


def _intervals(
    codes: Ints, means: Mapping[str, Floats], medians: Mapping[str, Floats], resamples: int
) -> dict[str, Interval]:
    """Means over images, and medians, of values (r, n) with NaN where an image does not count."""
    total = np.stack([np.nan_to_num(v).sum(axis=0) for v in means.values()], axis=1)  # (n, K)
    times = np.stack([np.isfinite(v).sum(axis=0) for v in means.values()], axis=1).astype(np.float64)  # (n, K)

    def averages(weight: Floats) -> dict[str, Floats]:
        below = weight @ times  # (R, K)
        above = weight @ total
        ratio = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
        return dict(zip(means, ratio.T, strict=True))

    def middles(weight: Floats) -> dict[str, Floats]:
        return {m: np.mean([weighted_median(row, weight) for row in v], axis=0) for m, v in medians.items()}

    drawn = draw_statistics(averages, codes, resamples=resamples, jackknife=True)
    # A jackknife of a median takes two or three values only, so BCa has no acceleration to go by.
    drawn |= draw_statistics(middles, codes, resamples=resamples, jackknife=False)
    found = {}
    for name, draws in drawn.items():
        counted = np.isfinite({**means, **medians}[name]).any(axis=0)
        behind = len(np.unique(codes[counted]))
        found[name] = interval_of(
            draws,
            level=0.95,
            method="percentile" if name in medians else "bca",
            n=int(counted.sum()),
            groups=behind,
            behind=behind,
            share=name not in medians and not name.startswith("hd95"),
        )
    return found


def weighted_median(values: Floats, weight: Floats) -> Floats:
    """Median of values (n,) under case multiplicities (R, n): float (R,).

    Of an even number of cases the mean of the middle two, as NumPy has it. NaN values do not count; NaN where all are.
    """
    known = np.isfinite(values)
    order = np.argsort(values[known], kind="stable")
    ranked = values[known][order]
    if not len(ranked):
        return np.full(len(weight), np.nan)
    reached = np.cumsum(weight[:, known][:, order], axis=1)  # (R, k)
    half = reached[:, -1:] / 2
    lower, upper = ranked[(reached >= half).argmax(axis=1)], ranked[(reached > half).argmax(axis=1)]
    return np.where(half[:, 0] > 0, (lower + upper) / 2, np.nan)


def _lesion_metrics(found: Mapping[str, Interval], class_name: str | None) -> dict[str, Any]:
    metrics: dict[str, Any] = {m: found[_of(m, class_name)].as_dict() for m in _LESION_METRICS}
    if not metrics["hd95_mm"]["n"]:
        metrics["hd95_mm"] = None
    return metrics


def _kind(what: str, disagree: Floats, share: Interval) -> dict[str, Any]:
    """One kind of disagreement: how often on average over the repeats, of how many that were called so."""
    repeats = len(disagree)
    return {
        "what": what,
        "count": float(np.nansum(disagree)) / repeats,
        "of": float(np.isfinite(disagree).sum()) / repeats,
        "share": share.as_dict(),
    }
