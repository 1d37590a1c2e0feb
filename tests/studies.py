"""A study's files as a finished study leaves them, without any training: what the tables, figures and report read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.fake import tiny_recipe

from sonobreast.config import dump_yaml
from sonobreast.data import manifest as manifests
from sonobreast.data.manifest import Manifest
from sonobreast.data.masks_out import predicted_mask_file, true_mask, write_mask
from sonobreast.evaluation.predictions import scored
from sonobreast.evaluation.segmentation import mask_row
from sonobreast.evaluation.summary import figures, study_metrics
from sonobreast.records import (
    PREDICTION_COLUMNS,
    SEGMENTATION_COLUMNS,
    SUBSETS,
    Run,
    write_json,
    write_table,
)
from sonobreast.training import study

Mask = NDArray[np.bool_]
# From the true mask (empty where it is not known) and a generator to a predicted one.
Drawer = Callable[[Mask, np.random.Generator], Mask]
EPOCHS = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


def shifted(most: int, *, misses: float = 0.1, invents: float = 0.4) -> Drawer:
    """The true lesion moved by up to so many pixels; some lesions missed, on some empty images a blob invented."""

    def draw(truth: Mask, rng: np.random.Generator) -> Mask:
        down, across = rng.integers(-most, most + 1, 2)
        chance = rng.random()
        if truth.any():
            return np.zeros_like(truth) if chance < misses else np.roll(truth, (down, across), (0, 1))
        height, width = truth.shape
        y, x = np.mgrid[:height, :width]
        blob: Mask = np.hypot(y - height * rng.uniform(0.3, 0.7), x - width * rng.uniform(0.3, 0.7)) < height * 0.1
        return blob if chance < invents else np.zeros_like(truth)

    return draw


def write_study(
    out: Path,
    manifest: Manifest,
    networks: Mapping[tuple[str, str], Drawer | None],
    *,
    folds: int = 1,
    seeds: Sequence[int] = (0,),
    strength: float = 0.9,
) -> list[Run]:
    """Stage files and run folders; `sonobreast.training.study.collect` makes the tables of the study from them.

    Every image of a fold has a probability for each class; test images have a predicted mask where the network draws.
    Of one fold a third of the images is tested; of several, each image once.
    """
    recipe = tiny_recipe({"model.architectures": list(dict.fromkeys(a for a, _ in networks)), "training.epochs": 2})
    out.mkdir(parents=True)
    manifests.write(out / "manifest.csv", manifest)
    content = {
        "recipe": recipe.model_dump(mode="json"),
        "weights": "none",
        "data_fingerprint": manifest.fingerprint,
        "layout": manifest.layout,
        "source": "test",
        "counts": manifest.counts,
    }
    (out / "config.yaml").write_text(dump_yaml({"schema_version": 1, **content}), encoding="utf-8")
    write_json(out / "environment.json", {"time": "now", "packages": {}, "git": None})
    split = [
        {"repeat": 0, "fold": f, "subset": subset, "image": c.image, "group": c.group, "label": c.label}
        for f in range(folds)
        for subset, c in _divided(manifest, f, folds)
    ]
    write_table(out / "split.csv", ("repeat", "fold", "subset", "image", "group", "label"), split)
    runs = []
    for (architecture, optimizer), draw in networks.items():
        for fold in range(folds):
            for seed in seeds:
                run = Run(architecture=architecture, optimizer=optimizer, fold=fold, seed=seed)
                _write_run(out / "runs" / run.id, run, manifest, folds, draw, strength)
                runs.append(run)
    return runs


def _divided(manifest: Manifest, fold: int, folds: int) -> list[tuple[str, manifests.Case]]:
    step = max(folds, 3)
    subset_of = {fold: "test", (fold + 1) % step: "validation"}
    return [(subset_of.get(i % step, "train"), c) for i, c in enumerate(manifest.cases)]


def _write_run(folder: Path, run: Run, manifest: Manifest, folds: int, draw: Drawer | None, strength: float) -> None:
    folder.mkdir(parents=True)
    classes = list(manifest.counts)
    (folder / "config.yaml").write_text(
        dump_yaml(
            {
                "schema_version": 1,
                "run": {"id": run.id, **run.model_dump()},
                "network": {},
                "classes": classes,
                "recipe": {},
            }
        ),
        encoding="utf-8",
    )
    (folder / "weights.safetensors").write_bytes(b"")
    write_table(folder / "history.csv", EPOCHS, [dict.fromkeys(EPOCHS[1:], 0.5) | {"epoch": e} for e in (1, 2)])
    divided = _divided(manifest, run.fold, folds)
    rng = np.random.default_rng([run.seed, *run.architecture.encode(), *run.optimizer.encode()])
    label = np.array([classes.index(c.label) for _, c in divided])
    probability = rng.dirichlet(np.ones(len(classes)), len(label))
    probability[np.arange(len(label)), label] += strength
    probability /= probability.sum(axis=1, keepdims=True)
    common = {"run": run.id, **run.model_dump()}
    rows, masks = [], []
    for (subset, case), p in zip(divided, probability, strict=True):
        predicted = classes[int(p.argmax())]
        row = {"subset": subset, "image": case.image, "group": case.group, "label": case.label, "predicted": predicted}
        rows.append(common | row | {f"p_{c}": f"{v:.8g}" for c, v in zip(classes, p, strict=True)})
        if draw is not None and subset == "test":
            truth = true_mask(manifest.root, case)
            drawn = draw(np.zeros((case.height, case.width), bool) if truth is None else truth, rng)
            write_mask(predicted_mask_file(folder / "masks", case.image), drawn)
            masks.append(common | row | mask_row(drawn, truth, case.spacing_mm))
    write_table(folder / "predictions.csv", (*PREDICTION_COLUMNS, *(f"p_{c}" for c in classes)), rows)
    if draw is not None:
        write_table(folder / "segmentation.csv", SEGMENTATION_COLUMNS, masks)
    subset = np.array([s for s, _ in divided])
    content = {s: figures(scored(label[subset == s], probability[subset == s], classes)) for s in SUBSETS}
    run_metrics = {"epochs": 2, "best_epoch": 2, "seconds": 1.0, "pretrained_share": 1.0, "coverage": "all pre-trained"}
    write_json(folder / "metrics.json", {"run": run.id, **run_metrics, "subsets": content})


def collect_quickly(out: Path, runs: Sequence[Run]) -> int:
    """`sonobreast.training.study.collect` with few resamples: the intervals have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "study_metrics", partial(study_metrics, resamples=200))
        return study.collect(out, runs)
