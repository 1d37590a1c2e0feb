"""The grid of a study: architectures x optimizers x folds x seeds, resumable at every run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import save

from sonobreast.config import Ensemble, Recipe, dump_yaml, parse_recipe
from sonobreast.data import exclusions, groups
from sonobreast.data import manifest as manifests
from sonobreast.data import split as splits
from sonobreast.data.cohort import Cohort, Sources, divide, gather
from sonobreast.data.manifest import Manifest
from sonobreast.data.masks import open_masks
from sonobreast.data.store import open_store
from sonobreast.environment import record
from sonobreast.errors import Diverged, SonobreastError
from sonobreast.evaluation.ensemble import ENSEMBLE, ensemble
from sonobreast.evaluation.looks import record as record_looks
from sonobreast.evaluation.looks import test_set_of
from sonobreast.evaluation.plots import augmentation_plot, png, samples_plot
from sonobreast.evaluation.predictions import read_patients, read_predictions, scored_table
from sonobreast.evaluation.segmentation_summary import read_segmentation
from sonobreast.evaluation.summary import RESULT_COLUMNS, figures, result_row, study_metrics
from sonobreast.models.networks import architecture as read_architecture
from sonobreast.models.networks import check_architectures, recipe_for
from sonobreast.models.zoo import Backbone, decoder_of, load_backbone
from sonobreast.records import (
    NO_OPTIMIZER,
    SUBSETS,
    Assignment,
    Run,
    atomic,
    check_version,
    read_json,
    write_json,
    write_table,
)
from sonobreast.training.classical import fit_classical, prepare
from sonobreast.training.failures import draw_failures
from sonobreast.training.fit import fit_runs, fold_of, is_finished, read_config, write_run
from sonobreast.training.fitted import Fitted
from sonobreast.training.folder import alone, is_left_over
from sonobreast.training.frozen import Bank, bank_size, cache_key, compute_bank
from sonobreast.training.head_settings import check_head_settings
from sonobreast.training.images import Images, augmented_views
from sonobreast.training.lesions import write_lesions
from sonobreast.training.module import Precision
from sonobreast.training.optimizers import check_optimizer
from sonobreast.training.overlays import draw_overlays
from sonobreast.training.reporter import Reporter, stages


@dataclass(frozen=True)
class Outcome:
    """What a call of `run_study` did.

    Attributes
    ----------
    finished, reused : int
        Runs in the study now, and how many of them an earlier call had finished.
    failed : dict of str to str
        Run -> why it could not be finished.
    """

    finished: int
    reused: int
    failed: dict[str, str]


def plan(recipe: Recipe, rows: Sequence[Assignment]) -> list[Run]:
    """All runs of a study, architecture by architecture; what scikit-learn fits has no optimizer."""
    folds = sorted({(r.repeat, r.fold) for r in rows})
    classical = {a for a in recipe.model.architectures if read_architecture(a).kind == "classical"}
    return [
        Run(architecture=a, optimizer=o, repeat=repeat, fold=fold, seed=seed)
        for a in recipe.model.architectures
        for o in ((NO_OPTIMIZER,) if a in classical else recipe.training.optimizers)
        for repeat, fold in folds
        for seed in recipe.training.seeds
    ]


def run_study(
    recipe: Recipe,
    data: Path | Sources,
    weights: str,
    out: Path,
    *,
    images: bool = True,
    reporter: Reporter | None = None,
) -> Outcome:
    """Run what is missing of a study and write its tables.

    Parameters
    ----------
    recipe : Recipe
    data : Path or Sources
        The data set alone, or with groups, exclusions and a division of one's own.
    weights : str
        See `sonobreast.models.zoo.load_backbone`.
    out : Path
        Folder of the study; one that holds the same study is continued.
    images : bool
        Draw figures that show images of the data set.
    reporter : Reporter or None

    Raises
    ------
    SonobreastError
        Everything that the user can mend; what is finished stays. Another study in ``out``, or changed data, are
        refused.
    """
    reporter = reporter or Reporter()
    for optimizer in recipe.training.optimizers:
        check_optimizer(optimizer)
    check_architectures(recipe, weights)
    for name in recipe.model.architectures:
        model = recipe_for(recipe, name).model
        if read_architecture(name).kind == "network" and (model.backbone, model.uncovered) == ("frozen", "cut"):
            check_head_settings(recipe_for(recipe, name))
    with alone(out):
        reporter.stage("reading images", 0)
        sources = data if isinstance(data, Sources) else Sources(data)
        cohort = gather(sources, known=_known_groups(out), progress=stages(reporter))
        manifest = cohort.manifest
        for problem in manifest.problems[:10]:
            reporter.say(f"{problem.severity}: {problem.file}: {problem.what}")
        if len(manifest.problems) > 10:
            reporter.say(f"... {len(manifest.problems) - 10} more in {out / 'problems.csv'}")
        cases, rows = divide(cohort, sources, recipe)
        _claim(out, recipe, weights, cohort, rows, own_split=sources.split is not None)
        runs = plan(recipe, rows)
        known = [r for r in runs if is_finished(out / "runs" / r.id)]
        failed: dict[str, str] = {}
        if len(known) < len(runs):
            decoded = _decode(manifest, cases, recipe, reporter)
            if images:
                draw_pictures(out / "figures", decoded, rows, recipe)
            reporter.runs(len(known), len(runs))
            for architecture in recipe.model.architectures:
                todo = [r for r in runs if r.architecture == architecture and r not in known]
                if todo:
                    failed |= _run_architecture(
                        architecture, todo, decoded, rows, recipe, weights, out, manifest, runs, reporter
                    )
                    shutil.rmtree(out / "cache", ignore_errors=True)  # the next one's features may need the room
        finished = collect(out, runs, recipe.ensemble)
        write_lesions(out, manifest)
        for sentence in (*draw_overlays(out, manifest), *draw_failures(out, manifest)) if images else ():
            reporter.say(sentence)
        _count_looks(out, runs, rows, manifest)
        write_json(out / "failed.json", {"runs": failed})
        shutil.rmtree(out / "cache", ignore_errors=True)
    return Outcome(finished, len(known), failed)


def _known_groups(out: Path) -> tuple[Path, str] | None:
    """The groups that an earlier call found, with the fingerprint of the data then."""
    try:
        config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
        return out / "groups.csv", str(config["data_fingerprint"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        return None


def _count_looks(out: Path, runs: Sequence[Run], rows: Sequence[Assignment], manifest: Manifest) -> None:
    """Write ``looks.json``: how often the test set of each fold was looked at, here and in other studies."""
    content = {c.image: c.sha256 for c in manifest.cases}
    tested: dict[tuple[int, int], list[str]] = {}
    for row in rows:
        if row.subset == "test":
            tested.setdefault((row.repeat, row.fold), []).append(content[row.image])
    name_of = {key: test_set_of(digests) for key, digests in tested.items()}
    scored_on: dict[str, list[str]] = {}
    for run in runs:
        if is_finished(out / "runs" / run.id):
            scored_on.setdefault(name_of[run.repeat, run.fold], []).append(run.id)
    study = hashlib.sha256((out / "config.yaml").read_bytes()).hexdigest()[:16]
    looks = record_looks(study, scored_on, {name_of[key]: len(d) for key, d in tested.items()})
    write_json(out / "looks.json", {"test_sets": [row.model_dump() for row in looks]})


def _decode(manifest: Manifest, cases: Sequence[Any], recipe: Recipe, reporter: Reporter) -> Images:
    ordered = sorted(cases, key=lambda c: c.image)
    classes = recipe.data.classes or tuple(c for c in manifest.counts if any(k.label == c for k in ordered))
    paths, digests = [manifest.path(c) for c in ordered], [c.sha256 for c in ordered]
    pixels = open_store(paths, digests, recipe.preprocess, progress=stages(reporter), say=reporter.say)
    label = torch.tensor([classes.index(c.label) for c in ordered])
    masks = None
    segments = any(decoder_of(a) for a in recipe.model.architectures)
    augments = [recipe.augment, *(recipe.of(a).augment for a in recipe.model.architectures)]
    filled = None
    if any(a.inpaint_marks > 0 for a in augments):
        settings = recipe.preprocess.model_copy(update={"inpaint_marks": True})
        filled = open_store(paths, digests, settings, progress=stages(reporter), say=reporter.say)
    if segments or any(a.lesion_zoom > 0 for a in augments):
        masks = open_masks(manifest.root, ordered, recipe.preprocess, stages(reporter))
        unknown = len(ordered) - int(masks.known.sum())
        if segments and unknown == len(ordered):
            raise SonobreastError(
                "no image has a mask, so no network can learn to segment",
                file=manifest.root,
                remedy="add masks (NAME_mask.png beside each image), or take networks that classify only",
            )
        if segments and unknown:
            reporter.say(f"{unknown} of {len(ordered)} images have no mask: they teach the class alone")
    return Images(pixels, tuple(c.image for c in ordered), label, classes, masks, filled)


def draw_pictures(folder: Path, images: Images, rows: Sequence[Assignment], recipe: Recipe) -> None:
    """Draw sample images and augmented views of training images, as the network sees them."""
    training = {r.image for r in rows if r.subset == "train" and r.repeat == 0 and r.fold == 0}
    chosen = [i for i, n in enumerate(images.names) if n in training]
    of_class = {c: [i for i in chosen if int(images.label[i]) == k] for k, c in enumerate(images.classes)}
    rng = np.random.default_rng(0)
    samples = {c: [images.pixels[i] for i in rng.permutation(found)[:4]] for c, found in of_class.items()}
    views = {c: augmented_views(images, int(rng.choice(found)), recipe, 5) for c, found in of_class.items()}
    for name, figure in (("samples", samples_plot(samples)), ("augmentation", augmentation_plot(views))):
        with atomic(folder / f"{name}.png", "wb") as stream:
            stream.write(png(figure))


def _run_architecture(
    architecture: str,
    todo: Sequence[Run],
    images: Images,
    rows: Sequence[Assignment],
    recipe: Recipe,
    weights: str,
    out: Path,
    manifest: Manifest,
    runs: Sequence[Run],
    reporter: Reporter,
) -> dict[str, str]:
    recipe = recipe_for(recipe, architecture)
    chosen = read_architecture(architecture)
    cut = recipe.model.backbone == "frozen" and recipe.model.uncovered == "cut"
    prepared = None
    if chosen.kind == "classical":
        prepared = prepare(chosen, images, manifest, recipe, weights, out / "cache", reporter)
        backbone = prepared.backbone
    else:
        backbone = load_backbone(architecture, weights, cut_uncovered=cut, image_size=recipe.preprocess.size)
    pretrained = backbone.coverage.source in ("hub", "folder")
    licence = f" (licence of the weights: {backbone.coverage.licence})" if pretrained else ""
    reporter.say(f"{architecture}: {backbone.coverage.sentence()}{licence}")
    backbone_file = _save_backbone(backbone, out)
    _refuse_other_weights(backbone, backbone_file, architecture, runs, out)
    bank = None
    head_alone = prepared is None and backbone.decoder is None and recipe.model.backbone == "frozen"
    if head_alone and (cut or not backbone.coverage.missing):
        bank = _bank(architecture, backbone, images, rows, recipe, out, reporter)
    folds = {key: fold_of(rows, images.names, *key) for key in {(r.repeat, r.fold) for r in todo}}
    pairs = [(r, folds[r.repeat, r.fold]) for r in todo]
    finished = sum(is_finished(out / "runs" / r.id) for r in runs)
    failed: dict[str, str] = {}
    reporter.stage(f"{architecture}: training", len(todo) * (recipe.training.epochs if prepared is None else 1))
    precision = _precision_of_finished(architecture, runs, out)
    fits: Generator[tuple[int, Fitted | Diverged], None, None] = (
        fit_runs(backbone, bank, images, pairs, recipe, reporter.advance, precision)
        if prepared is None
        else fit_classical(chosen, prepared, images, pairs, recipe, reporter.advance)
    )
    with closing(fits) as results:
        for index, result in results:
            run, fold = pairs[index]
            if isinstance(result, Diverged):
                failed[run.id] = result.what
                reporter.say(f"{run.id}: {result.what}; the other runs go on")
            else:
                write_run(
                    out / "runs" / run.id,
                    result,
                    backbone,
                    images,
                    fold,
                    recipe,
                    run,
                    backbone_file=backbone_file,
                    data_fingerprint=manifest.fingerprint,
                    views=None if bank is None else len(bank.views),
                )
                finished += 1
            reporter.runs(finished, len(runs))
    return failed


def _bank(
    architecture: str,
    backbone: Backbone,
    images: Images,
    rows: Sequence[Assignment],
    recipe: Recipe,
    out: Path,
    reporter: Reporter,
) -> Bank:
    check_head_settings(recipe)
    used = {r.image for r in rows if r.subset == "train"}
    trained_on: NDArray[np.intp] = np.asarray([i for i, n in enumerate(images.names) if n in used], np.intp)
    reporter.stage(f"{architecture}: features", bank_size(len(images.names), len(trained_on), recipe))
    cache = out / "cache" / cache_key(backbone, images, recipe, trained_on)
    return compute_bank(backbone, images, recipe, cache, reporter.advance, trained_on, reporter.say)


def _save_backbone(backbone: Backbone, out: Path) -> str:
    """Keep the backbone's tensors once per study, named by their digest; returns the name relative to ``out``.

    Handcrafted features have none, and no name.
    """
    if not backbone.timm_name:
        return ""
    name = f"backbones/{backbone.timm_name}-{backbone.sha256()[:16]}.safetensors"
    if not (out / name).is_file():
        with atomic(out / name, "wb") as stream:
            stream.write(save({k: v.contiguous() for k, v in backbone.used_tensors().items()}))
    return name


def _claim(
    out: Path, recipe: Recipe, weights: str, cohort: Cohort, rows: Sequence[Assignment], *, own_split: bool
) -> None:
    """Write what the study is, or check that the folder holds this very study."""
    manifest = cohort.manifest
    config = {
        "schema_version": 1,
        "recipe": recipe.model_dump(mode="json"),
        "weights": "folder" if weights not in ("hub", "none") else weights,
        "data_fingerprint": manifest.fingerprint,
        "layout": manifest.layout,
        "source": "+".join(sorted({c.source for c in manifest.cases})),
        "counts": manifest.counts,
        **({"left_out": len(cohort.left_out)} if cohort.left_out else {}),
        **({"own_split": True} if own_split else {}),
    }
    file = out / "config.yaml"
    if file.exists():
        _refuse_other_study(file, config)
        if (out / "split.csv").exists():
            old = {(r.repeat, r.fold, r.subset, r.image) for r in splits.read(out / "split.csv")}
            if old != {(r.repeat, r.fold, r.subset, r.image) for r in rows}:
                raise SonobreastError(
                    "the division into subsets differs from the one this study began with",
                    file=out / "split.csv",
                    remedy="give another --out; the libraries that divide may have changed",
                )
    elif any(p.name != ".lock" and not is_left_over(p) for p in out.iterdir()):
        raise SonobreastError(
            "the folder is not empty and holds no study", file=out, remedy="give a new or empty folder with --out"
        )
    with atomic(file) as stream:  # first: after a kill, the folder is known as ours
        stream.write(dump_yaml(config))
    manifests.write(out / "manifest.csv", manifest)
    groups.write(out / "groups.csv", cohort.members)
    if cohort.left_out:
        exclusions.write(out / "exclusions.csv", cohort.left_out)
    splits.write(out / "split.csv", rows)
    write_json(out / "environment.json", {**record(), "data_fingerprint": manifest.fingerprint})
    for path in [p for p in out.rglob(".*.partial") if p.is_file()]:
        path.unlink(missing_ok=True)


def _refuse_other_weights(
    backbone: Backbone, backbone_file: str, architecture: str, runs: Sequence[Run], out: Path
) -> None:
    """Finished runs of this architecture must have begun with the same weights and the same normalisation."""
    new = [backbone_file, list(backbone.mean), list(backbone.std)]
    for folder in (out / "runs" / r.id for r in runs if r.architecture == architecture):
        if is_finished(folder):
            network = read_config(folder)["network"]
            if [network["backbone_file"], network["mean"], network["std"]] != new:
                raise SonobreastError(
                    f"the weights of {architecture} are not those of the finished runs",
                    file=folder,
                    remedy="give the weights that the study began with, or another --out",
                )


def _precision_of_finished(architecture: str, runs: Sequence[Run], out: Path) -> Precision | None:
    """Precision of the training of this architecture's finished runs; None where there are none."""
    for folder in (out / "runs" / r.id for r in runs if r.architecture == architecture):
        if is_finished(folder):  # runs without a word about it were made in float32
            return "bfloat16" if read_config(folder)["network"].get("precision") == "bfloat16" else "float32"
    return None


