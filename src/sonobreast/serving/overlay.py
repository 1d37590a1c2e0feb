"""A picture for people: the image, and beside it where the network looked and what it outlines. NumPy and Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sonobreast.records import atomic
from sonobreast.serving.about import INTENDED_USE
from sonobreast.serving.predictor import Prediction, cam_of

U8 = NDArray[np.uint8]
# matplotlib's "inferno" at nine even steps: its lightness rises evenly, also for the colour-blind.
_INFERNO = np.array(
    [
        (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ],
    np.float64,
)  # fmt: skip
_OUTLINE = (0, 200, 255)
_STRONGEST = 0.65  # share of colour where the map is at its maximum: speckle stays visible
_LEAST_WIDTH = 330  # pixels of each half, so that the words below fit
_LINE = 18


def overlay(image: U8, prediction: Prediction, aspect: str = "stretch") -> Image.Image:
    """Image and marked image side by side, with the prediction in words below.

    Parameters
    ----------
    image : ndarray, uint8, (H, W, 3)
    prediction : Prediction
        Of this image.
    aspect : {"stretch", "pad"}
        Of the bundle's preprocessing.

    Returns
    -------
    PIL.Image.Image
        RGB. Colour is Grad-CAM of the most probable class, black to yellow, up to its own maximum in this image; the
        line is the edge of the predicted lesion.
    """
    marked = image.astype(np.float64)
    cam = cam_of(prediction, prediction.predicted, aspect)
    top = 0.0 if cam is None else float(cam.max())
    if cam is not None and top > 0.0:
        share = np.clip(cam / top, 0.0, 1.0)[..., None].astype(np.float64)
        marked = marked * (1.0 - _STRONGEST * share) + coloured(share[..., 0]) * _STRONGEST * share
    if prediction.mask is not None:
        marked[edge(prediction.mask)] = _OUTLINE
    height, width = image.shape[:2]
    half = max(width, _LEAST_WIDTH)
    words = _words(prediction, mapped=top > 0.0)
    canvas = Image.new("RGB", (2 * half + 6, height + _LINE * len(words) + 10), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    canvas.paste(Image.fromarray(marked.round().clip(0, 255).astype(np.uint8)), (half + 6, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for k, line in enumerate(words):
        draw.text((6, height + 5 + _LINE * k), line, fill="black", font=font)
    return canvas


def write_overlay(path: Path, image: U8, prediction: Prediction, aspect: str = "stretch") -> None:
    """Write `overlay` as PNG, whole or not at all.

    Raises
    ------
    SonobreastError
        If the file cannot be written.
    """
    with atomic(path, "wb") as stream:
        overlay(image, prediction, aspect).save(stream, format="PNG")


def coloured(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values in [0, 1], any shape, to colours (..., 3) in [0, 255]."""
    steps = np.linspace(0.0, 1.0, len(_INFERNO))
    return np.stack([np.interp(share, steps, _INFERNO[:, k]) for k in range(3)], axis=-1)


def edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask that have a neighbour outside, or lie at the border: bool (H, W)."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _words(prediction: Prediction, *, mapped: bool) -> list[str]:
    shares = "   ".join(f"{c} {p:.0%}" for c, p in zip(prediction.classes, prediction.probability, strict=True))
    size = ""
    if prediction.lesion is not None and prediction.lesion.area_px:
        found = prediction.lesion
        size = f"outlined lesion: {found.diameter_px:.0f} px across"
        size += "" if found.diameter_mm is None else f" ({found.diameter_mm:.1f} mm)"
    legend = f"colour: Grad-CAM of {prediction.predicted}, up to its maximum here" if mapped else ""
    return [shares, *(line for line in (size, legend) if line), INTENDED_USE]
