"""From predictions to the figures of a study: per run, and per configuration with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sonobreast.evaluation.intervals import Interval, accuracy_interval, bootstrap
from sonobreast.evaluation.metrics import Scored, confusion, evaluate
from sonobreast.evaluation.predictions import KEYS, repeats_of, scored_table
from sonobreast.evaluation.predictions import read_predictions as read_predictions
from sonobreast.evaluation.predictions import scored as scored
from sonobreast.records import SUBSETS

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
