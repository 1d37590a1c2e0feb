"""Whose answer counts for which image: trained runs as models, and their answers on changed pictures of the same ones.

Nobody judges an image that it was trained with. An image of the study's own set is judged by the runs for which it is a
test image, as their ``predictions.csv`` says; an image of another set by all runs together, as
`sonobreast.inspection.predict` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from sonobreast.config import Preprocess, Recipe
from sonobreast.data.cohort import Cohort, Sources, gather
from sonobreast.data.overlap import overlap
from sonobreast.data.preprocess import decode, prepare, quiet, scale, scaling_constants
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.ensemble import ENSEMBLE
from sonobreast.evaluation.ensemble import KEY as ENSEMBLE_KEY
from sonobreast.evaluation.predictions import configuration_title, read_predictions
from sonobreast.inspection.evaluate import members, name_of
from sonobreast.inspection.predict import shares
from sonobreast.records import LESION_CLASSES, Case, read_table
from sonobreast.training.fit import TrainedNetwork, is_finished, load_run, read_config

U8 = NDArray[np.uint8]
Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
Pictures = Callable[[int, U8], Sequence[U8 | None]]
"""From an image's index and pixels, uint8 (H, W, 3), to what the networks are shown: always as many, None for none."""

_BATCH = 32
_ENSEMBLE = "-".join(ENSEMBLE_KEY)


@dataclass(frozen=True)
class Model:
    """Runs of one configuration of one study, or of its ensemble, which answer together (`inspection.predict.shares`).

    Attributes
    ----------
    title : str
    runs : tuple of Path
    """

    title: str
    runs: tuple[Path, ...]


@dataclass(frozen=True)
class Judged:
    """Images, and for each model the runs that may judge each.

    Attributes
    ----------
    models : tuple of Model
    classes : tuple of str
    root : Path
        Folder that the images' names are relative to.
    cases : tuple of Case
        With the study's own groups where the image is one of the study's.
    runs : tuple of tuple of tuple of Path
        [model][image] -> runs, at least one each.
    own : int
        Images that are test images of the studies.
    skipped : dict of str to int
        Why images are not judged -> how many.
    """

    models: tuple[Model, ...]
    classes: tuple[str, ...]
    root: Path
    cases: tuple[Case, ...]
    runs: tuple[tuple[tuple[Path, ...], ...], ...]
    own: int
    skipped: dict[str, int]


def models_of(given: Sequence[Path], configurations: Sequence[str] | None = None) -> list[Model]:
    """Runs and studies as models: one for each configuration of each study.

    Parameters
    ----------
    given : sequence of Path
        Run folders, or folders of studies (all their finished runs).
    configurations : sequence of str or None
        Only these, such as ``MobileNetV2-adam``; ``ensemble`` is the study's own mean of several, and only judged where
        it is named.

    Raises
    ------
    SonobreastError
        If there is no finished run, or no run of a named configuration.
    """
    found: dict[tuple[Path, str], list[Path]] = {}
    titles: dict[tuple[Path, str], str] = {}
    for folder in given:
        inside = [folder] if is_finished(folder) else sorted(p for p in (folder / "runs").glob("*") if is_finished(p))
        if not inside:
            raise SonobreastError(
                "this is neither a finished run nor a study with finished runs",
                file=folder,
                remedy="give OUT/runs/<id>, or OUT of a study",
            )
        for run in inside:
            settings = read_config(run)["run"]
            key = (run.resolve().parent.parent, f"{settings['architecture']}-{settings['optimizer']}")
            if run.resolve() not in (r.resolve() for r in found.setdefault(key, [])):
                found[key].append(run)
            titles[key] = configuration_title(settings["architecture"], settings["optimizer"])
        if {ENSEMBLE, _ENSEMBLE} & set(configurations or ()):
            if len(inside) == 1 and inside[0] == folder:
                raise SonobreastError(
                    "one run is no ensemble", file=folder, remedy="give the folder of the study, or name no ensemble"
                )
            key = (folder.resolve(), ENSEMBLE)
            found[key] = members(folder, {run.name: run for run in inside})
            titles[key] = name_of(found[key])
    wanted = [ENSEMBLE if name == _ENSEMBLE else name for name in configurations or ()]
    known = list(dict.fromkeys(name for _, name in found))
    for name in wanted:
        if name not in known:
            has = [*known, *([ENSEMBLE] if any((folder / "ensemble.json").is_file() for folder in given) else [])]
            raise SonobreastError(
                f"no run has the configuration {name}; there are {', '.join(has)}",
                file=given[0],
                remedy="name one of these",
            )
    chosen = {k: v for k, v in found.items() if not wanted or k[1] in wanted}
    same = [titles[k] for k in chosen]
    several = {
        k: f"{titles[k]} ({k[0].name})" if same.count(titles[k]) > 1 else titles[k] for k in chosen
    }  # studies side by side
    return [Model(several[k], tuple(runs)) for k, runs in chosen.items()]


