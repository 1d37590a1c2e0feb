"""Uniform parts of an ultrasound picture that show no tissue: margins, a grey-scale bar, blanked rectangles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sonobreast.data.ink import running

U8 = npt.NDArray[np.uint8]

UNIFORM = 4
"""Most grey levels between the pixels of a margin: JPEG leaves black not quite black."""
_WINDOW = 9
_SIDE = 12
_EDGE = 8
_SCALE = 150
_BAR = 6


@dataclass(frozen=True)
class Border:
    """What surrounds the picture itself.

    Attributes
    ----------
    left, top, right, bottom : int
        Widths in pixels of the uniform margins. Of a picture that is uniform altogether, ``left`` is the whole width
        and ``top`` the whole height, the others 0.
    bar : bool
        A grey-scale bar stands at the left or right side: a strip whose rows are constant and whose grey level rises
        or falls over its length.
    """

    left: int
    top: int
    right: int
    bottom: int
    bar: bool


class Rectangle(NamedTuple):
    """Box of a uniform rectangle in pixels, the origin in the upper left corner."""

    x: int
    y: int
    width: int
    height: int


def measure(grey: U8) -> Border:
    """Margins of a grey picture; see `marks.border` for colour.

    Parameters
    ----------
    grey : uint8 (H, W)
    """
    top, bottom = _margins(grey)
    left, right = _margins(np.ascontiguousarray(grey[top : grey.shape[0] - bottom].T))
    if top == grey.shape[0]:
        left, right = grey.shape[1], 0
    return Border(left, top, right, bottom, _has_bar(grey[:, left : grey.shape[1] - right]))


def _margins(grey: U8) -> tuple[int, int]:
    """Rows from the top and from the bottom that are uniform and of the level of the outermost row."""
    if not grey.size:
        return 0, 0
    low, high = grey.min(axis=1), grey.max(axis=1)
    widths = []
    for a, b in ((low, high), (low[::-1], high[::-1])):
        # The margin as a whole is uniform, not each row for itself: a vertical gradient is no margin.
        spread = np.maximum.accumulate(b).astype(np.int16) - np.minimum.accumulate(a)
        widths.append(int(np.searchsorted(spread, UNIFORM, side="right")))
    first, last = widths
    return (first, 0) if first == grey.shape[0] else (first, last)


def _has_bar(grey: U8) -> bool:
    """Whether a strip near the left or right side is constant across and runs from dark to bright along it."""
    tall, wide = grey.shape
    if tall < 64 or wide < 64:
        return False
    reach = max(16, wide // 12)
    for part in (grey[:, :reach], grey[:, wide - reach :]):
        level = part[:, : 1 - _BAR].astype(np.int16)
        same = np.ones(level.shape, dtype=bool)
        for k in range(1, _BAR):
            same &= (
                np.abs(part[:, k : part.shape[1] + 1 - _BAR + k].astype(np.int16) - level) <= UNIFORM
            )  # (H, reach - 5)
        reach_of_levels = np.where(same, level, 0).max(axis=0) - np.where(same, level, 255).min(axis=0)
        for column in np.flatnonzero((same.mean(axis=0) >= 0.25) & (reach_of_levels >= _SCALE)):
            if _is_ramp(level[:, column][same[:, column]]):
                return True
    return False


def _is_ramp(level: npt.NDArray[np.int16]) -> bool:
    """Whether grey levels, from top to bottom, go from one end of the scale to the other without turning back."""
    # A ramp passes through all levels; the longest stretch that does not turn back must cover most of the scale.
    for line in (level, -level):
        ends = np.concatenate([[0], np.flatnonzero(np.diff(line) < -UNIFORM) + 1, [line.size]])
        for k in np.flatnonzero(np.diff(ends) >= 32):
            stretch = line[ends[k] : ends[k + 1]]
            lit = np.unique(stretch)
            wide = lit.size >= 24 and int(lit[-1]) - int(lit[0]) >= _SCALE
            if wide and int(np.abs(np.diff(stretch)).max()) <= 24:
                return True
    return False


def blanks(grey: U8) -> list[Rectangle]:
    """Rectangles of one grey level inside the picture, as a program leaves them that hides names.

    Each side is at least 12 pixels long and differs from what lies beside it: a shadow, which fades, is none, nor is
    a margin, which has nothing beside it.

    Parameters
    ----------
    grey : uint8 (H, W)
    """
    if min(grey.shape) < _SIDE + 2:
        return []
    low, high = grey, grey
    for axis in (0, 1):
        low, high = running(np.minimum, low, _WINDOW, axis), running(np.maximum, high, _WINDOW, axis)
    flat = ((high - low) <= 2)[::2, ::2]
    if not flat.any():
        return []
    from scipy import ndimage

    label, _ = ndimage.label(flat)
    half = _WINDOW // 2
    found = []
    for box in ndimage.find_objects(label):
        top, left = max(0, 2 * box[0].start - half), max(0, 2 * box[1].start - half)
        bottom = min(grey.shape[0], 2 * box[0].stop - 1 + half)
        right = min(grey.shape[1], 2 * box[1].stop - 1 + half)
        rectangle = Rectangle(left, top, right - left, bottom - top)
        if min(rectangle.width, rectangle.height) >= _SIDE and _stands_apart(grey, rectangle):
            found.append(rectangle)
    return found


def _stands_apart(grey: U8, r: Rectangle) -> bool:
    """Whether a box is filled with one level and every side of it is an edge."""
    inside = grey[r.y : r.y + r.height, r.x : r.x + r.width]
    level = int(np.median(inside))
    if (np.abs(inside.astype(np.int16) - level) <= UNIFORM).mean() < 0.98:
        return False
    top, left, bottom, right = r.y - 3, r.x - 3, r.y + r.height + 2, r.x + r.width + 2
    if top < 0 or left < 0 or bottom >= grey.shape[0] or right >= grey.shape[1]:
        return False
    columns, rows = slice(r.x, r.x + r.width), slice(r.y, r.y + r.height)
    sides = (grey[top, columns], grey[bottom, columns], grey[rows, left], grey[rows, right])
    return all((np.abs(side.astype(np.int16) - level) >= _EDGE).mean() >= 0.7 for side in sides)
