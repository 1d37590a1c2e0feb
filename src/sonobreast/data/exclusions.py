"""The list of images that a person leaves out, with a reason for each: written by the audit, edited by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sonobreast.data.manifest import Manifest
from sonobreast.errors import SonobreastError, nearest
from sonobreast.records import Row, read_table, write_table

_YES = {"yes", "y", "true", "1", "x", ""}
_NO = {"no", "n", "false", "0"}


class Exclusion(Row):
    """One row of ``exclusions.csv``.

    Attributes
    ----------
    image : str
    exclude : {"yes", "no"}
        ``no`` keeps the image: a suggestion that was looked at and not followed.
    reason : str
    """

    image: str
    exclude: str = "yes"
    reason: str


def write(path: Path, rows: Sequence[Exclusion]) -> None:
    """Write ``exclusions.csv``."""
    write_table(path, tuple(Exclusion.model_fields), (r.model_dump() for r in rows))


def read(path: Path) -> tuple[Exclusion, ...]:
    """Read an ``exclusions.csv``; a table without the column ``exclude`` means yes everywhere.

    Raises
    ------
    SonobreastError
        If a line has no reason, an answer other than yes or no, or an image comes twice.
    """
    rows = []
    seen: dict[str, int] = {}
    for number, row in enumerate(read_table(path, ("image", "reason"), versioned=False), start=2):
        name, reason = (row["image"] or "").strip(), (row["reason"] or "").strip()
        answer = (row.get("exclude") or "").strip().lower()
        if not name and not reason:
            continue
        if answer not in _YES | _NO:
            raise SonobreastError(
                f"line {number}: exclude is {answer!r}", file=path, remedy="write yes (leave it out) or no (keep it)"
            )
        if not name or not reason:
            raise SonobreastError(
                f"line {number} has no {'reason' if name else 'image'}",
                file=path,
                remedy="say why each image is left out: the report repeats it",
            )
        if name in seen:
            raise SonobreastError(
                f"line {number} names {name!r} again (first on line {seen[name]})",
                file=path,
                remedy="keep one line for each image",
            )
        seen[name] = number
        rows.append(Exclusion(image=name, exclude="no" if answer in _NO else "yes", reason=reason))
    return tuple(rows)


def apply(manifest: Manifest, rows: Sequence[Exclusion], origin: Path) -> tuple[Manifest, tuple[Exclusion, ...]]:
    """Leave the listed images out.

    Returns
    -------
    manifest : Manifest
        Without them.
    left_out : tuple of Exclusion
        The rows that took an image out.

    Raises
    ------
    SonobreastError
        If a listed image is not in the data, or nothing is left.
    """
    known = {c.image for c in manifest.cases}
    damaged = {p.file for p in manifest.problems}
    for row in rows:
        if row.image not in known | damaged:
            raise SonobreastError(
                f"the list names an image that is not in the data: {row.image!r}; {nearest(row.image, sorted(known))}",
                file=origin,
                remedy="give the list that belongs to these data, or remove the line",
            )
    left_out = tuple(r for r in rows if r.exclude == "yes" and r.image in known)
    names = {r.image for r in left_out}
    cases = tuple(c for c in manifest.cases if c.image not in names)
    if not cases:
        raise SonobreastError("the list leaves no image", file=origin, remedy="keep some images")
    return replace(manifest, cases=cases), left_out
