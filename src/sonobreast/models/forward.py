"""The fastest way that this machine has to send many images through a frozen network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from sonobreast.models.fused import fuse
from sonobreast.models.memory import keep_freed_memory
from sonobreast.models.zoo import Backbone

Forward = Callable[[Tensor], Tensor]


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AMX or AVX-512 BF16)."""
    cpu = torch.cpu
    found = (getattr(cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(bool(test()) for test in found if test is not None)


def frozen_forward(backbone: Backbone, example: Tensor, dtype: torch.dtype = torch.float32) -> Forward:
    """The backbone in inference mode with batch norms and activations done inside the convolutions, channels last.

    Two ways are tried on two of the images: `fuse`, else tracing and freezing (`torch.jit`), which folds the norms
    alone. A network that can do neither, or then gives other features, is used as it is. In float32 the features are
    those of the plain network up to rounding (1e-5 of their size); in bfloat16 they are no further from these than
    twice what the plain network in bfloat16 is.

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
    keep_freed_memory()
    few = example[:2] if len(example) > 1 else example.expand(2, -1, -1, -1)
    network = copy.deepcopy(backbone).eval().to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        features: Tensor = network(_given(few, dtype)).float()
        wanted = features if dtype == torch.float32 else backbone(few).float()
    allowed = 1e-4 * max(1.0, _size(wanted)) if dtype == torch.float32 else 2.0 * _size(features - wanted)
    for make in (_fused, _traced):
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            try:
                fast = make(backbone, network, few, dtype)
                good = fast is not None and _size(fast(_given(few, dtype)).float() - wanted) <= allowed
            except Exception:  # whatever a network's own code brings: it then runs as it is
                continue
        if fast is not None and good:
            return _as_float(fast, dtype)
    return _as_float(network, dtype)


def _fused(backbone: Backbone, network: Backbone, few: Tensor, dtype: torch.dtype) -> Forward | None:
    # Exported without inference mode: its tensors could not be given other values
    with torch.inference_mode(False), torch.no_grad():
        return fuse(copy.deepcopy(backbone).eval(), few.clone(), dtype)


def _traced(backbone: Backbone, network: Backbone, few: Tensor, dtype: torch.dtype) -> Forward:
    given = _given(few, dtype)
    traced: Forward = torch.jit.freeze(torch.jit.trace(network, given, check_trace=False))  # type: ignore[no-untyped-call]
    for _ in range(2):  # the profiling executor optimises on its second call
        traced(given)
    return traced


def _size(values: Tensor) -> float:
    return float(values.abs().max())


def _given(images: Tensor, dtype: torch.dtype) -> Tensor:
    return images.to(dtype=dtype, memory_format=torch.channels_last)


def _as_float(network: Forward, dtype: torch.dtype) -> Forward:
    def forward(images: Tensor) -> Tensor:
        return network(_given(images, dtype)).float()

    return forward
