"""Copies in a data set: which images show the same picture, and the groups that must stay on one side of a split.

Three steps. Equal bytes and equal pixels are found by digest. For the rest `keypoints.candidates` proposes pairs with
a transform (shift, scale, mirror). Each proposal is then checked over the whole overlap: both pictures are flattened
(high-pass, local contrast one), laid over one another, cut into tiles, and each tile is correlated. The score is the
median over the tiles: calipers, text and arrows spoil a few tiles, not the median; a logo that two different pictures
share wins a few tiles, not the median.

On BUSI the scores of copies lie above 0.7 (mostly above 0.9), those of unrelated pictures below 0.4; between the two
lie other frames of one view, taken a moment apart. See `docs/audit_busi_pairs.csv` for pairs judged by eye.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph
from threadpoolctl import threadpool_limits

from sonobreast.data.keypoints import Candidate, Float, Keypoints, candidates, describe, flatten, thumbnail
from sonobreast.errors import SonobreastError

Kind = Literal["identical-file", "identical-pixels", "near-duplicate", "same-view"]
Picture = Path | str | npt.NDArray[np.uint8]
Progress = Callable[[str, int, int], None]
T = TypeVar("T")
R = TypeVar("R")

TILE = 18
"""Side of a tile in thumbnail pixels: about 100 tiles a picture."""
PLAY = 2
"""Each tile may lie this many thumbnail pixels beside its place: tissue gives way between two frames."""
COPY = 0.7
"""Least median correlation of a near-duplicate: the same frame."""
SCORE = 0.5
"""Least median correlation of a pair that is reported; below COPY it is another frame of the same view."""
OVERLAP = 0.4
"""Least share of the smaller picture that the other one must show."""
STRICTER = 0.25
"""What is added to SCORE as the overlap goes to 0: among few tiles chance reaches further."""
MIN_TILES = 12


@dataclass(frozen=True)
class Pair:
    """Two images that show the same picture.

    `a` and `b` are positions in the input, a < b. A pixel (x, y) of `a` lies at (scale_x * x + dx, scale_y * y + dy) in
    `b`, in pixels of the files as they are; where `mirrored`, x is counted from the right edge of `a`.

    Attributes
    ----------
    a, b : int
    kind : str
        `identical-file`, `identical-pixels`, `near-duplicate` (the same frame, changed), or `same-view` (very probably
        another frame of the same view: not a copy, but the same patient).
    score : float
        Median correlation of the tiles, -1 to 1; 1 for identical images.
    agreement : float
        Share of the tiles that correlate at 0.6 or more, 0 to 1. A high score with a lower agreement speaks for
        overlays or for a picture that changed in one place.
    overlap : float
        Share of the smaller picture that the other one shows, 0 to 1.
    mirrored : bool
    scale_x, scale_y, dx, dy : float
    """

    a: int
    b: int
    kind: Kind
    score: float = 1.0
    agreement: float = 1.0
    overlap: float = 1.0
    mirrored: bool = False
    scale_x: float = 1.0
    scale_y: float = 1.0
    dx: float = 0.0
    dy: float = 0.0

    @property
    def remark(self) -> str:
        """The transform in words, as `mirrored, scale 1.25, shift -40 3 px`; empty for a picture in its place."""
        words = ["mirrored"] if self.mirrored else []
        if max(abs(self.scale_x - 1), abs(self.scale_y - 1)) > 0.015:
            same = abs(self.scale_x / self.scale_y - 1) < 0.015
            words.append(f"scale {self.scale_x:.2f}" if same else f"scale {self.scale_x:.2f} x {self.scale_y:.2f}")
        if max(abs(self.dx), abs(self.dy)) > 1.5:
            words.append(f"shift {self.dx:+.0f} {self.dy:+.0f} px")
        if self.overlap < 0.97:
            words.append(f"overlap {self.overlap:.0%}")
        return ", ".join(words)


class _Seen(NamedTuple):
    """What is kept of one image."""

    file: bytes | None
    pixels: bytes
    width: int
    height: int
    thumb: npt.NDArray[np.uint8]
    points: Keypoints


def _decode(picture: Picture) -> tuple[bytes | None, Image.Image]:
    if isinstance(picture, np.ndarray):
        grey = picture.ndim == 2
        colour = picture.ndim == 3 and picture.shape[2] in (3, 4)
        if picture.dtype != np.uint8 or not (grey or colour) or picture.size == 0:
            raise SonobreastError(
                f"an image array must be uint8, (H, W) or (H, W, 3) and not empty; got {picture.dtype} {picture.shape}",
                remedy="window the image to 0-255 first",
            )
        return None, Image.fromarray(picture)
    try:
        raw = Path(picture).read_bytes()
        image = Image.open(io.BytesIO(raw))
        image.load()
    except (OSError, ValueError, Image.DecompressionBombError) as problem:
        raise SonobreastError(
            f"the image cannot be read: {problem}", file=picture, remedy="replace the file, or leave it out of the list"
        ) from problem
    return hashlib.sha256(raw).digest(), image


def _see(picture: Picture) -> _Seen:
    file, image = _decode(picture)
    if image.mode in ("I;16", "I", "F"):
        raise SonobreastError(
            f"the image has more than 8 bits a pixel (mode {image.mode})",
            file=None if isinstance(picture, np.ndarray) else picture,
            remedy="window the image to 0-255 first",
        )
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")
        red, green, blue = image.split()
        if red.tobytes() == green.tobytes() == blue.tobytes():
            image = red  # grey stored as colour is the same picture
    if image.mode == "1":
        image = image.convert("L")
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    thumb = thumbnail(image)
    return _Seen(file, digest.digest(), image.width, image.height, thumb, describe(thumb))


def _in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Map with threads, in order, with a short queue: the input may be a generator of more images than memory holds."""
    # Threads of the linear algebra below these threads would only wait for one another: 200 s instead of 15 s for BUSI.
    with threadpool_limits(limits=1), ThreadPoolExecutor(max_workers=workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _tiles(cut: int, n: int) -> Float:
    """(n // cut, n) matrix that sums rows into tiles."""
    return np.repeat(np.eye(n // cut, dtype=np.float32), cut, axis=1)


def compare(flat_a: Float, flat_b: Float, c: Candidate) -> tuple[float, float, float]:
    """Correlate two flattened thumbnails tile by tile under a transform.

    Parameters
    ----------
    flat_a, flat_b : (h, w) float32
        From `keypoints.flatten`.
    c : Candidate
        The transform from `a` to `b`.

    Returns
    -------
    score, agreement, overlap : float
        As in `Pair`; the score is -1 where too few tiles overlap.
    """
    if c.scale_x * c.scale_y > 1:
        # On the grid of the one that shows less: it is covered by more tiles.
        c, flat_a, flat_b = c.inverse(flat_a.shape[1], flat_b.shape[1]), flat_b, flat_a
    if c.mirrored:
        flat_a = flat_a[:, ::-1]
    rows, columns = flat_a.shape[0] // TILE, flat_a.shape[1] // TILE
    if rows * columns < MIN_TILES:
        return -1.0, 0.0, 0.0
    height, width = rows * TILE, columns * TILE
    a = flat_a[:height, :width]
    # Laid on the grid of `a` with a margin of PLAY. Pillow counts from pixel corners: hence the halves.
    outside = -99.0
    to_b = (c.scale_x, 0.0, c.dx + 0.5 - c.scale_x * (0.5 + PLAY), 0.0, c.scale_y)
    laid = Image.fromarray(flat_b).transform(
        (width + 2 * PLAY, height + 2 * PLAY),
        Image.Transform.AFFINE,
        (*to_b, c.dy + 0.5 - c.scale_y * (0.5 + PLAY)),
        Image.Resampling.BILINEAR,
        fillcolor=outside,
    )
    b = np.asarray(laid).copy()
    void = b < -50
    b[void] = 0
    down, across = _tiles(TILE, height), _tiles(TILE, width).T
    power_a = down @ (a * a) @ across  # (rows, columns)
    squares = b * b
    best = np.full((rows, columns), -1.0, np.float32)
    floor = (0.05 * TILE * TILE) ** 2
    for y in range(2 * PLAY + 1):
        for x in range(2 * PLAY + 1):
            there = np.s_[y : y + height, x : x + width]
            power_b = down @ squares[there] @ across
            best = np.maximum(best, (down @ (a * b[there]) @ across) / np.sqrt(power_a * power_b + floor))
    covered = (down @ (~void[PLAY:-PLAY, PLAY:-PLAY]).astype(np.float32) @ across) > 0.9 * TILE * TILE
    textured = power_a > 0.15 * TILE * TILE
    used = covered & textured
    shown = float((~void[PLAY:-PLAY, PLAY:-PLAY]).sum())
    area_b = flat_b.size / (c.scale_x * c.scale_y)
    overlap = min(1.0, shown / min(height * width, area_b))
    if used.sum() < MIN_TILES:
        return -1.0, 0.0, overlap
    values = best[used]
    return float(np.median(values)), float((values >= 0.6).mean()), overlap


def _in_files(a: _Seen, b: _Seen, c: Candidate) -> Candidate:
    """A candidate in pixels of the files instead of thumbnails."""
    ax, ay = a.width / a.thumb.shape[1], a.height / a.thumb.shape[0]
    bx, by = b.width / b.thumb.shape[1], b.height / b.thumb.shape[0]
    scale_x, scale_y = c.scale_x * bx / ax, c.scale_y * by / ay
    # x_b + 0.5 = bx * (x_tb + 0.5): the corner, not the middle, of the first pixel stays where it is.
    dx = bx * (c.dx + 0.5) - 0.5 + scale_x * (0.5 - 0.5 * ax)
    dy = by * (c.dy + 0.5) - 0.5 + scale_y * (0.5 - 0.5 * ay)
    return c._replace(scale_x=scale_x, scale_y=scale_y, dx=dx, dy=dy)


def _near(seen: Sequence[_Seen], a: int, b: int, c: Candidate, found: tuple[float, float, float]) -> Pair:
    """The pair of images `a` and `b` that candidate `c` (from a to b) stands for, in the order of the input."""
    c = _in_files(seen[a], seen[b], c._replace(a=a, b=b))
    if a > b:
        c = c.inverse(seen[a].width, seen[b].width)
    score, agreement, overlap = (round(v, 4) for v in found)
    kind: Kind = "near-duplicate" if score >= COPY else "same-view"
    return Pair(c.a, c.b, kind, score, agreement, overlap, c.mirrored, c.scale_x, c.scale_y, c.dx, c.dy)


def _identical(seen: Sequence[_Seen]) -> list[Pair]:
    """Each copy with the first of its kind; not all with all, which for many empty images would be a large list."""
    pairs = []
    first_pixels: dict[bytes, int] = {}
    first_file: dict[bytes, int] = {}
    for i, image in enumerate(seen):
        twin = first_file.setdefault(image.file, i) if image.file is not None else i
        same = first_pixels.setdefault(image.pixels, i)
        if twin != i:
            pairs.append(Pair(twin, i, "identical-file"))
        elif same != i:
            pairs.append(Pair(same, i, "identical-pixels"))
    return pairs


def find_pairs(
    images: Iterable[Picture],
    *,
    near: bool = True,
    score: float = SCORE,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[Pair]:
    """Find the images of a set that show the same picture.

    Found are exact copies, and copies that were shifted, cropped, re-scaled (by 0.35 to 2.9), mirrored left to right,
    re-windowed, or carry other overlays. Not looked for: rotated and upside-down copies. Every image is decoded once
    and kept as a thumbnail of 192 px: some 45 kB an image.

    Parameters
    ----------
    images : iterable of path or (H, W) or (H, W, 3) uint8 array
        May be a generator.
    near : bool
        False looks for identical files and pixels only.
    score : float
        Least median correlation of a pair, 0 to 1. With 0.5, the default, other frames of one view are found too; with
        0.7 only copies of one frame.
    workers : int
        Threads.
    progress : callable or None
        Told the stage (`reading`, `matching`, `checking`), what is done, and of how many (0: not known).

    Returns
    -------
    list of Pair
        Sorted by a and b. Of k identical images each is paired with the first only, and near-duplicates are given for
        the first only: `groups` puts them together. The same pairs are found in whatever order the images come.

    Raises
    ------
    SonobreastError
        An image cannot be read, or does not have 8 bits a channel.
    """
    tell: Progress = progress if progress is not None else lambda stage, done, total: None
    total = len(images) if isinstance(images, Sized) else 0
    seen: list[_Seen] = []
    for image in _in_order(_see, images, workers):
        seen.append(image)
        tell("reading", len(seen), total)
    pairs = _identical(seen)
    if not near:
        return sorted(pairs, key=lambda p: (p.a, p.b))

    # One image of each content, ordered by content: so the order of the input changes nothing.
    first: dict[bytes, int] = {}
    for i, image in enumerate(seen):
        first.setdefault(image.pixels, i)
    chosen = [first[key] for key in sorted(first)]
    sizes = np.array([seen[i].thumb.shape[::-1] for i in chosen], np.int64).reshape(-1, 2)
    proposed = candidates(
        [seen[i].points for i in chosen], sizes, tick=lambda done: tell("matching", round(100 * done), 100)
    )
    tell("matching", 100, 100)

    @lru_cache(maxsize=512)
    def flat(i: int) -> Float:
        return flatten(seen[i].thumb)

    def check(c: Candidate) -> Pair | None:
        a, b = chosen[c.a], chosen[c.b]
        found = compare(flat(a), flat(b), c)
        if found[2] < OVERLAP or found[0] < score + STRICTER * (1 - found[2]):
            return None
        return _near(seen, a, b, c, found)

    best: dict[tuple[int, int], Pair] = {}
    # By first image, so that its flattened thumbnail is still at hand.
    proposed.sort(key=lambda c: (c.a, c.b))
    for done, pair in enumerate(_in_order(check, proposed, workers), start=1):
        if pair is not None and ((pair.a, pair.b) not in best or best[pair.a, pair.b].score < pair.score):
            best[pair.a, pair.b] = pair
        tell("checking", done, len(proposed))
    return sorted([*pairs, *best.values()], key=lambda p: (p.a, p.b))


def groups(n: int, pairs: Iterable[Pair]) -> npt.NDArray[np.int64]:
    """Number the groups of images that pairs connect.

    Parameters
    ----------
    n : int
        Number of images.
    pairs : iterable of Pair

    Returns
    -------
    (n,) int64
        Group of each image, 0 to the number of groups less one, in the order of their first images. An image without
        a pair is a group of its own.
    """
    links = np.array([(p.a, p.b) for p in pairs], np.int64).reshape(-1, 2)
    if len(links) and (links.min() < 0 or links.max() >= n):
        raise SonobreastError(f"a pair names image {links.max()} of {n}", remedy="pass the number of images")
    graph = sparse.coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(n, n))
    label = csgraph.connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbered: npt.NDArray[np.int64] = rank[inverse]
    return numbered
