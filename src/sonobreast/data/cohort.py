"""The images of a study: read, grouped, without those that a list leaves out, drawn and divided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sonobreast.config import Recipe
from sonobreast.data import exclusions, groups, labels, manifest, split
from sonobreast.data.exclusions import Exclusion
from sonobreast.data.groups import Member
from sonobreast.data.manifest import Manifest
from sonobreast.errors import SonobreastError
from sonobreast.records import Assignment, Case

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sources:
    """The files a person gives for a study.

    Attributes
    ----------
    data : Path
        See `sonobreast.data.folders.read_layout`.
    groups : Path or None
        A ``groups.csv``; None: patients, else the groups of copies that a search finds.
    exclude : Path or None
        An ``exclusions.csv``.
    split : Path or None
        The person's own division; None: as the recipe says.
    strict : bool
        Stop at the first file that cannot be used.
    labels : Path or None
        Which class each label is (`sonobreast.data.labels.read_mapping`); None: the labels are the classes.
    """

    data: Path
    groups: Path | None = None
    exclude: Path | None = None
    split: Path | None = None
    strict: bool = False
    labels: Path | None = None


@dataclass(frozen=True)
class Cohort:
    """The images of a study.

    Attributes
    ----------
    manifest : Manifest
        All images but those left out, with their groups.
    members : tuple of Member
        Groups and their reasons, also of images that were left out.
    left_out : tuple of Exclusion
    """

    manifest: Manifest
    members: tuple[Member, ...]
    left_out: tuple[Exclusion, ...]


def gather(sources: Sources, *, known: tuple[Path, str] | None = None, progress: Progress | None = None) -> Cohort:
    """Read the images, put copies and patients together, leave out what the list says.

    Parameters
    ----------
    sources : Sources
    known : (Path, str) or None
        A ``groups.csv`` that an earlier call wrote, and the data's fingerprint then. Where the data are still the
        same, the search for copies is not repeated.
    progress : callable or None
        Told the stage, what is done, and of how many.

    Raises
    ------
    SonobreastError
        See `manifest.build`, `groups.read`, `exclusions.read` and `labels.map_labels`.
    """

    def tell(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)

    mapping = None if sources.labels is None else labels.read_mapping(sources.labels)
    listed = () if sources.exclude is None else exclusions.read(sources.exclude)  # a mistake shows before the work
    found = manifest.build(
        sources.data, strict=sources.strict, progress=lambda done, total: tell("reading images", done, total)
    )

    def without(members: Sequence[Member]) -> Cohort:
        rest = groups.regroup(found, members)
        left_out: tuple[Exclusion, ...] = ()
        if sources.exclude is not None:
            rest, left_out = exclusions.apply(rest, listed, sources.exclude)
        if mapping is not None:  # after the exclusions: an image that is left out needs no class
            cases = labels.map_labels(rest.cases, mapping, origin=sources.labels)
            rest = replace(rest, cases=cases)
        return Cohort(rest, tuple(members), left_out)

    if sources.groups is not None:
        return without(groups.read(sources.groups, found))
    if known is not None and known[0].is_file():
        try:
            before = without(groups.read(known[0], found))
        except SonobreastError:
            pass  # of other data: they are searched, and refused where that is due
        else:
            if before.manifest.fingerprint == known[1]:
                return before
    without(())  # a mistake in the list shows before the search
    return without(groups.find(found, progress=lambda s, done, total: tell(f"looking for copies: {s}", done, total)))


def divide(cohort: Cohort, sources: Sources, recipe: Recipe) -> tuple[tuple[Case, ...], tuple[Assignment, ...]]:
    """The images that are used and where each is: the person's own division, or the recipe's draw and split."""
    if sources.split is not None:
        classes = recipe.data.classes
        cases = tuple(c for c in cohort.manifest.cases if classes is None or c.label in classes)
        return split.adopt(sources.split, cases, grouping=recipe.split.grouping)
    cases = split.draw(cohort.manifest.cases, recipe.data)
    return cases, split.divide(cases, recipe.split)
