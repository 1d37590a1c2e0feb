"""From predictions to the figures of a study: per run, and per configuration with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.intervals import Interval, accuracy_interval, bootstrap
from sonobreast.evaluation.metrics import Scored, confusion, evaluate
from sonobreast.records import PREDICTION_COLUMNS, SUBSETS, check_version

KEYS = ["architecture", "optimizer"]
RESULT_COLUMNS = (
    "run",
    "architecture",
    "optimizer",
    "repeat",
    "fold",
    "seed",
    *(f"{s}_accuracy" for s in SUBSETS),
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "auc_malignant",
    "auc_ovr_macro",
    "epochs",
    "best_epoch",
    "seconds",
    "pretrained_share",
    "coverage",
)


def scored(label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str]) -> Scored:
    """Predictions decided by the largest probability.

    Parameters
    ----------
    label : int (n,)
    probability : float (n, C)
    classes : sequence of str
    """
    p = np.asarray(probability, np.float64)
    p = p / p.sum(axis=1, keepdims=True)  # single precision sums to 1 within 1e-7 only
    return Scored(np.asarray(label), p.argmax(axis=1), p, tuple(classes))


def figures(predictions: Scored) -> dict[str, Any]:
    """Metrics of one set of predictions, support of each class and confusion matrix (rows truth), JSON-ready."""
    return {
        "n": predictions.n,
        "metrics": evaluate(predictions),
        "support": support(predictions),
        "confusion": confusion(predictions).astype(int).tolist(),
    }


def support(predictions: Scored) -> dict[str, int]:
    """Images of each class."""
    count = np.bincount(predictions.label, minlength=len(predictions.classes))
    return {c: int(n) for c, n in zip(predictions.classes, count, strict=True)}


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a ``predictions.csv``.

    Raises
    ------
    SonobreastError
        If it is missing, lacks a column, has no rows or was written by a newer version.
    """
    try:
        # Names such as "NA" and "null" are classes and images like others.
        table = pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(_TEXT_COLUMNS, str))
    except (OSError, ValueError) as error:
        raise SonobreastError(
            f"the predictions cannot be read ({error})", file=path, remedy="run the study again"
        ) from error
    missing = [c for c in (*PREDICTION_COLUMNS, "schema_version") if c not in table]
    if missing or not classes_of(table):
        raise SonobreastError(
            f"column {', '.join(missing) or 'p_<class>'} is missing", file=path, remedy="run the study again"
        )
    if table.empty:
        raise SonobreastError("there are no predictions", file=path, remedy="run the study to its end")
    check_version(table["schema_version"].iloc[0], path)
    return table


_TEXT_COLUMNS = ("run", "architecture", "optimizer", "subset", "image", "group", "label", "predicted")


def classes_of(table: pd.DataFrame) -> tuple[str, ...]:
    """Classes in the order of the probability columns."""
    return tuple(c.removeprefix("p_") for c in table.columns if c.startswith("p_"))


def scored_table(table: pd.DataFrame) -> Scored:
    """The rows of a predictions table as they are."""
    classes = classes_of(table)
    code = {c: i for i, c in enumerate(classes)}
    probability = table[[f"p_{c}" for c in classes]].to_numpy(np.float64)
    return scored(table["label"].map(code).to_numpy(), probability, classes)


