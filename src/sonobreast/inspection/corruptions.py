"""Fifteen ways in which a scan of the same tissue comes out differently, each at five strengths.

The idea of kinds x five strengths is ImageNet-C's (Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness
to Common Corruptions and Perturbations", ICLR). The kinds are those of ultrasound. What happens to echoes is given in
decibels, as a B-mode picture shows the logarithm of the envelope over a limited dynamic range (Szabo 2014, "Diagnostic
Ultrasound Imaging: Inside Out", chapter 12): ``g' = g + w(g) dB / 60`` for grey values g in [0, 1], the physics of
`sonobreast.training.appearance`. No file says its range; 60 dB is taken for all. The weight ``w = min(1, g / 0.1)``
leaves black black. Fully developed speckle has a standard deviation of 5.6 dB (Burckhardt 1978, IEEE Trans Sonics
Ultrason 25:1).

Strength 0 is the picture itself, byte for byte. The same seed gives the same picture, and what is drawn (a place, a
side, grains) is the same at all strengths, so a curve over strength shows strength alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from sonobreast.errors import SonobreastError, nearest

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]

STRENGTHS = 5
RANGE = 60.0
"""Decibels from black to white."""
FLOOR = 0.1
"""Grey value below which a change in decibels fades out."""
_GRID = 160  # cells a side of the grains, as `training.appearance` has them
_AXIAL, _LATERAL = (1.0, 2.0, 1.0), (1.0, 4.0, 6.0, 4.0, 1.0)  # the beam is wider than the pulse is long
_WORDS = (
    *(("RT BREAST", "LT BREAST"), ("2 O'CLOCK", "10 O'CLOCK"), ("RADIAL", "TRANS", "SAG"), ("4 CM FN", "6 CM FN")),
    *(("UOQ", "LIQ"), ("L14-5", "L12-3"), ("MI 1.1", "MI 0.9"), ("FR 21", "FR 34")),
)  # one of each; none says what the lesion is


@dataclass(frozen=True)
class Corruption:
    """One kind.

    Attributes
    ----------
    name, title : str
        For the command line, and for people.
    means : str
        What it does, and what it stands for.
    unit : str
        Of ``levels``.
    levels : tuple of 5 floats
        Of strengths 1 to 5; "larger" always means "further from the picture".
    labels : tuple of 5 str
        The levels with their unit, for axes and tables.
    change : callable
        From uint8 (H, W) or (H, W, 3), level and generator to a picture.
    geometric : bool
        Whether pixels move, so that a mask has to follow.
    """

    name: str
    title: str
    means: str
    unit: str
    levels: tuple[float, ...]
    labels: tuple[str, ...]
    change: Callable[[U8, float, np.random.Generator], U8]
    geometric: bool = False


def corrupt(image: U8, kind: str, strength: int, seed: int | Sequence[int] | np.random.Generator = 0) -> U8:
    """Show a picture as one corruption makes it.

    Parameters
    ----------
    image : uint8 (H, W) or (H, W, 3)
        At the resolution of the file.
    kind : str
        A name in ``CORRUPTIONS``.
    strength : int
        0 (the very same array) to 5.
    seed : int, sequence of int, or Generator
        Whole numbers are joined with the kind's name, so each kind draws on its own.

    Returns
    -------
    ndarray, uint8
        Of the same shape; ``crop`` alone gives fewer rows and columns. A new array for strengths above 0.

    Raises
    ------
    SonobreastError
        For an unknown kind, another strength, or something that is no 8-bit picture.
    """
    chosen = kind_named(kind)
    if strength not in range(STRENGTHS + 1):
        raise SonobreastError(f"strength {strength} of {kind}", remedy=f"give a whole number from 0 to {STRENGTHS}")
    fits = image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
    if not fits or 0 in image.shape:
        what = f"a picture of shape {image.shape} and type {image.dtype} cannot be changed"
        raise SonobreastError(what, remedy="give 8-bit grey (H, W) or RGB (H, W, 3) pixels")
    if strength == 0:
        return image
    if not isinstance(seed, np.random.Generator):
        given = [seed] if isinstance(seed, int) else list(seed)
        seed = np.random.default_rng([*given, zlib.crc32(kind.encode())])
    level = chosen.levels[strength - 1]
    first = image[..., 0] if image.ndim == 3 else image
    if image.ndim == 3 and np.array_equal(first, image[..., 1]) and np.array_equal(first, image[..., 2]):
        grey = chosen.change(np.ascontiguousarray(first), level, seed)  # a third of the work
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.ascontiguousarray(chosen.change(image, level, seed))


def corrupt_mask(mask: Bits, kind: str, strength: int, seed: int | Sequence[int] = 0) -> Bits:
    """The lesion's mask, bool (H, W), as `corrupt` moves its picture: unchanged where pixels stay in their place."""
    if not kind_named(kind).geometric:
        return mask
    return np.asarray(corrupt(mask.astype(np.uint8) * 255, kind, strength, seed) >= 128)


