"""Handcrafted features: first-order statistics, grey-level co-occurrence, local binary patterns, HOG, shape.

They describe the whole image at the size of the store, as grey values. Shape features describe a lesion mask at its own
size. All are float32 and finite, also for an image of one grey value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.pixels import Pixels

GREY_LEVELS = 32  # of the co-occurrence matrices
DISTANCES = (1, 3, 5)  # pixels; the diagonal ones are rounded to 1, 2 and 4 steps
ANGLES = (0.0, 45.0, 90.0, 135.0)  # degrees
PATTERNS = ((8, 1), (16, 2))  # points and radius of the local binary patterns
CELLS, ORIENTATIONS = 4, 9  # of the histograms of oriented gradients, which are pooled over a grid of cells
_CO_OCCURRENCE = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")
_PERCENTILES = (5, 25, 50, 75, 95)
SHAPE_NAMES = (
    "lesion",
    "area",
    "perimeter",
    "compactness",
    "eccentricity",
    "solidity",
    "orientation",
    "width_to_height",
)


def names(*, shape: bool = False) -> tuple[str, ...]:
    """Names of the features, in order."""
    first = ("mean", "std", "skewness", "kurtosis", "entropy", *(f"p{q}" for q in _PERCENTILES), "range")
    glcm = tuple(
        f"glcm_{p}_d{d}_{s}" for p in (*_CO_OCCURRENCE, "entropy") for d in DISTANCES for s in ("mean", "range")
    )
    lbp = tuple(f"lbp{p}_{k}" for p, _ in PATTERNS for k in range(p + 2))
    hog = tuple(f"hog_{r}_{c}_{k}" for r in range(CELLS) for c in range(CELLS) for k in range(ORIENTATIONS))
    return (*first, *glcm, *lbp, *hog, *(SHAPE_NAMES if shape else ()))


def grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luminance (ITU-R 601 in integers); grey images stay what they are: (..., 3) to (...)."""
    r, g, b = (images[..., i].astype(np.uint32) for i in range(3))
    return np.asarray((77 * r + 150 * g + 29 * b) >> 8, np.uint8)


