"""The search for short-cuts of trained runs: what they know from parts of the picture, and what marks do to them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonobreast.data.cohort import Sources
from sonobreast.data.inpaint import without_marks
from sonobreast.data.marks import look
from sonobreast.data.masks_out import true_mask
from sonobreast.environment import record
from sonobreast.errors import SonobreastError
from sonobreast.evaluation import shortcuts
from sonobreast.evaluation.shortcuts_page import write as write_page
from sonobreast.inspection import views
from sonobreast.inspection.judges import Floats, Judged, Progress, answers, models_of
from sonobreast.inspection.sample import about, sample
from sonobreast.records import Case, write_json, write_table
from sonobreast.training.folder import alone

LIMIT = 400
_KIND = "search for short-cuts"
LESION_PARTS = ("background-filled", "background-grey", "outline", "lesion")
PARTS = (*LESION_PARTS, "border", "unmarked")
ADDED = ("calipers", "text")
_VIEWS = (shortcuts.WHOLE, *PARTS, *ADDED)
Bits = NDArray[np.bool_]


def find_shortcuts(
    given: Sequence[Path],
    sources: Sources,
    out: Path,
    *,
    configurations: Sequence[str] | None = None,
    limit: int | None = LIMIT,
    subset: str = "test",
    seed: int = 0,
    resamples: int = 2000,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Judge parts of images: ``shortcuts.csv``, ``shortcuts.json``, ``predictions.csv``, ``shortcuts.html``.

    Views: the background alone (the lesion, widened by `views.RIM`, filled smoothly, or with the rest's mean grey);
    its outline alone (two greys); the lesion alone (the rest its mean grey); the border alone (outer `views.BORDER`);
    without the marks that `sonobreast.data.marks.look` finds; and, of images in which it finds neither calipers nor
    text, with two measured distances or two lines of text added.

    Images without a lesion borrow the outline of another image's for the views of the lesion: else a filled place
    itself would tell them apart. Images whose lesion nobody outlined have no such views.

    Parameters
    ----------
    given, sources, out, configurations, limit, subset, seed, resamples, progress, say
        As in `sonobreast.inspection.stress.stress_runs`.

    Returns
    -------
    Path
        Of ``shortcuts.html``.

    Raises
    ------
    SonobreastError
        If runs or images cannot be used.
    """
    tell, speak = progress or (lambda stage, done, total: None), say or (lambda text: None)
    models = models_of(given, configurations)
    with alone(out):
        every, judged = sample(
            models, sources, out, _KIND, limit=limit, subset=subset, seed=seed, progress=tell, say=speak
        )
        outlined = _with_lesion(judged, speak)
        changed: dict[int, tuple[bool, ...]] = {}

        def pictures(i: int, image: views.U8) -> list[views.U8 | None]:
            shown = _views(image, *_masks(judged, i, outlined, seed), _seed(judged.cases[i], seed))
            changed[i] = tuple(p is not None and p is not image for p in shown)
            return shown

        p, read = answers(judged, pictures, stage="judging parts of images", progress=tell, say=speak)
        table = _table(judged, read, changed, p)
        tell("figures", 0, 0)
        present = set(table["view"])
        found = shortcuts.analyse(
            table,
            parts=[v for v in PARTS if v in present],
            shifts=["unmarked", *ADDED],
            resamples=resamples,
            seed=seed,
        )
        content = {
            "about": about(every, judged, len(read), subset=subset, seed=seed) | _counts(judged, table, len(read)),
            "not_applicable": _missing(found, bool(outlined)),
            **found,
            "environment": record(),
        }
        probabilities = tuple(f"p_{c}" for c in judged.classes)
        text = {c: [f"{v:.6g}" for v in table[c]] for c in probabilities}
        columns = ("model", "view", "image", "group", "label", "changed", *probabilities)
        lines = [{str(k): v for k, v in r.items()} for r in table.assign(**text).to_dict("records")]
        write_table(out / "predictions.csv", columns, lines)
        write_table(out / "shortcuts.csv", shortcuts.COLUMNS, shortcuts.rows(found))
        write_json(out / "shortcuts.json", content)
        return write_page(out, content)


