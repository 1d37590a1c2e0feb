"""The page of the detector of strangers: what it refuses, and what it should not have refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sonobreast.page import write_page

DETECTOR_TITLES = {
    "stages": "means of all stages",
    "pooled": "last, pooled features",
    "picture": "statistics of the picture",
}


def sentences(found: Mapping[str, Any], *, most: int | None = None) -> list[str]:
    """What the figures say, in words; of the kinds that are not all refused only so many are named, the worst first."""
    mine = found["detectors"][found["detector"]]
    wrongly, strangers = mine["test"]["refused"], {k: f for k, f in mine["outsiders"].items() if f["images"]}
    text = []
    if mine["test"]["images"]:
        text.append(
            f"Of the study's own test scans {_with(wrongly)} are refused, which they should not be; the threshold was "
            f"chosen to accept {100 * found['accept']:.0f} %."
        )
    caught = [k for k, f in strangers.items() if f["refused"]["estimate"] == 1.0]
    let_in = {k: f for k, f in strangers.items() if f["refused"]["estimate"] < 1.0}
    named = sorted(let_in, key=lambda k: let_in[k]["refused"]["estimate"])[:most]
    rest = f"; and of {len(let_in) - len(named)} more kinds" if len(named) < len(let_in) else ""
    if caught:
        text.append(f"Every picture is refused of {len(caught)} of {len(strangers)} kinds of outsiders.")
    if let_in:
        text.append(
            "Not all are refused of: "
            + "; ".join(f"{k} {_with(f['refused'])}" for k, f in let_in.items() if k in named)
            + f"{rest}."
        )
    for name, f in mine["others"].items():
        text.append(
            f"Of {f['images']} breast scans of {name}, {_with(f['refused'])} are refused. This is no error rate: "
            "another scanner is outside of what the model has seen, and its figures there are not those of the study."
        )
    return text


def _with(figure: Mapping[str, Any]) -> str:
    estimate, low, high = figure["estimate"], figure["low"], figure["high"]
    if estimate is None:
        return "– (not defined)"
    inside = "no interval" if low is None else f"{100 * low:.1f}–{100 * high:.1f}"
    return f"{100 * estimate:.1f}\u00a0% ({inside})"


def write(out: Path, found: Mapping[str, Any]) -> Path:
    """Write ``domain.html``.

    Parameters
    ----------
    out : Path
    found : mapping
        The content of ``domain.json``.
    """
    file = out / "domain.html"
    names = list(found["detectors"])
    mine = found["detectors"][found["detector"]]
    rows = [
        {
            "kind": kind,
            "other": which == "others",
            "images": f["images"],
            "groups": f["groups"],
            "by": [found["detectors"][n][which][kind] for n in names],
        }
        for which in ("outsiders", "others")
        for kind, f in mine[which].items()
    ]
    content = {**found, "rows": rows, "names": names, "titles": DETECTOR_TITLES, "sentences": sentences(found)}
    write_page(file, "evaluation/domain.html.j2", content)
    return file
