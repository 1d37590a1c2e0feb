"""Reading letters and digits by their shape, well enough to tell AXILLA from BREAST: not an OCR engine.

Each glyph is stretched to a square of CELL pixels and correlated with the glyphs of Pillow's built-in font, plain and
bold, treated alike; the ratio of width to height, which stretching loses, is compared beside it. Lower case is read as
capitals.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Mask = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abdefghknpqrt"
CELL = 14
_SIZES = (18, 30)
_ASPECT = 0.35
"""Weight of the logarithm of the ratio of widths against one unit of correlation."""
_LEAST = 0.35
"""Below this score a glyph is unreadable."""


class _Alphabet(NamedTuple):
    names: str
    shapes: F32  # (N, CELL * CELL), mean 0, norm 1
    aspects: F32  # (N,), log(width / height)


def _stretched(mask: Mask) -> F32:
    """A glyph as a vector of CELL x CELL values, mean 0, norm 1 (a full box: all 0)."""
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize((CELL, CELL), Image.Resampling.BILINEAR)
    vector: F32 = np.array(small, dtype=np.float32).ravel()
    vector -= vector.mean()
    return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-6))


@lru_cache(maxsize=1)
def _alphabet() -> _Alphabet:
    names, shapes, aspects = "", [], []
    for size in _SIZES:
        for bold in (0, 1):
            font = ImageFont.load_default(size=size)
            for letter in LETTERS:
                canvas = Image.new("L", (2 * size, 2 * size))
                ImageDraw.Draw(canvas).text((size // 2, size // 4), letter, fill=255, font=font, stroke_width=bold)
                mask = np.asarray(canvas) >= 128
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                names += letter.upper()
                shapes.append(_stretched(mask))
                aspects.append(np.log(mask.shape[1] / mask.shape[0]))
    return _Alphabet(names, np.stack(shapes), np.array(aspects, dtype=np.float32))


def read(glyphs: Sequence[Mask]) -> str:
    """The most similar letter, as a capital, or digit of each glyph, ``?`` where none is similar.

    Parameters
    ----------
    glyphs : sequence of bool (h, w)
        Each cut to its bounding box, h and w >= 1.
    """
    if not glyphs:
        return ""
    known = _alphabet()
    shapes = np.stack([_stretched(g) for g in glyphs])  # (n, CELL * CELL)
    aspects = np.array([np.log(g.shape[1] / g.shape[0]) for g in glyphs], dtype=np.float32)
    score = shapes @ known.shapes.T - _ASPECT * np.abs(aspects[:, None] - known.aspects[None, :])
    # A bar fills its box: it has no shape left, only its ratio.
    best = score.argmax(1)
    return "".join(
        ("I" if g.all() and g.shape[1] * 2 <= g.shape[0] else known.names[i] if s >= _LEAST else "?")
        for g, i, s in zip(glyphs, best, score.max(1), strict=True)
    )
