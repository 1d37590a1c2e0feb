"""What the report says of the most confident errors: captions, and the pictures that were drawn while the study ran."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.failures import (
    KINDS,
    choose,
    chosen_configuration,
    map_file,
    maps_about,
    of_configuration,
    picture_file,
)
from sonobreast.evaluation.predictions import configuration_title, read_predictions
from sonobreast.evaluation.subgroups import lesion_areas
from sonobreast.records import read_json, read_table

_PLURAL = {"missed cancer": "Missed cancers", "false alarm": "False alarms", "other mix-up": "Other mix-ups"}


def failure_section(out: Path, metrics: Mapping[str, Any], *, images: bool = True) -> dict[str, Any]:
    """Content of the section.

    Parameters
    ----------
    out : Path
        Folder of the study.
    metrics : mapping
        Content of its ``metrics.json``.
    images : bool
        Whether pictures may be shown.

    Returns
    -------
    dict
        ``title`` of the configuration; ``kinds``: each with ``name``, ``count`` and its ``failures``, which have a
        ``picture`` and a ``map`` in base 64, "" where there is none; ``drawn``: whether any has a picture;
        ``maps``: what the maps are, in words, "" where there are none.
    """
    key = chosen_configuration(metrics)
    failures, counts = choose(of_configuration(read_predictions(out / "predictions.csv"), key))
    area = lesion_areas(out)
    pixels = {
        r["image"]: float(r["width"] or 0) * float(r["height"] or 0)
        for r in read_table(out / "manifest.csv", ("image", "width", "height"))
    }
    shown = [
        {
            **vars(f),
            "size": _size(area.get(f.image), pixels.get(f.image, 0.0), f.label),
            "picture": _base64(picture_file(out, f)) if images else "",
            "map": _base64(map_file(out, f)) if images else "",
        }
        for f in failures
    ]
    kinds = [
        {"name": _PLURAL[k], "count": counts[k], "failures": [f for f in shown if f["kind"] == k]}
        for k in KINDS
        if k in counts
    ]
    return {
        "title": configuration_title(*key),
        "kinds": [k for k in kinds if k["failures"]],
        "drawn": any(f["picture"] for f in shown),
        "maps": _how(out) if any(f["map"] for f in shown) else "",
    }


def _how(out: Path) -> str:
    try:
        about = read_json(maps_about(out))
        text = " or ".join(str(m) for m in about["methods"])
        return text + (f", mean of {about['networks']} networks" if about["networks"] > 1 else "")
    except (SonobreastError, KeyError, TypeError):
        return "method not on record"


def _size(area: float | None, pixels: float, label: str) -> str:
    """In words; a normal image that is known to have no lesion needs none."""
    if area is None or math.isnan(area):
        return "" if label == "normal" else "size of the lesion not known"
    if area == 0:
        return ""
    return f"lesion {100 * area / pixels:.1f} % of the image" if pixels else f"lesion {area:.0f} px"


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode() if file.is_file() else ""
