"""One configuration on one fold with one seed: from settings to a run folder, and back.

A run folder appears under its name only when it is complete: it is written beside its place and renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sonobreast.config import Recipe, dump_yaml, parse_recipe
from sonobreast.data.masks_out import predicted_mask_file, to_original_size, write_mask
from sonobreast.environment import record
from sonobreast.errors import Diverged, SonobreastError
from sonobreast.evaluation.segmentation import mask_row
from sonobreast.evaluation.summary import figures, scored
from sonobreast.models import classical
from sonobreast.models.heads import build_head
from sonobreast.models.joint import JointHead
from sonobreast.models.mirror import mean_mask, with_mirror
from sonobreast.models.zoo import Backbone, Coverage, restore_backbone
from sonobreast.records import (
    PREDICTION_COLUMNS,
    SEGMENTATION_COLUMNS,
    SUBSETS,
    Assignment,
    Run,
    atomic,
    check_version,
    disk_error,
    write_json,
    write_table,
)
from sonobreast.training.fitted import Epoch, Fitted, Progress
from sonobreast.training.frozen import Bank, starts_standardised, views_dtype
from sonobreast.training.images import Images
from sonobreast.training.many_heads import Job, fit_heads
from sonobreast.training.module import Precision, choose_precision, fit_network, head_of

_RUN_FILES = ("config.yaml", "history.csv", "predictions.csv", "metrics.json")
_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Fold:
    """Indices of the images of each subset, and the group of every image."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]
    groups: tuple[str, ...]

    def of(self, subset: str) -> NDArray[np.intp]:
        """Indices of one subset."""
        indices: NDArray[np.intp] = getattr(self, subset)
        return indices


def fold_of(rows: Sequence[Assignment], names: Sequence[str], repeat: int, fold: int) -> Fold:
    """The subsets of one fold, as indices into ``names``."""
    where = {n: i for i, n in enumerate(names)}
    chosen = [r for r in rows if r.repeat == repeat and r.fold == fold]
    parts = {s: np.asarray([where[r.image] for r in chosen if r.subset == s], np.intp) for s in SUBSETS}
    group = {r.image: r.group for r in chosen}
    return Fold(parts["train"], parts["validation"], parts["test"], tuple(group.get(n, n) for n in names))


def fit_runs(
    backbone: Backbone,
    bank: Bank | None,
    images: Images,
    runs: Sequence[tuple[Run, Fold]],
    recipe: Recipe,
    progress: Progress | None = None,
    precision: Precision | None = None,
) -> Generator[tuple[int, Fitted | Diverged], None, None]:
    """Train the runs of one architecture: heads on features (``bank``), or the network itself (no bank).

    Progress, the order and what comes of each run are those of `fit_heads`.

    Parameters
    ----------
    precision : {"float32", "bfloat16"} or None
        In which earlier runs of this architecture were fine-tuned; None: there are none.
    """
    if bank is not None:
        jobs = [Job(fold.train, fold.validation, run.optimizer, run.seed) for run, fold in runs]
        yield from fit_heads(bank, images, jobs, recipe, progress)
        return
    for index, (run, fold) in enumerate(runs):
        precision = precision or choose_precision(backbone, images, fold.train, recipe)  # the same for all runs
        left = recipe.training.epochs

        def count(epochs: int) -> None:
            nonlocal left
            left -= epochs
            if progress is not None:
                progress(epochs)

        try:
            result: Fitted | Diverged = fit_network(
                backbone, images, fold.train, fold.validation, recipe, run.optimizer, run.seed, count, precision
            )
        except Diverged as error:
            result = error
        count(left)  # what early stopping saved
        yield index, result


