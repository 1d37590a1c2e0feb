"""A frozen backbone: the features of every view are computed once, and every head of the study is trained on them.

Exactly what a plain loop over the images does, with the backbone's part taken out of it: same order of the batches,
same dropout masks, same stopping.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sonobreast.config import EarlyStopping, Recipe
from sonobreast.data.mapped import Mapped
from sonobreast.data.masks import Masks
from sonobreast.data.pixels import Pixels
from sonobreast.data.preprocess import scale, scaling_constants
from sonobreast.errors import Diverged, SonobreastError
from sonobreast.models.classical import Kept
from sonobreast.models.forward import Forward, frozen_forward, has_bfloat16
from sonobreast.models.heads import Standardise, build_head
from sonobreast.models.zoo import Backbone
from sonobreast.records import Row, is_full
from sonobreast.training.augment import draw_views, warp
from sonobreast.training.head_settings import check_head_settings
from sonobreast.training.lesion_window import measure_boxes
from sonobreast.training.optimizers import build_optimizer
from sonobreast.training.view_file import Part, plan_views, read_view, write_view

Progress = Callable[[int], None]
_BATCH = 32


class Epoch(Row):
    """One row of ``history.csv``. The training figures are means over the epoch's batches, as Keras prints them.

    Of a network that segments the losses are those of both tasks together, and ``validation_dice`` is the mean over
    validation images with a lesion, at the network's size.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_dice: float | None = None


@dataclass(frozen=True)
class Images:
    """The decoded images of a study.

    Attributes
    ----------
    pixels : ndarray or Pixels, uint8, (n, size, size, 3)
    names : tuple of str
    label : Tensor, int64, (n,)
        Index into ``classes``.
    classes : tuple of str
    masks : Masks or None
        Of the lesions, where a network of the study segments.
    """

    pixels: NDArray[np.uint8] | Pixels
    names: tuple[str, ...]
    label: Tensor
    classes: tuple[str, ...]
    masks: Masks | None = None


@dataclass(frozen=True)
class Bank:
    """Pooled features of all images.

    Attributes
    ----------
    clean : Tensor, float32, (n, F)
    views : Tensor or tuple of Tensor, float32, (K, n, F)
        Augmented views; epoch e is trained on view e mod K. Rows of images that are not trained on are 0.
    standardise : bool
        Whether heads begin with `Standardise`, because the network was cut before its last norm.
    files : tuple of Mapped
        The files behind ``clean`` and ``views`` where these are too large for memory.
    """

    clean: Tensor
    views: Tensor | tuple[Tensor, ...]
    standardise: bool = False
    files: tuple[Mapped, ...] = ()

    def take(self, view: int | None, index: Tensor, out: Tensor | None = None) -> Tensor:
        """Features of some images, (B, F), without leaving the pages of a large file in memory.

        Parameters
        ----------
        view : int or None
            None: the images as they are.
        index : Tensor, int64, (B,)
        out : Tensor or None
            Where to put them.
        """
        taken = torch.index_select(self.clean if view is None else self.views[view], 0, index, out=out)
        if self.files:
            # At once: for each page that is read the system maps its neighbours too, many times what was asked for.
            self.files[0 if view is None else 1 + view].release()
        return taken


@dataclass(frozen=True)
class Lesions:
    """Predicted masks of the images that had no part in training.

    Attributes
    ----------
    index : ndarray, int, (m,)
        Which images.
    probability : ndarray, uint8, (m, size, size)
        Of lesion, in 255ths.
    """

    index: NDArray[np.intp]
    probability: NDArray[np.uint8]


@dataclass(frozen=True)
class Fitted:
    """What training leaves.

    Attributes
    ----------
    state : dict of Tensor
        The trained part at the best epoch; names start with ``head.`` or ``backbone.``.
    history : tuple of Epoch
    best_epoch : int
        From 1.
    probability : ndarray, float32, (n, C)
        Of every image of the study, without augmentation, at the best epoch.
    seconds : float
        For this run alone; the shared features are not in it.
    precision : str or None
        Of the training steps of a fine-tuned network; None where only a head was trained.
    lesions : Lesions or None
        Predicted masks, of a network that segments.
    estimator : Kept or None
        In place of ``state``, what scikit-learn fitted; such a fit has no epochs.
    """

    state: dict[str, Tensor]
    history: tuple[Epoch, ...]
    best_epoch: int
    probability: NDArray[np.float32]
    seconds: float
    precision: str | None = None
    lesions: Lesions | None = None
    estimator: Kept | None = None


def number_of_views(recipe: Recipe) -> int:
    """Views of each training image: as the recipe says, but never more than epochs."""
    return min(recipe.augment.views or recipe.training.epochs, recipe.training.epochs)


