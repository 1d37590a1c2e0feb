"""Is this a picture of the kind that a model was trained on? Statistics of training features, a distance, a threshold.

NumPy only, so that serving can ask the same question with the same numbers.

What was tried, on the first of five grouped folds of a fine-tuned joint MobileNetV2 on BUSI (40 outsiders of each
kind; the choice was made on these very figures): the distance on the **means of all stages** tells every kind of
outsider of `sonobreast.inspection.outsiders` apart (AUC 1.00; scans upside down 0.97) and refuses 17 and 26 % of two
other hospitals' scans. On the last, pooled features alone it does not: fine-tuning leaves there what tells the
classes apart, and pink noise has 0.81, M-mode 0.78, the negative of a scan 0.70 (cosine distance to the 5th nearest
training image: 0.83, 0.42, 0.67). A few statistics of the picture are as good as the stages (1.00; M-mode 0.99), but
refuse 44 and 45 % of the other hospitals' scans. Adding the residual outside the principal axes, or joining detectors
by their largest score, finds no more and refuses more of the other hospitals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sonobreast.errors import SonobreastError
from sonobreast.records import atomic

Floats = NDArray[np.float64]

AXES = 32
"""Principal axes kept at most."""
SHRINKAGE = 0.05
"""Share of the mean variance that is mixed into each axis' own."""
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Domain:
    """Frozen statistics of the training images' features, k axes of F features.

    Attributes
    ----------
    features : str
        Which features: ``stages``, ``pooled`` or ``picture``.
    mean, spread : ndarray, float32, (F,)
        Of each feature over the training images.
    axes : ndarray, float32, (k, F)
        Principal axes of the standardised features, of length 1.
    variance : ndarray, float32, (k,)
        Along each axis, shrunk towards their mean.
    threshold : float
        A picture farther away is refused; NaN until `with_threshold` has set it.
    accept : float
        Share of scans of the domain that the threshold is to accept.
    calibrated_on : int
        Independent groups of validation images behind the threshold.
    """

    features: str
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    axes: NDArray[np.float32]
    variance: NDArray[np.float32]
    threshold: float = math.nan
    accept: float = math.nan
    calibrated_on: int = 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for `numpy.savez`: about (k + 2) F numbers of 4 bytes."""
        numbers = np.asarray([self.threshold, self.accept, self.calibrated_on], np.float64)
        named = {"mean": self.mean, "spread": self.spread, "axes": self.axes, "variance": self.variance}
        return {**named, "numbers": numbers, "features": np.asarray(self.features), "format": np.asarray(_FORMAT)}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Domain:
    """`Domain` from what `Domain.arrays` gave.

    Raises
    ------
    SonobreastError
        If an array is missing, has another shape or was written by a newer version.
    """
    try:
        if int(arrays["format"]) > _FORMAT:
            raise SonobreastError("a newer sonobreast wrote these statistics", remedy="use that version")
        mean, spread, axes, variance = (
            np.asarray(arrays[k], np.float32) for k in ("mean", "spread", "axes", "variance")
        )
        threshold, accept, groups = (float(v) for v in arrays["numbers"])
        if mean.shape != spread.shape or axes.shape != (len(variance), len(mean)):
            raise ValueError("shapes")
        return Domain(str(arrays["features"]), mean, spread, axes, variance, threshold, accept, int(groups))
    except (KeyError, ValueError, TypeError) as error:
        raise SonobreastError(
            f"these are no statistics of a training domain ({error})", remedy="write them anew with `sonobreast domain`"
        ) from error


def fit_domain(features: ArrayLike, name: str) -> Domain:
    """Mean, spread and principal axes of training features.

    Parameters
    ----------
    features : (n, F)
        One row a training image, n at least 2, finite.
    name : str
        Which features they are.

    Raises
    ------
    SonobreastError
        For fewer than two images, or features that are not finite.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise SonobreastError(
            f"features of the shape {x.shape} give no training domain: two images or more and finite values are needed",
            remedy="use a run that was trained on more images",
        )
    mean, spread = x.mean(axis=0), x.std(axis=0)
    # A feature that never varies must not weigh without bound.
    positive = spread[spread > 0]
    spread = np.maximum(spread, max(1e-6, 0.01 * float(np.median(positive)) if len(positive) else 1.0))
    _, singular, axes = np.linalg.svd((x - mean) / spread, full_matrices=False)
    variance = singular**2 / len(x)
    k = max(1, min(AXES, len(x) - 1, int((variance > 1e-10 * max(variance[0], 1e-300)).sum())))
    kept = variance[:k]
    shrunk = np.maximum((1.0 - SHRINKAGE) * kept + SHRINKAGE * kept.mean(), 1e-9)
    single = [np.asarray(a, np.float32) for a in (mean, spread, axes[:k], shrunk)]
    return Domain(name, single[0], single[1], single[2], single[3])


