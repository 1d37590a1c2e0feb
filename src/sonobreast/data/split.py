"""Hold-out and repeated k-fold division: stratified by class, whole groups kept together, saved as ``split.csv``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sonobreast.config import Data, Split
from sonobreast.errors import SonobreastError, nearest
from sonobreast.records import SUBSETS, Assignment, Case, read_table, write_table

_TRIES = 50  # seeds tried for folds in which every class occurs


def draw(cases: Sequence[Case], data: Data) -> tuple[Case, ...]:
    """Take the images of the recipe's classes, and of each class as many as it says.

    Raises
    ------
    SonobreastError
        If a class of the recipe is absent from the data, or has fewer images than are asked for.
    """
    found = Counter(c.label for c in cases)
    classes = data.classes or tuple(sorted(found))
    for name in classes:
        if name not in found:
            raise SonobreastError(
                f"the recipe's class {name!r} is not in the data; {nearest(name, sorted(found))}",
                remedy="correct the folder's name, or give the classes with --set data.classes=[...]",
            )
    if len(classes) < 2:
        raise SonobreastError(f"there is one class only ({classes[0]!r})", remedy="give data with at least two classes")
    if data.subsample is None:
        return tuple(c for c in cases if c.label in classes)
    unknown = set(data.subsample) - set(classes)
    if unknown:
        raise SonobreastError(f"data.subsample names {sorted(unknown)[0]!r}; {nearest(sorted(unknown)[0], classes)}")
    chosen: set[str] = set()
    for name in classes:
        names = sorted(c.image for c in cases if c.label == name)
        wanted = data.subsample.get(name, len(names))
        if wanted > len(names) or wanted < 1:
            raise SonobreastError(
                f"the recipe draws {wanted} images of the class {name!r}, the data have {len(names)}",
                remedy=f"draw fewer with --set data.subsample.{name}={len(names)}, or all: --set data.subsample=null",
            )
        # A generator for each class: the draw of one class does not depend on how many images the others have.
        rng = np.random.default_rng([data.subsample_seed, *name.encode()])
        chosen.update(names[i] for i in rng.permutation(len(names))[:wanted])
    return tuple(c for c in cases if c.image in chosen)


def divide(cases: Sequence[Case], settings: Split) -> tuple[Assignment, ...]:
    """Divide images into training, validation and test subsets.

    Stratified: in a hold-out without grouping, a class with n images has round(n x test) test images,
    round(n x validation) validation images, and the rest for training (Table 2 of Aulia 2026). With groups the counts
    come as near to that as whole groups allow.

    Parameters
    ----------
    cases : sequence of Case
    settings : Split

    Returns
    -------
    tuple of Assignment
        One for each image, fold and repeat. With ``kfold`` every image is a test image once in each repeat.

    Raises
    ------
    SonobreastError
        If a class has too few images or groups for every subset to have one, or a group is too large.
    """
    cases = sorted(cases, key=lambda c: c.image)
    labels = np.asarray([c.label for c in cases])
    names = [c.image if settings.grouping == "none" else c.group for c in cases]
    groups = np.unique(names, return_inverse=True)[1]
    needed = 3 if settings.kind == "holdout" else max(3, settings.folds)
    for label in np.unique(labels):
        n = len(set(groups[labels == label]))
        if n < needed:
            images = int(np.sum(labels == label))
            groups_said = f" in {n} group(s)" if settings.grouping == "group" and n != images else ""
            folds = f" into {settings.folds} folds" if settings.kind == "kfold" else ""
            raise SonobreastError(
                f"the class {str(label)!r} has {images} image(s){groups_said}; a split{folds} needs at least {needed}",
                remedy="add images, leave the class out with --set data.classes=[...]"
                + (", or use fewer folds with --set split.folds=N" if settings.kind == "kfold" else ""),
            )
    if settings.grouping == "group":
        _refuse_large_group([c.group for c in cases], settings)
    rows: list[Assignment] = []
    repeats = settings.repeats if settings.kind == "kfold" else 1
    for repeat in range(repeats):
        for fold, subset in enumerate(_folds(labels, groups, settings, settings.seed + repeat)):
            _check(subset, labels, groups)
            rows += [
                Assignment(repeat=repeat, fold=fold, subset=SUBSETS[s], image=c.image, group=c.group, label=c.label)
                for c, s in zip(cases, subset, strict=True)
            ]
    return tuple(rows)


def _refuse_large_group(groups: Sequence[str], settings: Split) -> None:
    """A group that is larger than a subset can hold would make that subset all of one patient."""
    name, size = Counter(groups).most_common(1)[0]
    if settings.kind == "kfold":
        room, where = len(groups) / settings.folds, f"each of {settings.folds} folds"
    else:
        room, where = len(groups) * (1 - settings.validation - settings.test), "the training subset"
    if size > max(1, room):
        raise SonobreastError(
            f"the group {name!r} has {size} of the {len(groups)} images, {where} holds {int(room)}",
            remedy="look at the group in groups.csv: correct it (--groups FILE), leave images of it out (--exclude "
            "FILE), or use " + ("fewer folds" if settings.kind == "kfold" else "smaller validation and test subsets"),
        )


def _folds(labels: NDArray[np.str_], groups: NDArray[np.intp], settings: Split, seed: int) -> list[NDArray[np.intp]]:
    """Subset (0 train, 1 validation, 2 test) of every image, for each fold."""
    if settings.kind == "holdout":
        return [_holdout(labels, groups, settings.validation, settings.test, seed)]
    folds = _test_folds(labels, groups, settings.folds, seed)
    result = []
    for fold in range(settings.folds):
        rest = folds != fold
        subset = np.full(len(labels), 2, np.intp)
        subset[rest] = _holdout(labels[rest], groups[rest], settings.validation, 0.0, seed * 1000 + fold)
        result.append(subset)
    return result


def _test_folds(labels: NDArray[np.str_], groups: NDArray[np.intp], k: int, seed: int) -> NDArray[np.intp]:
    from sklearn.model_selection import StratifiedGroupKFold

    for attempt in range(_TRIES):  # its stratification can fail on small data
        fold = np.empty(len(labels), np.intp)
        splitter = StratifiedGroupKFold(k, shuffle=True, random_state=(seed * _TRIES + attempt) % 2**32)
        for i, (_, test) in enumerate(splitter.split(labels, labels, groups)):
            fold[test] = i
        if all(np.unique(fold[labels == c]).size == k for c in np.unique(labels)):
            return fold
    rarest = min(np.unique(labels), key=lambda c: len(set(groups[labels == c])))
    raise SonobreastError(
        f"no division into {k} folds was found in which every fold has every class; {str(rarest)!r} is the rarest",
        remedy="use fewer folds with --set split.folds=N, or leave that class out",
    )


def _holdout(
    labels: NDArray[np.str_], groups: NDArray[np.intp], validation: float, test: float, seed: int
) -> NDArray[np.intp]:
    """Subset of every image: whole groups, largest first, each to where it brings the counts nearest to the aim."""
    classes, code = np.unique(labels, return_inverse=True)
    totals = np.bincount(code, minlength=len(classes))
    aim = np.zeros((3, len(classes)))
    aim[1] = np.floor(totals * validation + 0.5)
    aim[2] = np.floor(totals * test + 0.5)
    if validation > 0:
        aim[1] = np.maximum(aim[1], 1)
    if test > 0:
        aim[2] = np.maximum(aim[2], 1)
    aim[0] = totals - aim[1] - aim[2]
    members: dict[int, list[int]] = defaultdict(list)
    for i, g in enumerate(groups):
        members[int(g)].append(i)
    rng = np.random.default_rng(seed)
    order = [list(members)[i] for i in rng.permutation(len(members))]
    order.sort(key=lambda g: -len(members[g]))  # stable: equal sizes stay shuffled
    subset = np.empty(len(labels), np.intp)
    missing = aim.copy()
    # A subset whose aim is 0 (no test subset inside a fold) must stay empty: make it infinitely costly.
    weight = np.where(aim.sum(axis=1, keepdims=True) > 0, 1.0 / np.maximum(aim, 0.5), np.inf)
    for g in order:
        content = np.bincount(code[members[g]], minlength=len(classes))
        with np.errstate(invalid="ignore"):
            cost = np.where(content > 0, content * (content - 2 * missing) * weight, 0.0).sum(axis=1)
        best = int(np.argmin(cost))
        subset[members[g]] = best
        missing[best] -= content
    return subset


def adopt(path: Path, cases: Sequence[Case], *, grouping: str) -> tuple[tuple[Case, ...], tuple[Assignment, ...]]:
    """Take a person's own division: a table with ``image`` and ``subset``, and ``repeat`` and ``fold`` where several.

    Parameters
    ----------
    path : Path
    cases : sequence of Case
    grouping : {"group", "none"}
        With ``none`` copies of one picture may lie on both sides (the report says so); patients never may.

    Returns
    -------
    cases : tuple of Case
        Those that the table names.
    rows : tuple of Assignment

    Raises
    ------
    SonobreastError
        If an image is unknown or in two subsets of one fold, a patient or group is on both sides, or a subset lacks a
        class.
    """
    case_of = {c.image: c for c in cases}
    folds: dict[tuple[int, int], dict[str, Assignment]] = defaultdict(dict)
    for number, row in enumerate(read_table(path, ("image", "subset"), versioned=False), start=2):
        name, subset = row["image"].strip(), row["subset"].strip().lower()
        if name not in case_of:
            raise SonobreastError(
                f"line {number} names an image that is not in the data: {name!r}; {nearest(name, sorted(case_of))}",
                file=path,
                remedy="give the division of these data, or remove the line",
            )
        subset = {"val": "validation", "valid": "validation", "training": "train"}.get(subset, subset)
        if subset not in SUBSETS:
            raise SonobreastError(
                f"line {number}: the subset {subset!r} is none of {', '.join(SUBSETS)}", file=path, remedy="correct it"
            )
        try:
            key = int(row.get("repeat") or 0), int(row.get("fold") or 0)
        except ValueError as error:
            raise SonobreastError(f"line {number}: repeat and fold are whole numbers", file=path) from error
        if name in folds[key]:
            raise SonobreastError(
                f"line {number} names {name!r} again in repeat {key[0]}, fold {key[1]}",
                file=path,
                remedy="an image is in one subset of a fold",
            )
        case = case_of[name]
        folds[key][name] = Assignment.model_validate(
            {
                "repeat": key[0],
                "fold": key[1],
                "subset": subset,
                "image": name,
                "group": case.group,
                "label": case.label,
            }
        )
    if not folds:
        raise SonobreastError("the table has no rows", file=path, remedy="list one image on each line")
    for key, rows in folds.items():
        _check_own(path, key, list(rows.values()), case_of, grouping)
    used = {name for rows in folds.values() for name in rows}
    ordered = tuple(folds[key][name] for key in sorted(folds) for name in sorted(folds[key]))
    return tuple(c for c in cases if c.image in used), ordered


def _check_own(
    path: Path, key: tuple[int, int], rows: Sequence[Assignment], case_of: Mapping[str, Case], grouping: str
) -> None:
    where = f"in repeat {key[0]}, fold {key[1]}" if key != (0, 0) else "in this division"
    for what in ("patient", "group") if grouping == "group" else ("patient",):
        first: dict[str, Assignment] = {}
        for row in rows:
            name = getattr(case_of[row.image], what)
            other = first.setdefault(name, row) if name else row
            if other.subset != row.subset:
                raise SonobreastError(
                    f"the {what} {name!r} is on both sides {where}: {other.image} is in {other.subset}, {row.image} in "
                    f"{row.subset}",
                    file=path,
                    remedy=f"put all images of a {what} in one subset"
                    + (", or correct the group with --groups FILE" if what == "group" else ""),
                )
    labels = {r.label for r in rows}
    for subset in SUBSETS:
        for label in sorted(labels):
            if not any(r.subset == subset and r.label == label for r in rows):
                raise SonobreastError(
                    f"the {subset} subset has no image of the class {label!r} {where}",
                    file=path,
                    remedy="every subset needs every class: move some images, or leave the class out of the table",
                )


def _check(subset: NDArray[np.intp], labels: NDArray[np.str_], groups: NDArray[np.intp]) -> None:
    """Hold what every later figure rests on: whole groups, every class everywhere."""
    lowest, highest = np.full(groups.max() + 1, 2), np.zeros(groups.max() + 1, int)
    np.minimum.at(lowest, groups, subset)
    np.maximum.at(highest, groups, subset)
    if np.any(lowest != highest):
        raise RuntimeError("a group is in two subsets")
    for s, name in enumerate(SUBSETS):
        for label in np.unique(labels):
            if not np.any((subset == s) & (labels == label)):
                raise SonobreastError(
                    f"the {name} subset has no image of the class {str(label)!r}: its groups are too few or too large",
                    remedy="enlarge that subset (--set split.validation=0.2), use fewer folds, or another "
                    "--set split.seed=N",
                )


def write(path: Path, rows: Sequence[Assignment]) -> None:
    """Write ``split.csv``: one row an image, fold and repeat."""
    write_table(path, tuple(Assignment.model_fields), (r.model_dump() for r in rows))


def read(path: Path) -> tuple[Assignment, ...]:
    """Read ``split.csv``; see `sonobreast.records.read_table` for the errors."""
    rows = read_table(path, tuple(Assignment.model_fields))
    try:
        return tuple(Assignment.model_validate({k: v for k, v in r.items() if k != "schema_version"}) for r in rows)
    except ValidationError as error:
        first = error.errors()[0]
        raise SonobreastError(
            f"not a valid split table ({'.'.join(map(str, first['loc']))}: {first['msg']})",
            file=path,
            remedy="write it anew",
        ) from error
