"""Which pictures a trained run should not judge: a detector fitted on its training images, tried on outsiders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sonobreast.config import Preprocess, dump_yaml
from sonobreast.data import manifest as manifests
from sonobreast.data.manifest import Manifest
from sonobreast.data.preprocess import decode, prepare, scale, scaling_constants
from sonobreast.data.store import open_store
from sonobreast.environment import record
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.domain import (
    Domain,
    distance,
    fit_domain,
    groups_needed,
    picture_statistics,
    with_threshold,
    write_domain,
)
from sonobreast.evaluation.domain_figures import COLUMNS, domain_figures
from sonobreast.evaluation.domain_page import write as write_report
from sonobreast.evaluation.inspections import examined
from sonobreast.inspection.evaluate import find_runs, name_of
from sonobreast.inspection.outsiders import KINDS, SCAN_KINDS, Outsider, drawn, from_scans, photographs_at_hand
from sonobreast.models.classical import Handcrafted
from sonobreast.models.zoo import Backbone, stage_levels, why_no_decoder
from sonobreast.records import Case, atomic, read_table, write_json, write_table
from sonobreast.training.fit import TrainedNetwork, load_run
from sonobreast.training.folder import alone, refuse_foreign

DETECTORS = ("stages", "pooled", "picture")
"""Features that a distance is measured on; the first that all runs have is the detector, the others stand beside it."""
_KIND = "domain"
_BATCH = 32
_STAGES = 5  # of a network whose maps all have one scale
Progress = Callable[[str, int, int], None]
Images = NDArray[np.uint8]
Features = dict[str, NDArray[np.float64]]


def domain_features(
    network: TrainedNetwork, scaling: str, images: Images, detectors: Sequence[str] = DETECTORS
) -> Features:
    """Features of prepared pictures, each in inference mode and float32, whatever else is in the batch.

    Parameters
    ----------
    network : TrainedNetwork
    scaling : str
        ``preprocess.scaling`` of its recipe.
    images : ndarray, uint8, (n, S, S, 3)
    detectors : sequence of str
        Those that are wanted.

    Returns
    -------
    dict of str to ndarray, float64, (n, F)
        Of every picture ``picture`` (`picture_statistics`); of a network ``pooled``, and ``stages`` (the mean of every
        channel of every stage's last map) where timm gives its maps. Test-time flips are left out: one pass is enough.
    """
    found = {"picture": picture_statistics(images)} if "picture" in detectors else {}
    backbone = network.backbone
    if isinstance(backbone.network, Handcrafted):
        return found
    mean, std = scaling_constants(scaling, backbone.mean, backbone.std)
    levels = _levels(backbone)
    parts: dict[str, list[NDArray[np.float32]]] = {
        name: [] for name in (("pooled", "stages") if levels else ("pooled",))
    }
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            given = torch.from_numpy(scale(images[start : start + _BATCH], mean, std))
            given = given.contiguous(memory_format=torch.channels_last)
            if backbone.decoder is not None:  # both in one pass
                pooled, maps = backbone.maps(given)
            else:
                pooled, maps = backbone(given), []
            parts["pooled"].append(pooled.float().numpy())
            if levels and not maps:
                maps = backbone.network.forward_intermediates(  # type: ignore[operator]
                    given, indices=levels, intermediates_only=True, stop_early=True, norm=False, output_fmt="NCHW"
                )
            if levels:
                parts["stages"].append(torch.cat([m.float().mean((2, 3)) for m in maps], dim=1).numpy())
    return found | {k: np.concatenate(v).astype(np.float64) for k, v in parts.items() if v and k in detectors}


def _levels(backbone: Backbone) -> list[int]:
    """Indices of timm's feature maps: the last of each scale, or some spread over a network of one scale."""
    network = backbone.network
    info: Any = getattr(network, "feature_info", None) or []
    rows = list(info if isinstance(info, list) else info.info)
    if not rows or not hasattr(network, "forward_intermediates"):
        return []
    last = len(rows) - 1 if backbone.cut is None else backbone.cut
    if not why_no_decoder(network):
        return [i for i, _ in stage_levels(network, backbone.timm_name) if i <= last]
    return sorted({round(i) for i in np.linspace(0, last, _STAGES)})


def training_domains(
    run: Path,
    found: Manifest,
    *,
    accept: float = 0.95,
    detectors: Sequence[str] = DETECTORS,
    subsets: Sequence[str] = ("train", "validation", "test"),
    progress: Progress | None = None,
) -> tuple[dict[str, Domain], dict[str, Features], TrainedNetwork]:
    """Fit the detectors of one run: statistics of its training images, thresholds from its validation images.

    Parameters
    ----------
    run : Path
    found : Manifest
        The study's own data; images are told by their names in the run's ``predictions.csv``.
    accept : float
        Share of scans to accept (`with_threshold`).
    detectors, subsets : sequence of str
        What is wanted: whoever ships statistics has no use for test images, and the picture's own take long.

    Returns
    -------
    domains : dict of str to Domain
        Keys of ``detectors`` that the run has.
    features : dict
        Of the images of each subset, in the order of ``predictions.csv``.
    network : TrainedNetwork

    Raises
    ------
    SonobreastError
        If images of the run are not in the data, or have changed.
    """
    rows = [r for r in _rows(run) if r["subset"] in subsets]
    network, recipe, _ = load_run(run)
    cases = _own_cases(run, found, [r["image"] for r in rows])
    settings = recipe.preprocess
    tell = progress or (lambda stage, done, total: None)
    pixels = open_store([found.path(c) for c in cases], [c.sha256 for c in cases], settings, progress=tell)
    features: dict[str, Features] = {}
    for subset in subsets:
        index = np.flatnonzero([r["subset"] == subset for r in rows])
        parts = []
        for start in range(0, len(index), _BATCH):
            parts.append(domain_features(network, settings.scaling, pixels[index[start : start + _BATCH]], detectors))
            tell(f"features of {run.name}, {subset}", min(start + _BATCH, len(index)), len(index))
        features[subset] = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} if parts else {}
    groups = [r["group"] for r in rows if r["subset"] == "validation"]
    domains = {
        name: with_threshold(
            fit_domain(features["train"][name], name),
            features["validation"].get(name, np.empty((0, 1))),
            groups,
            accept,
        )
        for name in detectors
        if name in features["train"]
    }
    return domains, features, network


