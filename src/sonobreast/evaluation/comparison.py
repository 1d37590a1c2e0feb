"""Do the configurations of a study differ? Two of them on the headline metrics, or all pairs, seed by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from sonobreast.errors import SonobreastError, nearest
from sonobreast.evaluation.compare import DeLong, Difference, McNemar, delong, difference_of_draws, holm, mcnemar_exact
from sonobreast.evaluation.glossary import metric_names
from sonobreast.evaluation.intervals import Draws, checked_repeats, draw
from sonobreast.evaluation.metrics import Ints, Scored
from sonobreast.evaluation.predictions import (
    KEYS,
    Key,
    Repeats,
    classes_of,
    configuration_title,
    configurations,
    folds_of,
    whole_repeats,
)

HEADLINE_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "sensitivity_malignant",
    "specificity_malignant",
    "auc_malignant",
    "auc_ovr_macro",
    "brier",
)
PAIR_METRICS = ("accuracy", "auc_malignant")
_MOST_RESAMPLES = 20_000


@dataclass(frozen=True)
class Tested:
    """The test of one metric's difference: its p-value, how it was made, and Holm's p over the whole family.

    `p_holm` is NaN where the test could not be done; such a comparison is no member of the family.
    """

    p_value: float
    method: str
    p_holm: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """Two configurations on the same test images, A minus B.

    Attributes
    ----------
    a, b : (architecture, optimizer)
    n, groups, repeats : int
        Distinct test images, groups they come from, and how many repeats and seeds both finished.
    left_out : tuple of str
        Repeats and seeds that one of the two did not finish.
    differences : dict of str to Difference
        Metric -> values, difference, paired cluster bootstrap interval and its p.
    tests : dict of str to Tested
    mcnemar, delong : McNemar, DeLong or str
        On the accuracy and on the malignant AUC; a sentence where the test is not applicable.
    """

    a: Key
    b: Key
    n: int
    groups: int
    repeats: int
    left_out: tuple[str, ...]
    differences: Mapping[str, Difference]
    tests: Mapping[str, Tested]
    mcnemar: McNemar | str
    delong: DeLong | str

    def as_dict(self) -> dict[str, Any]:
        """For JSON; NaN becomes null when it is written."""
        return {
            **{side: dict(zip(KEYS, key, strict=True)) for side, key in (("a", self.a), ("b", self.b))},
            "n": self.n,
            "groups": self.groups,
            "repeats": self.repeats,
            "left_out": list(self.left_out),
            "metrics": {
                m: {**d.as_dict(), "test": self.tests[m].method, "p_test": _finite(self.tests[m].p_value)}
                | {"p_holm": _finite(self.tests[m].p_holm)}
                for m, d in self.differences.items()
            },
            "mcnemar": _test_dict(self.mcnemar),
            "delong": _test_dict(self.delong),
        }


@dataclass(frozen=True)
class Family:
    """Comparisons that were made together, so that Holm's correction is over all their tests.

    Attributes
    ----------
    metrics : tuple of str
    comparisons : tuple of Comparison
    impossible : tuple of (Key, Key, str)
        Pairs that could not be compared, and why.
    tests : int
        Members of the family.
    resamples : int
    """

    metrics: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    impossible: tuple[tuple[Key, Key, str], ...]
    tests: int
    resamples: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "metrics": list(self.metrics),
            "level": 0.95,
            "resamples": self.resamples,
            "family": self.tests,
            "pairs": [c.as_dict() for c in self.comparisons],
            "not_compared": [
                {"a": configuration_title(*a), "b": configuration_title(*b), "why": why}
                for a, b, why in self.impossible
            ],
        }


def find(name: str, known: Sequence[Key]) -> Key:
    """The configuration that a person means by ``ResNet50V2-adam`` or ``resnet50v2 + Adam``.

    Raises
    ------
    SonobreastError
        If there is none of that name.
    """
    exact = [k for k in known if name.strip() in ("-".join(k), configuration_title(*k))]
    like = exact or [k for k in known if _folded("-".join(k)) == _folded(name)]
    if len(like) == 1:
        return like[0]
    names = ["-".join(k) for k in known]
    raise SonobreastError(
        f"{len(like)} configurations of this study are called {name!r}" if like else f"no configuration {name!r}",
        remedy="give it in the very letters of the study: " + ", ".join("-".join(k) for k in like)
        if like
        else nearest(_folded(name), names),
    )


def _folded(name: str) -> str:
    return re.sub(r"[\s+-]+", "-", name.strip()).casefold()


def beside(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The predictions of two studies, or of two evaluations of another set, as those of one.

    A configuration that both have is called "NAME (other)" in the second.

    Raises
    ------
    SonobreastError
        If classes, test images, their labels, groups or division into folds differ: then nothing is paired.
    """
    if classes_of(table) != classes_of(other):
        raise SonobreastError(
            f"the classes differ: {', '.join(classes_of(table))} and {', '.join(classes_of(other))}",
            remedy="compare studies of the same classes, in the same order",
        )
    columns = ["repeat", "fold", "image", "label", "group"]
    tested = [t.loc[t["subset"] == "test", columns].drop_duplicates() for t in (table, other)]
    keys = [set(t.astype(str).itertuples(index=False, name=None)) for t in tested]
    if keys[0] != keys[1]:
        only = len(keys[0] ^ keys[1])
        raise SonobreastError(
            f"the two were not tested on the same images in the same folds ({only} of {len(keys[0] | keys[1])} rows of "
            "image, label, group and fold stand in one of them alone)",
            remedy="give both studies the same --data, --groups and division (--split FILE)",
        )
    known = set(configurations(table))
    twice = [key in known for key in zip(other["architecture"], other["optimizer"], strict=True)]
    renamed = other["architecture"].where(~np.asarray(twice), other["architecture"] + " (other)")
    return pd.concat([table, other.assign(architecture=renamed)], ignore_index=True)