def _refuse_other_study(file: Path, config: dict[str, Any]) -> None:
    try:
        old = yaml.safe_load(file.read_text(encoding="utf-8"))
        check_version(old["schema_version"], file)
        with suppress(SonobreastError):  # settings that are newer than the study have their defaults there
            old["recipe"] = parse_recipe(old["recipe"], origin=file).model_dump(mode="json")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise SonobreastError("the folder's config.yaml is damaged", file=file, remedy="give another --out") from error
    changed = sorted(_differences(old, config))
    if changed:
        what = "the data have changed" if changed == ["data_fingerprint"] else f"it differs in {', '.join(changed[:6])}"
        raise SonobreastError(
            f"the folder holds another study: {what}",
            file=file,
            remedy="give another --out, or the settings and data that the study began with",
        )


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif old != new:
        yield prefix.removeprefix("recipe.")


def collect(out: Path, runs: Sequence[Run], wanted: Ensemble | None = None) -> int:
    """Write the study's tables and ``metrics.json`` from the finished runs; returns their number.

    The tables are ``predictions.csv``, ``results.csv`` and, where networks segment, ``segmentation.csv``. An ensemble
    that the recipe wants is a further configuration in them, and ``ensemble.json`` says who its members are.
    """
    finished = [f for f in (out / "runs" / r.id for r in runs) if is_finished(f)]
    if not finished:
        return 0
    _join([f / "predictions.csv" for f in finished], out / "predictions.csv")
    results = [result_row(read_config(f)["run"], read_json(f / "metrics.json")) for f in finished]
    if wanted is not None:
        results += _write_ensemble(out, wanted, results)
    write_table(out / "results.csv", RESULT_COLUMNS, results)
    drawn = [f / "segmentation.csv" for f in finished if (f / "segmentation.csv").is_file()]
    masks = None
    if drawn:
        _join(drawn, out / "segmentation.csv")
        masks = read_segmentation(out / "segmentation.csv")
    else:
        (out / "segmentation.csv").unlink(missing_ok=True)  # of runs that are gone
    metrics = study_metrics(read_predictions(out / "predictions.csv"), read_patients(out / "manifest.csv"), masks)
    write_json(out / "metrics.json", metrics)
    return len(finished)


