"""Classification heads on pooled features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sonobreast.config import Head


class Standardise(nn.Module):
    """Bring each feature to mean 0 and spread 1 with fixed statistics; stands where a cut network lost its last norm.

    Buffers ``mean`` and ``std`` (F,) come from training images only (`measure`).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def measure(self, features: Tensor) -> None:
        """Take the statistics of (n, F) features; one that does not vary is left at spread 1."""
        spread = features.std(dim=0, unbiased=False)
        self.mean.copy_(features.mean(dim=0))
        self.std.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B, F)."""
        return (features - self.mean) / self.std


def build_head(features: int, classes: int, settings: Head, *, standardise: bool = False) -> nn.Sequential:
    """Dense layers with ReLU, dropout, and a last linear layer that gives logits: (B, features) to (B, classes).

    With ``hidden: [128]`` and ``dropout: 0.3`` it is the head of Aulia 2026 (section 3.2) without its softmax, which
    is in the loss. Weights are drawn from the current random state.
    """
    layers: list[nn.Module] = [Standardise(features)] if standardise else []
    width = features
    for hidden in settings.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    if settings.dropout > 0:
        layers.append(nn.Dropout(settings.dropout))
    layers.append(nn.Linear(width, classes))
    head = nn.Sequential(*layers)
    if settings.init == "glorot":
        for layer in head:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    return head
