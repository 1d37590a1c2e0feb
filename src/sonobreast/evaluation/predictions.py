"""The table of predictions: reading it, and one configuration's predictions as sets of the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.metrics import Scored
from sonobreast.records import NO_OPTIMIZER, PREDICTION_COLUMNS, check_version, read_table

Key = tuple[str, str]  # architecture, optimizer
KEYS = ["architecture", "optimizer"]
OPTIMIZER_TITLES = {
    "adam": "Adam",
    "rmsprop": "RMSprop",
    "sgdm": "SGDM",
    "sgd": "SGD",
    "adamw": "AdamW",
    "nadam": "NAdam",
    NO_OPTIMIZER: "no optimizer",
}
_TEXT_COLUMNS = ("run", "architecture", "optimizer", "subset", "image", "group", "label", "predicted")


def configuration_title(architecture: str, optimizer: str) -> str:
    """``ResNet50V2 + SGDM``; the architecture alone where no optimizer takes part."""
    if optimizer == NO_OPTIMIZER:
        return architecture
    return f"{architecture} + {OPTIMIZER_TITLES.get(optimizer, optimizer)}"


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a ``predictions.csv``.

    Raises
    ------
    SonobreastError
        If it is missing, lacks a column, has no rows or was written by a newer version.
    """
    try:
        # Names such as "NA" and "null" are classes and images like others.
        table = pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(_TEXT_COLUMNS, str))
    except (OSError, ValueError) as error:
        raise SonobreastError(
            f"the predictions cannot be read ({error})", file=path, remedy="run the study again"
        ) from error
    missing = [c for c in (*PREDICTION_COLUMNS, "schema_version") if c not in table]
    if missing or not classes_of(table):
        raise SonobreastError(
            f"column {', '.join(missing) or 'p_<class>'} is missing", file=path, remedy="run the study again"
        )
    if table.empty:
        raise SonobreastError("there are no predictions", file=path, remedy="run the study to its end")
    check_version(table["schema_version"].iloc[0], path)
    return table


def read_patients(path: Path) -> dict[str, str]:
    """Image -> patient from a study's ``manifest.csv``; the patient is empty where it is not known."""
    return {r["image"]: r["patient"] for r in read_table(path, ("image", "patient"))}


def configurations(table: pd.DataFrame) -> list[Key]:
    """Architecture and optimizer of all configurations, in the table's order."""
    return list(table[KEYS].drop_duplicates().itertuples(index=False, name=None))


def classes_of(table: pd.DataFrame) -> tuple[str, ...]:
    """Classes in the order of the probability columns."""
    return tuple(c.removeprefix("p_") for c in table.columns if c.startswith("p_"))


def scored(label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str]) -> Scored:
    """Predictions decided by the largest probability.

    Parameters
    ----------
    label : int (n,)
    probability : float (n, C)
    classes : sequence of str
    """
    p = np.asarray(probability, np.float64)
    p = p / p.sum(axis=1, keepdims=True)  # single precision sums to 1 within 1e-7 only
    return Scored(np.asarray(label), p.argmax(axis=1), p, tuple(classes))


def scored_table(table: pd.DataFrame) -> Scored:
    """The rows of a predictions table as they are."""
    classes = classes_of(table)
    code = {c: i for i, c in enumerate(classes)}
    probability = table[[f"p_{c}" for c in classes]].to_numpy(np.float64)
    return scored(table["label"].map(code).to_numpy(), probability, classes)


def averaged(table: pd.DataFrame) -> pd.DataFrame:
    """One row an image: the mean of its probabilities over the rows of several runs, decided by the largest."""
    names = classes_of(table)
    columns = [f"p_{c}" for c in names]
    how = {**dict.fromkeys(("group", "label"), "first"), **dict.fromkeys(columns, "mean")}
    one = table.groupby("image", sort=True).agg(how).reset_index()
    decided = one[columns].to_numpy(float).argmax(axis=1)
    return one.assign(predicted=[names[k] for k in decided])


def binary(table: pd.DataFrame, cut: float | None = None) -> Scored:
    """Malignant against the rest, decided by the model (None) or at a threshold on the malignant probability."""
    p = table["p_malignant"].to_numpy(float).clip(0.0, 1.0)
    says = (table["predicted"] == "malignant").to_numpy() if cut is None else p >= cut
    label = (table["label"] == "malignant").to_numpy()
    return Scored(label.astype(int), says.astype(int), np.stack([1.0 - p, p], axis=1), ("other", "malignant"))


