"""The same network with randomised weights: a map that does not change then says nothing about what was learned.

Adebayo 2018, "Sanity checks for saliency maps", NeurIPS 31: weights are randomised from the output down, in a cascade.
Here the values of every tensor are permuted, so that their sizes stay; the batch norms' statistics are then measured
anew on the images at hand, because with the old ones activations would vanish and maps with them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sonobreast.training.fit import TrainedNetwork

STEPS = ("head", "head and upper half", "all")
"""What is randomised: the head (with a decoder), also the later half of the backbone's tensors, everything."""


def randomised(network: TrainedNetwork, step: str, images: Tensor, *, seed: int = 0) -> TrainedNetwork:
    """A copy with permuted weights.

    Parameters
    ----------
    network : TrainedNetwork
        It is not changed.
    step : str
        One of `STEPS`.
    images : Tensor, float32, (B, 3, S, S)
        Scaled; batch norms that follow randomised weights are measured on them, where B is at least 2.
    seed : int
    """
    other: TrainedNetwork = copy.deepcopy(network)
    body = list(other.backbone.network.parameters())
    below = {"head": len(body), "head and upper half": len(body) // 2, "all": 0}[step]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*body[below:], *other.head.parameters()]:
            flat = tensor.reshape(-1)
            tensor.copy_(flat[torch.randperm(len(flat), generator=generator)].reshape(tensor.shape))
        norms = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
        if norms and len(images) > 1:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean over what follows
                norm.train()
            other(images)
            other.segment(images)
    return other.eval()
