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

from sonobreast.config import Recipe
from sonobreast.data.mapped import Mapped
from sonobreast.data.pixels import Pixels
from sonobreast.errors import SonobreastError
from sonobreast.models.forward import Forward, frozen_forward, has_bfloat16
from sonobreast.models.heads import Standardise, build_head
from sonobreast.models.zoo import Backbone
from sonobreast.records import is_full
from sonobreast.training.fitted import Epoch, Fitted, Progress, Watch, class_weights, epoch_row, weighted_loss
from sonobreast.training.head_settings import check_head_settings
from sonobreast.training.images import Images, network_input
from sonobreast.training.optimizers import build_optimizer
from sonobreast.training.view_file import Part, plan_views, read_view, write_view

_BATCH = 32


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
