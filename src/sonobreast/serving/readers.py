"""Which files are read as images, how, and what is refused before a pixel is decoded.

A format is known by its first bytes, never by its name alone. `READERS` is the table; another format is one more line
in it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sonobreast.data.dicom import OF_SPACING, Note, as_rgb, contents, is_dicom, read_dicom, sample
from sonobreast.data.preprocess import decode, is_mask
from sonobreast.errors import SonobreastError

_PICTURES = 4  # all frames of a file may have as many pixels as so many of the largest pictures
_HEAD = 132  # bytes: DICOM's signature stands behind 128 others


@dataclass(frozen=True)
class Limits:
    """What is refused by its header.

    Attributes
    ----------
    bytes : int
        Of a file; one of DICOM is not read as a whole, and may be larger.
    pixels : int
        Of one picture.
    frames : int
        Pictures in one file.
    """

    bytes: int = 256 << 20
    pixels: int = 50_000_000
    frames: int = 1_000


@dataclass(frozen=True)
class Choice:
    """Which pictures of a DICOM file are judged; other formats have no such choice. From words: `choice_of`.

    Attributes
    ----------
    frames : {"middle", "first", "last", "ends"} or int
        See `sonobreast.data.dicom.sample`.
    region : {"largest", "each"} or int
        Of a split screen; a number counts the B-mode regions from the left, from 1.
    """

    frames: str | int = "middle"
    region: str | int = "largest"

    def __str__(self) -> str:
        """What stands in tables, such as ``middle/largest``."""
        return f"{self.frames}/{self.region}"


@dataclass(frozen=True)
class Place:
    """Where in a DICOM file a picture comes from.

    Attributes
    ----------
    frame, frames : int
        Frame, from 1 as DICOM counts, and how many the file has.
    region, regions : int
        B-mode region from the left, from 1, and how many there are; both 0 where the file names none.
    """

    frame: int
    frames: int
    region: int
    regions: int

    @property
    def name(self) -> str:
        """What tells it from other pictures of the file in file names; empty where there can be no other."""
        parts = [f"frame{self.frame}"] if self.frames > 1 else []
        return "-".join(parts + ([f"region{self.region}"] if self.regions > 1 else []))


@dataclass(frozen=True)
class Frame:
    """One picture of a file.

    Attributes
    ----------
    index, count : int
        Which of the pictures that are judged, from 0, and how many these are.
    image : ndarray, uint8, (H, W, 3)
    spacing_mm : float or None
        Of its pixels, where the file states it.
    place : Place or None
        Of DICOM.
    notes : tuple of Note
        What belongs beside a result: parts of the file that this is not about, what is not known.
    """

    index: int
    count: int
    image: NDArray[np.uint8]
    spacing_mm: float | None
    place: Place | None = None
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A format.

    Attributes
    ----------
    name : str
    suffixes : tuple of str
        By which files of a folder are taken; lower case. DICOM is taken without, too.
    is_it : callable
        The first 132 bytes of a file -> whether it is this format.
    read : callable
        The file or its content, limits, a frame from which to begin, and a choice -> frames, decoded one by one.
    """

    name: str
    suffixes: tuple[str, ...]
    is_it: Callable[[bytes], bool]
    read: Callable[[Path | bytes, Limits, int, Choice], Iterator[Frame]]


def choice_of(frames: str, region: str) -> Choice:
    """A choice from the words of the command line.

    Raises
    ------
    SonobreastError
        If they name none.
    """
    choice = Choice(int(frames) if frames.isdecimal() else frames, int(region) if region.isdecimal() else region)
    sample(1, choice.frames)
    if choice.region not in ("largest", "each") and (isinstance(choice.region, str) or choice.region < 1):
        raise SonobreastError(
            f"the region to read is given as {region!r}", remedy="give largest, each or a number from 1 (from the left)"
        )
    return choice


def _pillow(*formats: str, frames: bool = False) -> Callable[[Path | bytes, Limits, int, Choice], Iterator[Frame]]:
    def read(source: Path | bytes, limits: Limits, first: int, choice: Choice) -> Iterator[Frame]:
        name = source if isinstance(source, Path) else None
        content = _content(source, limits)
        count = 1
        try:
            with Image.open(BytesIO(content), formats=formats) as opened:  # reads the header only
                count = int(getattr(opened, "n_frames", 1)) if frames else 1
                if count > limits.frames:
                    raise _too("many pictures", f"{count} (at most {limits.frames})", name)
                total = 0
                for k in range(count):
                    opened.seek(k)
                    total += opened.width * opened.height
                    if total > limits.pixels * _PICTURES:
                        raise _too("many pixels", f"{total / 1e6:.0f} million in {count} pictures", name)
                    if opened.width * opened.height > limits.pixels:
                        size = f"{opened.width}x{opened.height} (at most {limits.pixels / 1e6:g} million pixels)"
                        raise _too("many pixels", size, name)
        except SonobreastError:
            raise
        except Exception as error:  # Pillow's readers raise whatever their formats bring
            raise SonobreastError(
                f"not a readable image ({str(error)[:200] or type(error).__name__})",
                file=name,
                remedy="replace the file with an undamaged copy, or leave it out",
            ) from error
        for k in range(first, count):
            yield Frame(k, count, _decoded(content, k, name), None)

    return read


def _decoded(content: bytes, frame: int, name: Path | None) -> NDArray[np.uint8]:
    try:
        return decode(content, frame)
    except SonobreastError as error:
        raise SonobreastError(error.what, file=name, remedy=error.remedy) from error


