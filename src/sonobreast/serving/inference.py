"""Many files to one table: streamed, with constant memory, past what cannot be read, and resumed after a kill.

``inference.csv`` grows row by row. Rows are on the disk before their files count as done, a torn last line is dropped
at the next start, and a file with a row never gets another. Files that could not be read stand in
``inference-problems.csv``, which begins anew with every start: they are tried again, so that at the end of any call it
names all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.dicom import is_dicom
from sonobreast.data.listing import MASK_FOLDERS, MASK_NAME, visible
from sonobreast.data.masks_out import predicted_mask_file
from sonobreast.data.preprocess import quiet
from sonobreast.errors import SonobreastError
from sonobreast.records import SCHEMA_VERSION, disk_error
from sonobreast.serving.inference_table import Done, Key, alone, append, columns_of, lines_of, resume, row_of, same_file
from sonobreast.serving.overlay import write_overlay
from sonobreast.serving.predictor import Prediction, Predictor
from sonobreast.serving.readers import SUFFIXES, USUAL, Choice, Frame, Limits, Place, read, refuse_mask

BATCH = 8
AHEAD = 2  # batches that are decoded in advance
PROBLEM_COLUMNS = ("file", "what", "remedy", "schema_version")
_PIECE = 32  # pictures of one film that are in memory at a time
_LONGEST = 200  # bytes of a name: file systems take 255, and a file in the making has a longer one
_NOTHING = np.empty((0, 0, 3), np.uint8)
Progress = Callable[[str, int, int], None]
Note = Callable[["_Problem"], None]


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


@dataclass(frozen=True)
class _Rest:
    """The pictures of a film from one on, not yet decoded."""

    path: Path
    first: int


@dataclass(frozen=True)
class _Wanted:
    """What each picture is to have beside its row, and what that hangs on."""

    identity: str
    overlays: Path | None
    dicom_out: Path | None
    spacing_mm: float | None
    choice: Choice


def find_files(
    paths: Sequence[Path], without: Sequence[Path] = (), *, skip: Callable[[SonobreastError], None] | None = None
) -> tuple[list[Path], int]:
    """Files that were named, and those below folders that are images; masks are counted and left out.

    An image ends as one does; DICOM is known by its content, because files of a PACS often have no ending.

    A mask is ``NAME_mask.EXT`` beside an image ``NAME``, or lies in a folder that is called after masks. A file that is
    named itself is always taken.

    Parameters
    ----------
    paths : sequence of Path
    without : sequence of Path
        Folders that are not looked into: pictures that this program writes are no scans.
    skip : callable or None
        Told of folders below the given ones that cannot be read; None: they end the search.

    Raises
    ------
    SonobreastError
        If a path does not exist, or there is no image anywhere.
    """
    found: dict[str, Path] = {}  # by where they are: a file is predicted once, however it was named
    masks = 0
    skipped = {os.path.realpath(folder) for folder in without}
    for path in paths:
        if os.path.isdir(path):
            inside, left = _below(path, skipped, skip)
            masks += left
            for file in inside:
                found.setdefault(os.path.abspath(file), file)
        elif os.path.exists(path):
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


def _below(
    folder: Path, skipped: set[str], skip: Callable[[SonobreastError], None] | None, depth: int = 0
) -> tuple[list[Path], int]:
    found: list[Path] = []
    masks = 0
    try:
        here = visible(folder)
    except SonobreastError as error:
        if skip is None or not depth:
            raise
        skip(error)
        return [], 0
    # os.path's questions have an answer also where a folder may be listed and not entered
    files = [p for p in here if not os.path.isdir(p)]
    images = [p for p in files if p.suffix.lower() in SUFFIXES or (os.path.isfile(p) and is_dicom(p))]
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
        if os.path.isdir(path) and not os.path.islink(path) and os.path.realpath(path) not in skipped:
            inside, left = _below(path, skipped, skip, depth + 1)
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
    choice: Choice = USUAL,
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
        The table; a table of the same bundle, spacing and choice is gone on with.
    overlays : Path or None
        Folder for a picture of each image; one that is missing is drawn, also where a row is there from before.
    dicom_out : Path or None
        Folder for a report and a segmentation of each DICOM file, as for pictures; what could not be written stands
        with the problems, and is tried again.
    spacing_mm : float or None
        Of the pixels of all images whose files do not state it themselves.
    choice : Choice
        Frames and regions of DICOM files; each picture has a row.
    limits : Limits or None
    take : callable or None
        Given each new row, after it is on the disk.
    progress : callable or None
        Told the stage, the files done, and of how many.

    Raises
    ------
    SonobreastError
        If there is nothing to read; if the images lie in the folder for pictures; if the table is of another bundle,
        spacing or choice; if the table or the list of problems is somebody else's file; if something cannot be written.
    """
    tell = progress or (lambda stage, done, total: None)
    closed: list[SonobreastError] = []
    files, masks = find_files(paths, [f for f in (overlays, dicom_out) if f is not None], skip=closed.append)
    _refuse_places(out, overlays, files)
    columns = columns_of(predictor)
    kept = predicted = problems = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with quiet(), out.open("ab") as table:
            alone(table, out)
            done = resume(out, columns, predictor.identity, spacing_mm, choice)
            kept = len(done.frames)
            wanted = _Wanted(predictor.identity, overlays, dicom_out, spacing_mm, choice)
            todo, ready = _left(files, done, wanted)
            with _problem_list(out) as write:

                def note(problem: _Problem) -> None:
                    nonlocal problems
                    problems += 1
                    write(problem)

                for error in closed:
                    note(_Problem(shown(Path(error.file or "")), error.what, error.remedy))
                finished = len(files) - len(todo)
                tell("predicting", finished, len(files))
                waiting = _prepared(predictor, todo, ready, limits or Limits(), choice, keep=overlays is not None)
                for batch in _batches(waiting):
                    items = [item for item in batch if isinstance(item, _Prepared)]
                    for item in batch:
                        if isinstance(item, _Problem):
                            note(item)
                    finished += sum(_ends(item) for item in batch)
                    rows = _rows(predictor, items, wanted, note) if items else []
                    rows = [r for r in rows if (same_file(str(r["file"])), r["frame"]) not in done.frames]
                    append(table, columns, rows)
                    predicted += len(rows)
                    for row in rows if take is not None else []:
                        take(row)  # type: ignore[misc]
                    tell("predicting", finished, len(files))
    except BrokenPipeError:  # of whoever takes the rows, and no more than that: they are in the table
        raise
    except OSError as error:
        raise disk_error(error, out) from error
    return Outcome(len(files), kept, predicted, problems, masks)


