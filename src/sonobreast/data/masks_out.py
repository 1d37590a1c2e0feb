"""Lesion masks on disk: the true one of a case, and a predicted one, brought back to the size of its image."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sonobreast.data.mask_size import fit_mask
from sonobreast.data.preprocess import decode_mask, padded_box
from sonobreast.errors import SonobreastError
from sonobreast.records import Case, atomic


def true_mask(root: Path, case: Case) -> NDArray[np.bool_] | None:
    """The union of a case's masks, or None where it is not known which pixels are lesion.

    A normal image without a mask has no lesion, so its mask is known: empty. An image of any other class without a
    mask, and a benign or malignant one whose masks are all empty, shows a lesion that nobody outlined: not known.

    Parameters
    ----------
    root : Path
        Folder that the names of the masks are relative to (`sonobreast.data.manifest.Manifest.root`).
    case : Case

    Returns
    -------
    ndarray, bool, (case.height, case.width), or None

    Raises
    ------
    SonobreastError
        If a mask cannot be read, or does not have the image's size and is not to be scaled (`mask_size.fit_mask`).
    """
    label = case.label.strip().casefold()
    union = np.zeros((case.height, case.width), bool)
    for name in case.masks:
        found = decode_mask(root / name)
        mask = fit_mask(found, case.width, case.height, case.source)
        if mask is None:
            raise SonobreastError(
                f"the mask is {found.shape[1]}x{found.shape[0]} px, its image {case.width}x{case.height} px",
                file=root / name,
                remedy="export the mask at the image's size",
            )
        union |= mask
    if union.any():
        return union
    known = label == "normal" or (case.masks and label not in ("benign", "malignant"))
    return union if known else None


def predicted_mask_file(folder: Path, image: str) -> Path:
    """Where the predicted mask of an image lies: the image's relative name below ``folder``, ending in ``.png``.

    Parameters
    ----------
    folder : Path
        ``OUT/runs/<id>/masks``.
    image : str
        The image's name, as in ``manifest.csv``. A name that leads out of the data set's folder (a CSV may hold an
        absolute path or ``..``) stays below ``folder`` all the same: a mask must never replace somebody's image.
    """
    parts = PurePosixPath(image).parts
    inside = ["_" if part == ".." else part.replace("/", "").replace(":", "_").replace("\\", "_") for part in parts]
    return folder.joinpath(*filter(None, inside)).with_suffix(".png")


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Write a mask as a 1-bit PNG, whole or not at all.

    Parameters
    ----------
    path : Path
        From `predicted_mask_file`; folders are made.
    mask : ndarray, bool, (H, W)

    Raises
    ------
    SonobreastError
        For an array that is no mask, and if the file cannot be written.
    """
    if mask.ndim != 2 or mask.dtype != bool or not mask.size:
        raise SonobreastError(
            f"an array of {mask.dtype} with the shape {mask.shape} is no mask",
            file=path,
            remedy="give true where the lesion is, (height, width)",
        )
    with atomic(path, "wb") as stream:
        Image.fromarray(mask).save(stream, format="PNG")


def to_original_size(
    probability: NDArray[np.float32], width: int, height: int, aspect: Literal["stretch", "pad"]
) -> NDArray[np.float32]:
    """A map at the network's input size, brought back to the image's own pixels: undoes `preprocess.resize`.

    Bilinear; where the map is larger than the image, averaged. The padding of ``pad`` is cut off.

    Parameters
    ----------
    probability : ndarray, float32, (S, S)
        In [0, 1]; S is ``preprocess.size``.
    width, height : int
        The image's size in pixels.
    aspect : {"stretch", "pad"}
        As the image was resized (``preprocess.aspect``).

    Returns
    -------
    ndarray, float32, (height, width)
        In [0, 1]: no value lies outside the range of the map's.

    Raises
    ------
    SonobreastError
        For a map that is not square, or a size below one pixel.
    """
    if probability.ndim != 2 or probability.shape[0] != probability.shape[1] or min(width, height) < 1:
        raise SonobreastError(
            f"a map of the shape {probability.shape} cannot be brought to {width}x{height} px",
            remedy="give the square map of one image, and the width and height of that image",
        )
    size = probability.shape[0]
    box = padded_box(width, height, size) if aspect == "pad" else (0, 0, size, size)
    square = Image.fromarray(np.ascontiguousarray(probability, np.float32))
    # The box is cropped first: Pillow's own `box` would let the padding bleed into the border when it averages.
    back = square.crop(box).resize((width, height), Image.Resampling.BILINEAR)
    low, high = float(probability.min()), float(probability.max())
    return np.asarray(back, np.float32).clip(low, high)  # a sum of weights may be off 1 by rounding
