"""Known defects of a public data set: a versioned card in the catalogue, written by the audit and never by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sonobreast.data.audit import Audit
from sonobreast.data.catalogue import DATA_SETS
from sonobreast.errors import SonobreastError
from sonobreast.records import write_json

CARD_VERSION = 1


def card_of(result: Audit) -> dict[str, Any]:
    """What the audit found, without what differs between two copies of the same pictures (bytes, times).

    Returns
    -------
    dict
        ``name``, ``card_version``, ``images``, ``classes``, ``groups`` (groups of two or more: their images),
        ``findings`` (code -> status, number, files).
    """
    return {
        "name": result.manifest.layout,
        "card_version": CARD_VERSION,
        "images": len(result.manifest.cases),
        "classes": result.manifest.counts,
        "groups": sorted(sorted(c.image for c in cases) for cases in result.grouped.values()),
        "findings": _findings(result),
    }


def _findings(result: Audit) -> dict[str, dict[str, Any]]:
    files: dict[str, list[list[str]]] = {}
    found: dict[str, str] = {}
    for f in result.findings:
        # Whether two files with the same pixels have the same bytes depends on how a copy of the data was packed.
        code = "identical-pixels" if f.code == "identical-file" else f.code
        files[code] = sorted(files.get(code, []) + [list(names) for names in f.files])
        found[code] = "found" if "found" in (f.status, found.get(code)) else f.status
    return {code: {"status": found[code], "number": len(files[code]), "files": files[code]} for code in files}


def load_card(name: str) -> Mapping[str, Any] | None:
    """The card of a data set in the catalogue; None where there is none."""
    file = resources.files("sonobreast") / "data" / f"{name}.card.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def write_card(path: Path, result: Audit) -> None:
    """Write the card of a complete public data set.

    Raises
    ------
    SonobreastError
        If the images are not those of a data set in the catalogue.
    """
    known = DATA_SETS.get(result.manifest.layout)
    if known is None or known.classes != result.manifest.counts:
        raise SonobreastError(
            "a card is written for a complete data set of the catalogue only",
            file=result.manifest.root,
            remedy="audit without --card; the findings are in audit.json",
        )
    write_json(path, card_of(result))


def compare_with_card(result: Audit) -> list[str]:
    """Whether the audit of a complete public data set gives what its card says: sentences, none for other data."""
    known = DATA_SETS.get(result.manifest.layout)
    card = load_card(result.manifest.layout)
    if known is None or card is None or known.classes != result.manifest.counts:
        return []
    mine = card_of(result)
    head = f"{known.title}: card of known defects, version {card['card_version']}"
    differences = [
        f"{code}: {mine['findings'].get(code, {}).get('number', 0)} here, {entry['number']} on the card"
        for code, entry in card["findings"].items()
        if mine["findings"].get(code) != entry
    ]
    if mine["groups"] != card["groups"]:
        differences.append(f"groups: {len(mine['groups'])} here, {len(card['groups'])} on the card")
    if not differences:
        return [f"{head}: reproduced"]
    return [f"{head}: differs; other versions of the libraries or changed files", *(f"  {d}" for d in differences)]
