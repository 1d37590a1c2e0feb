"""Decode, resize and scale an image. NumPy and Pillow only, so that training and serving share every line.

The one exception is asked for by name: ``inpaint_marks`` needs SciPy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sonobreast.config import Preprocess
from sonobreast.data.dicom import decode_rgb, is_dicom
from sonobreast.errors import SonobreastError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings about odd but readable files to itself.

    Warning filters belong to the whole process: enter this in the thread that starts the decoding ones, not in them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\..*)?")
        yield


def decode(source: Path | bytes, frame: int = 0) -> NDArray[np.uint8]:
    """Decode an image file to 8-bit RGB.

    Transparent pixels are composited on black (BrEaST has transparent corners), 16-bit grey values are divided by
    257, palettes are resolved, the EXIF orientation is applied. Of a DICOM file the largest B-mode region of the middle
    frame is decoded (`sonobreast.data.dicom`).

    Parameters
    ----------
    source : Path or bytes
        The file or its bytes.
    frame : int
        Which picture of a file that holds several, from 0.

    Returns
    -------
    ndarray, uint8, (H, W, 3)

    Raises
    ------
    SonobreastError
        If the bytes are no image, or end too early; for DICOM see `sonobreast.data.dicom.read_dicom`.
    """
    if is_dicom(source):
        return decode_rgb(source)
    name = source if isinstance(source, Path) else None
    try:
        with Image.open(source if isinstance(source, Path) else BytesIO(source)) as opened:
            if frame:
                opened.seek(frame)
            if Image.MAX_IMAGE_PIXELS is not None and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError("too large to be a scan")  # Pillow only warns, up to twice that size
            opened.load()
            return _to_rgb(opened)
    except Exception as error:  # Pillow's decoders raise whatever their formats bring: OSError, ValueError, SyntaxError
        reason = str(error).replace(str(source), "it") if name is not None else str(error)
        raise SonobreastError(
            f"not a readable image ({reason or type(error).__name__})",
            file=name,
            remedy="replace the file with an undamaged copy, or leave it out",
        ) from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit grey values")
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point grey values have no known range")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def decode_mask(source: Path | bytes) -> NDArray[np.bool_]:
    """Decode a lesion mask of any mode (1-bit, grey, RGB, RGBA): True where the lesion is.

    Returns
    -------
    ndarray, bool, (H, W)

    Raises
    ------
    SonobreastError
        As `decode`.
    """
    rgb = decode(source)
    level = _brightest(rgb)
    # Some tools write the lesion as 1 instead of 255: half of the largest value tells the two apart.
    return np.asarray(level > level.max() // 2 if level.max() > 0 else np.zeros(level.shape, bool))


def prepare(image: NDArray[np.uint8], settings: Preprocess) -> NDArray[np.uint8]:
    """A decoded RGB image as a network is to see it, before scaling: marks filled if the settings say so, resized.

    Parameters and result as `resize`.

    Raises
    ------
    SonobreastError
        If marks are to be filled and SciPy is not installed; nothing else here needs it.
    """
    if settings.inpaint_marks:
        from sonobreast.data.inpaint import without_marks

        image = without_marks(image)
    return resize(image, settings)


def resize(image: NDArray[np.uint8], settings: Preprocess) -> NDArray[np.uint8]:
    """Bring an RGB image to the square input size.

    Parameters
    ----------
    image : ndarray, uint8, (H, W, 3)
    settings : Preprocess

    Returns
    -------
    ndarray, uint8, (size, size, 3)
    """
    height, width = image.shape[:2]
    size = settings.size
    resample = _FILTERS[settings.interpolation]
    if settings.aspect == "stretch":
        if _is_grey(image):  # as most scans are: one channel instead of three, the same values in 60 % of the time
            small = np.asarray(Image.fromarray(np.ascontiguousarray(image[..., 0])).resize((size, size), resample))
            return np.repeat(small[..., None], 3, axis=2)
        return np.asarray(Image.fromarray(image).resize((size, size), resample))
    box = padded_box(width, height, size)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(Image.fromarray(image).resize((box[2] - box[0], box[3] - box[1]), resample), box[:2])
    return np.asarray(canvas)


def _is_grey(image: NDArray[np.uint8]) -> bool:
    """Whether the three channels of (H, W, 3) are equal; whole bytes in a row are compared several times faster."""
    flat = image.reshape(-1)
    same = flat[1:] == flat[:-1]
    same[2::3] = True  # blue beside the next pixel's red
    return bool(same.all())


def padded_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Where ``aspect: pad`` puts an image in the square: left, top, right, bottom in pixels, as Pillow counts."""
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]


def scaling_constants(
    scaling: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread (in units of pixel values in [0, 1]) that turn ``x / 255`` into the network's input."""
    if scaling == "unit":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if scaling == "symmetric":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return mean, std


def scale(images: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Grey values to the network's input: ``(x / 255 - mean) / std``.

    Parameters
    ----------
    images : ndarray, uint8, (..., H, W, 3)
    mean, std : tuple of 3 floats, from `scaling_constants`

    Returns
    -------
    ndarray, float32, (..., 3, H, W)
    """
    # Bytes are moved before they grow to floats, and nothing is subtracted where that changes nothing.
    scaled = np.ascontiguousarray(np.moveaxis(images, -1, -3)).astype(np.float32)
    scaled /= np.float32(255.0)
    if any(mean) or any(s != 1.0 for s in std):
        scaled -= np.asarray(mean, np.float32)[:, None, None]
        scaled /= np.asarray(std, np.float32)[:, None, None]
    return scaled


def is_mask(image: NDArray[np.uint8]) -> bool:
    """Whether a picture holds black and one other value only, as a lesion mask does and a scan never.

    A picture that is black all over counts as one (the empty mask of a normal image); a mask that went through JPEG
    has nearly all of its values at the two ends.

    Parameters
    ----------
    image : ndarray, uint8, (H, W, 3)
    """
    pixels = image.shape[0] * image.shape[1]
    some = np.bincount(_brightest(image[::8]).ravel(), minlength=256)
    if np.count_nonzero(some) > 2 and some[32:224].sum() > 0.02 * pixels:
        return False  # a scan, whatever the other rows hold: every request to the service waits for this
    share = np.bincount(_brightest(image).ravel(), minlength=256) / pixels
    if np.count_nonzero(share) <= 2:
        return bool(share[0] > 0)
    white = share[224:].sum()  # on BUSI the two ends hold more than 0.999 of a mask at quality 75, and 0.63 of a scan
    return bool(white > 0.001 and white + share[:32].sum() > 0.98)


def _brightest(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Largest of the three channels, (H, W); much faster than a maximum along the last axis."""
    return np.asarray(np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2]))
