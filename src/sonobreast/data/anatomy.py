"""Tissue maps of a breast under a linear probe: layers, ligaments, muscle, and a lesion among them.

From the probe down: skin, subcutaneous fat with Cooper's ligaments, fibroglandular tissue, retromammary fat, pectoral
muscle, chest wall (ACR BI-RADS Atlas, 5th ed. 2013, Ultrasound; Stavros, Breast Ultrasound, Lippincott 2004).
Fat is the grey that lesions are judged by: "hypoechoic" and "isoechoic" are relative to it. Glandular tissue is 0 dB.

Attenuation in dB/cm/MHz: fat 0.5, glandular 0.75, muscle 0.9, skin 1.5, fluid 0.05, carcinoma up to about 2: rounded
from Szabo 2014, appendix B, and D'Astous and Foster, Ultrasound Med. Biol. 12:795-808, 1986. Shadow and enhancement
are nothing but the attenuation of the lesion being unlike that of its surroundings.

Nothing in the normal anatomy is drawn with knowledge of the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from sonobreast.data.lesion import Descriptors, Outline, polar, spikes
from sonobreast.data.speckle import F32, Grid, Scanner

_COARSE = 4
MARGIN_MM = 16.0
"""How far the probe may be moved along a patient's skin, to either side together."""


@dataclass(frozen=True)
class Habitus:
    """Layer thicknesses and texture of one patient's breast; thicknesses in mm, levels in dB."""

    skin_mm: float
    fat_mm: float
    gland_mm: float
    retro_mm: float
    muscle_mm: float
    fat_db: float
    muscle_db: float
    fatty: float
    streaks: float
    ducts: float
    undulation: float
    rib: bool
    vessel: bool
    ligament_shadow: bool


@dataclass(frozen=True, eq=False)
class Tissue:
    """What the image formation needs, each float32 (Z, X).

    Attributes
    ----------
    echo_db : diffuse echogenicity, dB, glandular tissue 0.
    specular : amplitude of coherent reflectors, glandular speckle 1.
    attenuation : dB/cm/MHz.
    background : attenuation without lesion, for the sonographer's TGC, (Z, 1).
    """

    echo_db: F32
    specular: F32
    attenuation: F32
    background: F32


def draw_habitus(rng: np.random.Generator, *, depth_mm: float) -> Habitus:
    """Draw one patient's breast; the layers scale with the depth that the sonographer chose to see them."""
    return Habitus(
        skin_mm=rng.uniform(1.2, 2.2),
        fat_mm=depth_mm * rng.uniform(0.08, 0.26),
        gland_mm=depth_mm * rng.uniform(0.22, 0.42),
        retro_mm=rng.uniform(0.8, 4.0),
        muscle_mm=depth_mm * rng.uniform(0.18, 0.3),
        fat_db=rng.uniform(-20.0, -13.0),
        muscle_db=rng.uniform(-21.0, -14.0),
        fatty=rng.uniform(0.0, 0.5),
        streaks=rng.uniform(0.5, 1.3),
        ducts=rng.uniform(2.0, 10.0),
        undulation=rng.uniform(0.4, 1.6),
        rib=bool(rng.random() < 0.25),
        vessel=bool(rng.random() < 0.2),
        ligament_shadow=bool(rng.random() < 0.45),
    )


def _bspline(position: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], F32]:
    """First index (N,) and weights (4, N) of the cubic B-spline at positions in units of the knots."""
    base = np.floor(position)
    t = (position - base).astype(np.float32)
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / np.float32(6)
    return base.astype(np.intp), np.asarray(weights, dtype=np.float32)


def smooth_noise(rng: np.random.Generator, grid: Grid, *, lz_mm: float, lx_mm: float, shift_mm: float = 0.0) -> F32:
    """Smooth Gaussian noise (Z, X) of about unit variance, with knots ``lz_mm`` and ``lx_mm`` apart.

    The table of knots covers the whole range of shifts, so that a moved probe sees the same tissue elsewhere. Sums of
    weighted slices rather than matrix products: their bytes do not hang on the number of BLAS threads.
    """
    knots = (int(np.ceil(grid.depth_mm / lz_mm)) + 4, int(np.ceil((grid.width_mm + MARGIN_MM) / lx_mm)) + 4)
    table = rng.standard_normal(knots, dtype=np.float32)
    iz, wz = _bspline(grid.z_mm[:, 0].astype(np.float64) / lz_mm)
    ix, wx = _bspline((grid.x_mm[0].astype(np.float64) + MARGIN_MM / 2 + shift_mm) / lx_mm)
    rows = np.zeros((grid.shape[0], knots[1]), dtype=np.float32)
    field = np.zeros(grid.shape, dtype=np.float32)
    for k in range(4):
        rows += wz[k][:, None] * table[iz + k]
    rows /= np.float32(0.48)  # 151/315 of the variance is left in each direction
    for k in range(4):
        field += wx[k][None, :] * rows.take(ix + k, axis=1)
    return field


