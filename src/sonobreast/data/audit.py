"""What is wrong with a data set before anybody trains on it: copies, labels, masks, overlays, short-cuts."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sonobreast.data import groups, manifest
from sonobreast.data.duplicates import Pair
from sonobreast.data.duplicates import groups as connect
from sonobreast.data.exclusions import Exclusion
from sonobreast.data.exclusions import write as write_exclusions
from sonobreast.data.findings import Finding, finding
from sonobreast.data.groups import Member
from sonobreast.data.manifest import Manifest
from sonobreast.data.margins import Border
from sonobreast.data.marks import Marks, border, look
from sonobreast.data.preprocess import decode, decode_mask, quiet
from sonobreast.data.shortcut_check import check_shortcut
from sonobreast.records import Case, disk_error, write_json, write_table

Progress = Callable[[str, int, int], None]
Files = tuple[tuple[str, ...], ...]

LARGE = 10
IN_PROCESSES = 300
"""Images from which on starting processes is worth their second."""
PAIR_COLUMNS = ("image", "other", "kind", "score", "agreement", "overlap", "mirrored", "remark")
_DEVICE = ("device", "manufacturer", "scanner", "machine", "us_machine", "equipment")


class Properties(NamedTuple):
    """What is seen of one picture besides the tissue."""

    marks: Marks
    border: Border


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes
    ----------
    manifest : Manifest
        With the groups that were found.
    fingerprint : str
        Of the data as they are, before grouping.
    members : tuple of Member
    pairs : tuple of Pair
        Positions are those of ``manifest.cases``.
    properties : tuple of Properties
        One for each image.
    findings : tuple of Finding
    exclusions : tuple of Exclusion
        What a careful person might leave out.
    seconds : float
    """

    manifest: Manifest
    fingerprint: str
    members: tuple[Member, ...]
    pairs: tuple[Pair, ...]
    properties: tuple[Properties, ...]
    findings: tuple[Finding, ...]
    exclusions: tuple[Exclusion, ...]
    seconds: float

    @property
    def grouped(self) -> dict[str, list[Case]]:
        """Groups of two or more images, largest first."""
        return _grouped(self.manifest)


def audit(source: Path, *, strict: bool = False, workers: int = 2, progress: Progress | None = None) -> Audit:
    """Examine a data set.

    Parameters
    ----------
    source : Path
        See `sonobreast.data.folders.read_layout`.
    strict : bool
        Stop at the first file that cannot be used.
    workers : int
        Threads.
    progress : callable or None
        Told the stage, what is done, and of how many.

    Raises
    ------
    SonobreastError
        See `sonobreast.data.manifest.build`.
    """
    started = time.perf_counter()

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)

    plain = manifest.build(source, strict=strict, progress=lambda done, total: tell("reading images", done, total))
    pairs = tuple(
        groups.search(plain, workers=workers, progress=lambda s, d, t: tell(f"looking for copies: {s}", d, t))
    )
    members = groups.join(plain.cases, pairs)
    found = groups.regroup(plain, members)
    properties = tuple(_properties(found, workers, tell))
    findings = (
        *_problems(found),
        *_copies(found, pairs),
        *_masks(found, tell),
        *_overlays(found, properties),
        *_shortcuts(found, properties),
    )
    return Audit(
        found,
        plain.fingerprint,
        members,
        pairs,
        properties,
        findings,
        suggest(found, pairs, properties),
        time.perf_counter() - started,
    )


def _each(
    items: Sequence[Any], work: Callable[[Any], Any], stage: str, tell: Callable[[str, int, int], None]
) -> Iterator[Any]:
    with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, result in enumerate(pool.map(work, items), start=1):
            yield result
            tell(stage, done, len(items))


