"""A map of relevance over its image: original and overlay side by side, at the image's own size, with a scale."""

from __future__ import annotations

from io import BytesIO

import matplotlib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

U8 = NDArray[np.uint8]

COLOURS = "cividis"
"""Even in lightness and alike for colour-blind readers (Nunez 2018, PLoS One 13:e0199239)."""
_STRONGEST = 0.65  # of the colour over the image, so that the echoes below stay visible
_OUTLINE = (0, 158, 115)  # bluish green of Okabe and Ito: not on the scale of the map
_SCALE_PX = 74


def overlay(picture: U8, relevance: ArrayLike, lesion: NDArray[np.bool_] | None, top: float | None = None) -> U8:
    """The image with the map over it: the more relevance, the more colour; the lesion's outline where it is known.

    Parameters
    ----------
    picture : ndarray, uint8, (H, W, 3)
    relevance : (H, W)
        At least 0.
    lesion : ndarray, bool, (H, W), or None
    top : float or None
        The value that gets the last colour (1 for probabilities); None: the map's own maximum.

    Returns
    -------
    ndarray, uint8, (H, W, 3)
    """
    r = np.maximum(np.asarray(relevance, np.float64), 0.0)
    r = np.minimum(r / (top or r.max()), 1.0) if r.max() > 0 else r
    colour = matplotlib.colormaps[COLOURS](r)[:, :, :3] * 255.0
    weight = _STRONGEST * np.clip(r / 0.5, 0.0, 1.0)[:, :, None]
    mixed = np.asarray((1.0 - weight) * picture + weight * colour, np.uint8)
    return mixed if lesion is None else outlined(mixed, lesion)


def outlined(picture: U8, lesion: NDArray[np.bool_]) -> U8:
    """The image with the border of a mask in green on a dark rim, two pixels and one wide."""
    if not lesion.any():
        return picture
    inside = np.pad(lesion, 3)
    line = inside & ~ndimage.binary_erosion(inside, iterations=2)
    rim = ndimage.binary_dilation(line) & ~line
    out = picture.copy()
    out[rim[3:-3, 3:-3]] = (out[rim[3:-3, 3:-3]] * 0.3).astype(np.uint8)
    out[line[3:-3, 3:-3]] = _OUTLINE
    return out


def panel(picture: U8, relevance: ArrayLike, lesion: NDArray[np.bool_] | None, top: float | None = None) -> U8:
    """Original (with outline), overlay and scale beside each other.

    Returns
    -------
    ndarray, uint8, (H, 2 W + 78, 3)
        The two images at their own size, a white gap of 4 pixels, the scale.
    """
    height, width = picture.shape[:2]
    left = picture if lesion is None else outlined(picture, lesion)
    out = np.full((height, 2 * width + 4 + _SCALE_PX, 3), 255, np.uint8)
    out[:, :width] = left
    out[:, width + 4 : 2 * width + 4] = overlay(picture, relevance, lesion, top)
    words = ("most", "half", "none") if top is None else (f"{top:g}", f"{top / 2:g}", "0")
    out[:, 2 * width + 4 :] = _scale(height, words, bool(np.asarray(relevance).max() > 0))
    return out


def _scale(height: int, words: tuple[str, str, str], varies: bool) -> U8:
    """The colours with the words at top, middle and bottom, (height, 74, 3)."""
    strip = Image.new("RGB", (_SCALE_PX, height), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(11)
    if not varies:
        draw.text((4, max(0, height // 2 - 14)), "no\nrelevance", fill="black", font=font)
        return np.asarray(strip)
    top, bottom = min(14, height // 6), height - min(14, height // 6)
    ramp = matplotlib.colormaps[COLOURS](np.linspace(1.0, 0.0, max(1, bottom - top)))[:, :3] * 255
    picture = np.asarray(strip).copy()
    picture[top : top + len(ramp), 8:22] = ramp[:, None, :].astype(np.uint8)
    strip = Image.fromarray(picture)
    draw = ImageDraw.Draw(strip)
    for place, text in zip((top, (top + bottom) // 2, bottom - 6), words, strict=True):
        draw.text((27, max(0, place - 5)), text, fill="black", font=font)
    return np.asarray(strip)


def png_of(picture: U8, largest: int | None = None) -> bytes:
    """PNG bytes of a picture, made smaller to ``largest`` pixels across where it is wider."""
    image = Image.fromarray(picture)
    if largest is not None and image.width > largest:
        size = (largest, max(1, round(image.height * largest / image.width)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    stream = BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
