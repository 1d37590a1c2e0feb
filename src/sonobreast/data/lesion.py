"""Lesions drawn from the descriptors of the BI-RADS ultrasound lexicon.

Terms: ACR BI-RADS Atlas, 5th ed. 2013, Ultrasound: shape, orientation, margin, echo pattern, posterior features. The
echogenic halo was a term of its own (lesion boundary) in the 4th edition; the 5th counts it with the indistinct margin.
A round mass is "not parallel" in the atlas, and so it is here.

How often each class shows each term follows the sense of Stavros et al., Radiology 196:123-134, 1995, and Hong et al.,
AJR 184:1260-1265, 2005: spiculated and not parallel speak for malignancy, oval, circumscribed and parallel against it,
and none of them decides alone. The figures below are rounded to that sense and keep the classes overlapping; they are
no measured prevalences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from sonobreast.data.speckle import F32

Label = Literal["benign", "malignant", "normal"]
Shape = Literal["oval", "round", "irregular"]
Margin = Literal["circumscribed", "indistinct", "angular", "microlobulated", "spiculated"]
Orientation = Literal["parallel", "not_parallel"]
EchoPattern = Literal["anechoic", "hyperechoic", "complex_cystic_solid", "hypoechoic", "isoechoic", "heterogeneous"]
Posterior = Literal["none", "enhancement", "shadowing", "combined"]

LABELS: tuple[Label, ...] = get_args(Label)
F64 = npt.NDArray[np.float64]

ROUND_TOLERANCE = 0.12
"""A round lesion's height is within this fraction of its width."""
ELONGATION = 1.15
"""Least ratio of the long to the short extent of a lesion that is not round."""


@dataclass(frozen=True)
class Descriptors:
    """What a reader would write down about one lesion in one image.

    Attributes
    ----------
    shape, margin, orientation, echo_pattern, posterior : str
        BI-RADS terms; see the literals of this module.
    halo : bool
        Echogenic halo (rim).
    size_mm : float
        Largest diameter of the mask, mm.
    """

    shape: Shape
    margin: Margin
    orientation: Orientation
    echo_pattern: EchoPattern
    posterior: Posterior
    halo: bool
    size_mm: float


_BENIGN: Mapping[str, Mapping[str, float]] = {
    "shape": {"oval": 0.70, "round": 0.15, "irregular": 0.15},
    "margin": {
        "circumscribed": 0.66,
        "indistinct": 0.13,
        "microlobulated": 0.13,
        "angular": 0.06,
        "spiculated": 0.02,
    },
    "orientation": {"parallel": 0.85, "not_parallel": 0.15},
    "echo_pattern": {
        "hypoechoic": 0.50,
        "anechoic": 0.18,
        "isoechoic": 0.12,
        "heterogeneous": 0.10,
        "complex_cystic_solid": 0.06,
        "hyperechoic": 0.04,
    },
    "posterior": {"none": 0.45, "enhancement": 0.40, "shadowing": 0.10, "combined": 0.05},
}
_MALIGNANT: Mapping[str, Mapping[str, float]] = {
    "shape": {"irregular": 0.70, "oval": 0.20, "round": 0.10},
    "margin": {
        "spiculated": 0.27,
        "indistinct": 0.25,
        "microlobulated": 0.22,
        "angular": 0.14,
        "circumscribed": 0.12,
    },
    "orientation": {"not_parallel": 0.58, "parallel": 0.42},
    "echo_pattern": {
        "hypoechoic": 0.68,
        "heterogeneous": 0.18,
        "complex_cystic_solid": 0.07,
        "isoechoic": 0.05,
        "anechoic": 0.02,
    },
    "posterior": {"shadowing": 0.42, "none": 0.30, "enhancement": 0.15, "combined": 0.13},
}
PREVALENCE: Mapping[str, Mapping[str, Mapping[str, float]]] = {"benign": _BENIGN, "malignant": _MALIGNANT}
"""Label -> descriptor -> term -> probability."""
_HALO = {"benign": 0.06, "malignant": 0.40}
_MEDIAN_SIZE_MM = {"benign": 12.5, "malignant": 15.0}
_SIZE_RANGE_MM = (5.0, 26.0)


