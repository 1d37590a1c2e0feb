"""Where a network draws the lesion: best, median and worst images of a configuration, and its largest false positive.

Chosen by rule and not by eye, so that a report cannot show its good cases only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sonobreast.evaluation.plots import STYLE

Kind = Literal["best", "median", "worst", "false positive"]
_EACH = 3
# Sky blue and orange of Okabe and Ito: apart for colour-blind readers, and both light enough for dark echoes.
TRUE_OUTLINE, PREDICTED_OUTLINE = ("#56B4E9", "solid"), ("#E69F00", (0, (3.0, 1.6)))
_LONGEST_NAME = 44


@dataclass(frozen=True)
class Chosen:
    """An image that is to be shown.

    Attributes
    ----------
    kind : {"best", "median", "worst", "false positive"}
    run : str
        The run whose test image it is.
    image, label, predicted : str
        Its name, class and predicted class.
    figure : float
        Dice; of a false positive the predicted share of the image.
    area : int
        Predicted area in pixels.
    """

    kind: Kind
    run: str
    image: str
    label: str
    predicted: str
    figure: float
    area: int


@dataclass(frozen=True, eq=False)
class Overlay:
    """An image with its masks.

    Attributes
    ----------
    chosen : Chosen
    picture : ndarray, uint8, (H, W, 3)
    truth, predicted : ndarray, bool, (H, W)
    """

    chosen: Chosen
    picture: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.bool_]
    predicted: npt.NDArray[np.bool_]


def choose(table: pd.DataFrame) -> list[Chosen]:
    """Best, median and worst three test images by Dice, and the largest false positive on a normal image.

    Of the first repeat and seed, all folds. No image is chosen twice, and no group where there are enough of them:
    copies of one picture show one thing. Of fewer than nine lesions, fewer of each. Of equal Dice (missed lesions have
    0) the larger lesion is the worse miss, then the name decides.

    Parameters
    ----------
    table : DataFrame
        Rows of one configuration (`sonobreast.evaluation.segmentation_summary.read_segmentation`).

    Returns
    -------
    list of Chosen
        In the order of the figure; empty where there is neither a lesion nor a false positive.
    """
    first = table.sort_values(["repeat", "seed"], kind="stable").iloc[0]
    mine = table[(table["repeat"] == first["repeat"]) & (table["seed"] == first["seed"])]
    lesions = mine[mine["truth"] == "lesion"].sort_values(
        ["dice", "true_area_px", "image"], ascending=[False, True, True]
    )
    n = len(lesions)
    each = min(_EACH, n // 3) if n > 2 else 1
    groups = lesions["group"].tolist()
    if len(set(groups)) < 3 * each:  # too few to show no copies side by side
        groups = list(range(n))
    taken: set[object] = set()
    places: dict[Kind, list[int]] = {"best": _apart(range(n), groups, each, taken)}
    worst = _apart(range(n - 1, -1, -1), groups, each, taken) if n > 1 else []
    if n > 2:
        outward = sorted(range(n), key=lambda i: (abs(2 * i - (n - 1)), i))
        places["median"] = _apart(outward, groups, each, taken)
    places["worst"] = worst
    chosen = [_chosen(kind, lesions.iloc[i], "dice") for kind, rows in places.items() for i in rows]
    drawn = mine[(mine["truth"] == "empty") & (mine["predicted_area_px"] > 0)]
    if len(drawn):
        largest = drawn.sort_values(["false_positive_share", "image"], ascending=[False, True]).iloc[0]
        chosen.append(_chosen("false positive", largest, "false_positive_share"))
    return chosen


def _apart(order: Iterable[int], groups: Sequence[object], each: int, taken: set[object]) -> list[int]:
    """The first ``each`` places, in ascending order, whose groups are not taken; these are then."""
    found: list[int] = []
    for i in order:
        if len(found) < each and groups[i] not in taken:
            taken.add(groups[i])
            found.append(i)
    return sorted(found)


def _chosen(kind: Kind, row: pd.Series[float], figure: str) -> Chosen:
    texts = {k: str(row[k]) for k in ("run", "image", "label", "predicted")}
    return Chosen(kind, **texts, figure=float(row[figure]), area=int(row["predicted_area_px"]))


def overlays_plot(overlays: Sequence[Overlay], title: str) -> Figure:
    """The chosen images with the outline of the true lesion (solid) and of the predicted one (dashed).

    Parameters
    ----------
    overlays : sequence of Overlay
        At least one, in the order of `choose`.
    title : str
        The configuration.
    """
    rows = {k: [o for o in overlays if o.chosen.kind == k] for k in dict.fromkeys(o.chosen.kind for o in overlays)}
    columns = max(map(len, rows.values()))
    width = 8.4
    side = width / columns
    height = [max(_height(o, side - 0.25) for o in line) + 0.5 for line in rows.values()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(width, 2.8 * columns), sum(height) + 0.75), layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=height)
        for line, (kind, shown) in zip(axes, rows.items(), strict=True):
            for axis in line[len(shown) :]:
                axis.set_visible(False)
            for axis, overlay in zip(line, shown, strict=False):
                _draw(axis, overlay)
            line[0].set_ylabel(_row_title(kind), fontsize=10)
        figure.legend(
            handles=[
                Line2D([], [], color=colour, ls=style, lw=2.0, label=label)
                for (colour, style), label in ((TRUE_OUTLINE, "true outline"), (PREDICTED_OUTLINE, "predicted outline"))
            ],
            loc="outside lower center",
            ncols=2,
            frameon=False,
            handlelength=3.2,
        )
        figure.suptitle(title, fontsize=10.5)
    return figure


def _height(overlay: Overlay, width: float) -> float:
    """Inches that an image of this width takes; a very tall one is shown narrower."""
    height, across = overlay.truth.shape
    return width * float(min(height / across, 1.5))


def _row_title(kind: Kind) -> str:
    return "largest\nfalse positive" if kind == "false positive" else kind


def _draw(axis: Axes, overlay: Overlay) -> None:
    axis.imshow(overlay.picture, interpolation="antialiased")
    for mask, (colour, style) in ((overlay.truth, TRUE_OUTLINE), (overlay.predicted, PREDICTED_OUTLINE)):
        draw_outline(axis, mask, colour, style)
    height, width = overlay.truth.shape
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_anchor("N")  # images of a row begin at one height
    axis.spines[:].set_visible(False)
    axis.set_xlabel(caption(overlay.chosen), fontsize=8)


def draw_outline(axis: Axes, mask: npt.NDArray[np.bool_], colour: str, style: object) -> None:
    """The border between the mask's pixels and the others; closed where the mask touches the image's edge."""
    if not mask.any():
        return
    height, width = mask.shape
    padded = np.pad(mask, 1).astype(np.float64)
    lines = axis.contour(
        np.arange(-1, width + 1),
        np.arange(-1, height + 1),
        padded,
        [0.5],
        colors=colour,
        linestyles=[style],
        linewidths=1.5,
    )
    # A dark rim keeps both colours visible on bright echoes.
    lines.set_path_effects([patheffects.withStroke(linewidth=2.6, foreground="black", alpha=0.6)])


def caption(chosen: Chosen) -> str:
    """Two lines below an image: the figure, the class and a wrong one that was predicted; the name, or its end."""
    if chosen.kind == "false positive":
        figure = f"{100 * chosen.figure:.1f} % of the image"
    else:
        figure = f"Dice {chosen.figure:.2f}" if chosen.area else "missed (Dice 0)"
    called = "" if chosen.predicted == chosen.label else f", called {chosen.predicted}"
    name = chosen.image if len(chosen.image) <= _LONGEST_NAME else "…" + chosen.image[1 - _LONGEST_NAME :]
    return f"{figure} · {chosen.label}{called}\n{name}"


def overlays_name(architecture: str, optimizer: str) -> str:
    """File name of a configuration's overlays, without ``.png``."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in architecture)
    return f"segmentation-{safe}-{optimizer}"
