"""Finished runs to a bundle: one ONNX graph, compared with PyTorch before anything is written. Needs PyTorch.

The exporter is ``torch.onnx.export(dynamo=True)``: the older one, by TorchScript, knows no ``logaddexp``, and is on its
way out. Weights stand in the file itself. What scikit-learn fitted has no graph and is refused.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from sonobreast import __version__
from sonobreast.config import Recipe
from sonobreast.data import manifest as manifests
from sonobreast.data.catalogue import DATA_SETS
from sonobreast.data.manifest import Manifest
from sonobreast.data.phantom import simulate
from sonobreast.data.preprocess import decode, prepare, quiet, scale, scaling_constants
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.domain import accept_of_each, promised
from sonobreast.evaluation.ensemble import KEY as ENSEMBLE_KEY
from sonobreast.evaluation.external import SENSITIVITY, averaged, threshold_for_sensitivity
from sonobreast.evaluation.model_card import model_card as study_card
from sonobreast.evaluation.predictions import configuration_title, read_predictions
from sonobreast.evaluation.rule_fitting import fit_rule, shipped_together
from sonobreast.inspection.domain import training_domains
from sonobreast.inspection.predict import shares
from sonobreast.models.classical import EstimatorHead
from sonobreast.models.joint import JointHead
from sonobreast.records import SCHEMA_VERSION, Case, read_json, read_table
from sonobreast.serving import bundle as bundles
from sonobreast.serving.about import INTENDED_USE, MODEL, About, domain_statistics
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.onnx_file import inspect
from sonobreast.serving.predictor import INPUT, open_session, softmax
from sonobreast.serving.self_test import check
from sonobreast.serving.variants import Made, check_names, judges, make_variants
from sonobreast.training.fit import TrainedNetwork, load_run, read_config
from sonobreast.training.graph import Member, Together, together

OPSET = 18
PARITY_IMAGES = 200
ACCEPT = 0.95
"""Share of scans like the training images that the bundle is to find inside its domain."""
_SIMULATED_IMAGES = 24
_BATCH = 8
_SELF_TEST = 1  # index of the simulated image
Progress = Callable[[str, int, int], None]
Pixels = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    bundle : Bundle
    no_map : dict of str to str
        Run -> why it has no Grad-CAM.
    refused : dict of str to str
        Variant -> why it was not kept.
    no_domain : dict of str to str
        Run -> why the bundle has no statistics of its training images.
    """

    bundle: Bundle
    no_map: dict[str, str]
    refused: dict[str, str]
    no_domain: dict[str, str]


@dataclass(frozen=True)
class _Run:
    folder: Path
    config: Mapping[str, Any]
    network: TrainedNetwork
    recipe: Recipe
    classes: tuple[str, ...]


