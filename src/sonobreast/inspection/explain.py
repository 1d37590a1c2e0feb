"""Where a run looked: maps over images as PNG, and, where lesions are outlined, how well the maps lie on them."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sonobreast.config import Recipe, dump_yaml
from sonobreast.data import manifest as manifests
from sonobreast.data.manifest import Manifest
from sonobreast.data.masks_out import predicted_mask_file, to_original_size, true_mask
from sonobreast.data.preprocess import decode, prepare, scale, scaling_constants
from sonobreast.environment import record
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.explain_page import write as write_report
from sonobreast.evaluation.heatmap import outlined, overlay, panel, png_of
from sonobreast.evaluation.inspections import examined
from sonobreast.evaluation.localisation import (
    CENTRE,
    SCORES,
    TITLES,
    centre_blob,
    localisation_figures,
    sanity_figures,
    score_map,
    similarity,
)
from sonobreast.evaluation.predictions import configuration_title
from sonobreast.inspection import attribution
from sonobreast.inspection.attribution import METHODS, SLOW, Explained, Map, explained, relevance
from sonobreast.inspection.evaluate import configurations_of, find_runs
from sonobreast.inspection.failure_maps import draw_failure_maps
from sonobreast.inspection.judges import Model, own_images
from sonobreast.inspection.randomised import STEPS, randomised
from sonobreast.records import atomic, read_table, write_json, write_table
from sonobreast.training.fit import TrainedNetwork, is_finished, load_run, read_config
from sonobreast.training.folder import alone, refuse_foreign

LIMIT, SLOW_LIMIT, SANITY_LIMIT, SHOWN = 60, 12, 8, 12
"""Images that are explained, by slow methods, with randomised weights, and on the page, unless the person says."""
COLUMNS = (
    "image", "group", "label", "run", "predicted", "p_predicted", "target", "p_target", "correct", "method",
    *SCORES, "area", "gain", "seconds", "overlay",
)  # fmt: skip
_KIND = "explanation"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Subject:
    """An image that is to be explained; ``case`` is None for a file without a data set."""

    name: str
    path: Path
    group: str
    label: str
    run: Path
    predicted: str = ""
    lesion: Callable[[], NDArray[np.bool_] | None] = field(default=lambda: None)


@dataclass(frozen=True)
class _Loaded:
    network: TrainedNetwork
    recipe: Recipe
    classes: tuple[str, ...]
    of: Explained


def explain_runs(
    given: Path,
    out: Path,
    *,
    images: Sequence[Path] = (),
    data: Path | None = None,
    configuration: str | None = None,
    target: str | None = None,
    methods: Sequence[str] = METHODS,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Explain what a run says of some images.

    Parameters
    ----------
    given : Path
        A run folder, or the folder of a study: each image is then explained by the run that tested it, and the errors
        that the study's report shows get maps, too (`sonobreast.inspection.failure_maps`).
    out : Path
        Gets ``overlays/``, ``explanations.csv``, ``explain.json`` and ``explain.html``.
    images : sequence of Path
        Image files; or else
    data : Path or None
        a data set. Of the run's own only test images are taken; of another all. Where it has masks the maps are scored.
    configuration : str or None
        Of a study.
    target : str or None
        A class, or ``predicted``; None: ``malignant`` where the run knows it, else ``predicted``.
    methods : sequence of str
        Of `METHODS`.
    limit : int or None
        Most images, for slow methods as well; None: 60, and 12 for slow ones.
    seed : int
        Of the choice of images, of noise and of randomised weights.

    Returns
    -------
    Path
        Of ``explain.html``.

    Raises
    ------
    SonobreastError
        For an unknown class or method, and if no image can be explained.
    """
    tell, speak = progress or (lambda stage, done, total: None), say or (lambda text: None)
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise SonobreastError(
            f"no method is named {', '.join(unknown) or '(none)'}", remedy=f"take {', '.join(METHODS)}"
        )
    if bool(images) == (data is not None):
        raise SonobreastError("give either image files or a data set", remedy="name images, or a folder with --data")
    if limit is not None and limit < 1:
        raise SonobreastError(f"a limit of {limit} images", remedy="give 1 or more with --limit")
    runs = find_runs([given], configuration)
    several = ["-".join(key) for key in configurations_of(runs)]
    if len(several) > 1:
        raise SonobreastError(
            "a map is of one network, and an ensemble is the mean of several",
            file=given,
            remedy=f"name one of its members with --configuration: {', '.join(several)}",
        )
    classes = tuple(str(c) for c in read_config(runs[0])["classes"])
    target = target or ("malignant" if "malignant" in classes else "predicted")
    if target not in (*classes, "predicted"):
        raise SonobreastError(
            f'the run knows no class "{target}"', remedy=f"take predicted, {', '.join(classes)} with --target"
        )
    with alone(out):
        refuse_foreign(out, _KIND)
        problems: list[str] = []
        if data is None:
            subjects, of_all = _files(images, runs[0], problems), len(images)
        else:
            found = manifests.build(data, progress=lambda done, total: tell("reading images", done, total))
            subjects, of_all = _of_data(found, runs, seed, speak)
        subjects = subjects[: limit or LIMIT]
        with atomic(out / "config.yaml") as stream:
            stream.write(dump_yaml({"schema_version": 1, "kind": _KIND, "runs": [run.name for run in runs]}))
        loaded: dict[Path, _Loaded] = {}
        rows: list[dict[str, Any]] = []
        shown: list[dict[str, Any]] = []
        used = sorted({s.run for s in subjects})
        for run in used:
            network, recipe, own = load_run(run)
            loaded[run] = _Loaded(network, recipe, own, explained(network, recipe.preprocess.size))
        slow_limit = limit or SLOW_LIMIT
        for number, subject in enumerate(subjects):
            wanted = [m for m in methods if m not in loaded[subject.run].of.why_not]
            wanted = [m for m in wanted if m not in SLOW or number < slow_limit]
            rows += _explain(subject, loaded[subject.run], wanted, target, seed, out, shown, number)
            tell("explaining", number + 1, len(subjects))
        # One run is enough for the check, with several images for its batch norms.
        fullest = max(used, key=lambda run: sum(s.run == run for s in subjects))
        tell("randomised weights", 0, 0)
        mine = [s for s in subjects if s.run == fullest][:SANITY_LIMIT]
        sanity = list(_sanity(mine, loaded[fullest], methods, target, seed))
        defined = ({k: "" if v != v else v for k, v in r.items()} for r in rows)  # no score: an empty cell, not "nan"
        write_table(out / "explanations.csv", COLUMNS, defined)
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        timed = table[table["method"] != CENTRE]
        config = read_config(runs[0])["run"]
        why = loaded[used[0]].of.why_not
        scored = bool(table["area"].notna().any())
        content = {
            "about": {
                **examined(used),
                "model": configuration_title(config["architecture"], config["optimizer"]),
                "images": len(subjects),
                "of_all": of_all,
                "with_mask": int(table.loc[table["area"].notna(), "image"].nunique()),
                "slow_images": min(slow_limit, len(subjects)),
                "target": target,
                "seed": seed,
                "flips": loaded[used[0]].network.flips,
                "simulated": data is not None and (data / "phantom.json").is_file(),
            },
            "methods": [
                {
                    "name": m,
                    "title": attribution.TITLES[m],
                    "why_not": why.get(m, ""),
                    "slow": m in SLOW,
                    "seconds": None if m in why else float(timed.loc[timed["method"] == m, "seconds"].median()),
                }
                for m in methods
            ],
            "problems": problems,
            "localisation": localisation_figures(table, seed=seed) if scored else [],
            "why_not_scored": "" if scored else "not applicable: no image has a lesion whose outline is known",
            "sanity": sanity_figures(sanity),
            "score_titles": TITLES,
            "environment": record(),
        }
        write_json(out / "explain.json", content)
        for problem in problems:
            speak(problem)
        if data is not None and not is_finished(given):
            drawn, missing = draw_failure_maps(given, found, progress=tell)
            if drawn:
                speak(f"{drawn} of the study's most confident errors have a map; `sonobreast study report` shows them")
            for problem in missing:
                speak(problem)
        for m, reason in why.items():
            if m in methods:
                speak(f"{attribution.TITLES[m]}: not applicable: {reason}")
        if len(subjects) < of_all - len(problems):
            speak(f"{len(subjects)} of {of_all} images explained; --limit takes more")
        if any(m in SLOW and m not in why for m in methods) and len(subjects) > slow_limit:
            speak(f"occlusion is slow: done for {slow_limit} images; --limit takes more")
        return write_report(out, content, shown)


