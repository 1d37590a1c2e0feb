"""A study's predictions to the frozen rule that is shipped with the mean of its networks.

Which images decide what:

- **Temperature and thresholds** come from validation images. In a k-fold study each image's validation probability is
  that of the networks for which it was a validation image (the mean over seeds and repeats), all folds put together.
- **Conformal quantiles** come from test images, one row an image. No network has trained or stopped on the images it
  scores here, and the temperature takes no part in the sets (see `sonobreast.evaluation.conformal`).
  - *Hold-out, or the networks of one fold:* half of the test groups calibrate, drawn once from a seed; the other half
    reports. With several seeds the scores are those of the very mean that is shipped. Images like these
    then have their class in the set with probability 1 - alpha at least, in each class: exactly where each group is one
    image, nearly where groups are larger, for images of one group are no separate evidence.
  - *Several folds:* every image calibrates, scored by the networks of the fold that tested it. Shipped is the mean over
    the networks of all folds, whose probabilities are usually nearer to the truth than those of one fold: the sets tend
    to hold the class more often than they promise, but nothing guarantees it, for an image that nobody has seen is
    scored by a mean that none of the calibration images was scored by. The same holds for temperature and thresholds.
    Coverage is reported over random grouped halvings of the same images.

In no case does the rule promise anything about another hospital: local cases must show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.conformal import (
    ALPHA,
    SPLITS,
    cases_needed,
    class_quantiles,
    conformal_metrics,
    grouped_halves,
)
from sonobreast.evaluation.decision_rule import (
    TEMPERATURES,
    DecisionRule,
    malignant_column,
    prediction_sets,
    temperature_scaled,
)
from sonobreast.evaluation.decisions import SENSITIVITIES, cancers_needed, threshold_for_sensitivity
from sonobreast.evaluation.metrics import Floats, Ints, Scored, group_codes
from sonobreast.evaluation.predictions import KEYS, Repeats, classes_of, configurations, scored_table
from sonobreast.evaluation.recalibration import TEMPERATURE_NEEDS, fit_temperature


def mean_of_runs(table: pd.DataFrame) -> tuple[Scored, tuple[str, ...], Any]:
    """One row an image, sorted: the mean of its probabilities over the rows of several runs.

    Returns
    -------
    scored : Scored
    image : tuple of str (n,)
    group : ndarray of str (n,)

    Raises
    ------
    SonobreastError
        If an image has several labels or groups: such rows are not of one study.
    """
    columns = [f"p_{c}" for c in classes_of(table)]
    by = table.groupby("image", sort=True)
    if (by[["label", "group"]].nunique() > 1).any(axis=None):
        raise SonobreastError(
            "an image has several labels or groups in these predictions",
            remedy="give the predictions of one study, as it wrote them",
        )
    one = by.agg({"label": "first", "group": "first", **dict.fromkeys(columns, "mean")}).reset_index()
    return scored_table(one), tuple(one["image"]), one["group"].to_numpy()


def shipped_together(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The predictions of runs that are shipped as one mean, as those of one configuration.

    In each fold the configurations count alike, and of each its seeds (`sonobreast.inspection.predict.shares`), so an
    ensemble's rows are what the study's ensemble says.

    Parameters
    ----------
    tables : sequence of DataFrame
        ``predictions.csv`` of each run.

    Returns
    -------
    DataFrame
        One row for each repeat, fold, subset and image; ``run`` is one for each fold.
    """
    table = pd.concat(tables, ignore_index=True)
    columns = [f"p_{c}" for c in classes_of(table)]
    place = ["repeat", "fold", "subset", "image"]
    how = {"group": "first", "label": "first", **dict.fromkeys(columns, "mean")}
    each = table.groupby([*place, *KEYS], sort=True).agg(how).reset_index()
    joined = each.groupby(place, sort=True).agg(how).reset_index()
    decided = joined[columns].to_numpy(float).argmax(axis=1)
    return joined.assign(
        run=[f"r{r}-f{f}" for r, f in zip(joined["repeat"], joined["fold"], strict=True)],
        architecture="shipped",
        optimizer="none",
        seed=0,
        predicted=[classes_of(table)[k] for k in decided],
    )