def compute_bank(
    backbone: Backbone,
    images: Images,
    recipe: Recipe,
    cache: Path | None = None,
    progress: Progress | None = None,
    trained_on: NDArray[np.intp] | None = None,
    say: Callable[[str], None] | None = None,
) -> Bank:
    """Send every image once, and every augmented view of the training images once, through the backbone.

    Features that are large beside the memory are left in the files of ``cache`` and read from there; where neither
    memory nor disk have room, there are fewer views.

    Parameters
    ----------
    backbone : Backbone
        In inference mode.
    images : Images
    recipe : Recipe
    cache : Path or None
        Folder in which each finished view is kept, so that an interrupted study goes on where it was.
    progress : callable or None
        Called with the number of images done since the last call.
    trained_on : ndarray of int or None
        Images that are in a training subset somewhere; only they need augmented views. None: all.
    say : callable or None
        Told if there are fewer views than the recipe wants.

    Raises
    ------
    SonobreastError
        If a feature is not a finite number; the image is named.
    """
    everyone = np.arange(len(images.names))
    chosen = everyone if trained_on is None else trained_on
    wanted = number_of_views(recipe)
    plan = plan_views(len(everyone), len(chosen), backbone.features, wanted, cache)
    cache = cache if plan.cached else None
    exact, quick = _forward(backbone, torch.float32), _forward(backbone, views_dtype(recipe))
    clean = _features(backbone, exact, images, everyone, recipe, None, cache, progress)
    files = [clean]
    views = torch.zeros(0 if plan.mapped else plan.views, *clean.shape)
    why = plan.why
    for k in range(plan.views):
        try:
            file = _features(backbone, quick, images, chosen, recipe, k, cache, progress)
        except SonobreastError as error:
            full = isinstance(error.__cause__, OSError) and is_full(error.__cause__)
            if k == 0 or not plan.mapped or not full:
                raise
            why = f"the disk is full: {k} of {wanted} augmented views are used"
            break
        if plan.mapped:
            files.append(file)
        else:
            views[k] = torch.from_numpy(file.array)
    used = len(files) - 1 if plan.mapped else len(views)
    if why and say is not None:
        say(why)
    if progress is not None and used < wanted:
        progress((wanted - used) * len(chosen))
    standardise = starts_standardised(backbone, recipe)
    if not plan.mapped:
        return Bank(torch.from_numpy(clean.take(slice(None))), views, standardise)
    first, *rest = (torch.from_numpy(f.array) for f in files)
    return Bank(first, tuple(rest), standardise, tuple(files))


def starts_standardised(backbone: Backbone, recipe: Recipe) -> bool:
    """Whether the head of this backbone begins with `Standardise`."""
    return backbone.cut is not None and recipe.model.cut_norm == "standardise"


def bank_size(images: int, trained_on: int, recipe: Recipe) -> int:
    """How many images `compute_bank` sends through the backbone."""
    return images + number_of_views(recipe) * trained_on


