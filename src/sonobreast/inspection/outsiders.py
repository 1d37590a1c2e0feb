"""Pictures that a breast ultrasound classifier should refuse: drawn from a seed, or made from the scans at hand.

Nothing is downloaded. Photographs are those that come with scikit-image and scikit-learn, where these are installed;
everything else is simulated. The simulated pictures have the look that sets a kind apart (the sector of a curved probe,
the black ground of a mammogram, the colours of Doppler) and no more: they test a detector, they are no data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from sonobreast.data.preprocess import decode
from sonobreast.errors import SonobreastError

U8 = NDArray[np.uint8]
Floats = NDArray[np.float64]
Rng = np.random.Generator

HEIGHT, WIDTH = 360, 416
"""Size of the drawn pictures in pixels, that of a small exported scan."""

# Pictures in the packages of scikit-image and scikit-learn that show something in the world.
_PHOTOGRAPHS = {
    "skimage": (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
        "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
        "retina.jpg", "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}  # fmt: skip
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


@dataclass(frozen=True, eq=False)
class Outsider:
    """A picture that is no breast scan of the training domain.

    Attributes
    ----------
    kind : str
        A key of `KINDS`.
    group : str
        Pictures of one group are not independent: crops of one photograph, or of one patient's scans.
    picture : ndarray, uint8, (H, W, 3)
    """

    kind: str
    group: str
    picture: U8


def photographs_at_hand() -> tuple[Path, ...]:
    """Pictures that came with installed libraries, sorted by name; libraries that are not there give none."""
    found = []
    for package, names in _PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            folder = Path(next(iter(spec.submodule_search_locations))) / _FOLDERS[package]
            found += [folder / name for name in names if (folder / name).is_file()]
    return tuple(sorted(found, key=lambda p: p.name))


@lru_cache(maxsize=32)
def _opened(path: Path) -> U8:
    return decode(path)


def _photograph(rng: Rng, index: int) -> tuple[U8, str]:
    """A part of a picture on disk, mirrored at random, every second one grey."""
    files = photographs_at_hand()
    if not files:
        return _scene(rng, index)
    path = files[index % len(files)]
    whole = _opened(path)
    share = rng.uniform(0.6, 1.0)
    height, width = (max(8, int(share * n)) for n in whole.shape[:2])
    top, left = rng.integers(whole.shape[0] - height + 1), rng.integers(whole.shape[1] - width + 1)
    part = whole[top : top + height, left : left + width]
    part = part[:, ::-1] if rng.random() < 0.5 else part
    return (_grey(part.mean(axis=2)) if (index // len(files)) % 2 else np.ascontiguousarray(part)), path.name


def _scene(rng: Rng, index: int) -> tuple[U8, str]:
    """Dead leaves: overlapping discs and boxes of power-law sizes, whose edges and spectrum are those of photographs.

    Lee, Mumford and Huang 2001, Int J Comput Vis 41:35.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(canvas)
    for _ in range(350):
        size = 12.0 / max(rng.random(), 0.05)
        x, y = rng.uniform(-20, WIDTH + 20), rng.uniform(-20, HEIGHT + 20)
        colour = tuple(int(v) for v in rng.uniform(0, 256, 3))
        box = (x - size, y - size * rng.uniform(0.4, 1.0), x + size, y + size)
        (draw.ellipse if rng.random() < 0.6 else draw.rectangle)(box, fill=colour)
    shaded = np.asarray(canvas, np.float64) * (0.6 + 0.4 * _waves(rng, 120.0))[:, :, None]
    picture = np.clip(shaded + rng.normal(0.0, 4.0, shaded.shape), 0, 255).astype(np.uint8)
    return (_grey(picture.mean(axis=2)) if index % 2 else picture), ""


def _white_noise(rng: Rng, index: int) -> tuple[U8, str]:
    return _grey(rng.normal(rng.uniform(80, 160), rng.uniform(20, 60), (HEIGHT, WIDTH))), ""