def _refuse_places(out: Path, overlays: Path | None, files: Sequence[Path]) -> None:
    """Refuse a table that would pass for an image, and pictures that would lie among, or upon, the images."""
    if out.suffix.lower() in SUFFIXES:
        raise SonobreastError("the table would have the name of an image", file=out, remedy="name it --out NAME.csv")
    if overlays is None:
        return
    top = Path(os.path.realpath(overlays))
    for folder in {file.parent for file in files}:
        if Path(os.path.realpath(folder)).is_relative_to(top):
            raise SonobreastError(
                f"the images lie in the folder that --overlays names ({shown(folder)})",
                file=overlays,
                remedy="name a folder of its own for the pictures; below that of the images is all right",
            )


def _left(files: Sequence[Path], done: Done, wanted: _Wanted) -> tuple[list[Path], set[Key]]:
    """Files with anything to do, and the pictures that have all that is wanted."""
    todo: list[Path] = []
    ready: set[Key] = set()
    for file in files:
        name = shown(file)
        same = same_file(name)
        count = done.counts.get(same, 0)
        rows = [(same, k) for k in range(count) if (same, k) in done.frames]
        frames = [key for key in rows if _there(wanted, file, name, done.frames[key], key[1], count)]
        ready.update(frames)
        if not count or len(frames) < count:
            todo.append(file)
    return todo, ready


def problems_file(out: Path) -> Path:
    """``inference-problems.csv`` beside ``inference.csv``."""
    return out.with_name(f"{out.stem}-problems.csv")


@contextmanager
def _problem_list(out: Path) -> Iterator[Note]:
    """Begin the list anew; what is noted is in the file at once."""
    file = problems_file(out)
    header = lines_of(PROBLEM_COLUMNS, [], header=True)
    if file.exists():
        with file.open("rb") as before:
            first = before.readline(len(header) + 1)
        if first and not header.startswith(first):
            raise SonobreastError(
                "the list of problems would be written over a file that is none",
                file=file,
                remedy="name another --out, or move this file away",
            )
    with file.open("wb") as stream:
        stream.write(header)
        stream.flush()

        def write(problem: _Problem) -> None:
            stream.write(lines_of(PROBLEM_COLUMNS, [{**vars(problem), "schema_version": SCHEMA_VERSION}]))
            stream.flush()

        yield write


def shown(file: Path) -> str:
    """A file's name as the table has it: in one line, and no two names alike (Python's ``unicode_escape``)."""
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in file.as_posix())


def _ends(item: _Prepared | _Problem) -> int:
    return int(isinstance(item, _Problem) or item.frame.index == item.frame.count - 1)