def _write_ensemble(out: Path, wanted: Ensemble, results: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """Add the ensemble to ``predictions.csv`` and write ``ensemble.json``; returns its rows of ``results.csv``."""
    table = read_predictions(out / "predictions.csv")
    rows, choices = ensemble(table, wanted.choice)
    if not choices:
        (out / "ensemble.json").unlink(missing_ok=True)
        return []
    columns = [str(c) for c in rows.columns if str(c).startswith("p_")]
    written = rows.assign(**{c: [f"{v:.8g}" for v in rows[c]] for c in columns})
    with atomic(out / "predictions.csv") as stream:
        table.to_csv(stream, index=False, lineterminator="\n")
        written.to_csv(stream, index=False, header=False, lineterminator="\n")
    write_json(out / "ensemble.json", {"choice": wanted.choice, "folds": [c.as_dict() for c in choices]})
    of_run = {str(r["run"]): r for r in results}
    found = []
    for choice in choices:
        about = choice.as_dict()
        mine = rows[rows["run"] == about["run"]]
        members = [of_run[r] for r in choice.runs]
        subsets = {s: figures(scored_table(mine[mine["subset"] == s])) for s in SUBSETS}
        short = {
            "subsets": subsets,
            "epochs": max(int(m["epochs"]) for m in members),
            "best_epoch": max(int(m["best_epoch"]) for m in members),
            "seconds": sum(float(m["seconds"]) for m in members),
            "pretrained_share": min(float(m["pretrained_share"]) for m in members),
            "coverage": "mean of the probabilities of networks of this study",
        }
        run = {"id": about["run"], "architecture": ENSEMBLE, "optimizer": NO_OPTIMIZER}
        found.append(result_row({**run, "repeat": choice.repeat, "fold": choice.fold, "seed": 0}, short))
    return found


def _join(files: Sequence[Path], target: Path) -> None:
    """Put tables with the same header together, line by line."""
    with atomic(target) as stream:
        header = ""
        for file in files:
            with file.open(encoding="utf-8", newline="") as source:
                first = source.readline()
                if header and first != header:
                    raise SonobreastError("the runs of this study have different columns", file=file)
                if not header:
                    stream.write(first)
                    header = first
                shutil.copyfileobj(source, stream)
