"""Many divisions of one data set on one bank of features: what leakage costs, and a paper as a distribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sonobreast.config import Recipe
from sonobreast.data.manifest import Manifest
from sonobreast.data.store import open_store
from sonobreast.errors import Diverged, SonobreastError
from sonobreast.models.networks import architecture as read_architecture
from sonobreast.models.zoo import load_backbone
from sonobreast.records import PREDICTION_COLUMNS, Assignment, Run
from sonobreast.training.fit import Fold, fold_of
from sonobreast.training.fitted import Fitted
from sonobreast.training.frozen import bank_size, cache_key, compute_bank
from sonobreast.training.head_settings import check_head_settings
from sonobreast.training.images import Images
from sonobreast.training.many_heads import Job, fit_heads
from sonobreast.training.reporter import Reporter, stages

HEAD_COLUMNS = (
    "design",
    "architecture",
    "optimizer",
    "repeat",
    "fold",
    "seed",
    "epochs",
    "best_epoch",
    "train_accuracy",
    "validation_accuracy",
    "test_accuracy",
    "test_images",
    "pretrained_share",
)
DESIGN_COLUMNS = ("design", *PREDICTION_COLUMNS)


@dataclass(frozen=True)
class Design:
    """One way of dividing the images.

    Attributes
    ----------
    name : str
    rows : tuple of Assignment
    seed : int
        Of the heads' weights, the order of the images and the dropout masks.
    """

    name: str
    rows: tuple[Assignment, ...]
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """One head of a design: its line in ``heads.csv`` and its test predictions, or why there are none."""

    head: dict[str, object]
    predictions: list[dict[str, object]]
    failed: str = ""


def train_designs(
    designs: Sequence[Design],
    manifest: Manifest,
    recipe: Recipe,
    weights: str,
    cache: Path,
    reporter: Reporter,
    coverage: dict[str, str],
) -> Iterator[Trained]:
    """Train every architecture and optimizer of the recipe on every design.

    A frozen backbone sends each image and each augmented view through once; all heads of all designs learn from that.

    Parameters
    ----------
    designs : sequence of Design
    manifest : Manifest
        All images that a design names.
    recipe : Recipe
        Architectures, head, training; its split is not looked at.
    weights : str
        See `sonobreast.models.zoo.load_backbone`.
    cache : Path
        Folder in which finished views are kept.
    reporter : Reporter
    coverage : dict
        Filled: architecture -> what its weights cover.

    Yields
    ------
    Trained
        In any order within an architecture.

    Raises
    ------
    SonobreastError
        If the recipe trains a backbone, or the weights cover it in part and it is not cut; for an architecture that is
        no plain network; as `check_head_settings`.
    """
    if recipe.model.backbone != "frozen" or recipe.model.uncovered != "cut":
        raise SonobreastError(
            "many divisions are trained on the features of a frozen backbone only",
            remedy="use a recipe with model.backbone: frozen and model.uncovered: cut",
        )
    check_head_settings(recipe)
    for name in recipe.model.architectures:
        found = read_architecture(name)
        if found.kind != "network" or found.mode == "finetune":
            raise SonobreastError(
                f"many divisions are trained on the features of a frozen backbone only, and {name} is none",
                remedy="name plain networks with --set model.architectures=[...]",
            )
    used = {r.image for d in designs for r in d.rows}
    cases = sorted((c for c in manifest.cases if c.image in used), key=lambda c: c.image)
    classes = recipe.data.classes or tuple(k for k in manifest.counts if any(c.label == k for c in cases))
    paths, digests = [manifest.path(c) for c in cases], [c.sha256 for c in cases]
    pixels = open_store(paths, digests, recipe.preprocess, progress=stages(reporter), say=reporter.say)
    label = torch.tensor([classes.index(c.label) for c in cases])
    images = Images(pixels, tuple(c.image for c in cases), label, classes)
    everywhere = np.arange(len(cases))
    folds = [(d, key, fold_of(d.rows, images.names, *key)) for d in designs for key in _folds(d)]
    for architecture in recipe.model.architectures:
        backbone = load_backbone(architecture, weights, cut_uncovered=True, image_size=recipe.preprocess.size)
        coverage[architecture] = backbone.coverage.sentence()
        reporter.say(f"{architecture}: {coverage[architecture]}")
        reporter.stage(f"{architecture}: features", bank_size(len(cases), len(cases), recipe))
        place = cache / cache_key(backbone, images, recipe, everywhere)
        bank = compute_bank(backbone, images, recipe, place, reporter.advance, everywhere, reporter.say)
        jobs, lines = [], []
        for design, (repeat, fold_number), fold in folds:
            for optimizer in recipe.training.optimizers:
                for seed in recipe.training.seeds:
                    run = Run(
                        architecture=architecture, optimizer=optimizer, repeat=repeat, fold=fold_number, seed=seed
                    )
                    jobs.append(Job(fold.train, fold.validation, optimizer, design.seed + seed))
                    lines.append((design, run, fold))
        reporter.stage(f"{architecture}: training {len(jobs)} heads", len(jobs))
        for index, fitted in fit_heads(bank, images, jobs, recipe):
            yield _trained(fitted, *lines[index], images, backbone.coverage.share)
            reporter.advance()


def _folds(design: Design) -> list[tuple[int, int]]:
    return sorted({(r.repeat, r.fold) for r in design.rows})


def _trained(fitted: Fitted | Diverged, design: Design, run: Run, fold: Fold, images: Images, share: float) -> Trained:
    own = {"design": design.name, **run.model_dump()}
    if isinstance(fitted, Diverged):
        return Trained(own, [], fitted.what)
    label = images.label.numpy()
    right = fitted.probability.argmax(axis=1) == label
    head: dict[str, object] = {
        **own,
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch,
        **{f"{s}_accuracy": round(float(right[fold.of(s)].mean()), 6) for s in ("train", "validation", "test")},
        "test_images": len(fold.test),
        "pretrained_share": share,
    }
    predictions = [
        {
            **own,
            "run": run.id,
            "subset": "test",
            "image": images.names[i],
            "group": fold.groups[i],
            "label": images.classes[int(label[i])],
            "predicted": images.classes[int(fitted.probability[i].argmax())],
            **{f"p_{c}": f"{p:.8g}" for c, p in zip(images.classes, fitted.probability[i], strict=True)},
        }
        for i in fold.test
    ]
    return Trained(head, predictions)