def draw_descriptors(rng: np.random.Generator, label: Label, *, depth_mm: float) -> Descriptors:
    """Draw the descriptors of a lesion of a class.

    Parameters
    ----------
    rng : numpy.random.Generator
    label : {"benign", "malignant"}
    depth_mm : float
        Depth of the picture; a lesion takes no more than half of it.
    """
    table = PREVALENCE[label]
    drawn = {name: str(rng.choice(list(terms), p=list(terms.values()))) for name, terms in table.items()}
    if drawn["shape"] == "round":
        drawn["orientation"] = "not_parallel"
    if drawn["shape"] == "irregular" and drawn["margin"] == "circumscribed" and label == "malignant":
        drawn["margin"] = "angular"  # the atlas' circumscribed margin is sharp and smooth all around
    size = _MEDIAN_SIZE_MM[label] * float(np.exp(0.38 * rng.standard_normal()))
    size = float(np.clip(size, _SIZE_RANGE_MM[0], min(_SIZE_RANGE_MM[1], 0.5 * depth_mm)))
    return Descriptors(halo=bool(rng.random() < _HALO[label]), size_mm=round(size, 1), **drawn)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Outline:
    """A star-shaped boundary around a centre.

    Attributes
    ----------
    x_mm, z_mm : float
        Centre, from the left end of the probe and from the skin.
    angle : float64 (A,)
        Ascending angles in [-pi, pi), rad; 0 points along the probe, pi / 2 down.
    radius_mm : float64 (A,)
        Distance of the boundary from the centre.
    """

    x_mm: float
    z_mm: float
    angle: F64
    radius_mm: F64

    @property
    def points_mm(self) -> F64:
        """Boundary relative to the centre, (A, 2), x and z."""
        return np.stack([self.radius_mm * np.cos(self.angle), self.radius_mm * np.sin(self.angle)], axis=1)

    @property
    def extent_mm(self) -> tuple[float, float]:
        """Width along the probe and height in depth, mm."""
        width, height = np.ptp(self.points_mm, axis=0)
        return float(width), float(height)


def polar(outline: Outline, x_mm: F32, z_mm: F32) -> tuple[F32, F32, F32]:
    """Distance to the boundary (negative inside), distance to the centre, both mm, and angle, rad, of points.

    The first is measured along the ray from the centre, which is the distance to the boundary where the boundary is
    smooth and more than that beside a spike. All three have the broadcast shape of ``x_mm`` and ``z_mm``.
    """
    dx, dz = x_mm - np.float32(outline.x_mm), z_mm - np.float32(outline.z_mm)
    rho, theta = np.hypot(dx, dz), np.arctan2(dz, dx)
    boundary = np.interp(theta, outline.angle, outline.radius_mm, period=2.0 * np.pi).astype(np.float32)
    return rho - boundary, rho, theta


def mask(outline: Outline, size: int, *, depth_mm: float, width_mm: float) -> npt.NDArray[np.bool_]:
    """Pixels (size, size) whose centres lie inside the outline."""
    z = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(depth_mm / size))[:, None]
    x = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(width_mm / size))[None, :]
    return np.asarray(polar(outline, x, z)[0] < 0.0)


def _harmonics(rng: np.random.Generator, angle: F64, first: int, last: int, amplitude: float) -> F64:
    """A smooth random function of the angle, root mean square about ``amplitude``."""
    k = np.arange(first, last + 1)[:, None]
    weight = rng.standard_normal(k.shape) / np.sqrt(k)
    weight *= amplitude * np.sqrt(2.0) / np.sqrt(np.sum(weight**2))
    return np.asarray(np.sum(weight * np.cos(k * angle + rng.uniform(0, 2 * np.pi, k.shape)), axis=0))


def spikes(rng: np.random.Generator, angle: F64, *, number: int, width: float) -> F64:
    """A sum of narrow peaks at irregular angles, heights 0.4-1; ``width`` is their standard deviation, rad."""
    centre = (np.arange(number) + rng.uniform(-0.35, 0.35, number)) * 2.0 * np.pi / number + rng.uniform(0, 2 * np.pi)
    gap = np.angle(np.exp(1j * (angle[None, :] - centre[:, None])))
    peak = np.exp(-0.5 * (gap / (width * rng.uniform(0.7, 1.4, (number, 1)))) ** 2)
    return np.asarray(np.max(rng.uniform(0.4, 1.0, (number, 1)) * peak, axis=0))


def _ellipse(angle: F64, aspect: float, tilt: float) -> F64:
    """Radius of an ellipse with a half axis of 1 at angle ``tilt`` and one of ``aspect`` across it."""
    return np.asarray(aspect / np.hypot(aspect * np.cos(angle - tilt), np.sin(angle - tilt)))


