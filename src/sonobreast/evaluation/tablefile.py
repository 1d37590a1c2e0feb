"""A CSV file of printed results, typed by a reader, as the tables that `sonobreast.evaluation.plausibility` checks."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from sonobreast.errors import SonobreastError, nearest
from sonobreast.evaluation.published import METRICS, SUBSETS, TOTAL, Row, Table

_NAMES = {
    "paper": ("paper", "study", "reference"),
    "table": ("table", "source"),
    "architecture": ("architecture", "model", "network", "backbone", "method", "classifier", "configuration"),
    "optimizer": ("optimizer", "optimiser"),
    "subset": ("subset", "split", "set", "partition"),
    "class": ("class", "label", "category"),
    "precision": ("precision", "prec", "ppv"),
    "recall": ("recall", "rec", "sensitivity", "tpr"),
    "f1": ("f1", "f1_score", "f1score", "f_score", "fscore", "f1_measure", "f_measure"),
    "accuracy": ("accuracy", "acc", "overall_accuracy"),
    "support": ("support",),
    "n": ("n", "n_images"),
    "count": ("count", "counts", "images"),
    "interval": ("interval", "ci", "ci_low", "ci_high", "ci_lower", "ci_upper", "95_ci", "95ci"),
    "best": ("best", "claimed_best", "called_best"),
}
_COLUMN = {alias: name for name, aliases in _NAMES.items() for alias in aliases}
_SUBSET = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    TOTAL: TOTAL,
}
_MISSING = frozenset({"", "-", "–", "—", "na", "n/a", "nan", "none", "null"})
_NUMBER = re.compile(r"[+-]?(\d{1,15}(\.\d{0,30})?|\.\d{1,30})(e[+-]?\d{1,2})?", re.IGNORECASE)
_COLUMNS_HELP = (
    "give a header line with any of architecture, optimizer, subset, class, precision, recall, f1, accuracy, support, "
    "n, best (or train, validation, test for accuracies; precision_benign, ... for classes; class and count for images)"
)


@dataclass(frozen=True)
class ReadTables:
    """The tables in a file and how they were read: notes of (code, column, message)."""

    tables: tuple[Table, ...]
    notes: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class _Column:
    """A column: its field ("recall", "train" as subset of accuracy, ...), where wide its subset or class."""

    header: str
    field: str
    subset: str = ""
    label: str = ""


def read_tables(path: str | Path) -> ReadTables:
    """Read the printed table(s) in a CSV file.

    One line is one configuration, or one class or subset of it (long); several classes or subsets may also stand side
    by side (wide). Separators are comma, semicolon or tab; upper case, spaces and hyphens in the header do not matter;
    empty cells, "-" and "n/a" are missing. **Type numbers as they are printed**: 0.90 lies between 0.895 and 0.905,
    but 0.9 between 0.85 and 0.95, so every dropped zero makes the checks weaker.

    Columns, all optional as long as there are figures:

    - `architecture` (or model, network, method, ...), `optimizer`: the configuration. `paper`, `table`: where several
      tables are in one file; those of one paper are compared with each other.
    - `subset`: train, validation or test; empty means test. `class`: empty (or scikit-learn's "macro avg" and the
      like) for figures over all classes.
    - `precision`, `recall` (or sensitivity), `f1`, `accuracy`: 0-1 or percent, found out for each column and noted.
      An accuracy beside a class is that of all classes; where it differs from class to class it is left out.
    - `support`: images of the class. `n`: images of all classes in the one test set; leave it empty for means over
      folds. Without `n` the classes listed are taken for all classes.
    - `best`: yes, where the paper calls the row the best of the table; `architecture`, the best optimizer of its
      architecture. `ci_low`, `ci_high` or `ci`: filled in where an interval is printed.
    - Wide: `train`, `validation`, `test` (also `test_accuracy`, `accuracy_test`) with `n_train`, ... (`n` and
      `best` are then about testing);
      `precision_benign` or `benign_precision`, ..., `support_benign`.
    - Tables of counts: `class` and `count`, or `class` and `train`, `validation`, `test`, `total` without a
      configuration; the line of the sums has the class "total".

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    ReadTables

    Raises
    ------
    SonobreastError
        Where the file is missing, empty, not text, has no figures, a cell that is no number, or two lines for the same
        thing; with the line and what to do.
    """
    path = Path(path)
    header, lines = _cells(path)
    columns, ignored = _columns(path, header)
    notes = [("column-ignored", name, "no check uses this column") for name in ignored]
    numbers = {
        c.header: {
            line: value for line, cells in lines if (value := _number(path, line, c, cells[c.header])) is not None
        }
        for c in columns
        if c.field in (*METRICS, "support", "n", "count")
    }
    if not any(numbers.values()):
        raise SonobreastError("the table has no figures", file=path, remedy=_COLUMNS_HELP)
    if _only_counts(columns, numbers):
        columns = [replace(c, field="count") if c.field == "accuracy" else c for c in columns]
    percent = {c.header: _is_percent(c, lines, numbers[c.header]) for c in columns if c.field in METRICS}
    for name, is_percent in percent.items():
        if values := [value for value, _ in numbers[name].values()]:
            above = sum(value > 1 for value in values)
            scale = "percent (0-100)" if is_percent else "fractions (0-1)"
            notes.append(("scale-read", name, f"read as {scale}: {above} of {len(values)} values lie above 1"))
    tables = list(_tables(path, columns, lines, numbers, percent, notes))
    return ReadTables(tuple(tables), tuple(notes))


def _cells(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header and the lines that are not blank, each with its number in the file."""
    if not path.exists():
        raise SonobreastError("there is no such file", file=path, remedy="check the path of the CSV file")
    if path.is_dir():
        raise SonobreastError("this is a folder, not a CSV file", file=path, remedy="give the CSV file itself")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SonobreastError(f"the file cannot be read ({error.strerror})", file=path) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise SonobreastError(
            "this is not a text file in UTF-8", file=path, remedy='save the table as "CSV UTF-8", not as a workbook'
        )
    if not text.strip():
        raise SonobreastError("the file is empty", file=path, remedy=_COLUMNS_HELP)
    first = next(line for line in text.splitlines() if line.strip())
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise SonobreastError(
            f"line {reader.line_num} is no line of a CSV table ({error})", file=path, remedy="look for an open quote"
        ) from error
    rows = [(line, row) for line, row in rows if any(row)]
    header = rows[0][1]
    while header and not header[-1]:
        header.pop()
    if doubles := sorted({name for name in header if header.count(name) > 1}):
        raise SonobreastError(f"the column {doubles[0]!r} appears twice", file=path, remedy="rename or remove one")
    lines = []
    for line, row in rows[1:]:
        if any(row[len(header) :]):
            raise SonobreastError(
                f"line {line} has {len(row)} cells, the header {len(header)}",
                file=path,
                remedy="put cells that hold the separator (a decimal comma?) into double quotes",
            )
        lines.append((line, dict(zip(header, row + [""] * len(header), strict=False))))
    if not lines:
        raise SonobreastError("the table has a header but no lines", file=path, remedy="add a line for each result")
    return header, lines