def _wave(rng: np.random.Generator, grid: Grid, *, lx_mm: float, shift_mm: float) -> F32:
    """Smooth noise along the probe, (1, X), about unit variance."""
    knots = int(np.ceil((grid.width_mm + MARGIN_MM) / lx_mm)) + 4
    table = rng.standard_normal(knots, dtype=np.float32)
    ix, wx = _bspline((grid.x_mm[0].astype(np.float64) + MARGIN_MM / 2 + shift_mm) / lx_mm)
    return np.asarray(sum(wx[k] * table[ix + k] for k in range(4)) / np.float32(0.69), dtype=np.float32)[None, :]


class _Follow:
    """Moves each column of a field down, so that texture follows the layers; the indices are worked out once."""

    def __init__(self, offset_mm: F32, grid: Grid) -> None:
        rows, columns = grid.shape
        position = np.arange(rows, dtype=np.float32)[:, None] - offset_mm / np.float32(grid.dz_mm)
        base = np.floor(position)
        self._part = position - base
        above = base.astype(np.intp) % rows
        self._above = above * columns + np.arange(columns)
        self._below = (above + 1) % rows * columns + np.arange(columns)

    def __call__(self, field: F32) -> F32:
        upper, lower = field.take(self._above), field.take(self._below)
        lower -= upper
        lower *= self._part
        lower += upper
        return np.asarray(lower, dtype=np.float32)


def _step(distance_mm: F32, width_mm: float) -> F32:
    """0 to 1 across 0, over about ``width_mm``."""
    return np.asarray(np.clip(distance_mm / np.float32(width_mm) + np.float32(0.5), 0.0, 1.0), dtype=np.float32)


def _lines(phase: F32, grid: Grid, *, thickness_mm: float, tilt_power: int) -> F32:
    """Thin reflectors, 0-1, where ``phase`` crosses whole numbers.

    The amplitude falls as cos^p of the angle between the reflector's normal and the beam: a specular reflector is seen
    only where it sends the echo back to the probe, so ligaments and fascia fade as they turn upright.
    """
    gz = np.gradient(phase, axis=0) / np.float32(grid.dz_mm)
    gx = np.gradient(phase, axis=1) / np.float32(grid.dx_mm)
    slope2 = gz * gz + gx * gx + np.float32(1e-6)
    distance = phase - np.rint(phase)
    line = np.exp(-(distance * distance) / (slope2 * np.float32(thickness_mm**2)))
    return np.asarray(line * (gz * gz / slope2) ** np.float32(tilt_power / 2), dtype=np.float32)


def _lobules(rng: np.random.Generator, grid: Grid, *, shift_mm: float) -> tuple[F32, F32]:
    """Fat lobules: signed position across the nearest septum, mm, and a random level per lobule, (Z, X).

    Cells of scattered seeds (Worley, SIGGRAPH 1996), flattened as the compressed breast is, with bent walls. They are
    found on every fourth row and column and enlarged, the walls being smooth at that scale.
    """
    cell = np.array([rng.uniform(3.0, 5.0), rng.uniform(7.0, 12.0)])
    count = (int(grid.depth_mm / cell[0]) + 4, int((grid.width_mm + MARGIN_MM) / cell[1]) + 4)
    seeds = np.stack(np.meshgrid(np.arange(count[0]), np.arange(count[1]), indexing="ij"), axis=-1).astype(np.float64)
    seeds[:, ::2, 0] += 0.5
    seeds += rng.uniform(-0.38, 0.38, seeds.shape)
    level = rng.standard_normal(seeds.shape[:2]).ravel().astype(np.float32)
    few = Grid(grid.depth_mm, grid.width_mm, dz_mm=_COARSE * grid.dz_mm, dx_mm=_COARSE * grid.dx_mm)
    bend_z = smooth_noise(rng, few, lz_mm=3.5, lx_mm=5.0, shift_mm=shift_mm)
    bend_x = smooth_noise(rng, few, lz_mm=3.5, lx_mm=5.0, shift_mm=shift_mm)
    z = (few.z_mm + 0.8 * bend_z) / cell[0] + 1.0
    x = (few.x_mm + MARGIN_MM / 2 + shift_mm + 1.4 * bend_x) / cell[1] + 1.0
    points = np.stack([z, x], axis=-1).reshape(-1, 2)
    found = cKDTree(seeds.reshape(-1, 2)).query(points, k=2)
    distance, nearest = np.asarray(found[0]), np.asarray(found[1])
    gap = ((distance[:, 1] - distance[:, 0]) * 0.5 * cell[0]).astype(np.float32).reshape(z.shape)
    grey = level[nearest[:, 0]].reshape(z.shape)
    return _enlarge(gap, grid), _enlarge(ndimage.gaussian_filter(grey, 0.8), grid)


