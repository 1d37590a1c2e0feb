"""How another scanner, or another hand at its knobs, would have shown the same tissue.

A B-mode picture is the logarithm of the echoes' envelope, shown over a limited dynamic range (Szabo 2014, "Diagnostic
Ultrasound Imaging: Inside Out"). So whatever multiplies the envelope (gain, attenuation with depth that the time-gain
compensation does not undo, speckle) adds to the grey levels, and its strength is given in decibels:
``g' = g + w(g) dB / 60``. The files do not say their range; 60 dB is taken for all. The weight w = min(1, g / 0.1)
leaves black black: nothing lights up beside the picture, and echo-free fluid stays dark.

Fully developed speckle alone has a standard deviation of 5.6 dB: that of the logarithm of a Rayleigh variable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sonobreast.config import Augment

RANGE = 60.0
"""Decibels from black to white."""
_FLOOR = 0.1  # grey value below which a change fades out
_GRID = 160  # cells a side of the noise: a grain is about 2 % of the picture's height and 3 % of its width
_AXIAL = (1.0, 2.0, 1.0)
_LATERAL = (1.0, 4.0, 6.0, 4.0, 1.0)  # the beam is wider than the pulse is long


@dataclass(frozen=True)
class Look:
    """Drawn changes of the grey levels of a batch.

    Attributes
    ----------
    gain, tilt, bow : Tensor, float32, (B,)
        Decibels: everywhere; at the deepest row (the shallowest has the opposite); of a bow over depth.
    exponent : Tensor, float32, (B,)
        Of the grey map ``g ** exponent``.
    blur : Tensor, float32, (B,)
        Standard deviation as a share of the side.
    speckle : Tensor, float32, (B,)
        Standard deviation in decibels.
    noise : Tensor, float32, (B, 1, G, G), or None
        White, unit variance; None without speckle.
    """

    gain: Tensor
    tilt: Tensor
    bow: Tensor
    exponent: Tensor
    blur: Tensor
    speckle: Tensor
    noise: Tensor | None

    def to(self, device: torch.device) -> Look:
        """The same on a device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "noise"}
        return Look(**moved, noise=None if self.noise is None else self.noise.to(device))


def draw_look(u: NDArray[np.float64], keys: Sequence[Sequence[int]], settings: Augment) -> Look | None:
    """Changes of the grey levels; None where the settings want none.

    Parameters
    ----------
    u : ndarray, float64, (B, 6)
        Uniform in [-1, 1).
    keys : sequence of sequence of int
        Seed of each image's noise.
    settings : Augment
    """
    if not (settings.gain or settings.depth_attenuation or settings.contrast or settings.speckle or settings.blur):
        return None
    noise = None
    if settings.speckle > 0:
        drawn = [np.random.default_rng(k).standard_normal((1, _GRID, _GRID), dtype=np.float32) for k in keys]
        noise = torch.from_numpy(np.stack(drawn))
    return Look(
        gain=_tensor(settings.gain * u[:, 0]),
        tilt=_tensor(0.5 * settings.depth_attenuation * u[:, 1]),
        bow=_tensor(0.5 * settings.depth_attenuation * u[:, 2]),
        exponent=_tensor((1.0 + settings.contrast) ** u[:, 3]),
        blur=_tensor(settings.blur * np.abs(u[:, 4])),
        speckle=_tensor(settings.speckle * np.abs(u[:, 5])),
        noise=noise,
    )


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def change_look(images: Tensor, look: Look, depth: Tensor, settings: Augment) -> Tensor:
    """Show images with drawn changes, in the order in which a scanner makes them.

    Parameters
    ----------
    images : Tensor, float32, (B, C, H, W), in [0, 1]
    look : Look
        On the same device.
    depth : Tensor, float32, (B, 1, H, W)
        Where each pixel lay in the picture before it was moved: -1 at its top, 1 at its bottom.
    settings : Augment
        A strength of 0 leaves the images exactly as they are.

    Returns
    -------
    Tensor, float32, (B, C, H, W), in [0, 1]
    """
    if settings.blur > 0:
        images = _blurred(images, look.blur, settings.blur)
    decibels: list[Tensor] = []
    if settings.speckle > 0 and look.noise is not None:
        decibels.append(_each(look.speckle) * grains(look.noise, images.shape[2], images.shape[3]))
    if settings.gain > 0:
        decibels.append(_each(look.gain))
    if settings.depth_attenuation > 0:
        y = depth.clamp(-1.0, 1.0)
        decibels.append(_each(look.tilt) * y + _each(look.bow) * (1.5 * y * y - 0.5))  # Legendre: means 0
    if decibels:
        total = sum(decibels[1:], start=decibels[0]) / RANGE
        images = torch.addcmul(images, (images / _FLOOR).clamp_(max=1.0), total).clamp_(0.0, 1.0)
    if settings.contrast > 0:
        images = images ** _each(look.exponent)
    return images


def grains(noise: Tensor, height: int, width: int) -> Tensor:
    """White noise (B, 1, G, G) of unit variance to grains, (B, 1, height, width), of nearly unit variance."""
    for weights, axis in ((_AXIAL, 2), (_LATERAL, 3)):
        kernel = torch.tensor(weights, device=noise.device) / math.hypot(*weights)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        pad = (0, 0, 1, 1) if axis == 2 else (2, 2, 0, 0)
        noise = functional.conv2d(functional.pad(noise, pad, mode="circular"), kernel.view(shape))
    return functional.interpolate(noise, (height, width), mode="bilinear", align_corners=False)


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _blurred(images: Tensor, share: Tensor, largest: float) -> Tensor:
    """Each image under a Gaussian of its own width; outside is the nearest edge."""
    b, c, height, width = images.shape
    flat = images.reshape(1, b * c, height, width)
    for axis, side in ((2, height), (3, width)):
        radius = max(1, math.ceil(3.0 * largest * side - 1e-6))  # 6.000000001 is 6
        x = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (x[None] / (share[:, None] * side).clamp(min=1e-6)) ** 2)  # (B, 2 r + 1)
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
        shape = (b * c, 1, -1, 1) if axis == 2 else (b * c, 1, 1, -1)
        pad = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        flat = functional.conv2d(functional.pad(flat, pad, mode="replicate"), kernel.view(shape), groups=b * c)
    return flat.view(b, c, height, width).clamp_(0.0, 1.0)
