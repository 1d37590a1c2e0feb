"""The table of images: every file opened once, what is wrong with it named, the rest listed in ``manifest.csv``."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sonobreast.data.contents import content_and_digest
from sonobreast.data.dicom_folder import read_entry
from sonobreast.data.folders import read_layout
from sonobreast.data.listing import Entry, Listing
from sonobreast.data.mask_size import RESCALED, fit_mask
from sonobreast.data.preprocess import decode, decode_mask, is_mask, quiet
from sonobreast.errors import SonobreastError
from sonobreast.records import LESION_CLASSES, Case, Problem, read_table, write_table

COLUMNS = ("image", "label", "group", "patient", "mask", "width", "height", "spacing_mm", "sha256", "source", "root")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Manifest:
    """The images of a data set that can be used.

    Attributes
    ----------
    root : Path
        Folder that the names of images and masks are relative to.
    cases : tuple of Case
    problems : tuple of Problem
        Files that were left out, or read with a reservation.
    layout : str
    """

    root: Path
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...] = ()
    layout: str = "csv"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, contents, labels and groups of all images: equal if and only if the data are equal."""
        digest = hashlib.sha256()
        for case in sorted(self.cases, key=lambda c: c.image):
            digest.update("\0".join((case.image, case.sha256, case.label, case.group, "")).encode())
        return digest.hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Images of each class, in the usual order of the classes."""
        found = Counter(c.label for c in self.cases)
        order = [c for c in LESION_CLASSES if c in found] + sorted(set(found) - set(LESION_CLASSES))
        return {c: found[c] for c in order}

    def path(self, case: Case) -> Path:
        """Path of the image file."""
        return self.root / case.image


def build(source: Path, *, strict: bool = False, progress: Progress | None = None) -> Manifest:
    """Read a data set's folder or CSV, open every file, and list what can be used.

    Parameters
    ----------
    source : Path
        See `sonobreast.data.folders.read_layout`.
    strict : bool
        Make every file that has to be left out an error instead of a named, counted problem.
    progress : callable or None
        Called with (files done, files in all).

    Raises
    ------
    SonobreastError
        If nothing can be recognised or used; if the images of a class are masks; with ``strict``, at the first file
        that cannot be used.
    """
    listing = read_layout(source)
    with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = []
        for done, result in enumerate(pool.map(lambda e: _inspect(e, listing), listing.entries), start=1):
            results.append(result)
            if progress is not None:
                progress(done, len(listing.entries))
    problems = [*listing.problems, *(p for _, found in results for p in found)]
    cases = tuple(case for case, _ in results if case is not None)
    _refuse_mask_classes(listing, problems)
    errors = [p for p in problems if p.severity == "error"]
    if errors and strict:
        raise SonobreastError(
            f"{errors[0].what} ({len(errors)} such file(s) in all; --strict)",
            file=errors[0].file,
            remedy=errors[0].remedy,
        )
    if not cases:
        first = f"; the first: {errors[0].file}: {errors[0].what}" if errors else ""
        raise SonobreastError(
            f"none of the {len(listing.entries)} images can be read{first}",
            file=source,
            remedy="check that the files are images, and copy or download them again",
        )
    return Manifest(listing.root, cases, tuple(problems), listing.layout)


def _inspect(entry: Entry, listing: Listing) -> tuple[Case | None, list[Problem]]:
    name = _relative(entry.image, listing.root)
    added: list[Problem] = []
    try:
        content, digest = content_and_digest(entry.image)
    except OSError as error:
        return None, [_unreadable(name, f"the file cannot be opened ({error.strerror})")]
    try:
        if isinstance(content, Path):
            entry, image, added = read_entry(entry, name)
        else:
            image = decode(content)
    except SonobreastError as error:
        return None, [_unreadable(name, error.what, error.remedy if isinstance(content, Path) else "")]
    if is_mask(image):
        what = "black and white only: a mask or an empty picture, not a scan; left out"
        return None, [
            Problem(
                code="mask-as-image",
                severity="error",
                file=name,
                what=what,
                remedy="name masks `NAME_mask.png` after their image, or remove the file",
            )
        ]
    height, width = image.shape[:2]
    source = entry.source or listing.layout
    masks, problems = [], added
    for path in entry.masks:
        mask_name = _relative(path, listing.root)
        try:
            mask = decode_mask(path)
        except SonobreastError as error:
            problems.append(
                Problem(
                    code="mask-unreadable",
                    severity="error",
                    file=mask_name,
                    what=f"{error.what}; the image is used without this mask",
                    remedy="replace the mask",
                )
            )
            continue
        if mask.shape != (height, width):
            fits = fit_mask(mask, width, height, source) is not None
            what = "the mask is scaled to the image" if fits else "the image is used without this mask"
            problems.append(
                Problem(
                    code="mask-scaled" if fits else "mask-size",
                    severity="warning" if source in RESCALED else "error",
                    file=mask_name,
                    what=f"the mask is {mask.shape[1]}x{mask.shape[0]} px, its image {width}x{height} px; {what}",
                    remedy="look whether it lies on the lesion" if fits else "export the mask at the image's size",
                )
            )
            if not fits:
                continue
        masks.append(mask_name)
    if not entry.masks and listing.expects_masks:
        problems.append(
            Problem(
                code="mask-missing",
                severity="warning",
                file=name,
                what="the image has no mask; it is used for classification only",
                remedy="add `NAME_mask.png` beside the image",
            )
        )
    case = Case(
        image=name,
        label=entry.label,
        group=entry.group or entry.patient or name,
        patient=entry.patient,
        masks=tuple(masks),
        width=width,
        height=height,
        spacing_mm=entry.spacing_mm,
        sha256=digest,
        source=source,
        extra=dict(entry.extra),
    )
    return case, problems


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _unreadable(name: str, what: str, remedy: str = "") -> Problem:
    return Problem(
        code="unreadable-image",
        severity="error",
        file=name,
        what=f"{what}; left out",
        remedy=remedy or "replace the file with an undamaged copy, or remove it",
    )


def _refuse_mask_classes(listing: Listing, problems: Sequence[Problem]) -> None:
    total = Counter(e.label for e in listing.entries)
    label_of = {_relative(e.image, listing.root): e.label for e in listing.entries}
    masks = Counter(label_of[p.file] for p in problems if p.code == "mask-as-image" and p.file in label_of)
    for label, n in masks.items():
        if n == total[label]:
            raise SonobreastError(
                f"all {n} pictures of the class {label!r} are black and white: these are masks, not images",
                file=listing.root,
                remedy="give the folder that holds the images themselves, with each mask named `NAME_mask.png`",
            )


def write(path: Path, manifest: Manifest) -> None:
    """Write ``manifest.csv``, and ``problems.csv`` beside it where there are problems.

    The column ``root`` leads from the table's own folder to the images; it is empty where they are the same.

    Raises
    ------
    SonobreastError
        If ``path`` holds a table that is not a manifest, or there is a ``problems.csv`` that is not ours: nothing is
        overwritten then.
    """
    problems = path.with_name("problems.csv")
    for file, columns in ((path, COLUMNS[:3]), (problems, tuple(Problem.model_fields))):
        if file.exists():
            try:
                read_table(file, columns)
            except SonobreastError as error:
                raise SonobreastError(
                    f"a file of this name exists and is not a {file.stem} table of ours",
                    file=file,
                    remedy="give another place with --out",
                ) from error
    extra = list(dict.fromkeys(k for c in manifest.cases for k in c.extra))
    home, root = path.parent.resolve(), manifest.root.resolve()
    relative = "" if home == root else os.path.relpath(root, home).replace(os.sep, "/")
    rows = (
        {
            **c.model_dump(exclude={"masks", "extra", "spacing_mm"}),
            "mask": "|".join(c.masks),
            "spacing_mm": "" if c.spacing_mm is None else c.spacing_mm,
            "root": relative,
            **c.extra,
        }
        for c in manifest.cases
    )
    write_table(path, (*COLUMNS, *extra), rows)
    if manifest.problems:
        write_table(problems, tuple(Problem.model_fields), (p.model_dump() for p in manifest.problems))
    else:
        problems.unlink(missing_ok=True)
