"""Images decoded and resized once, kept as bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonobreast.config import Preprocess
from sonobreast.data.preprocess import decode, quiet, resize


def decode_all(
    paths: Sequence[Path], settings: Preprocess, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.uint8]:
    """Decode and resize images.

    Parameters
    ----------
    paths : sequence of Path
    settings : Preprocess
    progress : callable or None
        Called with (images done, images in all).

    Returns
    -------
    ndarray, uint8, (n, size, size, 3)

    Raises
    ------
    SonobreastError
        If an image cannot be read (any more).
    """
    images = np.empty((len(paths), settings.size, settings.size, 3), np.uint8)

    def put(i: int) -> None:
        images[i] = resize(decode(paths[i]), settings)

    with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(put, range(len(paths))), start=1):
            if progress is not None:
                progress(done, len(paths))
    return images
