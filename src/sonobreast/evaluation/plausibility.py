"""What cannot be in a printed table of results, found by arithmetic alone.

A printed number is an interval: 0.86 is anything from 0.855 to 0.865. A table is consistent where whole numbers of
images exist inside all of its intervals at once. Every check gives the benefit of the doubt to the table (closed
intervals, any averaging over classes), so an error says that some number or statement in the print must be wrong. It
does not say which, and no check can show that a table is right.

All checks assume numbers that are rounded, not cut off, and one test set that every row shares. Means over folds or
seeds are no k/n: leave `n` and `support` empty for these, and the checks that need them are named as not made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from sonobreast.evaluation.published import METRICS, SUBSETS, TOTAL, Row, Table, paper
from sonobreast.evaluation.rounding import (
    ClassFigures,
    counts_in,
    harmonic,
    matrix_exists,
    smallest_mcnemar_p,
    wilson,
)
from sonobreast.evaluation.table_findings import Finding, Item, row_name


def check(*tables: Table) -> list[Finding]:
    """Everything in these tables that cannot be, does not follow, or is missing.

    Parameters
    ----------
    *tables : Table
        Tables of one or more papers; those of one paper are also compared with each other.

    Returns
    -------
    list of Finding
        In the order of the papers and checks. A consistent table has no "error" and no "warning".
    """
    findings: list[Finding] = []
    for name in dict.fromkeys(table.paper for table in tables):
        items: list[Item] = []
        for table in tables:
            if table.paper == name:
                findings += _counts(table)
                findings += (found := list(_scale(table)))
                items += [Item(table, row) for row in (_on_scale(table) if found else table.rows)]
        groups = _class_groups(items)
        items = [_with_n(item, groups) for item in items]
        findings += _supports(items, groups)
        findings += _accuracy_counts(items)
        findings += _f1(items)
        for group in groups:
            accuracies = [i for i in items if i.key == group[0].key and not i.is_class and i.row.accuracy is not None]
            findings += _class_figures(group, accuracies, _complete(group, items))
        findings += _same_figure(items)
        findings += _best(items)
        findings += _significance(items)
        findings += _intervals(items)
        findings += _not_checked(name, items, groups)
    return findings


def check_paper(key: str) -> list[Finding]:
    """`check` of the tables of "aulia2026" or "yadav2024"."""
    return check(*paper(key).tables)


def check_csv(path: str | Path) -> list[Finding]:
    """`check` of the tables in a CSV file, with notes on how it was read.

    See `sonobreast.evaluation.tablefile.read_tables` for the columns and the errors.
    """
    from sonobreast.evaluation.tablefile import read_tables

    read = read_tables(path)
    notes = [
        Finding(code, "note", read.tables[0].paper, "", "", column, message) for code, column, message in read.notes
    ]
    return notes + check(*read.tables)


def _scale(table: Table) -> Iterator[Finding]:
    for item in (Item(table, row) for row in table.rows):
        for metric in METRICS:
            cell = item.cell(metric)
            top = 100 if metric in table.percent else 1
            if cell is not None and not 0 <= cell <= top:
                read = _reading(cell, top)
                yield item.finding(
                    "out-of-scale",
                    "error",
                    metric,
                    f"{cell} lies outside 0-{top}, the scale of its column; "
                    + (f"the other checks read it as {read}" if read is not None else "the other checks leave it out"),
                )


def _reading(cell: Decimal, top: int) -> Decimal | None:
    return cell.scaleb(-2) if top == 1 and 1 < cell <= 100 else None


def _on_scale(table: Table) -> tuple[Row, ...]:
    rows = []
    for row in table.rows:
        for metric in METRICS:
            cell, top = getattr(row, metric), 100 if metric in table.percent else 1
            if cell is not None and not 0 <= cell <= top:
                row = _with_cell(row, metric, _reading(cell, top))
        rows.append(row)
    return tuple(rows)


def _with_cell(row: Row, metric: str, cell: Decimal | None) -> Row:
    cells: dict[str, Any] = {metric: cell}
    return replace(row, **cells)


def _counts(table: Table) -> Iterator[Finding]:
    counted = {(row.label, row.subset): row for row in table.rows if row.count is not None}
    for (label, subset), row in counted.items():
        sums = []
        if label == TOTAL:
            sums.append({name: r.count for (name, s), r in counted.items() if s == subset and name != TOTAL})
        if subset == TOTAL:
            sums.append({s: r.count for (name, s), r in counted.items() if name == label and s != TOTAL})
        for parts in sums:
            numbers = {name: count for name, count in parts.items() if count is not None}
            total, printed = sum(numbers.values()), row.count
            if not numbers or printed is None or total == printed:
                continue
            fits = {name: printed - (total - count) for name, count in numbers.items()}
            hints = [f"{n} {fits[n]} for {numbers[n]}" for n in fits if _one_digit_apart(numbers[n], fits[n])]
            yield Item(table, row).finding(
                "counts-do-not-sum",
                "error",
                "count",
                f"{' + '.join(str(count) for count in numbers.values())} = {total}, but the total is printed as "
                f"{printed}" + (f"; one changed digit would mend it: {' or '.join(hints)}" if hints else ""),
            )


def _one_digit_apart(a: int, b: int) -> bool:
    return len(str(a)) == len(str(b)) and sum(x != y for x, y in zip(str(a), str(b), strict=True)) == 1


def _class_groups(items: list[Item]) -> list[list[Item]]:
    """The classes of one configuration in one table, where their sizes are printed."""
    groups: dict[tuple[str, tuple[str, str, str]], list[Item]] = {}
    for item in items:
        if item.is_class and item.row.support is not None:
            groups.setdefault((item.table.name, item.key), []).append(item)
    return list(groups.values())


def _size(group: list[Item]) -> int:
    return sum(item.row.support or 0 for item in group)


def _with_n(item: Item, groups: list[list[Item]]) -> Item:
    """Where a table prints an accuracy without n, the classes beside it say it; a single class may not be all."""
    if item.row.n is not None or item.row.accuracy is None or item.is_class:
        return item
    sizes = {_size(group) for group in groups if len(group) > 1 and group[0].key == item.key}
    return Item(item.table, replace(item.row, n=sizes.pop())) if len(sizes) == 1 else item


def _supports(items: list[Item], groups: list[list[Item]]) -> Iterator[Finding]:
    planned = {(i.row.label, i.row.subset): i for i in items if i.row.count is not None and i.row.subset in SUBSETS}
    for item in (item for group in groups for item in group):
        plan = planned.get((item.row.label, item.key[2]))
        if plan is not None and plan.row.count != item.row.support:
            message = f"{item.row.support} images here, {plan.row.count} in {plan.table.name}"
            yield item.finding("supports-differ", "error", "support", message)
    for group in groups:
        for n in {i.row.n for i in items if i.key == group[0].key and i.row.n is not None}:
            if _size(group) > n:
                text = " + ".join(str(item.row.support) for item in group)
                message = f"the classes have {text} = {_size(group)} images, more than the n of {n}"
                yield group[0].finding("supports-differ", "error", "support", message)


def _accuracy_counts(items: list[Item]) -> Iterator[Finding]:
    for item in items:
        interval, n = item.span("accuracy"), item.row.n
        if interval is None or not n or item.is_class or counts_in(interval, n):
            continue
        exact = (item.value("accuracy") or Fraction(0)) * n
        below = math.floor(exact)
        neighbours = " and ".join(f"{k}/{n} = {100 * k / n:.2f} %" for k in (below, below + 1))
        training = item.row.subset == "train"
        yield item.finding(
            "accuracy-no-count",
            "warning" if training else "error",
            "accuracy",
            f"{item.shown('accuracy')} of {n} images is {float(exact):.2f} images; the nearest are {neighbours}"
            + ("; a training accuracy may have been averaged over batches" if training else ""),
        )


def _f1(items: list[Item]) -> Iterator[Finding]:
    """F1 against precision and recall.

    For a class F1 is their harmonic mean. The harmonic mean is concave, so by Jensen's inequality no average of F1
    (macro, weighted, over folds) exceeds the harmonic mean of the averaged precision and recall; it may lie below.
    """
    for item in items:
        precision, recall, f1 = (item.span(metric) for metric in ("precision", "recall", "f1"))
        if precision is None or recall is None or f1 is None:
            continue
        low, high = harmonic(precision[0], recall[0]), harmonic(precision[1], recall[1])
        middle = [item.value(metric) or Fraction(0) for metric in ("precision", "recall")]
        p, r = map(float, middle)
        mean = (p + r) / 2
        printed = f"F1 is printed as {item.shown('f1')}"
        if f1[0] > (precision[1] + recall[1]) / 2:
            message = (
                f"({p:.4f} + {r:.4f}) / 2 = {mean:.4f} is the mean of precision and recall; {printed}. F1 is never "
                "above that mean"
            )
            if not item.is_class:
                message += ", nor is its average over classes, folds or runs, unless the columns average differently"
            yield item.finding("f1-above-mean", "error", "f1", message)
        elif f1[0] > high or (item.is_class and f1[1] < low):
            message = f"2 × {p:.4f} × {r:.4f} / ({p:.4f} + {r:.4f}) = {float(harmonic(*middle)):.4f}; {printed}"
            if item.is_class:
                yield item.finding("f1-not-harmonic", "error", "f1", message)
            else:
                message += "; an average of F1 may lie below the harmonic mean of the averages, never above"
                yield item.finding("f1-above-harmonic", "error", "f1", message)


def _complete(group: list[Item], items: list[Item]) -> bool:
    """Whether these are all classes of the subset: as many images as are stated, or at least two classes."""
    stated = {item.row.n for item in items if item.key == group[0].key and item.row.n is not None}
    return stated == {_size(group)} or (not stated and len(group) > 1)


def _class_figures(group: list[Item], accuracies: list[Item], complete: bool) -> Iterator[Finding]:
    """Whole numbers of images behind the figures of the classes: each alone, their sum, then all together."""
    size = _size(group)
    alone = [finding for item in group for finding in _class_alone(item, size if complete else None)]
    yield from alone
    if not complete or any(finding.code == "recall-no-count" for finding in alone):
        return
    fitting = list(accuracies)
    if all(item.row.recall is not None for item in group):
        counts = [counts_in(item.span("recall") or (Fraction(0), Fraction(1)), item.row.support or 0) for item in group]
        low, high = sum(c[0] for c in counts), sum(c[-1] for c in counts)
        for item in accuracies:
            interval = item.span("accuracy")
            if interval is not None and (Fraction(high, size) < interval[0] or Fraction(low, size) > interval[1]):
                fitting.remove(item)
                yield _recalls_finding(group, item, counts)
    # A figure that is impossible alone is impossible in a matrix; accusing it twice would say nothing new.
    if any(not _f1_agrees(item) for item in group) or alone:
        return
    for beside in [[], fitting] if fitting else [[]]:
        accuracy_spans = [interval for item in beside if (interval := item.span("accuracy")) is not None]
        if matrix_exists([_figures(item) for item in group], accuracy_spans) is False:
            yield _matrix_finding(group, beside)
            return


def _class_alone(item: Item, size: int | None) -> Iterator[Finding]:
    support = item.row.support or 0
    recall, precision = item.span("recall"), item.span("precision")
    hits = counts_in(recall, support) if recall is not None else range(support + 1)
    if support and not hits and recall is not None:
        below = math.floor((item.value("recall") or Fraction(0)) * support)
        near = " and ".join(f"{k}/{support} = {k / support:.4f}" for k in (below, below + 1))
        message = f"no number of {support} images gives {item.shown('recall')}; the nearest are {near}"
        yield item.finding("recall-no-count", "error", "recall", message)
    elif precision is not None and precision[0] > 0:
        # Called this class: at least the hits, at most all images but the missed ones.
        for k in hits:
            most = math.inf if size is None else size - (support - k)
            if k and math.ceil(k / precision[1]) <= min(math.floor(k / precision[0]), most):
                return
        found = f"{hits[0]} to {hits[-1]}" if len(hits) > 1 else f"{hits[0]}"
        middle = item.value("precision") or precision[1]
        tried = [Fraction(k, math.floor(k / middle) + more) for k in hits[-3:] if k for more in (0, 1)]
        nearest = min(tried, key=lambda value: abs(value - middle), default=None)
        message = (
            f"{found} of {support} images are found, and no number of images called {item.row.label} then gives a "
            f"precision of {item.shown('precision')}"
            + (f"; a near one is {nearest.numerator}/{nearest.denominator} = {float(nearest):.4f}" if nearest else "")
        )
        yield item.finding("precision-no-count", "error", "precision", message)


def _f1_agrees(item: Item) -> bool:
    return not any(True for _ in _f1([item]))


def _recalls_finding(group: list[Item], item: Item, counts: list[range]) -> Finding:
    size, low, high = _size(group), sum(c[0] for c in counts), sum(c[-1] for c in counts)
    parts = " + ".join(f"{c[0]}" if len(c) == 1 else f"({c[0]} to {c[-1]})" for c in counts)
    found = f"{low}/{size} = {100 * low / size:.2f} %"
    if high > low:
        found = f"{low} to {high} of {size} = {100 * low / size:.2f} to {100 * high / size:.2f} %"
    return item.finding(
        "recalls-contradict-accuracy",
        "error",
        "accuracy",
        f"the recalls {' / '.join(i.shown('recall') for i in group)} of {group[0].table.name} with supports "
        f"{' / '.join(str(i.row.support) for i in group)} give {parts} correct: {found}, but {item.table.name} prints "
        f"{item.shown('accuracy')}",
    )


def _figures(item: Item) -> ClassFigures:
    return ClassFigures(item.row.support or 0, item.span("precision"), item.span("recall"), item.span("f1"))


def _matrix_finding(group: list[Item], accuracies: list[Item]) -> Finding:
    size = _size(group)
    ranges: list[tuple[int, int]] = []
    for item in group:
        hits = counts_in(item.span("recall") or (Fraction(0), Fraction(1)), item.row.support or 0)
        precision = item.span("precision") or (Fraction(0), Fraction(1))
        high = math.floor(hits[-1] / precision[0]) if precision[0] else size
        ranges.append((math.ceil(hits[0] / precision[1]) if precision[1] else 0, min(high, size)))
    low, high = (sum(ends[side] for ends in ranges) for side in (0, 1))
    supports = " + ".join(str(item.row.support) for item in group)
    message = (
        f"each figure is possible alone, but no confusion matrix of {supports} = {size} images (the classes listed) "
        "gives all of them together"
    )
    if low > size or high < size:
        parts = ", ".join(
            f"{item.row.label}: {a}" + (f" to {b}" if b > a else "") for item, (a, b) in zip(group, ranges, strict=True)
        )
        total = f"{low}" if low == high else f"{low} to {high}"
        message += f": the precisions and recalls ask for so many images called {parts}; together {total}, not {size}"
    elif accuracies:
        message += f", the accuracy of {' and '.join(item.shown('accuracy') for item in accuracies)} included"
    return replace(group[0].finding("no-confusion-matrix", "error", "", message), row=_configuration(group[0]))


def _configuration(item: Item) -> str:
    return row_name(replace(item.row, label="", line=None))


def _same_figure(items: list[Item]) -> Iterator[Finding]:
    places: dict[tuple[tuple[str, str, str], str], list[Item]] = {}
    for second in items:
        earlier = places.setdefault((second.key, second.row.label), [])
        for first in earlier:
            for metric in METRICS:
                a, b = first.span(metric), second.span(metric)
                if first.table is not second.table and a and b and (a[1] < b[0] or b[1] < a[0]):
                    message = f"{second.shown(metric)} here, {first.shown(metric)} in {first.table.name}"
                    yield second.finding("tables-disagree", "error", metric, message)
        earlier.append(second)


def _rivals(best: Item, items: list[Item]) -> list[Item]:
    return [
        item
        for item in items
        if item.table is best.table
        and item.row is not best.row
        and (item.key[2], item.row.label) == (best.key[2], best.row.label)
        and (best.row.best != "architecture" or item.row.architecture == best.row.architecture)
    ]


def _best(items: list[Item]) -> Iterator[Finding]:
    for best in (item for item in items if item.row.best):
        scope = f"best of {best.row.architecture}" if best.row.best == "architecture" else "best"
        for metric in METRICS:
            own = best.span(metric)
            rivals = [(rival, rival.span(metric)) for rival in _rivals(best, items)]
            if own is None:
                continue
            above = [r for r, s in rivals if s is not None and s[0] >= own[1] and r.cell(metric) != best.cell(metric)]
            equal = [r for r, s in rivals if s is not None and r.cell(metric) == best.cell(metric)]
            if above:
                names = ", ".join(f"{_configuration(rival)} {rival.shown(metric)}" for rival in above)
                # "Best" without a word on the figure is a claim about accuracy where that is printed.
                severity = "error" if metric == "accuracy" or best.row.accuracy is None else "warning"
                message = f"called {scope} with {best.shown(metric)}, but higher: {names}"
                yield best.finding("best-is-not-best", severity, metric, message)
            elif equal and metric == "accuracy":
                names = ", ".join(_configuration(rival) for rival in equal)
                message = f"called {scope} with {best.shown(metric)}, a tie with {names}"
                yield best.finding("tie-called-best", "warning", metric, message)


def _significance(items: list[Item]) -> Iterator[Finding]:
    judged = [i for i in items if i.key[2] == "test" and not i.is_class and i.row.n and i.row.accuracy is not None]
    claimed = [item for item in judged if item.row.best]
    # Where the paper calls nothing best a reader will take the highest row for it.
    highest = [
        max((i for i in judged if i.table.name == name), key=lambda i: i.cell("accuracy") or Decimal(0))
        for name in dict.fromkeys(item.table.name for item in judged)
        if not claimed
    ]
    for best in claimed + highest:
        own = counts_in(best.span("accuracy") or (Fraction(0), Fraction(0)), best.row.n or 0)
        near = []
        for rival in _rivals(best, judged):
            other = counts_in(rival.span("accuracy") or (Fraction(0), Fraction(0)), best.row.n or 0)
            if rival.row.n != best.row.n or not own or not other or other[0] > own[-1]:
                continue
            d = own[-1] - other[0]
            if (p := smallest_mcnemar_p(d)) > 0.05:
                near.append(f"{_configuration(rival)} ({d} image{'s' * (d != 1)}, p >= {p:.3g})")
        if near:
            message = (
                f"{best.shown('accuracy')} of {best.row.n} images cannot differ significantly from {'; '.join(near)}: "
                "on the same images the smallest p of an exact McNemar test is 2 × 0.5^d for d images"
            )
            yield best.finding("cannot-be-significant", "warning" if best.row.best else "note", "accuracy", message)


def _intervals(items: list[Item]) -> Iterator[Finding]:
    finest: dict[tuple[str, str, str], Item] = {}
    for item in items:
        interval = item.span("accuracy")
        if interval is None or not item.row.n or item.key[2] != "test" or item.is_class:
            continue
        other = finest[item.key].span("accuracy") if item.key in finest else None
        if other is None or interval[1] - interval[0] < other[1] - other[0]:
            finest[item.key] = item
    covered = {item.key for item in items if item.row.interval}
    for table in dict.fromkeys(item.table.name for item in finest.values()):
        bare = [item for item in finest.values() if item.table.name == table and item.key not in covered]
        bare.sort(key=lambda item: -(item.cell("accuracy") or Decimal(0)))
        if not bare:
            continue
        texts = []
        for item in bare:
            n = item.row.n or 0
            k = round((item.value("accuracy") or Fraction(0)) * n)
            low, high = wilson(k, n)
            texts.append(
                f"{_configuration(item)} {item.shown('accuracy')} ({k}/{n}): {100 * low:.1f}-{100 * high:.1f} %"
            )
        yield bare[0].finding(
            "no-interval",
            "note",
            "accuracy",
            f"printed without an interval. Wilson 95 %: {'; '.join(texts)}. Wider still where several images are of "
            "one patient or copies of each other",
        )


def _not_checked(name: str, items: list[Item], groups: list[list[Item]]) -> Iterator[Finding]:
    def finding(message: str) -> Finding:
        return Finding("not-checked", "skipped", name, "", "", "", message)

    accuracies = [item for item in items if item.row.accuracy is not None and not item.is_class]
    without = [item for item in accuracies if not item.row.n]
    if without:
        tables = ", ".join(dict.fromkeys(item.table.name for item in without))
        yield finding(
            f"{len(without)} of {len(accuracies)} accuracies ({tables}) come without the number of images: not checked "
            "whether they are k/n, how wide their intervals are, which differences a test can confirm"
        )
    partial = [group for group in groups if not _complete(group, items)]
    if partial:
        yield finding(
            f"the classes of {_configuration(partial[0][0]) or 'the table'}"
            + (f" and {len(partial) - 1} more" if len(partial) > 1 else "")
            + " are not all images of the test set: not checked whether recalls and accuracy agree, nor whether a "
            "confusion matrix gives the figures"
        )
    if any(item.row.f1 is not None or item.row.recall is not None for item in items) and not groups:
        yield finding(
            "no class comes with its number of images: not checked whether recalls and accuracy agree, nor whether a "
            "confusion matrix gives the figures"
        )
