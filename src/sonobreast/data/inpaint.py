"""Take burned-in marks out of a picture: text, calipers, arrows and other graphics are filled from what is around them.

Measured lesions carry calipers, and a network can learn those instead of the lesion (`marks`). Each stroke that `marks`
finds is widened a little and replaced by the harmonic function with the surrounding grey levels at its rim: the
smoothest fill there is, without invented texture. With calipers go the numbers beside them and the dotted lines between
them. What the search misses stays, such as dim or cut letters; rectangles that somebody blanked stay blank. SciPy is
needed, here and wherever such a study's networks are used later.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

from sonobreast.data.ink import CONTRAST, pieces, running, standing_out
from sonobreast.data.marks import Box, look
from sonobreast.errors import SonobreastError

U8 = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.bool_]

VERSION = 1  # to be raised when other pixels come out than before
_WIDER = 5  # pixels: strokes are widened by two on each side, over their softened rims


def without_marks(image: U8) -> U8:
    """A picture without the marks that `sonobreast.data.marks.look` finds.

    Parameters
    ----------
    image : uint8 (H, W, 3) or (H, W)
        At the resolution of the file.

    Returns
    -------
    ndarray, uint8, of the same shape
        The very same array where no mark was found; elsewhere pixels that are no mark are the same bit for bit.

    Raises
    ------
    SonobreastError
        As `look`; and if SciPy is not installed.
    """
    try:
        import scipy.sparse.linalg  # noqa: F401
    except ImportError as error:
        raise SonobreastError(
            "preprocess.inpaint_marks needs SciPy, which is not installed", remedy="install it: pip install scipy"
        ) from error
    marked = mark_pixels(image)
    return fill(image, marked) if marked.any() and not marked.all() else image


def mark_pixels(image: U8) -> Bits:
    """Pixels of strokes, with a rim of two pixels, bool (H, W); parameters as `without_marks`."""
    marked = np.zeros(image.shape[:2], bool)
    boxes = [b for b in look(image).boxes if b.kind != "blank"]
    if not boxes:
        return marked
    grey = image if image.ndim == 2 else np.asarray(image.max(2))
    out = standing_out(grey, (0, 1))
    drawn = {b[:4] for b in boxes if b.kind in ("line", "arrow")}
    for box in boxes:
        if box[:4] not in drawn:  # a line's box may hold half of the picture: there only its own pixels count
            part = _around(box, 2)
            marked[part] |= out[part] >= CONTRAST // 2
    for piece in pieces(grey) if drawn else []:
        if (piece.x, piece.y, piece.width, piece.height) in drawn:
            marked[piece.y : piece.bottom, piece.x : piece.right] |= piece.mask
    calipers = [b for b in boxes if b.kind == "caliper"]
    for box in calipers:
        _mark_number(marked, out, box)
    for one, other in combinations(calipers, 2):
        _mark_dots(marked, grey, one, other)
    wide = marked.astype(np.uint8)
    for axis in (0, 1):
        wide = running(np.maximum, wide, _WIDER, axis)
    return wide.astype(bool)


def _around(box: Box, margin: int) -> tuple[slice, slice]:
    """Rows and columns of a box and of a margin around it, in pixels."""
    rows = slice(max(0, box.y - margin), box.y + box.height + margin)
    return rows, slice(max(0, box.x - margin), box.x + box.width + margin)


def _mark_number(marked: Bits, out: U8, caliper: Box) -> None:
    """Mark what stands out as a caliper does, within one and a half of its own size, and is not larger by far."""
    from scipy import ndimage

    own = out[_around(caliper, 0)]
    size = max(caliper.width, caliper.height)
    near = _around(caliper, round(1.5 * size))
    strong = max(CONTRAST // 2, 0.45 * float(np.quantile(own, 0.9)))
    label, _ = ndimage.label(out[near] >= strong, structure=np.ones((3, 3), dtype=np.int8))
    for index, part in enumerate(ndimage.find_objects(label), start=1):
        tall, wide = (s.stop - s.start for s in part)
        if tall >= 4 and max(tall, wide) <= 2.5 * size:
            marked[near][part] |= label[part] == index


def _mark_dots(marked: Bits, grey: U8, one: Box, other: Box) -> None:
    """Mark a dotted line between the centres of two calipers, if there is one."""
    start = np.array([one.y + one.height / 2 - 0.5, one.x + one.width / 2 - 0.5])
    way = np.array([other.y + other.height / 2 - 0.5, other.x + other.width / 2 - 0.5]) - start
    length = float(np.hypot(*way))
    if length < 2 * max(one.width, one.height):
        return
    along = np.arange(0.0, length, 0.5)
    across = np.array([-way[1], way[0]]) / length
    points = start + along[:, None, None] / length * way + np.arange(-2, 3)[None, :, None] * across  # (n, 5, 2)
    y, x = (np.rint(points[..., k]).astype(int).clip(0, grey.shape[k] - 1) for k in (0, 1))
    profile = grey[y[:, 1:4], x[:, 1:4]].max(1).astype(np.int16)
    ends = int(2 * max(one.width, one.height, other.width, other.height))  # the crosses themselves
    middle = profile[ends:-ends] if len(profile) > 3 * ends else profile[len(profile) // 3 : -(len(profile) // 3)]
    if _is_dotted(middle):
        marked[y[:, 1:4], x[:, 1:4]] = True


def _is_dotted(profile: npt.NDArray[np.int16]) -> bool:
    """Whether grey levels along a line, in steps of half a pixel, go up and down evenly every 3 to 12 pixels."""
    if len(profile) < 40 or np.quantile(profile, 0.9) - np.quantile(profile, 0.2) < CONTRAST:
        return False
    wide = 25
    level = np.convolve(np.pad(profile.astype(np.float64), wide // 2, mode="edge"), np.ones(wide) / wide, "valid")
    wave = profile - level
    power = float((wave * wave).mean())
    likeness = np.array([(wave[k:] * wave[:-k]).mean() / power for k in range(2, 25)])
    best = 4 + int(likeness[4:].argmax())  # from 3 pixels on
    return bool(likeness[best] >= 0.25 and likeness[:best].min() <= -0.1)


def fill(image: U8, marked: Bits) -> U8:
    """Replace pixels by the solution of Laplace's equation with the other pixels as boundary values.

    Parameters
    ----------
    image : uint8 (H, W, C) or (H, W)
    marked : bool (H, W)
        Not all of them.

    Returns
    -------
    ndarray, uint8, of the image's shape
    """
    from scipy import sparse
    from scipy.sparse.linalg import splu

    height, width = marked.shape
    rows, columns = np.nonzero(marked)
    n = len(rows)
    number = np.full(marked.shape, -1)
    number[rows, columns] = np.arange(n)
    values = image.reshape(height, width, -1).astype(np.float64)
    neighbours = np.zeros(n)
    right = np.zeros((n, values.shape[2]))
    links: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
    for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        y, x = rows + down, columns + across
        there = (y >= 0) & (y < height) & (x >= 0) & (x < width)  # beyond the edge nothing flows
        neighbours += there
        here, y, x = np.flatnonzero(there), y[there], x[there]
        free = ~marked[y, x]
        right[here[free]] += values[y[free], x[free]]
        links.append((here[~free], number[y[~free], x[~free]]))
    i, j = (np.concatenate([link[k] for link in links]) for k in (0, 1))
    laplace = sparse.csc_matrix((np.full(len(i), -1.0), (i, j)), (n, n)) + sparse.diags(neighbours, format="csc")
    filled = image.reshape(height, width, -1).copy()
    filled[rows, columns] = np.clip(np.rint(splu(laplace.tocsc()).solve(right)), 0, 255).astype(np.uint8)
    return filled.reshape(image.shape)
