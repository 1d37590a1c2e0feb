"""Classical systems in a study: a forest on handcrafted features, deep features with fused classifiers, a linear probe.

They take no optimizer and no augmentation, and are fitted on the training subset alone. The forest does not look at the
validation subset; the fusion chooses there how many features it takes and how much each classifier counts, the probe
how strong its penalty is.
"""

from __future__ import annotations

import os
import time
import warnings
import weakref
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor, nn

from sonobreast.config import Recipe
from sonobreast.data.manifest import Manifest
from sonobreast.data.pixels import Pixels
from sonobreast.data.preprocess import decode_mask
from sonobreast.errors import Diverged, SonobreastError
from sonobreast.models import handcrafted
from sonobreast.models.classical import Ensemble, handcrafted_backbone, keep, member_probability, standardised
from sonobreast.models.heads import build_head
from sonobreast.models.networks import Architecture
from sonobreast.models.zoo import Backbone, load_backbone
from sonobreast.records import LESION_CLASSES, Run
from sonobreast.training.fitted import Fitted, Progress
from sonobreast.training.frozen import cache_key, compute_bank, starts_standardised
from sonobreast.training.images import Images

if TYPE_CHECKING:
    from sonobreast.training.fit import Fold
    from sonobreast.training.reporter import Reporter

TREES = 300
FEATURE_COUNTS = (32, 64, 128, 256, 512)  # of which the fusion chooses one, or all there are
NEIGHBOURS = 7
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse, of which the probe chooses one
_NEVER = 30.0  # logit of a class that no training image has, below the others
_NORMAL = LESION_CLASSES[2]