def write_run(
    folder: Path,
    fitted: Fitted,
    backbone: Backbone,
    images: Images,
    fold: Fold,
    recipe: Recipe,
    run: Run,
    *,
    backbone_file: str,
    data_fingerprint: str,
    views: int | None = None,
) -> None:
    """Write the run folder in one step.

    Parameters
    ----------
    folder : Path
        ``OUT/runs/<id>``.
    backbone_file : str
        The backbone's tensors, relative to ``OUT``.
    data_fingerprint : str
    views : int or None
        Augmented views that a head on stored features was trained on: fewer than the recipe wants where there was no
        room for more.

    Raises
    ------
    SonobreastError
        If it cannot be written; nothing half-written stays under the run's name.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        config = {
            "schema_version": 1,
            "run": {"id": run.id, **run.model_dump()},
            "network": {
                "timm_name": backbone.timm_name,
                "features": backbone.features,
                "cut_after": backbone.coverage.cut_after,
                "cut": backbone.cut,
                "decoder": backbone.decoder,
                "mean": list(backbone.mean),
                "std": list(backbone.std),
                "weights": backbone.coverage.source,
                "pretrained_share": backbone.coverage.share,
                "missing_tensors": len(backbone.coverage.missing),
                "origin": backbone.coverage.origin,
                "licence": backbone.coverage.licence,
                "backbone_file": backbone_file,
                "precision": fitted.precision or str(views_dtype(recipe)).removeprefix("torch."),
            },
            "classes": list(images.classes),
            "data_fingerprint": data_fingerprint,
            **({} if views is None else {"views": views}),
            **({} if fitted.estimator is None else {"estimator": fitted.estimator.about}),
            "recipe": recipe.model_dump(mode="json"),
        }
        with atomic(partial / "config.yaml") as stream:
            stream.write(dump_yaml(config))
        columns_of_history = [c for c in Epoch.model_fields if c != "validation_dice" or backbone.decoder]
        write_table(partial / "history.csv", columns_of_history, (_present(e) for e in fitted.history))
        with atomic(partial / (_WEIGHTS if fitted.estimator is None else classical.FILE), "wb") as stream:
            tensors = {k: v.contiguous() for k, v in fitted.state.items()}
            stream.write(save(tensors) if fitted.estimator is None else fitted.estimator.content)
        columns, rows = prediction_rows(fitted, images, fold, run)
        write_table(partial / "predictions.csv", columns, rows)
        _write_lesions(partial, fitted, images, fold, recipe, run)
        write_json(partial / "environment.json", {**record(), "data_fingerprint": data_fingerprint})
        label = images.label.numpy()
        subsets = {s: figures(scored(label[i := fold.of(s)], fitted.probability[i], images.classes)) for s in SUBSETS}
        write_json(
            partial / "metrics.json",
            {
                "run": run.id,
                "epochs": len(fitted.history),
                "best_epoch": fitted.best_epoch,
                "seconds": round(fitted.seconds, 3),
                "pretrained_share": backbone.coverage.share,
                "coverage": backbone.coverage.sentence(),
                "subsets": subsets,
            },
        )
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
        _sync(folder.parent)
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_lesions(folder: Path, fitted: Fitted, images: Images, fold: Fold, recipe: Recipe, run: Run) -> None:
    """Predicted masks of the test images at their own size, and ``segmentation.csv``; nothing for a classifier."""
    if fitted.lesions is None or images.masks is None:
        return
    place = {int(i): k for k, i in enumerate(fitted.lesions.index)}
    rows: list[dict[str, object]] = []
    _, predictions = prediction_rows(fitted, images, fold, run)
    tested = [r for r in predictions if r["subset"] == "test"]
    for i, row in zip(fold.test, tested, strict=True):
        case = images.masks.cases[i]
        small = fitted.lesions.probability[place[int(i)]].astype(np.float32) / 255.0
        large = to_original_size(small, case.width, case.height, recipe.preprocess.aspect)
        mask = large >= recipe.segmentation.threshold
        write_mask(predicted_mask_file(folder / "masks", case.image), mask)
        figures_of_mask = mask_row(mask, images.masks.original(int(i)), case.spacing_mm)
        rows.append({**{c: row[c] for c in PREDICTION_COLUMNS}, **figures_of_mask})
    write_table(folder / "segmentation.csv", SEGMENTATION_COLUMNS, rows)


def _present(epoch: Epoch) -> dict[str, object]:
    """The figures of an epoch that there are; a network that does not segment has no Dice."""
    return {k: v for k, v in epoch.model_dump().items() if v is not None}


def _sync(folder: Path) -> None:
    """Make a rename last through a power cut, where the system offers it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def prediction_rows(
    fitted: Fitted, images: Images, fold: Fold, run: Run
) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    """Columns and rows of ``predictions.csv``: one row an image of the fold."""
    probability_columns = tuple(f"p_{c}" for c in images.classes)
    rows: list[dict[str, object]] = []
    for subset in SUBSETS:
        for i in fold.of(subset):
            p = fitted.probability[i].astype(float)
            rows.append(
                {
                    "run": run.id,
                    **run.model_dump(),
                    "subset": subset,
                    "image": images.names[i],
                    "group": fold.groups[i],
                    "label": images.classes[int(images.label[i])],
                    "predicted": images.classes[int(p.argmax())],
                    **{c: f"{v:.8g}" for c, v in zip(probability_columns, p, strict=True)},
                }
            )
    return (*PREDICTION_COLUMNS, *probability_columns), rows


