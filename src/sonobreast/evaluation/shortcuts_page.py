"""The page of a search for short-cuts: figures of parts beside chance, shifts by marks, sentences."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sonobreast.evaluation.plots import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION, png
from sonobreast.evaluation.shortcuts import TITLES
from sonobreast.page import write_page
from sonobreast.records import atomic

VIEWS = {
    "whole": "Whole image",
    "background-filled": "Background (lesion filled smoothly)",
    "background-grey": "Background (lesion mean grey)",
    "outline": "Outline alone (two greys)",
    "lesion": "Lesion alone",
    "border": "Border alone (outer 10 %)",
    "unmarked": "Without calipers and text",
    "calipers": "Calipers added",
    "text": "Text added",
}
_LOOKS = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (ORANGE, "D"), ("#CC79A7", "v"), ("#56B4E9", "P"))


def parts_frame(found: Mapping[str, Any]) -> pd.DataFrame:
    """``metric, model, view, estimate, low, high, chance``."""
    out = []
    for model in found["models"]:
        for view, part in model["parts"].items():
            for metric, value in part["value"].items():
                row = {"metric": metric, "model": model["model"], "view": VIEWS[view], "chance": part["chance"][metric]}
                out.append(row | {k: value[k] for k in ("estimate", "low", "high")})
    return pd.DataFrame(out).astype({"estimate": float, "low": float, "high": float})


def parts_plot(frame: pd.DataFrame) -> Figure:
    """Figures of each view with their 95 % intervals, a panel a metric; grey ticks: chance for the images of a view."""
    metrics = [m for m in TITLES if m in set(frame["metric"])]
    views, models = list(dict.fromkeys(frame["view"])), list(dict.fromkeys(frame["model"]))
    with matplotlib.rc_context(STYLE):
        size = (9.4, 0.9 + (0.3 + 0.08 * len(models)) * len(views))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for number, model in enumerate(models):
            colour, marker = _LOOKS[number % len(_LOOKS)]
            part = frame[(frame["metric"] == metric) & (frame["model"] == model)].set_index("view").reindex(views)
            y = np.arange(len(views)) + 0.5 * ((number + 0.5) / len(models) - 0.5)
            axis.hlines(y, part["low"], part["high"], color=colour, lw=1.8)
            axis.plot(part["estimate"], y, marker, color=colour, ms=5, label=model)
            if not number:
                rows = np.arange(len(views))
                axis.vlines(part["chance"], rows - 0.45, rows + 0.45, color=GREY, lw=1.4, ls=":")
        axis.set_title(TITLES[metric], fontsize=9)
        axis.set_xlim(0.0, 1.02)
        axis.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes[0].set_yticks(range(len(views)), views)
    axes[0].set_ylim(len(views) - 0.5, -0.5)
    if len(models) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=2)
    return figure


def shifts_frame(found: Mapping[str, Any]) -> pd.DataFrame:
    """``model, view, label, estimate, low, high`` of the shifts of the malignant probability."""
    out = []
    for model in found["models"]:
        for view, rows in model["shifts"].items():
            for row in rows:
                if "shift" in row:
                    ends = {k: row["shift"][k] for k in ("estimate", "low", "high")}
                    out.append({"model": model["model"], "view": VIEWS[view], "label": row["label"] or "all"} | ends)
    columns = ["model", "view", "label", "estimate", "low", "high"]
    return pd.DataFrame(out, columns=columns).astype({"estimate": float, "low": float, "high": float})


def shifts_plot(frame: pd.DataFrame) -> Figure:
    """Mean shifts with their 95 % intervals, class by class, a panel a view."""
    views, models = list(dict.fromkeys(frame["view"])), list(dict.fromkeys(frame["model"]))
    labels = ["all", *sorted(set(frame["label"]) - {"all"})]
    with matplotlib.rc_context(STYLE):
        size = (9.0, 0.9 + (0.28 + 0.08 * len(models)) * len(labels))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(views), sharey=True, sharex=True, squeeze=False)[0]
    for axis, view in zip(axes, views, strict=True):
        axis.axvline(0.0, color=GREY, lw=1, ls=":")
        for number, model in enumerate(models):
            colour, marker = _LOOKS[number % len(_LOOKS)]
            part = frame[(frame["view"] == view) & (frame["model"] == model)].set_index("label").reindex(labels)
            y = np.arange(len(labels)) + 0.5 * ((number + 0.5) / len(models) - 0.5)
            axis.hlines(y, part["low"], part["high"], color=colour, lw=1.8)
            axis.plot(part["estimate"], y, marker, color=colour, ms=5, label=model)
        axis.set_title(view, fontsize=9)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    if len(models) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=2)
    return figure


def sentences(
    found: Mapping[str, Any],
    *,
    parts: Sequence[str] = ("border", "background-filled", "outline", "lesion"),
    marks: Sequence[str] = ("unmarked", "calipers", "text"),
) -> list[str]:
    """What the figures say of these views, in words."""
    text = []
    for model in found["models"]:
        name = f"{model['model']}: " if len(found["models"]) > 1 else ""
        for view in parts:
            part = model["parts"].get(view)
            metric = "auc_lesions" if part and "auc_lesions" in part["value"] else "accuracy"
            if part is None or part["value"][metric]["estimate"] is None:
                continue
            value, whole, chance = part["value"][metric], part["whole"][metric], part["chance"][metric]
            sure = value["low"] is not None and value["low"] > chance
            what = "tells malignant from benign" if metric == "auc_lesions" else "tells the classes"
            text.append(
                f"{name}{VIEWS[view]}: {TITLES[metric].split(',')[0]} {value['estimate']:.3f}{_span(value)}, chance "
                f"{chance:.2f}, whole image {whole['estimate']:.3f}: "
                + (f"it {what} better than chance." if sure else f"it is not shown that it {what} better than chance.")
            )
        for view in marks:
            rows = [r for r in model["shifts"].get(view, []) if not r["label"] and "shift" in r]
            for row in rows:
                shift = row["shift"]
                moved = shift["low"] is not None and (shift["low"] > 0 or shift["high"] < 0)
                text.append(
                    f"{name}{VIEWS[view]} ({row['images']} images): the malignant probability moves by "
                    f"{_signed(shift['estimate'])}{_span(shift, signed=True)} on average"
                    + (". " if moved else ", which may be chance. ")
                    + f"{100 * row['decisions']['estimate']:.1f} % of the decisions change."
                )
    return text


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")


def _span(figure: Mapping[str, Any], *, signed: bool = False) -> str:
    if figure["low"] is None or figure["low"] != figure["low"]:
        return " (no interval)"
    ends = [_signed(figure[k]) if signed else f"{figure[k]:.3f}" for k in ("low", "high")]
    return f" (95 % interval {ends[0]} to {ends[1]})"


def write(out: Path, found: Mapping[str, Any]) -> Path:
    """Draw the figures and write ``shortcuts.html``.

    Parameters
    ----------
    out : Path
    found : mapping
        `sonobreast.evaluation.shortcuts.analyse`, with ``about``, ``not_applicable`` and ``environment``.
    """
    figures = {"parts": parts_plot(parts_frame(found))}
    shifts = shifts_frame(found)
    if len(shifts):
        figures["shifts"] = shifts_plot(shifts)
    drawings = {}
    for name, figure in figures.items():
        content = png(figure)
        with atomic(out / "figures" / f"{name}.png", "wb") as stream:
            stream.write(content)
        drawings[name] = base64.b64encode(content).decode()
    file = out / "shortcuts.html"
    write_page(
        file,
        "evaluation/shortcuts.html.j2",
        {**found, "views": VIEWS, "titles": TITLES, "drawings": drawings, "sentences": sentences(found)},
    )
    return file
