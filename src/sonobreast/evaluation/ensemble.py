"""The mean of several networks' probabilities as a further configuration of a study.

Which networks take part is chosen in each fold on that fold's validation images, so the test images of the fold had no
say in it (nested choice). The validation images also chose each network's epoch: that favours no subset of networks
over another in a way the test images could show, but the validation figures themselves are a little too good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.predictions import KEYS, Key, classes_of, configurations
from sonobreast.records import NO_OPTIMIZER, Run

ENSEMBLE = "ensemble"
KEY: Key = (ENSEMBLE, NO_OPTIMIZER)
_MOST = 8
_LEAST = 1e-12  # of a probability, in a log loss


@dataclass(frozen=True)
class Choice:
    """The members of one fold's ensemble.

    Attributes
    ----------
    repeat, fold : int
    members : tuple of (architecture, optimizer)
    runs : tuple of str
        Their runs, all seeds.
    log_loss : float
        Of the mean of the members, on the fold's validation images.
    candidates : dict of str to float
        "A + B" -> log loss, for every set of members that was looked at.
    """

    repeat: int
    fold: int
    members: tuple[Key, ...]
    runs: tuple[str, ...]
    log_loss: float
    candidates: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run": Run(architecture=ENSEMBLE, optimizer=NO_OPTIMIZER, repeat=self.repeat, fold=self.fold).id,
            "repeat": self.repeat,
            "fold": self.fold,
            "members": [dict(zip(KEYS, m, strict=True)) for m in self.members],
            "runs": list(self.runs),
            "validation_log_loss": self.log_loss,
            "candidates": self.candidates,
        }


def ensemble(table: pd.DataFrame, choice: str) -> tuple[pd.DataFrame, list[Choice]]:
    """Average the networks of each fold.

    A member's probability is the mean over its seeds, the ensemble's the mean over its members. Configurations of
    which a seed failed in a fold are no candidates there, if another one has them all.

    Parameters
    ----------
    table : DataFrame
        All predictions of a study (`sonobreast.evaluation.predictions.read_predictions`).
    choice : {"validation", "all"}
        ``validation``: the set of members, out of all, whose mean has the least log loss on the fold's validation
        images; of equal ones the smaller, then the one named first. ``all``: every member.

    Returns
    -------
    rows : DataFrame
        Like ``table``, one configuration more: architecture ``ensemble``, optimizer ``none``, seed 0; empty for a
        study of one configuration.
    choices : list of Choice
        One for each fold of each repeat.

    Raises
    ------
    SonobreastError
        For more than eight configurations (255 sets of members).

    References
    ----------
    Caruana 2004, "Ensemble selection from libraries of models"; Varma and Simon 2006, BMC Bioinformatics 7:91.
    """
    known = [k for k in configurations(table) if k != KEY]
    classes = classes_of(table)
    if len(known) > _MOST and choice == "validation":
        raise SonobreastError(
            f"an ensemble is chosen from at most {_MOST} configurations, and the study has {len(known)}",
            remedy="set ensemble.choice=all, or take fewer architectures or optimizers",
        )
    rows, choices = [], []
    if len(known) > 1:
        own = table[table["architecture"] != ENSEMBLE]
        folds = own[["repeat", "fold"]].drop_duplicates().astype(int).itertuples(index=False, name=None)
        for repeat, fold in sorted(folds):
            part = own[(own["repeat"] == repeat) & (own["fold"] == fold)]
            made = _of_fold(part, known, classes, choice, repeat, fold)
            if made is not None:
                rows.append(made[0])
                choices.append(made[1])
    return (pd.concat(rows, ignore_index=True) if rows else table.iloc[:0]), choices


def _of_fold(
    part: pd.DataFrame, known: Sequence[Key], classes: Sequence[str], choice: str, repeat: int, fold: int
) -> tuple[pd.DataFrame, Choice] | None:
    columns = [f"p_{c}" for c in classes]
    of = {k: part[(part["architecture"] == k[0]) & (part["optimizer"] == k[1])] for k in known}
    seeds = {k: t["seed"].nunique() for k, t in of.items()}
    whole = [k for k in known if seeds[k] == max(seeds.values()) > 0]
    if len(whole) < 2:
        return None
    means = {k: of[k].groupby(["subset", "image"], sort=True)[columns].mean() for k in whole}
    first = of[whole[0]].drop_duplicates(["subset", "image"]).sort_values(["subset", "image"], kind="stable")
    for key in whole:
        if not means[key].index.equals(means[whole[0]].index):
            raise SonobreastError(
                f"{'-'.join(key)} and {'-'.join(whole[0])} have other images in repeat {repeat}, fold {fold}",
                remedy="the table was changed by hand or put together from two studies; run the study again",
            )
    probability = {k: m.to_numpy(np.float64) for k, m in means.items()}
    held_out = (first["subset"] == "validation").to_numpy()
    truth = first["label"].map({c: i for i, c in enumerate(classes)}).to_numpy()
    sizes = range(1, len(whole) + 1) if choice == "validation" else (len(whole),)
    losses = {
        members: _log_loss(_mean([probability[m][held_out] for m in members]), truth[held_out])
        for size in sizes
        for members in combinations(whole, size)
    }
    best = min(losses, key=lambda members: losses[members])  # the first of equals: the smaller
    p = _mean([probability[m] for m in best])
    run = Run(architecture=ENSEMBLE, optimizer=NO_OPTIMIZER, repeat=repeat, fold=fold)
    made = first.assign(
        run=run.id,
        architecture=ENSEMBLE,
        optimizer=NO_OPTIMIZER,
        seed=0,
        predicted=[classes[i] for i in p.argmax(axis=1)],
        **{c: p[:, i] for i, c in enumerate(columns)},
    )
    runs = tuple(str(r) for k in best for r in of[k]["run"].unique())
    named = {" + ".join("-".join(m) for m in members): loss for members, loss in losses.items()}
    return made, Choice(repeat, fold, best, runs, losses[best], named)


def _mean(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.mean(parts, axis=0)
    return total


def _log_loss(probability: NDArray[np.float64], truth: NDArray[Any]) -> float:
    if not len(truth):
        return float("nan")
    given = probability[np.arange(len(truth)), truth.astype(int)] / probability.sum(axis=1)
    return float(-np.log(np.maximum(given, _LEAST)).mean())