def _pink_noise(rng: Rng, index: int) -> tuple[U8, str]:
    """Noise whose amplitude falls with the frequency, as that of most pictures does; no edges, no anatomy."""
    fy, fx = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :]
    falling = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / WIDTH) ** rng.uniform(0.8, 1.2)
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(HEIGHT, WIDTH))) * falling, s=(HEIGHT, WIDTH))
    return _grey(rng.uniform(90, 150) + rng.uniform(30, 50) * field / field.std()), ""


def _speckle(rng: Rng, index: int) -> tuple[U8, str]:
    """Fully developed speckle and nothing else: what a probe in gel or a uniform phantom shows."""
    return _grey(_level(_envelope(rng, (HEIGHT, WIDTH)), rng.uniform(50, 70))), ""


def _organ(rng: Rng, index: int) -> tuple[U8, str]:
    """A homogeneous organ with round, black vessels with bright walls, as a liver is seen, on a full rectangle."""
    return _grey(_liver(rng, (HEIGHT, WIDTH))), ""


def _sector(rng: Rng, index: int) -> tuple[U8, str]:
    """The same organ in the fan of a curved probe, black around it."""
    fan, inside = _fan(_liver(rng, (HEIGHT, WIDTH)), rng)
    return _grey(np.where(inside, fan, 0.0)), ""


def _m_mode(rng: Rng, index: int) -> tuple[U8, str]:
    """M-mode: depth over time, moving layers, a ruled time axis."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    beat = np.sin(2 * np.pi * x / rng.uniform(60, 140) + rng.uniform(0, 6.3)) ** 3
    reflectivity = np.full((HEIGHT, WIDTH), 0.15)
    for depth in np.sort(rng.uniform(0.1, 0.95, rng.integers(5, 10))):
        moved = HEIGHT * (depth + rng.uniform(0.005, 0.05) * beat)
        reflectivity += rng.uniform(0.4, 2.0) * np.exp(-(((y - moved) / rng.uniform(2, 7)) ** 2))
    picture = _level(reflectivity * ndimage.gaussian_filter(_envelope(rng, (HEIGHT, WIDTH)), (0, 2.0)), 55.0)
    picture[-14:], picture[-14:, :: WIDTH // 20] = 0.0, 255.0
    return _grey(picture), ""


def _doppler(rng: Rng, index: int) -> tuple[U8, str]:
    """Flow in red and blue inside a box, with a colour bar, on a fan."""
    fan, inside = _fan(_liver(rng, (HEIGHT, WIDTH)), rng)
    picture = np.repeat(np.where(inside, fan, 0.0)[:, :, None], 3, axis=2)
    flow = _waves(rng, 28.0) * 2.0 - 1.0
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    top, left = rng.integers(90, 160), rng.integers(120, 220)
    box = (y > top) & (y < top + 200) & (x > left) & (x < left + 220)
    strong = box & (np.abs(flow) > 0.25) & inside
    red = np.stack([200 + 55 * flow, 120 * flow, 0 * flow], axis=2)
    blue = np.stack([0 * flow, -120 * flow, 200 - 55 * flow], axis=2)
    picture = np.where(strong[:, :, None], np.where(flow[:, :, None] > 0, red, blue), picture)
    edge = box & ~ndimage.binary_erosion(box, iterations=2)
    picture[edge] = (0, 220, 0)
    ramp = np.linspace(1, -1, 160)[:, None]
    bar = np.concatenate([np.where(ramp > 0, 255 * ramp, 0), 0 * ramp, np.where(ramp < 0, -255 * ramp, 0)], axis=1)
    picture[40:200, 20:34] = bar[:, None, :]
    return np.clip(picture, 0, 255).astype(np.uint8), ""


def _mammogram(rng: Rng, index: int) -> tuple[U8, str]:
    """A half ellipse of soft clouds on black, the muscle's triangle in a corner, a letter at the side."""
    height, width = 560, 440
    y, x = np.mgrid[:height, :width].astype(np.float64)
    radius = np.hypot(x / (width * rng.uniform(0.6, 0.9)), (y - height * 0.52) / (height * rng.uniform(0.36, 0.48)))
    inside = np.clip((1.0 - radius) * 12.0, 0.0, 1.0)
    gland = np.clip(ndimage.zoom(_cloud(rng, (70, 55)), 8, order=1)[:height, :width], 0, 1)
    level = inside * (60 + 150 * gland * np.clip(1.25 - radius, 0, 1) + 30 * (1 - radius))
    muscle = (y / (height * 0.5) + x / (width * rng.uniform(0.25, 0.5))) < 1.0
    level = np.where(muscle, np.maximum(level, 190.0 * inside + 10 * gland), level)
    level += rng.normal(0, 3, level.shape) * (inside > 0)
    picture = Image.fromarray(_grey(level))
    ImageDraw.Draw(picture).text((width - 90, 40), "R MLO" if index % 2 else "L CC", fill="white", font=_font(24))
    picture = picture if index % 2 else picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture), ""


