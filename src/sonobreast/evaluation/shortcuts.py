"""What a model still knows from a part of the picture, and what marks do to its score: paired figures beside chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.compare import without_spread
from sonobreast.evaluation.intervals import FLAT, Interval, groups_behind, interval_of, limits
from sonobreast.evaluation.metrics import Floats, Scored, evaluate, group_codes
from sonobreast.evaluation.predictions import classes_of, scored_table
from sonobreast.evaluation.resampling import Draws, draw_statistics

WHOLE = "whole"
METRICS = ("auc_malignant", "auc_lesions", "accuracy")
TITLES = {
    "auc_malignant": "AUC, malignant against the rest",
    "auc_lesions": "AUC, malignant against benign",
    "accuracy": "Accuracy",
}


def analyse(
    answers: pd.DataFrame,
    *,
    parts: Sequence[str],
    shifts: Sequence[str],
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of each view beside the whole image's, on the images that have the view; JSON-ready.

    Parameters
    ----------
    answers : DataFrame
        ``model, view, image, group, label, changed, p_<class>``; ``changed``: whether the view's pixels differ from the
        whole image's. The whole images have the view ``whole``.
    parts : sequence of str
        Views whose figures are of interest.
    shifts : sequence of str
        Views whose change of the malignant probability is: on the images that the view changed.
    resamples, level, seed : int, float, int
        Of the cluster bootstrap (percentile).

    Returns
    -------
    dict
        ``level, resamples, classes, images, groups, labels, models``; of each model ``parts`` (view -> images, groups,
        changed, chance of each metric, ``whole``, ``value`` and ``loss`` of each metric: whole minus view, paired) and
        ``shifts`` (view -> of all images and of each class: images, groups, mean ``before`` and ``after``, ``shift``
        with its interval, share of ``decisions`` that changed). A view without images is left out.

    Raises
    ------
    SonobreastError
        If there are no answers on whole images.
    """
    whole = answers[answers["view"] == WHOLE]
    if whole.empty:
        raise SonobreastError("there are no answers on whole images", remedy="judge the images as they are, too")
    options: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    models = []
    for model in dict.fromkeys(answers["model"]):
        own = answers[answers["model"] == model]
        base = own[own["view"] == WHOLE].set_index("image").sort_index()
        views = {v: own[own["view"] == v].set_index("image").sort_index() for v in (WHOLE, *parts, *shifts)}
        models.append(
            {
                "model": model,
                "parts": {v: _part(base, views[v], **options) for v in (WHOLE, *parts) if len(views[v])},
                "shifts": {v: _shifts(base, views[v], **options) for v in shifts if views[v]["changed"].any()},
            }
        )
    first = whole[whole["model"] == models[0]["model"]]
    return {
        "level": level,
        "resamples": resamples,
        "classes": list(classes_of(answers)),
        "images": len(first),
        "groups": int(first["group"].nunique()),
        "labels": first["label"].value_counts().to_dict(),
        "models": models,
    }


def _part(base: pd.DataFrame, view: pd.DataFrame, *, resamples: int, level: float, seed: int) -> dict[str, Any]:
    same = base.loc[view.index]
    codes, groups = group_codes(view["group"].to_numpy(), len(view))
    sides = {"whole": scored_table(same), "view": scored_table(view)}
    lesion = (view["label"] != "normal").to_numpy()
    malignant = sides["view"].malignant is not None

    def statistic(weight: Floats) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for side, scored in sides.items():
            names = ["accuracy", *(["auc_malignant"] if malignant else [])]
            found |= {f"{side} {m}": v for m, v in evaluate(scored, weight, metrics=names).items()}
            if malignant:
                one = evaluate(scored, weight * lesion, metrics=["auc_malignant"])
                found[f"{side} auc_lesions"] = one["auc_malignant"]
        return found

    draws = draw_statistics(statistic, codes, resamples=resamples, seed=seed, jackknife=False)
    metrics = [m for m in METRICS if f"view {m}" in draws]
    out: dict[str, Any] = {"images": len(view), "groups": len(groups), "changed": int(view["changed"].sum())}
    out["lesions"] = int(lesion.sum())
    most = float(np.bincount(sides["view"].label).max() / len(view))
    out["chance"] = {m: most if m == "accuracy" else 0.5 for m in metrics}
    common: dict[str, Any] = {"level": level, "method": "percentile", "n": len(view), "groups": len(groups)}
    for side in ("whole", "view"):
        out["value" if side == "view" else side] = {
            m: interval_of(
                draws[f"{side} {m}"], **common, behind=_behind(m, sides[side], codes, lesion), share=True
            ).as_dict()
            for m in metrics
        }
    out["loss"] = {}
    for m in metrics:
        a, b = draws[f"whole {m}"], draws[f"view {m}"]
        found = limits(Draws(a.estimate - b.estimate, a.resampled - b.resampled, None), **common)
        if found.note == FLAT and m == "accuracy":
            found = without_spread(found, len(groups))
        out["loss"][m] = found.as_dict()
    return out


