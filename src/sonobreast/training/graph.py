"""Runs as one graph: what an ONNX file of a bundle computes, as a PyTorch module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonobreast.config import Preprocess, Recipe
from sonobreast.data.preprocess import scaling_constants
from sonobreast.models.closed_form import grad_cam, is_last_stage, why_no_map
from sonobreast.models.joint import JointHead
from sonobreast.models.mirror import mean_logits
from sonobreast.models.zoo import Backbone, spread_levels
from sonobreast.training.fit import TrainedNetwork


@dataclass(frozen=True)
class Seen:
    """What a member says of images."""

    logits: Tensor
    cam: Tensor | None
    mask: Tensor | None
    features: Tensor


class Member(nn.Module):
    """One run: scaling, network, test-time flips, and the parts that a `TrainedNetwork` does not give.

    Attributes
    ----------
    no_map : str
        Why it has no Grad-CAM; empty where it has one.
    levels : list of int
        Feature maps whose means are its features (`sonobreast.models.zoo.spread_levels`); empty: its pooled vector is.
    features : int
        Their number.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: TrainedNetwork, settings: Preprocess) -> None:
        super().__init__()
        self.backbone, self.head, self.flips = network.backbone, network.head, network.flips
        mean, std = scaling_constants(settings.scaling, network.backbone.mean, network.backbone.std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.no_map = why_no_map(self.backbone, self.head, settings.size)
        self.levels, self.features = _means(self.backbone, settings.size)
        self.joins = isinstance(self.head, JointHead) and is_last_stage(self.backbone, settings.size)

    def forward(self, pixels: Tensor) -> Seen:
        """Pixels (B, 3, S, S) in [0, 1]. Masks are probabilities; maps and masks of mirror images are mirrored back."""
        images = (pixels - self.mean) / self.std
        n = images.shape[0]
        # An image and its mirror image go through together: each weight stands in the graph once.
        both = torch.cat([images, images.flip(3)]) if self.flips else images
        pooled, maps, last = self.backbone.seen(both, self.levels)
        joint = isinstance(self.head, JointHead)
        logits = self.head.classify(pooled, maps) if joint else self.head(pooled)  # type: ignore[operator]
        mask = self.head.segment(both, maps).sigmoid() if joint else None  # type: ignore[operator]
        cam = None if self.no_map else grad_cam(self.backbone, self.head, pooled, maps, last, joins=self.joins)
        if self.flips:
            logits = mean_logits(logits[:n], logits[n:])
            mask = None if mask is None else (mask[:n] + mask[n:].flip(3)) / 2
            cam = None if cam is None else (cam[:n] + cam[n:].flip(3)) / 2
        features = torch.cat([m[:n].float().mean((2, 3)) for m in maps], 1) if maps else pooled[:n].float()
        return Seen(logits, cam, mask, features)


class Together(nn.Module):
    """Members as one graph.

    Gives ``logits`` (B, C), logarithms of the mean of the members' probabilities, weighted by their shares;
    ``features`` (B, F), those of all members one behind the other, each as it sees the image itself: the mean of every
    channel of the last map of each scale, which tells pictures of another kind; and where there are any, ``cam``
    (B, C, h, w), the mean of the
    members' Grad-CAM maps on their last feature map, and ``mask`` (B, 1, S, S), the mean of their probabilities. Of a
    joint network, whose class is read from every stage, that map shows the part of the last one only.

    Maps are averaged as they are, in units of logits, with those of the mirror image: normalised one by one, a member
    without evidence for a class would count as much as one that has it. Maps of other sizes are brought to the finest.
    """

    def __init__(self, members: Sequence[Member], shares: Sequence[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.shares = [float(s) for s in shares]
        self.cards = list(members)  # as they are called, for whoever describes them
        self.outputs = ["logits", "features"]
        self.outputs += ["cam"] if any(not m.no_map for m in members) else []
        self.outputs += ["mask"] if any(isinstance(m.head, JointHead) for m in members) else []

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (B, 3, S, S) in [0, 1] to ``outputs``, in that order."""
        seen: list[Seen] = [member(pixels) for member in self.members]
        logits = seen[0].logits.log_softmax(1) + math.log(self.shares[0])
        for one, share in zip(seen[1:], self.shares[1:], strict=True):
            logits = torch.logaddexp(logits, one.logits.log_softmax(1) + math.log(share))
        found = [logits, torch.cat([one.features for one in seen], 1)]
        cams = [one.cam for one in seen if one.cam is not None]
        if cams:
            finest = max((c.shape[2:] for c in cams), key=lambda s: int(s[0]) * int(s[1]))
            found.append(_mean([_resized(c, finest) for c in cams]))
        masks = [one.mask for one in seen if one.mask is not None]
        if masks:
            found.append(_mean(masks))
        return tuple(found)


def together(networks: Sequence[tuple[TrainedNetwork, Recipe]], shares: Sequence[float] | None = None) -> Together:
    """Networks of finished runs, with the recipes that say how their input is scaled, and their shares of the mean.

    Shares sum to 1; None: all alike.
    """
    alike = [1.0 / len(networks)] * len(networks)
    return Together([Member(network, recipe.preprocess) for network, recipe in networks], shares or alike).eval()


@torch.no_grad()
def _means(backbone: Backbone, size: int) -> tuple[list[int], int]:
    """Maps whose means are the features, and their number; no maps where the network gives others with them."""
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    plain = backbone.seen(images)[0]
    levels = spread_levels(backbone)
    if levels:
        try:
            pooled, maps, _ = backbone.seen(images, levels)
        except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return [], plain.shape[1]
        whole = all(m.ndim == 4 for m in maps) and len(maps) == len(levels)
        if whole and torch.allclose(pooled, plain, rtol=1e-4, atol=1e-5):
            return levels, sum(m.shape[1] for m in maps)
    return [], plain.shape[1]


def _mean(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


def _resized(values: Tensor, size: torch.Size) -> Tensor:
    if values.shape[2:] == size:
        return values
    return functional.interpolate(values, size, mode="bilinear", align_corners=False)
