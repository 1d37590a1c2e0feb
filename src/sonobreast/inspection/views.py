"""Parts of a scan: without its lesion, the lesion alone, the border alone, without marks, with marks added.

What is hidden is replaced in two ways, as each leaves a trace of its own: by the smoothest surface between the pixels
around it (`sonobreast.data.inpaint.fill`), or by one mean grey. Both still show where something was hidden and how
large it was. NumPy and Pillow, and SciPy for filling.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from sonobreast.data.ink import running
from sonobreast.data.inpaint import fill
from sonobreast.inspection.corruptions import corrupt, with_calipers

U8 = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.bool_]

BORDER = 0.1
"""Share of height and width, on each side, that `border_only` leaves."""
RIM = 0.02
"""Share of the shorter side by which a mask is widened before its lesion is hidden: outlines run inside the rim."""
_MOST = 4000  # unknown pixels of one filling: a smooth surface needs no more


def widened(mask: Bits) -> Bits:
    """A mask, bool (H, W), widened by `RIM`."""
    reach = max(1, round(RIM * min(mask.shape)))
    wide = mask.astype(np.uint8)
    for axis in (0, 1):
        wide = running(np.maximum, wide, 2 * reach + 1, axis)
    return wide.astype(bool)


def filled_smoothly(image: U8, hidden: Bits) -> U8:
    """Hidden pixels as the smoothest surface between those around them; mean grey where nothing is left around.

    Large surfaces are solved on a smaller picture and brought back: they have no detail.

    Parameters
    ----------
    image : uint8 (H, W, 3)
    hidden : bool (H, W)
    """
    if not hidden.any():
        return image
    height, width = hidden.shape
    share = math.sqrt(min(1.0, _MOST / float(hidden.sum())))
    if share == 1.0:
        return fill(image, hidden) if not hidden.all() else filled_grey(image, hidden)
    size = (max(1, round(width * share)), max(1, round(height * share)))
    # A reduced pixel is known only where none of its own is hidden: mixed ones would let the lesion shine through.
    touched = np.asarray(Image.fromarray(hidden.astype(np.float32)).resize(size, Image.Resampling.BOX)) > 0
    if touched.all():
        return filled_grey(image, hidden)
    small = fill(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)), touched)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))
    return np.where(hidden[:, :, None], large, image)


def filled_grey(image: U8, hidden: Bits) -> U8:
    """Hidden pixels as the mean of the others (mid-grey where there are none); uint8 (H, W, 3) and bool (H, W)."""
    if not hidden.any():
        return image
    mean = image[~hidden].mean(axis=0) if not hidden.all() else np.full(3, 128.0)
    out = image.copy()
    out[hidden] = np.rint(mean).astype(np.uint8)
    return out


def filled_grey_outside(image: U8, shown: Bits) -> U8:
    """What is shown alone; the rest is its own mean grey, so that the picture stays as bright. As `filled_grey`."""
    if shown.all():
        return image
    out = image.copy()
    out[~shown] = np.rint(image[~shown].mean(axis=0)).astype(np.uint8)
    return out


def outline_only(image: U8, lesion: Bits) -> U8:
    """Two greys: the mean outside the lesion, and half of it inside. What place, size and shape alone can tell."""
    outside = image[~lesion].mean(axis=0) if not lesion.all() else np.full(3, 128.0)
    out = np.empty_like(image)
    out[:] = np.rint(outside).astype(np.uint8)
    out[lesion] = np.rint(0.5 * outside).astype(np.uint8)
    return out


def border_only(image: U8) -> U8:
    """The outer `BORDER` of each side; what is inside is the border's mean grey. uint8 (H, W, 3)."""
    height, width = image.shape[:2]
    down, across = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    inside = np.zeros((height, width), bool)
    inside[down : height - down, across : width - across] = True
    return filled_grey(image, inside)


def calipers_on(image: U8, lesion: Bits | None, seed: int) -> U8:
    """Two measured distances: across the lesion as a sonographer measures, or at a drawn place where none is outlined.

    Parameters
    ----------
    image : uint8 (H, W, 3)
    lesion : bool (H, W) or None
    seed : int
        Of the place, where it is drawn.
    """
    if lesion is None or not lesion.any():
        return corrupt(image, "calipers", 2, seed)
    rows, columns = (np.flatnonzero(lesion.any(axis=a)) for a in (1, 0))
    top, bottom, left, right = (float(v) for v in (rows[0], rows[-1], columns[0], columns[-1]))
    x, y = 0.5 * (left + right), 0.5 * (top + bottom)
    return with_calipers(image, [(left, y, right, y), (x, top, x, bottom)])


def text_on(image: U8, seed: int) -> U8:
    """Two lines of annotation in the corners; none says what is seen."""
    return corrupt(image, "text", 2, seed)


def borrowed(mask: Bits, height: int, width: int) -> Bits:
    """Another image's mask at this image's size, bool (height, width): nearest pixels."""
    rows = (np.arange(height) * mask.shape[0]) // height
    columns = (np.arange(width) * mask.shape[1]) // width
    return np.asarray(mask[rows[:, None], columns[None]])
