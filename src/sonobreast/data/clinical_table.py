"""The table that comes with a published data set, as CSV or spreadsheet: its lines as text, by lower-case column."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonobreast.data.case_table import csv_rows
from sonobreast.data.listing import OURS
from sonobreast.errors import SonobreastError
from sonobreast.records import Problem

_EMPTY = frozenset({"", "not available", "not applicable", "n/a", "na", "nan", "none"})
_NEVER_EXTRA = OURS | {"image", "label", "group", "patient", "mask", "spacing_mm"}


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes
    ----------
    number : int
        As a spreadsheet counts, the header being 1.
    cells : dict
        Column (lower case, words joined by ``_``) -> text without spaces around it.
    """

    number: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class ClinicalTable:
    """A table that was read.

    Attributes
    ----------
    path : Path
    columns : tuple of str
        As in `Line.cells`.
    lines : tuple of Line
    problems : tuple of Problem
        What was read with a reservation.
    """

    path: Path
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    problems: tuple[Problem, ...] = ()


def column_name(header: object) -> str:
    """A header as the key of a column: ``Posterior features`` becomes ``posterior_features``."""
    return re.sub(r"[^0-9a-z]+", "_", str("" if header is None else header).strip().lower()).strip("_")


def read_csv(path: Path, required: Sequence[str]) -> ClinicalTable:
    """Read a CSV with commas, semicolons or tabs.

    UTF-8 is tried first, UTF-16 where the file begins as such, then Windows-1252, in which spreadsheet programmes of
    western countries save: names of histologies may then be wrong in other countries, so it is said.

    Parameters
    ----------
    path : Path
    required : sequence of str
        Columns that must be there, as in `Line.cells`.

    Raises
    ------
    SonobreastError
        If the file cannot be read, lacks a column, has one twice, has no rows, or a row has too many or too few cells.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError as error:
        raise SonobreastError(
            f"the table cannot be read ({error.strerror})", file=path, remedy="check the path and its permissions"
        ) from error
    problems: tuple[Problem, ...] = ()
    try:
        rows = list(csv_rows(path, "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"))
    except SonobreastError as error:
        if not isinstance(error.__cause__, UnicodeError):
            raise
        rows = list(csv_rows(path, "cp1252"))
        problems = (
            Problem(
                code="table-encoding",
                severity="warning",
                file=path.name,
                what="the table is not UTF-8; it was read as Windows-1252",
                remedy="look at accented letters in manifest.csv; where they are wrong, save the table as UTF-8",
            ),
        )
    header = next(iter(rows), [])
    lines = _lines(path, header, rows[1:])
    return _table(path, header, lines, required, problems)


def read_xlsx(path: Path, required: Sequence[str]) -> ClinicalTable:
    """Read the first sheet of a spreadsheet that has the required columns.

    Parameters
    ----------
    path : Path
    required : sequence of str
        Columns that must be there, as in `Line.cells`.

    Raises
    ------
    SonobreastError
        As `read_csv`; and if the file is damaged or openpyxl is not installed.
    """
    sheets = list(_sheets(path))
    wanted = set(required)
    best = max(sheets, key=lambda rows: len(wanted & {column_name(c) for c in next(iter(rows), ())}), default=[])
    header = [_text(c) for c in next(iter(best), ())]
    # A row ends at its last cell that was ever written to.
    rows = ([_text(c) for c in row] + [""] * (len(header) - len(row)) for row in best[1:])
    return _table(path, header, _lines(path, header, rows), required, ())


def xlsx_columns(path: Path) -> set[str]:
    """The columns of all sheets together, as in `Line.cells`.

    Raises
    ------
    SonobreastError
        As `read_xlsx`.
    """
    return {column_name(c) for rows in _sheets(path, only_header=True) for row in rows for c in row} - {""}


def _sheets(path: Path, *, only_header: bool = False) -> Iterator[list[tuple[Any, ...]]]:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise SonobreastError(
            "openpyxl, which reads spreadsheets, is not installed", file=path, remedy="install sonobreast[study]"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations that it does not keep
            book = load_workbook(path, read_only=True, data_only=True)
            try:
                for sheet in book.worksheets:
                    sheet.reset_dimensions()  # some programmes write a wrong size
                    rows = sheet.iter_rows(values_only=True, max_row=1 if only_header else None)
                    yield [tuple(r) for r in rows]
            finally:
                book.close()
    except SonobreastError:
        raise
    except Exception as error:  # zip, XML and value errors of a damaged file
        reason = str(error).strip().splitlines()
        raise SonobreastError(
            f"the spreadsheet cannot be opened ({reason[0] if reason else type(error).__name__})",
            file=path,
            remedy="download it again, or open it in a spreadsheet programme and save it as .xlsx",
        ) from error


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def _lines(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> tuple[Line, ...]:
    columns = [column_name(c) for c in header]
    while columns and not columns[-1]:
        columns.pop()
    lines = []
    for number, row in enumerate(rows, start=2):
        cells = [c.strip() for c in row]
        if not any(cells):
            continue
        while len(cells) > len(columns) and not cells[-1]:
            cells.pop()  # a separator at the end of each line
        if len(cells) != len(columns):
            raise SonobreastError(
                f"line {number} has {len(cells)} cells, the header has {len(columns)}",
                file=path,
                remedy="check quotes and separators of that line, or download the table again",
            )
        lines.append(Line(number, dict(zip(columns, cells, strict=True))))
    return tuple(lines)


def _table(
    path: Path, header: Sequence[str], lines: tuple[Line, ...], required: Sequence[str], problems: tuple[Problem, ...]
) -> ClinicalTable:
    columns = [c for c in (column_name(h) for h in header) if c]
    missing = [c for c in required if c not in columns]
    if missing:
        raise SonobreastError(
            f"column {' and '.join(missing)} is missing; there are: {', '.join(columns) or 'none'}",
            file=path,
            remedy="name the columns so, or take the table as it was published",
        )
    if len(set(columns)) != len(columns):
        raise SonobreastError("two columns have the same name", file=path, remedy="rename one of them")
    if not lines:
        raise SonobreastError("the table has no rows", file=path, remedy="fill it, or download it again")
    return ClinicalTable(path, tuple(columns), lines, problems)


def known(cell: str) -> str:
    """A cell, or nothing where it says that nothing is known (``not available``, ``NaN``)."""
    return "" if cell.lower() in _EMPTY else cell


def further(cells: Mapping[str, str], used: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """What a line says beyond the columns that are used, under the names that all data sets share.

    Parameters
    ----------
    cells : dict
        Of a `Line`.
    used : iterable of str
        Columns that went elsewhere.
    names : dict
        Column -> standard name, where the two differ (``diagnosis`` -> ``histology``).
    """
    left = _NEVER_EXTRA | set(used)
    renamed = {c: names.get(c, c) for c in cells if c and c not in left}
    return {name: known(cells[c]) for c, name in renamed.items() if name not in _NEVER_EXTRA}
