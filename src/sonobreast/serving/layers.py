"""Map and mask as transparent PNG, to be laid over the image and faded. NumPy and Pillow."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sonobreast.serving.overlay import coloured, edge
from sonobreast.serving.predictor import Prediction, cam_of

_COLOURS = coloured(np.linspace(0.0, 1.0, 256)).round().astype(np.uint8).tobytes()
_OPACITY = bytes(round(0.8 * v) for v in range(256))  # nothing where the map is 0, so that the scan stays as it is
_MASK_COLOURS = bytes((0, 0, 0, 0, 200, 255, 0, 200, 255))
_LARGEST = 1024  # pixels of the longer side: pictures for a screen, and answers stay small
_MASK_OPACITY = bytes((0, 46, 255))


def map_layers(prediction: Prediction, aspect: str = "stretch") -> dict[str, tuple[bytes, float]]:
    """Grad-CAM of each class: PNG of at most 1024 px, and the largest value in units of the logit.

    Colours (black to yellow, opaque to 80 %) go up to each map's own maximum; a map that is 0 everywhere is
    transparent. Empty where the bundle has no maps.
    """
    layers = {}
    for name in prediction.classes:
        cam = cam_of(prediction, name, aspect)
        if cam is not None:
            top = float(cam.max())
            share = np.clip(cam * (255.0 / top), 0.0, 255.0) if top > 0.0 else np.zeros_like(cam)
            layers[name] = (_png(share.astype(np.uint8), _COLOURS, _OPACITY), top)
    return layers


def mask_layer(mask: NDArray[np.bool_]) -> bytes:
    """The lesion: its edge, two pixels wide, opaque; its inside faint. PNG of at most 1024 px."""
    step = -(-max(mask.shape) // _LARGEST)  # an edge must not fall between the pixels that are kept
    mask = mask[::step, ::step]
    outer = edge(mask)
    inner = edge(mask & ~outer)
    values = mask.astype(np.uint8)
    values[outer | inner] = 2
    return _png(values, _MASK_COLOURS, _MASK_OPACITY)


def picture(image: NDArray[np.uint8]) -> bytes:
    """An image, uint8 (H, W, 3), as PNG of at most 1024 px."""
    return _bytes(Image.fromarray(image))


def text(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode("ascii")


def _png(values: NDArray[np.uint8], colours: bytes, opacity: bytes) -> bytes:
    image = Image.fromarray(values).convert("P")
    image.putpalette(colours)
    return _bytes(image, opacity)


def _bytes(image: Image.Image, opacity: bytes | None = None) -> bytes:
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.NEAREST if opacity else Image.Resampling.BILINEAR)
    stream = BytesIO()
    options = {} if opacity is None else {"transparency": opacity}
    image.save(stream, "PNG", compress_level=1, **options)
    return stream.getvalue()