def _behind(metric: str, scored: Scored, codes: Any, lesion: Any) -> int:
    if metric != "auc_lesions":
        return groups_behind(metric, [scored], codes)
    cancers = scored.label == scored.malignant
    return min(len(np.unique(codes[cancers])), len(np.unique(codes[lesion & ~cancers])))


def _shifts(base: pd.DataFrame, view: pd.DataFrame, *, resamples: int, level: float, seed: int) -> list[dict[str, Any]]:
    """Of the images that the view changed: all of them, then class by class."""
    changed = view[view["changed"]]
    labels = sorted(changed["label"].unique())
    columns = [f"p_{c}" for c in classes_of(base)]
    rows = []
    for label in ("", *labels):
        after = changed if not label else changed[changed["label"] == label]
        before = base.loc[after.index]
        codes, groups = group_codes(after["group"].to_numpy(), len(after))
        other = before[columns].to_numpy().argmax(1) != after[columns].to_numpy().argmax(1)
        row: dict[str, Any] = {"label": label, "images": len(after), "groups": len(groups)}
        row["decisions"] = _mean(other.astype(float), codes, resamples, level, seed, share=True).as_dict()
        if "p_malignant" in columns:
            p, q = before["p_malignant"].to_numpy(float), after["p_malignant"].to_numpy(float)
            row |= {"before": float(p.mean()), "after": float(q.mean())}
            row["shift"] = _mean(q - p, codes, resamples, level, seed).as_dict()
        rows.append(row)
    return rows


def _mean(values: Floats, codes: Any, resamples: int, level: float, seed: int, *, share: bool = False) -> Interval:
    """Mean over images with its cluster bootstrap interval."""

    def statistic(weight: Floats) -> dict[str, Floats]:
        return {"mean": weight @ values / weight.sum(axis=1)}

    draws = draw_statistics(statistic, codes, resamples=resamples, seed=seed, jackknife=False)["mean"]
    groups = int(codes.max()) + 1
    return interval_of(
        draws, level=level, method="percentile", n=len(values), groups=groups, behind=groups, share=share
    )


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``shortcuts.csv``: one row for each model, view and figure."""
    table: list[dict[str, Any]] = []
    for model in found["models"]:
        for view, part in model["parts"].items():
            for m, value in part["value"].items():
                row = {"model": model["model"], "view": view, "label": "", "figure": m, "images": part["images"]}
                row |= {"groups": part["groups"], "chance": part["chance"][m]}
                row |= {k: value[k] for k in ("estimate", "low", "high")}
                loss = part["loss"][m]
                row |= {"loss": loss["estimate"], "loss_low": loss["low"], "loss_high": loss["high"]}
                table.append(row)
        for view, shifts in model["shifts"].items():
            for shift in shifts:
                for m in ("shift", "decisions"):
                    if m not in shift:
                        continue
                    row = {"model": model["model"], "view": view, "label": shift["label"] or "all", "figure": m}
                    row |= {"images": shift["images"], "groups": shift["groups"]}
                    table.append(row | {k: shift[m][k] for k in ("estimate", "low", "high")})
    return table


COLUMNS = (
    *("model", "view", "label", "figure", "images", "groups", "chance"),
    *("estimate", "low", "high", "loss", "loss_low", "loss_high"),
)
