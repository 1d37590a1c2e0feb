"""What leakage costs: the same network under random, grouped and curated divisions, paired case by case."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sonobreast.evaluation.compare import Difference, paired_difference, spread
from sonobreast.evaluation.intervals import bootstrap
from sonobreast.evaluation.metrics import Scored
from sonobreast.evaluation.plots import BLUE, GREEN, STYLE, VERMILION, png
from sonobreast.evaluation.predictions import KEYS, classes_of, configuration_title, repeats_of
from sonobreast.page import write_page
from sonobreast.records import atomic

DESIGNS = ("random", "grouped", "curated")
MEANING = {
    "random": "divided image by image: copies of a test image may be in training",
    "grouped": "copies of one picture, and the images of one patient, in one subset",
    "curated": "copies and pictures with two labels left out, the rest grouped",
}
_COLOURS = {"random": VERMILION, "grouped": BLUE, "curated": GREEN}
_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "auc_malignant": "AUC malignant",
}


def analyse(table: pd.DataFrame, *, resamples: int = 2000) -> dict[str, Any]:
    """Figures of the three divisions and their paired differences, JSON-ready.

    Parameters
    ----------
    table : DataFrame
        Test predictions as in ``predictions.csv``, with a column ``design``.
    resamples : int

    Returns
    -------
    dict
        ``configurations``: for each architecture and optimizer ``designs`` (figures with intervals, number of images
        and groups, spread over repeats), ``differences`` (random - grouped on all images; random - curated and
        grouped - curated on the curated images), and ``copies``: accuracy on images that have a copy in the data and on
        those that have none, for random and grouped.
    """
    return {
        "level": 0.95,
        "resamples": resamples,
        "configurations": [
            {"architecture": a, "optimizer": o, **_configuration(part, resamples)}
            for (a, o), part in table.groupby(KEYS, sort=False)
        ],
    }


def _configuration(table: pd.DataFrame, resamples: int) -> dict[str, Any]:
    metrics = [m for m in _METRICS if m != "auc_malignant" or "malignant" in classes_of(table)]
    parts = {d: table[table["design"] == d] for d in DESIGNS}
    sides = {d: repeats_of(part)[:2] for d, part in parts.items()}
    curated = set(parts["curated"]["image"])
    common = {d: repeats_of(part[part["image"].isin(curated)])[:2] for d, part in parts.items()}
    size = parts["grouped"].drop_duplicates("image")["group"].value_counts()

    def difference(a: tuple[list[Scored], Any], b: tuple[list[Scored], Any]) -> dict[str, Any]:
        found = paired_difference(a[0], b[0], a[1], metrics=metrics, resamples=resamples)
        return {"images": len(a[1]), **{m: _difference(d) for m, d in found.items()}}

    return {
        "designs": {
            d: {
                "images": repeats[0].n,
                "groups": len(set(group)),
                "repeats": len(repeats),
                **{
                    m: i.as_dict()
                    for m, i in bootstrap(repeats, group, metrics=metrics, resamples=resamples, method="bca").items()
                },
                "spread": spread([float(r.correct.mean()) for r in repeats]).as_dict(),
            }
            for d, (repeats, group) in sides.items()
        },
        "differences": {
            "random - grouped": difference(sides["random"], sides["grouped"]),
            "random - curated": difference(common["random"], sides["curated"]),
            "grouped - curated": difference(common["grouped"], sides["curated"]),
        },
        "copies": {
            name: {
                "images": int(parts["grouped"].loc[parts["grouped"]["group"].isin(chosen), "image"].nunique()),
                **{d: _accuracy(parts[d][parts[d]["group"].isin(chosen)], resamples) for d in ("random", "grouped")},
            }
            for name, chosen in (
                ("with a copy", set(size.index[size > 1])),
                ("without a copy", set(size.index[size == 1])),
            )
        },
    }


def _difference(found: Difference) -> dict[str, Any]:
    content = found.interval.as_dict()
    return {
        "a": found.a,
        "b": found.b,
        "p_value": None if found.p_value != found.p_value else found.p_value,
        **{k: content[k] for k in ("estimate", "low", "high")},
    }


def _accuracy(table: pd.DataFrame, resamples: int) -> dict[str, Any] | None:
    if table.empty:
        return None
    repeats, group, _ = repeats_of(table)
    content = bootstrap(repeats, group, metrics=["accuracy"], resamples=resamples, method="bca")["accuracy"].as_dict()
    return {k: content[k] for k in ("estimate", "low", "high")}


def frame(figures: Mapping[str, Any], metric: str) -> pd.DataFrame:
    """What the figure shows: ``kind, name, estimate, low, high`` of the divisions and of their differences."""
    rows = [
        {"kind": "division", "name": d, **{k: v[metric][k] for k in ("estimate", "low", "high")}}
        for d, v in figures["designs"].items()
    ]
    rows += [
        {"kind": "difference", "name": d, **{k: v[metric][k] for k in ("estimate", "low", "high")}}
        for d, v in figures["differences"].items()
    ]
    rows += [
        {"kind": name, "name": d, **v[d]}
        for name, v in figures["copies"].items()
        for d in ("random", "grouped")
        if metric == "accuracy" and v[d] is not None
    ]
    return pd.DataFrame(rows).astype({"estimate": float, "low": float, "high": float})


def plot(table: pd.DataFrame, metric: str) -> Figure:
    """Divisions with their intervals, images with and without a copy, and the paired differences."""
    panels = [k for k in ("division", "with a copy", "without a copy", "difference") if k in set(table["kind"])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 2.4), layout="constrained")
        widths = [1.5 if p == "difference" else 1 for p in panels]
        axes = dict(zip(panels, np.atleast_1d(figure.subplots(1, len(panels), width_ratios=widths)), strict=True))
        for kind, axis in axes.items():
            _draw(axis, table[table["kind"] == kind].reset_index(drop=True), kind, metric)
    shared = [axis for kind, axis in axes.items() if kind != "difference"]
    low, high = min(a.get_xlim()[0] for a in shared), max(a.get_xlim()[1] for a in shared)
    for axis in shared:
        axis.set_xlim(low, high)
    return figure


def _draw(axis: Axes, part: pd.DataFrame, kind: str, metric: str) -> None:
    for y, row in enumerate(part.itertuples(index=False)):
        colour = "black" if kind == "difference" else _COLOURS[str(row.name)]
        marker = {"random": "s", "grouped": "o", "curated": "D"}.get(str(row.name), "o")
        low, middle, high = (100 * float(getattr(row, k)) for k in ("low", "estimate", "high"))
        axis.plot([low, high], [y, y], color=colour, lw=2, solid_capstyle="butt")
        axis.plot(middle, y, marker, color=colour, ms=6)
    axis.set_yticks(range(len(part)), [n.replace(" - ", " − ") for n in part["name"]])
    axis.set_ylim(len(part) - 0.5, -0.5)
    if kind == "difference":
        axis.axvline(0, color="black", lw=1, ls=":")
        axis.set_xlabel("difference in points")
        axis.set_title("paired differences")
    else:
        axis.set_xlabel("AUC × 100" if metric.startswith("auc") else "%")
        axis.set_title({"division": "all test images"}.get(kind, f"images {kind}"))


def paragraph(figures: Mapping[str, Any], title: str) -> str:
    """What the differences say, in words."""
    random, grouped = figures["designs"]["random"], figures["designs"]["grouped"]
    gap = figures["differences"]["random - grouped"]
    accuracy = gap["accuracy"]
    words = (
        f"{title}: divided image by image, the accuracy on {random['images']} images is "
        f"{_share(random['accuracy'])}; with copies of one picture kept together it is {_share(grouped['accuracy'])}. "
        f"The difference, paired image by image over {random['repeats']} repeats, is "
        f"{100 * accuracy['estimate']:+.1f} points (95 % interval {100 * accuracy['low']:+.1f} to "
        f"{100 * accuracy['high']:+.1f})"
    )
    if accuracy["low"] > 0:
        words += ": the random division shows a network better than it is."
    elif accuracy["high"] < 0:
        words += ": here the random division does not flatter the network."
    else:
        words += ": these images do not tell the two divisions apart."
    if "auc_malignant" in gap:
        auc = gap["auc_malignant"]
        words += f" In the malignancy AUC it is {auc['estimate']:+.3f} ({auc['low']:+.3f} to {auc['high']:+.3f})."
    with_copy, without = figures["copies"]["with a copy"], figures["copies"]["without a copy"]
    if with_copy["random"] and without["random"]:
        words += (
            f" On the {with_copy['images']} images that have a copy the accuracy is "
            f"{100 * with_copy['random']['estimate']:.1f} % under the random division and "
            f"{100 * with_copy['grouped']['estimate']:.1f} % under the grouped one; on the {without['images']} that "
            f"have none, {100 * without['random']['estimate']:.1f} % and {100 * without['grouped']['estimate']:.1f} %."
        )
    curated = figures["designs"]["curated"]
    words += (
        f" Trained and tested on the {curated['images']} images that are left without copies and double labels, it "
        f"reaches {_share(curated['accuracy'])}; it then learns from fewer images."
    )
    return words


def _share(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['estimate']:.1f} % ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"


def write(out: Path, table: pd.DataFrame, about: Mapping[str, Any], analysis: Mapping[str, Any]) -> Path:
    """Draw the figures and write ``report.html``.

    Parameters
    ----------
    out : Path
    table : DataFrame
        See `analyse`.
    about : mapping
        ``recipe`` (name and title), ``data`` (images, classes), ``coverage`` (sentences), ``left_out`` (number).
    analysis : mapping
        From `analyse`.
    """
    shown: list[dict[str, Any]] = []
    for c in analysis["configurations"]:
        title = configuration_title(c["architecture"], c["optimizer"])
        drawings = {}
        for metric in ("accuracy", "auc_malignant"):
            if metric in c["designs"]["random"]:
                content = png(plot(frame(c, metric), metric))
                with atomic(out / "figures" / f"leakage-{c['architecture']}-{c['optimizer']}-{metric}.png", "wb") as s:
                    s.write(content)
                drawings[metric] = base64.b64encode(content).decode()
        shown.append({**c, "title": title, "paragraph": paragraph(c, title), "drawings": drawings})
    file = out / "report.html"
    write_page(
        file,
        "evaluation/leakage.html.j2",
        {
            "configurations": shown,
            "about": about,
            "meaning": MEANING,
            "metrics": [{"name": m, "title": title} for m, title in _METRICS.items()],
            "resamples": analysis["resamples"],
            "runs": int(table[[*KEYS, "design", "repeat", "fold", "seed"]].drop_duplicates().shape[0]),
        },
    )
    return file