def _columns(path: Path, header: list[str]) -> tuple[list[_Column], list[str]]:
    columns, ignored = [], []
    for name in header:
        column = _column(name)
        if column is None:
            ignored.append(name)
        else:
            columns.append(column)
    if not any(c.field in (*METRICS, "count") for c in columns):
        known = [alias for alias, field in _COLUMN.items() if field in (*METRICS, "count")]
        hint = nearest(ignored[0], known) if ignored else ""
        raise SonobreastError(
            f"no column holds figures; the columns are {', '.join(name or '(no name)' for name in header)}",
            file=path,
            remedy=_COLUMNS_HELP + (f"; {hint}" if hint.startswith("did") else ""),
        )
    seen: dict[_Column, str] = {}
    for column in columns:
        if column.field == "interval":
            continue
        same = replace(column, header="")
        if same in seen:
            raise SonobreastError(
                f"the columns {seen[same]!r} and {column.header!r} mean the same", file=path, remedy="remove one"
            )
        seen[same] = column.header
    return columns, ignored


def _column(header: str) -> _Column | None:
    name = re.sub(r"[^\w]+", "_", header.lower().replace("%", "")).strip("_")
    name = re.sub(r"_(percent|pct)$", "", name)
    if name in _COLUMN:
        return _Column(header, _COLUMN[name])
    if name in _SUBSET:
        return _Column(header, "accuracy", subset=_SUBSET[name])
    for field, aliases in _NAMES.items():
        if field not in (*METRICS, "support", "n"):
            continue
        for alias in aliases:
            for rest in (name.removeprefix(f"{alias}_"), name.removesuffix(f"_{alias}")):
                if rest != name and rest in _SUBSET and field in ("accuracy", "n"):
                    return _Column(header, field, subset=_SUBSET[rest])
                if rest != name and field not in ("accuracy", "n"):
                    return _Column(header, field, label=rest)
    return None