def _document(rng: Rng, index: int) -> tuple[U8, str]:
    """Lines of words and a table on white paper, a little grey and grainy as a scanner sees it."""
    canvas = Image.new("RGB", (360, 480), "white")
    draw = ImageDraw.Draw(canvas)
    letters = "abcdefghijklmnopqrstuvwxyz"
    y = 30
    while y < 450:
        size = int(rng.choice([11, 12, 12, 13, 20]))
        line = " ".join("".join(rng.choice(list(letters), rng.integers(2, 10))) for _ in range(rng.integers(2, 11)))
        draw.text((24, y), line, fill=tuple([int(rng.integers(0, 70))] * 3), font=_font(size))
        y += size + int(rng.integers(4, 14))
    if index % 2:
        for k in range(6):
            draw.line((24, 300 + 25 * k, 324, 300 + 25 * k), fill="black")
            draw.line((24 + 60 * k, 300, 24 + 60 * k, 425), fill="black")
    paper = np.asarray(canvas, np.float64) * (0.9 + 0.1 * _cloud(rng, (480, 360)))[:, :, None]
    return np.clip(paper + rng.normal(0, 3, paper.shape), 0, 255).astype(np.uint8), ""


def _uniform(rng: Rng, index: int) -> tuple[U8, str]:
    """One value all over: black, white, then any grey."""
    value = (0, 255)[index] if index < 2 else int(rng.integers(1, 255))
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8), ""


Draw = Callable[[Rng, int], tuple[U8, str]]
_DRAWN: dict[str, Draw] = {
    "photograph": _photograph,
    "simulated scene": _scene,
    "white noise": _white_noise,
    "pink noise": _pink_noise,
    "speckle alone": _speckle,
    "other organ": _organ,
    "sector layout": _sector,
    "M-mode": _m_mode,
    "colour Doppler": _doppler,
    "mammogram-like": _mammogram,
    "text document": _document,
    "blank": _uniform,
}
_FROM_SCANS: dict[str, Callable[[U8], U8]] = {
    "negative of a scan": lambda scan: np.asarray(255 - scan, np.uint8),
    "scan upside down": lambda scan: np.ascontiguousarray(scan[::-1]),
}
SCAN_KINDS = tuple(_FROM_SCANS)
"""Kinds that are made from scans of the data set."""
KINDS = (*_DRAWN, *SCAN_KINDS)
"""Kinds of outsiders, in the order of the tables."""


def drawn(kind: str, n: int, *, seed: int = 0) -> Iterator[Outsider]:
    """Pictures of a kind that needs no scans; the first ``n`` are the same whatever ``n`` is.

    Parameters
    ----------
    kind : str
        A key of `KINDS` that is not made from scans. ``photograph`` gives ``simulated scene`` where no library brought
        photographs.
    n, seed : int

    Raises
    ------
    SonobreastError
        For a kind that there is not.
    """
    if kind not in _DRAWN:
        raise SonobreastError(f'no outsiders of the kind "{kind}" can be drawn', remedy=f"take {', '.join(_DRAWN)}")
    for index in range(n):
        picture, source = _DRAWN[kind](np.random.default_rng([seed, index, *kind.encode()]), index)
        yield Outsider(kind, f"outsider/{source or f'{kind}/{index}'}", picture)


