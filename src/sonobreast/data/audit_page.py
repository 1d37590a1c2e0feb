"""The audit as one HTML page that opens off-line, with the pictures that belong together side by side."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from sonobreast.data.audit import Audit
from sonobreast.data.findings import Finding, by_gravity
from sonobreast.data.preprocess import decode, quiet
from sonobreast.page import write_page as write_html

SIDE = 220
"""Longest side of a thumbnail in pixels."""
GROUPS = 400
"""Groups shown with pictures; all of them are in groups.csv."""
IN_A_GROUP = 12
SHOWN = 12
"""Pictures and file names shown of a finding that is not about groups."""
_ABOUT_GROUPS = (
    "label-conflict",
    "copy-across-patients",
    "large-group",
    "identical-file",
    "identical-pixels",
    "near-duplicate",
    "same-view",
)
_PICTURED = ("axilla", "colour-overlay", "blanked-area", "burned-in-text", "burned-in-marks", "mask-not-empty-normal")


def write_page(path: Path, result: Audit, *, images: bool = True) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
    result : Audit
    images : bool
        False leaves all pictures of the data set out.

    Raises
    ------
    SonobreastError
        If the file cannot be written.
    """

    @cache
    def picture(name: str) -> str:
        return _thumbnail(result.manifest.root / name)

    content = {
        "result": result,
        "counts": result.manifest.counts,
        "images": images,
        "picture": picture,
        "findings": [_shown(f) for f in by_gravity(result.findings)],
        "groups": _groups(result),
        "more_groups": max(0, len(result.grouped) - GROUPS),
        "in_groups": sum(len(v) for v in result.grouped.values()),
        "suggested": sum(r.exclude == "yes" for r in result.exclusions),
    }
    with quiet():
        write_html(path, "data/audit.html.j2", content)


def _shown(finding: Finding) -> dict[str, Any]:
    listed = () if finding.code in _ABOUT_GROUPS[2:] else finding.files
    return {
        **finding.model_dump(),
        "listed": listed[:SHOWN],
        "more": max(0, len(listed) - SHOWN),
        "pictures": [f[0] for f in listed[:SHOWN]] if finding.code in _PICTURED else [],
    }


def _groups(result: Audit) -> list[dict[str, Any]]:
    reason = {m.image: m.reason for m in result.members}
    conflicts = {f[0] for found in result.findings if found.code == "label-conflict" for f in found.files}
    shown: list[dict[str, Any]] = []
    for name, cases in result.grouped.items():
        ordered = sorted(cases, key=lambda c: c.image)
        shown.append(
            {
                "name": name,
                "size": len(cases),
                "conflict": any(c.image in conflicts for c in cases),
                "members": [
                    {
                        "image": c.image,
                        "label": c.label,
                        "reason": reason[c.image],
                        "pixels": f"{c.width}×{c.height} px",
                    }
                    for c in ordered[:IN_A_GROUP]
                ],
                "more": max(0, len(cases) - IN_A_GROUP),
            }
        )
    shown.sort(key=lambda g: (not g["conflict"], -g["size"]))  # stable: by name within
    return shown[:GROUPS]


def _thumbnail(path: Path) -> str:
    """JPEG of at most `SIDE` pixels, base64; small enough for a page with some hundred of them."""
    picture = Image.fromarray(decode(path))
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.convert("L" if _is_grey(picture) else "RGB").save(buffer, format="JPEG", quality=75)
    return base64.b64encode(buffer.getvalue()).decode()


def _is_grey(picture: Image.Image) -> bool:
    red, green, blue = picture.split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
