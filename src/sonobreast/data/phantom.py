"""The embedded data set: simulated breast ultrasound with lesions, masks and BI-RADS descriptors.

Image ``index`` of seed ``seed`` is the same whatever the number of images, their order or the size asked for: tissue
is drawn in millimetres and sampled last. The image formation is in ``speckle``, the tissue in ``anatomy``, the lesions
in ``lesion``, each with its sources.

Classes come in equal thirds, not in BUSI's 56/27/17 %: there, always saying "benign" is right in 56 %, and a data set
for a first lesson should not hide chance so high.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sonobreast.data.anatomy import MARGIN_MM, Habitus, build_tissue, draw_habitus
from sonobreast.data.atomic import cannot_write, encode_png, part_path, write_whole
from sonobreast.data.lesion import LABELS, Descriptors, Label, Outline, draw_descriptors, draw_outline, mask
from sonobreast.data.speckle import U8, Grid, Scanner, attenuation_db, compress, envelope, scan_convert
from sonobreast.errors import SonobreastError

SCHEMA_VERSION = 1
GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other bytes; an interrupted folder of another version is not resumed."""
SIZE_RANGE = (32, 4096)
RECORD = "phantom.json"
MANIFEST = "manifest.csv"
COLUMNS = (
    *("image", "label", "group", "patient", "mask", "width", "height", "spacing_mm"),
    *("shape", "margin", "orientation", "echo_pattern", "posterior", "halo", "size_mm"),
    *("sha256", "source", "schema_version"),
)
SLICES = (1, 1, 1, 2, 3)
"""Images of the five patients that a class has in a block of 24 images: 1.6 a patient on average."""
_BLOCK = 3 * sum(SLICES)
_PLAN, _PATIENT, _SLICE = range(3)


@dataclass(frozen=True, eq=False)
class Phantom:
    """One simulated image.

    Attributes
    ----------
    image : uint8 (H, W)
        Grey levels, 0-255.
    mask : bool (H, W)
        The lesion; all false in a normal image.
    label : {"benign", "malignant", "normal"}
    descriptors : Descriptors or None
        None in a normal image.
    patient : str
        Such as ``P0001``; one to three images share a patient, and with it breast, scanner and lesion.
    spacing_mm : float
        Pixel spacing, the same in both directions.
    """

    image: U8
    mask: npt.NDArray[np.bool_]
    label: Label
    descriptors: Descriptors | None
    patient: str
    spacing_mm: float


@dataclass(frozen=True)
class Slot:
    """Where an index stands: class, patient number from 1, slice of the patient from 0, and number in its class."""

    label: Label
    patient: int
    slice: int
    number: int

    @property
    def stem(self) -> str:
        """Path of the image without its ending, as BUSI names it: ``benign/benign (1)``."""
        return f"{self.label}/{self.label} ({self.number})"


