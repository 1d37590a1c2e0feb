"""DICOM in: a B-mode ultrasound file to 8-bit pictures, pixel spacing and pseudonyms.

pydicom is imported inside the functions: without it the rest of sonobreast works, and this says what to install. What
is refused, and why, is in ``dicom_header`` (the file), ``dicom_frames`` (the pixels) and ``dicom_regions`` (the
screen). No message and no log holds a patient's name, number, date or UID.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.dicom_frames import read_frames
from sonobreast.data.dicom_header import Header, read_header
from sonobreast.data.dicom_regions import Region, agree, pick, plausible, tissue_regions, without_colour
from sonobreast.data.hush import hushed
from sonobreast.data.pseudonym import pseudonym, pseudonym_key
from sonobreast.errors import SonobreastError

SUFFIXES = frozenset({".dcm", ".dicom"})
OF_SPACING = frozenset({"dicom-no-spacing", "dicom-doubtful-spacing"})
"""Codes of notes that end where somebody gives the spacing."""
_LONGEST_TEXT = 64  # of a Long String (LO); what is longer is damaged
_T = TypeVar("_T")
Sampling = str | int | tuple[int, ...]


@dataclass(frozen=True)
class Note:
    """A sentence that belongs beside a result, and a stable code for it."""

    code: str
    text: str


@dataclass(frozen=True)
class Contents:
    """What a file holds, by its head.

    Attributes
    ----------
    rows, columns : int
        Of the uncut picture.
    n_frames : int
    n_regions : int
        B-mode regions; 0 where the file names no regions.
    """

    rows: int
    columns: int
    n_frames: int
    n_regions: int


@dataclass(frozen=True, eq=False)
class DicomImage:
    """What was read of a file.

    Attributes
    ----------
    frames : tuple of ndarray, uint8, (h, w) or (h, w, 3)
        The sampled frames, cut to the region; grey (0 is black) or RGB.
    numbers : tuple of int
        Which frames these are, from 1 as DICOM counts them.
    n_frames : int
        Frames in the file.
    rows, columns : int
        Size of the uncut picture.
    region : Region or None
        Where the pictures were cut out; None where the file names no regions: then nothing is cut and nothing guessed.
    n_regions : int
        B-mode regions in the file; 2 on a split screen.
    spacing_mm : tuple of 2 float, or None
        Millimetres between rows and between columns: of the region, or PixelSpacing (0028,0030) without regions. None
        also where the file contradicts itself.
    device : str
        Manufacturer and model; empty where not given.
    patient, study, series, image : str
        Keyed hashes of PatientID and of the three UIDs; see `sonobreast.data.pseudonym`. Empty where the file has none.
    modality : str
        "US".
    burned_in : bool or None
        BurnedInAnnotation (0028,0301): whether the scanner wrote text into the picture; None where the file is silent.
    notes : tuple of Note
        What belongs beside a result: frames left out, regions left out, nothing cut away.
    """

    frames: tuple[NDArray[np.uint8], ...]
    numbers: tuple[int, ...]
    n_frames: int
    rows: int
    columns: int
    region: Region | None
    n_regions: int
    spacing_mm: tuple[float, float] | None
    device: str
    patient: str
    study: str
    series: str
    image: str
    modality: str
    burned_in: bool | None
    notes: tuple[Note, ...]


def is_dicom(source: Path | bytes) -> bool:
    """Whether this is a DICOM file: ``DICM`` after 128 bytes, or a file meta group without preamble; or by its ending.

    A file that cannot be opened is judged by its ending alone.
    """
    if isinstance(source, Path):
        if source.suffix.lower() in SUFFIXES:
            return True
        try:
            with source.open("rb") as stream:
                head = stream.read(132)
        except OSError:
            return False
    else:
        head = source[:132]
    return head[128:132] == b"DICM" or (head[:2] == b"\x02\x00" and head[4:6] in (b"UL", b"OB", b"UI"))


def sample(n_frames: int, frames: Sampling) -> tuple[int, ...]:
    """Which frames are read, from 0.

    Parameters
    ----------
    n_frames : int
    frames : {"middle", "first", "last", "ends"}, int or tuple of int
        ``ends``: first, middle and last. A number n: the middles of n equal parts of the clip, so that 1 is the middle
        frame; all frames where there are no more than n. A tuple: these numbers, from 1.

    Raises
    ------
    SonobreastError
        If it is none of these.
    """
    middle = n_frames // 2
    named = {"middle": (middle,), "first": (0,), "last": (n_frames - 1,), "ends": (0, middle, n_frames - 1)}
    if isinstance(frames, tuple):
        if frames and all(1 <= n <= n_frames for n in frames):
            return tuple(n - 1 for n in frames)
        raise SonobreastError(
            f"the frames {', '.join(map(str, frames))} were asked for, there are {n_frames}", remedy="count from 1"
        )
    if isinstance(frames, int) and frames >= 1:
        n = min(frames, n_frames)
        return tuple((2 * i + 1) * n_frames // (2 * n) for i in range(n))
    if frames not in named:
        raise SonobreastError(
            f"the frames to read are given as {frames!r}", remedy="give middle, first, last, ends or a number from 1"
        )
    return tuple(sorted(set(named[str(frames)])))


def read_dicom(
    source: Path | bytes, *, frames: Sampling = "middle", region: str | int = "largest", key: bytes | None = None
) -> DicomImage:
    """Read a B-mode ultrasound file.

    Memory does not grow with the number of frames where ``source`` is a path: only the sampled ones are read.

    Parameters
    ----------
    source : Path or bytes
        The file or its content.
    frames : {"middle", "first", "last", "ends"}, int or tuple of int
        See `sample`.
    region : {"largest"} or int
        See `sonobreast.data.dicom_regions.pick`.
    key : bytes or None
        For the pseudonyms; None: the user's, `sonobreast.data.pseudonym.pseudonym_key`.

    Raises
    ------
    SonobreastError
        If pydicom is not installed; if the file is no B-mode ultrasound, is damaged, or is stored in a way that is not
        read here. The sentence names attributes, never a patient.
    """
    key = pseudonym_key() if key is None else key
    return _reading(source, lambda header: _image(header, frames, pick(tissue_regions(header), region), key))


def contents(source: Path | bytes) -> Contents:
    """What could be read of a file; no pixel is decoded.

    Raises
    ------
    SonobreastError
        As `read_dicom`, for what the head shows.
    """
    return _reading(source, lambda h: Contents(h.rows, h.columns, h.n_frames, len(tissue_regions(h))))


def decode_rgb(source: Path | bytes) -> NDArray[np.uint8]:
    """The largest B-mode region of the middle frame, uint8 (h, w, 3); no identifier is looked at.

    Raises
    ------
    SonobreastError
        As `read_dicom`.
    """

    def read(header: Header) -> NDArray[np.uint8]:
        return as_rgb(_pictures(header, sample(header.n_frames, "middle"), pick(tissue_regions(header), "largest"))[0])

    return _reading(source, read)


def as_rgb(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey or RGB frame as (h, w, 3)."""
    return frame if frame.ndim == 3 else np.repeat(frame[:, :, None], 3, axis=2)


