"""Grad-CAM without automatic differentiation: the Jacobian of a head in closed form, as a graph that exporters take.

Grad-CAM (Selvaraju 2017, arXiv:1610.02391, equations 1 and 2) weighs the channels of the last feature map A (K, h, w)
by the gradient of a logit, averaged over the places: alpha_ck = mean_ij d y_c / d A_kij and
L_c = ReLU(sum_k alpha_ck A_k).
Where everything behind A sees no more of it than its mean over the places, d y_c / d A_kij is the same at all places,
namely J_ck / (h w) with J = d y / d mean(A), and J is a product of small matrices:

* linear layer: J W
* ReLU, leaky ReLU: J times 1 or the slope, feature by feature, as the layer's input is positive or not
* standardisation by fixed statistics: J / spread
* layer norm, v = (x - m) / s, out = g v + b: with u = J g, (u - mean(u) - v mean(u v)) / s
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonobreast.models.heads import Standardise
from sonobreast.models.joint import JointHead
from sonobreast.models.zoo import Backbone

_PASSIVE = (nn.Dropout, nn.Identity)
_KNOWN = (nn.Linear, nn.ReLU, nn.LeakyReLU, nn.LayerNorm, Standardise, *_PASSIVE)
_NO_MAP = "between its last feature map and its features stands more than a mean and dense layers"
Tape = list[tuple[nn.Module, Tensor]]


def why_no_map(backbone: Backbone, head: nn.Module, size: int) -> str:
    """Why there is no Grad-CAM in closed form; empty where there is. The backbone's own last layers are tried out.

    Parameters
    ----------
    backbone : Backbone
    head : nn.Module
    size : int
        Side of the input in pixels.
    """
    if not isinstance(head, JointHead) and _layers(head) is None:
        return f"its head is none of layers whose derivative is written down ({type(head).__name__})"
    with torch.no_grad():
        last = backbone.seen(torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)))[2]
        if not isinstance(last, Tensor) or last.ndim != 4:
            return "its pooled features are not made of one last feature map"
        if backbone.cut is not None:
            return ""
        tried = torch.randn(2, *last.shape[1:], generator=torch.Generator().manual_seed(1))
        dense = _dense(backbone)
        if dense is None:
            return _NO_MAP
        wanted = backbone.network.forward_head(tried)  # type: ignore[operator]
        found = _forward(dense, _seen_by_the_pool(backbone, tried).mean((2, 3)))[0]
        same = found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return "" if same else _NO_MAP


def grad_cam(
    backbone: Backbone, head: nn.Module, pooled: Tensor, maps: Sequence[Tensor], last: Tensor, *, joins: bool
) -> Tensor:
    """Grad-CAM of every class on the last feature map.

    Parameters
    ----------
    backbone, head
        For which `why_no_map` is empty; in inference mode.
    pooled : Tensor, (B, F)
    maps : sequence of Tensor, (B, C_i, H_i, W_i)
    last : Tensor, (B, K, h, w)
        All three from `Backbone.seen`.
    joins : bool
        Whether the last of ``maps`` is ``last`` itself, so that a joint head sees it twice (`is_last_stage`).

    Returns
    -------
    Tensor, (B, C, h, w)
        Of the logits, not negative, not normalised.
    """
    attended = last.float() if backbone.cut is not None else _seen_by_the_pool(backbone, last).float()
    vector = attended.mean((2, 3))  # (B, K)
    dense = ([] if backbone.cut is not None else _dense(backbone)) or []
    features, tape = _forward(dense, vector)
    if isinstance(head, JointHead):
        jacobian = _joint(head, features, [m.float().mean((2, 3)) for m in maps], tape, joins=joins)
    else:
        logits, behind = _forward(_layers(head) or [], features)
        jacobian = _pull(tape, _pull(behind, _one_for_each(logits)))
    height, width = attended.shape[2:]
    weights = jacobian / (height * width)  # (B, C, K)
    # relu(sum_k alpha_ck A_k)
    found = functional.relu(weights @ attended.flatten(2))
    return found.reshape(*found.shape[:2], height, width)


def is_last_stage(backbone: Backbone, size: int) -> bool:
    """Whether the coarsest map that a joint head pools is the very map that the pooled features are made of."""
    with torch.no_grad():
        _, maps, last = backbone.seen(torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return bool(maps) and maps[-1].shape == last.shape and torch.equal(maps[-1], last)


def _joint(head: JointHead, pooled: Tensor, means: list[Tensor], dense: Tape, *, joins: bool) -> Tensor:
    """Jacobian (B, C, K): short-cuts are added, so that of the sum goes back through each that sees the last map."""
    parts = [_forward(_layers(s) or [], v) for s, v in zip(head.shortcuts, [*means, pooled], strict=True)]
    together = parts[0][0]
    for vector, _ in parts[1:]:
        together = together + vector
    logits, behind = _forward([nn.ReLU(), *(_layers(head.classifier) or [])], together)
    back = _pull(behind, _one_for_each(logits))
    jacobian = _pull(dense, _pull(parts[-1][1], back))
    return jacobian + _pull(parts[-2][1], back) if joins else jacobian


def _seen_by_the_pool(backbone: Backbone, last: Tensor) -> Tensor:
    """The map that is averaged: behind the attention, where a network has one before its pooling (CSA-Net)."""
    attention = getattr(getattr(backbone.network, "global_pool", None), "attention", None)
    return last if not isinstance(attention, nn.Module) else attention(last)


def _dense(backbone: Backbone) -> list[nn.Module] | None:
    """Layers of the network between the mean of its last map and its features; None where they are not known."""
    own = getattr(backbone.network, "dense", None)
    return [] if own is None else _layers(own)


def _layers(module: nn.Module) -> list[nn.Module] | None:
    if isinstance(module, nn.Sequential):
        inside = [_layers(m) for m in module]
        return None if any(i is None for i in inside) else [m for i in inside for m in i or []]
    return [module] if isinstance(module, _KNOWN) else None


def _forward(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, Tape]:
    tape: Tape = []
    for layer in layers:
        tape.append((layer, x))
        x = functional.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
    return x, tape


def _one_for_each(logits: Tensor) -> Tensor:
    """d y / d y for each image: (B, C, C)."""
    n = logits.shape[1]
    return torch.eye(n, dtype=logits.dtype) + torch.zeros_like(logits)[:, :, None]


def _pull(tape: Tape, jacobian: Tensor) -> Tensor:
    """The Jacobian (B, C, out) of what follows the layers to (B, C, in), that of what follows their input."""
    for layer, x in reversed(tape):
        if isinstance(layer, nn.Linear):
            jacobian = jacobian @ layer.weight
        elif isinstance(layer, nn.ReLU):
            jacobian = jacobian * (x > 0).to(x.dtype)[:, None]
        elif isinstance(layer, nn.LeakyReLU):
            positive = (x > 0).to(x.dtype)
            jacobian = jacobian * (positive + layer.negative_slope * (1.0 - positive))[:, None]
        elif isinstance(layer, Standardise):
            jacobian = jacobian / layer.std
        elif isinstance(layer, nn.LayerNorm):
            centred = x - x.mean(1, keepdim=True)
            spread = torch.sqrt((centred * centred).mean(1, keepdim=True) + layer.eps)
            v = (centred / spread)[:, None]
            u = jacobian * layer.weight
            jacobian = (u - u.mean(2, keepdim=True) - v * (u * v).mean(2, keepdim=True)) / spread[:, None]
    return jacobian