def kind_named(name: str) -> Corruption:
    """A kind by its name.

    Raises
    ------
    SonobreastError
        With the nearest names, where there is none.
    """
    if name not in CORRUPTIONS:
        raise SonobreastError(f'no corruption is named "{name}"', remedy=nearest(name, CORRUPTIONS))
    return CORRUPTIONS[name]


def _in_decibels(image: U8, decibels: F32 | float) -> U8:
    """Grey levels after the echoes changed by so many decibels, (H, W) or one number for all."""
    g = image.astype(np.float32) / np.float32(255.0)
    change = np.asarray(decibels, np.float32) / np.float32(RANGE)
    if change.ndim and g.ndim == 3:
        change = change[:, :, None]
    return _bytes(g + np.minimum(g / np.float32(FLOOR), 1.0) * change)


def _bytes(g: F32) -> U8:
    grey: U8 = np.rint(np.clip(g, 0.0, 1.0) * 255.0).astype(np.uint8)
    return grey


def _mapped(image: U8, curve: npt.NDArray[np.float64]) -> U8:
    """Grey levels through a curve, float (256,)."""
    levels: U8 = np.rint(np.clip(curve, 0.0, 1.0) * 255.0).astype(np.uint8)
    return levels[image]


_GREYS = np.arange(256) / 255.0


def _gain(image: U8, decibels: float, rng: np.random.Generator) -> U8:
    del rng
    return _in_decibels(image, decibels)


def _contrast(image: U8, exponent: float, rng: np.random.Generator) -> U8:
    del rng
    return _mapped(image, _GREYS**exponent)


def _dynamic_range(image: U8, decibels: float, rng: np.random.Generator) -> U8:
    """Echoes weaker than ``-decibels`` against the strongest become black."""
    del rng
    return _mapped(image, 1.0 - (1.0 - _GREYS) * RANGE / decibels)


def _depth_attenuation(image: U8, decibels: float, rng: np.random.Generator) -> U8:
    del rng
    height, width = image.shape[:2]
    depth = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    return _in_decibels(image, np.broadcast_to(-np.float32(decibels) * depth, (height, width)))


def _shadow(image: U8, decibels: float, rng: np.random.Generator) -> U8:
    """A dark band below a drawn place, 18 % of the width, with soft sides (a rib, calcification, poor contact)."""
    height, width = image.shape[:2]
    middle, top = rng.uniform(0.25, 0.75), rng.uniform(0.1, 0.3)
    x = (np.arange(width, dtype=np.float32) + 0.5) / width
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    across = np.clip((0.09 + 0.02 - np.abs(x - middle)) / 0.04, 0.0, 1.0)
    down = np.clip((y - top) / 0.06, 0.0, 1.0)
    return _in_decibels(
        image, -np.float32(decibels) * down[:, None].astype(np.float32) * across[None].astype(np.float32)
    )


def _speckle(image: U8, decibels: float, rng: np.random.Generator) -> U8:
    height, width = image.shape[:2]
    noise = rng.standard_normal((_GRID, _GRID), dtype=np.float32)
    for weights, axis in ((_AXIAL, 0), (_LATERAL, 1)):
        shifts = range(-(len(weights) // 2), len(weights) // 2 + 1)
        rolled = [np.float32(w) * np.roll(noise, s, axis) for w, s in zip(weights, shifts, strict=True)]
        noise = np.asarray(np.sum(rolled, axis=0) / math.hypot(*weights), np.float32)
    grains = np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    grains /= max(float(grains.std()), 1e-6)  # enlarging takes a tenth of their spread
    return _in_decibels(image, np.float32(decibels) * grains)


def _blur(image: U8, percent: float, rng: np.random.Generator) -> U8:
    del rng
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(percent / 100.0 * max(image.shape[:2]))))