def _files(images: Sequence[Path], run: Path, problems: list[str]) -> list[_Subject]:
    """Image files that can be read; what cannot is said, and an error if nothing can."""
    found = []
    last: SonobreastError | None = None
    for path in images:
        try:
            decode(path)
        except SonobreastError as error:
            last = error
            problems.append(f"{path}: {error.what}; left out")
            continue
        name = path.name if sum(p.name == path.name for p in images) == 1 else path.as_posix()
        found.append(_Subject(name, path, name, "", run))
    if not found and last is not None:
        raise last
    return found


def _of_data(
    found: Manifest, runs: Sequence[Path], seed: int, speak: Callable[[str], None]
) -> tuple[list[_Subject], int]:
    """Images of a data set, in turn of each class and of right and wrong predictions, in an order drawn from the seed.

    Of the data that the runs were trained on, told by their bytes, each image goes to a run that tested it; images that
    no run has tested are left out.
    """
    book = own_images(Model("", tuple(runs)), "test", speak)
    entries = [book.get(c.sha256, book.get(c.image)) for c in found.cases]
    own = any(e is not None for e in entries)
    said = {
        (run, r["image"]): r["predicted"]
        for run in runs
        for r in read_table(run / "predictions.csv", ("image", "subset", "predicted"))
        if r["subset"] == "test"
    }
    strata: dict[tuple[str, bool], list[_Subject]] = {}
    order = np.random.default_rng([seed, len(found.cases)]).permutation(len(found.cases))
    for i in order:
        case, entry = found.cases[i], entries[i]
        if own and (entry is None or not entry.runs):
            continue
        run, predicted, group = runs[0], "", case.group
        if entry is not None:
            run, group = entry.runs[0], entry.group
            predicted = next(said[run, n] for n in entry.names if (run, n) in said)
        subject = _Subject(
            case.image,
            found.path(case),
            group,
            case.label,
            run,
            predicted,
            lambda case=case: true_mask(found.root, case),  # type: ignore[misc]
        )
        strata.setdefault((case.label, predicted in ("", case.label)), []).append(subject)
    if not strata:
        raise SonobreastError(
            "none of these images is a test image of the run",
            file=found.root,
            remedy="give the run's own data set or another hospital's",
        )
    lines = [strata[k] for k in sorted(strata)]
    taken = [line[i] for i in range(max(map(len, lines))) for line in lines if i < len(line)]
    if len(taken) < len(found.cases):
        speak(f"{len(found.cases) - len(taken)} images are left out: no run that was given has tested them")
    return taken, len(taken)