def _number(path: Path, line: int, column: _Column, text: str) -> tuple[Decimal, bool] | None:
    """A cell as a number, and whether a percent sign says its scale; None where it is missing."""
    if text.lower() in _MISSING:
        return None
    sign = text.endswith("%")
    plain = text.removesuffix("%").strip()
    whole = column.field in ("support", "n", "count")
    if whole and re.fullmatch(r"\d{1,3}(,\d{3})+", plain):
        plain = plain.replace(",", "")
    elif re.fullmatch(r"[+-]?\d*,\d+", plain):
        plain = plain.replace(",", ".")
    remedy = "give the printed number alone"
    if not _NUMBER.fullmatch(plain):
        if "±" in text or "+-" in text or "(" in text:
            remedy += "; a spread or an interval has columns of its own"
        raise SonobreastError(
            f"{text!r} in column {column.header!r}, line {line}, is no number", file=path, remedy=remedy
        )
    value = Decimal(plain)
    if whole and (value != value.to_integral_value() or not (column.field == "n") <= value <= 10**9 or sign):
        raise SonobreastError(
            f"{text!r} in column {column.header!r}, line {line}, is no number of images", file=path, remedy=remedy
        )
    return value, sign


def _only_counts(columns: list[_Column], numbers: dict[str, dict[int, tuple[Decimal, bool]]]) -> bool:
    """Whether train, validation and test hold images, not accuracies: a class, no configuration, whole numbers."""
    fields = {c.field for c in columns}
    wide = [c for c in columns if c.field == "accuracy"]
    values = [value for c in wide for value, sign in numbers[c.header].values() if not sign]
    return (
        "class" in fields
        and not fields & {"architecture", "optimizer", "precision", "recall", "f1"}
        and bool(values)
        and all(c.subset for c in wide)
        and all(value == value.to_integral_value() for value in values)
        and any(value > 1 for value in values)
    )


def _is_percent(
    column: _Column, lines: list[tuple[int, dict[str, str]]], numbers: dict[int, tuple[Decimal, bool]]
) -> bool:
    """Percent where the header says so, or most values lie above 1 (zeros say nothing)."""
    if re.search(r"%|percent|pct", column.header.lower()) or any(sign for _, sign in numbers.values()):
        return True
    values = [value for value, _ in numbers.values() if value]
    return sum(value > 1 for value in values) * 2 > len(values)


def _tables(
    path: Path,
    columns: list[_Column],
    lines: list[tuple[int, dict[str, str]]],
    numbers: dict[str, dict[int, tuple[Decimal, bool]]],
    percent: dict[str, bool],
    notes: list[tuple[str, str, str]],
) -> Iterator[Table]:
    # A metric has one scale in a table; the cells of columns on the other scale are moved, digits kept.
    scales = {
        metric: [percent[c.header] for c in columns if c.field == metric and c.header in percent] for metric in METRICS
    }
    in_percent = frozenset(metric for metric, found in scales.items() if found and found[0])
    rows: dict[tuple[str, str], list[Row]] = {}
    for line, cells in lines:
        texts = {c.field: cells[c.header] for c in columns if not c.subset and not c.label}
        place = (texts.get("paper") or path.name, texts.get("table") or "the table")
        base = Row(
            texts.get("architecture", ""),
            texts.get("optimizer", "").lower(),
            _subset(path, line, texts.get("subset", "")),
            texts.get("class", ""),
            interval=any(cells[c.header].lower() not in _MISSING for c in columns if c.field == "interval"),
            best=_best(path, line, texts.get("best", "")),
            line=line,
        )
        parts: dict[tuple[str, str], dict[str, Any]] = {}
        for c in columns:
            if c.header in numbers and line in numbers[c.header]:
                value, sign = numbers[c.header][line]
                if c.field in METRICS:
                    moved = (c.field in in_percent) - (sign or percent[c.header])
                    value = value.scaleb(2 * moved) if moved else value
                parts.setdefault((c.subset, c.label), {})[c.field] = value if c.field in METRICS else int(value)
        if ("test", "") in parts and set(parts.get(("", ""), {})) == {"n"}:
            parts["test", ""] = parts.pop(("", "")) | parts["test", ""]
        for (subset, label), fields in parts.items():
            # A line that is called best is so in testing; its training figures claim nothing.
            best = base.best if subset in ("", "test") else ""
            row = replace(base, subset=subset or base.subset, label=label or base.label, best=best, **fields)
            rows.setdefault(place, []).append(_report_line(row, in_percent))
    for (paper, name), found in rows.items():
        yield Table(paper, name, tuple(_settle(path, found, notes)), in_percent)


