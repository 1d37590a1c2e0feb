"""``inference.csv``: its columns, its rows, and how a table is gone on with after a stop.

A row is on the disk before its file counts as done. A torn last line is dropped at the next start.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sonobreast.errors import SonobreastError
from sonobreast.records import SCHEMA_VERSION, disk_error
from sonobreast.serving.predictor import Prediction, Predictor
from sonobreast.serving.readers import Choice, Frame, Place, beside

Key = tuple[str, int]


@dataclass(frozen=True)
class Done:
    """What a table holds: where each picture that has a row comes from, and how many pictures each file has.

    Files are known by `same_file`; what is not of DICOM comes from nowhere (None).
    """

    frames: dict[Key, Place | None]
    counts: dict[str, int]


def same_file(file: str) -> str:
    """By which a file of the table is known, whether it was named from here or from the root."""
    return os.path.abspath(file)


def columns_of(predictor: Predictor) -> tuple[str, ...]:
    """Columns of the table; which there are hangs on the bundle alone."""
    about = predictor.bundle.about
    return (
        "file",
        "frame",
        "frames",
        "dicom_frame",
        "dicom_frames",
        "region",
        "regions",
        "width",
        "height",
        "predicted",
        *(f"p_{c}" for c in about.classes),
        "malignant",
        "threshold",
        "conformal_set",
        "domain_score",
        "in_domain",
        "lesion_area_px",
        "lesion_pieces",
        "lesion_diameter_px",
        "lesion_diameter_mm",
        "spacing_mm",
        "notes",
        "choice",
        "bundle",
        "schema_version",
    )


def row_of(
    predictor: Predictor, file: str, frame: Frame, found: Prediction, spacing_mm: float | None, choice: Choice
) -> dict[str, object]:
    """One row of the table; what is not known is empty.

    Parameters
    ----------
    predictor : Predictor
    file : str
        As the table calls it.
    frame : Frame
    found : Prediction
    spacing_mm : float or None
        Given by the user; what the file states goes before it.
    choice : Choice
        By which frames and regions of DICOM files were taken.
    """
    lesion, place = found.lesion, frame.place
    return {
        "file": file,
        "frame": frame.index,
        "frames": frame.count,
        "dicom_frame": None if place is None else place.frame,
        "dicom_frames": None if place is None else place.frames,
        "region": None if place is None else place.region or None,
        "regions": None if place is None else place.regions,
        "width": found.width,
        "height": found.height,
        "predicted": found.predicted,
        **{f"p_{c}": round(float(p), 6) for c, p in zip(found.classes, found.probability, strict=True)},
        "malignant": _yes(found.malignant),
        "threshold": found.threshold,
        "conformal_set": None if found.conformal is None else "|".join(found.conformal) or "none",
        "domain_score": found.domain_score,
        "in_domain": _yes(found.in_domain),
        "lesion_area_px": None if lesion is None else lesion.area_px,
        "lesion_pieces": None if lesion is None else lesion.pieces,
        "lesion_diameter_px": None if lesion is None else round(lesion.diameter_px, 2),
        "lesion_diameter_mm": None if lesion is None or lesion.diameter_mm is None else round(lesion.diameter_mm, 2),
        "spacing_mm": spacing_mm if frame.spacing_mm is None else frame.spacing_mm,
        "notes": "|".join(n.code for n in beside(frame.notes, spacing_mm)),
        "choice": None if place is None else str(choice),
        "bundle": predictor.identity,
        "schema_version": SCHEMA_VERSION,
    }


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def append(table: IO[bytes], columns: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    """Rows of a batch in one write, on the disk when this returns."""
    if rows:
        table.write(lines_of(columns, rows))
        table.flush()
        os.fsync(table.fileno())


def lines_of(columns: Sequence[str], rows: Sequence[dict[str, object]], *, header: bool = False) -> bytes:
    """Lines of a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def alone(table: IO[bytes], out: Path) -> None:
    """Refuse a table that another process is writing to, where the system can tell."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(table, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SonobreastError(
            "another process is writing this table", file=out, remedy="wait for it, or name another --out"
        ) from error
    except OSError:
        return  # a file system without locks


def resume(out: Path, columns: Sequence[str], fingerprint: str, spacing_mm: float | None, choice: Choice) -> Done:
    """Make the table ready to be appended to, and say what it holds.

    Raises
    ------
    SonobreastError
        If it is no such table, or its rows were made with another bundle, spacing or choice of frames and regions.
    """
    header = lines_of(columns, [], header=True)
    done = Done({}, {})
    try:
        if not out.stat().st_size:
            with out.open("wb") as stream:
                stream.write(header)
                stream.flush()
                os.fsync(stream.fileno())
            return done
        good = 0
        with out.open("r+b") as stream:
            for number, line in enumerate(stream):
                if number == 0:
                    if line != header and not (header.startswith(line) and not line.endswith(b"\n")):
                        raise _foreign(out, "is no table of predictions of this bundle (its columns are others)")
                    if line != header:  # torn in its first line
                        stream.seek(0)
                        stream.write(header)
                        good = len(header)
                        break
                    good = len(line)
                    continue
                row = _row_in(line, columns)
                if row is None:
                    break  # torn: what follows was never finished
                if row["bundle"] != fingerprint:
                    raise _foreign(out, "was written with another bundle, or another variant of it")
                spacing = "" if spacing_mm is None else str(spacing_mm)
                if not row["choice"] and row["spacing_mm"] != spacing:  # only DICOM may state its own
                    raise _foreign(out, f"was written with the spacing {row['spacing_mm'] or 'not known'}")
                if row["choice"] not in ("", str(choice)):
                    frames, _, region = row["choice"].partition("/")
                    raise _foreign(out, f"was written with --frames {frames} --region {region}")
                file = same_file(row["file"])
                done.frames[file, int(row["frame"])] = _origin(row)
                done.counts[file] = int(row["frames"])
                good += len(line)
            stream.truncate(good)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise disk_error(error, out) from error
    return done


def _row_in(line: bytes, columns: Sequence[str]) -> dict[str, str] | None:
    """A complete row, or None for one that was torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        cells = next(csv.reader([line.decode()]), [])
        row = dict(zip(columns, cells, strict=True))
        int(row["frame"]), int(row["frames"]), _origin(row)
    except (UnicodeDecodeError, ValueError, csv.Error):
        return None
    return row


def _origin(row: dict[str, str]) -> Place | None:
    if not row["dicom_frame"]:
        return None
    return Place(int(row["dicom_frame"]), int(row["dicom_frames"]), int(row["region"] or 0), int(row["regions"]))


def _foreign(out: Path, what: str) -> SonobreastError:
    return SonobreastError(f"the table {what}", file=out, remedy="name another --out, or move this one away")