def compare_two(
    table: pd.DataFrame, a: str, b: str, *, metrics: Iterable[str] | None = None, resamples: int = 2000
) -> Family:
    """Compare two configurations on the headline metrics, with Holm's correction over these metrics.

    Parameters
    ----------
    table : DataFrame
        See `sonobreast.evaluation.predictions.read_predictions`.
    a, b : str
        See `find`.
    metrics : iterable of str, optional
        See `sonobreast.evaluation.glossary.metric_names`.
    resamples : int
        At least so many; more where the family is large (`resamples_for`).

    Raises
    ------
    SonobreastError
        For an unknown or repeated name, and where the two were not tested on the same images.
    """
    known = configurations(table)
    first, second = find(a, known), find(b, known)
    if first == second:
        others = ", ".join("-".join(k) for k in known if k != first) or "none: the study has this one only"
        raise SonobreastError(
            f"A and B are the same configuration, {configuration_title(*first)}",
            remedy=f"compare it with another one of the study: {others}",
        )
    family = _family(table, [(first, second)], HEADLINE_METRICS, metrics, resamples)
    if family.impossible:
        raise SonobreastError(family.impossible[0][2], remedy=_MEND)
    return family


def compare_all(table: pd.DataFrame, *, metrics: Iterable[str] | None = None, resamples: int = 2000) -> Family:
    """Compare every pair of configurations on accuracy and malignant AUC, with Holm's correction over all of it.

    Parameters and errors as in `compare_two`; a pair that cannot be compared is named in ``impossible``.
    """
    known = configurations(table)
    if len(known) < 2:
        raise SonobreastError(
            f"the study has one configuration only, {configuration_title(*known[0])}",
            remedy="give a study of several architectures or optimizers",
        )
    return _family(table, list(combinations(known, 2)), PAIR_METRICS, metrics, resamples)


_MEND = "failed.json says which runs failed; mend them, and give `sonobreast study run` again"


def resamples_for(tests: int, least: int = 2000) -> int:
    """Bootstrap resamples with which the smallest possible p, 2 / (R + 1), is 0.02 after correction for the family.

    Within 20,000: a family of more than 200 tests cannot get there, and one of more than 500 cannot reach 0.05.
    """
    return max(least, min(100 * tests, _MOST_RESAMPLES))


def _family(
    table: pd.DataFrame,
    pairs: Sequence[tuple[Key, Key]],
    usual: Sequence[str],
    asked: Iterable[str] | None,
    least: int,
) -> Family:
    possible = metric_names(classes_of(table))
    names = list(dict.fromkeys(asked)) if asked else [m for m in usual if m in possible]
    for name in names:
        if name not in possible:
            raise SonobreastError(f'no metric is named "{name}" for these classes', remedy=nearest(name, possible))
    resamples = resamples_for(len(pairs) * len(names), least)
    parts: dict[Key, pd.DataFrame] = {(str(k[0]), str(k[1])): part for k, part in table.groupby(KEYS, sort=False)}
    folds = folds_of(table)
    drawn: dict[tuple[Key, tuple[str, ...]], dict[str, Draws]] = {}

    def draws(key: Key, sets: Mapping[str, Scored], codes: Ints) -> dict[str, Draws]:
        """Each configuration is drawn once, whatever number of pairs it is in."""
        place = (key, tuple(sets))
        if place not in drawn:
            drawn[place] = draw(list(sets.values()), codes, names, resamples=resamples, seed=0, jackknife=False)
        return drawn[place]

    whole: dict[Key, Repeats | str] = {}
    for key, part in parts.items():
        try:
            whole[key] = whole_repeats(part, folds=folds)
        except SonobreastError as error:
            whole[key] = error.what
    comparisons, impossible = [], []
    for a, b in pairs:
        try:
            comparisons.append(_compare(a, b, _known(whole[a]), _known(whole[b]), names, resamples, draws))
        except SonobreastError as error:
            impossible.append((a, b, error.what))
    comparisons, tests = _corrected(comparisons)
    return Family(tuple(names), tuple(comparisons), tuple(impossible), tests, resamples)


def _known(repeats: Repeats | str) -> Repeats:
    if isinstance(repeats, str):
        raise SonobreastError(repeats)
    return repeats