def _subset(path: Path, line: int, text: str) -> str:
    if text.lower() not in {*_SUBSET, ""}:
        raise SonobreastError(
            f"{text!r} in line {line} is no subset", file=path, remedy=f"write one of {', '.join(SUBSETS)}, or nothing"
        )
    return _SUBSET.get(text.lower(), "")


def _best(path: Path, line: int, text: str) -> str:
    known = {**dict.fromkeys(("yes", "y", "true", "1", "x", "best", "all"), "all"), "architecture": "architecture"}
    known |= dict.fromkeys(("no", "n", "false", "0", *_MISSING), "")
    if text.lower() not in known:
        raise SonobreastError(
            f"{text!r} in line {line} does not say whether the row is called best",
            file=path,
            remedy="write yes, architecture (the best of its architecture), or nothing",
        )
    return known[text.lower()]


def _report_line(row: Row, in_percent: frozenset[str]) -> Row:
    """Lines of scikit-learn's classification report: the averages lower case, "accuracy" stands under f1."""
    label = row.label.lower().replace("_", " ")
    if label == "accuracy" and row.accuracy is None and row.f1 is not None:
        moved = ("accuracy" in in_percent) - ("f1" in in_percent)
        return replace(row, label="", accuracy=row.f1.scaleb(2 * moved), f1=None, n=row.n or row.support, support=None)
    if label in ("macro avg", "weighted avg", "micro avg", "samples avg"):
        return replace(row, label=label, n=row.n or row.support, support=None)
    return replace(row, label=TOTAL) if label in (TOTAL, "sum", "all") else row


def _settle(path: Path, rows: list[Row], notes: list[tuple[str, str, str]]) -> Iterator[Row]:
    """Move what a line of a class says of all classes to a row of its own; refuse two rows for the same thing."""
    seen: dict[tuple[str, str, str, str], Row] = {}
    beside: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        key = (row.architecture, row.optimizer, row.subset)
        is_class = row.label and not row.label.endswith(" avg") and row.count is None
        if is_class and (row.accuracy is not None or row.n is not None):
            beside.setdefault(key, []).append(row)
            row = replace(row, accuracy=None, n=None, best="" if row.accuracy is not None else row.best, interval=False)
        if (*key, row.label) in seen:
            first = seen[(*key, row.label)]
            if first.line == row.line:  # long and wide figures of one line
                raise SonobreastError(f"line {row.line} gives the same figure twice", file=path, remedy="remove one")
            raise SonobreastError(
                f"lines {first.line} and {row.line} are about the same configuration, subset and class",
                file=path,
                remedy="tell them apart by architecture, optimizer, subset, class or table, or remove one",
            )
        seen[(*key, row.label)] = row
    for key, found in beside.items():
        sizes = {row.n for row in found if row.n is not None}
        if len(sizes) > 1:
            raise SonobreastError(
                f"line {found[1].line}: n differs between the classes of one configuration",
                file=path,
                remedy="n counts the images of all classes; those of one class belong into the column support",
            )
        accuracies = {row.accuracy for row in found if row.accuracy is not None}
        if len(accuracies) > 1:
            notes.append(("column-ignored", "accuracy", f"line {found[0].line}: an accuracy of each class; left out"))
        own = seen.get((*key, ""))
        accuracy = accuracies.pop() if len(accuracies) == 1 else None
        if own is not None and accuracy is not None and own.accuracy not in (None, accuracy):
            raise SonobreastError(
                f"lines {own.line} and {found[0].line} give two accuracies of one configuration",
                file=path,
                remedy="keep the printed one, or tell the tables apart by a column table",
            )
        whole = own or Row(*key, line=found[0].line)
        seen[(*key, "")] = replace(
            whole,
            accuracy=whole.accuracy if whole.accuracy is not None else accuracy,
            n=whole.n or (sizes.pop() if sizes else None),
            best=whole.best or next((row.best for row in found if row.best and row.accuracy is not None), ""),
            interval=whole.interval or any(row.interval for row in found),
        )
    yield from seen.values()