def _dicom(source: Path | bytes, limits: Limits, first: int, choice: Choice) -> Iterator[Frame]:
    """Chosen frames, of each the chosen regions from the left; a clip in a file is read frame by frame, however long.

    No identifier leaves the reader: pseudonyms are made with a key that is thrown away.
    """
    name = source if isinstance(source, Path) else None
    if isinstance(source, bytes):
        _content(source, limits)
    key = os.urandom(32)
    there = contents(source)
    if there.rows * there.columns > limits.pixels:
        raise _too("many pixels", f"{there.columns}x{there.rows} (at most {limits.pixels / 1e6:g} million)", name)
    regions = range(1, there.n_regions + 1) if choice.region == "each" and there.n_regions else (choice.region,)
    with _named(name):
        wanted = [(n + 1, r) for n in sample(there.n_frames, choice.frames) for r in regions]
    if len(wanted) > limits.frames:
        raise _too("many pictures", f"{len(wanted)} (at most {limits.frames})", name)
    for index, (number, region) in enumerate(wanted[first:], start=first):
        which = f"frame {number}, region {region}: " if len(wanted) > 1 else ""
        with _named(name, which):
            image = read_dicom(source, frames=(number,), region="largest" if region == "each" else region, key=key)
        place = Place(number, image.n_frames, 0 if image.region is None else image.region.number, image.n_regions)
        spacing = _one_spacing(image.spacing_mm)
        yield Frame(index, len(wanted), as_rgb(image.frames[0]), spacing, place, image.notes)


@contextmanager
def _named(name: Path | None, which: str = "") -> Iterator[None]:
    """Errors say of which file and picture they are."""
    try:
        yield
    except SonobreastError as error:
        raise SonobreastError(which + error.what, file=name, remedy=error.remedy) from error


def refuse_mask(frame: Frame) -> None:
    """A mask is never read as an image.

    Raises
    ------
    SonobreastError
    """
    if is_mask(frame.image):
        raise SonobreastError("black and white only: a mask or an empty picture, not a scan", remedy="leave it out")


def beside(notes: tuple[Note, ...], spacing_mm: float | None) -> tuple[Note, ...]:
    """Notes of a file, without those that end where somebody gives the spacing."""
    return notes if spacing_mm is None else tuple(n for n in notes if n.code not in OF_SPACING)


def _one_spacing(spacing: tuple[float, float] | None) -> float | None:
    """Rows and columns of a scan are as far apart as each other, or no length is given."""
    if spacing is None or abs(spacing[0] - spacing[1]) > 0.01 * max(spacing):
        return None
    return sum(spacing) / 2


READERS: tuple[Reader, ...] = (
    Reader("PNG", (".png",), lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), _pillow("PNG")),
    Reader("JPEG", (".jpg", ".jpeg"), lambda head: head.startswith(b"\xff\xd8\xff"), _pillow("JPEG", "MPO")),
    Reader("BMP", (".bmp",), lambda head: head.startswith(b"BM"), _pillow("BMP")),
    # A multi-frame TIFF is a film or a stack: each of its pictures gets a row.
    Reader(
        "TIFF",
        (".tif", ".tiff"),
        lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        _pillow("TIFF", frames=True),
    ),
    Reader("DICOM", (".dcm", ".dicom"), is_dicom, _dicom),
)
USUAL = Choice()
SUFFIXES = frozenset(s for reader in READERS for s in reader.suffixes)


def read(
    source: Path | bytes, limits: Limits | None = None, *, first: int = 0, choice: Choice = USUAL
) -> Iterator[Frame]:
    """Pictures of a file, one at a time.

    Pillow's warnings about odd files are the caller's to quiet (`sonobreast.data.preprocess.quiet`).

    Parameters
    ----------
    source : Path or bytes
    limits : Limits or None
        None: the usual ones.
    first : int
        Frame to begin with.
    choice : Choice
        Frames and regions of a DICOM file; without one the largest region of the middle frame.

    Raises
    ------
    SonobreastError
        If the file cannot be read, is larger than the limits allow, is of no known format, or is damaged.
    """
    limits = limits or Limits()
    head = _head(source)
    reader = next((r for r in READERS if r.is_it(head)), None)
    if reader is None:
        raise SonobreastError(
            "not an image of a known format" if head else "the file is empty",
            file=source if isinstance(source, Path) else None,
            remedy=f"give {', '.join(r.name for r in READERS[:-1])} or {READERS[-1].name}",
        )
    yield from reader.read(source, limits, first, choice)


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD]
    with _opening(source):
        if not stat.S_ISREG(source.stat().st_mode):  # a pipe or a device may never end, nor begin
            raise SonobreastError("not a file with content", file=source, remedy="leave it out")
        with source.open("rb") as stream:
            return stream.read(_HEAD)


def _content(source: Path | bytes, limits: Limits) -> bytes:
    name = None
    if isinstance(source, bytes):
        size, content = len(source), source
    else:
        name = source
        with _opening(source):
            size, content = source.stat().st_size, b""
            if size <= limits.bytes:
                with source.open("rb") as stream:
                    content = stream.read(limits.bytes + 1)  # it may be growing
                size = len(content)
    if size > limits.bytes:
        raise _too("many bytes", f"{size} (at most {limits.bytes})", name)
    return content


@contextmanager
def _opening(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SonobreastError(
            f"the file cannot be read ({error.strerror})", file=file, remedy="check the file and its permissions"
        ) from error


def _too(what: str, found: str, name: Path | None) -> SonobreastError:
    return SonobreastError(f"too {what}: {found}", file=name, remedy="export the picture itself, at screen size")