def _properties(data: Manifest, workers: int, tell: Callable[[str, int, int], None]) -> Iterator[Properties]:
    """Of each image; in processes where there are many, because the work is Python's own and threads would queue."""
    paths = [data.path(c) for c in data.cases]
    if len(paths) < IN_PROCESSES or workers < 2:
        yield from _each(paths, _seen, "looking at overlays", tell)
        return
    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=workers, return_as="generator", batch_size=16)
    for done, found in enumerate(parallel(delayed(_seen)(p) for p in paths), start=1):
        yield found
        tell("looking at overlays", done, len(paths))


def _seen(path: Path) -> Properties:
    with quiet():
        image = decode(path)
    return Properties(look(image), border(image))


def _grouped(data: Manifest) -> dict[str, list[Case]]:
    inside: dict[str, list[Case]] = defaultdict(list)
    for case in data.cases:
        inside[case.group].append(case)
    return dict(sorted(((k, v) for k, v in inside.items() if len(v) > 1), key=lambda kv: (-len(kv[1]), kv[0])))


def _count(n: int, noun: str) -> str:
    return "none" if n == 0 else f"{n} {noun}{'' if n == 1 else 's'}"


def _problems(data: Manifest) -> Iterator[Finding]:
    masks = any(c.masks for c in data.cases)
    for code in ("unreadable-image", "mask-as-image", "mask-unreadable", "mask-size", "mask-missing"):
        files = tuple((p.file,) for p in data.problems if p.code == code)
        if code in ("mask-unreadable", "mask-size", "mask-missing") and not masks and not files:
            yield finding(code, "the data set has no masks", status="not applicable")
        else:
            yield finding(code, _count(len(files), "file"), files=files)


def _copies(data: Manifest, pairs: Sequence[Pair]) -> Iterator[Finding]:
    cases = data.cases
    for code in ("identical-file", "identical-pixels", "near-duplicate", "same-view"):
        mine = [p for p in pairs if p.kind == code]
        images = {i for p in mine for i in (p.a, p.b)}
        yield finding(
            code,
            f"{_count(len(mine), 'pair')}, {_count(len(images), 'image')}" if mine else "none",
            files=tuple((cases[p.a].image, cases[p.b].image) for p in mine),
            figures={"pairs": float(len(mine)), "images": float(len(images))},
        )
    grouped = _grouped(data)
    conflicts = {
        k: v for k, v in grouped.items() if len({c.label for c in v}) > 1 and _linked_by_copies(v, cases, pairs)
    }
    yield finding(
        "label-conflict",
        f"{_count(len(conflicts), 'group')} of copies with more than one label",
        files=tuple(tuple(c.image for c in v) for v in conflicts.values()),
    )
    if any(c.patient for c in cases):
        known = [p for p in pairs if cases[p.a].patient and cases[p.b].patient]
        strangers = tuple(
            (cases[p.a].image, cases[p.b].image) for p in known if cases[p.a].patient != cases[p.b].patient
        )
        yield finding("copy-across-patients", _count(len(strangers), "pair"), files=strangers)
    else:
        yield finding("copy-across-patients", "no patients are known", status="not applicable")
    large = {k: v for k, v in grouped.items() if len(v) > LARGE}
    largest = max((len(v) for v in grouped.values()), default=1)
    yield finding(
        "large-group",
        f"{_count(len(large), 'group')}; the largest of all has {_count(largest, 'image')}",
        files=tuple(tuple(c.image for c in v) for v in large.values()),
        figures={"largest": float(largest)},
    )
    unknown = sum(not c.patient for c in cases)
    yield finding(
        "patients-unknown",
        f"{unknown} of {len(cases)} images have no patient",
        status="found" if unknown else "passed",
        figures={"images": float(unknown)},
    )


def _linked_by_copies(group: Sequence[Case], cases: Sequence[Case], pairs: Sequence[Pair]) -> bool:
    """Whether copies connect two images of the group with different labels; one patient alone may well have both."""
    place = {c.image: i for i, c in enumerate(group)}
    links = [(cases[p.a].image, cases[p.b].image) for p in pairs]
    inside = [Pair(place[a], place[b], "near-duplicate") for a, b in links if a in place and b in place]
    code = connect(len(group), inside)
    return any(len({c.label for c, g in zip(group, code, strict=True) if g == one}) > 1 for one in set(code.tolist()))


