"""Which images might be copies of one another: local keypoints, an index over their descriptors, and a vote.

A picture is described by some 80 small patches around blob-like points, each with a place and a size. A copy that was
shifted, cropped, re-scaled, mirrored, re-windowed or written upon still holds many of these patches, and they agree on
one transform. So candidates are pairs of images in which several patches are alike *and* ask for the same transform.
Nothing here compares all pairs of images: patches meet in the cells of an inverted file.

Sources: scale-space extrema, Lowe, Int. J. Comput. Vis. 60 (2004) 91; voting for a transform, Jégou, Douze, Schmid,
ECCV 2008; inverted file, Sivic and Zisserman, ICCV 2003. Patches stay upright: ultrasound frames are not rotated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]

SIDE = 192
"""Longest side of a thumbnail in pixels. Speckle of a breast scan is still resolved, and 20,000 fit in 0.6 GB."""
KEYPOINTS = 80
PATCH, FREQUENCIES = 16, 8
DIMS = FREQUENCIES * FREQUENCIES - 1
SIGMAS = tuple(1.6 * 2 ** (i / 3) for i in range(6))
ROBUST_PX = 4.5
"""How far, in thumbnail pixels, a patch may lie from where the transform puts it."""


class Keypoints(NamedTuple):
    """Points of one thumbnail: `place` (k, 3) float32 holds x, y, size in thumbnail pixels; `patch` (k, 63) float16."""

    place: Float
    patch: npt.NDArray[np.float16]


class Candidate(NamedTuple):
    """A transform that several patches agree on: x_b = scale_x * x_a + dx, y_b = scale_y * y_a + dy.

    Thumbnail pixels. Where `mirrored`, x_a is counted from the right edge of `a`.
    """

    a: int
    b: int
    mirrored: bool
    scale_x: float
    scale_y: float
    dx: float
    dy: float
    votes: int

    def inverse(self, width_a: int, width_b: int) -> Candidate:
        """The same transform from `b` to `a`; the widths of the two in pixels are needed where it mirrors."""
        # Mirrored: x_b = s (W_a - 1 - x_a) + d, solved for x_a and written with W_b - 1 - x_b.
        dx = width_a - 1 + (self.dx - width_b + 1) / self.scale_x if self.mirrored else -self.dx / self.scale_x
        back = (1 / self.scale_x, 1 / self.scale_y, dx, -self.dy / self.scale_y)
        return Candidate(self.b, self.a, self.mirrored, *back, self.votes)


def thumbnail(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Grey version of an image whose longest side has `SIDE` pixels, (h, w) uint8."""
    grey = image.convert("L")
    factor = SIDE / max(grey.size)
    size = (max(1, round(grey.width * factor)), max(1, round(grey.height * factor)))
    # The mean over the covered pixels does not alias; enlarging needs an interpolation.
    how = Image.Resampling.BOX if factor <= 1 else Image.Resampling.BICUBIC
    return np.asarray(grey.resize(size, how))


@lru_cache(maxsize=4096)
def _blur_matrix(n: int, sigma: float) -> Float:
    """(n, n) matrix that blurs a column by a Gaussian: for thumbnails twice as fast as a separable filter."""
    blurred = ndimage.gaussian_filter1d(np.eye(n), sigma, axis=0, truncate=3.0)
    return np.asarray(blurred, dtype=np.float32)


def blur(image: Float, sigma: float) -> Float:
    """Gaussian blur with reflected borders; `sigma` in pixels."""
    height, width = image.shape
    return np.asarray(_blur_matrix(height, sigma) @ image @ _blur_matrix(width, sigma).T, dtype=np.float32)