def _enlarge(coarse: F32, grid: Grid) -> F32:
    """Linear enlargement of a map of every fourth row and column."""
    (iz, tz), (ix, tx) = (_between(fine, few) for fine, few in zip(grid.shape, coarse.shape, strict=True))
    rows = coarse[iz] * (1 - tz[:, None]) + coarse[iz + 1] * tz[:, None]
    return np.asarray(rows[:, ix] * (1 - tx) + rows[:, ix + 1] * tx, dtype=np.float32)


def _between(fine: int, few: int) -> tuple[npt.NDArray[np.intp], F32]:
    """For each of ``fine`` places, the one of ``few`` before it and the share of the one after."""
    position = np.clip((np.arange(fine) + 0.5) / _COARSE - 0.5, 0.0, few - 1.0)
    before = np.minimum(position.astype(np.intp), few - 2)
    return before, (position - before).astype(np.float32)


def build_tissue(
    rng: np.random.Generator,
    grid: Grid,
    scanner: Scanner,
    habitus: Habitus,
    *,
    shift_mm: float,
    lesion: tuple[Descriptors, Outline, np.random.Generator] | None,
) -> Tissue:
    """Draw the layers, the ligaments and the lesion.

    Parameters
    ----------
    rng : numpy.random.Generator
        The patient's tissue: two calls with equal generators and unlike ``shift_mm`` show the same breast.
    grid, scanner, habitus : Grid, Scanner, Habitus
    shift_mm : float
        Place of the probe, within +- MARGIN_MM / 2.
    lesion : (Descriptors, Outline, Generator), optional
        With its place in the picture, and the generator of its inner texture.
    """
    z, h = grid.z_mm, habitus

    def noise(lz: float, lx: float) -> F32:
        return smooth_noise(rng, grid, lz_mm=lz, lx_mm=lx, shift_mm=shift_mm)

    def wave(lx: float) -> F32:
        return _wave(rng, grid, lx_mm=lx, shift_mm=shift_mm)

    bow = 1.3 * h.undulation * wave(20.0)
    skin = h.skin_mm + 0.12 * wave(8.0)
    # Cooper's ligaments pull the gland up into crests (Duret's), so the border is scalloped rather than wavy.
    scallop = 1.0 - 2.0 * np.abs(np.sin(1.3 * wave(6.0)))
    fat_end = np.maximum(skin + 1.5, h.skin_mm + h.fat_mm + bow + 0.8 * h.undulation * (wave(7.0) + scallop))
    gland_end = np.maximum(fat_end + 2.0, h.skin_mm + h.fat_mm + h.gland_mm + 0.8 * bow + 0.8 * wave(9.0))
    muscle = gland_end + np.maximum(h.retro_mm + 0.5 * wave(13.0), 0.3)
    if lesion is not None:
        _, outline, _ = lesion
        width, height = outline.extent_mm
        push = outline.z_mm + height / 2 + 0.8 - muscle
        near = np.exp(-0.5 * ((grid.x_mm - outline.x_mm) / (0.6 * width + 2.0)) ** 2)
        muscle = muscle + np.maximum(push, 0.0).max() * near
        gland_end = np.minimum(np.maximum(gland_end, gland_end + np.maximum(push, 0.0).max() * near), muscle - 0.3)
    chest = muscle + h.muscle_mm + 0.8 * wave(15.0)
    # How far each place is bent from the horizontal: that of the border above it and below it, in between.
    deep = np.clip(z / muscle, 0.0, 1.0)
    offset = np.asarray(deep * (muscle - muscle.mean()), dtype=np.float32)
    follow = _Follow(offset, grid)

    in_skin, in_fat = 1 - _step(z - skin, 0.25), _step(z - skin, 0.25) * (1 - _step(z - fat_end, 0.7))
    in_gland = _step(z - fat_end, 0.7) * (1 - _step(z - gland_end, 0.8))
    in_muscle, in_chest = _step(z - muscle, 0.4) * (1 - _step(z - chest, 0.6)), _step(z - chest, 0.6)

    gap, grey = _lobules(rng, grid, shift_mm=shift_mm)
    gap, grey = follow(gap), follow(grey)
    intrusion = _step(grey - np.float32(1.3 - 2.2 * h.fatty), 0.35) * _step(gap - 0.25, 0.4)
    in_retro = np.clip(1 - in_skin - in_fat - in_gland - in_muscle - in_chest, 0.0, 1.0)
    fat = in_fat + in_retro + in_gland * intrusion
    gland = in_gland * (1 - intrusion)

    fine = follow(noise(0.32, 2.6))
    patch = follow(noise(1.1, 3.6))
    dash = np.maximum(fine - np.float32(0.5), 0.0)
    broad = noise(7.0, 9.0)
    fat_db = h.fat_db + 1.3 * grey + 2.0 * fine
    gland_db = 2.4 * patch + 3.2 * fine - h.ducts * _step(patch - 0.4, 1.0)
    muscle_db = h.muscle_db + 4.5 * follow(noise(0.3, 7.0)) + 2.5 * fine
    echo = -3.0 * in_skin + fat * fat_db + gland * gland_db + in_muscle * muscle_db
    echo += in_chest * (h.muscle_db - 5.0 + 3.5 * fine) + 2.8 * broad

    # Specular reflectors: septa, layer borders, streaks of collagen, muscle fibre sheaths. Each is broken up along its
    # course, because a reflector is smooth over a few millimetres only.
    wander = noise(2.2, 7.0)
    tapered = _step(follow(noise(0.7, 4.0)) - 0.5, 1.3)
    ragged = np.exp(np.float32(0.5) * noise(0.5, 0.9))
    septa = np.exp(-((gap / np.float32(0.13)) ** 2))
    septum_gz = np.gradient(gap, axis=0) / np.float32(grid.dz_mm)
    septum_gx = np.gradient(gap, axis=1) / np.float32(grid.dx_mm)
    level_septum = (septum_gz**2 / (septum_gz**2 + septum_gx**2 + np.float32(1e-3))) ** 2
    septa *= (0.05 + level_septum) * (0.25 + 0.75 * tapered)
    streak = (
        _lines((z - offset) * np.float32(1.0 / 1.5) + 0.8 * wander, grid, thickness_mm=0.11, tilt_power=6) * tapered
    )
    fibre = _lines((z - offset) * np.float32(1.0 / 1.15) + 0.75 * wander, grid, thickness_mm=0.09, tilt_power=4)
    fibre *= _step(follow(noise(0.7, 5.0)) - 0.55, 1.3)
    specular = 1.1 * septa * (in_fat + 0.6 * in_retro + 0.3 * in_gland) * h.streaks
    specular += streak * h.streaks * (0.55 * in_fat + 1.5 * gland + 0.5 * in_retro + 0.35 * in_chest)
    specular += dash * h.streaks * (0.12 * in_fat + 0.5 * gland + 0.15 * in_muscle)
    specular += (0.3 + 0.6 * h.streaks) * fibre * in_muscle
    for border, strength in ((fat_end, 0.8), (muscle, 1.7), (chest, 1.2)):
        specular += strength * _border(z, border, grid, 0.13) * (0.1 + 0.9 * _step(wave(3.0) + 0.2, 1.8))
    specular += 4.0 * _border(z, np.full_like(skin, 0.2), grid, 0.2) + 1.3 * _border(z, skin, grid, 0.13)
    specular *= ragged

    attenuation = 1.5 * in_skin + 0.5 * fat + 0.75 * gland + 0.9 * in_muscle + 0.9 * in_chest
    background = np.mean(attenuation, axis=1, keepdims=True, dtype=np.float32)
    echo, specular, attenuation = (np.asarray(m, dtype=np.float32) for m in (echo, specular, attenuation))
    maps = (echo, specular, attenuation)
    _distractors(rng, grid, scanner, h, maps, fat_end=fat_end, chest=chest, shift_mm=shift_mm)
    if lesion is not None:
        _insert(grid, scanner, maps, lesion, fat_db=h.fat_db)
    return Tissue(echo, specular, attenuation, np.asarray(background, dtype=np.float32))


