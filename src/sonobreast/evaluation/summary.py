"""From predictions to the figures of a study: per run, and per configuration with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.compare import spread
from sonobreast.evaluation.comparison import HEADLINE_METRICS, compare_all
from sonobreast.evaluation.comparison_text import content
from sonobreast.evaluation.glossary import metric_names
from sonobreast.evaluation.intervals import Interval, accuracy_interval, bootstrap
from sonobreast.evaluation.metrics import Scored, by_patient, confusion, evaluate
from sonobreast.evaluation.predictions import (
    KEYS,
    Key,
    Repeats,
    configurations,
    folds_of,
    scored_table,
    whole_repeats,
)
from sonobreast.evaluation.predictions import read_patients as read_patients
from sonobreast.evaluation.predictions import read_predictions as read_predictions
from sonobreast.evaluation.predictions import scored as scored
from sonobreast.evaluation.predictive import PREVALENCES, predictive_values
from sonobreast.evaluation.segmentation_pairs import compare_dice
from sonobreast.evaluation.segmentation_summary import segmentation_metrics
from sonobreast.evaluation.trust import PARTS, trust_metrics
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


def configuration(
    table: pd.DataFrame,
    patients: Mapping[str, str] | None = None,
    *,
    prevalences: Sequence[float] = PREVALENCES,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Figures of one architecture and optimizer on its test images, JSON-ready.

    Parameters
    ----------
    table : DataFrame
        Rows of one configuration.
    patients : mapping of str to str, optional
        Image -> patient, empty where it is not known.
    prevalences : sequence of float
        Shares of cancer, each between 0 and 1, for the predictive values.
    resamples : int

    Returns
    -------
    dict
        ``accuracy`` and each of ``metrics`` with its 95 % interval; ``per_class`` with precision, recall, F1 and
        support; ``confusion`` (rows truth; the mean over repeats where there are several); ``runs``, ``repeats``;
        ``spread`` of the runs' accuracies; ``patients``: headline metrics by patient, or None and the reason in
        ``patients_reason``; ``predictive_values``, None where no class is malignant.
    """
    whole = whole_repeats(table)
    repeats, group = list(whole.sets.values()), whole.group
    intervals = bootstrap(repeats, group, resamples=resamples, method="bca")
    accuracy = accuracy_interval(repeats, group, resamples=resamples, method="bca")
    classes = repeats[0].classes
    count = support(repeats[0])
    matrix = np.mean([confusion(r) for r in repeats], axis=0)
    per_run = _run_accuracies(table, "test")
    of_patients, reason = _by_patient(whole, patients or {}, resamples)
    return {
        "runs": int(table["run"].nunique()),
        "repeats": len(repeats),
        "left_out": list(whole.left_out),
        "n": repeats[0].n,
        "groups": accuracy.groups,
        "accuracy": accuracy.as_dict(),
        "accuracy_of_runs": per_run,
        "spread": spread(per_run).as_dict(),
        "subset_accuracy": {s: float(np.mean(_run_accuracies(table, s))) for s in SUBSETS},
        "per_class": {
            c: {
                **{m: _short(intervals[f"{m}_{c}"]) for m in ("precision", "recall", "f1")},
                "support": count[c],
            }
            for c in classes
        },
        "metrics": {k: v.as_dict() for k, v in {**intervals, "accuracy": accuracy}.items()},
        "patients": of_patients,
        "patients_reason": reason,
        "predictive_values": predictive_values(repeats, group, intervals, prevalences, resamples=resamples),
        "classes": list(classes),
        "confusion": matrix.tolist(),
    }


def _run_accuracies(table: pd.DataFrame, subset: str) -> list[float]:
    return [float(scored_table(t).correct.mean()) for _, t in table[table["subset"] == subset].groupby("run")]


def _short(interval: Interval) -> dict[str, Any]:
    content = interval.as_dict()
    return {k: content[k] for k in ("estimate", "low", "high")}