def export(
    runs: Sequence[Path],
    out: Path,
    *,
    parity_images: int = PARITY_IMAGES,
    variants: Sequence[str] = (),
    data: Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a bundle of one run, or of several as one ensemble.

    Parameters
    ----------
    runs : sequence of Path
        Run folders (`sonobreast.inspection.evaluate.find_runs`), at least one.
    out : Path
        Folder of the bundle; must not exist, or be empty.
    parity_images : int
        On how many images the graph is compared with PyTorch: those of the study where they are at hand, else fewer
        simulated ones, and the bundle says which.
    variants : sequence of str
        ``int8``, ``float16``: smaller forms of the graph, kept if they decide alike (`sonobreast.serving.variants`).
    data : Path or None
        Folder of the study's images, if they were moved; None: where the study's manifest says.
    progress : callable or None
        Told the stage, what is done, and of how many.

    Raises
    ------
    SonobreastError
        If a run cannot be loaded or has no graph; if the runs differ in data, classes or preprocessing; if images are
        others than the study saw; if the graph's probabilities differ from PyTorch's by more than 1e-3; if the bundle
        cannot be written.
    """
    tell = progress or (lambda stage, done, total: None)
    bundles.refuse_taken(out)
    check_names(variants)
    members = [_loaded(run) for run in runs]
    _refuse_different(members)
    recipe = members[0].recipe
    weights = shares(runs)
    whole = together([(m.network, m.recipe) for m in members], weights.tolist())
    tell("writing the graph", 0, 0)
    content = onnx_bytes(whole, recipe.preprocess.size)
    opset = inspect(content, MODEL).opset
    about = _about(members, whole, opset)
    found = _images(members[0].folder.parent.parent, data, tell)
    about["domain"], no_domain = _domain(members, whole, weights, found, tell)
    images, simulated = _parity_images(members, found, parity_images, tell)
    difference = _difference(content, about, members, weights, images, tell)
    if not difference <= bundles.TOLERANCE:
        raise SonobreastError(
            f"the graph differs from PyTorch by {difference:.2g} in probability, more than {bundles.TOLERANCE}",
            file=runs[0],
            remedy="report it with the architecture's name: no bundle was written",
        )
    about["parity"] = {
        "images": len(images),
        "simulated": simulated,
        "largest_difference": difference,
        "tolerance": bundles.TOLERANCE,
    }
    picture, expected = _self_test(members, weights)
    made = _variants(variants, content, about, members, picture, data, tell)
    about["variants"] = made.about
    files = {
        **made.files,
        MODEL: content,
        bundles.SELF_TEST_IMAGE: picture,
        bundles.SELF_TEST_EXPECTED: expected,
        bundles.MODEL_CARD: _card(members, about).encode(),
    }
    written = bundles.write_bundle(out, about, files)
    try:
        check(out)
    except BaseException:  # what failed its own test is no bundle
        shutil.rmtree(out, ignore_errors=True)
        raise
    no_map = {m.folder.name: t.no_map for m, t in zip(members, whole.cards, strict=True) if t.no_map}
    return Exported(written, no_map, made.refused, no_domain)


def onnx_bytes(whole: Together, size: int) -> bytes:
    """The graph with its weights as the bytes of one ONNX file; the number of images is free.

    Raises
    ------
    SonobreastError
        If the exporter cannot take the network.
    """
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with _hushed(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / MODEL
        try:
            torch.onnx.export(
                whole,
                (example,),
                file,
                dynamo=True,
                input_names=[INPUT],
                output_names=whole.outputs,
                dynamic_shapes=({0: torch.export.Dim("images")},),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter hands on whatever a network's own code brings
            raise SonobreastError(
                f"PyTorch cannot write this network as ONNX ({str(error).strip().splitlines()[0][:200]})",
                remedy="export another network; `sonobreast models` says which can be exported",
            ) from error
        return file.read_bytes()


@contextmanager
def _hushed() -> Iterator[None]:
    """The exporter's advice is about its own code."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    before = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


def _loaded(folder: Path) -> _Run:
    config = read_config(folder)
    network, recipe, classes = load_run(folder)
    if isinstance(network.head, EstimatorHead):
        raise SonobreastError(
            f"{config['run']['architecture']} is fitted by scikit-learn on features: it has no graph that could be "
            "exported",
            file=folder,
            remedy="export a run of a network; use this one with `sonobreast evaluate`",
        )
    return _Run(folder, config, network, recipe, classes)


def _refuse_different(members: Sequence[_Run]) -> None:
    first = members[0]
    settings = first.recipe.preprocess.model_copy(update={"scaling": "unit"})
    for one in members[1:]:
        if one.classes != first.classes:
            what = f"the classes are {', '.join(one.classes)}, those of {first.folder.name} {', '.join(first.classes)}"
        elif one.config.get("data_fingerprint") != first.config.get("data_fingerprint"):
            # One rule, one list of sources and one licence could not be true of both
            what = f"the training data are others than those of {first.folder.name}"
        elif one.recipe.preprocess.model_copy(update={"scaling": "unit"}) != settings:
            what = f"the images are prepared in another way than for {first.folder.name} (preprocess, scaling aside)"
        else:
            continue
        raise SonobreastError(what, file=one.folder, remedy="give runs of one study")


def _variants(
    names: Sequence[str],
    content: bytes,
    about: Mapping[str, Any],
    members: Sequence[_Run],
    picture: bytes,
    data: Path | None,
    tell: Progress,
) -> Made:
    if not names:
        return Made()
    table = pd.concat([read_predictions(m.folder / "predictions.csv") for m in members], ignore_index=True)
    settings = members[0].recipe.preprocess
    judged = judges(members[0].folder.parent.parent, table, settings, data, tell)
    return make_variants(names, content, about, judged, prepare(decode(picture), settings), tell)


def _about(members: Sequence[_Run], whole: Together, opset: int) -> dict[str, Any]:
    """`About` without files and parity."""
    first = members[0]
    segmenting = [m for m in members if isinstance(m.network.head, JointHead)]
    settings = first.recipe.preprocess.model_copy(update={"scaling": "unit"})
    study = first.folder.parent.parent
    configurations = sorted(
        {configuration_title(m.config["run"]["architecture"], m.config["run"]["optimizer"]) for m in members}
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "sonobreast": __version__,
        "title": ", ".join(configurations),
        "intended_use": INTENDED_USE,
        "classes": list(first.classes),
        "members": [_member(m, t) for m, t in zip(members, whole.cards, strict=True)],
        "preprocess": settings.model_dump(mode="json"),
        "requirements": ["scipy"] if settings.inpaint_marks else [],
        "outputs": list(whole.outputs),
        "opset": opset,
        "mask_threshold": segmenting[0].recipe.segmentation.threshold if segmenting else None,
        "thresholds": _thresholds(members),
        "decision_rule": _rule(members),
        "domain": None,
        "training": {
            "fingerprints": sorted({str(m.config.get("data_fingerprint", "")) for m in members}),
            **_data(study),
        },
        "metrics": _metrics(members),
        "licences": {
            "code": "Apache-2.0",
            "weights": sorted({str(m.network.backbone.coverage.licence) for m in members}),
            "data": {name: DATA_SETS[name].licence for name in _data(study)["sources"] if name in DATA_SETS},
        },
    }


def _member(run: _Run, member: Member) -> dict[str, Any]:
    coverage = run.network.backbone.coverage
    return {
        "run": run.folder.name,
        "architecture": str(run.config["run"]["architecture"]),
        "features": member.features,
        "feature_kind": "stages" if member.levels else "pooled",
        "flips": run.network.flips,
        "segments": isinstance(run.network.head, JointHead),
        "no_map": member.no_map,
        "weights": coverage.sentence() + (f" ({coverage.origin})" if coverage.origin else ""),
        "licence": coverage.licence,
    }


def _thresholds(members: Sequence[_Run]) -> list[dict[str, Any]]:
    """The operating point on the validation images of all members, each image as the members see it that did not
    train on it; empty where no class is malignant or no validation image shows a cancer.
    """
    if "malignant" not in members[0].classes:
        return []
    table = pd.concat([read_predictions(m.folder / "predictions.csv") for m in members])
    validation = table[table["subset"] == "validation"]
    cancers = int((averaged(validation)["label"] == "malignant").sum()) if len(validation) else 0
    if not cancers:
        return []
    images = averaged(validation)
    value = threshold_for_sensitivity(
        images["p_malignant"].to_numpy(float), (images["label"] == "malignant").to_numpy(), SENSITIVITY
    )
    point = {"value": min(1.0, value), "sensitivity": SENSITIVITY, "cancers": cancers, "images": len(images)}
    return [{"name": f"sensitivity {SENSITIVITY}", **point}]


def _rule(members: Sequence[_Run]) -> dict[str, Any] | None:
    """Temperature, thresholds and conformal quantiles of the shipped mean, with the coverage seen; None where the runs
    tested too few images for one.
    """
    table = shipped_together([read_predictions(m.folder / "predictions.csv") for m in members])
    try:
        rule, coverage = fit_rule(table)
    except SonobreastError:
        return None
    return {**rule.as_dict(), "runs": len(members), "coverage": coverage}


def _images(study: Path, data: Path | None, tell: Progress) -> Manifest | None:
    """The study's images where they are now; None where they are not at hand."""
    table = study / "manifest.csv"
    if data is None:
        if not table.is_file():
            return None
        rows = read_table(table, ("image", "root"))
        if not rows or not all((table.parent / r["root"] / r["image"]).is_file() for r in rows):
            return None
    return manifests.build(data or table, progress=lambda done, total: tell("reading the study's images", done, total))


def _domain(
    members: Sequence[_Run], whole: Together, shares: NDArray[np.float64], found: Manifest | None, tell: Progress
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """What `About.detector` reads: statistics of each run's training images, with a threshold from its validation
    images; and why runs have none.
    """
    accept = accept_of_each(ACCEPT, len(members))
    networks: list[dict[str, Any]] = []
    why: dict[str, str] = {}
    for k, (run, member) in enumerate(zip(members, whole.cards, strict=True)):
        name = run.folder.name
        if found is None:
            why[name] = "the study's images are not at hand; give their folder with --data"
            continue
        if "validation" not in set(read_predictions(run.folder / "predictions.csv")["subset"]):
            why[name] = "it has no validation images to choose a threshold on"
            continue
        kind = "stages" if member.levels else "pooled"
        domains, _, _ = training_domains(
            run.folder, found, accept=accept, detectors=(kind,), subsets=("train", "validation"), progress=tell
        )
        domain = domains.get(kind)
        content = None if domain is None or len(domain.mean) != member.features else domain_statistics(domain)
        if content is None:
            why[name] = "its features give none"
            continue
        networks.append({"member": k, "share": float(shares[k]), **content})
    if not networks:
        return None, why
    # Shares are those of the networks that can say something
    total = sum(n["share"] for n in networks)
    networks = [{**n, "share": n["share"] / total} for n in networks]
    of = promised(*([n[key] for n in networks] for key in ("accept", "calibrated_on", "share")))
    return {"accept": of, "networks": networks}, why


def _card(members: Sequence[_Run], about: Mapping[str, Any]) -> str:
    """The study's model card for the configuration that is shipped, or a short one where the study is not at hand."""
    study = members[0].folder.parent.parent
    keys = {(str(m.config["run"]["architecture"]), str(m.config["run"]["optimizer"])) for m in members}
    key = next(iter(keys)) if len(keys) == 1 else ENSEMBLE_KEY
    try:
        return study_card(study, key) + "\n## In this bundle\n\n" + _in_short(about)
    except SonobreastError:
        return model_card(about)


def _data(study: Path) -> dict[str, Any]:
    """What the study's manifest says of its images."""
    file = study / "manifest.csv"
    if not file.is_file():
        return {"images": None, "classes": {}, "sources": []}
    rows = read_table(file, ("image", "label", "source"))
    labels = [r["label"] for r in rows]
    return {
        "images": len(rows),
        "classes": {c: labels.count(c) for c in sorted(set(labels))},
        "sources": sorted({r["source"] for r in rows}),
    }


def _metrics(members: Sequence[_Run]) -> dict[str, Any] | None:
    """Figures of the configuration in its study: of its runs one by one on their test images, not of the ensemble."""
    study = members[0].folder.parent.parent
    keys = {(str(m.config["run"]["architecture"]), str(m.config["run"]["optimizer"])) for m in members}
    if len({m.folder.parent for m in members}) != 1 or not (study / "metrics.json").is_file():
        return None
    architecture, optimizer = next(iter(keys)) if len(keys) == 1 else ENSEMBLE_KEY
    content = read_json(study / "metrics.json")
    for one in content.get("configurations", []):
        if (one.get("architecture"), one.get("optimizer")) == (architecture, optimizer):
            return {
                "of": f"{one['runs']} run(s), each on its own test images; the bundle holds {len(members)} of them",
                "images": one["n"],
                "groups": one["groups"],
                "intervals": one["metrics"],
            }
    return None


def _parity_images(members: Sequence[_Run], found: Manifest | None, wanted: int, tell: Progress) -> tuple[Pixels, bool]:
    """Prepared images, evenly spread over the study's; simulated ones where the study's are not at hand."""
    settings = members[0].recipe.preprocess
    cases: Sequence[Case] = () if found is None else found.cases
    if found is not None and cases:
        chosen = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, wanted).round().astype(int))]
        images: Pixels = []
        with quiet():
            for done, case in enumerate(chosen, start=1):
                images.append(prepare(decode(found.path(case)), settings))
                tell("reading images to compare", done, len(chosen))
        return images, all(c.source == "phantom" for c in cases)
    n = min(wanted, _SIMULATED_IMAGES)
    grey = (simulate(i, seed=0).image for i in range(n))
    return [prepare(np.repeat(g[:, :, None], 3, axis=2), settings) for g in grey], True


