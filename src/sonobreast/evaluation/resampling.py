"""Resamples of whole groups: any statistic of weighted cases, on the sample, on each resample, without each group.

A statistic takes case multiplicities (R, n) and gives named values (R,), so that thousands of resamples are a few
matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from sonobreast.evaluation.metrics import Floats, Ints

Statistic = Callable[[Floats], Mapping[str, Floats]]

# Numbers held at once: weights of a chunk of resamples stay within a few processor caches' reach.
_CHUNK = 2**20


class Draws(NamedTuple):
    """A statistic on the cases (float), on R resamples (R,), and with each of G groups left out (G,), or None."""

    estimate: float
    resampled: Floats
    jackknife: Floats | None


def draw_statistics(
    statistic: Statistic, codes: Ints, *, resamples: int, seed: int = 0, jackknife: bool
) -> dict[str, Draws]:
    """Statistics on resamples of whole groups drawn with replacement, as many groups as there are.

    The same seed and groups give the same resamples whatever the statistic is: that is what pairs two models.

    Parameters
    ----------
    statistic : callable
        Case multiplicities, float (R, n), to name -> float (R,); NaN where it is not defined.
    codes : int (n,)
        Group of each case, 0 .. G-1, from `sonobreast.evaluation.metrics.group_codes`.
    resamples, seed : int
        How many resamples, and the seed of their generator.
    jackknife : bool
        Whether to leave out each group in turn as well, which BCa needs.

    Returns
    -------
    dict of str to Draws
    """
    plain = statistic(np.ones((1, len(codes))))
    drawn = _joined([statistic(w) for w in _drawn_weights(codes, resamples, seed)])
    left_out = _joined([statistic(w) for w in _left_out_weights(codes)]) if jackknife else None
    return {
        name: Draws(float(plain[name][0]), drawn[name], None if left_out is None else left_out[name]) for name in plain
    }


def _joined(chunks: list[Mapping[str, Floats]]) -> dict[str, Floats]:
    return {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}


def _drawn_weights(codes: Ints, resamples: int, seed: int) -> Iterator[Floats]:
    """Case multiplicities (r, n) of resamples of groups, a chunk at a time; the chunks do not change the draws."""
    generator = np.random.default_rng(seed)
    groups = int(codes.max()) + 1
    rows = max(1, _CHUNK // len(codes))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(groups, size=(count, groups)) + groups * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * groups).reshape(count, groups)  # (r, G)
        yield times[:, codes].astype(np.float64)


def _left_out_weights(codes: Ints) -> Iterator[Floats]:
    """Case multiplicities (r, n) with one group left out in each row: G rows in all."""
    groups = int(codes.max()) + 1
    rows = max(1, _CHUNK // len(codes))
    for start in range(0, groups, rows):
        out = np.arange(start, min(start + rows, groups))
        yield (codes[None, :] != out[:, None]).astype(np.float64)
