"""Which images an examination judges, and what its page says of them: all that may be judged, or a draw of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonobreast.config import dump_yaml
from sonobreast.data.catalogue import DATA_SETS
from sonobreast.data.cohort import Sources
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.inspections import examined
from sonobreast.inspection.judges import Judged, Model, Progress, appoint
from sonobreast.records import Case, atomic
from sonobreast.training.fit import read_config
from sonobreast.training.folder import refuse_foreign


def sample(
    models: Sequence[Model],
    sources: Sources,
    out: Path,
    kind: str,
    *,
    limit: int | None,
    subset: str,
    seed: int,
    progress: Progress,
    say: Callable[[str], None],
) -> tuple[Judged, Judged]:
    """Begin an examination: who may judge which image, a draw of the images, ``config.yaml``; what is left out is said.

    Parameters
    ----------
    models : sequence of Model
    sources : Sources
        The images.
    out : Path
        Folder of the examination, held by the caller (`sonobreast.training.folder.alone`).
    kind : str
        What the folder is to hold; one that holds something else is refused.
    limit, seed
        As in `drawn`.
    subset, progress, say
        As in `sonobreast.inspection.judges.appoint`.

    Returns
    -------
    every, judged : Judged
        All images that may be judged, and those that are.
    """
    refuse_foreign(out, kind)
    every = appoint(models, sources, subset=subset, progress=progress, say=say)
    judged = drawn(every, limit, seed)
    for why, n in every.skipped.items():
        say(f"{n} images are not judged: {why}")
    if len(judged.cases) < len(every.cases):
        say(
            f"{len(judged.cases)} of {len(every.cases)} images are drawn (seed {seed}), classes as they are mixed, "
            "one image a group first; --limit 0 takes all"
        )
    with atomic(out / "config.yaml") as stream:
        runs = [run.name for m in judged.models for run in m.runs]
        stream.write(dump_yaml({"schema_version": 1, "kind": kind, "runs": runs}))
    return every, judged


def about(every: Judged, judged: Judged, read: int, *, subset: str, seed: int) -> dict[str, Any]:
    """What was judged by whom, for the page; ``read`` is how many of the drawn images could be read."""
    sources = sorted({c.source for c in judged.cases})
    fills = {
        m.title: all(read_config(r)["recipe"]["preprocess"].get("inpaint_marks", False) for r in m.runs)
        for m in judged.models
    }
    return {
        "models": [{"model": m.title, "runs": [r.name for r in m.runs]} for m in judged.models],
        **examined([r for m in judged.models for r in m.runs]),
        "name": ", ".join(DATA_SETS[s].title if s in DATA_SETS else s for s in sources),
        "available": len(every.cases),
        "drawn": len(judged.cases),
        "unreadable": len(judged.cases) - read,
        "own": every.own,
        "skipped": every.skipped,
        "subset": subset,
        "seed": seed,
        "fills_marks": [title for title, does in fills.items() if does],
        "simulated": any(c.source == "phantom" for c in judged.cases),
    }


def drawn(judged: Judged, limit: int | None, seed: int = 0) -> Judged:
    """At most so many images: classes as they are mixed, one image a group before any second one, drawn by the seed.

    Parameters
    ----------
    judged : Judged
    limit : int or None
        None: all.
    seed : int
    """
    n = len(judged.cases)
    if limit is not None and limit < 1:
        raise SonobreastError(f"--limit {limit}", remedy="give 1 or more, or 0 for all images")
    if limit is None or limit >= n:
        return judged
    rng = np.random.default_rng(seed)
    place: dict[str, float] = {g: float(u) for g, u in zip(*_shuffled(judged.cases, rng), strict=True)}
    order = sorted(range(n), key=lambda i: (place[judged.cases[i].group], judged.cases[i].image))
    count: dict[tuple[str, str], int] = {}
    turn = {}
    for i in order:
        key = (judged.cases[i].group, judged.cases[i].label)
        turn[i] = count[key] = count.get(key, -1) + 1
    order.sort(key=lambda i: turn[i])  # stable: first images of groups first
    labels = sorted({c.label for c in judged.cases})
    sizes = np.array([sum(c.label == name for c in judged.cases) for name in labels])
    exact = limit * sizes / n
    quota = np.floor(exact).astype(int)
    for k in np.argsort(quota - exact, kind="stable")[: limit - int(quota.sum())]:
        quota[k] += 1
    chosen: list[int] = []
    for name, size in zip(labels, quota, strict=True):
        chosen += [i for i in order if judged.cases[i].label == name][:size]
    chosen.sort()
    return replace(
        judged,
        cases=tuple(judged.cases[i] for i in chosen),
        runs=tuple(tuple(of[i] for i in chosen) for of in judged.runs),
    )


def _shuffled(cases: Sequence[Case], rng: np.random.Generator) -> tuple[list[str], NDArray[np.float64]]:
    groups = sorted({c.group for c in cases})
    return groups, rng.random(len(groups))
