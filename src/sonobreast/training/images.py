"""The decoded images of a study, and what a network is shown of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonobreast.config import Augment, Recipe
from sonobreast.data.masks import Masks
from sonobreast.data.pixels import Pixels
from sonobreast.data.preprocess import scale, scaling_constants
from sonobreast.errors import SonobreastError
from sonobreast.models.zoo import Backbone
from sonobreast.training.augment import draw_views, warp
from sonobreast.training.lesion_window import measure_boxes


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
    filled : Pixels or None
        The same images with burned-in marks filled, for ``augment.inpaint_marks``.
    """

    pixels: NDArray[np.uint8] | Pixels
    names: tuple[str, ...]
    label: Tensor
    classes: tuple[str, ...]
    masks: Masks | None = None
    filled: NDArray[np.uint8] | Pixels | None = None


def shown_pixels(
    images: Images, index: NDArray[np.intp], view: int | None, seed: int, settings: Augment
) -> NDArray[np.uint8]:
    """Images before they are warped: as they are, or under a view with their marks filled now and then.

    The draw depends on the image's name, the view's number and the seed alone, as in `draw_views`.

    Returns
    -------
    ndarray, uint8, (B, size, size, 3)
    """
    taken = images.pixels[index]
    if view is None or settings.inpaint_marks == 0:
        return taken
    if images.filled is None:
        raise SonobreastError("augment.inpaint_marks needs the filled images", remedy="this is a fault: report it")
    names = [images.names[i] for i in index]
    drawn = [np.random.default_rng([seed, view, zlib.crc32(n.encode()), 3]).random() for n in names]
    chosen = np.asarray(drawn) < settings.inpaint_marks
    if chosen.any():
        taken[chosen] = images.filled[index[chosen]]
    return taken


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
    taken = shown_pixels(images, index, view, seed, recipe.augment)
    unit = torch.from_numpy(scale(taken, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
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
