"""The same network with randomised weights: a map that does not change then says nothing about what was learned.

Adebayo 2018, "Sanity checks for saliency maps", NeurIPS 31: weights are randomised from the output down, in a cascade.
Here the values of every tensor are permuted, so that their sizes stay; the statistics of the batch norms behind them
are then measured anew on the images at hand, because with the old ones activations would vanish and maps with them.
What comes before stays as it was trained: else a map would change with the few images, not with the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

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
    used = other.backbone.used_tensors()  # those behind a cut change nothing
    body = [tensor for name, tensor in other.backbone.network.named_parameters() if name in used]
    below = {"head": len(body), "head and upper half": len(body) // 2, "all": 0}[step]
    generator = torch.Generator().manual_seed(seed)
    chosen = [*body[below:], *other.head.parameters()]
    with torch.no_grad():
        for tensor in chosen:
            flat = tensor.reshape(-1)
            tensor.copy_(flat[torch.randperm(len(flat), generator=generator)].reshape(tensor.shape))
        norms = _norms_behind(other, chosen)
        if norms and len(images) > 1:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean over what follows
                norm.train()
            other(images)
            other.segment(images)
    return other.eval()


def _norms_behind(network: TrainedNetwork, chosen: Sequence[Tensor]) -> list[nn.BatchNorm2d]:
    """Batch norms that come with or after the first of some tensors, in the order in which modules are registered."""
    changed = {id(tensor) for tensor in chosen}
    behind, found = False, []
    for module in network.modules():
        behind = behind or any(id(tensor) in changed for tensor in module.parameters(recurse=False))
        if behind and isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            found.append(module)
    return found
