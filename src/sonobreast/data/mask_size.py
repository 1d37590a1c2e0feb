"""Masks that were published at another size than their image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RESCALED = frozenset({"bus_uclm"})
"""Data sets in which some masks have another size than their image. Elsewhere another size means another image."""
SAME_SHAPE = 0.02
"""Greatest difference of the aspect ratios, as a share: two sizes that differ by rounding alone agree within 0.5 %."""


def fit_mask(mask: NDArray[np.bool_], width: int, height: int, source: str) -> NDArray[np.bool_] | None:
    """Bring a mask to its image's size, where its data set is known for that and the shapes agree.

    Parameters
    ----------
    mask : ndarray, bool, (H, W)
    width, height : int
        Of the image.
    source : str
        The data set (`sonobreast.records.Case.source`).

    Returns
    -------
    ndarray, bool, (height, width), or None
        None: of another size, and not to be scaled. A mask of the image's size is given back as it is.
    """
    if mask.shape == (height, width):
        return mask
    ratio = (mask.shape[1] / mask.shape[0]) / (width / height)
    if source not in RESCALED or abs(ratio - 1.0) > SAME_SHAPE:
        return None
    # Nearest: a mask has no values between lesion and tissue.
    scaled = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(scaled).astype(bool)
