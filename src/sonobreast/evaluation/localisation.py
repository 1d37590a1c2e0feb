"""Does a map of relevance lie on the lesion? Scores of one map against one mask, and their means with intervals.

A map on the lesion does not show that the network is right, and one beside it does not show that it is wrong: shadows
and halos behind a lesion are signs, too. What these scores do show is whether a heat map can be read as "here".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.stats import spearmanr

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.intervals import interval_of
from sonobreast.evaluation.metrics import Floats, group_codes
from sonobreast.evaluation.resampling import draw_statistics
from sonobreast.evaluation.segmentation import iou

Mask = NDArray[np.bool_]

TOLERANCE = 0.03
"""Of the pointing game, in parts of the image's longer side: 15 px of 500, as Zhang 2016 has it."""
TOP = 0.1
"""Share of the image's pixels in the map thresholded at a fixed quantile."""
CENTRE = "centre blob"
"""The control that knows no image: a bump in the middle, where sonographers put lesions."""
SCORES = ("pointing", "energy", "iou_area", "iou_top")
TITLES = {
    "pointing": "pointing game, hit rate",
    "energy": "energy inside the lesion",
    "gain": "energy inside minus the lesion's share of the image",
    "iou_area": "IoU, as many pixels as the lesion has",
    "iou_top": "IoU, top 10 % of pixels",
}
UNCHANGED = 0.5
"""A mean rank correlation with the map of randomised weights from which a map counts as hardly changed."""


def pointing_game(relevance: ArrayLike, lesion: ArrayLike, tolerance: float = TOLERANCE) -> float:
    """Whether the map's maximum lies in the lesion, or within a tolerance of it.

    Parameters
    ----------
    relevance : (H, W)
        At least 0.
    lesion : bool (H, W)
    tolerance : float
        Distance to the lesion's nearest pixel that still counts, in parts of the longer side.

    Returns
    -------
    float
        1 for a hit, 0 for a miss; of several equal maxima the share that hits; 0 for a map without relevance, NaN for
        an image without lesion.

    References
    ----------
    Zhang 2016, "Top-down neural attention by excitation backprop", ECCV.
    """
    r, t = _pair(relevance, lesion)
    if not t.any():
        return math.nan
    if r.max() <= 0:
        return 0.0
    near = ndimage.distance_transform_edt(~t) <= tolerance * max(t.shape)
    return float(near[r == r.max()].mean())


def energy_inside(relevance: ArrayLike, lesion: ArrayLike) -> float:
    """Share of the relevance that lies inside the lesion, in [0, 1]; a map without preference has the lesion's share.

    NaN for a map without relevance, and for an image without lesion. Wang 2020, "Score-CAM", CVPR Workshops
    (energy-based pointing game).
    """
    r, t = _pair(relevance, lesion)
    total = r.sum()
    return float(r[t].sum() / total) if t.any() and total > 0 else math.nan


def iou_of_area(relevance: ArrayLike, lesion: ArrayLike) -> float:
    """IoU of the lesion and the map's top pixels, as many as the lesion has (pixels of equal value all count).

    NaN where `energy_inside` is.
    """
    r, t = _pair(relevance, lesion)
    return _iou_of_top(r, t, int(t.sum()))


def iou_of_top(relevance: ArrayLike, lesion: ArrayLike, share: float = TOP) -> float:
    """IoU of the lesion and the map's top ``share`` of pixels (pixels of equal value all count); NaN as above."""
    r, t = _pair(relevance, lesion)
    return _iou_of_top(r, t, max(1, round(share * t.size)))


def _iou_of_top(r: Floats, t: Mask, n: int) -> float:
    if not t.any() or r.max() <= 0:
        return math.nan
    least = np.partition(r.ravel(), r.size - n)[r.size - n]
    return iou((r >= least) & (r > 0), t)


def _pair(relevance: ArrayLike, lesion: ArrayLike) -> tuple[Floats, Mask]:
    r, t = np.asarray(relevance, np.float64), np.asarray(lesion)
    if r.ndim != 2 or r.shape != t.shape or t.dtype != bool or not r.size or not np.isfinite(r).all():
        raise SonobreastError(
            f"a map {r.shape} cannot be scored against a mask {t.shape} of {t.dtype}",
            remedy="give a finite map and a mask of the same size",
        )
    return np.maximum(r, 0.0), t


def score_map(relevance: ArrayLike, lesion: ArrayLike) -> dict[str, float]:
    """All scores of a map: `SCORES`, ``area`` (the lesion's share of the image), ``gain`` (energy minus area)."""
    t = np.asarray(lesion)
    area = float(t.mean()) if t.any() else math.nan
    energy = energy_inside(relevance, lesion)
    return {
        "pointing": pointing_game(relevance, lesion),
        "energy": energy,
        "area": area,
        "gain": energy - area,
        "iou_area": iou_of_area(relevance, lesion),
        "iou_top": iou_of_top(relevance, lesion),
    }