def from_scans(kind: str, scans: Sequence[U8], groups: Sequence[str]) -> Iterator[Outsider]:
    """Scans of the data set, changed so that they are none any more; each keeps its scan's group."""
    if kind not in _FROM_SCANS:
        raise SonobreastError(f'no outsiders of the kind "{kind}" are made of scans', remedy=", ".join(_FROM_SCANS))
    for scan, group in zip(scans, groups, strict=True):
        yield Outsider(kind, group, _FROM_SCANS[kind](scan))


def _grey(level: Floats) -> U8:
    """Levels (H, W) to a grey RGB picture."""
    return np.repeat(np.clip(np.round(level), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _envelope(rng: Rng, shape: tuple[int, int]) -> Floats:
    """Rayleigh envelope of a band-limited complex Gaussian field, mean 1."""
    grain = rng.uniform(0.8, 2.2), rng.uniform(1.2, 4.0)
    real, imaginary = (ndimage.gaussian_filter(rng.normal(size=shape), grain) for _ in range(2))
    amplitude: Floats = np.hypot(real, imaginary)
    return np.asarray(amplitude / amplitude.mean())


def _level(amplitude: Floats, dynamic_range_db: float) -> Floats:
    """Log compression to 0 to 255; the mean of 1 comes out in the middle."""
    decibels = 20.0 * np.log10(np.maximum(amplitude, 1e-4))
    return np.clip(255.0 * (0.45 + decibels / dynamic_range_db), 0, 255)


def _cloud(rng: Rng, shape: tuple[int, int]) -> Floats:
    """Clouds from 0 to 1, mean 0.5, of several sizes."""
    field = sum(ndimage.gaussian_filter(rng.normal(size=shape), s) * s for s in (3.0, 8.0, 20.0))
    return np.asarray(np.clip(0.5 + 0.25 * field / np.std(field), 0, 1))


def _waves(rng: Rng, length: float) -> Floats:
    """A smooth field (HEIGHT, WIDTH) from 0 to 1 whose patches are about ``length`` pixels wide."""
    few = ndimage.gaussian_filter(rng.normal(size=(HEIGHT // 8, WIDTH // 8)), length / 16.0)
    field = ndimage.zoom(few, 8, order=1)
    return np.asarray((field - field.min()) / np.ptp(field))


def _liver(rng: Rng, shape: tuple[int, int]) -> Floats:
    """Grey levels of even tissue with vessels and, below, a bright curve as of a diaphragm."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    reflectivity = 0.8 + 0.3 * _cloud(rng, shape)
    for _ in range(rng.integers(4, 9)):
        a, b = rng.uniform(8, 34), rng.uniform(6, 20)
        turn, cy, cx = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9) * shape[0], rng.uniform(0.1, 0.9) * shape[1]
        u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        r = np.hypot(u / a, v / b)
        reflectivity = np.where(r < 1.0, 0.02, np.where(r < 1.15, 2.0, reflectivity))
    curve = shape[0] * 0.86 + 30 * np.cos((x - shape[1] * rng.uniform(0.3, 0.7)) / shape[1] * 3.0)
    reflectivity += 4.0 * np.exp(-(((y - curve) / 5.0) ** 2))
    return _level(reflectivity * _envelope(rng, shape), rng.uniform(55, 70))


def _fan(picture: Floats, rng: Rng) -> tuple[Floats, NDArray[np.bool_]]:
    """Bend a rectangle into the fan of a curved probe, and where the fan is."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    near, half = rng.uniform(60, 120), np.deg2rad(rng.uniform(28, 38))
    dx, dy = x - WIDTH / 2, y - 10 + near
    radius, angle = np.hypot(dx, dy), np.arctan2(dx, dy)
    depth, across = (radius - near) / (HEIGHT - 30), 0.5 + angle / (2 * half)
    inside = (depth > 0) & (depth < 1) & (across > 0) & (across < 1)
    at = [depth * (picture.shape[0] - 1), across * (picture.shape[1] - 1)]
    return np.asarray(ndimage.map_coordinates(picture, at, order=1, mode="nearest")), inside


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