def is_finished(folder: Path) -> bool:
    """Whether a run folder is complete: it is renamed into place as the last step, and nobody removed a file."""
    trained = any((folder / name).is_file() for name in (_WEIGHTS, classical.FILE))
    segmented = (folder / "segmentation.csv").is_file() or not (folder / "masks").is_dir()
    return trained and segmented and all((folder / name).is_file() for name in _RUN_FILES)


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.yaml`` of a run folder.

    Raises
    ------
    SonobreastError
        If the folder is no run folder.
    """
    file = folder / "config.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        check_version(content["schema_version"], file)
        for key in ("run", "network", "classes", "recipe"):
            content[key]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise SonobreastError(
            "this is no run folder: its config.yaml is missing or damaged",
            file=folder,
            remedy="give a folder OUT/runs/<id> of a study",
        ) from error
    return dict(content)


class TrainedNetwork(nn.Module):
    """Backbone and head of a finished run, in inference mode; takes scaled images (B, 3, H, W), gives logits (B, C).

    What scikit-learn fitted stands in the head's place (`sonobreast.models.classical.EstimatorHead`), and handcrafted
    features in the backbone's.

    Parameters
    ----------
    flips : bool
        Whether everything is averaged with what the mirror image gives (``inference.flips``); the logits are then the
        logarithms of mean probabilities.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, *, flips: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.flips = flips

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, C)."""
        if not self.flips:
            return self._classify(images)
        return with_mirror(lambda seen: (self._classify(seen), None), images)[0]

    def segment(self, images: Tensor) -> Tensor | None:
        """Logits of the lesion's mask, (B, 1, H, W); None where the network does not segment."""
        mask = self._segment(images)
        mirrored = self._segment(images.flip(3)) if self.flips else None
        return mask if mask is None or mirrored is None else mean_mask(mask, mirrored.flip(3))

    def _classify(self, images: Tensor) -> Tensor:
        if isinstance(self.head, JointHead):
            return self.head.classify(*self.backbone.maps(images))
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def _segment(self, images: Tensor) -> Tensor | None:
        if not isinstance(self.head, JointHead):
            return None
        return self.head.segment(images, self.backbone.maps(images)[1])


def load_run(folder: Path) -> tuple[TrainedNetwork, Recipe, tuple[str, ...]]:
    """Rebuild the network of a finished run from its own files.

    Returns
    -------
    network : TrainedNetwork
    recipe : Recipe
    classes : tuple of str
        In the order of the logits.

    Raises
    ------
    SonobreastError
        If a file is missing, damaged, or does not fit.
    """
    config = read_config(folder)
    info: Mapping[str, Any] = config["network"]
    recipe = parse_recipe(config["recipe"], origin=folder / "config.yaml")
    classes = tuple(str(c) for c in config["classes"])
    about = config.get("estimator")
    if about is not None and not info["timm_name"]:
        forest = classical.load(folder / classical.FILE, about, len(classes))
        return (
            TrainedNetwork(classical.handcrafted_backbone(recipe, shape=about["shape"]), forest).eval(),
            recipe,
            classes,
        )
    backbone = Backbone(
        timm.create_model(info["timm_name"], num_classes=0),
        timm_name=info["timm_name"],
        cut=info["cut"],
        features=info["features"],
        mean=tuple(info["mean"]),
        std=tuple(info["std"]),
        coverage=Coverage(
            source=info["weights"],
            share=info["pretrained_share"],
            missing=(),
            cut_after=info["cut_after"],
            origin=info["origin"],
            licence=info["licence"],
        ),
        decoder=info.get("decoder"),
    )
    base = folder.parent.parent / info["backbone_file"]
    restore_backbone(backbone, _tensors(base), base)
    if about is not None:
        fusion = classical.load(folder / classical.FILE, about, len(classes))
        return TrainedNetwork(backbone, fusion).eval(), recipe, classes
    head = (
        head_of(backbone, len(classes), recipe)
        if backbone.decoder is not None
        else build_head(backbone.features, len(classes), recipe.head, standardise=starts_standardised(backbone, recipe))
    )
    file = folder / _WEIGHTS
    trained = _tensors(file)
    own = {k.removeprefix("backbone."): v for k, v in trained.items() if k.startswith("backbone.")}
    try:
        head.load_state_dict({k.removeprefix("head."): v for k, v in trained.items() if k.startswith("head.")})
        unexpected = backbone.network.load_state_dict(own, strict=False).unexpected_keys
    except RuntimeError as error:
        raise SonobreastError(f"the weights do not fit the run's network ({error})", file=file) from error
    if unexpected:
        raise SonobreastError(f"{len(unexpected)} tensors have no place in the network", file=file)
    return TrainedNetwork(backbone, head, flips=recipe.inference.flips).eval(), recipe, classes


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise SonobreastError(
            f"the weights cannot be read ({error})", file=file, remedy="copy the whole study folder, or train anew"
        ) from error
