"""How long a lesion is, from its mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def long_axis_mm(mask: NDArray[np.bool_], spacing_mm: tuple[float, float]) -> float:
    """Longest straight distance across the largest part of a mask (maximum Feret diameter), in millimetres.

    Between the outer corners of pixels, so that one pixel is as long as its diagonal and a box as long as its own.

    Parameters
    ----------
    mask : ndarray, bool, (H, W)
    spacing_mm : tuple of 2 float
        Between rows and between columns.

    Returns
    -------
    float
        0 for an empty mask.
    """
    labels = label_parts(mask)
    if not labels.any():
        return 0.0
    largest = labels == 1 + np.bincount(labels[labels > 0] - 1).argmax()
    rows = np.flatnonzero(largest.any(axis=1))
    left = largest[rows].argmax(axis=1)
    right = largest.shape[1] - largest[rows, ::-1].argmax(axis=1)
    # The farthest two points are ends of rows: (4 * rows, 2) corners
    corners = np.concatenate([np.stack([rows + down, side], axis=1) for down in (0, 1) for side in (left, right)])
    places = corners * np.asarray(spacing_mm)
    return max(float(np.hypot(*(places - place).T).max()) for place in places)


def label_parts(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Number the connected parts of a mask (eight neighbours) from 1; 0 outside.

    Runs of a row that touch runs of the row above belong together; NumPy only, because serving has no SciPy.

    Parameters
    ----------
    mask : ndarray, bool, (H, W)
    """
    runs: list[tuple[int, int, int]] = []
    owner: list[int] = []

    def root(i: int) -> int:
        while owner[i] != i:
            owner[i] = owner[owner[i]]
            i = owner[i]
        return i

    above: list[int] = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0))
        here = []
        for start, stop in edges.reshape(-1, 2).tolist():
            number = len(runs)
            runs.append((y, start, stop))
            owner.append(number)
            for other in above:
                if runs[other][1] <= stop and start <= runs[other][2]:
                    owner[root(other)] = root(number)
            here.append(number)
        above = here
    labels = np.zeros(mask.shape, np.intp)
    numbers: dict[int, int] = {}
    for i, (y, start, stop) in enumerate(runs):
        labels[y, start:stop] = numbers.setdefault(root(i), len(numbers) + 1)
    return labels
