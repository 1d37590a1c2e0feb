"""Graphics burned into an ultrasound picture, told from tissue by their edges: the pixels and their connected pieces.

Graphics are drawn after the scanner has blurred the echoes: a stroke rises and falls within one pixel and keeps one
level along its length. Speckle is as wide as the point spread function, worst across the beam, so a *vertical* stroke
with steep sides and a constant level does not occur in tissue. Such pixels are the seeds. Their levels are the ink
levels of this picture; whatever stands out at one of these levels is ink, and each connected piece of it is a glyph,
a cross, a line or a stray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

STROKE = 9
"""Pixels: a stroke is narrower than this, so that an opening of this width removes it."""
LENGTH = 5
"""Rows over which a stroke must keep its level to be a seed."""
CONTRAST = 40
"""Least grey levels of a stroke above its surroundings."""
WAVER = 10, 0.15
"""Most grey levels, or share of the contrast, by which a stroke may vary along LENGTH: anti-aliasing and JPEG."""
STEEP = 0.4
"""Least share of the contrast that is gained within a single pixel on both sides."""
TOLERANCE = 22
"""Grey levels around an ink level that still are ink."""
_EXACT = 9
_LEVELS = 3
_SMALLEST = 6
_PIECES = 3000


@dataclass(frozen=True)
class Piece:
    """A connected piece of ink.

    Attributes
    ----------
    x, y, width, height : int
        Its bounding box in pixels, the origin in the upper left corner.
    seeds : int
        Seed pixels in it; 0 for pieces without a vertical stroke, such as an X.
    mask : bool (height, width)
    level : int
        Ink level, 0-255.
    """

    x: int
    y: int
    width: int
    height: int
    seeds: int
    mask: Mask
    level: int

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height


def running(extreme: Callable[[U8, U8], U8], image: U8, size: int, axis: int) -> U8:
    """Running minimum or maximum over a centred window of odd ``size``, edges repeated; uint8 (H, W).

    Windows are doubled, not walked: log2(size) passes over the picture, each one vectorised.
    """
    half = size // 2
    pad = [(half, half) if i == axis else (0, 0) for i in range(2)]
    current, span = np.pad(image, pad, mode="edge"), 1
    while span < size:
        step = min(span, size - span)
        n = current.shape[axis] - step
        low = current[:n] if axis == 0 else current[:, :n]
        high = current[step:] if axis == 0 else current[:, step:]
        current, span = extreme(low, high), span + step
    return current


def standing_out(grey: U8, axes: tuple[int, ...]) -> U8:
    """Grey levels above an opening of STROKE pixels along ``axes``: the white top-hat; uint8 (H, W)."""
    low = grey
    for extreme in (np.minimum, np.maximum):
        for axis in axes:
            low = running(extreme, low, STROKE, axis)
    return grey - low


def seeds(grey: U8, out: U8) -> Mask:
    """Pixels of vertical strokes with steep sides and one level, bool (H, W).

    Parameters
    ----------
    grey : uint8 (H, W)
    out : uint8 (H, W)
        ``standing_out(grey, (1,))``.
    """
    found = out >= CONTRAST
    if grey.shape[0] < LENGTH or not found.any():
        return np.zeros_like(found)
    flat = running(np.maximum, grey, LENGTH, 0) - running(np.minimum, grey, LENGTH, 0)
    # A quarter is more than WAVER allows: few pixels are left, and only they are asked exactly.
    found &= flat <= np.maximum(out >> 2, WAVER[0])
    hits = np.flatnonzero(found)
    rows, columns = hits // grey.shape[1], hits % grey.shape[1]
    contrast = out[rows, columns].astype(np.float32)
    padded = np.pad(grey, ((0, 0), (5, 5)), mode="edge").astype(np.int16)
    around = padded[rows[:, None], columns[:, None] + np.arange(11)[None, :]]  # (N, 11), the pixel is column 5
    step = np.abs(np.diff(around, axis=1))
    steepest = np.minimum(step[:, 1:5].max(1, initial=0), step[:, 5:9].max(1, initial=0))
    # Measured against the crest of the stroke: the flank of a soft ridge is steep for its own small height.
    crest = np.pad(out, ((0, 0), (2, 2)), mode="edge")[rows[:, None], columns[:, None] + np.arange(5)].max(1, initial=0)
    keep = (steepest >= STEEP * crest) & (flat[rows, columns] <= np.maximum(WAVER[0], WAVER[1] * contrast))
    found[rows[~keep], columns[~keep]] = False
    return found


def strongest(grey: U8, found: Mask) -> int | None:
    """The grey level at which most seeds gather; None where fewer than 3 agree."""
    count = np.bincount(grey[found], minlength=256)
    near = np.convolve(count, np.ones(9, dtype=np.int64), "same")
    peak = int(near.argmax())
    if near[peak] < 3:
        return None
    around = np.arange(max(0, peak - 4), min(256, peak + 5))
    return round(float(np.average(around, weights=count[around])))


def pieces(grey: U8) -> list[Piece]:
    """Connected pieces of ink in a picture, empty where there is no seed.

    Parameters
    ----------
    grey : uint8 (H, W)
    """
    found = seeds(grey, standing_out(grey, (1,)))
    result: list[Piece] = []
    for _ in range(_LEVELS):
        level = strongest(grey, found)
        if level is None:
            break
        result += _at_level(grey, found, level)
    return result


def _at_level(grey: U8, found: Mask, level: int) -> list[Piece]:
    """Pieces at one ink level; the seeds that they explain are taken out of ``found``."""
    from scipy import ndimage

    near = found & (np.abs(grey.astype(np.int16) - level) <= TOLERANCE)
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    # Only around the seeds: words go on to the side of them.
    top, left = max(0, int(rows[0]) - 40), max(0, int(columns[0]) - 160)
    window = np.s_[top : int(rows[-1]) + 41, left : int(columns[-1]) + 161]
    part, seed = grey[window], found[window]
    ink = standing_out(part, (0, 1)) >= CONTRAST // 2
    ink &= (part >= max(0, level - TOLERANCE)) & (part <= min(255, level + TOLERANCE))
    label, n = ndimage.label(ink, structure=np.ones((3, 3), dtype=np.int8))
    seeded = np.bincount(label[seed], minlength=n + 1)
    size = np.bincount(label.ravel(), minlength=n + 1)
    seeded[0] = 0
    result: list[Piece] = []
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        # Dots and speckle grains are most of the pieces and part of no letter.
        if size[index] < _SMALLEST or len(result) >= _PIECES:
            continue
        y, x = box[0].start, box[1].start
        tall, wide = box[0].stop - y, box[1].stop - x
        if seeded[index] or max(tall, wide) >= _SMALLEST:
            piece = Piece(left + x, top + y, wide, tall, int(seeded[index]), label[box] == index, level)
            result += _split(piece, part[box], seed[box])
    # The softened rims of these pieces are not another ink.
    explained = (seeded > 0)[label].astype(np.uint8)
    for axis in (0, 1):
        explained = running(np.maximum, explained, 5, axis)
    found[window] &= explained == 0
    found &= ~near
    return result


def _split(piece: Piece, grey: U8, seed: Mask) -> list[Piece]:
    """Letters that bright tissue joins into one piece, apart: by a narrower range of levels than tissue keeps to."""
    if piece.seeds < 4 or not (8 <= piece.height <= 60 and piece.width > 1.4 * piece.height):
        return [piece]
    from scipy import ndimage

    exact = piece.mask & (np.abs(grey.astype(np.int16) - piece.level) <= _EXACT)
    label, _ = ndimage.label(exact, structure=np.ones((3, 3), dtype=np.int8))
    parts = []
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        y, x = box[0].start, box[1].start
        tall, wide = box[0].stop - y, box[1].stop - x
        if tall >= 0.6 * piece.height:
            mask = label[box] == index
            seeds_in = int((seed[box] & mask).sum())
            parts.append(Piece(piece.x + x, piece.y + y, wide, tall, seeds_in, mask, piece.level))
    return parts if len(parts) >= 2 else [piece]


def softly(grey: U8, x: int, y: int, width: int, height: int) -> list[Piece]:
    """Letters of a line of text with their softened strokes, from left to right, also beside the box by 4 heights.

    Thin slanted strokes never reach the ink's level: here all counts that stands out by nearly half of what the
    line's strongest strokes do.

    Parameters
    ----------
    grey : uint8 (H, W)
    x, y, width, height : int
        Box of the line as far as it is known.
    """
    from scipy import ndimage

    top, left = max(0, y - 8), max(0, x - 4 * height)
    part = grey[top : y + height + 8, left : x + width + 4 * height]
    out = standing_out(part, (0, 1))[y - top : y - top + height]
    strong = int(np.quantile(out[:, x - left : x - left + width], 0.9))
    label, _ = ndimage.label(out >= max(CONTRAST // 2, 0.45 * strong), structure=np.ones((3, 3), dtype=np.int8))
    result = []
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        wide, tall = box[1].stop - box[1].start, box[0].stop - box[0].start
        if tall >= 0.6 * height and wide <= 1.8 * height:
            place = (left + box[1].start, y + box[0].start, wide, tall)
            result.append(Piece(*place, 0, label[box] == index, strong))
    return sorted(result, key=lambda p: p.x)