def _border(z: F32, depth_mm: F32, grid: Grid, thickness_mm: float) -> F32:
    """A thin reflector along a layer border (1, X), fading where it is steep."""
    slope = np.gradient(depth_mm, axis=1) / np.float32(grid.dx_mm)
    return np.asarray(np.exp(-(((z - depth_mm) / np.float32(thickness_mm)) ** 2)) / (1.0 + slope**2) ** 2, np.float32)


def _distractors(
    rng: np.random.Generator,
    grid: Grid,
    scanner: Scanner,
    h: Habitus,
    maps: tuple[F32, F32, F32],
    *,
    fat_end: F32,
    chest: F32,
    shift_mm: float,
) -> None:
    """Ordinary things that look like a finding: a rib and its shadow, a vessel, the shadow of a ligament."""
    echo, specular, attenuation = maps
    z, x = grid.z_mm, grid.x_mm + np.float32(shift_mm)
    place = rng.uniform(0.0, grid.width_mm, 3)
    draws = rng.random(6)
    if h.rib:
        # An arc at the chest wall, bone below: about 20 dB/cm/MHz, nothing comes back from behind it.
        half = 4.0 + 3.0 * draws[0]
        top = chest + ((x - place[0]) / half) ** 2 * 2.0
        under = _step(np.float32(half) - np.abs(x - place[0]), 1.8)
        specular += 1.8 * under * _border(z, top, grid, 0.25)
        attenuation += 8.0 * under * _step(z - top - 0.2, 0.3)
    if h.vessel:
        # Cut across: an anechoic tube of 1.5-3 mm with bright near and far walls.
        radius = 0.8 + 0.7 * draws[1]
        middle = fat_end.mean() + (chest.mean() - fat_end.mean()) * (0.1 + 0.5 * draws[2])
        rho = np.hypot((x - place[1]) / (1.0 + draws[3]), z - middle)
        echo -= (12.0 + 20.0 * draws[4]) * (1 - _step(rho - np.float32(radius), 0.3))
        specular *= _step(rho - np.float32(radius), 0.3)
        wall = np.exp(-(((rho - np.float32(radius)) / 0.18) ** 2)) * ((z - middle) / (rho + np.float32(0.1))) ** 4
        specular += 1.4 * draws[5] * wall
    if h.ligament_shadow:
        # A steep ligament turns the beam away: a narrow dark band from the border of the fat on (refraction).
        width = 0.5 + 1.2 * draws[4]
        band = np.exp(-0.5 * ((x - place[2]) / np.float32(width)) ** 2)
        below = _step(z - fat_end, 0.5) * (1 - _step(z - fat_end - 4.0, 0.5))
        attenuation += (4.0 + 10.0 * draws[5]) / (2.0 * scanner.frequency_mhz * 0.4) * band * below


