"""Many files to one table: streamed, with constant memory, past what cannot be read, and resumed after a kill.

``inference.csv`` grows row by row. Rows are on the disk before their files count as done, a torn last line is dropped
at the next start, and a file with a row is never predicted again. Files that could not be read stand in
``inference-problems.csv``, which begins anew with every start: they are tried again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.dicom import is_dicom
from sonobreast.data.listing import MASK_FOLDERS, MASK_NAME, printable, visible
from sonobreast.data.masks_out import predicted_mask_file
from sonobreast.data.preprocess import is_mask, quiet
from sonobreast.errors import SonobreastError
from sonobreast.records import SCHEMA_VERSION, disk_error, write_table
from sonobreast.serving.overlay import write_overlay
from sonobreast.serving.predictor import Prediction, Predictor
from sonobreast.serving.readers import SUFFIXES, Frame, Limits, read

BATCH = 8
AHEAD = 2  # batches that are decoded in advance
PROBLEM_COLUMNS = ("file", "what", "remedy")
_NOTHING = np.empty((0, 0, 3), np.uint8)
Progress = Callable[[str, int, int], None]
Key = tuple[str, int]


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Attributes
    ----------
    files : int
        That were found.
    kept, predicted : int
        Images with a row from before, and from this call.
    problems : int
        Files that were left out.
    masks : int
        Files that are masks by name or folder, and are not images.
    """

    files: int
    kept: int
    predicted: int
    problems: int
    masks: int


@dataclass(frozen=True)
class _Prepared:
    """An image in waiting; the image itself is kept only for an overlay."""

    file: str
    frame: Frame
    width: int
    height: int
    pixels: NDArray[np.uint8]
    path: Path


@dataclass(frozen=True)
class _Problem:
    file: str
    what: str
    remedy: str


def find_files(paths: Sequence[Path], without: Path | None = None) -> tuple[list[Path], int]:
    """Files that were named, and those below folders that end as an image does; masks are counted and left out.

    A mask is ``NAME_mask.EXT`` beside an image ``NAME``, or lies in a folder that is called after masks. A file that is
    named itself is always taken.

    Parameters
    ----------
    paths : sequence of Path
    without : Path or None
        A folder that is not looked into: pictures that this program writes are no scans.

    Raises
    ------
    SonobreastError
        If a path does not exist, or there is no image anywhere.
    """
    found: dict[str, Path] = {}  # by where they are: a file is predicted once, however it was named
    masks = 0
    skipped = None if without is None else os.path.realpath(without)
    for path in paths:
        if path.is_dir():
            inside, left = _below(path, skipped)
            masks += left
            for file in inside:
                found.setdefault(os.path.abspath(file), file)
        elif path.exists():
            found.setdefault(os.path.abspath(path), path)
        else:
            raise SonobreastError("there is no such file or folder", file=path, remedy="check the path")
    if not found:
        raise SonobreastError(
            "no images found" + (f"; {masks} files are masks" if masks else ""),
            file=paths[0] if paths else None,
            remedy=f"give images ({', '.join(sorted(SUFFIXES))}) or folders that hold some",
        )
    return list(found.values()), masks


def _below(folder: Path, skipped: str | None, depth: int = 0) -> tuple[list[Path], int]:
    found: list[Path] = []
    masks = 0
    here = visible(folder)
    images = [p for p in here if p.suffix.lower() in SUFFIXES and not p.is_dir()]
    stems = {p.stem.lower() for p in images}
    mask_folder = folder.name.lower() in MASK_FOLDERS - {"labels"} and depth > 0
    for path in images:
        match = MASK_NAME.match(path.stem)
        if mask_folder or (match and match["image"].lower() in stems):
            masks += 1
        else:
            found.append(path)
    for path in here:
        # A link may lead in a circle
        if path.is_dir() and not path.is_symlink() and os.path.realpath(path) != skipped:
            inside, left = _below(path, skipped, depth + 1)
            found += inside
            masks += left
    return found, masks


