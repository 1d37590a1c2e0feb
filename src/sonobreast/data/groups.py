"""Which images belong together: patients where they are known, else the groups of copies, kept as ``groups.csv``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sonobreast.data.manifest import Manifest
from sonobreast.data.preprocess import decode, quiet
from sonobreast.errors import SonobreastError, nearest
from sonobreast.records import Case, Row, read_table, write_table

if TYPE_CHECKING:
    from sonobreast.data.duplicates import Pair, Picture

Progress = Callable[[str, int, int], None]


class Member(Row):
    """Where one image belongs: one row of ``groups.csv``.

    Attributes
    ----------
    image : str
    group : str
        The patient, or the first image of the group.
    reason : str
        Why it is not alone, for example ``near-duplicate of benign/benign (229).png (shift -9 -2 px)``; empty for an
        image that is a group of its own.
    """

    image: str
    group: str
    reason: str = ""


def needs_search(cases: Sequence[Case]) -> bool:
    """Whether some image has neither a patient nor a group of its own, so that copies have to be looked for."""
    return any(not c.patient and c.group == c.image for c in cases)


def find(manifest: Manifest, *, workers: int = 2, progress: Progress | None = None) -> tuple[Member, ...]:
    """Put the images of one patient, of one given group, and the copies of one picture together.

    Where every image has a patient or a group, only files with the same bytes are looked for beyond these; else the
    pictures are compared (`sonobreast.data.duplicates.find_pairs`).

    Parameters
    ----------
    manifest : Manifest
    workers : int
        Threads of the search.
    progress : callable or None
        Told the stage, what is done, and of how many.

    Returns
    -------
    tuple of Member
        One for each image, in the order of the manifest.
    """
    pairs = (
        search(manifest, workers=workers, progress=progress) if needs_search(manifest.cases) else identical(manifest)
    )
    return join(manifest.cases, pairs)


def search(manifest: Manifest, *, workers: int = 2, progress: Progress | None = None) -> list[Pair]:
    """All pairs of images that show the same picture; positions are those of ``manifest.cases``."""
    from sonobreast.data.duplicates import find_pairs

    n = len(manifest.cases)

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total or n)

    with quiet():
        return find_pairs(pictures(manifest), workers=workers, progress=tell)


def pictures(manifest: Manifest, which: Iterable[int] | None = None) -> Iterator[Picture]:
    """Paths, and arrays of the pictures with 16-bit grey values, which the search does not take.

    Parameters
    ----------
    manifest : Manifest
    which : iterable of int or None
        Positions in ``manifest.cases``; None: all.
    """
    for case in manifest.cases if which is None else (manifest.cases[i] for i in which):
        path = manifest.path(case)
        try:
            with Image.open(path) as opened:
                deep = opened.mode.startswith(("I", "F"))
        except (OSError, ValueError, Image.DecompressionBombError):
            deep = True  # `decode` names what is wrong
        yield decode(path) if deep else path


def identical(manifest: Manifest) -> list[Pair]:
    """Pairs of files with the same bytes, each with the first of its kind."""
    from sonobreast.data.duplicates import Pair

    first: dict[str, int] = {}
    pairs = []
    for i, case in enumerate(manifest.cases):
        a = first.setdefault(case.sha256, i)
        if a != i:
            pairs.append(Pair(a, i, "identical-file"))
    return pairs


def join(cases: Sequence[Case], pairs: Sequence[Pair]) -> tuple[Member, ...]:
    """Connect images by patient, by given group and by pairs; what is connected is one group.

    Parameters
    ----------
    cases : sequence of Case
    pairs : sequence of Pair
        With positions in ``cases``.
    """
    from sonobreast.data.duplicates import Pair, groups

    links = list(pairs)
    for key in ("patient", "group"):
        seen: dict[str, int] = {}
        for i, case in enumerate(cases):
            name = getattr(case, key)
            if name and name != case.image:
                a = seen.setdefault(name, i)
                if a != i:
                    links.append(Pair(a, i, "same-view"))
    code = groups(len(cases), links)
    members: dict[int, list[int]] = defaultdict(list)
    for i, g in enumerate(code):
        members[int(g)].append(i)
    strongest: dict[int, Pair] = {}
    for pair in pairs:
        for i in (pair.a, pair.b):
            if i not in strongest or pair.score > strongest[i].score:
                strongest[i] = pair
    result: list[Member | None] = [None] * len(cases)
    for inside in members.values():
        name = _name([cases[i] for i in inside])
        for i in inside:
            result[i] = Member(
                image=cases[i].image, group=name, reason=_reason(i, cases, len(inside), strongest.get(i))
            )
    return tuple(m for m in result if m is not None)


def _name(cases: Sequence[Case]) -> str:
    patients = list(dict.fromkeys(c.patient for c in cases if c.patient))
    given = list(dict.fromkeys(c.group for c in cases if c.group != c.image))
    if patients:
        return "+".join(patients)
    return "+".join(given) if given else min(c.image for c in cases)


def _reason(i: int, cases: Sequence[Case], size: int, pair: Pair | None) -> str:
    case = cases[i]
    words = []
    if case.patient:
        words.append(f"patient {case.patient}")
    elif case.group != case.image:
        words.append("group of the data set")
    if pair is not None and size > 1:
        other = cases[pair.b if pair.a == i else pair.a].image
        kind = {"identical-file": "the same file as", "identical-pixels": "the same pixels as"}.get(
            pair.kind, f"{pair.kind} of"
        )
        words.append(f"{kind} {other}" + (f" ({pair.remark})" if pair.remark else ""))
    return "; ".join(words)


def regroup(manifest: Manifest, members: Sequence[Member]) -> Manifest:
    """The manifest with the groups of the members; an image that is not among them keeps its own."""
    group = {m.image: m.group for m in members}
    cases = tuple(c.model_copy(update={"group": group.get(c.image, c.group)}) for c in manifest.cases)
    return replace(manifest, cases=cases)


def write(path: Path, members: Sequence[Member]) -> None:
    """Write ``groups.csv``: one row an image."""
    write_table(path, tuple(Member.model_fields), (m.model_dump() for m in members))


def read(path: Path, manifest: Manifest) -> tuple[Member, ...]:
    """Read a ``groups.csv``, from the audit or a person's own; only ``image`` and ``group`` are needed.

    Returns
    -------
    tuple of Member
        One for each image of the manifest; what the table does not list stays with its patient or alone.

    Raises
    ------
    SonobreastError
        If an image is not in the data or is listed twice, a group is empty, or one patient is in two groups.
    """
    rows = read_table(path, ("image", "group"), versioned=False)
    case_of = {c.image: c for c in manifest.cases}
    listed: dict[str, Member] = {}
    group_of_patient: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        name, group = row["image"].strip(), row["group"].strip()
        if name not in case_of:
            raise SonobreastError(
                f"line {number} names an image that is not in the data: {name!r}; {nearest(name, sorted(case_of))}",
                file=path,
                remedy="give the groups of these data, or remove the line",
            )
        if name in listed:
            raise SonobreastError(f"line {number} names {name!r} again", file=path, remedy="keep one line an image")
        if not group:
            raise SonobreastError(
                f"line {number}: {name!r} has no group", file=path, remedy="give a name, for example that of the image"
            )
        patient = case_of[name].patient
        if patient and group_of_patient.setdefault(patient, group) != group:
            raise SonobreastError(
                f"line {number}: the patient {patient!r} is in two groups, {group_of_patient[patient]!r} and {group!r}",
                file=path,
                remedy="give all images of a patient the same group",
            )
        listed[name] = Member(image=name, group=group, reason=(row.get("reason") or "").strip())
    return tuple(
        listed.get(c.image)
        or Member(image=c.image, group=group_of_patient.get(c.patient, c.group) if c.patient else c.group)
        for c in manifest.cases
    )
