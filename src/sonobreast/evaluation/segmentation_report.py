"""What the report says of predicted masks, from a study's ``metrics.json`` and the overlays drawn while it ran."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sonobreast.evaluation.glossary import describe
from sonobreast.evaluation.overlays import overlays_name
from sonobreast.evaluation.predictions import OPTIMIZER_TITLES, configuration_title

# Pictures make a report large: of more configurations, only the one that is best on the validation images is shown.
_MOST_PICTURES = 4


def segmenting(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The configurations that predicted masks; none in a ``metrics.json`` of a version that knew no masks."""
    return [c for c in metrics["configurations"] if c.get("segmentation")]


def overlay_pictures(folder: Path, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Name -> PNG in base 64 of the overlays that are there (``--no-images`` draws none)."""
    names = [overlays_name(c["architecture"], c["optimizer"]) for c in _shown(segmenting(metrics))]
    files = {n: folder / f"{n}.png" for n in names}
    return {n: base64.b64encode(f.read_bytes()).decode() for n, f in files.items() if f.is_file()}


def _shown(configurations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if len(configurations) <= _MOST_PICTURES:
        return configurations
    return [max(configurations, key=lambda c: c["subset_accuracy"]["validation"])]


def segmentation_section(metrics: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Content of the section; None where nothing segments.

    Parameters
    ----------
    metrics : mapping
        Content of a study's ``metrics.json``.
    pairs : sequence of mapping
        Those of ``segmentation_comparisons`` that are shown.
    """
    configurations = segmenting(metrics)
    if not configurations:
        return None
    entries = [_entry(c) for c in configurations]
    figures = [f for e in entries for f in _figures(e["masks"])]
    comparisons = metrics.get("segmentation_comparisons") or {}
    kinds = dict.fromkeys(k["what"] for e in entries for k in e["masks"]["agreement"]["kinds"])
    return {
        "configurations": entries,
        "silent": [
            configuration_title(c["architecture"], c["optimizer"])
            for c in metrics["configurations"]
            if not c.get("segmentation")
        ],
        "in_mm": any(e["masks"]["metrics"]["hd95_mm"] for e in entries),
        "several": any(e["masks"]["repeats"] > 1 for e in entries),
        "kinds": list(kinds),
        "meanings": [describe(m) for m in ("dice", "median_dice", "iou", "hd95_px", "missed")],
        "cautions": _cautions(figures),
        "pictures": [overlays_name(c["architecture"], c["optimizer"]) for c in _shown(configurations)],
        "pairs": pairs,
        "all_pairs": len(comparisons.get("pairs", ())),
        "family": comparisons.get("family", 0),
        "not_compared": comparisons.get("not_compared", ()),
    }


def _entry(configuration: Mapping[str, Any]) -> dict[str, Any]:
    architecture, optimizer = configuration["architecture"], configuration["optimizer"]
    masks = configuration["segmentation"]
    whole = {"name": "all lesions", "lesions": masks["images"]["lesion"], "metrics": masks["metrics"]}
    classes = [{"name": c, **part} for c, part in masks["per_class"].items()]
    return {
        "architecture": architecture,
        "optimizer_title": OPTIMIZER_TITLES.get(optimizer, optimizer),
        "title": configuration_title(architecture, optimizer),
        "masks": masks,
        "rows": [whole, *classes] if len(classes) > 1 else [whole],
        "kinds": {k["what"]: k for k in masks["agreement"]["kinds"]},
    }


def _figures(masks: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All figures with an interval whose images there are."""
    parts = [masks["metrics"], *(p["metrics"] for p in masks["per_class"].values()), masks["empty"]]
    found = [f for part in parts for f in part.values() if f is not None]
    agreement = masks["agreement"]
    found += [*(k["share"] for k in agreement["kinds"]), *(v for k, v in agreement.items() if k != "kinds")]
    yield from (f for f in found if f["n"])


def _cautions(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes of the figures, once each; those about few groups put together, for each figure has its own number."""
    notes = dict.fromkeys(note for f in figures for note in f["note"].split("; ") if note)
    few = [f["groups"] for f in figures if "the interval may be too narrow" in f["note"]]
    said = [n for n in notes if "the interval may be too narrow" not in n]
    if few:
        span = str(min(few)) if min(few) == max(few) else f"{min(few)} to {max(few)}"
        said.append(f"{len(few)} figures rest on {span} groups only: their intervals may be too narrow")
    return said
