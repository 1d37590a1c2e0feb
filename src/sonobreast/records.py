"""The typed rows of the stage files. Every stage file carries ``schema_version``; a reader refuses a newer one."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict

from sonobreast.errors import SonobreastError

SCHEMA_VERSION = 1

Subset = Literal["train", "validation", "test"]
SUBSETS: tuple[Subset, ...] = ("train", "validation", "test")
LESION_CLASSES = ("benign", "malignant", "normal")


class Row(BaseModel):
    """A frozen row; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Case(Row):
    """One image of a data set: one row of ``manifest.csv``.

    Attributes
    ----------
    image : str
        Path of the image, relative to the data set's folder, with forward slashes. The image's name everywhere else.
    label : str
        Class, for example ``benign``.
    group : str
        Images of one group never meet across subsets: the patient, or a near-duplicate group, or the image itself.
    patient : str
        Patient identifier; empty where it is not known.
    masks : tuple of str
        Paths of the lesion masks, relative like ``image``; several where an image shows several lesions.
    width, height : int
        Size in pixels.
    spacing_mm : float or None
        Pixel spacing in millimetres, only where the data set gives it.
    sha256 : str
        Of the image file's bytes, hexadecimal.
    source : str
        The data set's name in the catalogue, or the layout it was read by.
    extra : dict
        Further columns of the data set (descriptors, BI-RADS, device), as text.
    """

    image: str
    label: str
    group: str
    patient: str = ""
    masks: tuple[str, ...] = ()
    width: int
    height: int
    spacing_mm: float | None = None
    sha256: str
    source: str
    extra: dict[str, str] = {}


class Problem(Row):
    """A file that was left out or read with a reservation: one row of ``problems.csv``."""

    code: str
    severity: Literal["error", "warning"]
    file: str
    what: str
    remedy: str = ""


class Assignment(Row):
    """Where one image is in one fold of one repeat: one row of ``split.csv``."""

    repeat: int
    fold: int
    subset: Subset
    image: str
    group: str
    label: str


NO_OPTIMIZER = "none"
"""In place of an optimizer's name where none takes part: classifiers that scikit-learn fits."""


class Run(Row):
    """One cell of a study: what is trained on which fold with which seed."""

    architecture: str
    optimizer: str
    repeat: int = 0
    fold: int = 0
    seed: int = 0

    @property
    def id(self) -> str:
        """Folder name of the run: letters, digits, ``.``, ``_`` and ``-`` only."""
        name = "".join(c if c.isalnum() or c in "._-" else "_" for c in self.architecture)
        return f"{name}-{self.optimizer}-r{self.repeat}-f{self.fold}-s{self.seed}"


RUN_COLUMNS = ("run", "architecture", "optimizer", "repeat", "fold", "seed", "subset")
PREDICTION_COLUMNS = (*RUN_COLUMNS, "image", "group", "label", "predicted")
MASK_COLUMNS = (
    "truth",
    "true_area_px",
    "predicted_area_px",
    "dice",
    "iou",
    "hd95_px",
    "hd95_mm",
    "false_positive_share",
)
SEGMENTATION_COLUMNS = (*PREDICTION_COLUMNS, *MASK_COLUMNS)


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when it is complete.

    The bytes are on the disk before the name is, so a kill or a power cut leaves the old file or the new one.

    Raises
    ------
    SonobreastError
        If the file cannot be written (full disk, no permission). Nothing half-written stays.
    """
    text = "b" not in mode
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        options: dict[str, Any] = {"encoding": "utf-8", "newline": ""} if text else {}
        with os.fdopen(handle, mode, **options) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def is_full(error: OSError) -> bool:
    """Whether a disk or a quota is full."""
    return error.errno in (28, 122)  # ENOSPC, EDQUOT


def disk_error(error: OSError, path: Path | str) -> SonobreastError:
    """The sentence for a file that cannot be written or read."""
    reason = error.strerror or str(error)
    remedy = (
        "free some space or choose another folder, then give the same command again: finished runs are kept"
        if is_full(error)
        else "check the folder and its permissions, then give the same command again"
    )
    return SonobreastError(f"cannot write: {reason}", file=error.filename or path, remedy=remedy)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with ``schema_version`` first; NaN becomes null, so that every reader can read it."""
    with atomic(path) as stream:
        json.dump(_finite({"schema_version": SCHEMA_VERSION, **content}), stream, indent=1, allow_nan=False)
        stream.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON stage file and check its version.

    Raises
    ------
    SonobreastError
        If the file is missing, is not JSON, or was written by a newer version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SonobreastError("a file is missing", file=path, remedy="run the stage that writes it") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SonobreastError(f"not a readable JSON file ({error})", file=path, remedy="write it anew") from error
    if not isinstance(content, dict):
        raise SonobreastError("not a JSON object", file=path, remedy="write it anew")
    check_version(content.get("schema_version"), path)
    return content


def check_version(version: object, path: Path) -> None:
    """Refuse a stage file that has no version or that a newer sonobreast wrote."""
    try:
        number = int(str(version))
    except ValueError:
        number = 0
    if not 1 <= number <= SCHEMA_VERSION:
        raise SonobreastError(
            f"schema_version is {version!r}, this sonobreast reads 1 to {SCHEMA_VERSION}",
            file=path,
            remedy="use the sonobreast version that wrote the file, or write the file anew",
        )


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV stage file; ``schema_version`` is its last column."""
    with atomic(path) as stream:
        writer = csv.DictWriter(stream, [*columns, "schema_version"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "schema_version": SCHEMA_VERSION})


def read_table(path: Path, columns: Sequence[str] = (), *, versioned: bool = True) -> list[dict[str, str]]:
    """Read a CSV stage file as text.

    Parameters
    ----------
    path : Path
    columns : sequence of str
        Columns that must be there.
    versioned : bool
        False also takes a table without ``schema_version``, as a person writes it by hand.

    Raises
    ------
    SonobreastError
        If the file is missing, is not CSV, lacks a column or was written by a newer version.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = list(reader.fieldnames or [])
            rows = list(reader)
    except FileNotFoundError as error:
        raise SonobreastError("a file is missing", file=path, remedy="run the stage that writes it") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SonobreastError(f"not a readable CSV file ({error})", file=path, remedy="write it anew") from error
    missing = [c for c in (*columns, *(["schema_version"] if versioned else [])) if c not in header]
    if missing:
        raise SonobreastError(
            f"column {', '.join(missing)} is missing; there are {', '.join(header) or 'none'}",
            file=path,
            remedy="write the file anew with this version of sonobreast" if versioned else "name the columns so",
        )
    if any(None in r or None in r.values() for r in rows):
        number = next(i for i, r in enumerate(rows, start=2) if None in r or None in r.values())
        raise SonobreastError(
            f"line {number} has more or fewer cells than the header",
            file=path,
            remedy="check quotes and separators of that line",
        )
    if rows and "schema_version" in header and (versioned or rows[0]["schema_version"]):
        check_version(rows[0]["schema_version"], path)
    return rows
