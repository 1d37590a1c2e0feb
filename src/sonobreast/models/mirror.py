"""Test-time flips: what a network says of an image and of its mirror image, averaged.

A breast has no left and right in a scan, so the mirror image has the same class and the mirrored outline. The mean of
probabilities is given back as logits, so that whoever takes a softmax or a sigmoid of them gets the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Outputs = tuple[Tensor, Tensor | None]


def mean_logits(one: Tensor, two: Tensor) -> Tensor:
    """Logits (B, C) whose softmax is the mean of two softmax outputs: the mean's logarithm."""
    return torch.logaddexp(one.log_softmax(1), two.log_softmax(1)) - math.log(2.0)


def mean_mask(one: Tensor, two: Tensor) -> Tensor:
    """Logits of a mask, any shape, whose sigmoid is the mean of two: log of p / (1 - p), without rounding p."""
    inside = torch.logaddexp(functional.logsigmoid(one), functional.logsigmoid(two))
    outside = torch.logaddexp(functional.logsigmoid(-one), functional.logsigmoid(-two))
    return inside - outside


def with_mirror(see: Callable[[Tensor], Outputs], images: Tensor) -> Outputs:
    """What ``see`` gives for images, averaged with what it gives for their mirror images.

    Parameters
    ----------
    see : callable
        Images (B, 3, H, W) to the logits of the class (B, C) and of the mask (B, 1, H, W) or None.
    images : Tensor, (B, 3, H, W)

    Returns
    -------
    logits : Tensor, (B, C)
        Logarithms of the mean probabilities. An image and its mirror image get the same.
    mask : Tensor, (B, 1, H, W), or None
        The mirror image's mask is mirrored back; that of an image's mirror image is the image's, mirrored.
    """
    (logits, mask), (other_logits, other_mask) = see(images), see(images.flip(3))
    both = None if mask is None or other_mask is None else mean_mask(mask, other_mask.flip(3))
    return mean_logits(logits, other_logits), both
