"""How well a detector of strangers tells: AUC for each kind of outsider, scans refused, with intervals over groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonobreast.evaluation.intervals import interval_of
from sonobreast.evaluation.metrics import Floats, group_codes
from sonobreast.evaluation.resampling import draw_statistics

COLUMNS = ("set", "kind", "image", "group", "run", "features", "distance", "threshold", "ratio", "refused")
"""Of ``domain.csv``: one row a picture, run and detector. ``set`` is test, outsider or other (another hospital)."""


def domain_figures(table: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Figures of one detector (one value of ``features``).

    A run's detector is judged on that run's own test images; AUCs and shares are means over the runs. Whole groups are
    drawn: a patient's scans, the crops of one photograph; a scan's negative goes with its scan.

    Parameters
    ----------
    table : DataFrame
        Columns ``set, kind, image, group, run, ratio`` (distance over threshold; more than 1 is refused).

    Returns
    -------
    dict
        ``test``: ``images, groups, refused`` (interval); ``outsiders`` and ``others``: for each kind ``images, groups,
        auc, refused``.
    """
    entries = table[["set", "kind", "image", "group"]].drop_duplicates().reset_index(drop=True)
    place = pd.MultiIndex.from_frame(entries[["set", "kind", "image"]])
    runs = list(dict.fromkeys(table["run"]))
    ratio: Floats = np.full((len(runs), len(entries)), np.nan)
    at = place.get_indexer(pd.MultiIndex.from_frame(table[["set", "kind", "image"]]))
    ratio[table["run"].map({r: i for i, r in enumerate(runs)}).to_numpy(), at] = table["ratio"].to_numpy(float)
    codes, _ = group_codes(entries["group"].to_numpy(), len(entries))
    inside = np.flatnonzero((entries["set"] == "test").to_numpy())
    kinds = entries.loc[entries["set"] != "test", ["set", "kind"]].drop_duplicates()
    found: dict[str, Any] = {"outsiders": {}, "others": {}}
    found["test"] = _of(ratio, inside, inside, codes, resamples, seed, auc=False)
    for which, kind in kinds.itertuples(index=False):
        of = np.flatnonzero(((entries["set"] == which) & (entries["kind"] == kind)).to_numpy())
        found["outsiders" if which == "outsider" else "others"][kind] = _of(
            ratio, inside, of, codes, resamples, seed, auc=len(inside) > 0
        )
    return found


def _of(
    ratio: Floats, inside: NDArray[np.intp], of: NDArray[np.intp], codes: Any, resamples: int, seed: int, *, auc: bool
) -> dict[str, Any]:
    """Refused share of the pictures ``of``, and their AUC against those ``inside``."""
    if not len(of):
        nothing = {"estimate": None, "low": None, "high": None, "note": "no pictures"}
        return {"images": 0, "groups": 0, "refused": nothing}
    used = np.unique(np.concatenate([inside, of]))
    part, (own, own_of) = ratio[:, used], (np.searchsorted(used, inside), np.searchsorted(used, of))
    _, own_codes = np.unique(codes[used], return_inverse=True)
    judged = np.isfinite(part) | np.isposinf(part)
    refused = np.where(judged, part > 1.0, 0.0)
    wins = []
    for row, there in zip(part, judged, strict=True):
        a, b = own[there[own]], own_of[there[own_of]]
        if auc and len(a) and len(b):
            wins.append((a, b, (row[b][None] > row[a][:, None]) + 0.5 * (row[b][None] == row[a][:, None])))

    def statistic(weight: Floats) -> Mapping[str, Floats]:
        with np.errstate(invalid="ignore", divide="ignore"):
            w = weight[:, own_of]
            share = (w @ refused[:, own_of].T).sum(axis=1) / (w @ judged[:, own_of].T.astype(float)).sum(axis=1)
            values = {"refused": share}
            if wins:
                each = [
                    ((weight[:, a] @ won) * weight[:, b]).sum(axis=1) / (weight[:, a].sum(1) * weight[:, b].sum(1))
                    for a, b, won in wins
                ]
                values["auc"] = np.mean(each, axis=0)
        return values

    drawn = draw_statistics(statistic, own_codes, resamples=resamples, seed=seed, jackknife=False)
    groups = len(np.unique(codes[of]))
    behind = {"refused": groups, "auc": min(groups, len(np.unique(codes[inside])))}
    intervals = {
        name: interval_of(
            d, level=0.95, method="percentile", n=len(of), groups=groups, behind=behind[name], share=True
        ).as_dict()
        for name, d in drawn.items()
    }
    return {"images": len(of), "groups": groups, **intervals}
