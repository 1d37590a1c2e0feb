"""Maps of a study's most confident errors: what spoke for the wrong class, for the gallery of the study's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sonobreast.config import Recipe
from sonobreast.data.manifest import Manifest
from sonobreast.data.masks_out import to_original_size
from sonobreast.data.preprocess import prepare, scale, scaling_constants
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.failures import (
    Failure,
    choose,
    chosen_configuration,
    failure_plot,
    map_file,
    maps_about,
    of_configuration,
)
from sonobreast.evaluation.heatmap import overlay
from sonobreast.evaluation.plots import png
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.inspection.attribution import TITLES, explained, relevance
from sonobreast.inspection.predict import shares
from sonobreast.records import atomic, read_json, read_table, write_json
from sonobreast.training.failures import failure_images
from sonobreast.training.fit import TrainedNetwork, is_finished, load_run

METHODS = ("gradcam", "smoothgrad", "occlusion")
"""The first that a network allows is drawn."""
Progress = Callable[[str, int, int], None]
U8 = NDArray[np.uint8]


def draw_failure_maps(study: Path, found: Manifest, *, progress: Progress | None = None) -> tuple[int, list[str]]:
    """Draw the map of each error that the report shows, beside its picture (`sonobreast.evaluation.failures.map_file`).

    The errors are those of the configuration that the report leads with. A map is of the class that was wrongly given,
    by Grad-CAM where the network allows it. Of an ensemble it is the mean of its members' maps, each divided by its
    sum, weighted as their probabilities are.

    Parameters
    ----------
    study : Path
        Folder of a study.
    found : Manifest
        A data set; images that are not the study's (by name and SHA-256) have no map.

    Returns
    -------
    drawn : int
        How many maps were drawn; 0 where the data set is another one.
    problems : list of str
        What has no map, and why: a map that is missing does not spoil an explanation.

    Raises
    ------
    SonobreastError
        If a table of the study is damaged or a picture cannot be written.
    """
    if not all((study / name).is_file() for name in ("metrics.json", "predictions.csv", "manifest.csv")):
        return 0, []
    key = chosen_configuration(read_json(study / "metrics.json"))
    failures, _ = choose(of_configuration(read_predictions(study / "predictions.csv"), key))
    own = {r["image"]: r["sha256"] for r in read_table(study / "manifest.csv", ("image", "sha256"))}
    cases = {c.image: c for c in found.cases if own.get(c.image) == c.sha256}
    failures = sorted((f for f in failures if f.image in cases), key=lambda f: f.run)
    tell = progress or (lambda stage, done, total: None)
    problems: list[str] = []
    titles: set[str] = set()
    drawn, most = 0, 1
    for run, same in groupby(failures, key=lambda f: f.run):
        try:
            runs = _runs(study, run)
            loaded = [load_run(r) for r in runs]
            weights = shares(runs)
        except SonobreastError as error:
            problems.append(f"the errors of {run} have no maps: {error.what}")
            continue
        most = max(most, len(runs))
        for failure in same:
            tell("maps of the errors", drawn, len(failures))
            try:
                picture, truth, predicted = failure_images(study, found, cases[failure.image], failure)
                maps = [_map(network, recipe, classes, picture, failure) for network, recipe, classes in loaded]
            except SonobreastError as error:
                problems.append(f"{failure.image}, a {failure.kind}, has no map: {error.what}")
                map_file(study, failure).unlink(missing_ok=True)
                continue
            titles |= {title for title, _ in maps}
            mean = np.tensordot(weights, np.stack([m for _, m in maps]), axes=1)
            with atomic(map_file(study, failure), "wb") as stream:
                stream.write(png(failure_plot(overlay(picture, mean, None), truth, predicted)))
            drawn += 1
    if drawn:
        tell("maps of the errors", len(failures), len(failures))
        write_json(maps_about(study), {"methods": sorted(titles), "networks": most})
    return drawn, problems


def _runs(study: Path, name: str) -> Sequence[Path]:
    """The run of this name, or the members of the ensemble of this name."""
    if is_finished(study / "runs" / name):
        return [study / "runs" / name]
    file = study / "ensemble.json"
    folds = read_json(file)["folds"] if file.is_file() else []
    runs = [study / "runs" / str(r) for fold in folds if fold["run"] == name for r in fold["runs"]]
    if not runs:
        raise SonobreastError("the run is not there", file=study / "runs" / name)
    return runs


def _map(
    network: TrainedNetwork, recipe: Recipe, classes: Sequence[str], picture: U8, failure: Failure
) -> tuple[str, NDArray[np.float64]]:
    """What was drawn, and the map at the picture's own size (H, W), divided by its sum (all 0 where nothing speaks)."""
    settings, backbone = recipe.preprocess, network.backbone
    of = explained(network, settings.size)
    method = next((m for m in METHODS if m not in of.why_not), None)
    if method is None:
        raise SonobreastError(of.why_not[METHODS[0]])
    mean, std = scaling_constants(settings.scaling, backbone.mean, backbone.std)
    given = torch.from_numpy(scale(prepare(picture, settings)[None], mean, std))
    small = relevance(of, method, given, list(classes).index(failure.predicted))
    large = to_original_size(small, picture.shape[1], picture.shape[0], settings.aspect).astype(np.float64)
    total = large.sum()
    return TITLES[method], large / total if total > 0 else large