def distance(domain: Domain, features: ArrayLike) -> Floats:
    """Squared Mahalanobis distance along the principal axes, over their number: near 1 for training images.

    ``d = 1/k sum_i ((a_i . (x - mean) / spread)^2 / variance_i)``; after Lee et al. 2018, NeurIPS 31 ("A simple unified
    framework for detecting out-of-distribution samples"), with one centre for all classes.

    Parameters
    ----------
    features : (n, F)

    Returns
    -------
    ndarray, float64, (n,)
        At least 0; infinite where a feature is not finite.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or x.shape[1] != len(domain.mean):
        raise SonobreastError(
            f"features of the shape {x.shape} for a domain of {len(domain.mean)} features",
            remedy="use the statistics of the same run",
        )
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(x).all(axis=1))
    along = ((np.where(finite[:, None], x, 0.0) - domain.mean) / domain.spread) @ domain.axes.T.astype(np.float64)
    found: Floats = (along**2 / domain.variance).mean(axis=1)
    return np.where(finite, found, np.inf)


def with_threshold(domain: Domain, features: ArrayLike, groups: Sequence[str], accept: float = 0.95) -> Domain:
    """The domain with a threshold that accepts a share of scans, from validation images.

    Each group counts once, shared among its images. Of G groups the threshold is the weighted quantile at
    ``ceil((G + 1) accept) / G``, so that a new scan of the domain is accepted with a chance of at least ``accept``
    (split conformal prediction; Vovk, Gammerman and Shafer 2005). Where G is smaller than ``accept / (1 - accept)``
    (`groups_needed`) no threshold can promise that: it is the largest distance seen.

    Raises
    ------
    SonobreastError
        Without validation images, or for a share that is not between 0 and 1.
    """
    if not 0.0 < accept < 1.0:
        raise SonobreastError(f"a share of {accept} to accept", remedy="give a share such as 0.95")
    d = distance(domain, features)
    if not len(d):
        raise SonobreastError("no validation images to choose a threshold on", remedy="use a run with a validation set")
    names, codes, sizes = np.unique(np.asarray(groups, str), return_inverse=True, return_counts=True)
    g = len(names)
    order = np.argsort(d, kind="stable")
    covered = np.cumsum((1.0 / (g * sizes))[codes][order])
    level = min(1.0, math.ceil((g + 1) * accept - 1e-9) / g)
    place = min(int(np.searchsorted(covered, level - 1e-9)), len(d) - 1)
    return replace(domain, threshold=float(d[order][place]), accept=accept, calibrated_on=g)


def accept_of_each(accept: float, networks: int) -> float:
    """Share of scans that each of several networks has to accept, so that `together` accepts ``accept`` of them.

    Half of the shares refuse a scan of the domain with a chance of at most twice the mean of the networks' own chances,
    however these hang together (Markov's inequality; Cherubin 2019, Machine Learning 108; Gasparin and Ramdas 2024,
    arXiv:2401.09379). One network alone decides by itself.
    """
    return accept if networks == 1 else 1.0 - (1.0 - accept) / 2.0


def promised(accept: Sequence[float], groups: Sequence[int], shares: Sequence[float]) -> float:
    """Share of new scans of the domain that `together` accepts at the least.

    Parameters
    ----------
    accept, groups : sequence of float, of int
        `Domain.accept` and `Domain.calibrated_on` of each network.
    shares : sequence of float
        Sum to 1.

    Returns
    -------
    float
        In [0, 1]: less than was aimed at where a network's validation groups are fewer than `groups_needed`.
    """
    refuse = sum(s * max(1.0 - a, 1.0 / (g + 1)) for a, g, s in zip(accept, groups, shares, strict=True))
    return max(0.0, 1.0 - refuse * (1.0 if len(accept) == 1 else 2.0))


def together(scores: ArrayLike, shares: ArrayLike) -> Floats:
    """One score of several networks: the largest that those with at least half of the shares reach.

    So it is above 1 if and only if networks with at least half of the shares refuse the picture by themselves. Their
    largest score would need thresholds for images that none of them has seen, and folds leave no such image: each has
    taught some of them.

    Parameters
    ----------
    scores : (n, M)
        Distance over threshold, of each network.
    shares : (M,)
        Positive.

    Returns
    -------
    ndarray, float64, (n,)
    """
    found, weight = np.nan_to_num(np.asarray(scores, np.float64), nan=np.inf, posinf=np.inf), np.asarray(shares)
    order = np.argsort(-found, axis=1, kind="stable")
    reached = np.cumsum(weight[order], axis=1) >= weight.sum() / 2.0 - 1e-9
    return np.asarray(np.take_along_axis(found, np.take_along_axis(order, reached.argmax(1)[:, None], 1), 1)[:, 0])


def groups_needed(accept: float) -> int:
    """Validation groups without which a threshold cannot promise to accept such a share."""
    return math.ceil(accept / (1.0 - accept) - 1e-9)


def picture_statistics(images: NDArray[np.uint8]) -> Floats:
    """Cheap statistics of prepared pictures: colour, grey levels, black and white, spectrum, direction, layout.

    Parameters
    ----------
    images : ndarray, uint8, (n, S, S, 3)
        From `sonobreast.data.preprocess.prepare`.

    Returns
    -------
    ndarray, float64, (n, 21)
        Logarithms where a statistic spans orders of magnitude; finite also for a blank picture.
    """
    rows = [_statistics(image.astype(np.float64) / 255.0) for image in images]
    return np.stack(rows) if rows else np.empty((0, 21))


def _statistics(image: Floats) -> Floats:
    grey = image.mean(axis=2)
    size = grey.shape[0]
    colour = np.abs(image - grey[:, :, None]).mean()
    ends = [(grey < 0.02).mean(), (grey > 0.98).mean()]
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2 / grey.size**2
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    limits = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.8)
    bands = [power[(frequency > a) & (frequency <= b)].sum() for a, b in pairwise(limits)]
    across, down = (np.abs(np.diff(grey, axis=a)).mean() + 1e-4 for a in (1, 0))
    quarters = [part.mean() for part in np.array_split(grey, 4, axis=0)]
    edge = max(1, size // 8)
    sides = [grey[:, :edge].mean() - grey.mean(), grey[:, -edge:].mean() - grey.mean()]
    return np.concatenate(
        [
            np.log(np.asarray([colour, *ends]) + 1e-3),
            np.quantile(grey, [0.05, 0.25, 0.5, 0.75, 0.95]),
            np.log(np.asarray(bands) + 1e-8),
            [np.log(down / across)],
            quarters,
            sides,
        ]
    )


def write_domain(path: Path, domain: Domain) -> None:
    """Write the statistics as an ``.npz``, whole or not at all."""
    with atomic(path, "wb") as stream:
        np.savez(stream, allow_pickle=False, **domain.arrays())


def read_domain(path: Path) -> Domain:
    """Read what `write_domain` wrote; nothing in it is unpickled.

    Raises
    ------
    SonobreastError
        If the file is missing, damaged or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            return from_arrays({k: content[k] for k in content.files})
    except SonobreastError as error:
        raise SonobreastError(error.what, file=path, remedy=error.remedy) from error
    except (OSError, ValueError, EOFError, BadZipFile, AttributeError) as error:
        raise SonobreastError(
            f"the statistics of the training domain cannot be read ({error})",
            file=path,
            remedy="write them anew with `sonobreast domain`",
        ) from error