def _compare(
    a: Key,
    b: Key,
    of_a: Repeats,
    of_b: Repeats,
    names: Sequence[str],
    resamples: int,
    draws: Callable[[Key, Mapping[str, Scored], Ints], dict[str, Draws]],
) -> Comparison:
    common = [k for k in of_a.sets if k in of_b.sets]
    tried = dict.fromkeys([*of_a.sets, *of_a.left_out, *of_b.sets, *of_b.left_out])
    titles = f"{configuration_title(*a)} and {configuration_title(*b)}"
    if not common:
        raise SonobreastError(f"{titles} have no repeat and seed in common that both finished")
    if of_a.image != of_b.image or not np.array_equal(of_a.group, of_b.group):
        raise SonobreastError(f"{titles} were not tested on the same images in the same groups")
    sets_a, sets_b = ({k: side.sets[k] for k in common} for side in (of_a, of_b))
    runs = [*sets_a.values(), *sets_b.values()]
    codes, _ = checked_repeats(runs, of_a.group, names, resamples, 0.95, "percentile")
    drawn_a, drawn_b = draws(a, sets_a, codes), draws(b, sets_b, codes)
    found = {
        # Percentile, because p is made from the same resamples: interval and p then say the same.
        m: difference_of_draws(m, drawn_a[m], drawn_b[m], runs, codes, method="percentile")
        for m in names
    }
    groups = int(codes.max()) + 1
    exact, curves = _exact(list(sets_a.values()), list(sets_b.values()), codes)
    return Comparison(
        a,
        b,
        len(codes),
        groups,
        len(common),
        tuple(k for k in tried if k not in common),
        found,
        {m: _test(m, d, sets_a, sets_b, codes, exact) for m, d in found.items()},
        exact,
        curves,
    )


def _exact(a: Sequence[Scored], b: Sequence[Scored], codes: Ints) -> tuple[McNemar | str, DeLong | str]:
    """The tests for independent cases, or why they are not applicable."""
    groups = int(codes.max()) + 1
    why = ""
    if len(a) > 1:
        why = f"not applicable: it is for one run of each, and {len(a)} repeats or seeds are compared"
    elif groups < len(codes):
        why = f"not applicable: it needs independent images, and these {len(codes)} come from {groups} groups"
    if why:
        return why, why
    exact = mcnemar_exact(a[0].correct, b[0].correct, group=codes)
    m = a[0].malignant
    if m is None:
        return exact, 'not applicable: no class is named "malignant"'
    try:
        return exact, delong(a[0].label == m, a[0].probability[:, m], b[0].probability[:, m], group=codes)
    except SonobreastError as error:
        return exact, f"not applicable: {error.what}"


def _test(
    name: str,
    difference: Difference,
    a: Mapping[str, Scored],
    b: Mapping[str, Scored],
    codes: Ints,
    exact: McNemar | str,
) -> Tested:
    """The p-value that counts: exact where there is an exact test.

    A bootstrap of few images that separate two models calls too much a difference: where 5 do, all for A, it gives
    p near 0.01 and no exact test can fall below 0.0625. So the bootstrap's p of a share of images is not let below
    ``2 (1/2)^k``, the least p of a sign test over the k groups in which A and B are not equally often right.
    """
    if name == "accuracy" and isinstance(exact, McNemar):
        return Tested(exact.p_value, "exact McNemar")
    p_value, method = difference.p_value, "paired cluster bootstrap"
    first = next(iter(a.values()))
    counted = np.ones(len(codes), bool)
    if name in ("sensitivity_malignant", "specificity_malignant") and first.malignant is not None:
        counted = np.equal(first.label == first.malignant, name.startswith("sensitivity"))
    elif name != "accuracy":
        return Tested(p_value, method)
    net = np.zeros(int(codes.max()) + 1)
    for k in a:
        right_a, right_b = (_right(s[k], name)[counted].astype(int) for s in (a, b))
        np.add.at(net, codes[counted], right_a - right_b)
    separating = int(np.count_nonzero(net))
    least = min(1.0, 2 * 0.5**separating)
    if p_value < least:
        return Tested(least, f"least p of a sign test over the {separating} group(s) that separate the two")
    return Tested(p_value, method)


def _right(run: Scored, name: str) -> Any:
    """Where a run is right: in the class, or only in whether it is malignant."""
    if name == "accuracy" or run.malignant is None:
        return run.correct
    return np.equal(run.predicted == run.malignant, run.label == run.malignant)


def _corrected(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], int]:
    """The comparisons with Holm's p over all their tests, and how many these are."""
    members = [(i, m) for i, c in enumerate(comparisons) for m, t in c.tests.items() if math.isfinite(t.p_value)]
    if not members:
        return list(comparisons), 0
    adjusted = dict(zip(members, holm([comparisons[i].tests[m].p_value for i, m in members]), strict=True))
    return [
        replace(c, tests={m: replace(t, p_holm=float(adjusted.get((i, m), math.nan))) for m, t in c.tests.items()})
        for i, c in enumerate(comparisons)
    ], len(members)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _test_dict(test: McNemar | DeLong | str) -> dict[str, Any]:
    return {"not_applicable": test} if isinstance(test, str) else asdict(test)
