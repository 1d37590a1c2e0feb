"""The stress test of trained runs: their predictions on corrupted images, and what that does to the figures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sonobreast.data.cohort import Sources
from sonobreast.environment import record
from sonobreast.evaluation import robustness
from sonobreast.evaluation.robustness_page import write as write_page
from sonobreast.inspection.corruptions import CORRUPTIONS, STRENGTHS, U8, contact_sheet, corrupt, kind_named
from sonobreast.inspection.judges import Floats, Judged, Progress, answers, models_of
from sonobreast.inspection.sample import about, sample
from sonobreast.records import write_json, write_table
from sonobreast.training.folder import alone

LIMIT = 80
"""Images that are judged unless the caller says otherwise: 76 pictures of each, minutes for a small network."""
_KIND = "stress test"


def stress_runs(
    given: Sequence[Path],
    sources: Sources,
    out: Path,
    *,
    configurations: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    limit: int | None = LIMIT,
    subset: str = "test",
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Judge corrupted images with frozen runs: ``stress.csv``, ``stress.json``, ``predictions.csv``, ``stress.html``.

    Parameters
    ----------
    given : sequence of Path
        Run folders or studies; each configuration of each study is a model, and models are compared.
    sources : Sources
        The images: the study's own (each judged by the runs that tested it) or others (judged by all runs).
    out : Path
    configurations : sequence of str or None
        Only these.
    kinds : sequence of str or None
        Corruptions; all by default.
    limit : int or None
        Images at most, as `sonobreast.inspection.sample.drawn` draws them; None: all.
    subset : {"test", "validation"}
        Of the study's own images.
    seed : int
        Of the draw and of the corruptions.
    resamples : int
    progress, say
        As elsewhere.

    Returns
    -------
    Path
        Of ``stress.html``.

    Raises
    ------
    SonobreastError
        For unknown kinds, and if runs or images cannot be used.
    """
    names = list(dict.fromkeys(kind_named(k).name for k in kinds)) if kinds else list(CORRUPTIONS)
    tell, speak = progress or (lambda stage, done, total: None), say or (lambda text: None)
    models = models_of(given, configurations)
    with alone(out):
        every, judged = sample(
            models, sources, out, _KIND, limit=limit, subset=subset, seed=seed, progress=tell, say=speak
        )
        conditions = [(k, s) for k in names for s in range(1, STRENGTHS + 1)]

        def pictures(i: int, image: U8) -> list[U8]:
            own = [seed, zlib.crc32(judged.cases[i].image.encode())]
            return [image, *(corrupt(image, k, s, own) for k, s in conditions)]

        p, read = answers(judged, pictures, stage="judging corrupted images", progress=tell, say=speak)
        table = _table(judged, read, [(robustness.CLEAN, 0), *conditions], p)
        tell("figures", 0, 0)
        found = robustness.analyse(table, resamples=resamples, seed=seed)
        content = {
            "about": about(every, judged, len(read), subset=subset, seed=seed),
            "kinds_in_words": [
                {"name": k, "title": c.title, "means": c.means, "unit": c.unit, "labels": c.labels}
                for k in names
                for c in [CORRUPTIONS[k]]
            ],
            **found,
            "environment": record(),
        }
        probabilities = tuple(f"p_{c}" for c in judged.classes)
        columns = ("model", "kind", "strength", "image", "group", "label", *probabilities)
        write_table(out / "predictions.csv", columns, _rounded(table, probabilities))
        write_table(out / "stress.csv", robustness.columns(found), robustness.rows(found))
        write_json(out / "stress.json", content)
        return write_page(out, content, _sheet(names))


def _table(judged: Judged, read: Sequence[int], conditions: Sequence[tuple[str, int]], p: Floats) -> pd.DataFrame:
    cases = [judged.cases[i] for i in read]
    base = pd.DataFrame({"image": [c.image for c in cases], "group": [c.group for c in cases]})
    base["label"] = [c.label for c in cases]
    parts = []
    for m, model in enumerate(judged.models):
        for k, (kind, strength) in enumerate(conditions):
            part = base.assign(model=model.title, kind=kind, strength=strength)
            parts.append(part.assign(**{f"p_{c}": p[m, :, k, n] for n, c in enumerate(judged.classes)}))
    return pd.concat(parts, ignore_index=True)


def _rounded(table: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    text = {c: [f"{v:.6g}" for v in table[c]] for c in columns}
    return [{str(k): v for k, v in r.items()} for r in table.assign(**text).to_dict("records")]


def _sheet(kinds: Sequence[str]) -> bytes:
    """The corruptions on a simulated image, as a JPEG: no patient's picture is needed to show them."""
    from io import BytesIO

    from sonobreast.data.phantom import simulate

    stream = BytesIO()
    picture: U8 = np.asarray(simulate(1, seed=3, size=360).image)
    contact_sheet(picture, kinds=kinds, width=140).save(stream, format="JPEG", quality=80)
    return stream.getvalue()