def infer(
    predictor: Predictor,
    paths: Sequence[Path],
    out: Path,
    *,
    overlays: Path | None = None,
    dicom_out: Path | None = None,
    spacing_mm: float | None = None,
    limits: Limits | None = None,
    take: Callable[[dict[str, object]], None] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Predict files and folders into a table.

    Parameters
    ----------
    predictor : Predictor
    paths : sequence of Path
    out : Path
        The table; a table of the same bundle is gone on with.
    overlays : Path or None
        Folder for a picture of each image.
    dicom_out : Path or None
        Folder for a report and a segmentation of each DICOM file; what could not be written stands with the problems.
    spacing_mm : float or None
        Of the pixels of all images, where it is known.
    limits : Limits or None
    take : callable or None
        Given each new row, after it is on the disk.
    progress : callable or None
        Told the stage, the files done, and of how many.

    Raises
    ------
    SonobreastError
        If there is nothing to read; if the table is of another bundle or spacing, or is none; if it cannot be written.
    """
    tell = progress or (lambda stage, done, total: None)
    files, masks = find_files(paths, overlays)
    columns = columns_of(predictor)
    problems: list[_Problem] = []
    kept = predicted = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with quiet(), out.open("ab") as table:
            _alone(table, out)
            done = _resume(out, columns, predictor.identity, spacing_mm)
            kept = len(done.frames)
            todo = [f for f in files if shown(f) not in done.complete]
            finished = len(files) - len(todo)
            tell("predicting", finished, len(files))
            waiting = _prepared(predictor, todo, done.frames, limits or Limits(), keep=overlays is not None)
            for batch in _batches(waiting):
                items = [item for item in batch if isinstance(item, _Prepared)]
                problems += [item for item in batch if isinstance(item, _Problem)]
                finished += sum(_ends(item) for item in batch)
                rows = _rows(predictor, items, overlays, spacing_mm, dicom_out, problems) if items else []
                _append(table, columns, rows)
                predicted += len(rows)
                for row in rows if take is not None else []:
                    take(row)  # type: ignore[misc]
                tell("predicting", finished, len(files))
    except OSError as error:
        raise disk_error(error, out) from error
    write_table(problems_file(out), PROBLEM_COLUMNS, (vars(p) for p in problems))
    return Outcome(len(files), kept, predicted, len(problems), masks)


def problems_file(out: Path) -> Path:
    """``inference-problems.csv`` beside ``inference.csv``."""
    return out.with_name(f"{out.stem}-problems.csv")


def shown(file: Path) -> str:
    """A file's name as the table has it, in one line."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in printable(file.as_posix()))


def columns_of(predictor: Predictor) -> tuple[str, ...]:
    """Columns of the table; which there are hangs on the bundle alone."""
    about = predictor.bundle.about
    return (
        "file",
        "frame",
        "frames",
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
        "bundle",
        "schema_version",
    )


def row_of(
    predictor: Predictor, file: str, frame: Frame, found: Prediction, spacing: float | None
) -> dict[str, object]:
    """One row of the table; what is not known is empty."""
    lesion = found.lesion
    return {
        "file": file,
        "frame": frame.index,
        "frames": frame.count,
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
        "spacing_mm": spacing,
        "bundle": predictor.identity,
        "schema_version": SCHEMA_VERSION,
    }


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _ends(item: _Prepared | _Problem) -> int:
    return int(isinstance(item, _Problem) or item.frame.index == item.frame.count - 1)


def _prepared(
    predictor: Predictor, files: Sequence[Path], frames: set[Key], limits: Limits, *, keep: bool
) -> Iterator[_Prepared | _Problem]:
    """Images as the networks see them, in order; a few files are decoded ahead, in threads."""

    def one(file: Path) -> list[_Prepared | _Problem]:
        name = shown(file)
        found: list[_Prepared | _Problem] = []
        try:
            for frame in read(file, limits):
                if (name, frame.index) in frames:
                    continue
                if is_mask(frame.image):
                    raise SonobreastError(
                        "black and white only: a mask or an empty picture, not a scan",
                        remedy="leave the file out",
                    )
                height, width = frame.image.shape[:2]
                pixels = predictor.prepared(frame.image)
                kept = frame if keep else replace(frame, image=_NOTHING)
                found.append(_Prepared(name, kept, width, height, pixels, file))
        except SonobreastError as error:
            found.append(_Problem(name, error.what, error.remedy))
        except MemoryError:
            found.append(_Problem(name, "not enough memory for this image", "export it at screen size"))
        return found

    workers = max(1, min(4, os.cpu_count() or 1))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = iter(files)
        queue: list[Future[list[_Prepared | _Problem]]] = [
            pool.submit(one, file) for file in islice(waiting, AHEAD * BATCH)
        ]
        try:
            while queue:
                found = queue.pop(0).result()
                queue.extend(pool.submit(one, file) for file in islice(waiting, 1))
                yield from found
        finally:
            for future in queue:
                future.cancel()


def _batches(items: Iterator[_Prepared | _Problem]) -> Iterator[list[_Prepared | _Problem]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def _rows(
    predictor: Predictor,
    items: Sequence[_Prepared],
    overlays: Path | None,
    spacing_mm: float | None,
    dicom_out: Path | None,
    problems: list[_Problem],
) -> list[dict[str, object]]:
    outputs = predictor.run([item.pixels for item in items])
    rows = []
    for k, item in enumerate(items):
        spacing = item.frame.spacing_mm if spacing_mm is None else spacing_mm
        found = predictor.judge(outputs, k, item.width, item.height, spacing)
        if overlays is not None:
            name = item.file if item.frame.count == 1 else f"{item.file}.{item.frame.index}.png"
            target = predicted_mask_file(overlays, name)
            # The ending stays in the name: a.png and a.jpg are two images
            target = target.with_name(f"{Path(name).name}.png")
            write_overlay(target, item.frame.image, found, predictor.bundle.about.preprocess.aspect)
        if dicom_out is not None and is_dicom(item.path):
            try:
                _answer(predictor, item, found, dicom_out)
            except SonobreastError as error:
                problems.append(_Problem(item.file, f"no DICOM output: {error.what}", error.remedy))
        rows.append(row_of(predictor, item.file, item.frame, found, spacing))
    return rows


def _answer(predictor: Predictor, item: _Prepared, found: Prediction, folder: Path) -> None:
    """Report and segmentation, where an earlier call that was stopped has not written them already."""
    from sonobreast.serving.dicom_answers import write_answers

    # Files of one name in several folders get several answers
    stem = f"{item.path.stem}-{hashlib.sha256(item.file.encode()).hexdigest()[:8]}"
    if not (folder / f"{stem}-report.dcm").exists():
        write_answers(predictor, item.path, found, folder, stem=stem)


def _append(table: IO[bytes], columns: Sequence[str], rows: Sequence[dict[str, object]]) -> None:
    """Rows of a batch in one write, on the disk when this returns."""
    if rows:
        table.write(_lines(columns, rows))
        table.flush()
        os.fsync(table.fileno())


def _lines(columns: Sequence[str], rows: Sequence[dict[str, object]], *, header: bool = False) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _alone(table: IO[bytes], out: Path) -> None:
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


@dataclass(frozen=True)
class _Done:
    frames: set[Key]
    complete: set[str]


def _resume(out: Path, columns: Sequence[str], fingerprint: str, spacing_mm: float | None) -> _Done:
    """Make the table ready to be appended to, and say what it holds."""
    header = _lines(columns, [], header=True)
    done = _Done(set(), set())
    try:
        if not out.stat().st_size:
            with out.open("wb") as stream:
                stream.write(header)
                stream.flush()
                os.fsync(stream.fileno())
            return done
        good = 0
        seen: dict[str, int] = {}
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
                if spacing_mm is not None and row["spacing_mm"] != str(spacing_mm):
                    raise _foreign(out, f"was written with the spacing {row['spacing_mm'] or 'not known'}")
                done.frames.add((row["file"], int(row["frame"])))
                seen[row["file"]] = seen.get(row["file"], 0) + 1
                if seen[row["file"]] == int(row["frames"]):
                    done.complete.add(row["file"])
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
        int(row["frame"]), int(row["frames"])
    except (UnicodeDecodeError, ValueError, csv.Error):
        return None
    return row


def _foreign(out: Path, what: str) -> SonobreastError:
    return SonobreastError(f"the table {what}", file=out, remedy="name another --out, or move this one away")
