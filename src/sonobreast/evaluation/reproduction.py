"""A paper as a distribution: its draw, split and seed are not published, so many are drawn.

Where does the printed figure fall among them, and does any optimizer or architecture really differ?
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from sonobreast.evaluation.compare import bootstrap_p, holm, mcnemar_exact
from sonobreast.evaluation.intervals import percentile_limits
from sonobreast.evaluation.plots import BLUE, STYLE, VERMILION, png, published_accuracies
from sonobreast.evaluation.predictions import configuration_title
from sonobreast.page import write_page
from sonobreast.records import atomic

Floats = npt.NDArray[np.float64]

GROUPINGS = ("random", "grouped")
_COLOURS = {"random": VERMILION, "grouped": BLUE}
_QUANTILES = {"q025": 0.025, "q25": 0.25, "median": 0.5, "q75": 0.75, "q975": 0.975}


def analyse(
    heads: pd.DataFrame, predictions: pd.DataFrame, paper: str | None, *, resamples: int = 2000
) -> dict[str, Any]:
    """Distributions over draws, and differences between configurations over images.

    Parameters
    ----------
    heads : DataFrame
        ``grouping, draw, architecture, optimizer, validation_accuracy, test_accuracy``, one row a trained head.
    predictions : DataFrame
        ``grouping, draw, architecture, optimizer, image, group, label, predicted``, one row a test image of a head.
    paper : str or None
        Key in `sonobreast.evaluation.published`.
    resamples : int

    Returns
    -------
    dict
        For each grouping: ``configurations`` (distribution of the test accuracy over draws, the printed value and the
        share of draws that reach it), ``best_of_all`` and ``chosen_by_validation`` (the same for the best test figure
        of each draw, and for the configuration that validation chose), ``differences`` (pairs, architectures,
        optimizers) with intervals over images and Holm's p. ``random_minus_grouped`` for each configuration.

    Notes
    -----
    Spread over draws and sampling error are kept apart. For the second, each image counts with the share of the draws
    in which a configuration named it rightly, and groups of images are drawn with replacement (cluster bootstrap of a
    ratio): draws are repeats and no further cases. Networks of different draws share training images, so this is about
    networks trained on draws from these data.
    """
    configurations = list(heads[["architecture", "optimizer"]].drop_duplicates().itertuples(index=False, name=None))
    result: dict[str, Any] = {"draws": int(heads["draw"].nunique()), "resamples": resamples, "level": 0.95}
    drawn: dict[str, Floats] = {}
    weights, code_of = _weights(predictions, resamples)
    printed = {c: published_accuracies(paper, *c) for c in configurations}
    best_printed = max((p["test"] for p in printed.values() if p), default=None)
    for grouping in [g for g in GROUPINGS if (heads["grouping"] == g).any()]:
        mine = heads[heads["grouping"] == grouping]
        table = mine.pivot_table(index="draw", columns=["architecture", "optimizer"], values="test_accuracy")[
            configurations
        ].dropna()
        validation = mine.pivot_table(
            index="draw", columns=["architecture", "optimizer"], values="validation_accuracy"
        )[configurations].loc[table.index]
        named = predictions[predictions["grouping"] == grouping]
        estimate, resampled = _pooled(named, configurations, weights, code_of)
        top = table.eq(table.max(axis=1), axis=0)
        best = top.div(top.sum(axis=1), axis=0)  # a draw that several win counts in parts
        drawn[grouping] = np.vstack([estimate[None], resampled])
        chosen = table.to_numpy()[np.arange(len(table)), validation.to_numpy().argmax(axis=1)]
        result[grouping] = {
            "draws": len(table),
            "configurations": [
                {
                    "architecture": a,
                    "optimizer": o,
                    **_distribution(table[(a, o)].to_numpy(), _test(printed[a, o])),
                    "pooled": _interval(estimate[i], resampled[:, i]),
                    "best_in": float(best[(a, o)].mean()),
                }
                for i, (a, o) in enumerate(configurations)
            ],
            "best_of_all": _distribution(table.max(axis=1).to_numpy(), best_printed),
            "chosen_by_validation": _distribution(chosen, best_printed),
            "differences": _differences(configurations, estimate, resampled, table, named),
        }  # fmt: skip
    if len(drawn) == 2:
        gap = drawn["random"] - drawn["grouped"]
        result["random_minus_grouped"] = [
            {"architecture": a, "optimizer": o, **_interval(gap[0, i], gap[1:, i])}
            for i, (a, o) in enumerate(configurations)
        ]
    return result


def _test(printed: Mapping[str, float] | None) -> float | None:
    return None if printed is None else printed["test"]


def _distribution(values: Floats, printed: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        **{name: float(np.quantile(values, q)) for name, q in _QUANTILES.items()},
        "minimum": float(values.min()),
        "maximum": float(values.max()),
        "printed": printed,
    }
    # A printed percentage is rounded: half a step of its last digit belongs to it.
    found["reached"] = None if printed is None else float(np.mean(values >= printed - 5e-5))
    return found


def _weights(predictions: pd.DataFrame, resamples: int) -> tuple[Floats, dict[str, int]]:
    """How often each group is drawn in each resample, (R, G), and the column of each group."""
    names = sorted(set(predictions["group"]))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return drawn.astype(np.float64), {n: i for i, n in enumerate(names)}


def _pooled(
    named: pd.DataFrame, configurations: Sequence[tuple[str, str]], weights: Floats, code_of: Mapping[str, int]
) -> tuple[Floats, Floats]:
    """Share of right answers over all draws: (configurations,), and in each resample (R, configurations)."""
    right = np.zeros((len(code_of), len(configurations)))
    count = np.zeros_like(right)
    for i, (a, o) in enumerate(configurations):
        mine = named[(named["architecture"] == a) & (named["optimizer"] == o)]
        code = mine["group"].map(code_of).to_numpy()
        np.add.at(right[:, i], code, (mine["predicted"] == mine["label"]).to_numpy(float))
        np.add.at(count[:, i], code, 1.0)
    estimate: Floats = right.sum(axis=0) / count.sum(axis=0)
    drawn = weights @ count
    # In a handful of images a resample may hold none that was tested: it says nothing.
    resampled: Floats = np.divide(weights @ right, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)
    return estimate, resampled


def _interval(estimate: float, resampled: Floats) -> dict[str, float]:
    finite = resampled[np.isfinite(resampled)]
    low, high = percentile_limits(finite, 0.95) if len(finite) else (np.nan, np.nan)
    return {"estimate": float(estimate), "low": float(low), "high": float(high)}


def _differences(
    configurations: Sequence[tuple[str, str]],
    estimate: Floats,
    resampled: Floats,
    table: pd.DataFrame,
    named: pd.DataFrame,
) -> dict[str, Any]:
    architectures = list(dict.fromkeys(a for a, _ in configurations))
    optimizers = list(dict.fromkeys(o for _, o in configurations))
    right = named.assign(right=named["predicted"] == named["label"]).pivot_table(
        index=["draw", "image"], columns=["architecture", "optimizer"], values="right"
    )[list(configurations)]
    pairs: list[dict[str, Any]] = []
    for i, j in combinations(range(len(configurations)), 2):
        a, b = configurations[i], configurations[j]
        tests = [
            mcnemar_exact(part[a].to_numpy(bool), part[b].to_numpy(bool)).p_value
            for _, part in right[[a, b]].dropna().groupby(level="draw")
        ]
        pairs.append(
            {
                "a": list(a),
                "b": list(b),
                **_interval(estimate[i] - estimate[j], resampled[:, i] - resampled[:, j]),
                "p_value": bootstrap_p(resampled[:, i] - resampled[:, j]),
                "a_better": float((table[a] > table[b]).mean()),
                "tied": float((table[a] == table[b]).mean()),
                "significant": float(np.mean(np.asarray(tests) < 0.05)),
            }
        )

    def mean_over(keep: Sequence[int]) -> tuple[float, Floats]:
        return float(estimate[list(keep)].mean()), resampled[:, list(keep)].mean(axis=1)

    effects: list[dict[str, Any]] = []
    for names, place, kind in ((architectures, 0, "architecture"), (optimizers, 1, "optimizer")):
        for a_name, b_name in combinations(names, 2):
            (ea, ra), (eb, rb) = (
                mean_over([i for i, c in enumerate(configurations) if c[place] == name]) for name in (a_name, b_name)
            )
            effects.append(
                {"kind": kind, "a": a_name, "b": b_name, **_interval(ea - eb, ra - rb), "p_value": bootstrap_p(ra - rb)}
            )
    for family in (pairs, effects):
        if family:
            for row, adjusted in zip(family, holm([r["p_value"] for r in family]), strict=True):
                row["p_holm"] = float(adjusted)
    return {"pairs": pairs, "effects": effects}


def distribution_frame(result: Mapping[str, Any]) -> pd.DataFrame:
    """``name, grouping`` and the quantiles that the figure shows, with the printed value."""
    rows = []
    for grouping in [g for g in GROUPINGS if g in result]:
        mine = result[grouping]
        rows += [
            {"name": configuration_title(c["architecture"], c["optimizer"]), "grouping": grouping, **_shown(c)}
            for c in mine["configurations"]
        ]
        if len(mine["configurations"]) > 1:
            rows.append({"name": "chosen by validation", "grouping": grouping, **_shown(mine["chosen_by_validation"])})
            rows.append({"name": "best test figure of all", "grouping": grouping, **_shown(mine["best_of_all"])})
    return pd.DataFrame(rows).astype(dict.fromkeys((*_QUANTILES, "printed"), float))


def _shown(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: values[k] for k in (*_QUANTILES, "printed")}


def distribution_plot(frame: pd.DataFrame) -> Figure:
    """Test accuracy over draws: line 95 %, box the middle half, tick the median; diamond the printed value."""
    names = list(dict.fromkeys(frame["name"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.9 + 0.52 * len(names)), layout="constrained")
        axis = figure.subplots()
    for y, name in enumerate(names):
        for _, row in frame[frame["name"] == name].iterrows():
            place = y + (-0.17 if row["grouping"] == "random" else 0.17)
            colour = _COLOURS[row["grouping"]]
            label = {"random": "divided image by image", "grouped": "copies kept together"}[row["grouping"]]
            axis.plot([100 * row["q025"], 100 * row["q975"]], [place] * 2, color=colour, lw=1.5)
            axis.barh(
                place,
                100 * (row["q75"] - row["q25"]),
                left=100 * row["q25"],
                height=0.24,
                color=colour,
                alpha=0.55,
                label=label if y == 0 else None,
            )
            axis.plot([100 * row["median"]] * 2, [place - 0.12, place + 0.12], color="black", lw=1.5)
        printed = frame.loc[frame["name"] == name, "printed"].iloc[0]
        if printed == printed:
            legend = "printed in the paper" if y == 0 else None
            axis.plot(100 * printed, y, "D", color="black", mfc="white", ms=6, label=legend)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel("test accuracy, %")
    axis.grid(axis="x", color="#d9dee6", lw=0.6)
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def difference_frame(result: Mapping[str, Any]) -> pd.DataFrame:
    """``name, grouping, estimate, low, high, p_holm`` of every pair of configurations, and of the main effects."""
    rows = []
    for grouping in [g for g in GROUPINGS if g in result]:
        found = result[grouping]["differences"]
        rows += [{"name": _pair_title(r, " − "), "grouping": grouping, **_row(r)} for r in found["pairs"]]
        rows += [
            {"name": f"{r['kind']}: {r['a']} − {r['b']}", "grouping": grouping, **_row(r)} for r in found["effects"]
        ]
    return pd.DataFrame(rows)


def _pair_title(pair: Mapping[str, Any], between: str) -> str:
    return f"{configuration_title(*pair['a'])}{between}{configuration_title(*pair['b'])}"


def _effect_title(effect: Mapping[str, Any]) -> str:
    return f"{effect['a']} and {effect['b']} ({effect['kind']})"


def _row(found: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(found[k]) for k in ("estimate", "low", "high", "p_holm")}


def difference_plot(frame: pd.DataFrame) -> Figure:
    """Differences over images with 95 % intervals; filled where Holm's p is at most 0.05."""
    names = list(dict.fromkeys(frame["name"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.9 + 0.34 * len(names)), layout="constrained")
        axis = figure.subplots()
    for y, name in enumerate(names):
        for _, row in frame[frame["name"] == name].iterrows():
            place = y + (-0.16 if row["grouping"] == "random" else 0.16)
            colour = _COLOURS[row["grouping"]]
            axis.plot([100 * row["low"], 100 * row["high"]], [place] * 2, color=colour, lw=1.5)
            face = colour if row["p_holm"] <= 0.05 else "white"
            label = {"random": "divided image by image", "grouped": "copies kept together"}[row["grouping"]]
            axis.plot(100 * row["estimate"], place, "o", color=colour, mfc=face, ms=5, label=label if y == 0 else None)
    axis.axvline(0, color="black", lw=1, ls=":")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel("difference of the accuracies in points; filled: p ≤ 0.05 after Holm")
    axis.grid(axis="x", color="#d9dee6", lw=0.6)
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def sentences(result: Mapping[str, Any]) -> list[str]:
    """What the distributions and differences say, in words."""
    words = []
    for grouping in [g for g in GROUPINGS if g in result]:
        mine = result[grouping]
        how = "Divided image by image" if grouping == "random" else "With copies kept together"
        best = mine["best_of_all"]
        spans = "; ".join(
            f"{configuration_title(c['architecture'], c['optimizer'])} {100 * c['median']:.1f} % "
            f"({100 * c['q025']:.1f}-{100 * c['q975']:.1f}"
            + (f"; printed {100 * c['printed']:.2f} %, reached in {100 * c['reached']:.0f} %)" if c["printed"] else ")")
            for c in mine["configurations"]
        )
        words.append(f"{how}, median and middle 95 % of {mine['draws']} draws: {spans}.")
        if best["printed"] is not None and len(mine["configurations"]) > 1:
            words.append(
                f"{how}, the best test figure of each draw, which is what a table's best row shows, has the median "
                f"{100 * best['median']:.1f} % and reaches the printed best of {100 * best['printed']:.2f} % in "
                f"{100 * best['reached']:.0f} % of the draws; the configuration that validation chooses, in "
                f"{100 * mine['chosen_by_validation']['reached']:.0f} %."
            )
        differences = mine["differences"]
        for rows, titles, what in (
            (
                differences["effects"],
                [_effect_title(r) for r in differences["effects"]],
                "architectures and optimizers",
            ),
            (differences["pairs"], [_pair_title(r, " and ") for r in differences["pairs"]], "pairs of configurations"),
        ):
            differ = [t for r, t in zip(rows, titles, strict=True) if r["p_holm"] <= 0.05]
            others = [t for t in titles if t not in differ]
            if len(differ) <= len(others):
                named = f": {'; '.join(differ)}" if differ else ""
            else:
                named = f"; not told apart: {'; '.join(others)}" if others else ""
            words.append(
                f"{how}, {len(differ)} of {len(rows)} comparisons of {what} differ over all draws (95 %, Holm){named}."
            )
        told = [100 * r["significant"] for r in differences["pairs"]]
        if told:
            words.append(
                f"{how}, in one single draw an exact McNemar test tells a pair apart in "
                f"{min(told):.0f} to {max(told):.0f} % of the draws, depending on the pair."
            )
    return words


def write(out: Path, result: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Draw the figures and write ``report.html``."""
    drawings = {"distribution": distribution_plot(distribution_frame(result))}
    differences = difference_frame(result)
    if len(differences):
        drawings["difference"] = difference_plot(differences)
    pictures = {}
    for name, figure in drawings.items():
        content = png(figure)
        with atomic(out / "figures" / f"{name}.png", "wb") as stream:
            stream.write(content)
        pictures[name] = base64.b64encode(content).decode()
    file = out / "report.html"
    write_page(
        file,
        "evaluation/reproduction.html.j2",
        {
            "result": result,
            "groupings": [g for g in GROUPINGS if g in result],
            "pictures": pictures,
            "about": about,
            "sentences": sentences(result),
            "title_of": configuration_title,
        },
    )
    return file