def _masks(data: Manifest, tell: Callable[[str, int, int], None]) -> Iterator[Finding]:
    jobs = [(c, m) for c in data.cases for m in c.masks]
    if not jobs:
        for code in ("mask-empty", "mask-not-empty-normal", "mask-shared"):
            yield finding(code, "the data set has no masks", status="not applicable")
        return
    lesion: dict[str, int] = Counter()
    same: dict[bytes, list[tuple[Case, str]]] = defaultdict(list)
    for (case, name), (area, digest) in zip(
        jobs, _each(jobs, lambda job: _mask(data.root / job[1]), "looking at masks", tell), strict=True
    ):
        lesion[case.image] += area
        if area:
            same[digest].append((case, name))
    with_masks = [c for c in data.cases if c.masks]
    normal = [c for c in with_masks if c.label == "normal"]
    empty = tuple((c.image, *c.masks) for c in with_masks if c.label != "normal" and not lesion[c.image])
    yield finding("mask-empty", _count(len(empty), "image"), files=empty)
    if normal:
        full = tuple((c.image, *c.masks) for c in normal if lesion[c.image])
        yield finding("mask-not-empty-normal", _count(len(full), "image"), files=full)
    else:
        yield finding("mask-not-empty-normal", "no image of the class normal has a mask", status="not applicable")
    shared = [found for found in same.values() if len({c.image for c, _ in found}) > 1]
    strangers = sum(len({c.group for c, _ in found}) > 1 for found in shared)
    yield finding(
        "mask-shared",
        f"{_count(len(shared), 'mask')}"
        + (f"; {strangers} of them for images that are not copies of each other" if shared else ""),
        files=tuple(tuple(name for _, name in found) for found in shared),
        figures={"not_copies": float(strangers)},
    )


def _mask(path: Path) -> tuple[int, bytes]:
    mask = decode_mask(path)
    digest = hashlib.sha256(str(mask.shape).encode())
    digest.update(np.packbits(mask).tobytes())
    return int(mask.sum()), digest.digest()


def _overlays(data: Manifest, properties: Sequence[Properties]) -> Iterator[Finding]:
    seen: dict[str, Callable[[Marks], bool]] = {
        "burned-in-text": lambda m: m.text,
        "burned-in-marks": lambda m: m.calipers or m.arrows,
        "blanked-area": lambda m: any(b.kind == "blank" for b in m.boxes),
        "colour-overlay": lambda m: m.colour > 0,
        "axilla": lambda m: m.axilla,
    }
    for code, test in seen.items():
        mine = [c for c, p in zip(data.cases, properties, strict=True) if test(p.marks)]
        by_class = Counter(c.label for c in mine)
        shares = ", ".join(f"{by_class[k]} of {n} {k}" for k, n in data.counts.items())
        yield finding(
            code,
            _count(len(mine), "image") + (f" ({shares})" if mine else ""),
            files=tuple((c.image,) for c in mine),
            figures={"images": float(len(mine)), **{k: float(by_class[k]) for k in data.counts}},
        )


def _shortcuts(data: Manifest, properties: Sequence[Properties]) -> Iterator[Finding]:
    labels, names = [c.label for c in data.cases], [c.group for c in data.cases]
    key = next((k for c in data.cases for k in c.extra if k.strip().lower() in _DEVICE), None)
    device: dict[str, list[float]] = {}
    if key is not None:
        given = [c.extra.get(key, "") for c in data.cases]
        device = {f"{key} {v or 'unknown'}": [float(g == v) for g in given] for v in sorted(set(given))}
    cases = data.cases
    edges = [p.border for p in properties]
    marks = [p.marks for p in properties]
    families: dict[str, dict[str, list[float]]] = {
        "size": {"width": [float(c.width) for c in cases], "height": [float(c.height) for c in cases]},
        "border": {
            side: [
                getattr(e, side) / (c.width if side in ("left", "right") else c.height)
                for e, c in zip(edges, cases, strict=True)
            ]
            for side in ("left", "top", "right", "bottom")
        },
        "device": device,
        "overlay": {
            "words": [float(m.text) for m in marks],
            "calipers": [float(m.calipers) for m in marks],
            "arrows": [float(m.arrows) for m in marks],
            "number of marks": [float(len(m.boxes)) for m in marks],
            "colour": [m.colour for m in marks],
        },
    }
    for family, table in families.items():
        yield check_shortcut(family, table, labels, names)