def _corners(rng: np.random.Generator, angle: F64, radius: F64) -> F64:
    """The boundary with its arcs replaced by chords between a few irregular corners."""
    number = int(rng.integers(6, 9))
    corner = np.sort((np.arange(number) + rng.uniform(-0.3, 0.3, number)) * 2.0 * np.pi / number - np.pi)
    reach = np.interp(corner, angle, radius, period=2.0 * np.pi) * rng.uniform(0.85, 1.3, number)
    # The chord between (a0, r0) and (a1, r1) in polar coordinates.
    upper = np.searchsorted(corner, angle) % number
    lower = (upper - 1) % number
    a0, r0, a1, r1 = corner[lower], reach[lower], corner[upper], reach[upper]
    span = (a1 - a0) % (2.0 * np.pi)
    ahead = (angle - a0) % (2.0 * np.pi)
    return np.asarray(r0 * r1 * np.sin(span) / (r0 * np.sin(ahead) + r1 * np.sin(span - ahead)))


def _diameter(points: F64) -> float:
    """Largest distance between two boundary points (A, 2)."""
    direction = np.linspace(0.0, np.pi, 180, endpoint=False)
    return float(np.max(np.ptp(points @ np.stack([np.cos(direction), np.sin(direction)]), axis=0)))


def draw_outline(rng: np.random.Generator, descriptors: Descriptors) -> Outline:
    """Draw a boundary around (0, 0) that agrees with shape, margin, orientation and size.

    The extents are made to agree with the orientation after the margin is drawn, and the largest diameter is scaled to
    ``size_mm`` last, so that what the record says holds for the mask.
    """
    d = descriptors
    angle = np.linspace(-np.pi, np.pi, 720, endpoint=False)
    tilt = rng.normal(0.0, 0.14) + (np.pi / 2 if d.orientation == "not_parallel" else 0.0)
    if d.shape == "round":
        radius = _ellipse(angle, rng.uniform(0.94, 1.0), tilt)
    elif d.shape == "oval":
        radius = _ellipse(angle, rng.uniform(0.5, 0.72), tilt)
        radius = radius * (1.0 + _harmonics(rng, angle, 2, 3, 0.03))  # the atlas allows two or three gentle undulations
    else:
        radius = _ellipse(angle, rng.uniform(0.58, 0.8), tilt)
        radius = radius * np.clip(
            1.0 + _harmonics(rng, angle, 2, 5, 0.17) + _harmonics(rng, angle, 6, 14, 0.05), 0.4, 1.7
        )
    if d.margin == "microlobulated":
        # Bumps side by side, with cusps between them; wide and narrow, high and low ones.
        warped = 0.5 * int(rng.integers(9, 16)) * (angle + 0.22 * _harmonics(rng, angle, 1, 3, 1.0))
        bump = np.clip(0.13 * (1.0 + _harmonics(rng, angle, 2, 6, 0.45)), 0.04, 0.25)
        radius = radius * (0.9 + bump * np.abs(np.sin(warped)))
    elif d.margin == "angular":
        radius = _corners(rng, angle, radius) * (1.0 + _harmonics(rng, angle, 5, 14, 0.02))
    elif d.margin == "spiculated":
        radius = radius * (0.85 + 0.45 * spikes(rng, angle, number=int(rng.integers(8, 13)), width=0.07))
        radius = radius * (1.0 + _harmonics(rng, angle, 5, 12, 0.04))
    elif d.margin == "indistinct":
        radius = radius * (1.0 + _harmonics(rng, angle, 4, 9, 0.03))
    outline = Outline(0.0, 0.0, angle, np.asarray(radius))
    width, height = outline.extent_mm
    ratio = height / width
    if d.shape == "round":
        wanted = float(np.clip(ratio, 1.0 - 0.6 * ROUND_TOLERANCE, 1.0 + 0.6 * ROUND_TOLERANCE))
    elif d.orientation == "parallel":
        wanted = min(ratio, 1.0 / ELONGATION)
    else:
        wanted = max(ratio, ELONGATION)
    points = outline.points_mm * np.array([1.0, wanted / ratio])
    points *= d.size_mm / _diameter(points)
    theta, rho = np.arctan2(points[:, 1], points[:, 0]), np.hypot(points[:, 0], points[:, 1])
    order = np.argsort(theta)
    return Outline(0.0, 0.0, theta[order], rho[order])