def _insert(
    grid: Grid,
    scanner: Scanner,
    maps: tuple[F32, F32, F32],
    lesion: tuple[Descriptors, Outline, np.random.Generator],
    *,
    fat_db: float,
) -> None:
    """Draw the lesion into the maps."""
    echo, specular, attenuation = maps
    d, outline, rng = lesion
    distance, rho, theta = polar(outline, grid.x_mm, grid.z_mm)
    width, height = outline.extent_mm
    blur = {"circumscribed": 0.3, "indistinct": float(rng.uniform(1.6, 3.0))}.get(d.margin, 0.6)
    inside = 1 - _step(distance, blur)

    texture = smooth_noise(rng, grid, lz_mm=1.1, lx_mm=1.5)
    level = {"anechoic": -46.0, "hypoechoic": fat_db - rng.uniform(4.0, 10.0), "isoechoic": fat_db + rng.uniform(-2, 1)}
    level |= {"hyperechoic": rng.uniform(1.0, 4.0), "heterogeneous": fat_db - rng.uniform(3.0, 6.0)}
    inner = np.float32(level.get(d.echo_pattern, fat_db - 5.0)) + np.float32(2.0) * texture
    if d.echo_pattern == "heterogeneous":
        inner = inner + np.float32(3.7) * texture
    elif d.echo_pattern == "complex_cystic_solid":
        # Fluid with a solid part on one wall and a septum.
        lean = rng.uniform(0.0, 2.0 * np.pi)
        across = (grid.x_mm - outline.x_mm) * np.cos(lean) + (grid.z_mm - outline.z_mm) * np.sin(lean)
        fluid = _step(across + np.float32(0.12 * d.size_mm) + 0.5 * texture, 0.4)
        septum = np.exp(-(((across - np.float32(0.15 * d.size_mm) + 0.4 * texture) / 0.3) ** 2))
        inner = inner - np.float32(32.0) * fluid * (1 - septum)

    if d.halo:
        rim = np.exp(-0.5 * ((distance - np.float32(0.7)) / np.float32(rng.uniform(0.6, 1.1))) ** 2)
        echo += (np.float32(5.0) - echo) * np.float32(0.85) * rim
    if d.margin == "spiculated":
        # Straight lines that leave the mass and taper: dark ones (tumour strands) beside bright ones (pulled collagen).
        angle = np.linspace(-np.pi, np.pi, 720, endpoint=False)
        number = int(rng.integers(9, 15))
        reach = np.exp(-np.maximum(distance, 0.0) / np.float32(rng.uniform(1.5, 3.0)))
        for sign, width_rad in ((-14.0, 0.06), (9.0, 0.05)):
            table = spikes(rng, angle, number=number, width=width_rad)
            line = np.interp(theta, angle, table, period=2 * np.pi).astype(np.float32)
            echo += np.float32(sign) * line * reach * (distance > 0)
    echo += inside * (inner - echo)
    specular *= 1 - inside
    steep = (np.abs(grid.z_mm - outline.z_mm) / (rho + np.float32(0.2))) ** 3
    if d.margin == "circumscribed":
        specular += 1.5 * np.exp(-((distance / np.float32(0.16)) ** 2)) * steep

    _posterior(grid, scanner, attenuation, lesion, inside, height)
    if d.margin == "circumscribed" and d.shape != "irregular":
        # Edge shadows: the beam is bent away at the tangents of a smooth wall.
        for side in (-1.0, 1.0):
            edge = np.exp(-0.5 * ((grid.x_mm - np.float32(outline.x_mm + side * 0.48 * width)) / np.float32(0.35)) ** 2)
            below = _step(grid.z_mm - np.float32(outline.z_mm), 1.0) * (1 - _step(grid.z_mm - outline.z_mm - 4.0, 1.0))
            attenuation += np.float32(rng.uniform(1.0, 5.0) / (0.8 * scanner.frequency_mhz)) * edge * below