def _input(subject: _Subject, loaded: _Loaded) -> tuple[NDArray[np.uint8], Tensor]:
    """The picture at its own size, and the network's input (1, 3, S, S)."""
    picture = decode(subject.path)
    settings, backbone = loaded.recipe.preprocess, loaded.network.backbone
    mean, std = scaling_constants(settings.scaling, backbone.mean, backbone.std)
    return picture, torch.from_numpy(scale(prepare(picture, settings)[None], mean, std))


def _target(probability: NDArray[np.float64], classes: Sequence[str], target: str) -> int:
    return int(probability.argmax()) if target == "predicted" else classes.index(target)


def _explain(
    subject: _Subject,
    loaded: _Loaded,
    methods: Sequence[str],
    target: str,
    seed: int,
    out: Path,
    shown: list[dict[str, Any]],
    number: int,
) -> Iterator[dict[str, Any]]:
    """Rows of ``explanations.csv`` of one image; overlays go to the disk, and of the first images to the page."""
    picture, given = _input(subject, loaded)
    with torch.inference_mode():
        p = loaded.network(given).softmax(1)[0].double().numpy()
    of = _target(p, loaded.classes, target)
    lesion = subject.lesion()
    height, width = picture.shape[:2]
    predicted = loaded.classes[int(p.argmax())]
    common = {
        "image": subject.name,
        "group": subject.group,
        "label": subject.label,
        "run": subject.run.name,
        "predicted": predicted,
        "p_predicted": round(float(p.max()), 6),
        "target": loaded.classes[of],
        "p_target": round(float(p[of]), 6),
        "correct": "" if subject.label not in loaded.classes else int(predicted == subject.label),
    }
    strip = [("image", picture if lesion is None else outlined(picture, lesion))]
    for method in methods:
        start = time.perf_counter()
        small = relevance(loaded.of, method, given, of, seed=seed)
        seconds = time.perf_counter() - start
        large = to_original_size(small, width, height, loaded.recipe.preprocess.aspect)
        top = 1.0 if method == "mask" else None  # a probability: a faint mask must look faint
        file = _overlay_file(out, subject.name, method)
        with atomic(file, "wb") as stream:
            stream.write(png_of(panel(picture, large, lesion, top)))
        strip.append((attribution.TITLES[method], overlay(picture, large, lesion, top)))
        yield {
            **common,
            "method": method,
            **_scores(large, lesion),
            "seconds": round(seconds, 4),
            "overlay": file.relative_to(out).as_posix(),
        }
    yield {**common, "method": CENTRE, **_scores(centre_blob(height, width), lesion), "seconds": None, "overlay": ""}
    if number < SHOWN:
        pictures = [(title, base64.b64encode(png_of(image, 300)).decode()) for title, image in strip]
        shown.append({**common, "outlined": lesion is not None and bool(lesion.any()), "pictures": pictures})