def slot(index: int, *, seed: int) -> Slot:
    """Class and patient of an image.

    Any three images that begin at a multiple of three hold one of each class, and every 24 hold 15 patients, so that
    the plan of an image does not hang on how many follow.
    """
    block, place = divmod(index, _BLOCK)
    rng = np.random.default_rng([seed, _PLAN, block])
    order = np.stack([rng.permutation(3) for _ in range(_BLOCK // 3)])
    within = [(patient, i) for patient, count in enumerate(SLICES) for i in range(count)]
    seats = {name: [within[k] for k in rng.permutation(len(within))] for name in LABELS}
    names = rng.permutation(3 * len(SLICES))
    label = LABELS[int(order[place // 3, place % 3])]
    patient, which = seats[label][place // 3]
    person = block * len(names) + int(names[LABELS.index(label) * len(SLICES) + patient]) + 1
    return Slot(label, person, which, index // 3 + 1)


def _draw_scanner(rng: np.random.Generator) -> Scanner:
    """Probe and settings of one patient's examination; drawn without regard to the class."""
    frequency = rng.uniform(8.0, 11.0)
    return Scanner(
        frequency_mhz=frequency,
        bandwidth=rng.uniform(0.28, 0.38),
        f_number=rng.uniform(1.8, 2.3),
        focus_mm=rng.uniform(8.0, 14.0),
        depth_of_field_mm=rng.uniform(11.0, 18.0),
        dynamic_range_db=rng.uniform(54.0, 68.0),
        gain_db=rng.uniform(-24.0, -12.0),
        tgc_slope=rng.uniform(0.52, 0.86),
        noise_db=rng.uniform(-86.0, -73.0),
        looks=int(rng.integers(2, 4)),
        gamma=rng.uniform(0.85, 1.25),
    )


def _place(rng: np.random.Generator, outline: Outline, *, depth_mm: float, gland_mm: float) -> Outline:
    """Put a lesion into the gland, whole in the picture and clear of the skin."""
    width, height = outline.extent_mm
    (left, top), (right, bottom) = outline.points_mm.min(axis=0), outline.points_mm.max(axis=0)
    low, high = 3.2 - top, max(3.3 - top, min(gland_mm - 0.5 * height, 0.8 * depth_mm - bottom))
    side = 0.06 * depth_mm
    x = rng.uniform(side - left, depth_mm - side - right) if width < depth_mm - 2 * side else depth_mm / 2
    return replace(outline, x_mm=float(x), z_mm=float(rng.uniform(low, high)))


@dataclass(frozen=True, eq=False)
class _Case:
    """All that is drawn before the picture is: cheap, and enough for a row of the manifest."""

    where: Slot
    grid: Grid
    habitus: Habitus
    scanner: Scanner
    shift_mm: float
    lesion: tuple[Descriptors, Outline, np.random.Generator] | None
    tissue_rng: np.random.Generator
    slice_rng: np.random.Generator

    @property
    def descriptors(self) -> Descriptors | None:
        return None if self.lesion is None else self.lesion[0]

    @property
    def patient(self) -> str:
        return f"P{self.where.patient:04d}"


def _draw_case(index: int, *, seed: int) -> _Case:
    """Draw patient, scanner, probe position and lesion of an image."""
    where = slot(index, seed=seed)
    # One generator a purpose, so that a class that draws a lesion does not change the normal anatomy that follows.
    tissue_rng, scan_rng, lesion_rng = np.random.default_rng([seed, _PATIENT, where.patient]).spawn(3)
    slice_rng = np.random.default_rng([seed, _SLICE, where.patient, where.slice])
    depth = float(tissue_rng.uniform(30.0, 46.0))
    habitus = draw_habitus(tissue_rng, depth_mm=depth)
    scanner = _draw_scanner(scan_rng)
    scanner = replace(scanner, gain_db=scanner.gain_db + float(slice_rng.normal(0.0, 1.0)))
    shift = float(slice_rng.uniform(-MARGIN_MM / 2, MARGIN_MM / 2))
    lesion: tuple[Descriptors, Outline, np.random.Generator] | None = None
    if where.label != "normal":
        described = draw_descriptors(lesion_rng, where.label, depth_mm=depth)
        # Another slice cuts the same lesion off its middle, so it is smaller there.
        cut = 1.0 if where.slice == 0 else float(slice_rng.uniform(0.8, 1.0))
        described = replace(described, size_mm=round(described.size_mm * cut, 1))
        gland_end = habitus.skin_mm + habitus.fat_mm + habitus.gland_mm
        outline = draw_outline(lesion_rng, described)
        lesion = described, _place(slice_rng, outline, depth_mm=depth, gland_mm=gland_end), lesion_rng
    return _Case(where, Grid(depth, depth), habitus, scanner, shift, lesion, tissue_rng, slice_rng)


def simulate(index: int, *, seed: int, size: int = 256) -> Phantom:
    """Simulate one image.

    Parameters
    ----------
    index : int
        Which image of the data set, from 0.
    seed : int
        Which data set, 0 or more.
    size : int
        Height and width, pixels, 32-4096. The picture is 30-46 mm wide and deep whatever its size.

    Returns
    -------
    Phantom

    Raises
    ------
    SonobreastError
        If index or seed is negative or the size out of range.
    """
    _check(n=1, seed=seed, size=size)
    if index < 0:
        raise SonobreastError(f"image {index} does not exist", remedy="count images from 0")
    case = _draw_case(index, seed=seed)
    grid, scanner = case.grid, case.scanner
    tissue = build_tissue(case.tissue_rng, grid, scanner, case.habitus, shift_mm=case.shift_mm, lesion=case.lesion)
    background = attenuation_db(np.broadcast_to(tissue.background, grid.shape), grid, scanner)[:, :1]
    amplitude = envelope(
        case.slice_rng,
        grid,
        scanner,
        echo_db=tissue.echo_db,
        specular=tissue.specular,
        loss_db=attenuation_db(tissue.attenuation, grid, scanner),
        tgc_db=background * np.float32(scanner.tgc_slope),
    )
    white = float(10.0 ** (-scanner.gain_db / 20.0))
    level = compress(amplitude, scanner.dynamic_range_db, full_scale=white, gamma=scanner.gamma)
    outlined = np.zeros((size, size), dtype=bool)
    if case.lesion is not None:
        outlined = mask(case.lesion[1], size, depth_mm=grid.depth_mm, width_mm=grid.width_mm)
    return Phantom(
        image=scan_convert(level, size),
        mask=outlined,
        label=case.where.label,
        descriptors=case.descriptors,
        patient=case.patient,
        spacing_mm=grid.depth_mm / size,
    )


def _check(*, n: int, seed: int, size: int) -> None:
    if n < 1:
        raise SonobreastError(f"{n} images were asked for", remedy="ask for 1 or more")
    if seed < 0:
        raise SonobreastError(f"the seed is {seed}", remedy="give a whole number, 0 or more")
    if not SIZE_RANGE[0] <= size <= SIZE_RANGE[1]:
        remedy = f"give a size from {SIZE_RANGE[0]} to {SIZE_RANGE[1]} pixels"
        raise SonobreastError(f"images of {size} x {size} pixels cannot be simulated", remedy=remedy)


def write(
    out: Path,
    *,
    n: int,
    seed: int,
    size: int = 256,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set in BUSI's layout, with ``manifest.csv``.

    Every file is written under another name and renamed, so none is ever half there. ``phantom.json`` is written first
    and says which call this is; it is marked complete last. A folder whose ``phantom.json`` names the same parameters
    and is not complete is an interrupted run, and the same call goes on with it; the bytes are those of a run that was
    never interrupted.

    Parameters
    ----------
    out : Path
        Folder; made if missing.
    n, seed, size : int
        Number of images, data set, and pixels of a side.
    force : bool
        Write into a folder that is not empty. Only files that an earlier ``phantom.json`` accounts for are replaced or
        removed; every other file stays, and one that stands where an image should go is an error.
    progress : callable, optional
        Called with (images done, images in all) after each image.

    Returns
    -------
    Path
        The manifest.

    Raises
    ------
    SonobreastError
        n < 1, seed < 0, a size out of range; ``out`` is a file, is not empty and not the same run interrupted, holds
        foreign files under the names to be written, or cannot be written to.
    """
    _check(n=n, seed=seed, size=size)
    wanted = _record(n=n, seed=seed, size=size, complete=False)
    slots = [slot(index, seed=seed) for index in range(n)]
    try:
        resumed = _claim(out, wanted, slots, force=force)
        rows: list[dict[str, object]] = []
        for done, row in enumerate(_written(out, slots, seed=seed, size=size, keep=resumed), start=1):
            rows.append(row)
            if progress is not None:
                progress(done, n)
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_whole(out / MANIFEST, text.getvalue().encode())
        write_whole(out / RECORD, _encode(wanted | {"complete": True}))
    except OSError as problem:
        raise cannot_write(problem, out) from problem
    return out / MANIFEST


def is_complete(out: Path, *, n: int, seed: int, size: int = 256) -> bool:
    """Whether ``write`` has finished this very data set in ``out``; a caller that repeats itself asks this first."""
    return _read_record(out) == _record(n=n, seed=seed, size=size, complete=True)


def _record(*, n: int, seed: int, size: int, complete: bool) -> dict[str, object]:
    """Content of ``phantom.json``."""
    about = {"generator": "sonobreast phantom", "generator_version": GENERATOR_VERSION}
    return {**about, "n": n, "seed": seed, "size": size, "complete": complete}


def _encode(record: dict[str, object]) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode()


def _read_record(out: Path) -> dict[str, object] | None:
    """The folder's ``phantom.json``; None where there is none, or one that this package did not write."""
    try:
        record = json.loads((out / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and record.get("generator") == "sonobreast phantom"
    if not ours or not all(type(record.get(key)) is int for key in ("n", "seed")):
        return None
    return dict(record)


def _claim(out: Path, wanted: dict[str, object], slots: list[Slot], *, force: bool) -> bool:
    """Make ``out`` ready to be written to; True where an interrupted run of the same call is gone on with."""
    if out.exists() and not out.is_dir():
        raise SonobreastError("the output is a file, not a folder", file=out, remedy="name another folder")
    out.mkdir(parents=True, exist_ok=True)
    found = _read_record(out)
    resumed = found == wanted
    # A run that was killed before its first rename leaves nothing but its unfinished record.
    occupied = any(entry.name != part_path(out / RECORD).name for entry in out.iterdir())
    if occupied and not resumed:
        if not force:
            what = "the folder is not empty"
            if found is not None and found.get("complete") is True:
                what += ": it holds a finished data set"
            elif found is not None:
                what += ": it holds an unfinished data set of other parameters"
            remedy = "name a new folder, or allow replacing the simulated files in this one (--force)"
            raise SonobreastError(what, file=out, remedy=remedy)
        earlier: set[str] = set()
        if found is not None:
            count, old = int(str(found["n"])), int(str(found["seed"]))
            earlier = {name for i in range(count) for name in _names(slot(i, seed=old))} | {MANIFEST, RECORD}
        for name in (RECORD, MANIFEST, *(name for where in slots for name in _names(where))):
            if name not in earlier and (out / name).exists():
                remedy = "name another folder: --force replaces simulated files only"
                raise SonobreastError("this file was not written by the generator", file=out / name, remedy=remedy)
        # The record goes last, so that a run interrupted here still knows what it may remove.
        for name in sorted(earlier - {RECORD}):
            (out / name).unlink(missing_ok=True)
    if not resumed:
        write_whole(out / RECORD, _encode(wanted))
    for label in LABELS:
        (out / label).mkdir(exist_ok=True)
    for name in (RECORD, MANIFEST, *(name for where in slots for name in _names(where))):
        part_path(out / name).unlink(missing_ok=True)
    return resumed


def _names(where: Slot) -> tuple[str, str]:
    """Image and mask of a slot, relative to the folder."""
    return f"{where.stem}.png", f"{where.stem}_mask.png"


def _written(out: Path, slots: list[Slot], *, seed: int, size: int, keep: bool) -> Iterator[dict[str, object]]:
    """Write each image with its mask and yield its row of the manifest, in order.

    Threads: NumPy, SciPy and zlib let go of the interpreter's lock in the work that counts, and each image has
    generators of its own, so that their number changes no byte.
    """

    def one(index: int) -> dict[str, object]:
        image_name, mask_name = _names(slots[index])
        if not (keep and _whole(out / image_name, size) and _whole(out / mask_name, size)):
            phantom = simulate(index, seed=seed, size=size)
            write_whole(out / mask_name, encode_png(phantom.mask.astype(np.uint8) * np.uint8(255)))
            write_whole(out / image_name, encode_png(phantom.image))
        digest = hashlib.sha256((out / image_name).read_bytes()).hexdigest()
        return _row(_draw_case(index, seed=seed), size, digest)

    workers = max(1, min(8, os.cpu_count() or 1))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = iter(range(len(slots)))
        # A few at a time: an interruption must not wait for a thousand images, nor memory hold them.
        queue = [pool.submit(one, index) for index in islice(waiting, 2 * workers)]
        while queue:
            row = queue.pop(0).result()
            queue.extend(pool.submit(one, index) for index in islice(waiting, 1))
            yield row


def _whole(path: Path, size: int) -> bool:
    """Whether a picture of an interrupted run can be kept; a rename may outlive its content when the power fails."""
    try:
        with Image.open(path) as picture:
            picture.verify()
            return picture.size == (size, size)
    except (OSError, SyntaxError):
        return False


def _row(case: _Case, size: int, digest: str) -> dict[str, object]:
    """One row of the manifest; descriptor cells of a normal image are empty."""
    image_name, mask_name = _names(case.where)
    row: dict[str, object] = dict.fromkeys(COLUMNS, "")
    if case.descriptors is not None:
        row |= vars(case.descriptors) | {"halo": "present" if case.descriptors.halo else "absent"}
    row |= {"image": image_name, "label": case.where.label, "group": case.patient, "patient": case.patient}
    row |= {"mask": mask_name, "width": size, "height": size, "spacing_mm": f"{case.grid.depth_mm / size:.6f}"}
    return row | {"sha256": digest, "source": "phantom", "schema_version": SCHEMA_VERSION}
