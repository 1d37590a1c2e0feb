"""The page of a stress test: one summary figure, curves as small multiples, tables, sentences."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sonobreast.evaluation.plots import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION, png
from sonobreast.evaluation.robustness import TITLES
from sonobreast.page import write_page
from sonobreast.records import atomic

_LOOKS = (  # colours of Okabe and Ito; markers and lines tell the models apart as well
    (BLUE, "o", "-"),
    (VERMILION, "s", "--"),
    (GREEN, "^", "-."),
    (ORANGE, "D", ":"),
    ("#CC79A7", "v", "-"),
    ("#56B4E9", "P", "--"),
)
ALL = "mean of all"
_COLUMNS = 5


def headline(found: Mapping[str, Any]) -> str:
    """The metric that sums a model up: the AUC of malignancy, the accuracy where that is not defined."""
    defined = (
        "auc_malignant" in found["metrics"] and found["models"][0]["clean"]["auc_malignant"]["estimate"] is not None
    )
    return "auc_malignant" if defined else "accuracy"


def summary_frame(found: Mapping[str, Any], metrics: tuple[str, ...]) -> pd.DataFrame:
    """``metric, model, kind, estimate, low, high``: mean drops over all kinds (`ALL`) and of each, largest first."""
    titles = {k["name"]: k["title"] for k in found["kinds_in_words"]}
    out = []
    for metric in metrics:
        for model in found["models"]:
            each = {ALL: model["mean_drop"], **{titles[k["kind"]]: k["drop"] for k in model["kinds"]}}
            for kind, drop in each.items():
                out.append({"metric": metric, "model": model["model"], "kind": kind} | _ends(drop[metric]))
    frame = pd.DataFrame(out).astype({"estimate": float, "low": float, "high": float})
    size = frame[frame["metric"] == metrics[0]].groupby("kind")["estimate"].mean().fillna(-np.inf)
    order = [ALL, *size.drop(ALL).sort_values(ascending=False, kind="stable").index]
    return frame.assign(kind=pd.Categorical(frame["kind"], order)).sort_values("kind", kind="stable")


def summary_plot(frame: pd.DataFrame) -> Figure:
    """Mean drops with their intervals, one below the other; a panel a metric."""
    metrics, kinds = list(dict.fromkeys(frame["metric"])), list(frame["kind"].cat.categories)
    metrics.sort(key=list(TITLES).index)
    models = list(dict.fromkeys(frame["model"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 1.1 + (0.22 + 0.06 * len(models)) * len(kinds)), layout="constrained")
        axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        axis.axvline(0.0, color=GREY, lw=1, ls=":")
        axis.axhline(0.5, color=GREY, lw=0.6)
        for number, model in enumerate(models):
            colour, marker, _ = _LOOKS[number % len(_LOOKS)]
            part = frame[(frame["metric"] == metric) & (frame["model"] == model)].set_index("kind").reindex(kinds)
            up = 0.6 * ((number + 0.5) / len(models) - 0.5)
            y = np.arange(len(kinds)) + up
            axis.hlines(y, part["low"], part["high"], color=colour, lw=1.8)
            axis.plot(part["estimate"], y, marker, color=colour, ms=5, label=model)
        axis.set_title(f"{TITLES[metric].split(',')[0]}: mean loss")
        axis.xaxis.set_major_locator(MaxNLocator(5))  # more would touch one another
    axes[0].set_yticks(range(len(kinds)), kinds)
    axes[0].set_ylim(len(kinds) - 0.4, -0.6)
    if len(models) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=2)
    return figure


def curves_frame(found: Mapping[str, Any], metric: str) -> pd.DataFrame:
    """``model, kind, strength, estimate, low, high`` of one metric, strength 0 with every kind."""
    out = []
    for model in found["models"]:
        for kind in found["kinds"]:
            out.append({"model": model["model"], "kind": kind, "strength": 0} | _ends(model["clean"][metric]))
        for cell in model["cells"]:
            out.append(
                {k: cell[k] for k in ("kind", "strength")} | {"model": model["model"]} | _ends(cell["value"][metric])
            )
    return pd.DataFrame(out).astype({"estimate": float, "low": float, "high": float})


def _ends(figure: Mapping[str, Any]) -> dict[str, Any]:
    return {k: figure[k] for k in ("estimate", "low", "high")}


def curves_plot(frame: pd.DataFrame, kinds: Mapping[str, tuple[str, str]], reference: float | None) -> Figure:
    """One panel a kind, the metric over strength; shaded: 95 % intervals; dotted: ``reference``.

    Parameters
    ----------
    frame : DataFrame
        From `curves_frame`.
    kinds : mapping
        Name -> title, and what strengths 1 to 5 are.
    reference : float or None
        Chance, or what is best.
    """
    rows, columns = -(-len(kinds) // _COLUMNS), min(_COLUMNS, len(kinds))
    models = list(dict.fromkeys(frame["model"]))
    with matplotlib.rc_context(STYLE):
        size = (max(3.2, 1.84 * columns), 0.5 + 1.55 * rows)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (name, (title, levels)) in zip(axes, kinds.items(), strict=False):
        if reference is not None:
            axis.axhline(reference, color=GREY, lw=1, ls=":")
        for number, model in enumerate(models):
            colour, marker, line = _LOOKS[number % len(_LOOKS)]
            part = frame[(frame["model"] == model) & (frame["kind"] == name)].sort_values("strength")
            axis.fill_between(part["strength"], part["low"], part["high"], color=colour, alpha=0.18, lw=0)
            axis.plot(part["strength"], part["estimate"], marker + line, color=colour, ms=3.2, lw=1.4, label=model)
        axis.set_title(f"{title}\n", fontsize=9)
        axis.text(0.5, 1.02, levels, transform=axis.transAxes, ha="center", va="bottom", fontsize=7.5, color="#5b6575")
        axis.set_xticks(range(6))
    for axis in axes[len(kinds) :]:
        axis.set_visible(False)
    for axis in axes[max(0, len(kinds) - columns) : len(kinds)]:
        axis.set_xlabel("strength")
        axis.tick_params(labelbottom=True)
    if len(models) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=2)
    return figure


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What the figures say, in words."""
    metric = headline(found)
    short = TITLES[metric].split(",")[0]
    titles = {k["name"]: k["title"].lower() for k in found["kinds_in_words"]}
    conditions = len(found["models"][0]["cells"])
    text = []
    for model in found["models"]:
        clean, drop = model["clean"][metric], model["mean_drop"][metric]
        if clean["estimate"] is None or drop["estimate"] is None:
            text.append(f"{model['model']}: the {short} is not defined for these images.")
            continue
        words = (
            f"{model['model']}: {short} {clean['estimate']:.3f}{_span(clean, '.3f')} on the images as they are; under "
            f"{conditions} corruptions it loses {_minus(drop['estimate'], '.3f')} on average{_span(drop, '+.3f')}."
        )
        worst = sorted(model["kinds"], key=lambda k: -(k["drop"][metric]["estimate"] or 0.0))[:3]
        harm = [k for k in worst if (k["drop"][metric]["low"] or 0.0) > 0]
        if harm:
            named = ", ".join(f"{titles[k['kind']]} ({_minus(k['drop'][metric]['estimate'], '.3f')})" for k in harm)
            words += f" What harms most: {named}."
        else:
            words += " No kind lowers it by more than these images could show by chance."
        text.append(words)
    for pair in found["pairs"]:
        gap = pair["mean_drop"][metric]
        interval = gap["interval"]
        if interval["low"] is None:
            continue
        a, b = pair["a"], pair["b"]
        verdict = (
            f"{a} loses more than {b}"
            if interval["low"] > 0
            else f"{b} loses more than {a}"
            if interval["high"] < 0
            else f"these images do not show that {a} or {b} loses more"
        )
        text.append(
            f"Mean loss of {short}, {a} minus {b}: {_minus(interval['estimate'], '+.3f')}{_span(interval, '+.3f')}: "
            f"{verdict}."
        )
    return text


