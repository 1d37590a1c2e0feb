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
from sonobreast.data.masks_out import true_mask
from sonobreast.data.preprocess import quiet, resize
from sonobreast.records import Case


@dataclass(frozen=True)
class Masks:
    """What is known of the lesions of some images.

    Attributes
    ----------
    bits : ndarray, uint8, (n, size, ceil(size / 8))
        Masks at the network's size, eight pixels a byte. All 0 where nothing is known.
    known : ndarray, bool, (n,)
        As `true_mask` says.
    root : Path
        Folder that the names of the masks are relative to.
    cases : tuple of Case
    """

    bits: NDArray[np.uint8]
    known: NDArray[np.bool_]
    root: Path
    cases: tuple[Case, ...]

    def resized(self, index: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Masks at the network's size: bool (k, size, size)."""
        return np.unpackbits(self.bits[index], axis=2, count=self.bits.shape[1]).astype(bool)

    def original(self, image: int) -> NDArray[np.bool_] | None:
        """The mask of one image at the image's own size, bool (H, W); None where it is not known."""
        return true_mask(self.root, self.cases[image]) if self.known[image] else None


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
        As `true_mask`.
    """
    bits = np.zeros((len(cases), settings.size, -(-settings.size // 8)), np.uint8)
    known = np.zeros(len(cases), bool)

    def put(i: int) -> None:
        mask = true_mask(root, cases[i])
        if mask is not None:
            known[i] = True
            bits[i] = np.packbits(resize_mask(mask, settings), axis=1)

    with quiet(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for done, _ in enumerate(pool.map(put, range(len(cases))), start=1):
                if progress is not None:
                    progress("reading masks", done, len(cases))
        finally:
            pool.shutdown(cancel_futures=True)
    return Masks(bits, known, root, tuple(cases))
