"""The figures of a report. Each is computed first (``..._frame``: a table) and drawn second (``..._plot``: a figure).

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines and bars differ in style as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sonobreast.evaluation import published
from sonobreast.evaluation.glossary import describe
from sonobreast.evaluation.predictions import OPTIMIZER_TITLES, configuration_title

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, "#CC79A7", "#56B4E9", "#F0E442")
STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.dpi": 110.0,
    "savefig.dpi": 150.0,
}


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes; the same figure gives the same bytes."""
    stream = BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def curves_frame(histories: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Training curves of one configuration.

    Parameters
    ----------
    histories : mapping of str to DataFrame
        Run -> its ``history.csv``.

    Returns
    -------
    DataFrame
        ``run, epoch, curve, value``; ``curve`` is one of train_loss, validation_loss, train_accuracy,
        validation_accuracy.
    """
    columns = ["train_loss", "validation_loss", "train_accuracy", "validation_accuracy"]
    parts = [h[["epoch", *columns]].assign(run=run) for run, h in histories.items()]
    long: pd.DataFrame = pd.concat(parts).melt(id_vars=["run", "epoch"], var_name="curve", value_name="value")
    return long[["run", "epoch", "curve", "value"]]


def curves_plot(frame: pd.DataFrame, title: str, best_epochs: Mapping[str, int]) -> Figure:
    """Loss and accuracy over the epochs (Figures 7 to 12 of Aulia 2026), the best epoch marked for a single run."""
    figure, axes = _figure(8.2, 2.9, 1, 2)
    for axis, kind in zip(axes[0], ("loss", "accuracy"), strict=True):
        for subset, colour, style in (("train", BLUE, "-"), ("validation", ORANGE, "--")):
            part = frame[frame["curve"] == f"{subset}_{kind}"]
            runs = part["run"].unique()
            for run in runs:
                one = part[part["run"] == run]
                axis.plot(
                    one["epoch"], one["value"], style, color=colour, lw=1.0, alpha=1.0 if len(runs) == 1 else 0.25
                )
            if len(runs) > 1:
                mean = part.groupby("epoch")["value"].mean()
                axis.plot(mean.index, mean.to_numpy(), style, color=colour, lw=2.0)
            axis.plot([], [], style, color=colour, label="training" if subset == "train" else subset)
        if len(best_epochs) == 1:
            best = next(iter(best_epochs.values()))
            axis.axvline(best, color=GREY, lw=0.9, ls=":", label=f"best epoch ({best})")
        axis.set_xlabel("epoch")
        axis.set_ylabel("cross-entropy" if kind == "loss" else "accuracy")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlim(left=1 if frame["epoch"].max() > 1 else 0)
        if kind == "accuracy":
            axis.set_ylim(0.0, 1.02)
        else:
            axis.set_ylim(bottom=0.0)
    figure.suptitle(title, fontsize=10.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def comparison_frame(
    metrics: Mapping[str, Any], paper: str | None, pretrained: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Test accuracy of every configuration with its interval and the paper's value.

    Parameters
    ----------
    metrics : mapping
        Content of a study's ``metrics.json``.
    paper : str or None
        Key in `sonobreast.evaluation.published`.
    pretrained : mapping of str to float or None
        Architecture -> share of its parameters that were pre-trained.

    Returns
    -------
    DataFrame
        ``architecture, optimizer, accuracy, low, high, n, published, pretrained``; shares from 0 to 1,
        NaN where there is none.
    """
    rows = []
    for c in metrics["configurations"]:
        printed = published_accuracies(paper, c["architecture"], c["optimizer"])
        rows.append(
            {
                "architecture": c["architecture"],
                "optimizer": c["optimizer"],
                "accuracy": c["accuracy"]["estimate"],
                "low": c["accuracy"]["low"],
                "high": c["accuracy"]["high"],
                "n": c["n"],
                "published": None if printed is None else printed["test"],
                "pretrained": (pretrained or {}).get(c["architecture"]),
            }
        )
    return pd.DataFrame(rows).astype(dict.fromkeys(("published", "low", "high", "pretrained"), float))


def published_accuracies(paper: str | None, architecture: str, optimizer: str) -> dict[str, float] | None:
    """Training, validation and test accuracy that the paper prints, 0 to 1; None where it prints none."""
    return None if paper is None else published.table3(paper, architecture, optimizer)


def comparison_plot(frame: pd.DataFrame, chance: float | None = None) -> Figure:
    """Test accuracies side by side with their 95 % intervals (Figure 14 of Aulia 2026)."""
    architectures = list(dict.fromkeys(frame["architecture"]))
    optimizers = list(dict.fromkeys(frame["optimizer"]))
    present = {a: list(frame.loc[frame["architecture"] == a, "optimizer"]) for a in architectures}
    width = 0.8 / max(len(found) for found in present.values())
    many = len(architectures) > 9  # names stand upright, so that the figure stays legible at the page's width
    figure, axes = _figure(max(5.0, 1.3 + (0.42 if many else 1.05) * len(frame)), 4.6 if many else 3.6)
    axis = axes[0, 0]
    hatches = ("", "//", "..", "xx", "\\\\", "++")
    for j, optimizer in enumerate(optimizers):
        part = frame[frame["optimizer"] == optimizer]
        x = [
            architectures.index(a) + (present[a].index(optimizer) - (len(present[a]) - 1) / 2) * width
            for a in part["architecture"]
        ]
        y = part["accuracy"].to_numpy()
        axis.bar(
            x,
            y,
            width * 0.92,
            color=_COLOURS[j % len(_COLOURS)],
            hatch=hatches[j % len(hatches)],
            edgecolor="white",
            linewidth=0.5,
            label=OPTIMIZER_TITLES.get(optimizer, optimizer),
        )
        low, high = part["low"].to_numpy(), part["high"].to_numpy()
        axis.errorbar(
            x, y, [np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt="none", ecolor="black", capsize=3, lw=1
        )
        for position, value in zip(x, y, strict=True):
            axis.text(
                position,
                0.02,
                f"{value:.0%}",
                ha="center",
                va="bottom",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2},
            )
        printed = part["published"].to_numpy()
        axis.plot(x, printed, "D", color="black", mfc="white", ms=5, label="printed in the paper" if j == 0 else None)
    if chance is not None:
        axis.axhline(chance, color="black", lw=1, ls=":", zorder=0, label="largest class")
    if np.isnan(frame["published"]).all():
        handles, labels = axis.get_legend_handles_labels()
        pairs = [(h, t) for h, t in zip(handles, labels, strict=True) if t != "printed in the paper"]
    else:
        pairs = list(zip(*axis.get_legend_handles_labels(), strict=True))
    share = frame.groupby("architecture")["pretrained"].first()
    names = {a: a if many else a.replace(":", ":\n").replace("+", "\n+") for a in architectures}
    ticks = [names[a] if np.isnan(share[a]) else f"{names[a]}\n({share[a]:.0%} pre-trained)" for a in architectures]
    axis.set_xticks(range(len(architectures)), ticks, rotation=90 if many else 0)
    axis.set_xlim(-0.55, len(architectures) - 0.45)
    axis.set_ylim(0.0, 1.02)
    axis.set_ylabel("test accuracy, 95 % interval")
    figure.legend([h for h, _ in pairs], [t for _, t in pairs], loc="outside upper center", ncols=5, frameon=False)
    return figure


def differences_frame(pairs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> pd.DataFrame:
    """Differences of pairs of configurations in long form.

    Parameters
    ----------
    pairs : sequence of mapping
        ``pairs`` of the comparisons in a study's ``metrics.json``.
    metrics : sequence of str

    Returns
    -------
    DataFrame
        ``a, b, metric, difference, low, high, p_holm``; NaN where there is none.
    """
    rows = [
        {
            "a": configuration_title(*pair["a"].values()),
            "b": configuration_title(*pair["b"].values()),
            "metric": m,
            "difference": pair["metrics"][m]["interval"]["estimate"],
            "low": pair["metrics"][m]["interval"]["low"],
            "high": pair["metrics"][m]["interval"]["high"],
            "p_holm": pair["metrics"][m]["p_holm"],
        }
        for pair in pairs
        for m in metrics
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(("difference", "low", "high", "p_holm"), float))


def differences_plot(frame: pd.DataFrame) -> Figure:
    """Differences of pairs with their intervals around a zero line, a panel for each metric.

    Filled where Holm's p is at most 0.05, open where no difference is shown.
    """
    pairs = list(dict.fromkeys(zip(frame["a"], frame["b"], strict=True)))
    metrics = list(dict.fromkeys(frame["metric"]))
    figure, axes = _figure(8.2, 1.1 + 0.36 * len(pairs), 1, len(metrics), sharey=True)
    for axis, metric in zip(axes[0], metrics, strict=True):
        part = frame[frame["metric"] == metric].set_index(["a", "b"]).loc[pairs]
        y = np.arange(len(pairs))
        shown = (part["p_holm"] <= 0.05).to_numpy()
        axis.axvline(0.0, color="black", lw=0.9)
        axis.hlines(y, part["low"], part["high"], color=np.where(shown, BLUE, GREY), lw=1.8)
        for mask, face, edge in ((shown, BLUE, BLUE), (~shown, "white", GREY)):
            axis.plot(part["difference"][mask], y[mask], "o", mfc=face, mec=edge, ms=5.5, mew=1.4)
        reach = 1.08 * np.nanmax(np.abs(part[["difference", "low", "high"]].to_numpy()), initial=0.02)
        axis.set_xlim(-reach, reach)
        axis.set_ylim(len(pairs) - 0.4, -0.6)
        axis.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
        axis.set_title(describe(metric).title, fontsize=9)
        axis.set_xlabel("← B higher        A higher →", fontsize=8)
        axis.grid(axis="y", color="#e4e8ee", lw=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(pairs)), [f"{a}\n{b}" for a, b in pairs], fontsize=7.5)
    handles = [
        Line2D([], [], color=BLUE, marker="o", mfc=BLUE, ms=5.5, lw=1.8, label="Holm p at most 0.05"),
        Line2D([], [], color=GREY, marker="o", mfc="white", ms=5.5, lw=1.8, label="no difference shown"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def confusion_frame(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Confusion matrices in long form: ``architecture, optimizer, truth, predicted, images``."""
    rows = [
        {"architecture": c["architecture"], "optimizer": c["optimizer"], "truth": t, "predicted": p, "images": n}
        for c in metrics["configurations"]
        for t, line in zip(c["classes"], c["confusion"], strict=True)
        for p, n in zip(c["classes"], line, strict=True)
    ]
    return pd.DataFrame(rows)


def confusion_plot(frame: pd.DataFrame) -> Figure:
    """Confusion matrices of all configurations (Figure 13 of Aulia 2026); colour is the share of the true class."""
    keys = list(dict.fromkeys(zip(frame["architecture"], frame["optimizer"], strict=True)))
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    classes = list(dict.fromkeys(frame["truth"]))
    side = max(2.5, 0.62 * len(classes) + 0.9)
    figure, axes = _figure(columns * side, rows * (side + 0.2), rows, columns)
    for axis in axes.flat[len(keys) :]:
        axis.set_visible(False)
    for axis, (architecture, optimizer) in zip(axes.flat, keys, strict=False):
        part = frame[(frame["architecture"] == architecture) & (frame["optimizer"] == optimizer)]
        matrix = part["images"].to_numpy(float).reshape(len(classes), len(classes))
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (i, j), n in np.ndenumerate(matrix):
            text = f"{n:.0f}" if n == round(n) else f"{n:.1f}"
            axis.text(j, i, text, ha="center", va="center", color="white" if share[i, j] > 0.55 else "black")
        axis.set_xticks(range(len(classes)), classes)
        axis.set_yticks(range(len(classes)), classes, rotation=90, va="center")
        axis.set_xlabel("predicted")
        axis.set_ylabel("truth")
        axis.set_title(configuration_title(architecture, optimizer), fontsize=9)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    return figure


def samples_plot(pictures: Mapping[str, Sequence[npt.NDArray[np.uint8]]]) -> Figure:
    """Some images of each class, a row for each (Figure 2 of Aulia 2026).

    Parameters
    ----------
    pictures : mapping of str to sequence of ndarray, uint8, (H, W, 3)
    """
    return _gallery({c: [("", p) for p in row] for c, row in pictures.items()})


def augmentation_plot(pictures: Mapping[str, Sequence[npt.NDArray[np.uint8]]]) -> Figure:
    """An image of each class as it is and under augmented views (Figure 6 of Aulia 2026)."""
    return _gallery(
        {c: [("original" if i == 0 else f"view {i}", p) for i, p in enumerate(row)] for c, row in pictures.items()}
    )


def _gallery(rows: Mapping[str, Sequence[tuple[str, npt.NDArray[np.uint8]]]]) -> Figure:
    columns = max(len(r) for r in rows.values())
    figure, axes = _figure(1.75 * columns, 1.85 * len(rows), len(rows), columns)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis in line[len(pictures) :]:
            axis.set_visible(False)
        for i, (axis, (title, picture)) in enumerate(zip(line, pictures, strict=False)):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if title:
                axis.set_title(title, fontsize=8)
            if i == 0:
                axis.set_ylabel(name, fontsize=10)
    return figure


def draw_study(
    metrics: Mapping[str, Any],
    histories: Mapping[tuple[str, str], Mapping[str, pd.DataFrame]],
    best_epochs: Mapping[str, int],
    paper: str | None,
    chance: float | None,
    pretrained: Mapping[str, float],
    pairs: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Callable[[], Figure]]:
    """The figures that need no images: name of the file without ``.png`` -> a function that draws it."""
    figures: dict[str, Callable[[], Figure]] = {
        "comparison": lambda: comparison_plot(comparison_frame(metrics, paper, pretrained), chance),
        "confusion": lambda: confusion_plot(confusion_frame(metrics)),
    }
    if pairs:
        compared = metrics["comparisons"]["metrics"]
        figures["differences"] = lambda: differences_plot(differences_frame(pairs, compared))
    for (architecture, optimizer), all_runs in histories.items():
        runs = {name: history for name, history in all_runs.items() if len(history)}
        if not runs:
            continue  # fitted without epochs
        figures[curves_name(architecture, optimizer)] = lambda a=architecture, o=optimizer, r=runs: curves_plot(  # type: ignore[misc]
            curves_frame(r), configuration_title(a, o), {k: best_epochs[k] for k in r}
        )
    return figures


def curves_name(architecture: str, optimizer: str) -> str:
    """File name of a configuration's curves, without ``.png``."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in architecture)
    return f"curves-{safe}-{optimizer}"