def centre_blob(height: int, width: int) -> NDArray[np.float32]:
    """A Gaussian in the middle of the image with a spread of a fifth of each side, at most 1."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in (height, width))
    bump = np.exp(-0.5 * ((y[:, None] / (0.2 * height)) ** 2 + (x[None, :] / (0.2 * width)) ** 2))
    return np.asarray(bump / bump.max(), np.float32)


def similarity(one: ArrayLike, other: ArrayLike) -> dict[str, float]:
    """How alike two maps are: Spearman's rank correlation of their pixels, and SSIM of the maps scaled to 0 to 1.

    Both maps (S, S). NaN where one of them does not vary (then there is nothing to correlate).

    References
    ----------
    Adebayo 2018, NeurIPS 31; Wang 2004, IEEE Trans Image Process 13:600 (SSIM).
    """
    from skimage.metrics import structural_similarity

    a, b = (np.asarray(m, np.float64) for m in (one, other))
    if np.ptp(a) <= 0 or np.ptp(b) <= 0:
        return {"spearman": math.nan, "ssim": math.nan}
    a, b = ((m - m.min()) / np.ptp(m) for m in (a, b))
    return {
        "spearman": float(spearmanr(a.ravel(), b.ravel()).statistic),
        "ssim": float(structural_similarity(a, b, data_range=1.0)),  # type: ignore[no-untyped-call]
    }


def localisation_figures(table: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Mean scores of each method for all images, per class, and for right and wrong predictions, with intervals.

    Parameters
    ----------
    table : DataFrame
        One row an image and method: ``image, group, method, label, correct`` (1, 0 or empty) and the scores. Images
        without a lesion's mask have NaN and count in no figure.

    Returns
    -------
    list of dict
        ``method, part`` (``all``, a class, ``right``, ``wrong``), ``images``, ``groups``, ``empty`` (maps without
        relevance), each of `SCORES` and ``gain``
        (interval), and ``over_centre`` of each score: the paired difference from the centre blob on the same images.
    """
    known = table[table["area"].notna()]
    correct = pd.to_numeric(known["correct"], errors="coerce")
    parts: dict[str, pd.DataFrame] = {"all": known}
    parts |= {str(c): known[known["label"] == c] for c in sorted(set(known["label"]) - {""})}
    parts |= {"right": known[correct == 1], "wrong": known[correct == 0]}
    found = []
    for method in dict.fromkeys(known["method"]):
        for name, part in parts.items():
            mine = part[part["method"] == method].set_index("image")
            if mine.empty:
                continue
            blob = part[part["method"] == CENTRE].set_index("image").reindex(mine.index)
            found.append({"method": method, "part": name, **_means(mine, blob, resamples, seed)})
    return found


def _means(mine: pd.DataFrame, blob: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    codes, _ = group_codes(mine["group"].to_numpy(), len(mine))
    values = {k: mine[k].to_numpy(float) for k in (*SCORES, "gain")}
    values |= {f"{k} over centre": values[k] - blob[k].to_numpy(float) for k in SCORES}

    def statistic(weight: Floats) -> Mapping[str, Floats]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                k: (weight @ np.where(np.isfinite(v), v, 0.0)) / (weight @ np.isfinite(v).astype(float))
                for k, v in values.items()
            }

    drawn = draw_statistics(statistic, codes, resamples=resamples, seed=seed, jackknife=False)
    about: Any = {"level": 0.95, "method": "percentile", "n": len(mine), "groups": int(codes.max()) + 1}
    intervals = {}
    for k, d in drawn.items():
        behind = len(np.unique(codes[np.isfinite(values[k])]))
        intervals[k] = interval_of(d, **about, behind=behind, share=k in SCORES).as_dict()
    return {
        "images": len(mine),
        "groups": int(codes.max()) + 1,
        "area": float(mine["area"].mean()),
        "empty": int(mine["energy"].isna().sum()),  # maps without relevance: they miss, and have no energy or IoU
        **{k: intervals[k] for k in (*SCORES, "gain")},
        "over_centre": {k: intervals[f"{k} over centre"] for k in SCORES},
    }


def sanity_figures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over images of what randomising the weights does to a map.

    Parameters
    ----------
    rows : sequence of mapping
        ``method, step, spearman, ssim``, and ``gain`` and ``gain_trained`` (energy minus area; NaN without a mask).

    Returns
    -------
    list of dict
        The same, averaged over what is defined (both gains over the images that have both), with ``images``,
        ``vanished`` (maps that do not vary any more, of which nothing can be said) and ``unchanged`` (mean rank
        correlation of at least `UNCHANGED`).
    """
    found = []
    table = pd.DataFrame(rows)
    if table.empty:
        return []
    for (method, step), part in table.groupby(["method", "step"], sort=False):
        means = {k: float(part[k].mean()) for k in ("spearman", "ssim")}
        means |= {str(k): float(v) for k, v in part[["gain", "gain_trained"]].dropna().mean().items()}
        found.append(
            {
                "method": method,
                "step": step,
                "images": len(part),
                "vanished": int(part["spearman"].isna().sum()),
                **means,
                "unchanged": bool(means["spearman"] >= UNCHANGED),
            }
        )
    return found