def repeats_of(table: pd.DataFrame, subset: str = "test") -> tuple[list[Scored], npt.NDArray[Any], list[str]]:
    """The predictions of one configuration, one set for each repeat and seed, over the same cases in the same order.

    The folds of a repeat are put together: each image is a test image once. Further repeats and seeds are further
    predictions of the same cases, not further cases.

    Returns
    -------
    repeats : list of Scored
    group : ndarray of str, (n,)
    left_out : list of str
        Repeats that do not cover all cases, because a fold failed.
    """
    chosen = table[table["subset"] == subset].sort_values(["repeat", "seed", "image"], kind="stable")
    parts = {f"repeat {r}, seed {s}": part for (r, s), part in chosen.groupby(["repeat", "seed"], sort=True)}
    longest = max(len(p) for p in parts.values())
    whole = {k: p for k, p in parts.items() if len(p) == longest}
    first = next(iter(whole.values()))
    for name, part in whole.items():
        if part["image"].tolist() != first["image"].tolist() or part["image"].duplicated().any():
            raise SonobreastError(
                f"the {subset} images of {name} are not those of the other repeats",
                remedy="predictions.csv was changed by hand or put together from two studies; run the study again",
            )
    return [scored_table(p) for p in whole.values()], first["group"].to_numpy(), sorted(set(parts) - set(whole))


def configuration(table: pd.DataFrame, *, resamples: int = 2000) -> dict[str, Any]:
    """Figures of one architecture and optimizer on its test images, JSON-ready.

    Returns
    -------
    dict
        ``accuracy`` and each of ``metrics`` with its 95 % interval; ``per_class`` with precision, recall, F1 and
        support; ``confusion`` (rows truth; the mean over repeats where there are several); ``runs``, ``repeats``.
    """
    repeats, group, left_out = repeats_of(table)
    intervals = bootstrap(repeats, group, resamples=resamples, method="bca")
    accuracy = accuracy_interval(repeats, group, resamples=resamples, method="bca")
    classes = repeats[0].classes
    count = support(repeats[0])
    matrix = np.mean([confusion(r) for r in repeats], axis=0)
    per_run = [float(scored_table(t).correct.mean()) for _, t in table[table["subset"] == "test"].groupby("run")]
    return {
        "runs": int(table["run"].nunique()),
        "repeats": len(repeats),
        "left_out": left_out,
        "n": repeats[0].n,
        "groups": accuracy.groups,
        "accuracy": accuracy.as_dict(),
        "accuracy_of_runs": per_run,
        "subset_accuracy": {s: float(np.mean(_run_accuracies(table, s))) for s in SUBSETS},
        "per_class": {
            c: {
                **{m: _short(intervals[f"{m}_{c}"]) for m in ("precision", "recall", "f1")},
                "support": count[c],
            }
            for c in classes
        },
        "metrics": {k: v.as_dict() for k, v in {**intervals, "accuracy": accuracy}.items()},
        "classes": list(classes),
        "confusion": matrix.tolist(),
    }


def _run_accuracies(table: pd.DataFrame, subset: str) -> list[float]:
    return [float(scored_table(t).correct.mean()) for _, t in table[table["subset"] == subset].groupby("run")]


def _short(interval: Interval) -> dict[str, Any]:
    content = interval.as_dict()
    return {k: content[k] for k in ("estimate", "low", "high")}


def study_metrics(table: pd.DataFrame, *, resamples: int = 2000) -> dict[str, Any]:
    """The content of a study's ``metrics.json``: one entry for each architecture and optimizer, in order."""
    return {
        "level": 0.95,
        "resamples": resamples,
        "configurations": [
            {"architecture": a, "optimizer": o, **configuration(part, resamples=resamples)}
            for (a, o), part in table.groupby(KEYS, sort=False)
        ],
    }


def result_row(run: dict[str, Any], metrics: dict[str, Any]) -> dict[str, object]:
    """One row of ``results.csv`` from a run's description and its ``metrics.json``."""
    test = metrics["subsets"]["test"]["metrics"]
    return {
        "run": run["id"],
        **{k: run[k] for k in ("architecture", "optimizer", "repeat", "fold", "seed")},
        **{f"{s}_accuracy": metrics["subsets"][s]["metrics"]["accuracy"] for s in SUBSETS},
        **{k: test.get(k) for k in ("precision_macro", "recall_macro", "f1_macro", "auc_malignant", "auc_ovr_macro")},
        **{k: metrics[k] for k in ("epochs", "best_epoch", "seconds", "pretrained_share", "coverage")},
    }
