"""The lesion masks of a study: at the network's size for training, at the images' own size for scoring."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonobreast.config import Preprocess
from sonobreast.data.preprocess import decode_mask, quiet, resize
from sonobreast.errors import SonobreastError
from sonobreast.records import Case

_NO_LESION = "normal"


@dataclass(frozen=True)
class Masks:
    """What is known of the lesions of some images.

    Attributes
    ----------
    bits : ndarray, uint8, (n, size, ceil(size / 8))
        Masks at the network's size, eight pixels a byte. All 0 where nothing is known.
    known : ndarray, bool, (n,)
        Whether an image has a mask, or is of the class ``normal`` and so has no lesion.
    files : tuple of tuple of Path
        Mask files of each image.
    size : tuple of (height, width)
        Of each image as it was acquired, pixels.
    spacing_mm : tuple of (float or None)
        Pixel spacing of each image.
    """

    bits: NDArray[np.uint8]
    known: NDArray[np.bool_]
    files: tuple[tuple[Path, ...], ...]
    size: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float | None, ...]

    def resized(self, index: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Masks at the network's size: bool (k, size, size)."""
        side = self.bits.shape[1]
        return np.unpackbits(self.bits[index], axis=2, count=side).astype(bool)

    def original(self, image: int) -> NDArray[np.bool_] | None:
        """The mask of one image at the image's own size, bool (H, W); None where it is not known."""
        return read_mask(self.files[image], self.size[image]) if self.known[image] else None


def read_mask(files: Sequence[Path], size: tuple[int, int]) -> NDArray[np.bool_]:
    """All lesions of one image together; empty without files.

    Parameters
    ----------
    files : sequence of Path
    size : (height, width)
        Of the image.

    Raises
    ------
    SonobreastError
        If a file cannot be read or has another size than the image.
    """
    mask = np.zeros(size, bool)
    for file in files:
        part = decode_mask(file)
        if part.shape != size:
            raise SonobreastError(
                f"the mask has {part.shape[1]} x {part.shape[0]} pixels, its image {size[1]} x {size[0]}",
                file=file,
                remedy="replace the mask, or remove it",
            )
        mask |= part
    return mask


def resize_mask(mask: NDArray[np.bool_], settings: Preprocess) -> NDArray[np.bool_]:
    """Bring a mask to the network's size as its image is: pixels of which half or more is lesion. bool (size, size)."""
    grey = np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    return np.asarray(resize(grey, settings.model_copy(update={"interpolation": "area"}))[..., 0] >= 128)


def open_masks(
    root: Path, cases: Sequence[Case], settings: Preprocess, progress: Callable[[str, int, int], None] | None = None
) -> Masks:
    """Read the masks of a study's images.

    Parameters
    ----------
    root : Path
        Folder that the names of the masks are relative to.
    cases : sequence of Case
        In the order of the study's images.
    settings : Preprocess
    progress : callable or None
        Told the stage, the masks done, and of how many.

    Raises
    ------
    SonobreastError
        As `read_mask`.
    """
    files = tuple(tuple(root / m for m in c.masks) for c in cases)
    size = tuple((c.height, c.width) for c in cases)
    bits = np.zeros((len(cases), settings.size, -(-settings.size // 8)), np.uint8)
    known = np.asarray([bool(c.masks) or c.label == _NO_LESION for c in cases], bool)

    def put(i: int) -> None:
        if files[i]:
            bits[i] = np.packbits(resize_mask(read_mask(files[i], size[i]), settings), axis=1)

    with quiet(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for done, _ in enumerate(pool.map(put, range(len(cases))), start=1):
                if progress is not None:
                    progress("reading masks", done, len(cases))
        finally:
            pool.shutdown(cancel_futures=True)
    return Masks(bits, known, files, size, tuple(c.spacing_mm for c in cases))
