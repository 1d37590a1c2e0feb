"""Figures of calibration and decisions: reliability diagram, decision curve, risk against coverage.

Each is drawn from one configuration's parts of ``metrics.json``. Colours are those of `sonobreast.evaluation.plots`;
lines differ in style and markers as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from sonobreast.evaluation.plots import BLUE, GREY, STYLE, VERMILION


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)
    return figure, axes[0]


def _numbers(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if r[key] is None else r[key] for r in rows], dtype=np.float64)


def reliability_plot(calibration: Mapping[str, Any]) -> Figure:
    """Share that happened against what was said, before and after the temperature, with 95 % intervals.

    Parameters
    ----------
    calibration : mapping
        From `sonobreast.evaluation.calibration.calibration_metrics`, with variants.
    """
    before, after = calibration["variants"]["none"], calibration["variants"]["temperature"]
    panels = [("top", "the class it names", "said: probability of the named class", "seen: share that was right")]
    if before["malignancy"]:
        panels.insert(
            0, ("malignancy", "malignancy", "said: probability of malignancy", "seen: share that was malignant")
        )
    figure, axes = _figure(4.1 * len(panels), 4.3, len(panels))
    for axis, (what, title, x, y) in zip(axes, panels, strict=True):
        axis.plot([0, 1], [0, 1], color="black", lw=1.0, ls=":", label="said = seen")
        old, new = before[what]["diagram"], after[what]["diagram"]
        axis.plot(
            _numbers(old, "score"),
            _numbers(old, "estimate"),
            "--s",
            color=VERMILION,
            mfc="white",
            ms=5,
            lw=1.1,
            label="as the network gives them",
        )
        middle, low, high = (_numbers(new, k) for k in ("estimate", "low", "high"))
        reach = np.nan_to_num([np.maximum(middle - low, 0), np.maximum(high - middle, 0)])
        axis.errorbar(
            _numbers(new, "score"),
            middle,
            reach,
            fmt="-o",
            color=BLUE,
            ms=5,
            lw=1.5,
            elinewidth=1.0,
            capsize=2.5,
            label="after the temperature",
        )
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
        axis.set_aspect("equal")
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_title(title)
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        axis.text(0.97, 0.05, "says too much", ha="right", fontsize=8, color="#555555", style="italic")
        axis.text(0.03, 0.95, "says too little", va="top", fontsize=8, color="#555555", style="italic")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def decision_curve_plot(decisions: Mapping[str, Any]) -> Figure:
    """Net benefit over the threshold probability, beside that of working up everyone and nobody (Vickers 2006).

    Parameters
    ----------
    decisions : mapping
        From `sonobreast.evaluation.decisions.decision_metrics`, with a curve.
    """
    curve = decisions["curve"]
    t = np.asarray(curve["threshold"], float)
    figure, axes = _figure(7.2, 3.7)
    axis = axes[0]
    axis.fill_between(t, curve["low"], curve["high"], color=BLUE, alpha=0.2, lw=0, label="95 % band, pointwise")
    axis.plot(t, curve["model"], color=BLUE, lw=2.0, label="model")
    axis.plot(t, curve["all"], color=VERMILION, lw=1.5, ls="--", label="biopsy for all")
    axis.axhline(0.0, color="black", lw=1.2, ls=":", label="biopsy for none")
    top = max(max(curve["high"]), decisions["prevalence"])
    axis.set_ylim(-0.25 * top, 1.08 * top)
    axis.set_xlim(0.0, float(t.max()))
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel("threshold probability: biopsy is wanted from this chance of cancer on")
    axis.set_ylabel("net benefit\n(cancers found per patient, net)")
    above = axis.secondary_xaxis("top")
    marks = [m for m in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5) if m <= t.max()]
    above.xaxis.set_major_locator(FixedLocator(marks))
    above.set_xticks(marks, [f"{(1 - m) / m:.3g}" for m in marks])
    above.set_xlabel("needless biopsies that one found cancer is worth", fontsize=8)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def risk_coverage_plot(abstention: Mapping[str, Any]) -> Figure:
    """Share of wrong decisions against the share of images that the model decides itself.

    Parameters
    ----------
    abstention : mapping
        From `sonobreast.evaluation.abstention.abstention_metrics`, with a curve.
    """
    curve = abstention["curve"]
    rows = [
        {"x": x, "estimate": r, "low": lo, "high": hi}
        for x, r, lo, hi in zip(curve["coverage"], curve["risk"], curve["low"], curve["high"], strict=True)
    ]
    x, risk, low, high = (_numbers(rows, k) for k in ("x", "estimate", "low", "high"))
    figure, axes = _figure(7.2, 3.4)
    axis = axes[0]
    axis.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0, label="95 % band, pointwise")
    axis.plot(x, risk, color=BLUE, lw=2.0, label="the surest first")
    axis.axhline(abstention["risk"], color=VERMILION, lw=1.5, ls="--", label="drawn by lot")
    n = abstention["n"]
    share = np.linspace(0.05, 1.0, 200)
    right = 1.0 - abstention["risk"]
    axis.plot(
        share,
        np.maximum(0.0, (share - right) / share),
        color=GREY,
        lw=1.3,
        ls="-.",
        label="best possible",
    )
    axis.set_xlim(1.0, 0.05)
    axis.set_ylim(0.0, max(0.05, 1.1 * float(np.nanmax(np.r_[high, abstention["risk"]]))))
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel(f"share of the {n} images that the model decides itself →  more and more go to a person")
    axis.set_ylabel("wrong among these")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def draw_decisions(configuration: Mapping[str, Any]) -> dict[str, Callable[[], Figure]]:
    """Name of the file without ``.png`` -> a function that draws it; only those that have something to show."""
    figures: dict[str, Callable[[], Figure]] = {}
    calibration, decisions, abstention = (
        configuration.get(k) or {} for k in ("calibration", "decisions", "abstention")
    )
    if calibration.get("variants"):
        figures["reliability"] = lambda: reliability_plot(calibration)
    if decisions.get("curve"):
        figures["decision-curve"] = lambda: decision_curve_plot(decisions)
    if abstention.get("curve"):
        figures["risk-coverage"] = lambda: risk_coverage_plot(abstention)
    return figures