def _seed(case: Case, seed: int) -> int:
    return zlib.crc32(case.image.encode()) + seed


def _with_lesion(judged: Judged, speak: Callable[[str], None]) -> list[int]:
    """Images whose lesion is outlined; a mask that cannot be read is said and counts as none."""
    found = []
    for i, case in enumerate(judged.cases):
        if case.masks and case.label != "normal":
            mask = _mask(judged, i)
            if mask is not None and mask.any():
                found.append(i)
            elif mask is None:
                speak(f"no lesion is outlined for {case.image}: it has no views of its lesion")
    return found


def _mask(judged: Judged, i: int) -> Bits | None:
    try:
        return true_mask(judged.root, judged.cases[i])
    except SonobreastError:
        return None


def _masks(judged: Judged, i: int, outlined: Sequence[int], seed: int) -> tuple[Bits | None, Bits | None]:
    """The lesion's mask, and what is hidden: a borrowed outline where there is no lesion; None where not known."""
    own = _mask(judged, i)
    if own is None or not outlined:
        return own, None
    if own.any():
        return own, own
    rng = np.random.default_rng(_seed(judged.cases[i], seed))
    other = _mask(judged, outlined[int(rng.integers(len(outlined)))])
    return own, None if other is None else views.borrowed(other, *own.shape)


def _views(image: views.U8, lesion: Bits | None, hidden: Bits | None, seed: int) -> list[views.U8 | None]:
    """The pictures of an image in the order of `_VIEWS`; the very same array where a view changes nothing."""
    shown: list[views.U8 | None] = [image]
    if hidden is None or hidden.shape != image.shape[:2]:
        shown += [None] * len(LESION_PARTS)
    else:
        wide = views.widened(hidden)
        shown += [
            views.filled_smoothly(image, wide),
            views.filled_grey(image, wide),
            views.outline_only(image, hidden),
            views.filled_grey_outside(image, hidden),
        ]
    shown += [views.border_only(image), without_marks(image)]
    marks = look(image)
    if marks.calipers or marks.text:
        return [*shown, None, None]
    fits = lesion is not None and lesion.shape == image.shape[:2]
    return [*shown, views.calipers_on(image, lesion if fits else None, seed), views.text_on(image, seed)]


def _table(judged: Judged, read: Sequence[int], changed: dict[int, tuple[bool, ...]], p: Floats) -> pd.DataFrame:
    """A row for each model, view and image that has it."""
    cases = [judged.cases[i] for i in read]
    base = pd.DataFrame({"image": [c.image for c in cases], "group": [c.group for c in cases]})
    base["label"] = [c.label for c in cases]
    parts = []
    for m, model in enumerate(judged.models):
        for k, view in enumerate(_VIEWS):
            part = base.assign(model=model.title, view=view, changed=[changed[i][k] for i in read])
            part = part.assign(**{f"p_{c}": p[m, :, k, n] for n, c in enumerate(judged.classes)})
            parts.append(part[np.isfinite(p[m, :, k, 0])])
    return pd.concat(parts, ignore_index=True)


def _missing(found: dict[str, Any], outlined: bool) -> dict[str, str]:
    """View -> why there are no figures for it."""
    first = found["models"][0]
    missing = {}
    for view in LESION_PARTS:
        if view not in first["parts"]:
            missing[view] = "no lesion of these images is outlined: there are no masks" if not outlined else "no image"
    if "unmarked" not in first["shifts"]:
        missing["unmarked"] = "no marks were found in these images"
    for view in ADDED:
        if view not in first["shifts"]:
            missing[view] = "all of these images carry calipers or text already"
    return missing


def _counts(judged: Judged, table: pd.DataFrame, read: int) -> dict[str, int]:
    """How many images have which views; alike for all models."""
    first = table[table["model"] == judged.models[0].title]
    has = first[first["view"] == "background-filled"]
    return {
        "borrowed": int((has["label"] == "normal").sum()),
        "without_outline": read - len(has),
        "marked": int((first[first["view"] == "unmarked"]["changed"]).sum()),
        "unmarked": int((first["view"] == "calipers").sum()),
    }
