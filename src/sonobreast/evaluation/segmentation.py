"""How well one predicted lesion mask fits the true one: Dice, intersection over union, 95 % Hausdorff distance.

P is the predicted lesion, T the true one, both sets of pixels. Empty masks are scored apart: Dice of two empty masks is
not 1 but undefined, for the mean over a data set would else grow with its share of normal images (Maier-Hein, Reinke et
al. 2024, Metrics Reloaded, Nat Methods 21:195; Reinke et al. 2024, Nat Methods 21:182, on empty references).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.metrics import Floats

Mask = npt.NDArray[np.bool_]


def dice(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """``2 |P and T| / (|P| + |T|)``, in [0, 1]: 0 where the masks share no pixel, 1 where they are equal.

    Parameters
    ----------
    predicted, truth : bool (H, W)

    Returns
    -------
    float
        0 where one of the two is empty (a lesion that is missed), NaN where both are.

    Raises
    ------
    SonobreastError
        For arrays that are no masks or not of the same size.

    References
    ----------
    Dice 1945, Ecology 26:297.
    """
    p, t = _masks(predicted, truth)
    both = int(p.sum()) + int(t.sum())
    return 2 * int((p & t).sum()) / both if both else math.nan


def iou(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Intersection over union (Jaccard index), ``|P and T| / |P or T|``, in [0, 1]: equals ``Dice / (2 - Dice)``.

    Parameters, value for empty masks and errors as in `dice`.

    References
    ----------
    Jaccard 1912, New Phytologist 11:37.
    """
    p, t = _masks(predicted, truth)
    either = int((p | t).sum())
    return int((p & t).sum()) / either if either else math.nan


def hausdorff95(predicted: npt.ArrayLike, truth: npt.ArrayLike, spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """95 % Hausdorff distance of the two outlines: ``max(Q95_{p in dP} d(p, dT), Q95_{t in dT} d(t, dP))``.

    dP are the border pixels of P: those that erosion by the 4-neighbourhood removes (also at the image's edge); d is
    the Euclidean distance of a pixel's centre to the nearest border pixel of the other mask, Q95 the 95th percentile
    with linear interpolation. This is the maximum of the two directed percentiles, as the reference implementation of
    Metrics Reloaded has it; MedPy takes one percentile of both directions together, which is smaller as a rule.

    Parameters
    ----------
    predicted, truth : bool (H, W)
    spacing : (float, float)
        Size of a pixel down and across, in the unit of the result; (1, 1) gives pixels.

    Returns
    -------
    float
        0 or more; NaN where either mask is empty: a lesion that is missed has no distance and is counted as missed.

    Raises
    ------
    SonobreastError
        As `dice`, and for a spacing that is not above 0.

    References
    ----------
    Huttenlocher, Klanderman & Rucklidge 1993, IEEE Trans Pattern Anal Mach Intell 15:850 (partial distances); Metrics
    Reloaded (see above), https://github.com/Project-MONAI/MetricsReloaded.
    """
    p, t = _masks(predicted, truth)
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise SonobreastError(f"a pixel spacing of {spacing}", remedy="give the size of a pixel, a number above 0")
    if not (p.any() and t.any()):
        return math.nan
    # No border pixel lies outside the box of both masks, and a large image is mostly outside.
    box = ndimage.find_objects((p | t).astype(np.uint8))[0]
    p, t = _border(p[box]), _border(t[box])
    directed = (np.percentile(_distance_to(t, spacing)[p], 95), np.percentile(_distance_to(p, spacing)[t], 95))
    return float(max(directed))


def _border(mask: Mask) -> Mask:
    border: Mask = mask & ~ndimage.binary_erosion(mask)
    return border


def _distance_to(border: Mask, spacing: tuple[float, float]) -> Floats:
    """Distance of every pixel to the nearest border pixel, (H, W)."""
    distance: Floats = np.asarray(ndimage.distance_transform_edt(~border, sampling=spacing), np.float64)
    return distance


def _masks(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[Mask, Mask]:
    p, t = np.asarray(predicted), np.asarray(truth)
    if p.dtype != bool or t.dtype != bool or p.ndim != 2 or p.shape != t.shape or not p.size:
        raise SonobreastError(
            f"the predicted mask is {p.dtype} of the shape {p.shape}, the true one {t.dtype} of {t.shape}",
            remedy="give two masks (height, width) of one image at the same size, true where the lesion is",
        )
    return p, t


def mask_row(
    predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_] | None, spacing_mm: float | None = None
) -> dict[str, str | int | float | None]:
    """The cells of one image in ``segmentation.csv`` (`sonobreast.records.MASK_COLUMNS`).

    Parameters
    ----------
    predicted : bool (H, W)
        At the image's own size.
    truth : bool (H, W) or None
        Union of the image's lesions; all false for an image without one, None where it is not known
        (`sonobreast.data.masks_out.true_mask`).
    spacing_mm : float or None
        Size of a pixel in millimetres, the same both ways; None where the file does not give it.

    Returns
    -------
    dict
        ``truth`` "lesion", "empty" or "unknown"; ``true_area_px``, ``predicted_area_px`` in pixels; ``dice``, ``iou``,
        ``hd95_px`` and ``hd95_mm`` where there is a lesion (the distances only where it was found); of an image without
        one ``false_positive_share``, predicted area over image area. None is an empty cell: does not apply.

    Raises
    ------
    SonobreastError
        As `dice` and `hausdorff95`.
    """
    _masks(predicted, predicted if truth is None else truth)
    area = int(predicted.sum())
    cells: dict[str, str | int | float | None] = {
        "truth": "unknown",
        "true_area_px": None,
        "predicted_area_px": area,
        "dice": None,
        "iou": None,
        "hd95_px": None,
        "hd95_mm": None,
        "false_positive_share": None,
    }
    if truth is None:
        return cells
    true_area = int(truth.sum())
    cells |= {"truth": "lesion" if true_area else "empty", "true_area_px": true_area}
    if not true_area:
        return cells | {"false_positive_share": area / predicted.size}
    cells |= {"dice": dice(predicted, truth), "iou": iou(predicted, truth)}
    if area:
        distance = hausdorff95(predicted, truth)
        cells["hd95_px"] = distance
        if spacing_mm is not None:
            if not (math.isfinite(spacing_mm) and spacing_mm > 0):
                raise SonobreastError(
                    f"a pixel spacing of {spacing_mm} mm", remedy="give millimetres above 0, or leave it empty"
                )
            cells["hd95_mm"] = distance * spacing_mm
    return cells