def _posterior(
    grid: Grid,
    scanner: Scanner,
    attenuation: F32,
    lesion: tuple[Descriptors, Outline, np.random.Generator],
    inside: F32,
    height_mm: float,
) -> None:
    """Give the lesion the attenuation that makes its posterior feature.

    The level behind the middle is drawn in dB and turned into dB/cm/MHz over the height; enhancement cannot exceed
    what a fluid without loss would give.
    """
    d, outline, rng = lesion
    path = 2.0 * scanner.frequency_mhz * height_mm / 10.0  # dB per dB/cm/MHz, straight down the middle
    dark, bright = rng.uniform(18.0, 34.0) / path, -rng.uniform(6.0, 11.0) / path
    if d.posterior == "none":
        change = np.zeros_like(grid.x_mm)
    elif d.posterior == "shadowing":
        change = np.full_like(grid.x_mm, dark)
    elif d.posterior == "enhancement":
        change = np.full_like(grid.x_mm, bright)
    else:
        side = np.float32(1.0 if rng.random() < 0.5 else -1.0)
        left = _step(side * (grid.x_mm - np.float32(outline.x_mm)), 1.5)
        change = np.float32(dark) * left + np.float32(bright) * (1 - left)
    around = np.float32(0.62)
    wanted = np.maximum(around + change, 0.02)
    attenuation += inside * (wanted - attenuation)
