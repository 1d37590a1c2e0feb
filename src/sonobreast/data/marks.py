"""What is burned into an ultrasound picture: text, calipers, arrows, other lines, colour, blanked rectangles; margins.

A network can learn such marks instead of the lesion: measured lesions carry calipers, suspicious ones more often. The
pieces of ink come from `ink.pieces`; here they are told apart by shape alone: a cross is four arms around an empty
neighbourhood, text is a row of glyphs of one height, an arrow is a shaft with a wider end, the rest are lines (body
marks, frames). Nothing is trained. How often this is right on BUSI was counted by eye: `docs/audit_busi_marks.csv`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sonobreast.data import letters, margins
from sonobreast.data.crosses import Cross, crosses
from sonobreast.data.ink import Piece, pieces, running, softly
from sonobreast.data.margins import Border
from sonobreast.errors import SonobreastError

U8 = npt.NDArray[np.uint8]
Kind = Literal["text", "logo", "caliper", "arrow", "line", "blank"]

MIN_GLYPH = 6
"""Pixels of height of the smallest letters."""
COLOURED = 28
"""Least spread between red, green and blue, beyond the tint of the whole picture, of a coloured pixel."""
_WORD = 4
"""Letters in a row that surely are text: a cross and its number make two."""
_AXILLA = re.compile(r"(?<![A-Z0-9])AX(?!IAL)(?! ?T[A?][I1?]L)|A[XK][I1]L|X[I1][L1I]L|[I1]LLA")
"""AX at the start of a word, or enough of AXILLA; the axillary tail (AX TAIL) is breast."""


class Box(NamedTuple):
    """A mark in the picture.

    Attributes
    ----------
    x, y, width, height : int
        Pixels, the origin in the upper left corner; the box lies inside the picture.
    kind : str
        ``text``; ``logo`` (outlined letters at the upper edge: the scanner's name); ``caliper``; ``arrow``; ``line``
        (any other graphics: body marks, frames, cut pieces); ``blank`` (a rectangle of one grey level).
    reads : str
        Text as it was read, a guess letter by letter; "" for the other kinds.
    """

    x: int
    y: int
    width: int
    height: int
    kind: Kind
    reads: str = ""


@dataclass(frozen=True)
class Marks:
    """What `look` found.

    Attributes
    ----------
    text, calipers, arrows : bool
        Text is two letters or more; the scanner's logo and the numbers beside calipers do not count.
    boxes : tuple of Box
        What the flags rest on, from top to bottom.
    colour : float
        Share of clearly coloured pixels, 0-1: Doppler, coloured text and frames, not a tint of the whole picture.
    axilla : bool
        The text was read as AX, AXILLA or AXILLARY. False says nothing: most pictures are not labelled.
    """

    text: bool
    calipers: bool
    arrows: bool
    boxes: tuple[Box, ...]
    colour: float
    axilla: bool


def look(image: U8) -> Marks:
    """Find what is burned into a picture.

    Parameters
    ----------
    image : uint8 (H, W, 3) or (H, W)
        RGB or grey levels, at the resolution of the file: resizing blurs the edges that ink is known by.

    Returns
    -------
    Marks

    Raises
    ------
    SonobreastError
        Another shape or type, or no pixels.
    """
    grey = _brightest(image)
    ink = pieces(grey)
    # The letter X is an oblique cross, and a letter that lies on a bright layer may pass for an upright one.
    words = [_box(row, "text") for row in _rows(ink) if len(row) >= _WORD]
    found = [c for c in crosses(grey) if not any(_overlap(c, w) for w in words)]
    rest = [p for p in ink if not any(_belongs(p, c) for c in found if not c.oblique)]
    rows = _rows(rest)
    boxes = [_line(grey, row) for row in rows]
    boxes += [Box(*c[:4], kind="caliper") for c in found if not any(_overlap(c, b) for b in boxes)]
    used = {id(p) for row in rows for p in row}
    for piece in rest:
        if id(piece) not in used and _is_graphics(piece):
            boxes.append(_box([piece], "logo" if _is_logo(grey, [piece]) else "arrow" if _is_arrow(piece) else "line"))
    boxes += [Box(*r, kind="blank") for r in margins.blanks(grey)]
    kinds = {b.kind for b in boxes}
    return Marks(
        text="text" in kinds,
        calipers="caliper" in kinds,
        arrows="arrow" in kinds,
        boxes=tuple(sorted(boxes, key=lambda b: (b.y, b.x, b.kind))),
        colour=_colour(image),
        axilla=any(b.kind == "text" and _AXILLA.search(b.reads) is not None for b in boxes),
    )


def border(image: U8) -> Border:
    """Margins of a picture, and whether a grey-scale bar stands beside it.

    Parameters
    ----------
    image : uint8 (H, W, 3) or (H, W)

    Raises
    ------
    SonobreastError
        Another shape or type, or no pixels.
    """
    return margins.measure(_brightest(image))


def _brightest(image: U8) -> U8:
    """The brightest channel, uint8 (H, W): yellow ink stands out from grey tissue as white ink does."""
    fits = image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
    if not fits or 0 in image.shape:
        what = f"a picture of shape {image.shape} and type {image.dtype} cannot be searched for marks"
        raise SonobreastError(what, remedy="give 8-bit grey (H, W) or RGB (H, W, 3) pixels")
    return image if image.ndim == 2 else np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def _box(row: Sequence[Piece], kind: Kind, reads: str = "") -> Box:
    left, top = min(p.x for p in row), min(p.y for p in row)
    return Box(left, top, max(p.right for p in row) - left, max(p.bottom for p in row) - top, kind, reads)


def _overlap(cross: Cross, box: Box) -> bool:
    """Whether the centre of a cross lies in a line of text, or where its next letters would be."""
    x, y, beside = cross.x + cross.width // 2, cross.y + cross.height // 2, 3 * box.height * (box.kind == "text")
    return box.x - beside <= x < box.x + box.width + beside and box.y <= y < box.y + box.height


def _belongs(piece: Piece, cross: Cross, reach: int = 3) -> bool:
    """Whether a piece is part of a caliper: the cross with its number and line, or right beside it."""
    beside = max(piece.x - cross.x - cross.width, cross.x - piece.right)
    above = max(piece.y - cross.y - cross.height, cross.y - piece.bottom)
    if max(beside, above) > reach:
        return False
    inside = piece.mask[max(0, cross.y - piece.y) :, max(0, cross.x - piece.x) :][: cross.height, : cross.width]
    return piece.height <= 1.3 * cross.height or bool(inside.any())


def _is_glyph(piece: Piece) -> bool:
    """Whether a piece has the size of a letter, or of two or three letters that touch."""
    widest = (3.0 if piece.seeds >= 6 else 1.8) * piece.height
    return MIN_GLYPH <= piece.height <= 60 and piece.width <= widest and piece.mask.sum() >= 8


def _follow(a: Piece, b: Piece) -> bool:
    """Whether two glyphs stand side by side in one line of text, ``a`` left of ``b``."""
    h = max(a.height, b.height)
    slack = max(2.0, 0.12 * h)
    gap = b.x - a.right
    if a.level != b.level or not -2 <= gap <= 1.2 * h or b.x <= a.x:
        return False
    top, bottom = abs(a.y - b.y) <= slack, abs(a.bottom - b.bottom) <= slack
    if a.seeds and b.seeds:
        return bottom and min(a.height, b.height) >= 0.65 * h
    return top and bottom


def _rows(ink: Sequence[Piece]) -> list[list[Piece]]:
    """Lines of text: glyphs that stand side by side, two or more, from left to right."""
    glyphs = sorted((p for p in ink if _is_glyph(p)), key=lambda p: p.x)
    start = np.array([p.x for p in glyphs])
    row_of = list(range(len(glyphs)))

    def root(i: int) -> int:
        while row_of[i] != i:
            i = row_of[i]
        return i

    reached = {i for i, p in enumerate(glyphs) if p.seeds}
    waiting = sorted(reached)
    while waiting:
        i = waiting.pop()
        a = glyphs[i]
        low, high = np.searchsorted(start, [a.x - 150, a.right + 80])
        for j in range(int(low), int(high)):
            b = glyphs[j]
            if j != i and (_follow(a, b) or _follow(b, a)):
                row_of[root(j)] = root(i)
                if j not in reached:
                    reached.add(j)
                    waiting.append(j)
    rows: dict[int, list[Piece]] = {}
    for i in sorted(reached):
        rows.setdefault(root(i), []).append(glyphs[i])
    return [row for row in rows.values() if len(row) >= 2 and sum(p.seeds for p in row) >= 4]


def _is_logo(grey: U8, row: Sequence[Piece]) -> bool:
    """Whether a row is the scanner's name: letters with a dark outline, on tissue, at the upper edge."""
    box = _box(row, "logo")
    if box.y > 0.1 * grey.shape[0] + 4:
        return False
    dark: list[float] = []
    for p in row:
        y0, x0 = max(0, p.y - 2), max(0, p.x - 2)
        part = grey[y0 : p.bottom + 2, x0 : p.right + 2]
        near = np.zeros(part.shape, dtype=bool)
        near[p.y - y0 : p.y - y0 + p.height, p.x - x0 : p.x - x0 + p.width] = p.mask
        wide = running(np.maximum, running(np.maximum, near.astype(np.uint8), 5, 0), 5, 1).astype(bool)
        slim = running(np.maximum, running(np.maximum, near.astype(np.uint8), 3, 0), 3, 1).astype(bool)
        ring = part[wide & ~slim]
        dark.append(float((ring <= 24).mean()) if ring.size else 0.0)
    around = grey[max(0, box.y - 6) : box.y + box.height + 6, max(0, box.x - 6) : box.x + box.width + 6]
    bright = float((np.concatenate([around[-3:].ravel(), around[:, -3:].ravel()]) >= 40).mean())
    return float(np.median(dark)) >= 0.6 and bright >= 0.2


def _line(grey: U8, row: Sequence[Piece]) -> Box:
    """The box of a row of glyphs, with what it reads and with the letters beside it that are not exact ink."""
    known = _box(row, "logo" if _is_logo(grey, row) else "text")
    soft = softly(grey, *known[:4])
    left, right, reach = known.x, known.x + known.width, 1.2 * known.height
    for p in soft:
        right = max(right, p.right) if left <= p.x <= right + reach else right
    for p in reversed(soft):
        left = min(left, p.x) if left - reach <= p.right <= right else left
    soft = [p for p in soft if left <= p.x < right]
    # Of two readings the one with more letters that are like letters; ink is exact, so it wins a draw.
    reads = max((_words(row), _words(soft)), key=lambda w: len(w) - 2 * w.count("?") - w.count(" "))
    return Box(left, known.y, right - left, known.height, known.kind, reads)


def _words(row: Sequence[Piece]) -> str:
    """The letters of glyphs from left to right, with blanks where the gaps are."""
    text = letters.read([p.mask for p in row])
    words = text[:1]
    for a, b, letter in zip(row, row[1:], text[1:], strict=False):
        words += (" " if b.x - a.right > 0.3 * max(p.height for p in row) else "") + letter
    return words


def _is_graphics(piece: Piece) -> bool:
    """Whether a piece that is neither caliper nor text is surely drawn."""
    return piece.seeds >= 6 and max(piece.width, piece.height) >= 8


def _is_arrow(piece: Piece) -> bool:
    """Whether a piece is a straight shaft that ends in a triangle."""
    y, x = np.nonzero(piece.mask)
    if y.size < 30 or max(piece.width, piece.height) < 16:
        return False
    points = np.stack([x - x.mean(), y - y.mean()])
    spread, axes = np.linalg.eigh(np.cov(points))
    if spread[1] < 3.0 * spread[0]:
        return False
    along, across = axes[:, 1] @ points, axes[:, 0] @ points
    along -= along.min()
    n = int(along.max()) // 2
    slot = np.minimum((along / 2.0).astype(int), n - 1)  # slices of two pixels across the shaft
    if np.unique(slot).size < n:
        return False
    width = np.array([np.ptp(across[slot == k]) + 1.0 for k in range(n)])
    middle = np.array([across[slot == k].mean() for k in range(n)])
    full = np.bincount(slot, minlength=n) / (2.0 * width)
    if width[: n // 2].max() > width[n // 2 :].max():
        width, middle, full = width[::-1], middle[::-1], full[::-1]
    # Now the tip is at the end. A cross or a letter has no slope: its width jumps.
    head = int(width.argmax())
    shaft, tip = width[: max(head - 1, 0)], width[head:]
    if shaft.size < 3 or tip.size < 3 or tip.size > 0.65 * n:
        return False
    straight = float(np.ptp(middle)) <= max(2.0, 0.35 * width[head])
    slope = bool((np.diff(tip) <= 0.75).all()) and float(tip[len(tip) // 2]) >= 0.3 * tip[0] > 0.0
    slim = float(np.median(shaft)) <= 0.5 * width[head] and float(np.ptp(shaft[:-1])) <= 3.0
    return straight and slope and slim and float(full[head:].mean()) >= 0.6


def _colour(image: U8) -> float:
    """Share of pixels whose colour goes beyond the tint of the picture as a whole."""
    if image.ndim == 2:
        return 0.0
    red, green, blue = (image[..., i] for i in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return 0.0
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    strong = (high - low) >= COLOURED
    if not strong.any():
        return 0.0
    lit = high >= COLOURED
    # A tint is a ratio of the channels that most of the picture shares; a picture full of Doppler is no tint.
    tint = np.array([np.median(image[..., i][lit] / high[lit].astype(np.float32)) for i in range(3)])
    pixels = image[strong].astype(np.float32) / np.maximum(tint, 0.7)
    return float((np.ptp(pixels, axis=1) >= COLOURED).sum() / strong.size)