def _headline(repeats: Sequence[Scored], group: npt.ArrayLike, resamples: int) -> dict[str, Any]:
    """The headline metrics that these classes have, with their intervals."""
    names = [m for m in HEADLINE_METRICS if m in metric_names(repeats[0].classes)]
    found = bootstrap(repeats, group, metrics=names, resamples=resamples, method="bca")
    found["accuracy"] = accuracy_interval(repeats, group, resamples=resamples, method="bca")
    return {m: i.as_dict() for m, i in found.items()}


def _by_patient(whole: Repeats, patients: Mapping[str, str], resamples: int) -> tuple[dict[str, Any] | None, str]:
    """Figures with one row a patient (`sonobreast.evaluation.metrics.by_patient`), or why there are none."""
    patient = np.asarray([patients.get(i, "").strip() for i in whole.image])
    n, unknown = len(patient), int(np.sum(patient == ""))
    if unknown:
        return None, "no patients are known" if unknown == n else f"{unknown} of {n} test images have no patient"
    if len(np.unique(patient)) == n:
        return None, "each patient has one test image, so the figures by image are those by patient"
    try:
        repeats = [by_patient(s, patient) for s in whole.sets.values()]
    except SonobreastError as error:
        return None, error.what
    metrics = _headline(repeats, patient_clusters(patient, whole.group), resamples)
    return {"n": repeats[0].n, "groups": metrics["accuracy"]["groups"], "images": n, "metrics": metrics}, ""


def patient_clusters(patient: npt.ArrayLike, group: npt.ArrayLike) -> npt.NDArray[Any]:
    """A cluster for each patient (sorted ids): patients that share a near-duplicate group are not independent.

    Parameters
    ----------
    patient, group : (n,)
        Of each image.

    Returns
    -------
    int (P,)
    """
    names, p = np.unique(np.asarray(patient), return_inverse=True)
    groups, g = np.unique(np.asarray(group), return_inverse=True)
    size = len(names) + len(groups)
    links = coo_array((np.ones(len(p)), (p, len(names) + g)), shape=(size, size))
    clusters: npt.NDArray[Any] = connected_components(links, directed=False)[1][: len(names)]
    return clusters


def nested_choice(table: pd.DataFrame, *, resamples: int = 2000) -> dict[str, Any] | None:
    """What "take the configuration that is best on the validation images" gives on images that had no say in it.

    In each fold of each repeat the configuration with the best validation accuracy (mean over its seeds; of equal ones
    the first named) is taken, and its predictions of that fold's test images are pooled over the folds. A configuration
    of which a seed failed in a fold is no candidate there, if another one has them all. On a hold-out this is the
    configuration with the best validation accuracy.

    The interval is for the sampling of test images; how the choice itself would vary with other training images is
    shown by ``chosen`` only.

    Parameters
    ----------
    table : DataFrame
        All configurations of a study.
    resamples : int

    Returns
    -------
    dict or None
        ``n``, ``groups``, ``repeats``, ``left_out``, ``choices`` (folds times repeats), ``chosen`` (architecture,
        optimizer, times), ``accuracy`` and ``metrics`` with intervals; None for a single configuration and where no
        repeat has all its folds.

    References
    ----------
    Varma & Simon 2006, BMC Bioinformatics 7:91; Cawley & Talbot 2010, J Mach Learn Res 11:2079.
    """
    known, folds = configurations(table), folds_of(table)
    if len(known) < 2:
        return None
    chosen = Counter[Key]()
    parts = []
    for (_, _), fold in table.groupby(["repeat", "fold"], sort=True):
        candidates = {k: _of(fold, k) for k in known}
        seeds = {k: c.loc[c["subset"] == "test", "seed"].nunique() for k, c in candidates.items()}
        whole = [k for k in known if seeds[k] == max(seeds.values()) > 0]
        if not whole:
            continue
        best = max(whole, key=lambda k: _accuracy(candidates[k], "validation"))
        chosen[best] += 1
        parts.append(candidates[best])
    try:
        pooled = whole_repeats(pd.concat(parts), folds=folds)
    except SonobreastError:
        return None
    metrics = _headline(list(pooled.sets.values()), pooled.group, resamples)
    return {
        "n": len(pooled.image),
        "groups": metrics["accuracy"]["groups"],
        "repeats": len(pooled.sets),
        "left_out": list(pooled.left_out),
        "choices": chosen.total(),
        "chosen": [{"architecture": a, "optimizer": o, "times": chosen[a, o]} for a, o in known if chosen[a, o]],
        "accuracy": metrics["accuracy"],
        "metrics": metrics,
    }


