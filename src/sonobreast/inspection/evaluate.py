"""A study's frozen model on the images of another hospital: tables and a page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonobreast.config import dump_yaml
from sonobreast.data import groups as group_files
from sonobreast.data import manifest as manifests
from sonobreast.data.catalogue import DATA_SETS
from sonobreast.data.cohort import Cohort, Sources, gather
from sonobreast.data.manifest import Manifest
from sonobreast.data.masks_out import predicted_mask_file, true_mask, write_mask
from sonobreast.data.overlap import overlap
from sonobreast.environment import record
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.ensemble import ENSEMBLE
from sonobreast.evaluation.ensemble import KEY as ENSEMBLE_KEY
from sonobreast.evaluation.external import analyse, averaged
from sonobreast.evaluation.external_page import write as write_report
from sonobreast.evaluation.predictions import configuration_title, read_predictions
from sonobreast.evaluation.rule_fitting import shipped_together
from sonobreast.evaluation.segmentation import mask_row
from sonobreast.evaluation.segmentation_summary import read_segmentation, segmentation_metrics
from sonobreast.inspection.predict import Predicted, predict
from sonobreast.records import (
    LESION_CLASSES,
    NO_OPTIMIZER,
    PREDICTION_COLUMNS,
    SEGMENTATION_COLUMNS,
    Case,
    atomic,
    read_json,
    read_table,
    write_json,
    write_table,
)
from sonobreast.training.fit import is_finished, read_config
from sonobreast.training.folder import alone, refuse_foreign

_KIND = "external evaluation"
Progress = Callable[[str, int, int], None]


def find_runs(given: Sequence[Path], configuration: str | None) -> list[Path]:
    """Run folders: those that were given, or all of one configuration of a study's folder.

    The configuration ``ensemble`` is the members of all folds' ensembles, each run once.

    Raises
    ------
    SonobreastError
        If there is no finished run, or a study has several configurations and none is named.
    """
    runs: list[Path] = []
    for folder in given:
        if is_finished(folder):
            runs.append(folder)
            continue
        inside = sorted(p for p in (folder / "runs").glob("*") if is_finished(p)) if folder.is_dir() else []
        if not inside:
            raise SonobreastError(
                "this is neither a finished run nor a study with finished runs",
                file=folder,
                remedy="give OUT/runs/<id>, or OUT of a study",
            )
        of: dict[str, list[Path]] = {}
        for run in inside:
            settings = read_config(run)["run"]
            of.setdefault(f"{settings['architecture']}-{settings['optimizer']}", []).append(run)
        if configuration is None and len(of) > 1:
            raise SonobreastError(
                f"the study has {len(of)} configurations: {', '.join(of)}"
                + (f", and their {ENSEMBLE}" if (folder / "ensemble.json").is_file() else ""),
                file=folder,
                remedy="name one with --configuration, or give the folders of its runs",
            )
        if configuration in (ENSEMBLE, "-".join(ENSEMBLE_KEY)):
            runs += members(folder, {run.name: run for run in inside})
            continue
        name = configuration or next(iter(of))
        if name not in of:
            has = [*of, *([ENSEMBLE] if (folder / "ensemble.json").is_file() else [])]
            raise SonobreastError(
                f"the study has no configuration {name}; it has {', '.join(has)}",
                file=folder,
                remedy="name one of these",
            )
        runs += of[name]
    once: dict[Path, Path] = {}
    for run in runs:
        once.setdefault(run.resolve(), run)  # given twice is not trained twice
    return list(once.values())


def members(study: Path, finished: Mapping[str, Path]) -> list[Path]:
    """The runs of a study's ensembles, each once.

    Parameters
    ----------
    study : Path
    finished : mapping of str to Path
        The study's finished runs by name.

    Raises
    ------
    SonobreastError
        If the study has no ensemble, or runs of it are missing.
    """
    file = study / "ensemble.json"
    if not file.is_file():
        raise SonobreastError(
            "the study has no ensemble",
            file=study,
            remedy="run it with --set ensemble.choice=validation, or name a configuration",
        )
    names = dict.fromkeys(str(run) for fold in read_json(file)["folds"] for run in fold["runs"])
    missing = [n for n in names if n not in finished]
    if missing:
        raise SonobreastError(
            f"{len(missing)} runs of the ensemble are missing, first {missing[0]}",
            file=study,
            remedy="give `sonobreast study run` with this --out again: it makes what is missing",
        )
    return [finished[n] for n in names]


def evaluate_runs(
    given: Sequence[Path],
    sources: Sources,
    out: Path,
    *,
    configuration: str | None = None,
    allow_overlap: bool = False,
    images: bool = True,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Predict the images of another set with frozen runs and compare with the study's own test images.

    Parameters
    ----------
    given : sequence of Path
        Run folders, or the folder of a study (all runs of one configuration, averaged).
    sources : Sources
        The other set.
    out : Path
        Gets ``manifest.csv``, ``groups.csv``, ``predictions.csv``, ``external.json``, ``report.html``, and
        ``segmentation.csv`` with ``masks/`` where the runs segment.
    configuration : str or None
        Of a study: architecture and optimizer, such as ``MobileNetV2-adam``.
    allow_overlap : bool
        Go on where images are also in the study's own set.
    images : bool
        Write predicted masks, which show where lesions are.
    progress, say
        As elsewhere.

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    SonobreastError
        If runs or images cannot be used; labels that are no classes of the model nor known ones; overlap.
    """
    tell, speak = progress or (lambda stage, done, total: None), say or (lambda text: None)
    runs = find_runs(given, configuration)
    classes = tuple(str(c) for c in read_config(runs[0])["classes"])
    with alone(out):
        refuse_foreign(out, _KIND)
        cohort = gather(sources, progress=tell)
        cases = sorted(cohort.manifest.cases, key=lambda c: c.image)
        _check_labels(cases, classes, cohort.manifest.root)
        shared = _in_the_study(cohort.manifest, runs, tell, speak)
        if shared and not allow_overlap:
            raise SonobreastError(
                f"{len(shared)} of {len(cases)} images are also in the study's own set, first "
                f"{next(iter(shared))} ({next(iter(shared.values()))}): figures on them say nothing about another "
                "hospital",
                file=sources.data,
                remedy="leave them out with --exclude, or accept them with --allow-overlap",
            )
        if shared:
            speak(f"warning: {len(shared)} of {len(cases)} images are also in the study's own set")
        with atomic(out / "config.yaml") as stream:
            stream.write(dump_yaml({"schema_version": 1, "kind": _KIND, "runs": [run.name for run in runs]}))
        of_masks: list[dict[str, Any]] = []

        def take_mask(i: int, mask: NDArray[np.bool_]) -> None:
            if images:
                write_mask(predicted_mask_file(out / "masks", cases[i].image), mask)
            of_masks.append(mask_row(mask, true_mask(cohort.manifest.root, cases[i]), cases[i].spacing_mm))

        predicted = predict(runs, cohort.manifest.root, cases, take_mask=take_mask, progress=tell)
        table = _table(cases, predicted, cohort)
        tell("figures", 0, 0)
        found = analyse(table, own_predictions(runs, "test"), own_predictions(runs, "validation"))
        manifests.write(out / "manifest.csv", cohort.manifest)
        group_files.write(out / "groups.csv", cohort.members)
        shown = table[["image", "group", "label", "predicted", *(f"p_{c}" for c in classes)]].to_dict("records")
        rows = [{**_row(runs), **{str(k): v for k, v in r.items()}} for r in shown]
        write_table(out / "predictions.csv", (*PREDICTION_COLUMNS, *(f"p_{c}" for c in classes)), rows)
        masks = None
        if of_masks:
            both = ({**{c: r[c] for c in PREDICTION_COLUMNS}, **m} for r, m in zip(rows, of_masks, strict=True))
            write_table(out / "segmentation.csv", SEGMENTATION_COLUMNS, both)
            masks = segmentation_metrics(read_segmentation(out / "segmentation.csv"))
        about = {
            "runs": [run.name for run in runs],
            "model": title_of(runs),
            "name": ", ".join(_titles(cases)),
            "images": len(cases),
            "left_out": len(cohort.left_out),
            "shared": len(shared),
            "fingerprint": cohort.manifest.fingerprint,
            "simulated": any(c.source == "phantom" for c in cases),
        }
        content = {"about": about, **found, "segmentation": masks, "environment": record()}
        write_json(out / "external.json", content)
        return write_report(out, content)


