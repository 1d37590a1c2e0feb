"""Train the same network under random, grouped and curated divisions; what it shows is in `evaluation.leakage`."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sonobreast.config import Recipe, dump_yaml
from sonobreast.data import exclusions, groups
from sonobreast.data import split as splits
from sonobreast.data.cohort import Sources, gather
from sonobreast.data.exclusions import Exclusion
from sonobreast.data.manifest import Manifest
from sonobreast.environment import record
from sonobreast.errors import SonobreastError
from sonobreast.evaluation import leakage
from sonobreast.records import Assignment, Case, atomic, write_json, write_table
from sonobreast.training.designs import DESIGN_COLUMNS, HEAD_COLUMNS, Design, train_designs
from sonobreast.training.folder import alone, refuse_foreign
from sonobreast.training.reporter import Reporter, stages


def run_leakage(recipe: Recipe, sources: Sources, weights: str, out: Path, reporter: Reporter | None = None) -> Path:
    """Train under the three divisions, write tables, figures and ``report.html``.

    Parameters
    ----------
    recipe : Recipe
        With ``split.kind: kfold`` and a frozen backbone.
    sources : Sources
        ``exclude`` is what the curated division leaves out; without it, all but one of each picture's copies, and
        every picture with two labels.
    weights : str
        See `sonobreast.models.zoo.load_backbone`.
    out : Path
        New, empty, or of an earlier call of this command: everything is written anew, finished features are reused.
    reporter : Reporter or None

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    SonobreastError
        As `sonobreast.training.study.run_study`; and if the data have no copies, or the recipe no folds.
    """
    reporter = reporter or Reporter()
    if recipe.split.kind != "kfold" or sources.split is not None:
        raise SonobreastError(
            "the divisions are compared on folds, in which every image is a test image",
            remedy="use a recipe with split.kind: kfold (--set split.kind=kfold), and no --split",
        )
    with alone(out):
        refuse_foreign(out, "leakage")
        with atomic(out / "config.yaml") as stream:
            stream.write(dump_yaml({"schema_version": 1, "kind": "leakage", "recipe": recipe.model_dump(mode="json")}))
        cohort = gather(replace(sources, exclude=None), progress=stages(reporter))
        cases = splits.draw(cohort.manifest.cases, recipe.data)
        listed, origin = _left_out(sources, cohort.manifest, cases)
        out_names = {r.image for r in listed}
        designs = [Design(name, _rows(name, cases, out_names, recipe)) for name in leakage.DESIGNS]
        groups.write(out / "groups.csv", cohort.members)
        exclusions.write(out / "exclusions.csv", listed)
        heads, predictions = [], []
        coverage: dict[str, str] = {}
        for trained in train_designs(designs, cohort.manifest, recipe, weights, out / "cache", reporter, coverage):
            if trained.failed:
                raise SonobreastError(
                    f"a network could not be trained: {trained.failed}",
                    remedy="lower the rate with --set training.learning_rate=...",
                )
            heads.append(trained.head)
            predictions += trained.predictions
        columns = tuple(k for k in predictions[0] if k not in DESIGN_COLUMNS)
        write_table(out / "heads.csv", HEAD_COLUMNS, heads)
        write_table(out / "predictions.csv", (*DESIGN_COLUMNS, *columns), predictions)
        reporter.say("computing intervals")
        table = pd.DataFrame(predictions).astype(dict.fromkeys(columns, float))
        figures = leakage.analyse(table)
        write_json(out / "leakage.json", figures)
        write_json(out / "environment.json", {**record(), "data_fingerprint": cohort.manifest.fingerprint})
        sizes = Counter(c.group for c in cases)
        about = {
            "recipe": recipe.name,
            "simulated": {c.source for c in cases} == {"phantom"},
            "images": len(cases),
            "classes": {k: sum(c.label == k for c in cases) for k in cohort.manifest.counts},
            "groups": sum(n > 1 for n in sizes.values()),
            "grouped": sum(n for n in sizes.values() if n > 1),
            "coverage": [f"{a}: {text}" for a, text in coverage.items()],
            "left_out": len(out_names),
            "list": origin,
        }
        report = leakage.write(out, table, about, figures)
        shutil.rmtree(out / "cache", ignore_errors=True)
    return report


def _left_out(sources: Sources, manifest: Manifest, cases: tuple[Case, ...]) -> tuple[list[Exclusion], str]:
    """What the curated division leaves out, and where that comes from."""
    used = {c.image for c in cases}
    if sources.exclude is not None:
        rows = exclusions.apply(manifest, exclusions.read(sources.exclude), sources.exclude)[1]
        found, origin = [r for r in rows if r.image in used], f"the list {sources.exclude.name}"
    else:
        found, origin = _copies(cases), "all but the first of each group, and all of a group with two labels"
    if not found:
        raise SonobreastError(
            "no image of these data is a copy of another: there is no leakage to measure",
            file=sources.data,
            remedy="give groups of your own with --groups, or a list with --exclude",
        )
    return found, origin


def _copies(cases: tuple[Case, ...]) -> list[Exclusion]:
    members: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda c: c.image):
        members.setdefault(case.group, []).append(case)
    rows = []
    for group, inside in members.items():
        double = len({c.label for c in inside}) > 1
        reason = f"group {group} has several labels" if double else f"further image of the group {group}"
        rows += [Exclusion(image=c.image, reason=reason) for c in inside[0 if double else 1 :]]
    return rows


def _rows(name: str, cases: tuple[Case, ...], left_out: set[str], recipe: Recipe) -> tuple[Assignment, ...]:
    chosen = tuple(c for c in cases if name != "curated" or c.image not in left_out)
    grouping = "none" if name == "random" else "group"
    return splits.divide(chosen, recipe.split.model_copy(update={"grouping": grouping}))
