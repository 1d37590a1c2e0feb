"""Batches of augmented images for fine-tuning, made in a second thread while the network trains on the one before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonobreast.config import Augment, Recipe
from sonobreast.data.preprocess import scaling_constants
from sonobreast.models.zoo import Backbone
from sonobreast.training.augment import Views, draw_views, warp
from sonobreast.training.images import Images, shown_pixels
from sonobreast.training.lesion_window import measure_boxes

Made = tuple[Tensor, Tensor | None]
Batch = tuple[Tensor, Tensor, Tensor | None]
"""Indices (B,), inputs (B, 3, H, W), and for a network that segments the masks (B, 1, H, W)."""


class Inputs:
    """The network's inputs, computed on the device on which it trains; equal to `images.network_input`.

    On a GPU the pixels are brought there once, as bytes, if they take less than half of its free memory.

    Parameters
    ----------
    seed : int
        Of the augmentation.
    train : ndarray of int or None
        The training subset, whose lesions ``augment.lesion_zoom`` may borrow; None: all images.

    Raises
    ------
    SonobreastError
        As `measure_boxes`.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        backbone: Backbone,
        seed: int,
        device: torch.device,
        train: NDArray[np.intp] | None = None,
    ) -> None:
        self.images, self.recipe, self.seed, self.device = images, recipe, seed, device
        pool = np.arange(len(images.names)) if train is None else train
        self.boxes = measure_boxes(images.masks, pool) if recipe.augment.lesion_zoom > 0 else None
        self.masks = None if backbone.decoder is None else images.masks
        mean, std = scaling_constants(recipe.preprocess.scaling, backbone.mean, backbone.std)
        self.mean, self.std = (
            torch.tensor(v, dtype=torch.float32, device=device).view(1, 3, 1, 1) for v in (mean, std)
        )
        self.label = images.label.to(device)
        self.pixels: Tensor | None = None
        as_they_are = recipe.augment.inpaint_marks == 0  # else views begin with one of two pictures
        if (
            as_they_are
            and device.type == "cuda"
            and 2 * math.prod(images.pixels.shape) < torch.cuda.mem_get_info(device)[0]
        ):
            self.pixels = torch.from_numpy(images.pixels[np.arange(len(images.names))]).to(device)

    def __call__(self, index: NDArray[np.intp], view: int | None) -> Tensor:
        """Images under a view, or as they are (None): (B, 3, H, W), float32, channels last.

        Drawn and computed by what depends on each image alone, so in any batch and thread the same.
        """
        if self.pixels is not None:
            taken = self.pixels[torch.from_numpy(index).to(self.device)]
        else:
            given = shown_pixels(self.images, index, view, self.seed, self.recipe.augment)
            taken = torch.from_numpy(given).to(self.device)
        unit = taken.permute(0, 3, 1, 2).float().div_(255.0)  # channels last in memory, as the bytes are
        if view is not None:
            drawn = self._drawn(index, view, self.recipe.augment)
            unit = warp(unit, drawn, self.recipe.augment).contiguous(memory_format=torch.channels_last)
        return unit.sub_(self.mean).div_(self.std)

    def with_masks(self, index: NDArray[np.intp], view: int | None) -> Made:
        """Images and, for a network that segments, their masks under the same view: float32 (B, 1, H, W) in [0, 1].

        The mask of an image of which none is known is 0.
        """
        if self.masks is None:
            return self(index, view), None
        mask = torch.from_numpy(self.masks.resized(index)).to(self.device)[:, None].float()
        if view is not None:
            settings = self.recipe.augment.geometry()
            mask = warp(mask, self._drawn(index, view, settings), settings)
        return self(index, view), mask

    def _drawn(self, index: NDArray[np.intp], view: int, settings: Augment) -> Views:
        boxes = None if self.boxes is None else self.boxes.of(index)
        return draw_views([self.images.names[i] for i in index], view, self.seed, settings, boxes)


class Ahead:
    """Goes through batches of indices, each epoch in an order of its own, and makes the inputs one batch ahead.

    Parameters
    ----------
    order : iterable
        Batches of indices, (B,), int64; gone through once an epoch, in the calling thread.
    make : callable
        Indices to inputs and masks; called in a second thread. What it raises is raised to whoever takes that batch.
    """

    def __init__(self, order: Any, make: Callable[[NDArray[np.intp]], Made]) -> None:
        self.order = order
        self.make = make

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1, "augment", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending: tuple[Tensor, Future[Made]] | None = None
            try:
                for index in self.order:
                    following = (index, pool.submit(self.make, index.numpy()))
                    if pending is not None:
                        yield pending[0], *pending[1].result()
                    pending = following
                if pending is not None:
                    yield pending[0], *pending[1].result()
            finally:
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(threads)  # the thread's own setting would be inherited by later ones


def parts(index: NDArray[np.intp], size: int = 32) -> Sequence[NDArray[np.intp]]:
    """Indices in parts of about ``size``."""
    return np.array_split(index, max(1, len(index) // size))
