"""Comparisons in words and tables, for the terminal, the report and a JSON file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.compare import DeLong, Difference, McNemar
from sonobreast.evaluation.comparison import Comparison, Family
from sonobreast.evaluation.glossary import describe
from sonobreast.evaluation.predictions import configuration_title
from sonobreast.records import read_json, write_json

ALPHA = 0.05


def differing(family: Family) -> list[tuple[Comparison, str]]:
    """Comparisons and metrics whose Holm p is at most 0.05, the smallest p first."""
    found = [(c, m) for c in family.comparisons for m, t in c.tests.items() if t.p_holm <= ALPHA]
    return sorted(
        found, key=lambda item: (item[0].tests[item[1]].p_holm, -abs(item[0].differences[item[1]].interval.estimate))
    )


def sentences(family: Family) -> list[str]:
    """What differs and what does not, in words."""
    metrics = " or in ".join(map(_in_sentence, family.metrics)) if len(family.metrics) <= 2 else "any of these figures"
    if not family.comparisons:
        return ["No two configurations could be compared."]
    said = []
    for comparison, m in differing(family)[:10]:
        d = comparison.differences[m]
        ahead = (d.interval.estimate > 0) == describe(m).higher_is_better
        better, other = (comparison.a, comparison.b) if ahead else (comparison.b, comparison.a)
        interval = "no interval" if math.isnan(d.interval.low) else f"95 % interval {_span(d)}"
        said.append(
            f"{configuration_title(*better)} is better than {configuration_title(*other)} in {_in_sentence(m)}: "
            f"{d.a if ahead else d.b:.3f} against {d.b if ahead else d.a:.3f} "
            f"(difference {abs(d.interval.estimate):.3f}, {interval}, Holm {_p(comparison.tests[m].p_holm)})."
        )
    more = len(differing(family)) - len(said)
    if more > 0:
        said.append(f"{more} further differences have a Holm p of at most {ALPHA}.")
    rest = family.tests - len(differing(family))
    if rest and not said:
        first = family.comparisons[0]
        between = (
            f"{configuration_title(*first.a)} and {configuration_title(*first.b)}"
            if len(family.comparisons) == 1
            else f"any of the {len(family.comparisons)} pairs"
        )
        said.append(
            f"No difference in {metrics} is shown between {between} after Holm's correction for {family.tests} tests. "
            "That does not show that there is none: the intervals say how large it may be."
        )
    elif rest:
        said.append(
            f"In the other {rest} of {family.tests} tests no difference is shown, which does not show that there is "
            "none: the intervals say how large it may be."
        )
    if family.tests and 2 / (family.resamples + 1) * family.tests > ALPHA:
        said.append(f"With {family.tests} tests together, the bootstrap's least p cannot fall below {ALPHA}.")
    return said


def _in_sentence(metric: str) -> str:
    """A metric's title as it stands inside a sentence: "accuracy", "AUC (malignant against rest)"."""
    title, _, of = describe(metric).title.partition(", ")
    title = title if title[:2].isupper() or title[1:2].isdigit() else title[:1].lower() + title[1:]
    return f"{title} ({of})" if of else title


def _span(difference: Difference) -> str:
    """The interval of the absolute difference."""
    low, high = difference.interval.low, difference.interval.high
    return f"{low:.3f} to {high:.3f}" if difference.interval.estimate > 0 else f"{-high:.3f} to {-low:.3f}"


def p_text(value: float | None) -> str:
    """A p-value for people."""
    if value is None or math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _p(value: float) -> str:
    text = p_text(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def texts(family: Family) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]], list[str]]]:
    """Tables for a terminal, as (title, header, rows, notes): one of all metrics for a pair, else one a metric."""
    header = ("A", "B", "A - B", "95 % interval", "p", "Holm p")
    tables: list[tuple[str, tuple[str, ...], list[tuple[str, ...]], list[str]]] = []
    if len(family.comparisons) == 1:
        c = family.comparisons[0]
        title = f"A: {configuration_title(*c.a)}, B: {configuration_title(*c.b)}; {_cases(c)}"
        rows = [(_named(m), *_cells(c, m)) for m in family.metrics]
        tables.append((title, ("figure", *header), rows, _pair_notes(c)))
    else:
        for m in family.metrics:
            rows = [("-".join(c.a) + "\n  against " + "-".join(c.b), *_cells(c, m)[2:]) for c in family.comparisons]
            tables.append((_named(m), ("A against B", *header[2:]), rows, []))
    if tables:
        tables[-1][3].extend(_family_notes(family))
    return tables


def _named(metric: str) -> str:
    return describe(metric).title + ("" if describe(metric).higher_is_better else " (less is better)")


def _cases(c: Comparison) -> str:
    groups = f" in {c.groups} groups" if c.groups < c.n else ""
    return f"{c.n} test images{groups}" + (f", mean of {c.repeats} repeats and seeds" if c.repeats > 1 else "")


def _cells(comparison: Comparison, metric: str) -> tuple[str, ...]:
    d, test = comparison.differences[metric], comparison.tests[metric]
    low, high = d.interval.low, d.interval.high
    interval = "none" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
    return (
        _number(d.a),
        _number(d.b),
        _number(d.interval.estimate, "+"),
        interval,
        p_text(test.p_value),
        p_text(test.p_holm),
    )


def _number(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{round(value, 3) + 0.0:{sign}.3f}"


def _pair_notes(c: Comparison) -> list[str]:
    notes = []
    if isinstance(c.mcnemar, McNemar):
        m = c.mcnemar
        notes.append(
            f"McNemar, exact: {m.only_a} images only A has right, {m.only_b} only B; {_p(m.p_value)} "
            f"(the least that {m.only_a + m.only_b} images can give is {_p(m.smallest_p)})."
        )
    else:
        notes.append(f"McNemar: {c.mcnemar}.")
    if isinstance(c.delong, DeLong):
        notes.append(f"DeLong, AUC of malignancy: {_p(c.delong.p_value)}.")
    else:
        notes.append(f"DeLong: {c.delong}.")
    return notes


def _family_notes(family: Family) -> list[str]:
    notes = []
    methods = dict.fromkeys(t.method for c in family.comparisons for t in c.tests.values())
    notes.append(
        f"p: {', '.join(methods)}. Holm p: corrected for the {family.tests} tests of this table; the intervals are not."
    )
    for c in family.comparisons:
        if c.left_out:
            notes.append(
                f"{configuration_title(*c.a)} against {configuration_title(*c.b)}: left out of both, because one did "
                f"not finish them: {'; '.join(c.left_out)}."
            )
    notes += [
        f"Not compared: {configuration_title(*a)} with {configuration_title(*b)}: {why}."
        for a, b, why in family.impossible
    ]
    return notes


def content(family: Family) -> dict[str, Any]:
    """A family for JSON, with what it says in words."""
    return {"stage": "comparison", "sentences": sentences(family), **family.as_dict()}


def check_target(file: Path) -> None:
    """Refuse to overwrite a file that is not a comparison, such as the study's own ``metrics.json``."""
    remedy = "give another name with --out, such as comparison.json"
    if file.suffix.lower() != ".json":
        raise SonobreastError("the comparison is written as JSON", file=file, remedy=remedy)
    if file.exists():
        try:
            ours = read_json(file).get("stage") == "comparison"
        except SonobreastError:
            ours = False
        if not ours:
            raise SonobreastError("a file of this name exists and is not a comparison", file=file, remedy=remedy)


def write(file: Path, family: Family) -> None:
    """Write a comparison; see `check_target`."""
    check_target(file)
    write_json(file, content(family))