def own_predictions(runs: Sequence[Path], subset: str) -> pd.DataFrame:
    """What the runs said together of their study's own images of a subset, one row an image.

    Each image is scored by the runs that hold it in this subset; folds count alike, in a fold its configurations, of
    those their seeds, as in `sonobreast.inspection.predict.shares`.
    """
    own = shipped_together([read_predictions(run / "predictions.csv") for run in runs])
    return averaged(own[own["subset"] == subset])


def _check_labels(cases: Sequence[Case], classes: Sequence[str], root: Path) -> None:
    known = {*classes, *LESION_CLASSES}
    unknown = sorted({c.label for c in cases} - known)
    if unknown:
        raise SonobreastError(
            f"labels that the model does not know: {', '.join(unknown[:5])}; it knows {', '.join(sorted(known))}",
            file=root,
            remedy="say which class each label is with --labels CSV (columns label, class); none is guessed",
        )


def _in_the_study(
    other: Manifest, runs: Sequence[Path], tell: Progress, speak: Callable[[str], None]
) -> dict[str, str]:
    """Images that are also in the study's own set, and how (`sonobreast.data.overlap`).

    Where the study's images are not at hand, only files with the same bytes can be told.
    """
    found: dict[str, str] = {}
    for study in sorted({run.parent.parent for run in runs}):
        table = study / "manifest.csv"
        if not table.is_file():
            speak(f"{study} has no manifest.csv: whether its images are among these cannot be told")
            continue
        rows = read_table(table, ("image", "sha256", "root"))
        if all((table.parent / r["root"] / r["image"]).is_file() for r in rows):
            own = manifests.build(table, progress=lambda done, total: tell("reading the study's images", done, total))
            found |= {pair.b: pair.kind for pair in overlap(own, other, progress=tell)}
            continue
        speak("the study's own images are not at hand: only files with the same bytes are told as shared")
        digests = {r["sha256"] for r in rows}
        found |= {c.image: "identical-file" for c in other.cases if c.sha256 in digests}
    return found


