"""Many files to one table: streamed, with constant memory, past what cannot be read, and resumed after a kill.

``inference.csv`` grows row by row. Rows are on the disk before their files count as done, a torn last line is dropped
at the next start, and a file with a row is never predicted again. Files that could not be read stand in
``inference-problems.csv``, which begins anew with every start: they are tried again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.dicom import is_dicom
from sonobreast.data.listing import MASK_FOLDERS, MASK_NAME, printable, visible
from sonobreast.data.masks_out import predicted_mask_file
from sonobreast.data.preprocess import is_mask, quiet
from sonobreast.errors import SonobreastError
from sonobreast.records import disk_error, write_table
from sonobreast.serving.inference_table import Key, alone, append, columns_of, resume, row_of
from sonobreast.serving.overlay import write_overlay
from sonobreast.serving.predictor import Prediction, Predictor
from sonobreast.serving.readers import SUFFIXES, USUAL, Choice, Frame, Limits, read

BATCH = 8
AHEAD = 2  # batches that are decoded in advance
PROBLEM_COLUMNS = ("file", "what", "remedy")
_NOTHING = np.empty((0, 0, 3), np.uint8)
Progress = Callable[[str, int, int], None]


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


def find_files(paths: Sequence[Path], without: Sequence[Path] = ()) -> tuple[list[Path], int]:
    """Files that were named, and those below folders that are images; masks are counted and left out.

    An image ends as one does; DICOM is known by its content, because files of a PACS often have no ending.

    A mask is ``NAME_mask.EXT`` beside an image ``NAME``, or lies in a folder that is called after masks. A file that is
    named itself is always taken.

    Parameters
    ----------
    paths : sequence of Path
    without : sequence of Path
        Folders that are not looked into: pictures that this program writes are no scans.

    Raises
    ------
    SonobreastError
        If a path does not exist, or there is no image anywhere.
    """
    found: dict[str, Path] = {}  # by where they are: a file is predicted once, however it was named
    masks = 0
    skipped = {os.path.realpath(folder) for folder in without}
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


def _below(folder: Path, skipped: set[str], depth: int = 0) -> tuple[list[Path], int]:
    found: list[Path] = []
    masks = 0
    here = visible(folder)
    images = [p for p in here if not p.is_dir() and (p.suffix.lower() in SUFFIXES or (p.is_file() and is_dicom(p)))]
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
        if path.is_dir() and not path.is_symlink() and os.path.realpath(path) not in skipped:
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
        Folder for a picture of each image.
    dicom_out : Path or None
        Folder for a report and a segmentation of each DICOM file; what could not be written stands with the problems.
    spacing_mm : float or None
        Of the pixels of all images, where it is known.
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
        If there is nothing to read; if the table is of another bundle, spacing or choice, or is none; if it cannot be
        written.
    """
    tell = progress or (lambda stage, done, total: None)
    files, masks = find_files(paths, [folder for folder in (overlays, dicom_out) if folder is not None])
    columns = columns_of(predictor)
    problems: list[_Problem] = []
    kept = predicted = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with quiet(), out.open("ab") as table:
            alone(table, out)
            done = resume(out, columns, predictor.identity, spacing_mm, choice)
            kept = len(done.frames)
            todo = [f for f in files if shown(f) not in done.complete]
            finished = len(files) - len(todo)
            tell("predicting", finished, len(files))
            waiting = _prepared(predictor, todo, done.frames, limits or Limits(), choice, keep=overlays is not None)
            for batch in _batches(waiting):
                items = [item for item in batch if isinstance(item, _Prepared)]
                problems += [item for item in batch if isinstance(item, _Problem)]
                finished += sum(_ends(item) for item in batch)
                rows = _rows(predictor, items, overlays, spacing_mm, dicom_out, choice, problems) if items else []
                append(table, columns, rows)
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


def _ends(item: _Prepared | _Problem) -> int:
    return int(isinstance(item, _Problem) or item.frame.index == item.frame.count - 1)


def _prepared(
    predictor: Predictor, files: Sequence[Path], frames: set[Key], limits: Limits, choice: Choice, *, keep: bool
) -> Iterator[_Prepared | _Problem]:
    """Images as the networks see them, in order; a few files are decoded ahead, in threads.

    Of a clip no more than a batch is held at a time.
    """

    def some(file: Path, first: int = 0) -> tuple[list[_Prepared | _Problem], int]:
        """A batch of a file, and the picture to go on with; 0 where there are no more."""
        name = shown(file)
        found: list[_Prepared | _Problem] = []
        following = 0
        try:
            for frame in islice(read(file, limits, first=first, choice=choice), BATCH):
                following = (frame.index + 1) % frame.count
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
            following = 0
        except MemoryError:
            found.append(_Problem(name, "not enough memory for this image", "export it at screen size"))
            following = 0
        return found, following

    workers = max(1, min(4, os.cpu_count() or 1))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = iter(files)
        queue: list[tuple[Path, Future[tuple[list[_Prepared | _Problem], int]]]] = [
            (file, pool.submit(some, file)) for file in islice(waiting, AHEAD * BATCH)
        ]
        try:
            while queue:
                file, future = queue.pop(0)
                found, following = future.result()
                if following:
                    queue.insert(0, (file, pool.submit(some, file, following)))
                else:
                    queue.extend((file, pool.submit(some, file)) for file in islice(waiting, 1))
                yield from found
        finally:
            for _, future in queue:
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
    choice: Choice,
    problems: list[_Problem],
) -> list[dict[str, object]]:
    outputs = predictor.run([item.pixels for item in items])
    rows = []
    for k, item in enumerate(items):
        spacing = item.frame.spacing_mm if spacing_mm is None else spacing_mm
        found = predictor.judge(outputs, k, item.width, item.height, spacing)
        if overlays is not None:
            # The ending stays in the name: a.png and a.jpg are two images
            named = f"{Path(item.file).name}{_which(item.frame, '.')}.png"
            target = predicted_mask_file(overlays, item.file).with_name(named)
            write_overlay(target, item.frame.image, found, predictor.bundle.about.preprocess.aspect)
        if dicom_out is not None and item.frame.place is not None:
            try:
                _answer(predictor, item, found, dicom_out, spacing_mm)
            except SonobreastError as error:
                problems.append(_Problem(item.file, f"no DICOM output: {error.what}", error.remedy))
        rows.append(row_of(predictor, item.file, item.frame, found, spacing_mm, choice))
    return rows


def _which(frame: Frame, before: str) -> str:
    """What file names say of a picture, so that two of one file have two names, also in calls with other choices."""
    if frame.place is not None:
        return f"{before}{frame.place.name}" if frame.place.name else ""
    return f"{before}{frame.index}.png" if frame.count > 1 else ""


def _answer(predictor: Predictor, item: _Prepared, found: Prediction, folder: Path, spacing_mm: float | None) -> None:
    """Report and segmentation, where an earlier call that was stopped has not written them already."""
    from sonobreast.serving.dicom_answers import write_answers

    # Files of one name in several folders get several answers, and so do several bundles
    told = "\0".join((item.file, predictor.identity, str(spacing_mm)))
    stem = f"{item.path.stem}-{hashlib.sha256(told.encode()).hexdigest()[:8]}{_which(item.frame, '-')}"
    if not (folder / f"{stem}-report.dcm").exists():
        for kind in ("image", "segmentation"):  # the report is written last: without it these belong to nothing
            (folder / f"{stem}-{kind}.dcm").unlink(missing_ok=True)
        write_answers(predictor, item.path, found, folder, stem=stem, place=item.frame.place, spacing_mm=spacing_mm)