def _minus(value: float, form: str) -> str:
    return format(round(value, 3) + 0.0, form).replace("-", "−")


def _span(figure: Mapping[str, Any], form: str) -> str:
    if figure["low"] is None or figure["low"] != figure["low"]:
        return " (no interval)"
    return f" (95 % interval {_minus(figure['low'], form)} to {_minus(figure['high'], form)})"


def write(out: Path, found: Mapping[str, Any], sheet: bytes) -> Path:
    """Draw the figures and write ``stress.html``.

    Parameters
    ----------
    out : Path
    found : mapping
        `sonobreast.evaluation.robustness.analyse`, with ``about``, ``kinds_in_words`` and ``environment``.
    sheet : bytes
        A JPEG that shows the corruptions.
    """
    main = headline(found)
    kinds = {k["name"]: (k["title"], f"{k['labels'][0]} … {k['labels'][-1]}") for k in found["kinds_in_words"]}
    figures = {"summary": summary_plot(summary_frame(found, tuple(dict.fromkeys((main, "accuracy")))))}
    reference = {"auc_malignant": 0.5, "accuracy": found["chance"], "overconfidence": 0.0}
    shown = [m for m in (main, "accuracy", "overconfidence", "ece", "brier") if m in found["metrics"]]
    for metric in dict.fromkeys(shown):
        figures[metric] = curves_plot(curves_frame(found, metric), kinds, reference.get(metric))
    drawings = {}
    for name, figure in figures.items():
        content = png(figure)
        with atomic(out / "figures" / f"{name}.png", "wb") as stream:
            stream.write(content)
        drawings[name] = base64.b64encode(content).decode()
    with atomic(out / "figures" / "corruptions.jpg", "wb") as stream:
        stream.write(sheet)
    file = out / "stress.html"
    tables = [
        {
            "model": m["model"],
            "rows": [
                {
                    "title": kinds[k["kind"]][0],
                    "cells": [c["value"][main] for c in m["cells"] if c["kind"] == k["kind"]],
                    "drop": k["drop"],
                }
                for k in m["kinds"]
            ],
            **{name: m[name] for name in ("clean", "mean_drop")},
        }
        for m in found["models"]
    ]
    write_page(
        file,
        "evaluation/robustness.html.j2",
        {
            **found,
            "main": main,
            "titles": TITLES,
            "tables": tables,
            "drawings": drawings,
            "sheet": base64.b64encode(sheet).decode(),
            "sentences": sentences(found),
        },
    )
    return file