def _table(cases: Sequence[Case], predicted: Predicted, cohort: Cohort) -> pd.DataFrame:
    """One row an image: prediction, and what the subgroups need."""
    rows = []
    for case, p in zip(cases, predicted.probability, strict=True):
        # Without a file, too: of a normal image the mask is known, and empty.
        truth = true_mask(cohort.manifest.root, case)
        rows.append(
            {
                "image": case.image,
                "group": case.group,
                "label": case.label,
                "predicted": predicted.classes[int(p.argmax())],
                **{f"p_{c}": float(v) for c, v in zip(predicted.classes, p, strict=True)},
                "site": case.extra.get("site", case.source),
                "device": case.extra.get("device", ""),
                "birads": case.extra.get("birads", ""),
                "spacing_mm": case.spacing_mm,
                "lesion_px": None if truth is None else int(truth.sum()),
                "image_px": case.width * case.height,
            }
        )
    return pd.DataFrame(rows)


def _row(runs: Sequence[Path]) -> dict[str, Any]:
    """The run columns of the tables: the first run's configuration, named after all of them."""
    several = configurations_of(runs)
    architecture, optimizer = several[0] if len(several) == 1 else (ENSEMBLE, NO_OPTIMIZER)
    named = "+".join(run.name for run in runs)
    short = named if len(runs) == 1 else f"{len(runs)}-runs-{hashlib.sha256(named.encode()).hexdigest()[:8]}"
    return {
        "run": short,
        "architecture": architecture,
        "optimizer": optimizer,
        "repeat": 0,
        "fold": 0,
        "seed": 0,
        "subset": "test",
    }


def configurations_of(runs: Sequence[Path]) -> list[tuple[str, str]]:
    """(Architecture, optimizer) of the runs, each once, in their order."""
    settings = [read_config(run)["run"] for run in runs]
    return list(dict.fromkeys((str(s["architecture"]), str(s["optimizer"])) for s in settings))


def _titles(cases: Sequence[Case]) -> list[str]:
    """Names of the data sets: as the catalogue has them, else the folder's layout."""
    return [DATA_SETS[s].title if s in DATA_SETS else s for s in sorted({c.source for c in cases})]


def title_of(runs: Sequence[Path]) -> str:
    """What several runs together are called: their configuration, or the ensemble of several, and how many they are."""
    name = name_of(runs)
    return name if len(runs) == 1 else f"{name}, mean of {len(runs)} runs"


def name_of(runs: Sequence[Path]) -> str:
    """The runs' configuration, or the ensemble of theirs."""
    several = [configuration_title(*k) for k in configurations_of(runs)]
    return several[0] if len(several) == 1 else f"Ensemble of {', '.join(several[:-1])} and {several[-1]}"
