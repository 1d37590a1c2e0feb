"""Images of one data set that are also in another: a model must not be tested on what it was trained with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain

from sonobreast.data.groups import pictures
from sonobreast.data.manifest import Manifest
from sonobreast.data.preprocess import quiet
from sonobreast.records import Row

Progress = Callable[[str, int, int], None]


class Shared(Row):
    """An image of one data set that shows the same picture as an image of another.

    Attributes
    ----------
    a, b : str
        Names in the first and in the second data set.
    kind : str
        ``identical-file``, ``identical-pixels``, ``near-duplicate`` (the same frame, changed) or ``same-view`` (very
        probably another frame of the same view: not a copy, but the same patient).
    score : float
        Median correlation of the tiles (`sonobreast.data.duplicates.Pair`); 1 for identical pictures.
    remark : str
        How ``b`` was changed against ``a``, for example ``scale 1.25, shift -40 +3 px``.
    """

    a: str
    b: str
    kind: str
    score: float = 1.0
    remark: str = ""


def overlap(a: Manifest, b: Manifest, *, workers: int = 2, progress: Progress | None = None) -> list[Shared]:
    """Find the images of ``b`` that show the same picture as an image of ``a``.

    Files with the same bytes are told by their digests; all others are compared in one search
    (`sonobreast.data.duplicates.find_pairs`), of which the pairs between the two sets are kept.

    Parameters
    ----------
    a, b : Manifest
        For example what a model was trained with, and what it is to be tested on. Both need their image files.
    workers : int
        Threads of the search.
    progress : callable or None
        Told the stage, what is done, and of how many.

    Returns
    -------
    list of Shared
        In the order of ``b``, then of ``a``. An image of ``b`` that is identical with one of ``a`` is given with the
        first of these only; of all others every pair is there.

    Raises
    ------
    SonobreastError
        If an image that is in a manifest cannot be read any more.
    """
    first: dict[str, int] = {}
    for i, case in enumerate(a.cases):
        first.setdefault(case.sha256, i)
    found = {(first[c.sha256], j): ("identical-file", 1.0, "") for j, c in enumerate(b.cases) if c.sha256 in first}
    rest = [j for j, c in enumerate(b.cases) if c.sha256 not in first]
    if rest and a.cases:
        found |= _search(a, b, rest, workers, progress)
    return [
        Shared(a=a.cases[i].image, b=b.cases[j].image, kind=kind, score=score, remark=remark)
        for (i, j), (kind, score, remark) in sorted(found.items(), key=lambda item: item[0][::-1])
    ]


def _search(
    a: Manifest, b: Manifest, rest: Sequence[int], workers: int, progress: Progress | None
) -> dict[tuple[int, int], tuple[str, float, str]]:
    """Pairs of positions in ``a`` and ``b``, for the images of ``b`` at the positions ``rest``."""
    from sonobreast.data.duplicates import find_pairs

    n = len(a.cases)
    total = n + len(rest)

    def tell(stage: str, done: int, of: int) -> None:
        if progress is not None:
            progress(stage, done, of or total)

    with quiet():
        both = chain(pictures(a), pictures(b, rest))
        pairs = find_pairs(both, workers=workers, progress=tell)
    # The search gives each copy with the first of its kind, and near-duplicates for that first one only.
    copies: dict[int, list[int]] = defaultdict(list)
    for p in pairs:
        if p.kind.startswith("identical"):
            copies[p.a].append(p.b)
    exact = {p.b for p in pairs if p.kind.startswith("identical") and p.a < n <= p.b}
    found: dict[tuple[int, int], tuple[str, float, str]] = {}
    for p in pairs:
        if p.kind.startswith("identical"):
            if p.a < n and p.b in exact:
                found[p.a, rest[p.b - n]] = (p.kind, p.score, p.remark)
            continue
        for i in (p.a, *copies[p.a]):
            for j in (p.b, *copies[p.b]):
                if i < n <= j and j not in exact:
                    found[i, rest[j - n]] = (p.kind, p.score, p.remark)
    return found