def _scores(large: Map, lesion: NDArray[np.bool_] | None) -> dict[str, float]:
    return score_map(large, np.zeros(large.shape, bool) if lesion is None else lesion)


def _overlay_file(out: Path, name: str, method: str) -> Path:
    """Below ``out/overlays``; names that differ only in what a folder cannot hold stay apart."""
    file = predicted_mask_file(out / "overlays", name)
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return file.with_name(f"{file.stem}-{digest}-{method}.png")


def _sanity(
    subjects: Sequence[_Subject], loaded: _Loaded, methods: Sequence[str], target: str, seed: int
) -> Iterator[dict[str, Any]]:
    """How alike the maps of trained and of randomised weights are."""
    wanted = [m for m in methods if m not in loaded.of.why_not and m not in SLOW]
    if not subjects or not wanted:
        return
    inputs = [_input(s, loaded) for s in subjects]
    batch = torch.cat([x for _, x in inputs])
    with torch.inference_mode():
        probability = loaded.network(batch).softmax(1).double().numpy()
    size, aspect = loaded.recipe.preprocess.size, loaded.recipe.preprocess.aspect
    before = {
        (i, m): relevance(loaded.of, m, x, _target(probability[i], loaded.classes, target), seed=seed)
        for i, (_, x) in enumerate(inputs)
        for m in wanted
    }
    for step in STEPS:
        other = explained(randomised(loaded.network, step, batch, seed=seed), size)
        for i, (picture, x) in enumerate(inputs):
            lesion = subjects[i].lesion()
            for m in wanted:
                after = relevance(other, m, x, _target(probability[i], loaded.classes, target), seed=seed)
                gains = []
                for small in (after, before[i, m]):
                    large = to_original_size(small, picture.shape[1], picture.shape[0], aspect)
                    gains.append(_scores(large, lesion)["gain"])
                alike = similarity(before[i, m], after)
                yield {"method": m, "step": step, **alike, "gain": gains[0], "gain_trained": gains[1]}