def appoint(
    models: Sequence[Model],
    sources: Sources,
    *,
    subset: str = "test",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Judged:
    """Read images and say which runs may judge each.

    An image is one of a study's by the SHA-256 of its file. Images that are not are searched for copies of the study's
    (`sonobreast.data.overlap`); copies are left out, as it is not known who was trained with them.

    Parameters
    ----------
    models : sequence of Model
    sources : Sources
        The images.
    subset : {"test", "validation"}
        Whose images of a study's own set are judged; early stopping has seen the validation images.
    progress, say
        As elsewhere.

    Raises
    ------
    SonobreastError
        If nothing is left to judge, models have different classes, or labels are unknown.
    """
    if subset not in ("test", "validation"):
        raise SonobreastError(
            f'images of the subset "{subset}" are not judged', remedy="take test or validation: the others were learnt"
        )
    tell, speak = progress or (lambda stage, done, total: None), say or (lambda text: None)
    classes = _common_classes(models)
    cohort = gather(sources, known=_known_groups(models[0].runs[0].parent.parent), progress=tell)
    unknown = sorted({c.label for c in cohort.manifest.cases} - {*classes, *LESION_CLASSES})
    if unknown:
        raise SonobreastError(
            f"labels that the model does not know: {', '.join(unknown[:5])}; it knows {', '.join(classes)}",
            file=cohort.manifest.root,
            remedy="say which class each label is with --labels CSV (columns label, class); none is guessed",
        )
    cases = sorted(cohort.manifest.cases, key=lambda c: c.image)
    skipped: dict[str, int] = {}

    def skip(why: str) -> None:
        skipped[why] = skipped.get(why, 0) + 1

    books = [own_images(m, subset, speak) for m in models]
    copies = _copies(models, cases, books, cohort, tell, speak)
    kept, runs, own = [], [], 0
    for case in cases:
        entries = [book.get(case.sha256, book.get(case.image)) for book in books]
        if case.label not in classes:
            skip(f"of a class that the models do not know ({case.label})")
        elif case.image in copies:
            skip("copies of the study's images, changed")
        elif any(e is not None and not e.runs for e in entries):
            skip(f"not {subset} images of the runs that were given")
        else:
            group = next((e.group for e in entries if e is not None), case.group)
            kept.append(case.model_copy(update={"group": group}))
            runs.append(tuple(m.runs if e is None else e.runs for m, e in zip(models, entries, strict=True)))
            own += any(e is not None for e in entries)
    if not kept:
        why = "; ".join(f"{n} {w}" for w, n in skipped.items())
        raise SonobreastError(
            f"no image is left to judge: {why}",
            file=sources.data,
            remedy="give all runs of the study, or images that are not the study's",
        )
    by_model = tuple(zip(*runs, strict=True))
    return Judged(tuple(models), classes, cohort.manifest.root, tuple(kept), by_model, own, skipped)


def _common_classes(models: Sequence[Model]) -> tuple[str, ...]:
    first = models[0].runs[0]
    classes = tuple(str(c) for c in read_config(first)["classes"])
    for run in (r for m in models for r in m.runs):
        other = tuple(str(c) for c in read_config(run)["classes"])
        if other != classes:
            raise SonobreastError(
                f"the classes are {', '.join(other)}, those of {first.name} are {', '.join(classes)}",
                file=run,
                remedy="give models of the same classes",
            )
    return classes


def _known_groups(study: Path) -> tuple[Path, str] | None:
    """The groups that the study found, with the fingerprint of its data: the same data need no second search."""
    try:
        config = yaml.safe_load((study / "config.yaml").read_text(encoding="utf-8"))
        return study / "groups.csv", str(config["data_fingerprint"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        return None


class Entry(NamedTuple):
    """An image of a study's own set: the runs that may judge it, its group, and its names in the study."""

    runs: tuple[Path, ...]
    group: str
    names: tuple[str, ...]


def own_images(model: Model, subset: str, speak: Callable[[str], None]) -> dict[str, Entry]:
    """The images of a study's own set, by the SHA-256 of their files; by name where the study has no manifest.

    Parameters
    ----------
    model : Model
        Runs of one study.
    subset : str
        A run may judge the images that it holds in this subset, and in no other.
    speak : callable
        Told where names have to do.
    """
    study = model.runs[0].resolve().parent.parent
    where: dict[str, dict[Path, set[str]]] = {}
    groups: dict[str, str] = {}
    for run in model.runs:
        table = read_predictions(run / "predictions.csv")
        for image, in_subset, group in table[["image", "subset", "group"]].itertuples(index=False, name=None):
            where.setdefault(image, {}).setdefault(run, set()).add(in_subset)
            groups[image] = group
    if not (study / "manifest.csv").is_file():
        speak(f"{study} has no manifest.csv: the study's images are known by their names only")
        names = {image: [image] for image in where}
    else:
        names = {}
        for row in read_table(study / "manifest.csv", ("image", "sha256")):
            names.setdefault(row["sha256"], []).append(row["image"])
    book: dict[str, Entry] = {}
    for key, images in names.items():
        # The same file may stand there under several names: whoever learnt one of them does not judge it.
        seen = {run: set[str]().union(*(where.get(i, {}).get(run, set()) for i in images)) for run in model.runs}
        may = tuple(run for run, subsets in seen.items() if subsets == {subset})
        book[key] = Entry(may, next((groups[i] for i in images if i in groups), images[0]), tuple(images))
    return book


def _copies(
    models: Sequence[Model],
    cases: Sequence[Case],
    books: Sequence[Mapping[str, Entry]],
    cohort: Cohort,
    tell: Progress,
    speak: Callable[[str], None],
) -> set[str]:
    """Images that are no study's by their bytes, but show a picture of one."""
    from sonobreast.data import manifest as manifests

    found: set[str] = set()
    studies = {m.runs[0].resolve().parent.parent: book for m, book in zip(models, books, strict=True)}
    for study, book in studies.items():
        rest = [c for c in cases if c.sha256 not in book and c.image not in book]
        table = study / "manifest.csv"
        if not rest or not table.is_file():
            continue
        rows = read_table(table, ("image", "root"))
        if not all((table.parent / r["root"] / r["image"]).is_file() for r in rows):
            speak(f"the images of {study.name} are not at hand: only files with the same bytes are told as its own")
            continue
        own = manifests.build(table, progress=lambda done, total: tell("reading the study's images", done, total))
        found |= {p.b for p in overlap(own, replace(cohort.manifest, cases=tuple(rest)), progress=tell)}
    return found


def answers(
    judged: Judged,
    pictures: Pictures,
    *,
    stage: str,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Floats, list[int]]:
    """Show changed pictures of each image to the runs that may judge it; float32, inference mode.

    Each picture goes through its run's own preprocessing, marks that it fills included. An image whose file cannot be
    read (any more) is said and left out.

    Parameters
    ----------
    judged : Judged
    pictures : callable
    stage : str
        Named to ``progress``.
    progress, say
        As elsewhere.

    Returns
    -------
    probability : ndarray, float64, (models, images, pictures, C)
        Mean over the runs (`inspection.predict.shares`); NaN where there is no picture.
    read : list of int
        Images that could be read.

    Raises
    ------
    SonobreastError
        If a run cannot be loaded, or no image can be read.
    """
    tell, speak = progress or (lambda stage, done, total: None), say or (lambda text: None)
    networks: dict[Path, tuple[TrainedNetwork, Recipe]] = {}
    for run in dict.fromkeys(run for of in judged.runs for runs in of for run in runs):
        networks[run] = load_run(run)[:2]
    weights = {runs: shares(runs) for of in judged.runs for runs in of}
    total = len(judged.cases)
    found: dict[int, Floats] = {}

    def shown(i: int) -> tuple[list[int], int, dict[str, U8]] | SonobreastError:
        """In a thread of its own: which pictures there are, of how many, and as each preprocessing gives them."""
        try:
            changed = pictures(i, decode(judged.root / judged.cases[i].image))
        except SonobreastError as error:
            return error
        there = [k for k, p in enumerate(changed) if p is not None]
        settings = {_key(networks[r][1].preprocess): networks[r][1].preprocess for of in judged.runs for r in of[i]}
        ready = {
            key: np.stack([prepare(_rgb(p), s) for p in changed if p is not None]) if there else np.empty(0, np.uint8)
            for key, s in settings.items()
        }
        return there, len(changed), ready

    with quiet(), ThreadPoolExecutor(1) as pool:
        waiting: list[Future[tuple[list[int], int, dict[str, U8]] | SonobreastError]] = []
        try:
            for i in range(total):
                while len(waiting) < 2 and i + len(waiting) < total:
                    waiting.append(pool.submit(shown, i + len(waiting)))
                result = waiting.pop(0).result()
                if isinstance(result, SonobreastError):
                    speak(f"left out: {judged.cases[i].image}: {result.what}")
                else:
                    there, count, ready = result
                    p = np.full((len(judged.models), count, len(judged.classes)), np.nan)
                    each: dict[Path, Floats] = {}
                    for m, of in enumerate(judged.runs):
                        for r in of[i]:
                            if r not in each and there:  # an ensemble has runs that answer alone as well
                                each[r] = classify(*networks[r], ready[_key(networks[r][1].preprocess)])
                        if there:
                            p[m, there] = np.tensordot(weights[of[i]], [each[r] for r in of[i]], axes=1)
                    found[i] = p
                tell(stage, i + 1, total)
        finally:
            pool.shutdown(cancel_futures=True)
    if not found:
        raise SonobreastError(
            "none of the images can be read",
            file=judged.root,
            remedy="check the files; `sonobreast data check` names them",
        )
    read = sorted(found)
    return np.stack([found[i] for i in read], axis=1), read


def _key(settings: Preprocess) -> str:
    return settings.model_dump_json()


def _rgb(picture: U8) -> U8:
    return picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)


@torch.inference_mode()
def classify(network: TrainedNetwork, recipe: Recipe, images: U8) -> Floats:
    """Probabilities (n, C) of prepared pictures, uint8 (n, S, S, 3)."""
    mean, std = scaling_constants(recipe.preprocess.scaling, network.backbone.mean, network.backbone.std)
    parts = []
    for start in range(0, len(images), _BATCH):
        given = torch.from_numpy(scale(images[start : start + _BATCH], mean, std))
        given = given.contiguous(memory_format=torch.channels_last)
        parts.append(network(given).softmax(dim=1).double().numpy())
    return np.concatenate(parts) if parts else np.empty((0, 0))