def flatten(thumb: npt.NDArray[np.uint8], sigma: float = 5.5) -> Float:
    """High-pass image with its local contrast set to one: gain, gamma and window leave it nearly unchanged.

    Parameters
    ----------
    thumb : (h, w) uint8
    sigma : float
        Size of the neighbourhood in pixels.

    Returns
    -------
    (h, w) float32 in [-3, 3]; 0 in empty regions.
    """
    x = np.sqrt(thumb, dtype=np.float32)
    real = _content(thumb)
    # Means over the content only: else the straight edge of a black frame would be the strongest thing in a picture,
    # and two different pictures in frames of one shape would correlate along it.
    share = np.maximum(blur(real, sigma), np.float32(1e-3))
    detail = np.asarray((x - blur(np.multiply(x, real), sigma) / share) * real, dtype=np.float32)
    spread = np.sqrt(np.maximum(blur(detail * detail, sigma), 0) / share)
    # 0.35 of the square root of a grey level: below it there is coding noise, not speckle.
    flat: Float = np.clip(detail / (spread + np.float32(0.35)), -3, 3)
    return flat


def _content(thumb: npt.NDArray[np.uint8]) -> Float:
    """1 where a thumbnail shows something, 0 where it is black or a flat background, (h, w) float32."""
    spread = ndimage.maximum_filter(thumb, 3) - ndimage.minimum_filter(thumb, 3)
    shown = ((thumb > 3) & (spread > 1)).astype(np.uint8)
    # Closed: dark grains between bright ones, as a hard window leaves them, are speckle; a straight frame stays out.
    closed = ndimage.minimum_filter(ndimage.maximum_filter(shown, 9), 9)
    return np.asarray(closed, dtype=np.float32)


def _cosines() -> Float:
    i = np.arange(PATCH) + 0.5
    table = np.stack([np.cos(np.pi * i * k / PATCH) for k in range(FREQUENCIES)])
    table[0] /= np.sqrt(2)
    return table.astype(np.float32)


_COSINES = _cosines()
MIRROR = np.tile((-1.0) ** np.arange(FREQUENCIES), (FREQUENCIES, 1)).ravel()[1:].astype(np.float32)
"""Signs that turn a patch descriptor into that of the mirrored patch: odd horizontal cosines change theirs."""


def _parabola(before: Float, at: Float, after: Float) -> Float:
    """Offset of a maximum from the middle of three samples, within half a sample."""
    bend = before - 2 * at + after
    safe = np.where(bend < 0, bend, -1).astype(np.float32)
    top: Float = np.where(bend < 0, np.clip((before - after) / (2 * safe), -0.5, 0.5), 0).astype(np.float32)
    return top


def _octave(image: Float) -> tuple[Float, Float]:
    """Blurred copies (6, h, w) of an image and its extrema (m, 5): x, y, sigma, strength, level."""
    levels = np.stack([blur(image, s) for s in SIGMAS])
    d = np.abs(levels[1:] - levels[:-1])
    top = np.maximum(np.maximum(d[:-2], d[1:-1]), d[2:])
    top = np.maximum(np.maximum(top[:, :-2], top[:, 1:-1]), top[:, 2:])
    top = np.maximum(np.maximum(top[:, :, :-2], top[:, :, 1:-1]), top[:, :, 2:])
    found = (top == d[1:-1, 1:-1, 1:-1]) & (top > 0.03)
    # A patch half outside the picture describes the border's reflection.
    found[:, :2] = found[:, -2:] = found[:, :, :2] = found[:, :, -2:] = False
    level, y, x = (i + 1 for i in np.nonzero(found))
    at = d[level, y, x]
    fine_x = x + _parabola(d[level, y, x - 1], at, d[level, y, x + 1])
    fine_y = y + _parabola(d[level, y - 1, x], at, d[level, y + 1, x])
    fine_level = level + _parabola(d[level - 1, y, x], at, d[level + 1, y, x])
    sigma = SIGMAS[0] * 2 ** ((fine_level + 0.5) / 3)
    return levels, np.stack([fine_x, fine_y, sigma, at, level], axis=1).astype(np.float32)