def _downsample(image: U8, pixels: float, rng: np.random.Generator) -> U8:
    """To so many pixels along the longer side, and back; a picture that has no more stays as it is."""
    del rng
    height, width = image.shape[:2]
    share = pixels / max(height, width)
    if share >= 1.0:
        return image.copy()
    small = (max(1, round(width * share)), max(1, round(height * share)))
    reduced = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(reduced.resize((width, height), Image.Resampling.BILINEAR))


def _jpeg(image: U8, quality: float, rng: np.random.Generator) -> U8:
    del rng
    stream = BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=round(quality))
    with Image.open(stream) as opened:
        return np.asarray(opened)


def _crop(image: U8, percent: float, rng: np.random.Generator) -> U8:
    """A window of so much of each side less, at a drawn place; nothing is resampled, so the picture gets smaller."""
    height, width = image.shape[:2]
    keep = 1.0 - percent / 100.0
    rows, columns = max(1, round(height * keep)), max(1, round(width * keep))
    down, across = rng.random(2)
    top, left = round(float(down) * (height - rows)), round(float(across) * (width - columns))
    return image[top : top + rows, left : left + columns]


def _aspect(image: U8, factor: float, rng: np.random.Generator) -> U8:
    """Squeezed from the sides, its mirror image beside it: the picture keeps its size, so that no resizing undoes it.

    Black bars would be a change of their own, and a greater one: with them a network lost as much at the least strength
    as at the greatest.
    """
    del rng
    height, width = image.shape[:2]
    inner = max(1, round(width / factor))
    left = (width - inner) // 2
    squeezed = np.asarray(Image.fromarray(image).resize((inner, height), Image.Resampling.BILINEAR))
    sides = ((0, 0), (left, width - inner - left), *[(0, 0)] * (image.ndim - 2))
    return np.pad(squeezed, sides, mode="symmetric")


def _mirror(image: U8, percent: float, rng: np.random.Generator) -> U8:
    """Left and right change places in so many of a hundred pictures."""
    return image[:, ::-1].copy() if rng.random() < percent / 100.0 else image.copy()


def _rotation(image: U8, degrees: float, rng: np.random.Generator) -> U8:
    """About the centre, to a drawn side; outside is the mirror image: black corners would be a change of their own."""
    height, width = image.shape[:2]
    side = 1.0 if rng.random() < 0.5 else -1.0
    pad = math.ceil(0.5 * math.hypot(height, width) - 0.5 * min(height, width)) + 1
    wide = np.pad(image, ((pad, pad), (pad, pad), *[(0, 0)] * (image.ndim - 2)), mode="symmetric")
    turned = Image.fromarray(wide).rotate(side * degrees, Image.Resampling.BILINEAR)
    return np.asarray(turned)[pad : pad + height, pad : pad + width]


def _calipers(image: U8, distances: float, rng: np.random.Generator) -> U8:
    """So many measured distances, two across each of up to three drawn ellipses."""
    height, width = image.shape[:2]
    ends = []
    for _ in range(3):
        middle = (width * rng.uniform(0.3, 0.7), height * rng.uniform(0.25, 0.65))
        radii = (width * rng.uniform(0.1, 0.2), height * rng.uniform(0.07, 0.15))
        first = rng.uniform(-0.3, 0.3)
        for angle in (first, first + 0.5 * math.pi):
            along = (radii[0] * math.cos(angle), radii[1] * math.sin(angle))
            ends.append((middle[0] - along[0], middle[1] - along[1], middle[0] + along[0], middle[1] + along[1]))
    del ends[round(distances) :]
    return with_calipers(image, ends)