def fit_rule(
    table: pd.DataFrame,
    *,
    alpha: float = ALPHA,
    sensitivities: Sequence[float] = SENSITIVITIES,
    splits: int = SPLITS,
    seed: int = 0,
) -> tuple[DecisionRule, dict[str, Any]]:
    """The rule to ship with the mean of the runs in a table, and the coverage that it was seen to have.

    Parameters
    ----------
    table : DataFrame
        Rows of one configuration of a ``predictions.csv``, of all runs that are shipped and of no others.
    alpha : float
        In (0, 1): the sets aim at a coverage of 1 - alpha in each class.
    sensitivities : sequence of float
        Each in (0, 1]: operating points.
    splits, seed : int
        Halvings that report coverage (several folds), and the seed of the halves.

    Returns
    -------
    rule : DecisionRule
    coverage : dict
        JSON-ready. ``kind`` ("half" or "folds"), ``alpha``, ``images`` (test images that calibrate, and that report),
        ``per_class``: class -> ``coverage`` and ``size`` (of the sets), ``images`` reporting; None where there is none.

    Raises
    ------
    SonobreastError
        Where the table holds several configurations, or no validation or test rows.
    """
    if not 0 < alpha < 1 or not all(0 < s <= 1 for s in sensitivities):
        raise SonobreastError(f"alpha {alpha}, sensitivities {tuple(sensitivities)}", remedy="give shares from 0 to 1")
    if len(configurations(table)) != 1:
        raise SonobreastError(
            f"these predictions are of {len(configurations(table))} configurations",
            remedy="choose one architecture and optimizer",
        )
    parts = {s: table[table["subset"] == s] for s in ("validation", "test")}
    for subset, part in parts.items():
        if part.empty:
            raise SonobreastError(
                f"there are no predictions of {subset} images, so no decision rule can be made",
                remedy="use a study that has training, validation and test images",
            )
    classes = classes_of(table)
    notes: list[str] = []
    validation, _, _ = mean_of_runs(parts["validation"])
    temperature = _temperature(validation, notes)
    thresholds = _thresholds(validation, temperature, sensitivities, notes)
    test, image, group = mean_of_runs(parts["test"])
    codes, names = group_codes(group, test.n)
    folds = parts["test"][["repeat", "fold"]].drop_duplicates().shape[0]
    runs = int(table["run"].nunique())
    if folds > 1:
        calibrates = np.ones(test.n, bool)
        source = (
            f"test images of {folds} folds, each scored by networks that have neither trained nor stopped on it; "
            "shipped is the mean of the networks of all folds, so that the coverage is expected, not guaranteed"
        )
    else:
        if len(names) < 2:
            raise SonobreastError(
                "the test images are of one group: none would be left to report on",
                remedy="use a study with more test images",
            )
        calibrates = grouped_halves(codes, test.label, 1, seed)[0]
        source = (
            "half of the test groups, which neither training, stopping nor the temperature has seen; the other half "
            "reports"
        )
    levels = class_quantiles(test.probability[calibrates], test.label[calibrates], alpha)
    counts = np.bincount(test.label[calibrates], minlength=len(classes))
    of_groups = [len(np.unique(codes[calibrates & (test.label == c)])) for c in range(len(classes))]
    for c, name in enumerate(classes):
        if math.isinf(levels[c]):
            notes.append(
                f"{name} is in every set: {counts[c]} calibration images, {cases_needed(alpha)} are needed for a "
                f"coverage of {100 * (1 - alpha):g} %"
            )
        elif of_groups[c] < cases_needed(alpha):
            notes.append(
                f"{name}: {counts[c]} calibration images come from {of_groups[c]} groups; {cases_needed(alpha)} groups "
                f"are needed for a coverage of {100 * (1 - alpha):g} % to mean something"
            )
    rule = DecisionRule(
        classes=classes,
        temperature=temperature,
        thresholds=thresholds,
        alpha=alpha,
        quantiles={n: float(q) if math.isfinite(q) else None for n, q in zip(classes, levels, strict=True)},
        calibration_images={n: int(k) for n, k in zip(classes, counts, strict=True)},
        calibration_groups=dict(zip(classes, of_groups, strict=True)),
        calibration_source=source,
        validation_images=validation.n,
        runs=runs,
        notes=tuple(notes),
    )
    coverage: dict[str, Any] = {"kind": "folds" if folds > 1 else "half", "alpha": alpha}
    if folds > 1:
        found = conformal_metrics(Repeats({"mean": test}, image, group, ()), alpha=alpha, splits=splits)
        per_class = {
            c: {"coverage": _number(v["coverage"]["mean"]), "size": _number(v["size"]["mean"]), "images": v["images"]}
            for c, v in found.get("per_class", {}).items()
        }
        return rule, coverage | {"images": {"calibration": test.n, "report": test.n}, "per_class": per_class}
    sets = prediction_sets(test.probability, levels)
    per_class = {c: _seen(sets, test.label, ~calibrates, k) for k, c in enumerate(classes)}
    used = int(calibrates.sum())
    return rule, coverage | {"images": {"calibration": used, "report": test.n - used}, "per_class": per_class}


def _temperature(validation: Scored, notes: list[str]) -> float:
    if validation.n < TEMPERATURE_NEEDS:
        notes.append(f"no temperature: {validation.n} validation images, {TEMPERATURE_NEEDS} are needed")
        return 1.0
    value = fit_temperature(validation.probability, validation.label)
    if value in TEMPERATURES:
        notes.append(f"the temperature is at its bound ({value:g})")
    for c, name in enumerate(validation.classes):
        if not (validation.label == c).any():
            notes.append(f"the validation images hold no {name}")
    return value


def _thresholds(
    validation: Scored, temperature: float, sensitivities: Sequence[float], notes: list[str]
) -> dict[str, float]:
    column = malignant_column(validation.classes)
    if column is None:
        notes.append("no class is malignant: there is no threshold")
        return {}
    sick = validation.label == column
    cancers = int(sick.sum())
    if not cancers:
        return {}  # that they hold no cancer is said with the temperature's notes
    score: Floats = temperature_scaled(validation.probability, temperature)[:, column]
    found = {}
    for aim in sensitivities:
        found[f"sensitivity {aim:g}"] = threshold_for_sensitivity(score, sick, aim)
        if cancers < cancers_needed(aim):
            notes.append(
                f"the threshold for sensitivity {aim:g} is the lowest score of {cancers} validation cancers; "
                f"{cancers_needed(aim)} are needed"
            )
    return found


def _seen(sets: Any, label: Ints, judged: Any, c: int) -> dict[str, Any]:
    mine = judged & (label == c)
    if not mine.any():
        return {"coverage": None, "size": None, "images": 0}
    return {
        "coverage": float(sets[mine, c].mean()),
        "size": float(sets[mine].sum(axis=1).mean()),
        "images": int(mine.sum()),
    }


def _number(value: float) -> float | None:
    return None if value != value else value