def suggest(data: Manifest, pairs: Sequence[Pair], properties: Sequence[Properties]) -> tuple[Exclusion, ...]:
    """Images that a careful person might leave out.

    Of each picture with copies one image stays: the one with masks, the fewest marks and the most pixels, in this
    order. Where copies carry different labels none stays. Other frames of one view are kept: they are no copies. What
    may show the axilla is listed with ``no``, because it is a hint.
    """
    cases = data.cases
    code = connect(len(cases), [p for p in pairs if p.kind != "same-view"])
    inside: dict[int, list[int]] = defaultdict(list)
    for i, g in enumerate(code):
        inside[int(g)].append(i)
    rows: list[Exclusion] = []
    for members in inside.values():
        if len(members) < 2:
            continue
        labels = sorted({cases[i].label for i in members})
        if len(labels) > 1:
            why = f"one picture with the labels {' and '.join(labels)}"
            rows += [Exclusion(image=cases[i].image, reason=why) for i in members]
            continue
        best = min(
            members,
            key=lambda i: (
                not cases[i].masks,
                len(properties[i].marks.boxes),
                -cases[i].width * cases[i].height,
                cases[i].image,
            ),
        )
        rows += [Exclusion(image=cases[i].image, reason=f"copy of {cases[best].image}") for i in members if i != best]
    taken = {r.image for r in rows}
    rows += [
        Exclusion(image=c.image, exclude="no", reason="perhaps the axilla (burned-in words)")
        for c, p in zip(cases, properties, strict=True)
        if p.marks.axilla and c.image not in taken
    ]
    return tuple(rows)


def prepare(out: Path) -> None:
    """Make the folder before the work: a place that cannot be written to shows at once.

    Raises
    ------
    SonobreastError
        If it is a file, or cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error


def write(out: Path, result: Audit) -> None:
    """Write ``audit.json``, ``groups.csv``, ``pairs.csv``, ``exclusions.csv`` and ``manifest.csv``.

    Raises
    ------
    SonobreastError
        If the folder cannot be written.
    """
    data = result.manifest
    grouped = result.grouped
    manifest.write(out / "manifest.csv", data)
    groups.write(out / "groups.csv", result.members)
    write_table(out / "pairs.csv", PAIR_COLUMNS, (_pair_row(p, data.cases) for p in result.pairs))
    write_exclusions(out / "exclusions.csv", result.exclusions)
    write_json(
        out / "audit.json",
        {
            "data_fingerprint": result.fingerprint,
            "layout": data.layout,
            "images": len(data.cases),
            "classes": data.counts,
            "groups": {
                "number": len({c.group for c in data.cases}),
                "of_two_or_more": len(grouped),
                "images_in_them": sum(len(v) for v in grouped.values()),
                "largest": max((len(v) for v in grouped.values()), default=1),
            },
            "exclusions_suggested": sum(r.exclude == "yes" for r in result.exclusions),
            "seconds": round(result.seconds, 1),
            "findings": [f.model_dump() for f in result.findings],
        },
    )


def _pair_row(pair: Pair, cases: Sequence[Case]) -> dict[str, object]:
    return {
        "image": cases[pair.a].image,
        "other": cases[pair.b].image,
        "kind": pair.kind,
        "score": pair.score,
        "agreement": pair.agreement,
        "overlap": pair.overlap,
        "mirrored": "yes" if pair.mirrored else "no",
        "remark": pair.remark,
    }
