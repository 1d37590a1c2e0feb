"""Zooming in on lesions, as the person at the scanner does, without telling the class by the zoom.

**The danger**: only benign and malignant images have a lesion, and malignant ones tend to be larger. A zoom whose scale
followed the lesion's size, or that was left out for normal images, would show the class in the size of the speckle's
grain and in what is missing at the edges; training accuracy would rise and validation, which is not zoomed, would fall.
So chance alone decides who is zoomed and by how much: the same for every image. The lesion only says where the window
lies, and for an image without a known lesion that is said by a lesion of another training image, drawn at random. What
is left over is what the picture shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonobreast.config import Augment
from sonobreast.data.masks import Masks
from sonobreast.errors import SonobreastError

_PART = 256  # masks that are unpacked at once


@dataclass(frozen=True)
class LesionBoxes:
    """Bounding boxes of lesions: left, top, right, bottom, where the picture reaches from -1 to 1.

    Attributes
    ----------
    own : ndarray, float64, (n, 4)
        Of each image; NaN where no lesion is known.
    pool : ndarray, float64, (m, 4)
        Of the training images with a lesion; stands in for the NaN.
    """

    own: NDArray[np.float64]
    pool: NDArray[np.float64]

    def of(self, index: NDArray[np.intp]) -> LesionBoxes:
        """Those of some images, with the same pool."""
        return LesionBoxes(self.own[index], self.pool)


def measure_boxes(masks: Masks | None, train: NDArray[np.intp]) -> LesionBoxes:
    """Boxes of the masks of a study.

    Parameters
    ----------
    masks : Masks or None
    train : ndarray of int
        The training subset. Of other images nothing is used but their own box, if they are shown at all.

    Raises
    ------
    SonobreastError
        If no training image has a known lesion.
    """
    own = np.full((0 if masks is None else len(masks.known), 4), np.nan)
    for start in range(0, len(own), _PART):
        index = np.arange(start, min(start + _PART, len(own)))
        assert masks is not None
        lesion = masks.resized(index)
        side = lesion.shape[1]
        for axis in (0, 1):  # x, y
            there: NDArray[np.bool_] = np.any(lesion, axis=1 + axis)  # (k, side)
            found = there.any(1)
            own[index[found], axis] = 2.0 * there[found].argmax(1) / side - 1.0
            own[index[found], axis + 2] = 1.0 - 2.0 * there[found, ::-1].argmax(1) / side
    known = np.unique(train)
    pool = own[known[~np.isnan(own[known, 0])]] if len(own) else own
    if not len(pool):
        raise SonobreastError(
            "augment.lesion_zoom needs lesion masks, and no training image has one",
            remedy="add masks (NAME_mask.png beside each image), or set augment.lesion_zoom=0",
        )
    return LesionBoxes(own, pool)


def draw_windows(
    u: NDArray[np.float64], boxes: LesionBoxes, settings: Augment
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The part of each picture that is shown.

    With probability ``lesion_zoom`` it is a square window whose side is log-uniform between ``lesion_window`` and 1
    times the picture's. It lies at random among the places where it holds the whole lesion or, where it is too small
    for that, where it is full of it, and never beyond the picture.

    Parameters
    ----------
    u : ndarray, float64, (B, 5)
        Uniform in [-1, 1).
    boxes : LesionBoxes
        ``own`` of these B images.
    settings : Augment

    Returns
    -------
    scale : ndarray, float64, (B,)
        Side of the window as a share of the picture's; 1 where it is all of it.
    centre : ndarray, float64, (B, 2)
        x and y of its middle, in [-1, 1].
    """
    unit = 0.5 * (u + 1.0)
    zoomed = unit[:, 0] < settings.lesion_zoom
    scale = np.where(zoomed, settings.lesion_window ** unit[:, 1], 1.0)
    borrowed = boxes.pool[np.minimum((unit[:, 4] * len(boxes.pool)).astype(int), len(boxes.pool) - 1)]
    box = np.where(np.isnan(boxes.own), borrowed, boxes.own)
    one, other = box[:, 2:] - scale[:, None], box[:, :2] + scale[:, None]
    low, high = np.minimum(one, other), np.maximum(one, other)
    room = 1.0 - scale[:, None]
    return scale, (low + (high - low) * unit[:, 2:4]).clip(-room, room)