def require(library: str = "pydicom") -> None:
    """Say what to install where a DICOM library is missing.

    Raises
    ------
    SonobreastError
    """
    with suppress(ImportError):
        import_module(library)
        return
    raise SonobreastError(f"DICOM files need {library}", remedy="pip install 'sonobreast[dicom]'")


def _reading(source: Path | bytes, read: Callable[[Header], _T]) -> _T:
    return guarded(source, lambda stream: read(read_header(stream)))


def guarded(source: Path | bytes, work: Callable[[BinaryIO], _T]) -> _T:
    """Open a file and work on it; every error becomes a sentence without identifiers and without a chain to them.

    Raises
    ------
    SonobreastError
        The one that ``work`` raised, with the file's name, or one for whatever else was raised.
    """
    file = source if isinstance(source, Path) else None
    require()
    try:
        with hushed(), _opened(source) as stream:
            return work(stream)
    except SonobreastError as error:
        what, remedy = error.what, error.remedy
    except OSError as error:
        what, remedy = f"the file cannot be read ({error.strerror or 'it ends too early'})", "check the file"
    except MemoryError:
        what, remedy = "the image does not fit into memory", "export it uncompressed, with fewer frames"
    except Exception as error:  # damaged files make the decoders raise anything; their sentences quote the file
        what = f"the file is damaged or not a DICOM image that can be read ({type(error).__name__})"
        remedy = "copy or export the file again; if it opens elsewhere, let the PACS send it uncompressed"
    # Outside of the handlers, so that a traceback does not show the library's words either.
    raise SonobreastError(what, file=file, remedy=remedy)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
    with source.open("rb") if isinstance(source, Path) else BytesIO(source) as stream:
        yield stream


