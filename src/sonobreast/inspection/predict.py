"""Trained runs on images: probabilities, and masks where the networks segment, averaged over the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sonobreast.config import Preprocess, Recipe
from sonobreast.data.masks_out import to_original_size
from sonobreast.data.pixels import Pixels
from sonobreast.data.preprocess import scale, scaling_constants
from sonobreast.data.store import open_store
from sonobreast.errors import SonobreastError
from sonobreast.records import Case
from sonobreast.training.fit import TrainedNetwork, load_run, read_config

_BATCH = 32
Progress = Callable[[str, int, int], None]
TakeMask = Callable[[int, NDArray[np.bool_]], None]


@dataclass(frozen=True)
class Predicted:
    """What several runs say of some images together.

    Attributes
    ----------
    classes : tuple of str
    probability : ndarray, float64, (n, C)
        Mean of the runs' softmax outputs, weighted by `shares`.
    """

    classes: tuple[str, ...]
    probability: NDArray[np.float64]


def shares(runs: Sequence[Path]) -> NDArray[np.float64]:
    """Weight of each run in the mean: folds count alike, in a fold its configurations, of those their seeds.

    So the mean over the folds' ensembles is the same whether the runs are averaged at once or fold by fold. Runs of one
    configuration count alike.

    Returns
    -------
    ndarray, float64, (n,)
        Sums to 1.
    """
    settings = [read_config(run)["run"] for run in runs]
    folds = [(run.parent.parent, s["repeat"], s["fold"]) for run, s in zip(runs, settings, strict=True)]
    members = [(fold, s["architecture"], s["optimizer"]) for fold, s in zip(folds, settings, strict=True)]
    seeds, in_fold = Counter(members), Counter(member[0] for member in set(members))
    weight = [1.0 / (len(in_fold) * in_fold[m[0]] * seeds[m]) for m in members]
    return np.asarray(weight, np.float64)


def predict(
    runs: Sequence[Path],
    root: Path,
    cases: Sequence[Case],
    *,
    take_mask: TakeMask | None = None,
    progress: Progress | None = None,
) -> Predicted:
    """Send images through trained runs, each with its own preprocessing, in float32 and inference mode.

    Parameters
    ----------
    runs : sequence of Path
        Run folders, at least one.
    root : Path
        Folder that the images' names are relative to.
    cases : sequence of Case
    take_mask : callable or None
        Given each image's index and lesion mask, bool (height, width) at the image's own size, one at a time: the mean
        of the maps of the runs that segment, at their recipe's threshold. Never called where none does.
    progress : callable or None
        Told the stage, the images done, and of how many.

    Raises
    ------
    SonobreastError
        If a run cannot be loaded, an image cannot be read, or the runs have different classes.
    """
    networks = [load_run(run) for run in runs]
    classes = networks[0][2]
    for run, (_, _, other) in zip(runs, networks, strict=True):
        if other != classes:
            raise SonobreastError(
                f"the classes are {', '.join(other)}, those of {runs[0].name} are {', '.join(classes)}",
                file=run,
                remedy="give runs of one study",
            )
    tell = progress or (lambda stage, done, total: None)
    stores: dict[str, Pixels] = {}
    pixels = [_decoded(root, cases, recipe.preprocess, stores, tell) for _, recipe, _ in networks]
    segmenting = sum(network.backbone.decoder is not None for network, _, _ in networks) if take_mask else 0
    weights = shares(runs)
    total = np.zeros((len(cases), len(classes)))
    for start in range(0, len(cases), _BATCH):
        index = np.arange(start, min(start + _BATCH, len(cases)))
        part = cases[start : start + _BATCH] if segmenting else []
        lesion = [np.zeros((c.height, c.width), np.float32) for c in part]
        for (network, recipe, _), images, weight in zip(networks, pixels, weights, strict=True):
            probability, small = _batch(network, recipe, images[index], segments=bool(segmenting))
            total[index] += probability * weight
            for k, mask in enumerate(small):
                height, width = lesion[k].shape
                lesion[k] += to_original_size(mask, width, height, recipe.preprocess.aspect) / segmenting
        if take_mask is not None:
            for i, mean in zip(index, lesion, strict=False):
                take_mask(int(i), np.asarray(mean >= networks[0][1].segmentation.threshold))
        tell("predicting", int(index[-1]) + 1, len(cases))
    return Predicted(classes, total)


def _decoded(
    root: Path, cases: Sequence[Case], settings: Preprocess, stores: dict[str, Pixels], tell: Progress
) -> Pixels:
    key = settings.model_dump_json()
    if key not in stores:
        stores[key] = open_store([root / c.image for c in cases], [c.sha256 for c in cases], settings, progress=tell)
    return stores[key]


@torch.inference_mode()
def _batch(
    network: TrainedNetwork, recipe: Recipe, images: NDArray[np.uint8], *, segments: bool
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Probabilities (B, C), and masks (B, S, S) or nothing."""
    mean, std = scaling_constants(recipe.preprocess.scaling, network.backbone.mean, network.backbone.std)
    given = torch.from_numpy(scale(images, mean, std)).contiguous(memory_format=torch.channels_last)
    probability = network(given).softmax(dim=1).double().numpy()
    mask = network.segment(given) if segments else None
    small = np.empty((0, 1, 1), np.float32) if mask is None else mask[:, 0].sigmoid().numpy()
    return probability, small