def network_input(
    images: Images, index: NDArray[np.intp], recipe: Recipe, backbone: Backbone, view: int | None, seed: int = 0
) -> Tensor:
    """The network's input for some images: (B, 3, H, W), float32.

    Parameters
    ----------
    view : int or None
        Number of the augmented view; None for the image as it is.
    seed : int
        Of the augmentation.
    """
    mean, std = scaling_constants(recipe.preprocess.scaling, backbone.mean, backbone.std)
    if view is None:
        return torch.from_numpy(scale(images.pixels[index], mean, std))
    unit = torch.from_numpy(scale(images.pixels[index], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    drawn = draw_views([images.names[i] for i in index], view, seed, recipe.augment)
    warped = warp(unit, drawn, recipe.augment)
    if not any(mean) and all(s == 1.0 for s in std):
        return warped
    centre, spread = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (mean, std))
    return warped.sub_(centre).div_(spread)


def augmented_views(images: Images, image: int, recipe: Recipe, n: int) -> list[NDArray[np.uint8]]:
    """An image and its first ``n`` augmented views as pictures, each uint8 (size, size, 3)."""
    unit = torch.from_numpy(scale(images.pixels[[image]], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    boxes = None
    if recipe.augment.lesion_zoom > 0:
        boxes = measure_boxes(images.masks, np.arange(len(images.names))).of(np.asarray([image]))
    shown = [
        warp(unit, draw_views([images.names[image]], view, 0, recipe.augment, boxes), recipe.augment)
        for view in range(n)
    ]
    pictures = [(255.0 * v[0]).round().to(torch.uint8).permute(1, 2, 0).numpy() for v in shown]
    return [images.pixels[image], *pictures]


def views_dtype(recipe: Recipe) -> torch.dtype:
    """Precision in which the augmented views go through a frozen backbone; images as they are go in float32."""
    wanted = recipe.model.precision
    if wanted == "auto":
        return torch.bfloat16 if has_bfloat16() else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _forward(backbone: Backbone, dtype: torch.dtype) -> Forward:
    """`frozen_forward`, made when the first batch comes: where all features are cached, never."""
    made: list[Forward] = []

    def forward(batch: Tensor) -> Tensor:
        if not made:
            made.append(frozen_forward(backbone, batch, dtype))
        return made[0](batch)

    return forward


def _features(
    backbone: Backbone,
    forward: Forward,
    images: Images,
    index: NDArray[np.intp],
    recipe: Recipe,
    view: int | None,
    cache: Path | None,
    progress: Progress | None,
) -> Mapped:
    """Features of one view, (n, F), 0 for images that are not in ``index``; on the disk where there is a cache."""
    shape = (len(images.names), backbone.features)
    if cache is None:
        held = np.zeros(shape, np.float32)
        for rows, features in _computed(backbone, forward, images, index, recipe, view, progress):
            held[rows] = features
        return Mapped.of(held)
    file = cache / f"{'clean' if view is None else f'view-{view:03d}'}.safetensors"
    known = read_view(file, shape)
    if known is not None:
        if progress is not None:
            progress(len(index))
        return known
    write_view(file, shape, _computed(backbone, forward, images, index, recipe, view, progress))
    written = read_view(file, shape)
    if written is None:
        raise SonobreastError("features are read back damaged", file=file, remedy="check the disk")
    return written


def _computed(
    backbone: Backbone,
    forward: Forward,
    images: Images,
    index: NDArray[np.intp],
    recipe: Recipe,
    view: int | None,
    progress: Progress | None,
) -> Iterator[Part]:
    """Rows and their features, batch by batch; at the end an error if some were not finite."""
    broken: list[int] = []
    for start in range(0, len(index), _BATCH):
        part = index[start : start + _BATCH]
        with torch.inference_mode():
            batch = network_input(images, part, recipe, backbone, view)
            features = forward(batch)
            broken += part[~torch.isfinite(features).all(dim=1).numpy()].tolist()
        yield part, features.numpy()
        if progress is not None:
            progress(len(part))
    if broken:
        raise SonobreastError(
            f"the backbone gives features that are no finite numbers for {len(broken)} image(s)",
            file=images.names[broken[0]],
            remedy="look at that image; if it is in order, the weights or the input scaling are not",
        )


def cache_key(backbone: Backbone, images: Images, recipe: Recipe, trained_on: NDArray[np.intp]) -> str:
    """Name of the cache folder: differs when the features would."""
    digest = hashlib.sha256(backbone.sha256().encode())
    settings = [recipe.preprocess.model_dump(), recipe.augment.model_dump(), images.names, trained_on.tolist()]
    settings += [backbone.mean, backbone.std, str(views_dtype(recipe))]
    digest.update(json.dumps(settings).encode())
    pixels = images.pixels
    digest.update(pixels.key.encode() if isinstance(pixels, Pixels) else pixels.tobytes())
    return digest.hexdigest()[:16]


def class_weights(label: Tensor, classes: int, recipe: Recipe) -> Tensor:
    """Weight of each class in the loss, (C,): n / (C n_c), or ones."""
    if recipe.training.class_weights == "none":
        return torch.ones(classes)
    count = torch.bincount(label, minlength=classes).clamp(min=1)
    return len(label) / (classes * count.float())


def weighted_loss(logits: Tensor, label: Tensor, weight: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy as Keras weights it: each image's loss times its class' weight, mean over the batch.

    (PyTorch's own ``weight`` divides by the sum of the weights instead.) ``smoothing`` is the share of the target that
    is spread over all classes; the weight is that of the image's true class even so.
    """
    each = functional.cross_entropy(logits, label, reduction="none", label_smoothing=smoothing)
    return (each * weight[label]).mean()


@dataclass
class Watch:
    """Which epoch was the best and whether to go on; the best one needs no least change, stopping does (as Keras)."""

    settings: EarlyStopping | None
    best: float = float("inf")
    best_epoch: int = 0
    reference: float = float("inf")
    waited: int = 0

    def see(self, row: Epoch) -> bool:
        """Take an epoch's figures; True if it is the best so far."""
        monitor = "validation_loss" if self.settings is None else self.settings.monitor
        value = row.validation_loss if monitor == "validation_loss" else -row.validation_accuracy
        min_delta = 0.0 if self.settings is None else self.settings.min_delta
        if value < self.reference - min_delta:
            self.reference, self.waited = value, 0
        else:
            self.waited += 1
        if value < self.best:
            self.best, self.best_epoch = value, row.epoch
            return True
        return False

    @property
    def over(self) -> bool:
        """Whether patience is at its end."""
        return self.settings is not None and self.waited >= self.settings.patience


def fit_head(
    bank: Bank,
    images: Images,
    train: NDArray[np.intp],
    validation: NDArray[np.intp],
    recipe: Recipe,
    optimizer: str,
    seed: int,
    progress: Progress | None = None,
) -> Fitted:
    """Train one head on the features of a frozen backbone.

    Parameters
    ----------
    bank : Bank
    images : Images
    train, validation : ndarray of int
        Indices of the images of both subsets. No other image's label is looked at.
    recipe : Recipe
    optimizer : str
    seed : int
        Of the head's weights, the order of the images and the dropout masks.
    progress : callable or None
        Called with 1 after each epoch.

    Raises
    ------
    Diverged
        If the loss is not a finite number.
    SonobreastError
        As `check_head_settings`.
    """
    check_head_settings(recipe)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_head(bank.clean.shape[1], len(images.classes), recipe.head, standardise=bank.standardise)
        order = torch.Generator().manual_seed(seed)
        updater = build_optimizer(optimizer, head.parameters(), recipe.training)
        index, held_out = torch.from_numpy(train), torch.from_numpy(validation)
        if isinstance(head[0], Standardise):
            head[0].measure(bank.clean[index])
        weight = class_weights(images.label[index], len(images.classes), recipe)
        history: list[Epoch] = []
        watch = Watch(recipe.training.early_stopping)
        best = copy.deepcopy(head.state_dict())
        for epoch in range(1, recipe.training.epochs + 1):
            view = bank.views[(epoch - 1) % len(bank.views)]
            loss, accuracy = _train_epoch(
                head,
                updater,
                view[index],
                images.label[index],
                weight,
                torch.split(torch.randperm(len(index), generator=order), recipe.training.batch_size),
            )
            head.eval()
            with torch.inference_mode():
                logits = head(bank.clean[held_out])
            row = epoch_row(epoch, loss, accuracy, logits, images.label[held_out])
            history.append(row)
            if progress is not None:
                progress(1)
            if watch.see(row):
                best = copy.deepcopy(head.state_dict())
            if watch.over:
                break
        head.load_state_dict(best)
        head.eval()
        with torch.inference_mode():
            probability = head(bank.clean).softmax(dim=1).numpy()
    state = {f"head.{k}": v for k, v in best.items()}
    return Fitted(state, tuple(history), watch.best_epoch, probability, time.perf_counter() - started)


def _train_epoch(
    head: nn.Module,
    updater: torch.optim.Optimizer,
    features: Tensor,
    label: Tensor,
    weight: Tensor,
    batches: Sequence[Tensor],
) -> tuple[float, float]:
    head.train()
    loss_sum, hits = 0.0, 0
    for batch in batches:
        logits = head(features[batch])
        loss = weighted_loss(logits, label[batch], weight)
        updater.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        updater.step()
        loss_sum += float(loss.detach()) * len(batch)
        hits += int((logits.detach().argmax(dim=1) == label[batch]).sum())
    return loss_sum / len(label), hits / len(label)


def epoch_row(
    epoch: int, loss: float, accuracy: float, logits: Tensor, label: Tensor, masks: MaskFigures | None = None
) -> Epoch:
    """The figures of an epoch, from those of training and the logits (n, C) of the validation subset.

    With ``masks`` the validation loss is that of both tasks.

    Raises
    ------
    Diverged
        If a loss is not a finite number.
    """
    row = Epoch(
        epoch=epoch,
        train_loss=loss,
        train_accuracy=accuracy,
        validation_loss=float(functional.cross_entropy(logits, label)) * (masks.weight if masks else 1.0)
        + (masks.loss if masks else 0.0),
        validation_accuracy=float((logits.argmax(dim=1) == label).float().mean()),
        validation_dice=masks.dice if masks else None,
    )
    check_finite(row)
    return row


@dataclass(frozen=True)
class MaskFigures:
    """Of the validation subset: weight of the classification's loss, the masks' loss, mean Dice (None: no lesion)."""

    weight: float
    loss: float
    dice: float | None


def check_finite(row: Epoch) -> None:
    """Raise Diverged if a loss of this epoch is not a finite number."""
    for name in ("train_loss", "validation_loss"):
        value = getattr(row, name)
        if not np.isfinite(value):
            raise Diverged(
                f"the {name.replace('_', ' ')} became {value} in epoch {row.epoch}",
                remedy="lower the rate with --set training.learning_rate=..., or look at the input scaling",
            )