def _accuracy(table: pd.DataFrame, subset: str) -> float:
    """Over all rows at once: a mean of means would break ties by rounding."""
    return float(scored_table(table[table["subset"] == subset]).correct.mean())


def _of(table: pd.DataFrame, key: Key) -> pd.DataFrame:
    return table[(table["architecture"] == key[0]) & (table["optimizer"] == key[1])]


def study_metrics(
    table: pd.DataFrame,
    patients: Mapping[str, str] | None = None,
    masks: pd.DataFrame | None = None,
    *,
    prevalences: Sequence[float] = PREVALENCES,
    resamples: int = 2000,
) -> dict[str, Any]:
    """The content of a study's ``metrics.json``.

    Parameters
    ----------
    table : DataFrame
        All predictions of the study.
    masks : DataFrame, optional
        Its predicted masks (`sonobreast.evaluation.segmentation_summary.read_segmentation`), where a network segments.
    patients, prevalences, resamples
        As in `configuration`.

    Returns
    -------
    dict
        ``configurations``, one entry for each architecture and optimizer, in order, with its ``segmentation``
        (`segmentation_metrics`), None where the network does not segment, and its ``calibration``, ``decisions``,
        ``conformal``, ``abstention`` (`sonobreast.evaluation.trust.trust_metrics`); ``comparisons`` of all pairs
        (`sonobreast.evaluation.comparison.compare_all`), None for a single configuration; ``nested_choice``, None for a
        hold-out; ``segmentation_comparisons`` (`compare_dice`), None for fewer than two that segment.
    """
    tested = table.loc[table["subset"] == "test", "image"].nunique()
    entries = []
    for key in configurations(table):
        entry = configuration(_of(table, key), patients, prevalences=prevalences, resamples=resamples)
        drawn = None if masks is None else _of(masks, key)
        entry["segmentation"] = (
            None if drawn is None or drawn.empty else segmentation_metrics(drawn, resamples=resamples)
        )
        entry |= trust_metrics(_of(table, key), resamples=resamples)
        entries.append({**dict(zip(KEYS, key, strict=True)), **entry, "missing": int(tested) - entry["n"]})
    several = any(len(f) > 1 for f in folds_of(table).values())
    return {
        "level": 0.95,
        "resamples": resamples,
        "prevalences": list(dict.fromkeys(prevalences)),
        "configurations": entries,
        "comparisons": content(compare_all(table, resamples=resamples)) if len(entries) > 1 else None,
        "nested_choice": nested_choice(table, resamples=resamples) if several else None,
        "segmentation_comparisons": None if masks is None else compare_dice(masks, resamples=resamples),
    }


def is_complete(metrics: Mapping[str, Any], *, segments: bool = False) -> bool:
    """Whether a ``metrics.json`` has all that `study_metrics` gives; those of earlier versions lack some of it.

    Parameters
    ----------
    metrics : mapping
    segments : bool
        Whether the study has a ``segmentation.csv``. Without one, a file that says nothing of masks lacks nothing.
    """
    common, each = {"prevalences", "comparisons", "nested_choice"}, {"spread", "patients", "patients_reason"}
    each |= {"predictive_values", "missing", *PARTS}
    if segments:
        common, each = common | {"segmentation_comparisons"}, each | {"segmentation"}
    return common <= set(metrics) and all(each <= set(c) for c in metrics["configurations"])


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
