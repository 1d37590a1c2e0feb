"""The page of an external evaluation: figures, tables, sentences."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from sonobreast.evaluation.external import SUBGROUPS, sentences
from sonobreast.evaluation.glossary import describe
from sonobreast.evaluation.plots import BLUE, GREY, STYLE, VERMILION, png
from sonobreast.page import write_page
from sonobreast.records import atomic

_ROWS = (
    ("auc_malignant", "decision", "AUC, malignant against rest"),
    ("sensitivity_malignant", "decision", "Sensitivity, as the model decides"),
    ("specificity_malignant", "decision", "Specificity, as the model decides"),
    ("sensitivity_malignant", "threshold", "Sensitivity at the frozen threshold"),
    ("specificity_malignant", "threshold", "Specificity at the frozen threshold"),
    ("brier", "decision", "Brier score, malignant or not"),
)


def figures_frame(found: Mapping[str, Any]) -> pd.DataFrame:
    """``title, side, estimate, low, high`` of the figures with values from 0 to 1, for both sides."""
    rows = [
        {"title": title, "side": side, **{k: found[side][at][metric][k] for k in ("estimate", "low", "high")}}
        for metric, at, title in _ROWS[:5]
        for side in ("internal", "external")
    ]
    return pd.DataFrame(rows).astype({"estimate": float, "low": float, "high": float})


def figures_plot(frame: pd.DataFrame) -> Figure:
    """Internal and external figures with their 95 % intervals, one below the other."""
    titles = list(dict.fromkeys(frame["title"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.6 + 0.5 * len(titles)), layout="constrained")
        axis = figure.subplots()
    for side, colour, marker, up in (("internal", BLUE, "o", -0.14), ("external", VERMILION, "s", 0.14)):
        part = frame[frame["side"] == side].reset_index(drop=True)
        for y, (low, middle, high) in enumerate(part[["low", "estimate", "high"]].to_numpy(float)):
            axis.plot([low, high], [y + up, y + up], color=colour, lw=2, solid_capstyle="butt")
            axis.plot(middle, y + up, marker, color=colour, ms=6, label=side if y == 0 else None)
    axis.set_yticks(range(len(titles)), titles)
    axis.set_ylim(len(titles) - 0.5, -0.5)
    axis.set_xlim(0.0, 1.02)
    axis.axvline(0.5, color=GREY, lw=1, ls=":")
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    return figure


def recalibration_frame(found: Mapping[str, Any]) -> pd.DataFrame:
    """``n, mean, low, high`` of the log loss; ``n`` are the cases that were used, on average over the draws."""
    rows = [{"n": r["used"], **r["log_loss"]} for r in found["recalibration"]]
    return pd.DataFrame(rows).astype(float)


def recalibration_plot(frame: pd.DataFrame) -> Figure:
    """Log loss of the other images over the number of local cases used; shaded: the middle 95 % of the draws."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 2.8), layout="constrained")
        axis = figure.subplots()
    first, rest = frame.iloc[0], frame.iloc[1:]
    axis.axhline(first["mean"], color=GREY, ls="--", lw=1.2, label="as it is")
    if len(rest):
        axis.fill_between(rest["n"], rest["low"], rest["high"], color=BLUE, alpha=0.2, lw=0)
        axis.plot(rest["n"], rest["mean"], "o-", color=BLUE, label="recalibrated")
        axis.set_xscale("log")
        axis.set_xticks(rest["n"], [f"{n:.0f}" for n in rest["n"]])
        axis.minorticks_off()
    axis.set_xlabel("local cases used")
    axis.set_ylabel("log loss on the others")
    axis.legend(frameon=False)
    return figure


def write(out: Path, found: Mapping[str, Any]) -> Path:
    """Draw the figures and write ``report.html``.

    Parameters
    ----------
    out : Path
    found : mapping
        `sonobreast.evaluation.external.analyse`, with ``about``, ``segmentation`` and ``environment``.
    """
    about = found["about"]
    drawings = {}
    for name, figure in (
        ("external", figures_plot(figures_frame(found))),
        ("recalibration", recalibration_plot(recalibration_frame(found))),
    ):
        content = png(figure)
        with atomic(out / "figures" / f"{name}.png", "wb") as stream:
            stream.write(content)
        drawings[name] = base64.b64encode(content).decode()
    subgroups: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["subgroups"]:
        subgroups.setdefault(SUBGROUPS[row["by"]], []).append(row)
    file = out / "report.html"
    rows = [
        {
            "title": title,
            "internal": found["internal"][at][metric],
            "external": found["external"][at][metric],
            "drop": found["drop"][at][metric],
        }
        for metric, at, title in _ROWS
    ]
    write_page(
        file,
        "evaluation/external.html.j2",
        {
            **found,
            "rows": rows,
            "drawings": drawings,
            "by": subgroups,
            "sentences": sentences(found, about["name"]),
            "describe": describe,
        },
    )
    return file