def _difference(
    content: bytes,
    about: Mapping[str, Any],
    members: Sequence[_Run],
    weights: NDArray[np.float64],
    images: Pixels,
    tell: Progress,
) -> float:
    """Largest difference in probability between the graph and the runs as PyTorch runs them."""
    # A stand-in for the bundle that is not there yet: sessions are opened by what it says
    waiting = About.model_construct(**about)
    session = open_session(content, Bundle(Path(), waiting, ""))
    largest = 0.0
    for start in range(0, len(images), _BATCH):
        batch = np.stack(images[start : start + _BATCH])
        [logits] = session.run(["logits"], {INPUT: scale(batch, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))})
        gap = float(np.abs(softmax(logits) - probabilities(members, weights, batch)).max())
        largest = max(largest, gap if np.isfinite(gap) else float("inf"))
        tell("comparing with PyTorch", min(start + _BATCH, len(images)), len(images))
    return largest


@torch.inference_mode()
def probabilities(
    members: Sequence[_Run], weights: NDArray[np.float64], batch: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Mean probabilities (n, C) of prepared images (n, S, S, 3), as `sonobreast.inspection.predict` has them."""
    total = np.zeros((len(batch), len(members[0].classes)))
    for m, weight in zip(members, weights, strict=True):
        mean, std = scaling_constants(m.recipe.preprocess.scaling, m.network.backbone.mean, m.network.backbone.std)
        total += weight * m.network(torch.from_numpy(scale(batch, mean, std))).softmax(dim=1).double().numpy()
    return total


def _self_test(members: Sequence[_Run], weights: NDArray[np.float64]) -> tuple[bytes, bytes]:
    """A simulated image as PNG, and what PyTorch says of it."""
    phantom = simulate(_SELF_TEST, seed=0)
    picture = io.BytesIO()
    Image.fromarray(phantom.image).save(picture, format="PNG")
    pixels = prepare(decode(picture.getvalue()), members[0].recipe.preprocess)
    probability = probabilities(members, weights, pixels[None])[0]
    expected = {
        "schema_version": SCHEMA_VERSION,
        "image": "simulated; no patient",
        "probability": {c: float(p) for c, p in zip(members[0].classes, probability, strict=True)},
    }
    return picture.getvalue(), (json.dumps(expected, indent=1) + "\n").encode()


def model_card(about: Mapping[str, Any]) -> str:
    """A short model card in Markdown: what `bundle.json` says, for people."""
    lines = [
        "---",
        "license: other",
        "tags: [breast-ultrasound, onnx]",
        "---",
        f"# {about['title']}",
        "",
        _in_short(about),
    ]
    return "\n".join(lines)


def _in_short(about: Mapping[str, Any]) -> str:
    """What `bundle.json` says, as Markdown."""
    metrics = about["metrics"]
    lines = [
        f"**{INTENDED_USE[0].upper()}{INTENDED_USE[1:]}.** Written by sonobreast {about['sonobreast']}.",
        "",
        f"- Classes: {', '.join(about['classes'])}",
        f"- Networks: {len(about['members'])} ({', '.join(sorted({m['architecture'] for m in about['members']}))})",
        *(f"- Weights: {w}" for w in sorted({m["weights"] for m in about["members"]})),
        f"- Training data: {_sources(about['training'])}",
        f"- Licences: code {about['licences']['code']}; weights {', '.join(about['licences']['weights']) or 'unknown'}",
        *(f"- Licence of the data {name}: {text}" for name, text in about["licences"]["data"].items()),
        *(
            f"- Operating point: {t['name']}: {t['value']:.4g} ({t['cancers']} cancers among {t['images']} images)"
            for t in about["thresholds"]
        ),
        f"- Training domain: {About.model_construct(**about).domain_in_words}",
        *(f"- {m['run']}: no Grad-CAM; {m['no_map']}" for m in about["members"] if m["no_map"]),
        "",
        "### Figures of the study",
        "",
    ]
    if metrics is None:
        lines.append("Unknown: the study's figures were not at hand.")
    else:
        lines += [f"On {metrics['images']} test images in {metrics['groups']} groups; {metrics['of']}.", ""]
        lines += ["| metric | estimate | 95 % interval |", "|---|---|---|"]
        lines += [
            f"| {name} | {_figure(m.get('estimate'))} | {_figure(m.get('low'))} to {_figure(m.get('high'))} |"
            for name, m in metrics["intervals"].items()
        ]
    return "\n".join(lines) + "\n"


def _sources(training: Mapping[str, Any]) -> str:
    if training["images"] is None:
        return "unknown"
    counts = ", ".join(f"{n} {c}" for c, n in training["classes"].items())
    return f"{training['images']} images ({counts}) of {', '.join(training['sources'])}"


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
