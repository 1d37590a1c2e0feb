"""What training leaves, its loss, and how an epoch is judged: the same for heads on features and for whole networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sonobreast.config import EarlyStopping, Recipe
from sonobreast.errors import Diverged
from sonobreast.models.classical import Kept
from sonobreast.records import Row

Progress = Callable[[int], None]


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


@dataclass(frozen=True)
class MaskFigures:
    """Of the validation subset: weight of the classification's loss, the masks' loss, mean Dice (None: no lesion)."""

    weight: float
    loss: float
    dice: float | None


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


def check_finite(row: Epoch) -> None:
    """Raise Diverged if a loss of this epoch is not a finite number."""
    for name in ("train_loss", "validation_loss"):
        value = getattr(row, name)
        if not np.isfinite(value):
            raise Diverged(
                f"the {name.replace('_', ' ')} became {value} in epoch {row.epoch}",
                remedy="lower the rate with --set training.learning_rate=..., or look at the input scaling",
            )


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