def _bilinear(image: Float, x: Float, y: Float) -> Float:
    height, width = image.shape
    x, y = np.clip(x, 0, width - 1.001), np.clip(y, 0, height - 1.001)
    left, upper = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - left, y - upper
    flat = image.ravel()
    at = upper * width + left
    upper_row = flat[at] * (1 - fx) + flat[at + 1] * fx
    lower_row = flat[at + width] * (1 - fx) + flat[at + width + 1] * fx
    value: Float = upper_row * (1 - fy) + lower_row * fy
    return value


def describe(thumb: npt.NDArray[np.uint8]) -> Keypoints:
    """Find and describe the keypoints of a thumbnail.

    Parameters
    ----------
    thumb : (h, w) uint8

    Returns
    -------
    Keypoints
        At most `KEYPOINTS`, spread over a 4 x 4 grid, so that a bright text does not take them all. Patches are cosine
        coefficients of unit length, without the mean. None where the image is empty or has fewer than 24 px a side.
    """
    height, width = thumb.shape
    octaves: list[tuple[int, Float, Float]] = []
    image = flatten(thumb)
    for step in (1, 2):
        if min(image.shape) < 24:
            break
        levels, points = _octave(image)
        octaves.append((step, levels, points))
        image = np.ascontiguousarray(levels[3][::2, ::2])
    if not sum(len(points) for _, _, points in octaves):
        return Keypoints(np.zeros((0, 3), np.float32), np.zeros((0, DIMS), np.float16))

    place = np.concatenate([points[:, :3] * step for step, _, points in octaves])  # (m, 3)
    strength = np.concatenate([points[:, 3] for _, _, points in octaves])
    cell = (place[:, 0] * 4 / width).astype(int).clip(0, 3) + 4 * (place[:, 1] * 4 / height).astype(int).clip(0, 3)
    order = np.lexsort((-strength, cell))
    first = np.searchsorted(cell[order], np.arange(16))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - first[cell[order]]
    kept = np.sort(np.lexsort((-strength, rank))[:KEYPOINTS])

    patches = np.zeros((len(kept), PATCH, PATCH), np.float32)
    grid = ((np.arange(PATCH) - (PATCH - 1) / 2) * 0.75).astype(np.float32)
    start = 0
    for _, levels, points in octaves:
        mine = np.flatnonzero((kept >= start) & (kept < start + len(points)))
        p = points[kept[mine] - start]
        start += len(points)
        for level in np.unique(p[:, 4]):
            of = p[:, 4] == level
            reach = p[of, 2, None, None] * grid  # (m, 1, 16)
            x, y = np.broadcast_arrays(p[of, 0, None, None] + reach, p[of, 1, None, None] + reach.transpose(0, 2, 1))
            patches[mine[of]] = _bilinear(levels[int(level)], x, y)
    cosines = (_COSINES @ patches @ _COSINES.T).reshape(len(kept), -1)[:, 1:]  # (k, 63)
    cosines /= np.linalg.norm(cosines, axis=1, keepdims=True) + 1e-6
    return Keypoints(place[kept], cosines.astype(np.float16))


def _nearest(points: Float, centres: Float, probes: int) -> npt.NDArray[np.int32]:
    """The `probes` centres (n, probes) nearest to each point, by scalar product."""
    found = np.empty((len(points), probes), np.int32)
    for s in range(0, len(points), 4096):
        likeness = points[s : s + 4096] @ centres.T
        rows = np.arange(len(likeness))
        for k in range(probes):
            # Several passes for the maximum are faster than one partial sort.
            found[s : s + 4096, k] = best = likeness.argmax(axis=1)
            likeness[rows, best] = -2
    return found


