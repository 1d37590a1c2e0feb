"""How large the lesion of a mask is. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Lesion:
    """The largest connected piece of a mask.

    Attributes
    ----------
    area_px : int
        Pixels of all pieces together.
    pieces : int
    diameter_px : float
        Largest distance between two corners of pixels of the largest piece (Feret diameter); 0 for an empty mask.
    diameter_mm : float or None
        Only where the pixel spacing is known.
    """

    area_px: int
    pieces: int
    diameter_px: float
    diameter_mm: float | None


def measure(mask: Mask, spacing_mm: float | None = None) -> Lesion:
    """Measure the lesion.

    Parameters
    ----------
    mask : ndarray, bool, (H, W)
        At the image's own size.
    spacing_mm : float or None
        Of its pixels, the same both ways.
    """
    found = pieces(mask)
    if not found:
        return Lesion(0, 0, 0.0, None if spacing_mm is None else 0.0)
    diameter = feret(largest(found))
    return Lesion(int(mask.sum()), len(found), diameter, None if spacing_mm is None else diameter * spacing_mm)


def pieces(mask: Mask) -> list[NDArray[np.intp]]:
    """Connected pieces (also over corners), each as its runs of pixels: row, first column, column behind the last.

    Rows are cut into runs, and runs of neighbouring rows that touch are joined (Rosenfeld and Pfaltz 1966).

    Parameters
    ----------
    mask : ndarray, bool, (H, W)

    Returns
    -------
    list of ndarray, int, (n, 3)
        From top to bottom by their first rows.
    """
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    runs = np.stack([rows, starts, np.nonzero(change == -1)[1]], axis=1)
    root = list(range(len(runs)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    first = np.searchsorted(runs[:, 0], np.arange(mask.shape[0] + 1))
    for row in range(1, mask.shape[0]):
        above, here = first[row - 1], first[row]
        while above < first[row] and here < first[row + 1]:
            if runs[above, 1] <= runs[here, 2] and runs[here, 1] <= runs[above, 2]:
                one, other = sorted((find(int(above)), find(int(here))))
                root[other] = one
            if runs[above, 2] < runs[here, 2]:
                above += 1
            else:
                here += 1
    label = np.array([find(i) for i in range(len(runs))], np.intp)
    if not len(runs):
        return []
    order = np.argsort(label, kind="stable")  # one pass, however many pieces a mask of speckle has
    return np.split(runs[order], np.flatnonzero(np.diff(label[order])) + 1)


def largest(found: list[NDArray[np.intp]]) -> NDArray[np.intp]:
    """The piece with the most pixels; of equals the first."""
    return max(found, key=lambda runs: int((runs[:, 2] - runs[:, 1]).sum()))


def feret(runs: NDArray[np.intp], spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """Largest distance between corners of the pixels of a piece (maximum Feret diameter, long axis).

    The two farthest points of a set lie on its convex hull.

    Parameters
    ----------
    runs : ndarray, int, (n, 3)
        From `pieces`.
    spacing : tuple of 2 float
        Between rows and between columns.
    """
    row, start, stop = runs.T
    corners = np.concatenate([np.stack([x, y], 1) for x in (start, stop) for y in (row, row + 1)]).astype(np.float64)
    hull = _hull(corners * (spacing[1], spacing[0]))
    gaps = hull[:, None, :] - hull[None, :, :]
    return float(np.sqrt((gaps * gaps).sum(2).max()))


def _hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convex hull (Andrew 1979, monotone chain)."""
    ordered = sorted({(float(x), float(y)) for x, y in points})
    sides = []
    for sequence in (ordered, ordered[::-1]):
        side: list[tuple[float, float]] = []
        for x, y in sequence:
            while len(side) > 1 and _turn(side[-2], side[-1], (x, y)) <= 0.0:
                side.pop()
            side.append((x, y))
        sides += side[:-1]
    return np.asarray(sides)


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
