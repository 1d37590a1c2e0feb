"""The page of explanations: what the maps show, how well they lie on lesions, and whether they mean anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonobreast.evaluation.localisation import CENTRE, SCORES
from sonobreast.page import write_page


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What the figures say, in words."""
    titles = {m["name"]: m["title"][0].upper() + m["title"][1:] for m in found["methods"]}
    text = []
    for f in found["localisation"]:
        if f["part"] != "all" or f["method"] == CENTRE or f["energy"]["estimate"] is None:
            continue
        over, energy = f["over_centre"]["energy"], f["energy"]["estimate"]
        against = "" if over["low"] is None else _against(over)
        text.append(
            f"{titles[f['method']]}: {100 * energy:.0f} % of the relevance lies inside the lesion, which fills "
            f"{100 * f['area']:.0f} % of the image{against}."
        )
    for m in dict.fromkeys(s["method"] for s in found["sanity"]):
        last = [s for s in found["sanity"] if s["method"] == m][-1]
        if last["unchanged"]:
            text.append(
                f"{titles[m]} hardly changes when all weights are randomised (rank correlation "
                f"{last['spearman']:.2f}): most of it is the picture. Do not read it as an explanation."
            )
    return text


def _against(over: Mapping[str, Any]) -> str:
    if over["low"] > 0:
        return ", more than of a blob in the middle of the image"
    if over["high"] < 0:
        return ", less than of a blob in the middle of the image"
    return ", which a blob in the middle of the image does about as well"


def write(out: Path, found: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``explain.html``.

    Parameters
    ----------
    out : Path
    found : mapping
        The content of ``explain.json``.
    shown : sequence of mapping
        Images: ``image, label, predicted, p_predicted, target, p_target, outlined`` and ``pictures``: titles and PNGs
        in base64.
    """
    file = out / "explain.html"
    titles = {m["name"]: m["title"] for m in found["methods"]} | {CENTRE: "centre blob (control)"}
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["localisation"]:
        parts.setdefault(row["part"], []).append(row)
    content = {**found, "shown": shown, "titles": titles, "parts": parts, "scores": SCORES, "centre": CENTRE}
    write_page(file, "evaluation/explain.html.j2", {**content, "sentences": sentences(found)})
    return file