def _prepared(
    predictor: Predictor, files: Sequence[Path], ready: set[Key], limits: Limits, choice: Choice, *, keep: bool
) -> Iterator[_Prepared | _Problem]:
    """Images as the networks see them, in order; a few files are decoded ahead, in threads, films piece by piece."""
    piece = BATCH if keep else _PIECE

    def some(file: Path, first: int = 0) -> list[_Prepared | _Problem | _Rest]:
        name = shown(file)
        same = same_file(name)
        found: list[_Prepared | _Problem | _Rest] = []
        try:
            for frame in read(file, limits, first=first, choice=choice):
                if (same, frame.index) not in ready:
                    refuse_mask(frame)
                    height, width = frame.image.shape[:2]
                    pixels = predictor.prepared(frame.image)
                    kept = frame if keep else replace(frame, image=_NOTHING)
                    found.append(_Prepared(name, kept, width, height, pixels, file))
                if frame.index + 1 - first >= piece and frame.index + 1 < frame.count:
                    return [*found, _Rest(file, frame.index + 1)]
        except SonobreastError as error:
            found.append(_Problem(name, error.what, error.remedy))
        except MemoryError:
            found.append(_Problem(name, "not enough memory for this image", "export it at screen size"))
        return found

    workers = max(1, min(4, os.cpu_count() or 1))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = iter(files)
        # Whole images weigh much more than what the networks see of them
        ahead = workers if keep else AHEAD * BATCH
        queue: list[Future[list[_Prepared | _Problem | _Rest]]] = [
            pool.submit(some, file) for file in islice(waiting, ahead)
        ]
        try:
            while queue:
                found = queue.pop(0).result()
                if found and isinstance(found[-1], _Rest):
                    queue.insert(0, pool.submit(some, found[-1].path, found[-1].first))
                else:
                    queue.extend(pool.submit(some, file) for file in islice(waiting, 1))
                yield from (item for item in found if not isinstance(item, _Rest))
        finally:
            for future in queue:
                future.cancel()


def _batches(items: Iterator[_Prepared | _Problem]) -> Iterator[list[_Prepared | _Problem]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def _rows(predictor: Predictor, items: Sequence[_Prepared], wanted: _Wanted, note: Note) -> list[dict[str, object]]:
    outputs = predictor.run([item.pixels for item in items])
    rows = []
    for k, item in enumerate(items):
        frame = item.frame
        # What the file states goes before what is given
        given = wanted.spacing_mm if frame.spacing_mm is None else None
        try:
            found = predictor.judge(outputs, k, item.width, item.height, given or frame.spacing_mm)
            if wanted.overlays is not None:
                target = _overlay_file(wanted.overlays, item.file, _which(frame.place, frame.index, frame.count, "."))
                write_overlay(target, frame.image, found, predictor.bundle.about.preprocess.aspect)
        except MemoryError:
            note(_Problem(item.file, "not enough memory for this image", "export it at screen size"))
            continue
        if wanted.dicom_out is not None and frame.place is not None:
            try:
                _answer(predictor, item, found, wanted, given)
            except SonobreastError as error:
                note(_Problem(item.file, f"no DICOM output: {error.what}", error.remedy))
        rows.append(row_of(predictor, item.file, frame, found, wanted.spacing_mm, wanted.choice))
    return rows


def _there(wanted: _Wanted, path: Path, file: str, place: Place | None, index: int, count: int) -> bool:
    """Whether a picture that has a row has all else."""
    overlays = wanted.overlays
    if overlays is not None and not os.path.exists(_overlay_file(overlays, file, _which(place, index, count, "."))):
        return False
    if wanted.dicom_out is None or place is None:
        return True
    return os.path.exists(_report_file(wanted, path, file, _which(place, index, count, "-")))


def _overlay_file(folder: Path, file: str, which: str) -> Path:
    """The name with its ending and one more, because a.png and a.jpg are two images; cut where it is too long."""
    last = f"{Path(file).name}{which}"
    if len(last.encode()) > _LONGEST:
        last = f"{last.encode()[:_LONGEST].decode(errors='ignore')}-{hashlib.sha256(last.encode()).hexdigest()[:8]}"
    return predicted_mask_file(folder, file).with_name(f"{last}.png")


def _which(place: Place | None, index: int, count: int, before: str) -> str:
    """What file names say of a picture, so that two of one file have two names, also in calls with other choices."""
    if place is not None:
        return f"{before}{place.name}" if place.name else ""
    return f"#{index}" if count > 1 else ""


def _report_file(wanted: _Wanted, path: Path, file: str, which: str) -> Path:
    """Files of one name in several folders get several answers, and so do several bundles."""
    told = "\0".join((file, wanted.identity, str(wanted.spacing_mm)))
    stem = f"{path.stem}-{hashlib.sha256(told.encode()).hexdigest()[:8]}{which}"
    return (wanted.dicom_out or Path()) / f"{stem}-report.dcm"


def _answer(
    predictor: Predictor, item: _Prepared, found: Prediction, wanted: _Wanted, spacing_mm: float | None
) -> None:
    """Report and segmentation, where an earlier call that was stopped has not written them already."""
    from sonobreast.serving.dicom_answers import write_answers

    place = item.frame.place
    report = _report_file(wanted, item.path, item.file, _which(place, item.frame.index, item.frame.count, "-"))
    if not report.exists():
        stem = report.name.removesuffix("-report.dcm")
        for kind in ("image", "segmentation"):  # the report is written last: without it these belong to nothing
            report.with_name(f"{stem}-{kind}.dcm").unlink(missing_ok=True)
        write_answers(predictor, item.path, found, report.parent, stem=stem, place=place, spacing_mm=spacing_mm)