def judge_domain(
    given: Sequence[Path],
    data: Path,
    out: Path,
    *,
    configuration: str | None = None,
    others: Sequence[Path] = (),
    accept: float = 0.95,
    per_kind: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Fit each run's detector and try it on its own test scans, on outsiders, and on other hospitals' scans.

    Of an ensemble each member has a detector of its own, as each run of a configuration has, and figures are means.

    Parameters
    ----------
    given : sequence of Path
        Run folders, or the folder of a study.
    data : Path
        The study's own data set.
    out : Path
        Gets ``domain.json``, ``domain.csv``, ``domain.html`` and ``statistics/<run>.npz`` (for a bundle).
    configuration : str or None
        Of a study.
    others : sequence of Path
        Other hospitals' data sets. What is refused of them is no error rate: it is reported.
    accept : float
        Share of scans that the threshold is to accept.
    per_kind, seed : int
        Outsiders of each kind, and the seed they are drawn from.

    Returns
    -------
    Path
        Of ``domain.html``.

    Raises
    ------
    SonobreastError
        If runs or images cannot be used.
    """
    tell, speak = progress or (lambda stage, done, total: None), say or (lambda text: None)
    if per_kind < 2:
        raise SonobreastError(f"{per_kind} outsiders of each kind", remedy="give 2 or more with --outsiders")
    runs = find_runs(given, configuration)
    with alone(out):
        refuse_foreign(out, _KIND)
        found = manifests.build(data, progress=lambda done, total: tell("reading images", done, total))
        others_found = {
            folder.name: manifests.build(folder, progress=lambda done, total: tell("reading images", done, total))
            for folder in others
        }
        outsiders = list(_outsiders(runs, found, per_kind, seed))
        if not photographs_at_hand():
            speak("no photographs came with the installed libraries: simulated scenes stand in their place")
        with atomic(out / "config.yaml") as stream:
            stream.write(dump_yaml({"schema_version": 1, "kind": _KIND, "runs": [run.name for run in runs]}))
        prepared: dict[str, Images] = {}
        rows: list[dict[str, Any]] = []
        fitted: dict[str, dict[str, Domain]] = {}
        for run in runs:
            domains, features, network = training_domains(run, found, accept=accept, progress=tell)
            fitted[run.name] = domains
            settings = load_run(run)[1].preprocess
            tested = [r for r in _rows(run) if r["subset"] == "test"]
            own = {r["group"] for r in tested}
            # Nobody judges what was made of a scan that it has learnt.
            mine = [i for i, o in enumerate(outsiders) if o.kind not in SCAN_KINDS or o.group in own]
            seen = _prepared(outsiders, settings, prepared, tell)[mine]
            rows += _judged(
                run, domains, features["test"], [("test", r["label"], r["image"], r["group"]) for r in tested]
            )
            named = [("outsider", outsiders[i].kind, f"{outsiders[i].kind}/{i}", outsiders[i].group) for i in mine]
            rows += _judged(run, domains, domain_features(network, settings.scaling, seen), named)
            for name, other in others_found.items():
                cases = other.cases
                pixels = open_store([other.path(c) for c in cases], [c.sha256 for c in cases], settings, progress=tell)
                theirs = [("other", name, c.image, f"{name}/{c.group}") for c in cases]
                rows += _judged(run, domains, domain_features(network, settings.scaling, pixels[:]), theirs)
        used = next(n for n in DETECTORS if all(n in domains for domains in fitted.values()))
        for name, domains in fitted.items():
            write_domain(out / "statistics" / f"{name}.npz", domains[used])
        write_table(out / "domain.csv", COLUMNS, rows)
        tell("figures", 0, 0)
        table = pd.DataFrame(rows)
        detectors = {
            n: domain_figures(table[table["features"] == n], seed=seed)
            for n in DETECTORS
            if all(n in domains for domains in fitted.values())
        }
        needed, least = groups_needed(accept), min(d[used].calibrated_on for d in fitted.values())
        if least < needed:
            speak(f"{least} validation groups are too few to accept {accept:.0%} for sure: {needed} are needed")
        content = {
            "about": {
                **examined(runs),
                "model": name_of(runs),
                "images": len(found.cases),
                "fingerprint": found.fingerprint,
                "simulated": any(c.source == "phantom" for c in found.cases),
                "per_kind": per_kind,
                "seed": seed,
                "photographs": len(photographs_at_hand()),
            },
            "accept": accept,
            "groups_needed": needed,
            "groups_least": least,
            "detector": used,
            "thresholds": {run: {n: d.threshold for n, d in domains.items()} for run, domains in fitted.items()},
            "detectors": detectors,
            "environment": record(),
        }
        write_json(out / "domain.json", content)
        return write_report(out, content)


def _rows(run: Path) -> list[dict[str, str]]:
    return read_table(run / "predictions.csv", ("image", "subset", "group", "label"))


def _own_cases(run: Path, found: Manifest, names: Sequence[str]) -> list[Case]:
    """The data's cases of these names, the same files as when the run was trained (where that is on record)."""
    cases = {c.image: c for c in found.cases}
    missing = [n for n in names if n not in cases]
    if missing:
        raise SonobreastError(
            f"{len(missing)} of {len(names)} images of {run.name} are not in this data set, first {missing[0]}",
            file=found.root,
            remedy="give the data set that the run was trained on with --data",
        )
    listed = run.parent.parent / "manifest.csv"
    if listed.is_file():
        before = {r["image"]: r["sha256"] for r in read_table(listed, ("image", "sha256"))}
        changed = [n for n in names if before.get(n, cases[n].sha256) != cases[n].sha256]
        if changed:
            raise SonobreastError(
                f"{len(changed)} images are not those that {run.name} was trained on, first {changed[0]}",
                file=found.root,
                remedy="give the data set that the run was trained on with --data",
            )
    return [cases[n] for n in names]


def _outsiders(runs: Sequence[Path], found: Manifest, n: int, seed: int) -> list[Outsider]:
    """``n`` of each kind; those made from scans take test scans of the runs, one of a group, as many as there are."""
    tested = {r["image"]: r["group"] for run in runs for r in _rows(run) if r["subset"] == "test"}
    paths = {c.image: found.path(c) for c in found.cases}
    names = sorted(set(tested) & set(paths))
    order = [names[i] for i in np.random.default_rng([seed, len(names)]).permutation(len(names))]
    first = list({tested[name]: name for name in reversed(order)}.values())[:n]
    scans = [decode(paths[name]) for name in first]
    made: list[Outsider] = []
    for kind in KINDS:
        if kind in SCAN_KINDS:
            made += from_scans(kind, scans, [tested[name] for name in first])
        else:
            made += drawn(kind, n, seed=seed)
    return made


def _prepared(outsiders: Sequence[Outsider], settings: Preprocess, known: dict[str, Images], tell: Progress) -> Images:
    """The outsiders as a network is to see them, uint8 (n, S, S, 3); once for all runs with these settings."""
    key = settings.model_dump_json()
    if key not in known:
        images = np.empty((len(outsiders), settings.size, settings.size, 3), np.uint8)
        for i, outsider in enumerate(outsiders):
            images[i] = prepare(outsider.picture, settings)
            tell("preparing outsiders", i + 1, len(outsiders))
        known[key] = images
    return known[key]


def _judged(
    run: Path, domains: Mapping[str, Domain], features: Features, pictures: Sequence[tuple[str, str, str, str]]
) -> list[dict[str, Any]]:
    """Rows of ``domain.csv``: set, kind, image and group of each picture, with each detector's distance."""
    rows = []
    for name, domain in domains.items():
        if not pictures:
            break
        for (which, kind, image, group), d in zip(pictures, distance(domain, features[name]), strict=True):
            ratio = float(d / domain.threshold)
            rows.append(
                dict(
                    zip(COLUMNS, (which, kind, image, group, run.name, name, d, domain.threshold, ratio), strict=False)
                )
                | {"refused": int(ratio > 1.0)}
            )
    return rows
