"""What a study's folder shows, read leniently: a file that is missing is missing evidence, not an error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sonobreast.config import Recipe, parse_recipe
from sonobreast.data.catalogue import DATA_SETS, DataSet
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.failures import choose, chosen_configuration, of_configuration, picture_file
from sonobreast.evaluation.inspections import find
from sonobreast.evaluation.metrics import evaluate
from sonobreast.evaluation.predictions import Key, averaged, binary, read_predictions
from sonobreast.evaluation.subgroups import find_audit, study_subgroups
from sonobreast.records import read_json, read_table


@dataclass(frozen=True)
class Evidence:
    """The files of a study, as far as they are there and can be read.

    Attributes
    ----------
    out : Path
    config, metrics, environment : mapping
        Empty where the file is missing.
    recipe : Recipe or None
    results, manifest, split, problems, looks : sequence of mapping
        Rows of the tables; empty where the file is missing.
    exclusions : sequence of mapping or None
        None where nothing was left out by a list.
    predictions : bool
        Whether ``predictions.csv`` can be read.
    external : sequence of mapping
        Evaluations of these very runs on other images (``external.json``), in or beside the folder.
    inspections : mapping of str to Path
        Name of an examination -> its file, in a folder inside the study's.
    networks : mapping of str to mapping
        Architecture -> what its first run says of the network (weights, licence, decoder).
    weights : int
        Runs whose weights are kept.
    histories : int
        Runs with a ``history.csv``.
    audited : Path or None
        ``audit.json`` of an audit of these images, in or beside the folder.
    subgroups : sequence of mapping
        See `sonobreast.evaluation.subgroups.rows`.
    failures, pictures : int
        Confident errors that the report lists, and those of them with a picture.
    """

    out: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Mapping[str, str]] = ()
    manifest: Sequence[Mapping[str, str]] = ()
    split: Sequence[Mapping[str, str]] = ()
    problems: Sequence[Mapping[str, str]] = ()
    looks: Sequence[Mapping[str, Any]] = ()
    exclusions: Sequence[Mapping[str, str]] | None = None
    predictions: bool = False
    external: Sequence[Mapping[str, Any]] = ()
    inspections: Mapping[str, Path] = field(default_factory=dict)
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: int = 0
    histories: int = 0
    audited: Path | None = None
    subgroups: Sequence[Mapping[str, Any]] = ()
    failures: int = 0
    pictures: int = 0

    @property
    def simulated(self) -> bool:
        """Whether all images are phantoms."""
        return self.config.get("source") == "phantom"

    @property
    def data_sets(self) -> list[DataSet]:
        """The public data sets that the images are from, as the catalogue has them."""
        return [DATA_SETS[s] for s in str(self.config.get("source", "")).split("+") if s in DATA_SETS]

    @property
    def configurations(self) -> Sequence[Mapping[str, Any]]:
        """Those of ``metrics.json``."""
        found: Sequence[Mapping[str, Any]] = self.metrics.get("configurations", ())
        return found

    def known(self, *columns: str) -> int:
        """Images of the manifest with a value in one of these columns."""
        return sum(any(r.get(c, "").strip() for c in columns) for r in self.manifest)


def gather(out: Path, *, subgroups: Sequence[Mapping[str, Any]] | None = None, key: Key | None = None) -> Evidence:
    """Read what is there.

    Parameters
    ----------
    out : Path
        Folder of the study.
    subgroups : sequence of mapping, optional
        Those of the configuration, where the caller has them; computed otherwise.
    key : (str, str), optional
        Architecture and optimizer that subgroups and errors are of; the one best on the validation images otherwise.
    """
    metrics = _json(out / "metrics.json")
    table = _predictions(out)
    mine = None
    if table is not None and metrics.get("configurations"):
        mine = of_configuration(table, key or chosen_configuration(metrics))
    failures = [] if mine is None or mine.empty else choose(mine)[0]
    if subgroups is None:
        subgroups = _subgroups(out, mine)
    config = _yaml(out / "config.yaml")
    recipe = None
    if "recipe" in config:
        try:
            recipe = parse_recipe(config["recipe"], origin=out / "config.yaml")
        except SonobreastError:
            recipe = None
    results = _table(out / "results.csv")
    manifest = _table(out / "manifest.csv")
    folders = [out / "runs" / r.get("run", "") for r in results]
    networks: dict[str, Mapping[str, Any]] = {}
    for folder, row in zip(folders, results, strict=True):
        if row.get("architecture") and row["architecture"] not in networks:
            networks[row["architecture"]] = _yaml(folder / "config.yaml").get("network") or {}
    exclusions = _table(out / "exclusions.csv") if (out / "exclusions.csv").is_file() else None
    return Evidence(
        out,
        config,
        recipe,
        metrics,
        _json(out / "environment.json"),
        results,
        manifest,
        _table(out / "split.csv"),
        _table(out / "problems.csv"),
        _json(out / "looks.json").get("test_sets", ()),
        exclusions,
        table is not None,
        () if table is None else _external(out, table),
        {name: i.file for name, i in find(out).items() if i.content and i.file is not None},
        networks,
        sum(any((f / n).is_file() for n in ("weights.safetensors", "estimator.skops")) for f in folders),
        sum((f / "history.csv").is_file() for f in folders),
        find_audit(out, {r.get("image", ""): r.get("sha256", "") for r in manifest}),
        subgroups,
        len(failures),
        sum(picture_file(out, f).is_file() for f in failures),
    )


def _predictions(out: Path) -> pd.DataFrame | None:
    try:
        return read_predictions(out / "predictions.csv")
    except SonobreastError:
        return None


def _subgroups(out: Path, mine: pd.DataFrame | None) -> Sequence[Mapping[str, Any]]:
    if mine is None or mine.empty:
        return ()
    try:
        return study_subgroups(out, mine)
    except SonobreastError:
        return ()


def _yaml(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _json(file: Path) -> Mapping[str, Any]:
    try:
        return read_json(file)
    except SonobreastError:
        return {}


def _table(file: Path) -> list[dict[str, str]]:
    try:
        return read_table(file)
    except SonobreastError:
        return []


def _external(out: Path, table: pd.DataFrame) -> list[Mapping[str, Any]]:
    """Evaluations whose internal side is this study: same runs, images and AUC, for the names of runs tell nothing."""
    files = [*sorted(out.glob("*/external.json")), *sorted(out.parent.glob("*/external.json"))]
    test = table[table["subset"] == "test"]
    found: list[Mapping[str, Any]] = []
    for file in files:
        content = _json(file)
        try:
            runs = set(content["about"]["runs"])
            internal = content["internal"]
            mine = averaged(test[test["run"].isin(runs)])
            if not runs <= set(test["run"]) or len(mine) != internal["images"]:
                continue
            auc = evaluate(binary(mine), metrics=["auc_malignant"])["auc_malignant"]
            if math.isclose(auc, internal["decision"]["auc_malignant"]["estimate"], abs_tol=1e-6):
                found.append(content)
        except (KeyError, TypeError, ValueError, SonobreastError):
            continue
    return found
