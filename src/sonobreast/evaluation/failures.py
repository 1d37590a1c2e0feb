"""Where a configuration is wrong and sure of it: which test images are shown, under which file name, and how drawn.

Chosen by rule and not by eye: the errors with the highest probability of the wrong class. The pictures are drawn at a
study's end, where the images are at hand (`sonobreast.training.failures`); an explanation map is shown beside one
where somebody put it (`map_file`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from sonobreast.evaluation.overlays import PREDICTED_OUTLINE, TRUE_OUTLINE, draw_outline
from sonobreast.evaluation.plots import STYLE
from sonobreast.evaluation.predictions import KEYS, Key

Kind = Literal["missed cancer", "false alarm", "other mix-up"]
KINDS: dict[Kind, int] = {"missed cancer": 6, "false alarm": 6, "other mix-up": 3}
"""Kind of error, in the order shown, and how many of it at most."""
_WIDTH = 3.2  # inches; at 140 dots an inch as wide as a card of the report on a fine screen
_TALLEST = 1.3  # height over width of a picture; a taller image is shown narrower
_SAFE = 48


@dataclass(frozen=True)
class Failure:
    """One test image that was called a wrong class.

    Attributes
    ----------
    kind : {"missed cancer", "false alarm", "other mix-up"}
        The last: neither the truth nor the prediction is malignant.
    run : str
        The run whose test image it is.
    image, group, label, predicted : str
    probability : float
        Of the predicted class.
    of_truth : float
        Of the true class.
    copies : int
        Further errors of this kind in the same group, which are not shown.
    labels : tuple of str
        Classes of the group's test images: copies with several labels mean that one is wrong.
    """

    kind: Kind
    run: str
    image: str
    group: str
    label: str
    predicted: str
    probability: float
    of_truth: float
    copies: int
    labels: tuple[str, ...]


def choose(table: pd.DataFrame) -> tuple[list[Failure], dict[Kind, int]]:
    """The most confident errors of the first repeat and seed, all folds: missed cancers, false alarms, then others.

    Of each near-duplicate group (or patient) the most confident one stands for all. Of equal probabilities the name
    decides.

    Parameters
    ----------
    table : DataFrame
        Rows of one configuration of a ``predictions.csv``.

    Returns
    -------
    failures : list of Failure
        In the order shown: by kind, the most confident first. Empty where nothing is wrong.
    counts : dict
        Kind -> all errors of it, copies included; kinds without one are absent.
    """
    mine = table[table["subset"] == "test"].sort_values(["repeat", "seed"], kind="stable")
    first = mine.iloc[0]
    mine = mine[(mine["repeat"] == first["repeat"]) & (mine["seed"] == first["seed"])]
    labels = {str(g): tuple(sorted(set(part))) for g, part in mine.groupby("group")["label"]}
    wrong = mine[mine["predicted"] != mine["label"]]
    kind = np.where(
        wrong["label"] == "malignant",
        "missed cancer",
        np.where(wrong["predicted"] == "malignant", "false alarm", "other mix-up"),
    )
    sure = [float(row[f"p_{row['predicted']}"]) for _, row in wrong.iterrows()]
    wrong = wrong.assign(kind=kind, sure=sure).sort_values(["sure", "image"], ascending=[False, True])
    failures: list[Failure] = []
    counts: dict[Kind, int] = {}
    taken: set[str] = set()
    for name, most in KINDS.items():
        part = wrong[wrong["kind"] == name]
        if part.empty:
            continue
        counts[name] = len(part)
        size = part["group"].value_counts()
        apart = part[~part["group"].isin(taken)].drop_duplicates("group").head(most)
        taken |= set(apart["group"])
        failures += [
            _failure(name, row, int(size[row["group"]]) - 1, labels[row["group"]]) for _, row in apart.iterrows()
        ]
    return failures, counts


def _failure(kind: Kind, row: pd.Series[Any], copies: int, labels: tuple[str, ...]) -> Failure:
    texts = {k: str(row[k]) for k in ("run", "image", "group", "label", "predicted")}
    sure, of_truth = float(row["sure"]), float(row[f"p_{row['label']}"])
    return Failure(kind, **texts, probability=sure, of_truth=of_truth, copies=copies, labels=labels)


def chosen_configuration(metrics: Mapping[str, Any]) -> Key:
    """Architecture and optimizer with the best mean validation accuracy: the one that the test images may judge.

    Parameters
    ----------
    metrics : mapping
        Content of a study's ``metrics.json``.
    """
    best = max(metrics["configurations"], key=lambda c: c["subset_accuracy"]["validation"])
    return str(best["architecture"]), str(best["optimizer"])


def of_configuration(table: pd.DataFrame, key: Key) -> pd.DataFrame:
    """The rows of one configuration."""
    return table[(table[KEYS[0]] == key[0]) & (table[KEYS[1]] == key[1])]


def picture_file(out: Path, failure: Failure) -> Path:
    """``OUT/figures/failures/<name>-<digest>.png``: the image with its outlines; the digest is of run and image."""
    return out / "figures" / "failures" / f"{_stem(failure)}.png"


def map_file(out: Path, failure: Failure) -> Path:
    """``OUT/figures/failures/<name>-<digest>-map.png``: an explanation of the prediction, shown beside the picture.

    Whoever explains a study's runs writes it: a picture of the image with the map upon it, in the image's own shape.
    """
    return out / "figures" / "failures" / f"{_stem(failure)}-map.png"


def maps_about(out: Path) -> Path:
    """``OUT/figures/failures/maps.json``: ``methods`` of the maps, and of how many ``networks`` each is the mean."""
    return out / "figures" / "failures" / "maps.json"


def _stem(failure: Failure) -> str:
    digest = hashlib.sha256(f"{failure.run}\n{failure.image}".encode()).hexdigest()[:8]
    name = Path(failure.image).stem
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)[:_SAFE] + f"-{digest}"


def failure_plot(
    picture: npt.NDArray[np.uint8], truth: npt.NDArray[np.bool_] | None, predicted: npt.NDArray[np.bool_] | None
) -> Figure:
    """The image, the true outline (solid) where one is known and the predicted one (dashed) where a network drew one.

    Parameters
    ----------
    picture : ndarray, uint8, (H, W, 3)
    truth, predicted : ndarray, bool, (H, W), or None
    """
    height, width = picture.shape[:2]
    narrow = min(1.0, _TALLEST * width / height)
    with matplotlib.rc_context(STYLE | {"savefig.dpi": 140.0}):
        figure = Figure(figsize=(_WIDTH * narrow, _WIDTH * narrow * height / width), dpi=140.0)
        axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axis.imshow(picture, interpolation="antialiased")
        for mask, (colour, style) in ((truth, TRUE_OUTLINE), (predicted, PREDICTED_OUTLINE)):
            if mask is not None:
                draw_outline(axis, mask, colour, style)
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
        axis.set_axis_off()
    return figure
