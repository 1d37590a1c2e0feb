"""Which files are read as images, how, and what is refused before a pixel is decoded.

A format is known by its first bytes, never by its name alone. `READERS` is the table; another format is one more line
in it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sonobreast.data.preprocess import decode
from sonobreast.errors import SonobreastError

_PICTURES = 4  # all frames of a file may have as many pixels as so many of the largest pictures
_HEAD = 132  # bytes: DICOM's signature stands behind 128 others


@dataclass(frozen=True)
class Limits:
    """What is refused by its header.

    Attributes
    ----------
    bytes : int
        Of a file.
    pixels : int
        Of one picture.
    frames : int
        Pictures in one file.
    """

    bytes: int = 256 << 20
    pixels: int = 50_000_000
    frames: int = 1_000


@dataclass(frozen=True)
class Frame:
    """One picture of a file.

    Attributes
    ----------
    index, count : int
        Which of the file's pictures, from 0, and how many there are.
    image : ndarray, uint8, (H, W, 3)
    spacing_mm : float or None
        Of its pixels, where the file states it.
    """

    index: int
    count: int
    image: NDArray[np.uint8]
    spacing_mm: float | None


@dataclass(frozen=True)
class Reader:
    """A format.

    Attributes
    ----------
    name : str
    suffixes : tuple of str
        By which files of a folder are taken; lower case.
    is_it : callable
        The first 132 bytes of a file -> whether it is this format.
    read : callable
        Content, its name for messages or None, limits, and a frame from which to begin -> frames, decoded one by one.
    """

    name: str
    suffixes: tuple[str, ...]
    is_it: Callable[[bytes], bool]
    read: Callable[[bytes, Path | None, Limits, int], Iterator[Frame]]


def _pillow(*formats: str, frames: bool = False) -> Callable[[bytes, Path | None, Limits, int], Iterator[Frame]]:
    def read(content: bytes, name: Path | None, limits: Limits, first: int) -> Iterator[Frame]:
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


def _dicom(content: bytes, name: Path | None, limits: Limits, first: int) -> Iterator[Frame]:
    """The largest B-mode region of the middle frame; pydicom is loaded with the first such file.

    No identifier leaves the reader: pseudonyms are made with a key that is thrown away.
    """
    from sonobreast.data.dicom import as_rgb, read_dicom

    try:
        image = read_dicom(content, frames="middle", key=os.urandom(32))
    except SonobreastError as error:
        raise SonobreastError(error.what, file=name, remedy=error.remedy) from error
    picture = as_rgb(image.frames[0])
    if picture.shape[0] * picture.shape[1] > limits.pixels:
        raise _too("many pixels", f"{picture.shape[1]}x{picture.shape[0]}", name)
    if first == 0:
        yield Frame(0, 1, picture, _one_spacing(image.spacing_mm))


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
    Reader("DICOM", (".dcm", ".dicom"), lambda head: head[128:132] == b"DICM", _dicom),
)
SUFFIXES = frozenset(s for reader in READERS for s in reader.suffixes)
STATE_SPACING = frozenset((*READERS[-1].suffixes, ""))
"""Endings of files that may state their spacing themselves: those of DICOM, also without one."""


def read(source: Path | bytes, limits: Limits | None = None, *, first: int = 0) -> Iterator[Frame]:
    """Pictures of a file, one at a time.

    Pillow's warnings about odd files are the caller's to quiet (`sonobreast.data.preprocess.quiet`).

    Parameters
    ----------
    source : Path or bytes
    limits : Limits or None
        None: the usual ones.
    first : int
        Frame to begin with.

    Raises
    ------
    SonobreastError
        If the file cannot be read, is larger than the limits allow, is of no known format, or is damaged.
    """
    limits = limits or Limits()
    name = source if isinstance(source, Path) else None
    content = _content(source, limits)
    reader = next((r for r in READERS if r.is_it(content[:_HEAD])), None)
    if reader is None:
        raise SonobreastError(
            "not an image of a known format" if content else "the file is empty",
            file=name,
            remedy=f"give {', '.join(r.name for r in READERS[:-1])} or {READERS[-1].name}",
        )
    yield from reader.read(content, name, limits, first)


def _content(source: Path | bytes, limits: Limits) -> bytes:
    if isinstance(source, bytes):
        size, content = len(source), source
    else:
        try:
            found = source.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe or a device may never end, nor begin
                raise SonobreastError("not a file with content", file=source, remedy="leave it out")
            size, content = found.st_size, b""
            if size <= limits.bytes:
                with source.open("rb") as stream:
                    content = stream.read(limits.bytes + 1)  # it may be growing
                size = len(content)
        except OSError as error:
            raise SonobreastError(
                f"the file cannot be read ({error.strerror})", file=source, remedy="check the file and its permissions"
            ) from error
    if size > limits.bytes:
        name = source if isinstance(source, Path) else None
        raise _too("many bytes", f"{size} (at most {limits.bytes})", name)
    return content


def _too(what: str, found: str, name: Path | None) -> SonobreastError:
    return SonobreastError(f"too {what}: {found}", file=name, remedy="export the picture itself, at screen size")
