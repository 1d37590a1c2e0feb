"""What the checks of printed tables find, as data and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from sonobreast.evaluation.published import TOTAL, Row, Table
from sonobreast.evaluation.rounding import Span, span

CODES: dict[str, str] = {
    "out-of-scale": "a value outside its scale",
    "counts-do-not-sum": "counts that do not sum to the printed total",
    "supports-differ": "class sizes of two tables, or of the classes and all images, that differ",
    "accuracy-no-count": "an accuracy that is no whole number of the stated images",
    "recall-no-count": "a recall that is no whole number of the images of its class",
    "precision-no-count": "a precision that no whole number of predicted images gives",
    "f1-above-mean": "an F1 above the mean of precision and recall",
    "f1-above-harmonic": "an average F1 above the harmonic mean of average precision and recall",
    "f1-not-harmonic": "an F1 of a class that is not the harmonic mean of its precision and recall",
    "recalls-contradict-accuracy": "recalls and supports that give another accuracy than the printed one",
    "no-confusion-matrix": "figures that no single confusion matrix gives together",
    "tables-disagree": "two places that print different values of the same figure",
    "best-is-not-best": "a row called best that another row beats",
    "tie-called-best": "a row called best that another row equals",
    "cannot-be-significant": "a difference of so few images that no exact McNemar test can reach 0.05",
    "no-interval": "an accuracy printed without its interval",
    "scale-read": "how the scale of a column was read",
    "column-ignored": "a column that no check uses",
    "not-checked": "a check that the table does not give enough figures for",
}
SEVERITIES = ("error", "warning", "note", "skipped")
# Rows of scikit-learn's classification report that are not classes.
AVERAGES = frozenset({"", "macro avg", "weighted avg", "micro avg", "samples avg"})


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, doubtful or missing in a table.

    Attributes
    ----------
    code : str
        A key of `CODES`; stable between versions.
    severity : str
        "error": a printed number or statement must be wrong. "warning": it may be right, but does not carry what is
        said with it. "note": missing, or how it was read. "skipped": a check that could not be made.
    paper, table, row, column : str
        Where; "" where it is about all of them.
    message : str
        What is wrong in plain words, with the arithmetic.
    """

    code: str
    severity: str
    paper: str
    table: str
    row: str
    column: str
    message: str


@dataclass(frozen=True)
class Item:
    """A row with its table: what every check walks over."""

    table: Table
    row: Row

    @property
    def key(self) -> tuple[str, str, str]:
        """Architecture, optimizer, subset; a table that names no subset means the test set."""
        return self.row.architecture, self.row.optimizer, self.row.subset or "test"

    @property
    def is_class(self) -> bool:
        """Whether this is one class, not a figure over all of them."""
        return self.row.label not in AVERAGES and self.row.label != TOTAL

    def cell(self, metric: str) -> Decimal | None:
        value: Decimal | None = getattr(self.row, metric)
        return value

    def span(self, metric: str) -> Span | None:
        """The values on 0-1 that print as this cell."""
        cell = self.cell(metric)
        return None if cell is None else span(cell, metric in self.table.percent)

    def value(self, metric: str) -> Fraction | None:
        """The printed value on 0-1."""
        cell = self.cell(metric)
        return None if cell is None else Fraction(cell) / (100 if metric in self.table.percent else 1)

    def shown(self, metric: str) -> str:
        return f"{self.cell(metric)}" + (" %" if metric in self.table.percent else "")

    def finding(self, code: str, severity: str, column: str, message: str) -> Finding:
        return Finding(code, severity, self.table.paper, self.table.name, row_name(self.row), column, message)


def row_name(row: Row) -> str:
    """A row in words: "MobileNetV2 + sgdm, test, benign (line 7)"."""
    configuration = " + ".join(part for part in (row.architecture, row.optimizer) if part)
    name = ", ".join(part for part in (configuration, row.subset, row.label) if part)
    return f"{name} (line {row.line})".strip() if row.line is not None else name


def render_text(findings: Iterable[Finding], width: int = 100) -> str:
    """The findings as text for a terminal: by paper, the gravest first, and a last line that counts them."""
    findings = list(findings)
    if not findings:
        return "Nothing found. That does not show that the figures are right."
    lines: list[str] = []
    for name in dict.fromkeys(finding.paper for finding in findings):
        lines += [name, "=" * len(name)]
        for finding in sorted((f for f in findings if f.paper == name), key=lambda f: SEVERITIES.index(f.severity)):
            where = " | ".join(part for part in (finding.table, finding.row, finding.column) if part)
            lines.append(f"{finding.severity:<8}{finding.code}" + (f" [{where}]" if where else ""))
            lines += textwrap.wrap(finding.message, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
        lines.append("")
    severities = [finding.severity for finding in findings]
    words = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "note": ("note", "notes")}
    counted = [f"{severities.count(s)} {words[s][severities.count(s) != 1]}" for s in words]
    lines.append(", ".join(counted) + f"; {severities.count('skipped')} not checked")
    return "\n".join(lines)