@dataclass(frozen=True)
class Repeats:
    """Predictions of the same n cases in the same order, one set for each repeat and seed.

    Attributes
    ----------
    sets : mapping of str to Scored
        "repeat 0, seed 1" -> its predictions, the folds of the repeat put together.
    image : tuple of str
        The n cases, sorted.
    group : ndarray of str, (n,)
    left_out : tuple of str
        Repeats and seeds that do not cover all cases, because a fold failed.
    """

    sets: Mapping[str, Scored]
    image: tuple[str, ...]
    group: npt.NDArray[Any]
    left_out: tuple[str, ...]


def folds_of(table: pd.DataFrame, subset: str = "test") -> dict[int, frozenset[int]]:
    """Repeat -> the folds that any configuration finished: what a whole repeat consists of."""
    chosen = table[table["subset"] == subset]
    found: dict[int, set[int]] = {}
    for repeat, fold in chosen[["repeat", "fold"]].drop_duplicates().astype(int).itertuples(index=False, name=None):
        found.setdefault(repeat, set()).add(fold)
    return {repeat: frozenset(folds) for repeat, folds in found.items()}


def whole_repeats(
    table: pd.DataFrame, *, folds: Mapping[int, frozenset[int]] | None = None, subset: str = "test"
) -> Repeats:
    """The predictions of one configuration, one set for each repeat and seed.

    The folds of a repeat are put together: each image is a test image once. Further repeats and seeds are further
    predictions of the same cases, not further cases.

    Parameters
    ----------
    table : DataFrame
        Rows of one configuration.
    folds : mapping of int to frozenset of int, optional
        What makes a repeat whole (`folds_of` the whole study). Without it, the repeats with the most images are.
    subset : str

    Raises
    ------
    SonobreastError
        If no repeat is whole, or the repeats are of different images.
    """
    whole, left_out = whole_tables(table, folds=folds, subset=subset)
    first = next(iter(whole.values()))
    return Repeats(
        {name: scored_table(p) for name, p in whole.items()},
        tuple(first["image"]),
        first["group"].to_numpy(),
        left_out,
    )


def whole_tables(
    table: pd.DataFrame, *, folds: Mapping[int, frozenset[int]] | None = None, subset: str = "test"
) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """`whole_repeats` as tables, sorted by image, of any table with a row for each run and image.

    Parameters and errors as in `whole_repeats`.

    Returns
    -------
    tables : dict of str to DataFrame
        "repeat 0, seed 1" -> its rows.
    left_out : tuple of str
        As in `Repeats`.
    """
    chosen = table[table["subset"] == subset].sort_values(["repeat", "seed", "image"], kind="stable")
    keys = chosen[["repeat", "seed"]].drop_duplicates().astype(int).itertuples(index=False, name=None)
    parts = {(r, s): chosen[(chosen["repeat"] == r) & (chosen["seed"] == s)] for r, s in keys}
    longest = max((len(p) for p in parts.values()), default=0)
    whole = {
        _name(*k): p
        for k, p in parts.items()
        if (len(p) == longest if folds is None else frozenset(map(int, p["fold"])) == folds.get(k[0]))
    }
    if not whole:
        raise SonobreastError(
            f"no repeat of {_of(table)} has all its folds",
            remedy="failed.json says which runs failed; mend them, and give `sonobreast study run` again",
        )
    first = next(iter(whole.values()))
    for name, part in whole.items():
        if part["image"].tolist() != first["image"].tolist() or part["image"].duplicated().any():
            raise SonobreastError(
                f"the {subset} images of {name} are not those of the other repeats",
                remedy="the table was changed by hand or put together from two studies; run the study again",
            )
    return whole, tuple(_name(*k) for k in parts if _name(*k) not in whole)


def _name(repeat: int, seed: int) -> str:
    return f"repeat {repeat}, seed {seed}"


def _of(table: pd.DataFrame) -> str:
    return " and ".join(configuration_title(*k) for k in configurations(table)) or "this study"


def repeats_of(table: pd.DataFrame, subset: str = "test") -> tuple[list[Scored], npt.NDArray[Any], list[str]]:
    """`whole_repeats` as (repeats, group of each case, repeats left out)."""
    repeats = whole_repeats(table, subset=subset)
    return list(repeats.sets.values()), repeats.group, list(repeats.left_out)
