"""Figures that only the study's report has: what is refused, and how much of a map lies on the lesion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sonobreast.evaluation.plots import BLUE, GREEN, GREY, ORANGE, STYLE, VERMILION

OWN = "own test scans"
_GROUPS = {"own": (BLUE, "s"), "other": (GREEN, "^"), "outsider": (VERMILION, "o")}
_PARTS = {
    "all": (BLUE, "o", "all images"),
    "right": (GREEN, "^", "called right"),
    "wrong": (ORANGE, "s", "called wrong"),
}


def refused_frame(found: Mapping[str, Any]) -> pd.DataFrame:
    """``kind, group, estimate, low, high`` of the shares refused: own scans, other hospitals, outsiders by share.

    Parameters
    ----------
    found : mapping
        Content of ``domain.json``.
    """
    mine = found["detectors"][found["detector"]]
    rows = [{"kind": OWN, "group": "own"} | _ends(mine["test"]["refused"])]
    rows += [{"kind": k, "group": "other"} | _ends(f["refused"]) for k, f in mine["others"].items()]
    outside = [{"kind": k, "group": "outsider"} | _ends(f["refused"]) for k, f in mine["outsiders"].items()]
    rows += sorted(outside, key=lambda r: (-1.0 if r["estimate"] is None else r["estimate"], r["kind"]))
    return pd.DataFrame(rows).astype({"estimate": float, "low": float, "high": float})


def _ends(figure: Mapping[str, Any]) -> dict[str, Any]:
    return {k: figure[k] for k in ("estimate", "low", "high")}


def refused_plot(frame: pd.DataFrame, aim: float) -> Figure:
    """Shares refused in per cent with their intervals, one below the other; dotted: ``aim``, the share for scans."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.7 + 0.26 * len(frame)), layout="constrained")
        axis = figure.subplots()
    axis.axvline(100.0 * aim, color=GREY, lw=1, ls=":")
    for group, (colour, marker) in _GROUPS.items():
        part = frame[frame["group"] == group]
        y = part.index.to_numpy()
        axis.hlines(y, 100.0 * part["low"], 100.0 * part["high"], color=colour, lw=1.8)
        axis.plot(100.0 * part["estimate"], y, marker, color=colour, ms=5)
    axis.set_yticks(range(len(frame)), frame["kind"])
    axis.set_ylim(len(frame) - 0.5, -0.5)
    axis.set_xlim(-2.0, 102.0)
    axis.set_xlabel("refused, %")
    return figure


def energy_frame(found: Mapping[str, Any], titles: Mapping[str, str]) -> pd.DataFrame:
    """``map, part, estimate, low, high, area`` of the energy inside the lesion: all, right and wrong predictions.

    Parameters
    ----------
    found : mapping
        Content of ``explain.json``.
    titles : mapping
        Method -> how it is named in the figure.
    """
    rows = [
        {"map": titles[f["method"]], "part": f["part"], "area": f["area"]} | _ends(f["energy"])
        for f in found["localisation"]
        if f["part"] in _PARTS
    ]
    return pd.DataFrame(rows).astype({"estimate": float, "low": float, "high": float, "area": float})


def energy_plot(frame: pd.DataFrame) -> Figure:
    """Energy inside the lesion with its intervals, a row a map; dotted: the lesions' mean share of the image."""
    maps = list(dict.fromkeys(frame["map"]))
    parts = [p for p in _PARTS if p in set(frame["part"])]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.9 + 0.42 * len(maps)), layout="constrained")
        axis = figure.subplots()
    whole = frame[frame["part"] == "all"].set_index("map").reindex(maps)
    rows = np.arange(len(maps))
    axis.vlines(whole["area"], rows - 0.42, rows + 0.42, color=GREY, lw=1.4, ls=":")
    for number, name in enumerate(parts):
        colour, marker, label = _PARTS[name]
        part = frame[frame["part"] == name].set_index("map").reindex(maps)
        y = rows + 0.6 * ((number + 0.5) / len(parts) - 0.5)
        axis.hlines(y, part["low"], part["high"], color=colour, lw=1.8)
        axis.plot(part["estimate"], y, marker, color=colour, ms=5, label=label)
    axis.set_yticks(rows, maps)
    axis.set_ylim(len(maps) - 0.5, -0.5)
    axis.set_xlim(0.0, 1.0)
    axis.set_xlabel("energy inside the lesion")
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=3)
    return figure