def texture(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """First-order, GLCM, LBP and HOG features of one image.

    - First-order: moments, entropy and percentiles of the grey values in [0, 1]; kurtosis is the excess.
    - GLCM (Haralick 1973, doi:10.1109/TSMC.1973.4309314): 32 grey levels, distances 1, 3 and 5 px, symmetric,
      normalised; of each property the mean and the range over four angles.
    - LBP (Ojala 2002, doi:10.1109/TPAMI.2002.1017623): histograms of the uniform rotation-invariant patterns, 8 points
      at 1 px and 16 at 2 px.
    - HOG (Dalal and Triggs 2005, doi:10.1109/CVPR.2005.177): 9 unsigned orientations in a grid of 4 x 4 cells, each
      cell normalised by itself.

    Parameters
    ----------
    image : ndarray, uint8, (S, S)
        S of at least 32 px.

    Returns
    -------
    ndarray, float32, (F,)
        As `names` without shape.
    """
    return np.concatenate([_first_order(image), _glcm(image), _lbp(image), _hog(image)]).astype(np.float32)


def _first_order(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    values = image.ravel() / 255.0
    mean, std = values.mean(), values.std()
    centred = (values - mean) / std if std > 1e-9 else np.zeros_like(values)
    share = np.bincount(image.ravel(), minlength=256) / image.size
    percentiles = np.percentile(values, _PERCENTILES)
    skewness, kurtosis = (centred**3).mean(), (centred**4).mean() - 3.0
    return np.asarray([mean, std, skewness, kurtosis, _entropy(share), *percentiles, float(np.ptp(values))])


def _entropy(share: NDArray[np.float64]) -> float:
    """Shannon entropy in bits."""
    known = share[share > 0]
    return float(-(known * np.log2(known)).sum())


def _glcm(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    from skimage.feature import graycomatrix, graycoprops

    levels = (image.astype(np.uint16) * GREY_LEVELS // 256).astype(np.uint8)
    matrix = graycomatrix(levels, DISTANCES, np.deg2rad(ANGLES), levels=GREY_LEVELS, symmetric=True, normed=True)  # type: ignore[no-untyped-call]
    # Each (distances, angles).
    found = [graycoprops(matrix, p) for p in _CO_OCCURRENCE]  # type: ignore[no-untyped-call]
    pairs = matrix.reshape(-1, len(DISTANCES), len(ANGLES))
    found.append(np.asarray([[_entropy(pairs[:, d, a]) for a in range(len(ANGLES))] for d in range(len(DISTANCES))]))
    return np.concatenate([np.stack([f.mean(axis=1), np.ptp(f, axis=1)], axis=1).ravel() for f in found])


def _lbp(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    from skimage.feature import local_binary_pattern

    parts = []
    for points, radius in PATTERNS:
        inside = np.s_[radius:-radius, radius:-radius]  # outside the image there is nothing to compare with
        codes = local_binary_pattern(image, points, radius, "uniform")  # type: ignore[no-untyped-call]
        codes = codes[inside].astype(np.intp)
        parts.append(np.bincount(codes.ravel(), minlength=points + 2) / codes.size)
    return np.concatenate(parts)


def _hog(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    from skimage.feature import hog

    cell = image.shape[0] // CELLS
    square = image[: CELLS * cell, : CELLS * cell]
    found = hog(square, ORIENTATIONS, pixels_per_cell=(cell, cell), cells_per_block=(1, 1), block_norm="L2")
    return np.asarray(found, np.float64)


def shape(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Shape features of a lesion mask; several lesions count as one region.

    Area is the share of the image, perimeter the share of the image's; compactness is 4 pi area / perimeter^2, about 1
    for a disc. Eccentricity and orientation (radians, of the long axis from the direction of the rows) are those of the
    ellipse with the same second moments; solidity is the area over that of the convex hull; width and height are those
    of the bounding box. An empty mask gives zeros, the first of which (``lesion``) says that there is none.

    **They come from a radiologist's mask.** Normal images have an empty one, so these features tell normal from lesion
    without looking at the image, which no scan of a new patient allows.

    Parameters
    ----------
    mask : ndarray, bool, (H, W)

    Returns
    -------
    ndarray, float32, (8,)
        As `SHAPE_NAMES`.
    """
    from skimage.measure import regionprops

    if not mask.any():
        return np.zeros(len(SHAPE_NAMES), np.float32)
    (region,) = regionprops(mask.astype(np.uint8))  # type: ignore[no-untyped-call]
    top, left, bottom, right = region.bbox
    perimeter = float(region.perimeter)
    compactness = 4 * np.pi * region.area / perimeter**2 if perimeter > 0 else 0.0
    height, width = mask.shape
    return np.asarray(
        [
            1.0,
            region.area / mask.size,
            perimeter / (2 * (height + width)),
            compactness,
            region.eccentricity,
            region.solidity,
            region.orientation,
            (right - left) / (bottom - top),
        ],
        np.float32,
    )


def textures(
    images: NDArray[np.uint8] | Pixels, *, threads: int = 1, progress: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """`texture` of many images, (n, F).

    Parameters
    ----------
    images : ndarray or Pixels, uint8, (n, S, S, 3)
    threads : int
    progress : callable or None
        Called with 1 after each image.
    """

    def one(i: int) -> NDArray[np.float32]:
        return texture(grey(images[i]))

    return _stacked(one, len(images), len(names()), threads, progress)


def shapes(masks: Callable[[int], NDArray[np.bool_]], n: int, *, threads: int = 1) -> NDArray[np.float32]:
    """`shape` of many masks, (n, 8); ``masks`` gives the i-th."""
    return _stacked(lambda i: shape(masks(i)), n, len(SHAPE_NAMES), threads, None)


def _stacked(
    one: Callable[[int], NDArray[np.float32]],
    n: int,
    width: int,
    threads: int,
    progress: Callable[[int], None] | None,
) -> NDArray[np.float32]:
    found = np.empty((n, width), np.float32)
    numbers: Sequence[int] = range(n)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for i, row in enumerate(pool.map(one, numbers)):
                found[i] = row
                if progress is not None:
                    progress(1)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C
    return found
