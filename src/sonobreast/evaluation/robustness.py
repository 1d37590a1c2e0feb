"""How figures fall when the images get worse: curves over strength, mean drops, and models against each other.

Every resample of groups serves the clean images, all corruptions and all models, so differences are paired: what an
image is hard about cancels. A drop is written so that a positive one is a loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.calibration import NEEDED, binned_gaps, ece_if_calibrated, ece_limits
from sonobreast.evaluation.compare import bootstrap_p, holm, without_spread
from sonobreast.evaluation.glossary import metric_names
from sonobreast.evaluation.intervals import FLAT, Interval, groups_behind, interval_of, limits
from sonobreast.evaluation.metrics import Floats, Ints, Scored, evaluate, group_codes
from sonobreast.evaluation.predictions import scored_table
from sonobreast.evaluation.resampling import Draws, draw_statistics

CLEAN = "clean"
METRICS = ("auc_malignant", "accuracy", "brier", "log_loss", "overconfidence", "ece")
TITLES = {
    "auc_malignant": "AUC, malignant against the rest",
    "accuracy": "Accuracy",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "overconfidence": "Overconfidence",
    "ece": "Expected calibration error",
}
_HIGHER_IS_BETTER = ("auc_malignant", "accuracy")
_SHARES = _HIGHER_IS_BETTER
Cell = tuple[str, str, int]  # model, kind, strength


def overconfidence(scored: Scored, weight: Floats) -> Floats:
    """Mean probability of the decided class minus the share of right decisions, under R sets of case weights: (R,).

    0 is calibrated on average, 0.2 means that 20 of 100 decisions are believed too much. Its absolute value is the
    expected calibration error with a single bin, and a lower bound of it with any other bins (Guo et al. 2017, ICML,
    equation 3; Jensen's inequality).
    """
    gap = scored.probability[np.arange(scored.n), scored.predicted] - scored.correct
    total = weight.sum(axis=1)
    return np.asarray(weight @ gap / np.where(total > 0, total, np.nan), np.float64)


def analyse(answers: pd.DataFrame, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Curves, drops and comparisons of models on the same images, JSON-ready.

    ``ece`` is the expected calibration error of the decided class over equal-mass bins
    (`sonobreast.evaluation.calibration.expected_calibration_error`), of 40 images or more; its bins stay under
    resampling, and its interval is the basic one; so are those of its drops. A drop of it is too small by what chance
    alone gives the clean images (`sonobreast.evaluation.calibration.ece_if_calibrated`): the corrupted ones have less.

    The **mean drop** of a metric is the mean over all kinds and strengths of its loss against the clean images: clean
    minus corrupted for AUC and accuracy, corrupted minus clean for the others.

    Parameters
    ----------
    answers : DataFrame
        ``model, kind, strength, image, group, label, p_<class>``: for each model the same images under the same
        corruptions; the clean ones have the kind ``clean`` and strength 0.
    resamples, level, seed : int, float, int
        Of the cluster bootstrap (percentile), see `sonobreast.evaluation.intervals.bootstrap`.

    Returns
    -------
    dict
        ``level, resamples, classes, metrics, images, groups, labels, chance`` (accuracy of always saying the most
        frequent class), ``models`` (of each ``model``, ``clean``, ``cells``: one for each kind and strength with
        ``value`` and ``drop`` of each metric, ``kinds``: mean drop over the strengths, ``mean_drop``), and ``pairs``
        (differences of clean values and of mean drops, A minus B, with p-values that Holm's method corrected over the
        pairs of one metric).

    Raises
    ------
    SonobreastError
        If the models are not of the same images, or clean images are missing.
    """
    cells = _cells(answers)
    models = list(dict.fromkeys(m for m, _, _ in cells))
    conditions = [(k, s) for m, k, s in cells if m == models[0] and k != CLEAN]
    first = cells[models[0], CLEAN, 0]
    one = answers[(answers["model"] == models[0]) & (answers["kind"] == CLEAN)].sort_values("image")
    codes, names = group_codes(one["group"].to_numpy(), first.n)
    known = metric_names(first.classes)
    enough = first.n >= NEEDED  # for two bins: with one it is the overconfidence without its sign
    metrics = [m for m in METRICS if m in known or m == "overconfidence" or (m == "ece" and enough)]
    gaps = [binned_gaps(s.probability.max(axis=1), s.correct) for s in cells.values()] if enough else []

    def statistic(weight: Floats) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for number, scored in enumerate(cells.values()):
            values = evaluate(scored, weight, metrics=[m for m in metrics if m in known])
            found |= {f"{number} {m}": v for m, v in values.items()}
            found[f"{number} overconfidence"] = overconfidence(scored, weight)
            if enough:
                found[f"{number} ece"] = np.abs(weight @ gaps[number]).sum(axis=1) / weight.sum(axis=1)
        return found

    flat = draw_statistics(statistic, codes, resamples=resamples, seed=seed, jackknife=False)
    draws = {(cell, m): flat[f"{number} {m}"] for number, cell in enumerate(cells) for m in metrics}
    about = _About(cells, draws, codes, level)
    return {
        "level": level,
        "resamples": resamples,
        "classes": list(first.classes),
        "metrics": metrics,
        "images": first.n,
        "groups": len(names),
        "labels": one["label"].value_counts().to_dict(),
        "chance": float(np.bincount(first.label).max() / first.n),
        "kinds": list(dict.fromkeys(k for k, _ in conditions)),
        "models": [_of_model(about, m, conditions, metrics) for m in models],
        "pairs": _pairs(about, models, conditions, metrics),
    }


class _About:
    """The draws of all cells, and intervals of what is made of them."""

    def __init__(
        self, cells: Mapping[Cell, Scored], draws: Mapping[tuple[Cell, str], Draws], codes: Ints, level: float
    ):
        self.cells, self.draws, self.codes, self.level = cells, draws, codes, level
        self.groups = int(codes.max()) + 1

    def value(self, cell: Cell, metric: str) -> Interval:
        """A figure with its interval."""
        if metric == "ece":
            score = self.cells[cell].probability.max(axis=1)
            chance = ece_if_calibrated([score], self.codes)[1]
            return ece_limits(self.draws[cell, metric], chance, len(self.codes), self.groups)
        behind = self.groups
        if metric != "overconfidence":
            behind = groups_behind(metric, [self.cells[cell]], self.codes)
        return interval_of(
            self.draws[cell, metric],
            level=self.level,
            method="percentile",
            n=len(self.codes),
            groups=self.groups,
            behind=behind,
            share=metric in _SHARES,
        )

    def to_subtract(self, cell: Cell, metric: str) -> Draws:
        """The draws that differences are made of; of the ECE mirrored at the estimate: quantiles are then basic limits.

        Resampling adds to an ECE, and to the one of the clean images more than to a bad one. In simulations of 400
        cases, calibrated when clean, percentile limits of the drop held the true one in .32 of the sets, basic ones in
        .80; of clean images with an ECE of .08 in .91 and .97.
        """
        drawn = self.draws[cell, metric]
        return drawn if metric != "ece" else Draws(drawn.estimate, 2 * drawn.estimate - drawn.resampled, None)

    def drop(self, model: str, conditions: Sequence[tuple[str, int]], metric: str) -> Draws:
        """Mean loss over conditions against the clean images."""
        sign = 1.0 if metric in _HIGHER_IS_BETTER else -1.0
        clean = self.to_subtract((model, CLEAN, 0), metric)
        worse = [self.to_subtract((model, k, s), metric) for k, s in conditions]
        estimate = sign * (clean.estimate - float(np.mean([w.estimate for w in worse])))
        resampled = sign * (clean.resampled - np.mean([w.resampled for w in worse], axis=0))
        return Draws(estimate, resampled, None)

    def interval(self, draws: Draws, metric: str) -> Interval:
        """Of a difference; one of accuracies that never varies gets the reach that so few groups leave open."""
        found = limits(draws, level=self.level, method="percentile", n=len(self.codes), groups=self.groups)
        if metric == "ece" and found.method.startswith("cluster"):
            ends = min(found.low, found.estimate), max(found.high, found.estimate)
            return replace(found, low=ends[0], high=ends[1], method="cluster bootstrap basic")
        return without_spread(found, self.groups) if found.note == FLAT and metric == "accuracy" else found


def _cells(answers: pd.DataFrame) -> dict[Cell, Scored]:
    """Each model's answers under each condition, images in the same order."""
    if answers.empty or not (answers["kind"] == CLEAN).any():
        raise SonobreastError("there are no answers on clean images", remedy="judge the images as they are, too")
    cells: dict[Cell, Scored] = {}
    images: list[str] | None = None
    conditions: dict[str, set[tuple[str, int]]] = {}
    order = answers[["model", "kind", "strength"]].drop_duplicates().itertuples(index=False, name=None)
    parts = dict(list(answers.groupby(["model", "kind", "strength"], sort=False)))
    for model, kind, strength in order:
        part = parts[model, kind, strength]
        ordered = part.sort_values("image")
        if images is None:
            images = ordered["image"].tolist()
        if ordered["image"].tolist() != images:
            raise SonobreastError(
                f"{model} under {kind} {strength} was not judged on the same images as the others",
                remedy="judge all models on the same images",
            )
        cells[model, kind, strength] = scored_table(ordered)
        conditions.setdefault(model, set()).add((kind, strength))
    if len({frozenset(c) for c in conditions.values()}) > 1 or len(next(iter(conditions.values()))) < 2:
        raise SonobreastError(
            "the models were not judged under the same corruptions, or under none",
            remedy="judge all models under the same kinds and strengths",
        )
    return cells


def _of_model(
    about: _About, model: str, conditions: Sequence[tuple[str, int]], metrics: Sequence[str]
) -> dict[str, Any]:
    def drop(some: Sequence[tuple[str, int]]) -> dict[str, Any]:
        return {m: about.interval(about.drop(model, some, m), m).as_dict() for m in metrics}

    kinds = list(dict.fromkeys(k for k, _ in conditions))
    return {
        "model": model,
        "clean": {m: about.value((model, CLEAN, 0), m).as_dict() for m in metrics},
        "cells": [
            {
                "kind": k,
                "strength": s,
                "value": {m: about.value((model, k, s), m).as_dict() for m in metrics},
                "drop": drop([(k, s)]),
            }
            for k, s in conditions
        ],
        "kinds": [{"kind": k, "drop": drop([c for c in conditions if c[0] == k])} for k in kinds],
        "mean_drop": drop(conditions),
    }


def _pairs(
    about: _About, models: Sequence[str], conditions: Sequence[tuple[str, int]], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = []
    for a, b in combinations(models, 2):
        row: dict[str, Any] = {"a": a, "b": b, "clean": {}, "mean_drop": {}}
        for m in metrics:
            cleans = [about.to_subtract((x, CLEAN, 0), m) for x in (a, b)]
            drops = [about.drop(x, conditions, m) for x in (a, b)]
            for name, (one, other) in (("clean", cleans), ("mean_drop", drops)):
                gap = Draws(one.estimate - other.estimate, one.resampled - other.resampled, None)
                interval = about.interval(gap, m)
                p = bootstrap_p(gap.resampled) if interval.method.startswith("cluster") else math.nan
                if math.isnan(p) and abs(gap.estimate) < 1e-12:
                    p = 1.0
                row[name][m] = {"a": one.estimate, "b": other.estimate, "p_value": p, "interval": interval.as_dict()}
        pairs.append(row)
    for name in ("clean", "mean_drop"):
        for m in metrics:
            tested = [r for r in pairs if r[name][m]["p_value"] == r[name][m]["p_value"]]
            if not tested:
                continue
            for r, p in zip(tested, holm([r[name][m]["p_value"] for r in tested]), strict=True):
                r[name][m]["p_holm"] = float(p)
    return pairs


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``stress.csv``: one row for each model, kind and strength, the clean images first."""
    table = []
    for model in found["models"]:
        cells = [{"kind": CLEAN, "strength": 0, "value": model["clean"], "drop": None}, *model["cells"]]
        for cell in cells:
            row: dict[str, Any] = {"model": model["model"], "kind": cell["kind"], "strength": cell["strength"]}
            row |= {"images": found["images"], "groups": found["groups"]}
            for m in found["metrics"]:
                row |= {m: cell["value"][m]["estimate"]}
                row |= {f"{m}_{end}": cell["value"][m][end] for end in ("low", "high")}
                for end, column in (("estimate", "drop"), ("low", "drop_low"), ("high", "drop_high")):
                    row[f"{m}_{column}"] = None if cell["drop"] is None else cell["drop"][m][end]
            table.append(row)
    return table


def columns(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of ``stress.csv``."""
    ends = ("", "_low", "_high", "_drop", "_drop_low", "_drop_high")
    return ("model", "kind", "strength", "images", "groups", *(m + e for m in found["metrics"] for e in ends))