def with_calipers(image: U8, ends: Sequence[tuple[float, float, float, float]]) -> U8:
    """Draw measured distances as scanners do: a cross at either end, dots between them, a number beside the first.

    Parameters
    ----------
    image : uint8 (H, W) or (H, W, 3)
    ends : sequence of (x, y, x, y)
        In pixels. Crosses are 3 % of the shorter side (at least 9 px), one pixel thick up to 500 px.
    """
    height, width = image.shape[:2]
    arm = max(4, round(0.015 * min(height, width)))
    thick = max(1, round(min(height, width) / 500))
    canvas = Image.fromarray(image).copy()
    draw = ImageDraw.Draw(canvas)
    white = 255 if image.ndim == 2 else (255, 255, 255)
    for number, (x0, y0, x1, y1) in enumerate(ends, start=1):
        for x, y in ((round(x0), round(y0)), (round(x1), round(y1))):
            draw.line((x - arm, y, x + arm, y), fill=white, width=thick)
            draw.line((x, y - arm, x, y + arm), fill=white, width=thick)
        length = math.hypot(x1 - x0, y1 - y0)
        steps = np.arange(2.0 * arm, length - 2.0 * arm, 5.0 * thick) / max(length, 1.0)
        for t in steps:
            x, y = round(x0 + t * (x1 - x0)), round(y0 + t * (y1 - y0))
            draw.rectangle((x, y, x + thick - 1, y + thick - 1), fill=white)
        font = ImageFont.load_default(size=max(9, round(0.028 * min(height, width))))
        draw.text((round(x0) + arm + 2, round(y0) - 2 * arm - 2), str(number), fill=white, font=font)
    return np.asarray(canvas)


