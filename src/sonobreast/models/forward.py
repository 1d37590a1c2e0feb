"""The fastest way that this machine has to send many images through a frozen network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sonobreast.models.zoo import Backbone

Forward = Callable[[Tensor], Tensor]


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AMX or AVX-512 BF16)."""
    cpu = torch.cpu
    found = (getattr(cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(bool(test()) for test in found if test is not None)


def frozen_forward(backbone: Backbone, example: Tensor, dtype: torch.dtype = torch.float32) -> Forward:
    """The backbone in inference mode with its batch norms folded into the convolutions, channels last.

    Tracing and freezing (`torch.jit`) take the network for what it does with ``example``; a network that cannot be
    traced, or gives other features then, is used as it is. In float32 the features are those of the plain network up
    to rounding (1e-5 of their size).

    Parameters
    ----------
    backbone : Backbone
        It is copied, not changed.
    example : Tensor, float32, (B, 3, H, W)
    dtype : torch.dtype
        float32 or bfloat16.

    Returns
    -------
    callable
        (B, 3, H, W) float32 to features (B, F) float32.
    """
    network = copy.deepcopy(backbone).eval().to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def plain(images: Tensor) -> Tensor:
        features: Tensor = network(images.to(dtype=dtype, memory_format=torch.channels_last))
        return features.float()

    given = example.to(dtype=dtype, memory_format=torch.channels_last)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.freeze(torch.jit.trace(network, given, check_trace=False))  # type: ignore[no-untyped-call]
            for _ in range(2):  # the profiling executor optimises on its second call
                found = traced(given).float()
            reference = plain(example)
    except Exception:  # whatever a network's own code brings: it then runs untraced
        return plain
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    if float((found - reference).abs().max()) > tolerance * max(1.0, float(reference.abs().max())):
        return plain

    def fast(images: Tensor) -> Tensor:
        features: Tensor = traced(images.to(dtype=dtype, memory_format=torch.channels_last))
        return features.float()

    return fast
