"""Classifiers that scikit-learn fits on features: as a module that stands where a head stands, and as a file.

The file is skops' (``estimator.skops``), which rebuilds known types only; nothing is unpickled.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sonobreast.config import Recipe
from sonobreast.data.preprocess import scaling_constants
from sonobreast.errors import SonobreastError
from sonobreast.models import handcrafted
from sonobreast.models.zoo import Backbone, Coverage

FILE = "estimator.skops"
# What skops does not count as known, and the classifiers here need: scikit-learn's own, without code of the file.
_TRUSTED = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.tree._tree.Tree",
)


@dataclass(frozen=True)
class Ensemble:
    """Fitted classifiers whose probabilities are averaged; a single one is an ensemble of one.

    Attributes
    ----------
    selected : ndarray, int64, (k,)
        The features that are used.
    centre, spread : ndarray, float64, (k,)
        They are standardised with these.
    members : dict
        Name -> fitted classifier of scikit-learn, whose classes are indices.
    weights : dict
        Name -> share of the mean; they sum to 1.
    factors : dict
        Name -> (C,), by which its probabilities are multiplied before they are made to sum to 1: the class weights,
        for a classifier that takes none.
    classes : int
    """

    selected: NDArray[np.int64]
    centre: NDArray[np.float64]
    spread: NDArray[np.float64]
    members: dict[str, Any]
    weights: dict[str, float]
    factors: dict[str, NDArray[np.float64]]
    classes: int

    def probability(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of each class: (n, F) to (n, C)."""
        x = standardised(features, self.selected, self.centre, self.spread)
        total = np.zeros((len(features), self.classes))
        for name, member in self.members.items():
            total += self.weights[name] * member_probability(member, x, self.factors[name])
        return np.asarray(total / total.sum(axis=1, keepdims=True), np.float32)


def standardised(
    features: NDArray[np.float32],
    selected: NDArray[np.int64],
    centre: NDArray[np.float64],
    spread: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Selected features with mean 0 and spread 1: (n, F) to (n, k)."""
    return (features[:, selected].astype(np.float64) - centre) / spread


def member_probability(member: Any, x: NDArray[np.float64], factor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of one classifier, (n, C), also of classes that it never saw: 0."""
    found = np.zeros((len(x), len(factor)))
    found[:, member.classes_] = member.predict_proba(x)
    found *= factor
    total = found.sum(axis=1, keepdims=True)
    return np.where(total > 0, found / np.where(total > 0, total, 1.0), 1.0 / found.shape[1])


class EstimatorHead(nn.Module):
    """An ensemble in the place of a head: features (B, F) to logits (B, C), the logarithms of its probabilities."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B, C); what is impossible gets the logarithm of 1e-12."""
        p = self.ensemble.probability(features.detach().cpu().numpy().astype(np.float32))
        return torch.from_numpy(p).clamp(min=1e-12).log().to(features.device)


class Handcrafted(nn.Module):
    """The features of `sonobreast.models.handcrafted` in the place of a network.

    Parameters
    ----------
    mean, std : tuple of 3 floats
        Scaling of the input, which is turned back into grey values.
    shape : bool
        Whether shape features of the lesion's mask belong to them.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], *, shape: bool) -> None:
        super().__init__()
        self.mean, self.std, self.shape = mean, std, shape

    def forward(self, images: Tensor, masks: Sequence[NDArray[np.bool_]] | None = None) -> Tensor:
        """Features (B, F) of scaled images (B, 3, H, W).

        Parameters
        ----------
        masks : sequence of ndarray, bool, or None
            Of the lesions, in any size; needed where the features include their shape.

        Raises
        ------
        SonobreastError
            If masks are needed and not given.
        """
        if self.shape and masks is None:
            raise SonobreastError(
                "these features describe the lesion's mask, and none is given",
                remedy="give the masks of the images, or use a forest without shape features (RandomForest)",
            )
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        unit = images.detach().cpu().numpy() * std + mean
        pixels = np.clip(np.rint(255.0 * unit), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        found = handcrafted.textures(pixels)
        if self.shape and masks is not None:
            found = np.concatenate([found, handcrafted.shapes(masks.__getitem__, len(masks))], axis=1)
        return torch.from_numpy(found).to(images.device)


def handcrafted_backbone(recipe: Recipe, *, shape: bool) -> Backbone:
    """Handcrafted features as a backbone, for whatever expects one."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    names = handcrafted.names(shape=shape)
    kinds = "first-order, GLCM, LBP and HOG" + (
        ", and the shape of the radiologist's mask, whose emptiness gives normal images away" if shape else ""
    )
    return Backbone(
        Handcrafted(*scaling_constants(recipe.preprocess.scaling, mean, std), shape=shape),
        timm_name="",
        cut=None,
        features=len(names),
        mean=mean,
        std=std,
        coverage=Coverage(
            source="features",
            share=0.0,
            missing=(),
            cut_after=None,
            origin=f"{len(names)} handcrafted features ({kinds})",
            licence="none needed",
        ),
    )


@dataclass(frozen=True)
class Kept:
    """An ensemble as it is kept.

    Attributes
    ----------
    content : bytes
        Of the file.
    about : dict
        For the run's ``config.yaml``: ``scikit_learn`` (its version), ``shape`` and what the fit found.
    """

    content: bytes
    about: dict[str, Any]


def keep(ensemble: Ensemble, *, shape: bool, found: Mapping[str, Any]) -> Kept:
    """Turn an ensemble into the bytes of a file."""
    import sklearn
    from skops.io import dumps

    content: bytes = dumps(vars(ensemble), compression=zipfile.ZIP_DEFLATED, compresslevel=1)
    return Kept(content, {"scikit_learn": sklearn.__version__, "shape": shape, **found})


def load(file: Path, about: Mapping[str, Any], classes: int) -> EstimatorHead:
    """Read an ensemble that `keep` made.

    Raises
    ------
    SonobreastError
        If the file is missing or damaged, holds anything but scikit-learn's and NumPy's types, or was made with another
        version of scikit-learn.
    """
    import sklearn
    from skops.io import get_untrusted_types, loads

    made_with = str(about.get("scikit_learn"))
    if made_with != sklearn.__version__:
        raise SonobreastError(
            f"the classifier was fitted with scikit-learn {made_with}; this is {sklearn.__version__}, and versions do "
            "not promise to read one another's",
            file=file,
            remedy=f"install scikit-learn=={made_with}, or fit the run anew in a new --out",
        )
    try:
        content = file.read_bytes()
        unknown = sorted(set(get_untrusted_types(data=content)) - set(_TRUSTED))
        if unknown:
            raise SonobreastError(
                f"the file holds types that no classifier here has: {', '.join(unknown[:4])}",
                file=file,
                remedy="do not use it: it was not written by sonobreast",
            )
        ensemble = Ensemble(**loads(content, trusted=list(_TRUSTED)))
        fits = ensemble.classes == classes and set(ensemble.members) == set(ensemble.weights) == set(ensemble.factors)
    except (
        OSError,
        zipfile.BadZipFile,
        json.JSONDecodeError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise SonobreastError(
            f"the classifier cannot be read ({type(error).__name__}: {error})",
            file=file,
            remedy="copy the whole study folder, or fit the run anew",
        ) from error
    if not fits:
        raise SonobreastError(
            f"the classifier does not fit the run's {classes} classes", file=file, remedy="copy the whole study folder"
        )
    return EstimatorHead(ensemble)
