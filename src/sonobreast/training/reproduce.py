"""Train a recipe on many draws of its sub-sample, division and seed; what they show is in `evaluation.reproduction`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from sonobreast.config import Recipe, dump_yaml
from sonobreast.data import groups
from sonobreast.data import split as splits
from sonobreast.data.cohort import Sources, gather
from sonobreast.data.manifest import Manifest
from sonobreast.environment import record
from sonobreast.errors import SonobreastError
from sonobreast.evaluation import published, reproduction
from sonobreast.records import Assignment, atomic, write_json, write_table
from sonobreast.training.designs import DESIGN_COLUMNS, HEAD_COLUMNS, Design, train_designs
from sonobreast.training.folder import alone, refuse_foreign
from sonobreast.training.reporter import Reporter, stages


def run_reproduction(
    recipe: Recipe, sources: Sources, weights: str, out: Path, draws: int, reporter: Reporter | None = None
) -> Path:
    """Train all configurations of a recipe on ``draws`` draws, divided at random and grouped; write tables and report.

    Draw d takes ``data.subsample_seed`` and ``split.seed`` d and starts the heads from seed d.

    Parameters
    ----------
    recipe : Recipe
        With ``split.kind: holdout`` and a frozen backbone.
    sources, weights, out, reporter
        As in `sonobreast.training.leakage.run_leakage`.
    draws : int
        At least 2.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    SonobreastError
        As `sonobreast.training.study.run_study`.
    """
    reporter = reporter or Reporter()
    if draws < 2:
        raise SonobreastError(f"{draws} draw(s) are no distribution", remedy="give --draws 2 or more")
    if recipe.split.kind != "holdout" or sources.split is not None:
        raise SonobreastError(
            "a distribution over draws is for a hold-out division",
            remedy="use a recipe with split.kind: holdout, and no --split",
        )
    with alone(out):
        refuse_foreign(out, "reproduction")
        with atomic(out / "config.yaml") as stream:
            content = {"schema_version": 1, "kind": "reproduction", "draws": draws}
            stream.write(dump_yaml({**content, "recipe": recipe.model_dump(mode="json")}))
        cohort = gather(sources, progress=stages(reporter))
        manifest = cohort.manifest
        groups.write(out / "groups.csv", cohort.members)
        designs = _designs(manifest, recipe, draws)
        coverage: dict[str, str] = {}
        heads, predictions, failed = [], [], 0
        for trained in train_designs(designs, manifest, recipe, weights, out / "cache", reporter, coverage):
            if trained.failed:
                failed += 1
                continue
            heads.append(trained.head)
            predictions += trained.predictions
        if not heads:
            raise SonobreastError("no head could be trained", remedy="lower training.learning_rate with --set")
        columns = tuple(k for k in predictions[0] if k not in DESIGN_COLUMNS)
        write_table(out / "heads.csv", HEAD_COLUMNS, heads)
        write_table(out / "predictions.csv", (*DESIGN_COLUMNS, *columns), predictions)
        reporter.say("computing intervals")
        result = reproduction.analyse(_with_draw(heads), _with_draw(predictions), recipe.paper)
        write_json(out / "reproduction.json", result)
        write_json(out / "environment.json", {**record(), "data_fingerprint": manifest.fingerprint})
        first = designs[0].rows
        about = {
            "recipe": recipe.name,
            "title": recipe.title or recipe.name,
            "paper": published.paper(recipe.paper).citation if recipe.paper else "",
            "simulated": {c.source for c in manifest.cases} == {"phantom"},
            "images": len(manifest.cases),
            "used": len(first),
            **{s: sum(r.subset == s for r in first) for s in ("train", "validation", "test")},
            "coverage": [f"{a}: {text}" for a, text in coverage.items()],
            "failed": failed,
        }
        report = reproduction.write(out, result, about)
        shutil.rmtree(out / "cache", ignore_errors=True)
    return report


def _designs(manifest: Manifest, recipe: Recipe, draws: int) -> list[Design]:
    designs = []
    for draw in range(draws):
        cases = splits.draw(manifest.cases, recipe.data.model_copy(update={"subsample_seed": draw}))
        for name, grouping in (("random", "none"), ("grouped", "group")):
            settings = recipe.split.model_copy(update={"grouping": grouping, "seed": draw})
            rows: tuple[Assignment, ...] = splits.divide(cases, settings)
            designs.append(Design(f"{name} {draw}", rows, seed=draw))
    return designs


def _with_draw(rows: list[dict[str, object]]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    parts = table["design"].str.split(" ", n=1, expand=True)
    return table.assign(grouping=parts[0], draw=parts[1].astype(int))