# One study may ask for a forest with shape features and one without: textures are computed once for each set of images.
_textures: weakref.WeakKeyDictionary[Pixels, NDArray[np.float32]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Prepared:
    """What the fits of one architecture share.

    Attributes
    ----------
    backbone : Backbone
        What turns an image into features.
    features : ndarray, float32, (n, F)
        Of all images of the study, without augmentation.
    shape : bool
        Whether shape features of the masks are among them.
    """

    backbone: Backbone
    features: NDArray[np.float32]
    shape: bool = False


def prepare(
    chosen: Architecture,
    images: Images,
    manifest: Manifest,
    recipe: Recipe,
    weights: str,
    cache: Path,
    reporter: Reporter,
) -> Prepared:
    """Compute the features of all images of a study.

    Shape features need the mask of every image, where a normal image without a mask file counts as one with an empty
    mask; where one is not known, they are left out, and that is said.

    Parameters
    ----------
    cache : Path
        Folder in which deep features are kept, so that an interrupted study goes on where it was.

    Raises
    ------
    SonobreastError
        See `load_backbone`; a mask that cannot be read.
    """
    if chosen.timm_name is not None:
        return _deep(chosen, images, recipe, weights, cache, reporter)
    threads = os.cpu_count() or 1
    reporter.stage(f"{chosen.name}: features", len(images.names))
    pixels = images.pixels
    found = _textures.get(pixels) if isinstance(pixels, Pixels) else None
    if found is None:
        found = handcrafted.textures(pixels, threads=threads, progress=reporter.advance)
        if isinstance(pixels, Pixels):
            _textures[pixels] = found
    else:
        reporter.advance(len(images.names))
    masks = _masks(images.names, manifest) if chosen.shape else None
    if chosen.shape and masks is None:
        reporter.say(
            f"{chosen.name}: the mask is not known for all images, so shape features are left out: this is RandomForest"
        )
    if masks is not None:
        known = masks
        shapes = handcrafted.shapes(lambda i: _decoded(known[i]), len(known), threads=threads)
        found = np.concatenate([found, shapes], axis=1)
    return Prepared(handcrafted_backbone(recipe, shape=masks is not None), found, masks is not None)


def _deep(
    chosen: Architecture, images: Images, recipe: Recipe, weights: str, cache: Path, reporter: Reporter
) -> Prepared:
    backbone = load_backbone(chosen.timm_name or "", weights, image_size=recipe.preprocess.size)
    nobody: NDArray[np.intp] = np.empty(0, np.intp)  # no augmented views
    alone = recipe.model_copy(update={"augment": recipe.augment.model_copy(update={"views": 1})})
    reporter.stage(f"{chosen.name}: features", len(images.names))
    place = cache / cache_key(backbone, images, alone, nobody)
    bank = compute_bank(backbone, images, alone, place, reporter.advance, nobody, reporter.say)
    return Prepared(backbone, np.array(bank.clean.numpy(), np.float32))


def _masks(names: Sequence[str], manifest: Manifest) -> list[tuple[Path, ...]] | None:
    """Mask files of each image, none for a normal image without any; None where an image's mask is not known."""
    case_of = {c.image: c for c in manifest.cases}
    cases = [case_of[n] for n in names]
    if not any(c.masks for c in cases) or any(not c.masks and c.label != _NORMAL for c in cases):
        return None
    return [tuple(manifest.root / m for m in c.masks) for c in cases]


def _decoded(files: Sequence[Path]) -> NDArray[np.bool_]:
    """All lesions of an image in one mask."""
    if not files:
        return np.zeros((1, 1), bool)
    first, *rest = (decode_mask(f) for f in files)
    for file, mask in zip(files[1:], rest, strict=True):
        if mask.shape != first.shape:
            raise SonobreastError(
                "the masks of one image differ in size", file=file, remedy="replace the mask, or leave the image out"
            )
        first = first | mask
    return first


def fit_classical(
    chosen: Architecture,
    prepared: Prepared,
    images: Images,
    runs: Sequence[tuple[Run, Fold]],
    recipe: Recipe,
    progress: Progress | None = None,
) -> Generator[tuple[int, Fitted | Diverged], None, None]:
    """Fit the runs of one classical architecture, one after the other.

    Parameters
    ----------
    progress : callable or None
        Called with 1 after each run.

    Yields
    ------
    index : int
        Into ``runs``.
    fitted : Fitted
        Without epochs.

    Raises
    ------
    SonobreastError
        If the training subset holds one class only.
    """
    label = images.label.numpy().astype(np.intp)
    for index, (run, fold) in enumerate(runs):
        started = time.perf_counter()
        if len(set(label[fold.train])) < 2:
            raise SonobreastError(
                f"the training subset of {run.id} holds one class only", remedy="divide the images in another way"
            )
        if chosen.probe:
            state, probability = fit_probe(prepared, label, fold, len(images.classes), recipe)
            seconds = time.perf_counter() - started
            yield index, Fitted(state, (), 0, probability, seconds, "float32")
            if progress is not None:
                progress(1)
            continue
        if chosen.timm_name is None:
            ensemble, found = fit_forest(prepared.features, label, fold.train, len(images.classes), recipe, run.seed)
        else:
            ensemble, found = fit_fusion(prepared.features, label, fold, len(images.classes), recipe, run.seed)
        probability = ensemble.probability(prepared.features)
        kept = keep(ensemble, shape=prepared.shape, found=found)
        seconds = time.perf_counter() - started
        yield index, Fitted({}, (), 0, probability, seconds, "float32", estimator=kept)
        if progress is not None:
            progress(1)


def class_weight_of(label: NDArray[np.intp], classes: int, recipe: Recipe) -> NDArray[np.float64]:
    """Weight of each class, (C,): n / (C n_c) of the training subset, or ones; as `fitted.class_weights`."""
    if recipe.training.class_weights == "none":
        return np.ones(classes)
    return len(label) / (classes * np.maximum(np.bincount(label, minlength=classes), 1))


def fit_forest(
    features: NDArray[np.float32],
    label: NDArray[np.intp],
    train: NDArray[np.intp],
    classes: int,
    recipe: Recipe,
    seed: int,
) -> tuple[Ensemble, dict[str, Any]]:
    """A random forest of 300 trees on all features.

    Parameters
    ----------
    features : ndarray, float32, (n, F)
    label : ndarray of int, (n,)
    train : ndarray of int
        Indices of the training subset; no other label is looked at.

    Returns
    -------
    ensemble : Ensemble
    found : dict
        ``trees``.
    """
    everything = np.arange(features.shape[1], dtype=np.int64)
    plain = np.zeros(len(everything)), np.ones(len(everything))  # trees need no standardisation
    weight = class_weight_of(label[train], classes, recipe)
    forest = _forest(TREES, weight, label[train], seed)
    forest.fit(features[train].astype(np.float64), label[train])
    forest.n_jobs = None
    members = {"forest": forest}
    return Ensemble(everything, *plain, members, {"forest": 1.0}, {"forest": np.ones(classes)}, classes), {
        "trees": TREES
    }


def _forest(trees: int, weight: NDArray[np.float64], label: NDArray[np.intp], seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        trees, class_weight=_weights_of_seen(weight, label), random_state=seed, n_jobs=os.cpu_count()
    )


def _weights_of_seen(weight: NDArray[np.float64], label: NDArray[np.intp]) -> dict[int, float]:
    return {int(c): float(weight[c]) for c in np.unique(label)}


def fit_probe(
    prepared: Prepared, label: NDArray[np.intp], fold: Fold, classes: int, recipe: Recipe
) -> tuple[dict[str, Tensor], NDArray[np.float32]]:
    """Logistic regression on standardised features of a frozen network, as the tensors of a linear head.

    Mean and spread of the features, and the fit, are the training subset's; of the inverse penalties `PENALTIES` the
    one with the least log loss on the validation subset is taken. Standardisation and regression are one linear layer:
    ``W x / s + (b - W m / s)``.

    Parameters
    ----------
    prepared : Prepared
        ``features`` float32 (n, F).
    label : ndarray of int, (n,)
    fold : Fold
        No label of the test subset is looked at.

    Returns
    -------
    state : dict of Tensor
        A run's tensors, ``head.*``.
    probability : ndarray, float32, (n, C)
        Of all images.
    """
    from sklearn.linear_model import LogisticRegression

    train, held_out = fold.train, fold.validation
    centre, spread = _statistics(prepared.features[train])
    x = (prepared.features.astype(np.float64) - centre) / spread
    weight = _weights_of_seen(class_weight_of(label[train], classes, recipe), label[train])
    best: tuple[float, NDArray[np.float64], NDArray[np.float64]] | None = None
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, class_weight=weight, max_iter=5000).fit(x[train], label[train])
        slope, shift = np.zeros((classes, x.shape[1])), np.full(classes, -_NEVER)
        binary = len(model.classes_) == 2  # scikit-learn gives one row for two classes: their difference
        slope[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2 if binary else model.coef_
        given = np.concatenate([-model.intercept_, model.intercept_]) / 2 if binary else model.intercept_
        shift[model.classes_] = given
        logits = x[held_out] @ slope.T + shift
        of_truth = softmax(logits, axis=1)[np.arange(len(held_out)), label[held_out]]
        loss = float(-np.log(np.maximum(of_truth, 1e-12)).mean()) if len(held_out) else 0.0
        if best is None or loss < best[0]:
            best = loss, slope, shift
    assert best is not None
    _, slope, shift = best
    head = build_head(
        prepared.backbone.features, classes, recipe.head, standardise=starts_standardised(prepared.backbone, recipe)
    )
    linear = next(layer for layer in head if isinstance(layer, nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(slope / spread))
        linear.bias.copy_(torch.from_numpy(shift - (slope / spread) @ centre))
        probability = head.eval()(torch.from_numpy(prepared.features)).softmax(dim=1).numpy()
    return {f"head.{k}": v.detach().clone() for k, v in head.state_dict().items()}, probability


def fit_fusion(
    features: NDArray[np.float32],
    label: NDArray[np.intp],
    fold: Fold,
    classes: int,
    recipe: Recipe,
    seed: int,
) -> tuple[Ensemble, dict[str, Any]]:
    """Select features, fit five classifiers on them and average their probabilities.

    After Jabeen 2022 (Sensors 22:807), who selects by two evolutionary algorithms and fuses the selected features. Here
    features are ranked by the ANOVA F of the training subset. For 32, 64, ... of the best a support vector machine
    (probabilities by Platt's sigmoid, cross-fitted with whole groups), 7 nearest neighbours, linear discriminants with
    shrinkage, logistic regression and a random forest are fitted on the training subset. Their probabilities are
    averaged, each with its validation accuracy as weight, and the number of features with the least validation
    cross-entropy is taken. Class weights count in the fits and in both validation figures.

    Parameters
    ----------
    features : ndarray, float32, (n, F)
    label : ndarray of int, (n,)
    fold : Fold
        No label of the test subset is looked at.

    Returns
    -------
    ensemble : Ensemble
    found : dict
        ``selected``: number of features; ``weights``: of the classifiers; ``left_out``: classifiers that the training
        subset is too small for.
    """
    train, validation = fold.train, fold.validation
    weight = class_weight_of(label[train], classes, recipe)
    importance = weight[label[validation]] / weight[label[validation]].sum()
    ranked = _ranked(features[train], label[train])
    best: tuple[float, Ensemble] | None = None
    counts = sorted({min(k, len(ranked)) for k in FEATURE_COUNTS} | {len(ranked)})
    for k in counts:
        selected = ranked[:k]
        centre, spread = _statistics(features[train][:, selected])
        x = standardised(features[train], selected, centre, spread)
        held_out = standardised(features[validation], selected, centre, spread)
        members = _members(x, label[train], [fold.groups[i] for i in train], weight, seed)
        factors = {n: weight if n == "neighbours" else np.ones(classes) for n in members}
        said = {n: member_probability(m, held_out, factors[n]) for n, m in members.items()}
        right = {n: float(importance @ (p.argmax(axis=1) == label[validation])) for n, p in said.items()}
        total = sum(right.values())
        shares = {n: r / total if total > 0 else 1.0 / len(right) for n, r in right.items()}
        fused = sum(shares[n] * p for n, p in said.items())
        of_truth = np.asarray(fused)[np.arange(len(validation)), label[validation]]
        loss = float(-(importance @ np.log(np.maximum(of_truth, 1e-12))))
        if best is None or loss < best[0]:
            best = loss, Ensemble(selected, centre, spread, members, shares, factors, classes)
    assert best is not None
    ensemble = best[1]
    return ensemble, {
        "selected": len(ensemble.selected),
        "weights": {n: round(w, 4) for n, w in ensemble.weights.items()},
        "left_out": [n for n in ("svm",) if n not in ensemble.members],
    }


def _ranked(x: NDArray[np.float32], label: NDArray[np.intp]) -> NDArray[np.int64]:
    """Features by falling ANOVA F; those that do not vary come last."""
    from sklearn.feature_selection import f_classif

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # about features that do not vary
        score = np.nan_to_num(f_classif(x.astype(np.float64), label)[0], nan=-1.0, posinf=np.finfo(np.float64).max)
    return np.argsort(-score, kind="stable").astype(np.int64)


def _statistics(x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    wide = x.astype(np.float64)
    spread = wide.std(axis=0)
    return wide.mean(axis=0), np.where(spread > 1e-6, spread, 1.0)


def _members(
    x: NDArray[np.float64], label: NDArray[np.intp], groups: Sequence[str], weight: NDArray[np.float64], seed: int
) -> dict[str, Any]:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    seen = _weights_of_seen(weight, label)
    prior = np.asarray([weight[c] * (label == c).mean() for c in seen])  # equal ones for balanced class weights
    forest = _forest(TREES, weight, label, seed)
    members = {
        "neighbours": KNeighborsClassifier(min(NEIGHBOURS, len(x)), algorithm="brute").fit(x, label),
        "discriminants": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=prior / prior.sum()).fit(
            x, label
        ),
        "logistic": LogisticRegression(C=0.1, class_weight=seen, max_iter=5000).fit(x, label),
        "forest": forest.fit(x, label),
    }
    forest.n_jobs = None
    del members["discriminants"].covariance_  # (k, k), of no use after the fit
    machine = _support_vectors(x, label, groups, seen, seed)
    return members if machine is None else {"svm": machine, **members}


def _support_vectors(
    x: NDArray[np.float64], label: NDArray[np.intp], groups: Sequence[str], seen: Mapping[int, float], seed: int
) -> Any:
    """A support vector machine with probabilities; None where the classes have too few groups to calibrate it."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.svm import SVC

    named = np.asarray(groups)
    fewest = min(len(set(named[label == c])) for c in seen)
    for folds in range(min(5, fewest), 1, -1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about small classes, which are checked below
            divider = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            parts = list(divider.split(x, label, named))
        if all(len(set(label[inside])) == len(seen) and len(outside) for inside, outside in parts):
            machine = CalibratedClassifierCV(SVC(), cv=parts, ensemble=False)
            fitted: Any = machine.fit(x, label, sample_weight=np.asarray([seen[int(c)] for c in label]))
            fitted.cv = folds  # the indices of training images are nothing to keep
            return fitted
    return None