def _text(image: U8, lines: float, rng: np.random.Generator) -> U8:
    words = [str(w) for w in rng.permutation([str(rng.choice(one_of)) for one_of in _WORDS])]
    corner = [int(c) for c in rng.permutation(4)]
    return with_text(image, [(corner[k % 4], k // 4, words[k]) for k in range(round(lines))])


def with_text(image: U8, lines: Sequence[tuple[int, int, str]]) -> U8:
    """Burn lines of text into the corners.

    Parameters
    ----------
    image : uint8 (H, W) or (H, W, 3)
    lines : sequence of (corner, row, text)
        Corners 0 to 3: upper left, upper right, lower left, lower right; row 0 is the outermost. Letters are 4 % of the
        shorter side high (at least 10 px).
    """
    height, width = image.shape[:2]
    size = max(10, round(0.04 * min(height, width)))
    font = ImageFont.load_default(size=size)
    canvas = Image.fromarray(image).copy()
    draw = ImageDraw.Draw(canvas)
    white = 255 if image.ndim == 2 else (255, 255, 255)
    margin = round(0.03 * min(height, width))
    for corner, row, words in lines:
        down = margin + round(1.3 * size * row)
        x, y = (width - margin if corner % 2 else margin), (height - down if corner >= 2 else down)
        anchor = ("r" if corner % 2 else "l") + ("d" if corner >= 2 else "a")
        draw.text((x, y), words, fill=white, font=font, anchor=anchor)
    return np.asarray(canvas)


def _kinds() -> list[Corruption]:
    def kind(
        name: str, title: str, means: str, unit: str, form: str, levels: tuple[float, ...], change: object, moves: bool
    ) -> Corruption:
        labels = tuple(form.format(v) for v in levels)
        return Corruption(name, title, means, unit, levels, labels, change, moves)  # type: ignore[arg-type]

    return [
        kind("gain", "Gain",
             "all echoes stronger: the first knob that a user turns",
             "dB", "+{:g} dB", (3, 6, 9, 12, 15), _gain, False),
        kind("contrast", "Contrast",
             "a steeper grey map, g to the power of the exponent: middle greys get darker",
             "exponent", "g^{:g}", (1.2, 1.5, 1.8, 2.2, 2.7), _contrast, False),
        kind("dynamic-range", "Dynamic range",
             "fewer decibels from black to white (60 taken for the file): weak echoes vanish",
             "dB", "{:g} dB", (54, 48, 43, 39, 35), _dynamic_range, False),
        kind("depth-attenuation", "Depth attenuation",
             "time-gain compensation too low: darker with depth, by so much at the bottom",
             "dB", "−{:g} dB", (4, 8, 12, 16, 24), _depth_attenuation, False),
        kind("shadow", "Acoustic shadow",
             "a dark band below a drawn place, 18 % of the width: a rib, calcification, poor contact",
             "dB", "−{:g} dB", (6, 12, 18, 24, 36), _shadow, False),
        kind("speckle", "Speckle",
             "grains of so many decibels (standard deviation); fully developed speckle alone has 5.6",
             "dB", "{:g} dB", (1, 2, 3, 4, 5.6), _speckle, False),
        kind("blur", "Blur",
             "Gaussian, standard deviation as a share of the longer side: a lower frequency, another focus",
             "% of the longer side", "{:g} %", (0.2, 0.4, 0.7, 1.0, 1.5), _blur, False),
        kind("down-sampling", "Down-sampling",
             "to so many pixels along the longer side and back: a thumbnail, a slide, a fax",
             "px", "{:g} px", (192, 128, 96, 64, 48), _downsample, False),
        kind("jpeg", "JPEG",
             "compressed at this quality of libjpeg: teaching files, messengers",
             "quality", "q {:g}", (50, 30, 20, 10, 5), _jpeg, False),
        kind("crop", "Crop",
             "so much of width and height cut off, at a drawn place: another export window",
             "% of each side", "−{:g} %", (5, 10, 20, 30, 40), _crop, True),
        kind("aspect", "Aspect ratio",
             "squeezed from the sides, the mirror image beside it: pixels that are not square, lesions look taller",
             "factor", "×{:g}", (1.1, 1.2, 1.35, 1.5, 1.75), _aspect, True),
        kind("mirror", "Mirror",
             "left and right exchanged in so many of a hundred images: the probe turned round",
             "% of the images", "{:g} %", (20, 40, 60, 80, 100), _mirror, True),
        kind("rotation", "Rotation",
             "about the centre, to a drawn side: the probe tilted",
             "degrees", "{:g}°", (3, 6, 10, 15, 20), _rotation, True),
        kind("calipers", "Added calipers",
             "so many measured distances (two crosses, dots, a number), in the middle of the image",
             "distances", "{:g}", (1, 2, 3, 4, 5), _calipers, False),
        kind("text", "Added text",
             "so many lines of annotation in the corners, 4 % of the shorter side high",
             "lines", "{:g}", (1, 2, 4, 6, 8), _text, False),
    ]  # fmt: skip


CORRUPTIONS: dict[str, Corruption] = {k.name: k for k in _kinds()}
"""All kinds by name, in the order of the tables."""


def contact_sheet(image: U8, *, kinds: Sequence[str] | None = None, seed: int = 0, width: int = 132) -> Image.Image:
    """A picture under all kinds (rows) and strengths 0 to 5 (columns), each with its level written below.

    Parameters
    ----------
    image : uint8 (H, W) or (H, W, 3)
    kinds : sequence of str, optional
        All by default.
    seed : int
        As in `corrupt`.
    width : int
        Of each picture on the sheet, in pixels.
    """
    names = list(CORRUPTIONS if kinds is None else kinds)
    gap, caption, left = 4, 16, 112
    tall = round(width * image.shape[0] / image.shape[1])
    sheet = Image.new("L", (left + 6 * (width + gap), len(names) * (tall + caption + gap)), 255)
    draw = ImageDraw.Draw(sheet)
    font, bold = ImageFont.load_default(size=11), ImageFont.load_default(size=12)
    for row, name in enumerate(names):
        kind, top = kind_named(name), row * (tall + caption + gap)
        draw.text((4, top + tall // 2 - 8), kind.title, fill=0, font=bold)
        for strength in range(STRENGTHS + 1):
            at = left + strength * (width + gap)
            shown = Image.fromarray(corrupt(image, name, strength, seed)).convert("L")
            share = width / image.shape[1]  # a crop is shown as large as it is
            size = (max(1, round(shown.width * share)), max(1, round(shown.height * share)))
            sheet.paste(shown.resize(size, Image.Resampling.BOX), (at, top))
            label = "as it is" if strength == 0 else kind.labels[strength - 1]
            plain = label.replace("−", "-").replace("×", "x")  # the font that comes with Pillow lacks them
            draw.text((at, top + tall + 1), plain, fill=70, font=font)
    return sheet