def _pictures(header: Header, indices: tuple[int, ...], region: Region | None) -> tuple[NDArray[np.uint8], ...]:
    left, top, right, bottom = region.box if region is not None else (0, 0, header.columns, header.rows)
    whole = read_frames(header, indices)
    return tuple(without_colour(np.ascontiguousarray(f[top:bottom, left:right])) for f in whole)


def _image(header: Header, frames: Sampling, region: Region | None, key: bytes) -> DicomImage:
    ds = header.dataset
    indices = sample(header.n_frames, frames)
    regions = tissue_regions(header)
    names = {k: _text(ds.get(k)) for k in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    burned_in = {"YES": True, "NO": False}.get(_text(ds.get("BurnedInAnnotation")))
    stated = _pixel_spacing(ds)
    spacing = region.spacing_mm if region is not None else stated
    doubtful = region is not None and spacing is not None and (region.leaves_picture or not agree(spacing, stated))
    spacing = None if doubtful else spacing
    return DicomImage(
        frames=_pictures(header, indices, region),
        numbers=tuple(i + 1 for i in indices),
        n_frames=header.n_frames,
        rows=header.rows,
        columns=header.columns,
        region=region,
        n_regions=len(regions),
        spacing_mm=spacing,
        device=_device(ds),
        patient=pseudonym("patient", names["PatientID"], key),
        study=pseudonym("study", names["StudyInstanceUID"], key),
        series=pseudonym("series", names["SeriesInstanceUID"], key),
        image=pseudonym("image", names["SOPInstanceUID"], key),
        modality="US",
        burned_in=burned_in,
        notes=tuple(_notes(header.n_frames, indices, region, len(regions), burned_in, spacing, doubtful)),
    )


def _notes(
    n_frames: int,
    indices: tuple[int, ...],
    region: Region | None,
    n_regions: int,
    burned_in: bool | None,
    spacing: tuple[float, float] | None,
    doubtful: bool,
) -> Iterator[Note]:
    if len(indices) < n_frames:
        which = ", ".join(str(i + 1) for i in indices)
        yield Note("dicom-clip", f"this is about frame {which} of the {n_frames} frames of the clip")
    if n_regions > 1 and region is not None:
        left, top, right, bottom = region.box
        yield Note(
            "dicom-split-screen",
            f"the screen is split: this is about B-mode region {region.number} of {n_regions} from the left "
            f"(columns {left + 1} to {right}, rows {top + 1} to {bottom})",
        )
    if region is None:
        yield Note(
            "dicom-no-regions",
            "the file names no ultrasound regions: nothing was cut away, also no text at the rim of the screen",
        )
        if burned_in:
            yield Note(
                "dicom-burned-in",
                "the file says that text is burned in (BurnedInAnnotation is YES): it may name the patient",
            )
    if doubtful:
        yield Note(
            "dicom-doubtful-spacing",
            "the pixel spacing of the ultrasound region contradicts PixelSpacing (0028,0030), or the region leaves the "
            "picture, as after resizing: which spacing is right is not known, and no size in millimetres is given",
        )
    elif spacing is None:
        yield Note("dicom-no-spacing", "the file gives no pixel spacing: no size in millimetres")


def _text(value: Any) -> str:
    """A text value; empty where it is longer than DICOM allows or holds control characters: that is damage."""
    text = str(value if value is not None else "").strip("\0 ")
    return text if len(text) <= _LONGEST_TEXT and text.isprintable() else ""


def _device(ds: Any) -> str:
    maker, model = _text(ds.get("Manufacturer")), _text(ds.get("ManufacturerModelName"))
    return model if maker and model.lower().startswith(maker.lower()) else f"{maker} {model}".strip()


def _pixel_spacing(ds: Any) -> tuple[float, float] | None:
    values = ds.get("PixelSpacing")
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != 2:
        return None
    return plausible(float(values[0]), float(values[1]))
