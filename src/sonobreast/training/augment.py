"""Random views of training images, drawn for each image and view from a seed of its own and warped in batches.

The geometry is that of Keras' ImageDataGenerator (rotation, shift, shear, zoom of each axis, then flips), because the
published recipes were made with it. torch's ``grid_sample`` draws the views: it fills outside the image with the
nearest edge, which torchvision's affine transform cannot, and takes another matrix for each image of the batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sonobreast.config import Augment
from sonobreast.errors import SonobreastError
from sonobreast.training.appearance import Look, change_look, draw_look
from sonobreast.training.lesion_window import LesionBoxes, draw_windows

_PADDING = {"nearest": "border", "reflect": "reflection", "constant": "zeros"}


@dataclass(frozen=True)
class Views:
    """Drawn changes for a batch of images.

    Attributes
    ----------
    matrix : Tensor, float32, (B, 2, 3)
        From output to input positions, both in [-1, 1] (the convention of ``affine_grid``).
    gain : Tensor, float32, (B,)
        Factor on the grey values.
    look : Look or None
        Further changes of the grey values.
    """

    matrix: Tensor
    gain: Tensor
    look: Look | None = None


def draw_views(
    names: Sequence[str], view: int, seed: int, settings: Augment, boxes: LesionBoxes | None = None
) -> Views:
    """Draw one view of each image.

    The draw depends on the image's name, the view's number and the seed alone: not on the order of the images, the
    batch, or what was drawn before. So a bank of views can be made once and shared. (With ``lesion_zoom`` it depends on
    the training subset too, whose lesions are the pool.)

    Parameters
    ----------
    names : sequence of str
        The images' names.
    view : int
        Number of the view, from 0.
    seed : int
    settings : Augment
    boxes : LesionBoxes or None
        Of these images; needed for ``lesion_zoom``.

    Raises
    ------
    SonobreastError
        If the settings zoom in on lesions and there are no boxes.
    """
    u = np.stack(
        [np.random.default_rng([seed, view, zlib.crc32(n.encode())]).uniform(-1.0, 1.0, 9) for n in names]
    )  # (B, 9), each in [-1, 1)
    angle = np.deg2rad(settings.rotation) * u[:, 0]
    shear = np.deg2rad(settings.shear) * u[:, 1]
    shift = 2.0 * settings.shift * u[:, 2:4]  # the side is 2 in these units
    zoom = 1.0 + settings.zoom * u[:, 4:6]
    flip = np.where(
        np.stack([settings.horizontal_flip & (u[:, 6] < 0), settings.vertical_flip & (u[:, 7] < 0)], axis=1), -1.0, 1.0
    )
    more = _further(names, view, seed)
    ratio = (1.0 + settings.aspect) ** (0.5 * more[:, 0])
    zoom = zoom * np.stack([ratio, 1.0 / ratio], axis=1)
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    sheared = np.stack([one, -np.sin(shear), zero, np.cos(shear)], axis=1).reshape(-1, 2, 2)
    linear = rotation @ sheared * (zoom * flip)[:, None, :]
    matrix = np.concatenate([linear, rotation @ shift[:, :, None]], axis=2)
    if settings.lesion_zoom > 0:
        if boxes is None:
            raise SonobreastError(
                "augment.lesion_zoom needs lesion masks, and there are none", remedy="set augment.lesion_zoom=0"
            )
        scale, centre = draw_windows(more[:, 1:6], boxes, settings)
        matrix *= scale[:, None, None]
        matrix[:, :, 2] += centre
    return Views(
        torch.from_numpy(matrix.astype(np.float32)),
        torch.from_numpy((1.0 + settings.brightness * u[:, 8]).astype(np.float32)),
        draw_look(more[:, 6:12], [_key(n, view, seed, 2) for n in names], settings),
    )


def _key(name: str, view: int, seed: int, stream: int) -> list[int]:
    """Seed of one of an image's further streams; the first nine draws have ``[seed, view, name]`` for themselves."""
    return [seed, view, zlib.crc32(name.encode()), stream]


def _further(names: Sequence[str], view: int, seed: int) -> NDArray[np.float64]:
    """Draws of what was added later, (B, 12) in [-1, 1): 0 aspect, 1-5 window, 6-11 look. New ones go behind."""
    return np.stack([np.random.default_rng(_key(n, view, seed, 1)).uniform(-1.0, 1.0, 12) for n in names])


def warp(images: Tensor, views: Views, settings: Augment) -> Tensor:
    """Show images under drawn views.

    Parameters
    ----------
    images : Tensor, float32, (B, C, H, W), grey values in [0, 1]
    views : Views
    settings : Augment

    Returns
    -------
    Tensor, float32, (B, C, H, W), in [0, 1]
    """
    matrix, gain = views.matrix.to(images.device), views.gain.to(images.device)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    warped = functional.grid_sample(
        images, grid, mode="bilinear", padding_mode=_PADDING[settings.fill], align_corners=False
    )
    if views.look is not None:
        warped = change_look(warped, views.look.to(images.device), grid[..., 1][:, None], settings)
    return (warped * gain[:, None, None, None]).clamp_(0.0, 1.0) if settings.brightness > 0 else warped
