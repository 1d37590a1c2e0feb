"""Cheap pictures with planted near-copies, for tests of scale: thousands of images whose true copies are known.

Layers, blobs and correlated noise, fast to draw and unlike each other; no physics is meant (that is ``phantom``). The
kinds of copies are those that audits of BUSI report: the same picture, moved or cut frames of one clip, another
size, the mirror image, another brightness window, and the same picture with measuring marks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageDraw

from sonobreast.data.atomic import cannot_write, encode_png, write_whole
from sonobreast.data.speckle import F32, U8
from sonobreast.errors import SonobreastError

Kind = Literal["original", "exact", "shift", "crop", "rescale", "mirror", "window", "overlay"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COPY_KINDS: tuple[Kind, ...] = KINDS[1:]
PLANTED = "planted.csv"
_MARGIN = 0.1
"""Share of the picture drawn beyond each side, so that a shifted frame shows tissue and no border."""
_PLAN, _SCENE, _CHANGE = range(3)


class Texture(NamedTuple):
    """One picture.

    Attributes
    ----------
    name : str
        Path in a data set of class folders, such as ``benign/benign_000012.png``.
    image : uint8 (H, W)
        Square of the size asked for, except for ``crop`` and ``rescale``.
    label : str
    copy_of : str or None
        Name of the original; None in an original.
    kind : str
        One of ``KINDS``.
    """

    name: str
    image: U8
    label: str
    copy_of: str | None
    kind: Kind


class Plan(NamedTuple):
    """What a picture will be, before it is drawn; ``origin`` is the number of the picture that it copies."""

    number: int
    label: str
    origin: int | None
    kind: Kind

    @property
    def name(self) -> str:
        return f"{self.label}/{self.label}_{self.number:06d}.png"


def plan(
    n: int,
    *,
    seed: int,
    copies: float = 0.2,
    kinds: Sequence[Kind] = COPY_KINDS,
    labels: Mapping[str, float] | Sequence[str] = ("benign", "malignant", "normal"),
    cross_label: float = 0.0,
) -> list[Plan]:
    """Decide labels and copies of ``n`` pictures, without drawing any.

    Parameters
    ----------
    n, seed : int
        n >= 1, seed >= 0. The first pictures of a longer plan are those of a shorter one.
    copies : float
        Share of the pictures that copy an earlier original, 0 to less than 1. The first is always an original.
    kinds : sequence of str
        Kinds of copies to plant, with equal chances.
    labels : mapping or sequence
        Label -> weight, or labels with equal weights; or, with exactly ``n`` entries in a list, the label of each.
    cross_label : float
        Share of the copies that carry another label than their original, 0-1; the contradiction that audits look for.

    Raises
    ------
    SonobreastError
        Any value out of range.
    """
    _check(n, seed, copies, kinds, labels, cross_label)
    chosen = list(labels) if isinstance(labels, list) and len(labels) == n else None
    names = list(dict.fromkeys(labels))
    weight = np.array([labels[name] if isinstance(labels, Mapping) else 1.0 for name in names], dtype=np.float64)
    plans: list[Plan] = []
    originals: dict[str, list[int]] = {name: [] for name in names}
    for index in range(n):
        rng = np.random.default_rng([seed, _PLAN, index])
        drawn = names[int(rng.choice(len(names), p=weight / weight.sum()))]
        label = chosen[index] if chosen is not None else drawn
        is_copy, crosses = rng.random() < copies, rng.random() < cross_label and len(names) > 1
        pool = originals[label]
        if crosses:
            others = [name for name in names if name != label and originals[name]]
            pool = originals[others[int(rng.integers(len(others)))]] if others else []
        if is_copy and pool:
            kind = kinds[int(rng.integers(len(kinds)))]
            plans.append(Plan(index, label, pool[int(rng.integers(len(pool)))], kind))
        else:
            plans.append(Plan(index, label, None, "original"))
            originals[label].append(index)
    return plans


def _check(
    n: int,
    seed: int,
    copies: float,
    kinds: Sequence[Kind],
    labels: Mapping[str, float] | Sequence[str],
    cross_label: float,
) -> None:
    if n < 1:
        raise SonobreastError(f"{n} pictures were asked for", remedy="ask for 1 or more")
    if seed < 0:
        raise SonobreastError(f"the seed is {seed}", remedy="give a whole number, 0 or more")
    if not 0.0 <= copies < 1.0 or not 0.0 <= cross_label <= 1.0:
        remedy = "give copies from 0 to less than 1, and cross_label from 0 to 1"
        raise SonobreastError(f"copies {copies} or cross_label {cross_label} is out of range", remedy=remedy)
    unknown = [kind for kind in kinds if kind not in COPY_KINDS]
    if unknown or not kinds:
        raise SonobreastError(f"unknown kinds of copies: {unknown}", remedy="known: " + ", ".join(COPY_KINDS))
    if not labels or (isinstance(labels, Mapping) and (min(labels.values()) < 0 or sum(labels.values()) <= 0)):
        raise SonobreastError("there is no label to choose", remedy="give one label or more, with weights of 0 or more")
    if any(not label or label.startswith(".") or "/" in label or "\\" in label for label in labels):
        raise SonobreastError(
            "a label cannot name a folder", remedy="use labels without slashes that begin with no dot"
        )


def _smooth(rng: np.random.Generator, rows: int, columns: int, size: int) -> F32:
    """Gaussian noise on rows x columns knots, enlarged to (size, size)."""
    knots = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(knots.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _scene(index: int, label: str, *, seed: int, size: int) -> F32:
    """Draw an original with its margin, (S, S), S = size x 1.2, grey levels 0-255 before rounding."""
    rng = np.random.default_rng([seed, _SCENE, index])
    full = size + 2 * round(_MARGIN * size)
    # Levels by depth, bent sideways by a smooth wave: the layers.
    knots = int(rng.integers(5, 10))
    levels = rng.uniform(40.0, 160.0, knots) * np.linspace(1.0, rng.uniform(0.5, 1.3), knots)
    profile = np.interp(np.linspace(0, knots - 1, 2 * full), np.arange(knots), levels).astype(np.float32)
    depth = np.arange(full, dtype=np.float32)[:, None] * np.float32(2.0 * 0.8)
    bend = _smooth(rng, 3, int(rng.integers(3, 7)), full) * np.float32(0.12 * full)
    row = np.clip(depth + bend + np.float32(0.1 * full), 0, 2 * full - 1).astype(np.intp)
    picture = profile.take(row)
    picture += np.float32(24.0) * _smooth(rng, 7, 6, full)
    picture += np.float32(rng.uniform(8.0, 20.0)) * _smooth(rng, max(full // 5, 4), max(full // 14, 4), full)
    picture += np.float32(rng.uniform(8.0, 18.0)) * _smooth(rng, max(full // 2, 4), max(full // 3, 4), full)
    if label != "normal":
        # A dark blob: wider than tall for benign, taller than wide for any other label, so that labels can be learnt.
        tall = 0.65 if label == "benign" else 1.5
        middle, reach = rng.uniform(0.32, 0.62, 2) * full, rng.uniform(0.07, 0.14) * full
        z = (np.arange(full, dtype=np.float32)[:, None] - np.float32(middle[0])) / np.float32(reach * tall)
        x = (np.arange(full, dtype=np.float32)[None, :] - np.float32(middle[1])) / np.float32(reach)
        picture *= np.float32(0.3) + np.float32(0.7) * np.clip((z * z + x * x - 0.8) * 2.5, 0.0, 1.0)
    return picture


def _cut(scene: F32, top: int, left: int, height: int, width: int) -> U8:
    """A window of a scene as grey levels."""
    return np.asarray(np.clip(scene[top : top + height, left : left + width] + 0.5, 0.0, 255.0), dtype=np.uint8)


def _draw_marks(image: U8, rng: np.random.Generator) -> U8:
    """Text in a corner, two calipers and the dotted line between them, as a sonographer leaves them."""
    picture = Image.fromarray(image)
    draw, size = ImageDraw.Draw(picture), min(image.shape)
    draw.text((0.04 * size, 0.03 * size), "RT BREAST 10:00", fill=255)
    ends = rng.uniform(0.25, 0.75, (2, 2)) * size
    arm = max(2.0, 0.02 * size)
    for x, y in ends:
        draw.line((x - arm, y, x + arm, y), fill=255)
        draw.line((x, y - arm, x, y + arm), fill=255)
    for t in np.linspace(0.0, 1.0, 12):
        draw.point(tuple(ends[0] + t * (ends[1] - ends[0])), fill=255)
    draw.text((0.04 * size, 0.9 * size), f"1 L {rng.uniform(0.5, 2.9):.2f} cm", fill=255)
    return np.asarray(picture)


def draw(item: Plan, label_of_origin: str, *, seed: int, size: int) -> U8:
    """Draw one picture of a plan, uint8 (H, W).

    Parameters
    ----------
    item : Plan
    label_of_origin : str
        Label under which the original was drawn; the picture's own for an original.
    seed, size : int
        As for ``generate``.
    """
    scene = _scene(item.number if item.origin is None else item.origin, label_of_origin, seed=seed, size=size)
    edge = (scene.shape[0] - size) // 2
    rng = np.random.default_rng([seed, _CHANGE, item.number])
    if item.kind == "shift":
        # At least 2 % in each direction: less would be a copy that differs by rounding only.
        least = max(1, round(0.02 * size))
        dz, dx = rng.integers(least, max(least, edge) + 1, 2) * rng.choice([-1, 1], 2)
        return _cut(scene, edge + int(dz), edge + int(dx), size, size)
    if item.kind == "crop":
        height, width = (round(float(size * share)) for share in rng.uniform(0.75, 0.93, 2))
        top, left = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
        return _cut(scene, edge + top, edge + left, height, width)
    image = _cut(scene, edge, edge, size, size)
    if item.kind == "rescale":
        factor = rng.uniform(0.6, 0.88) if rng.random() < 0.5 else rng.uniform(1.12, 1.4)
        other = max(8, round(size * float(factor)))
        return np.asarray(Image.fromarray(image).resize((other, other), Image.Resampling.BICUBIC))
    if item.kind == "mirror":
        return np.ascontiguousarray(image[:, ::-1])
    if item.kind == "window":
        contrast, offset = rng.uniform(0.7, 0.9) if rng.random() < 0.5 else rng.uniform(1.1, 1.3), rng.uniform(-18, 18)
        level = (np.arange(256) - 90.0) * contrast + 90.0 + offset
        return np.asarray(np.clip(level + 0.5, 0, 255), dtype=np.uint8)[image]
    return _draw_marks(image, rng) if item.kind == "overlay" else image


def _check_size(size: int) -> None:
    if not 32 <= size <= 4096:
        raise SonobreastError(f"pictures of {size} pixels cannot be drawn", remedy="give a size from 32 to 4096 pixels")


def generate(
    n: int,
    *,
    seed: int,
    size: int = 128,
    copies: float = 0.2,
    kinds: Sequence[Kind] = COPY_KINDS,
    labels: Mapping[str, float] | Sequence[str] = ("benign", "malignant", "normal"),
    cross_label: float = 0.0,
) -> Iterator[Texture]:
    """Yield ``n`` pictures, some of them copies of earlier ones; the same bytes for the same arguments.

    Parameters
    ----------
    n, seed, copies, kinds, labels, cross_label
        See ``plan``.
    size : int
        Pixels of a side, 32-4096.

    Raises
    ------
    SonobreastError
        Any value out of range, before the first picture is drawn.
    """
    _check_size(size)
    plans = plan(n, seed=seed, copies=copies, kinds=kinds, labels=labels, cross_label=cross_label)
    return (_finish(item, plans, seed=seed, size=size) for item in plans)


def _finish(item: Plan, plans: Sequence[Plan], *, seed: int, size: int) -> Texture:
    source = item if item.origin is None else plans[item.origin]
    image = draw(item, source.label, seed=seed, size=size)
    return Texture(item.name, image, item.label, None if item.origin is None else source.name, item.kind)


def write(
    out: Path,
    *,
    n: int,
    seed: int,
    size: int = 128,
    copies: float = 0.2,
    kinds: Sequence[Kind] = COPY_KINDS,
    labels: Mapping[str, float] | Sequence[str] = ("benign", "malignant", "normal"),
    cross_label: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write class folders of pictures, and ``planted.csv`` (image, copy_of, kind) with one row a copy.

    Returns
    -------
    Path
        ``planted.csv``, written last: where it is, all pictures are.

    Raises
    ------
    SonobreastError
        A value out of range; ``out`` is a file or not empty, or cannot be written to.
    """
    _check_size(size)
    plans = plan(n, seed=seed, copies=copies, kinds=kinds, labels=labels, cross_label=cross_label)

    def one(item: Plan) -> None:
        texture = _finish(item, plans, seed=seed, size=size)
        write_whole(out / texture.name, encode_png(texture.image, compress_level=1))

    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise SonobreastError(
                "the output is a file or a folder that is not empty", file=out, remedy="name a new one"
            )
        for label in {item.label for item in plans}:
            (out / label).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=4) as pool:
            remaining, done = iter(plans), 0
            while batch := list(islice(remaining, 64)):
                for _ in pool.map(one, batch):
                    done += 1
                    if progress is not None:
                        progress(done, n)
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("image", "copy_of", "kind"))
        table.writerows((p.name, plans[p.origin].name, p.kind) for p in plans if p.origin is not None)
        write_whole(out / PLANTED, text.getvalue().encode())
    except OSError as problem:
        raise cannot_write(problem, out) from problem
    return out / PLANTED