def _matches(patch: npt.NDArray[np.float16], owner: Int, least: float, tick: Callable[[float], Any]) -> Int:
    """Pairs of like patches of different images, sorted codes (m,): (first * n + second) * 2 + mirrored."""
    n = len(patch)
    rng = np.random.default_rng(0)
    cells = int(np.clip(n // 400, 1, 4096))
    some = patch[np.sort(rng.choice(n, min(n, 40 * cells), replace=False))].astype(np.float32)
    centres = some[rng.choice(len(some), cells, replace=False)]
    for _ in range(2):
        near = _nearest(some, centres, 1)[:, 0]
        sums = np.zeros_like(centres)
        np.add.at(sums, near, some)
        centres = sums / (np.linalg.norm(sums, axis=1, keepdims=True) + 1e-6)

    probes = min(3, cells)
    homes = np.empty((2, n, probes), np.int32)
    for mirrored, sign in enumerate((np.ones_like(MIRROR), MIRROR)):
        for s in range(0, n, 65536):
            homes[mirrored, s : s + 65536] = _nearest(patch[s : s + 65536].astype(np.float32) * sign, centres, probes)
        tick(0.25 * (mirrored + 1))
    order = np.argsort(homes[0, :, 0], kind="stable")
    edges = np.searchsorted(homes[0, order, 0], np.arange(cells + 1))
    found: list[Int] = []  # first * 2 n + second * 2 + mirrored, one number a match: there are tens of millions
    for mirrored, sign in enumerate((np.ones_like(MIRROR), MIRROR)):
        visitors = np.argsort(homes[mirrored].ravel(), kind="stable")
        doors = np.searchsorted(homes[mirrored].ravel()[visitors], np.arange(cells + 1))
        for c in range(cells):
            home = order[edges[c] : edges[c + 1]]
            if len(home) < 2:
                continue
            inside = patch[home].astype(np.float32)
            for s in range(doors[c], doors[c + 1], 8192):
                guest = visitors[s : min(s + 8192, doors[c + 1])] // probes
                likeness = (patch[guest].astype(np.float32) * sign) @ inside.T
                likeness[owner[guest][:, None] == owner[home][None]] = -2
                rows = np.arange(len(guest))
                for _ in range(min(5, len(home))):
                    best = likeness.argmax(axis=1)
                    good = np.flatnonzero(likeness[rows, best] > least)
                    one, other = guest[good], home[best[good]]
                    found.append(np.minimum(one, other) * (2 * n) + np.maximum(one, other) * 2 + mirrored)
                    likeness[rows, best] = -2
            if c % 64 == 0:
                tick(0.5 + 0.25 * (mirrored + c / cells))
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _fit(a: Float, b: Float, chosen: Int) -> tuple[float, float, float, float, int]:
    """Scale and shift from places `a` to places `b` (m, 3) by least squares, from the chosen ones outwards."""
    scale = np.full(2, np.median(b[chosen, 2] / a[chosen, 2]))
    shift = np.median(b[chosen, :2] - scale * a[chosen, :2], axis=0)
    for reach in (4 * ROBUST_PX, 2 * ROBUST_PX, ROBUST_PX, ROBUST_PX):
        off = np.hypot(*(b[:, :2] - scale * a[:, :2] - shift).T)
        near = off < reach
        if near.sum() < 2:
            break
        mean_a, mean_b = a[near, :2].mean(axis=0), b[near, :2].mean(axis=0)
        from_a, from_b = a[near, :2] - mean_a, b[near, :2] - mean_b
        width = (from_a**2).sum(axis=0)
        if near.sum() >= 8 and width.min() > 8 * 11**2:
            # Enough points, far enough apart: the two directions may differ, as after a resize to a square.
            scale = (from_a * from_b).sum(axis=0) / width
        elif width.sum() > 15**2:
            scale = np.full(2, (from_a * from_b).sum() / width.sum())
        scale = np.clip(scale, 0.35, 2.9)
        shift = mean_b - scale * mean_a
    near = np.hypot(*(b[:, :2] - scale * a[:, :2] - shift).T) < ROBUST_PX
    votes = min(len(np.unique(a[near, :2], axis=0)), len(np.unique(b[near, :2], axis=0)))
    return float(scale[0]), float(scale[1]), float(shift[0]), float(shift[1]), votes


def candidates(
    points: list[Keypoints],
    sizes: npt.NDArray[np.int64],
    *,
    votes: int = 3,
    likeness: float = 0.8,
    tick: Callable[[float], Any] = lambda done: None,
) -> list[Candidate]:
    """Pairs of images whose patches agree on a transform.

    Parameters
    ----------
    points : list of Keypoints
        One an image.
    sizes : (n, 2) int
        Width and height of the thumbnails.
    votes : int
        Patches that must agree at least.
    likeness : float
        Least cosine between two patches, -1 to 1.
    tick : callable
        Told the share of the work done, 0 to 1.

    Returns
    -------
    list of Candidate
        With a < b, most votes first; a pair may occur twice, plain and mirrored.
    """
    n = len(points)
    owner = np.repeat(np.arange(n), [len(p.place) for p in points])
    if len(owner) < 2:
        return []
    place = np.concatenate([p.place for p in points])
    codes = _matches(np.concatenate([p.patch for p in points]), owner, likeness, tick)
    if not len(codes):
        return []
    total = len(owner)
    pair = (owner[codes // (2 * total)] * n + owner[codes // 2 % total]) * 2 + codes % 2
    order = np.argsort(pair, kind="stable")
    pair, codes = pair[order], codes[order]
    edge = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1], True])
    enough = np.repeat(np.diff(edge) >= votes, np.diff(edge))
    pair, codes = pair[enough], codes[enough]
    if not len(pair):
        return []

    a, b = place[codes // (2 * total)], place[codes // 2 % total]
    size = sizes[pair // 2 // n].astype(np.float32)
    a[:, 0] = np.where(pair % 2 == 1, size[:, 0] - 1 - a[:, 0], a[:, 0])
    octave = np.log2(b[:, 2] / a[:, 2])
    # Where the middle of `a` would lie in `b`: stabler than where its corner would.
    middle = b[:, :2] + (b[:, 2] / a[:, 2])[:, None] * ((size - 1) / 2 - a[:, :2])
    starts = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]])
    best = np.zeros(len(starts), np.int64)
    winner = np.zeros((len(starts), 2), np.int64)  # which of the binnings, which bin
    number = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(pair)]))
    # Eight binnings, each half a bin further in scale, x or y, so that no agreement is cut by a bin's edge.
    shifts = [(s, x, y) for s in (0, 0.5) for x in (0, 0.5) for y in (0, 0.5)]
    bins = np.empty((len(shifts), len(pair)), np.int64)
    for i, (s, x, y) in enumerate(shifts):
        where = [np.floor(octave / 0.5 + s), np.floor(middle[:, 0] / 30 + x), np.floor(middle[:, 1] / 30 + y)]
        steps = [np.clip(w.astype(np.int64) + 32, 0, 63) for w in where]
        bins[i] = ((number * 64 + steps[0]) * 64 + steps[1]) * 64 + steps[2]
        values, counts = np.unique(bins[i], return_counts=True)
        of = values // 64**3
        by_count = np.lexsort((values, counts))  # the largest of each pair is written last
        better = counts[by_count] > best[of[by_count]]
        rows = by_count[better]
        best[of[rows]] = counts[rows]
        winner[of[rows], 0], winner[of[rows], 1] = i, values[rows]
    ends = np.r_[starts[1:], len(pair)]
    out: list[Candidate] = []
    for k in np.flatnonzero(best >= votes):
        rows = slice(starts[k], ends[k])
        chosen = np.flatnonzero(bins[winner[k, 0], rows] == winner[k, 1])
        scale_x, scale_y, dx, dy, agreeing = _fit(a[rows], b[rows], chosen)
        if agreeing >= votes:
            first, second = divmod(int(pair[starts[k]]) // 2, n)
            mirrored = bool(pair[starts[k]] % 2)
            out.append(Candidate(first, second, mirrored, scale_x, scale_y, dx, dy, agreeing))
    return sorted(out, key=lambda c: -c.votes)
