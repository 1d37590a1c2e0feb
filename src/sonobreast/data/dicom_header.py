"""The head of a DICOM ultrasound file: what is needed of it, and every reason not to read on. No pixel is decoded here.

Sentences name attributes by keyword and tag, as a PACS does, and never quote a text value of the file: a damaged length
can move a patient's name into any text.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from typing import Any, BinaryIO, cast

from sonobreast.errors import SonobreastError

MAX_FRAME_PIXELS = 1 << 26
"""Rows x Columns, 67 million: more than any scanner, less than a bomb."""
MAX_FRAMES = 100_000
MAX_INFLATED = 256 << 20
"""Bytes that a deflated file may grow to; deflate packs up to a thousand to one."""
MAX_READS = 200_000
"""Reads of the head, about three an element. Scanners write some thousand elements; a file that is made for it holds
millions of empty ones, and takes minutes."""
MAX_REGIONS = 64
"""Ultrasound regions; a screen has one to five."""

NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"})
_DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
JPEG = {"1.2.840.10008.1.2.4.50": "JPEG Baseline", "1.2.840.10008.1.2.4.51": "JPEG Extended"}
JPEG_LOSSLESS = {"1.2.840.10008.1.2.4.57": "JPEG Lossless", "1.2.840.10008.1.2.4.70": "JPEG Lossless SV1"}
JPEG_LS = {"1.2.840.10008.1.2.4.80": "JPEG-LS Lossless", "1.2.840.10008.1.2.4.81": "JPEG-LS Near-lossless"}
JPEG_2000 = {"1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless", "1.2.840.10008.1.2.4.91": "JPEG 2000"}
COMPRESSED = {RLE: "RLE Lossless"} | JPEG | JPEG_LOSSLESS | JPEG_LS | JPEG_2000

_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}
_OF_JPEG_2000 = frozenset({"YBR_ICT", "YBR_RCT"})
_CHUNK = 1 << 20
COLOURS = ("Red", "Green", "Blue")
_US_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{n}"
    for n in ("6.1", "3.1", "6", "3")  # the last two are retired, archives hold them
)
_SC_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("7", "7.2", "7.3", "7.4"))
_VOLUME = "1.2.840.10008.5.1.4.1.1.6.2"
_MODALITIES = {
    "CR": "computed radiography",
    "CT": "computed tomography",
    "DX": "digital radiography",
    "ES": "endoscopy",
    "IO": "intra-oral radiography",
    "IVUS": "intravascular ultrasound",
    "MG": "mammography",
    "MR": "magnetic resonance",
    "NM": "nuclear medicine",
    "OT": "other",
    "PR": "presentation state",
    "PT": "positron emission",
    "PX": "panoramic radiography",
    "RF": "fluoroscopy",
    "SC": "secondary capture",
    "SEG": "segmentation",
    "SM": "slide microscopy",
    "SR": "structured report",
    "XA": "angiography",
    "XC": "photograph",
}
_REQUIRED = {
    "SOPClassUID": "(0008,0016)",
    "SamplesPerPixel": "(0028,0002)",
    "PhotometricInterpretation": "(0028,0004)",
    "Rows": "(0028,0010)",
    "Columns": "(0028,0011)",
    "BitsAllocated": "(0028,0100)",
    "BitsStored": "(0028,0101)",
    "PixelRepresentation": "(0028,0103)",
}
_FURTHER = (
    *("SpecificCharacterSet", "ImageType", "SOPInstanceUID", "Modality", "Manufacturer", "ManufacturerModelName"),
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SequenceOfUltrasoundRegions", "NumberOfFrames"),
    *("PlanarConfiguration", "PixelSpacing", "BurnedInAnnotation", "WindowCenter", "WindowWidth", "HighBit"),
    *("VOILUTFunction", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "PresentationLUTShape"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *(f"{c}PaletteColorLookupTable{part}" for part in ("Data", "Descriptor") for c in COLOURS),
)


@dataclass(frozen=True, eq=False)
class Header:
    """What the head of a file says, checked.

    Attributes
    ----------
    dataset : pydicom Dataset
        The attributes that are used here and no others.
    stream : binary file
        Stands at the value of Pixel Data: the frames, or the basic offset table.
    length : int or None
        Bytes of Pixel Data; None where it is encapsulated.
    syntax : str
        Transfer Syntax UID.
    photometric : str
    rows, columns, samples, n_frames, bits_allocated, bits_stored : int
    signed : bool
    """

    dataset: Any
    stream: BinaryIO
    length: int | None
    syntax: str
    photometric: str
    rows: int
    columns: int
    samples: int
    n_frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool


def refuse(what: str, remedy: str) -> SonobreastError:
    """An error about this file; who knows its name adds it."""
    return SonobreastError(what, remedy=remedy)


def read_header(stream: BinaryIO) -> Header:
    """Read and check the head of a DICOM file; the pixel data stay unread.

    Raises
    ------
    SonobreastError
        If it is no DICOM file, not an ultrasound image, lacks an attribute, is larger than any scan, or is stored in a
        way that is not read here. pydicom's own errors pass through; `sonobreast.data.dicom` turns them into this one.
    """
    syntax, dataset, stream = read_head(stream, (*_REQUIRED, *_FURTHER))
    _check_kind(dataset)
    _check_regions(dataset)
    missing = [f"{k} {tag}" for k, tag in _REQUIRED.items() if dataset.get(k) in (None, "")]
    if missing and not stream.read(1):
        raise refuse(
            "the file ends before the pixel data (7FE0,0010): it is truncated", "copy or export the file again"
        )
    if missing:
        raise refuse(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            "export the image from the PACS again; a file without it cannot be displayed either",
        )
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    frames = int(dataset.get("NumberOfFrames") or 1)
    _check_size(rows, columns, frames)
    photometric, samples = str(dataset.PhotometricInterpretation).strip(), int(dataset.SamplesPerPixel)
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    _check_samples(photometric, samples, allocated, stored)
    if photometric in _OF_JPEG_2000 and syntax not in JPEG_2000:
        raise refuse(
            f"{photometric} goes with JPEG 2000 only (PhotometricInterpretation (0028,0004))",
            "the header was changed without the pixels, or the other way round: export the image again",
        )
    shape = str(dataset.get("PresentationLUTShape") or "").strip()
    if (shape, photometric) in (("INVERSE", "MONOCHROME2"), ("IDENTITY", "MONOCHROME1")):
        raise refuse(
            f"PresentationLUTShape (2050,0020) is {shape}, but the image is {photometric}: black or white is not known",
            "export the image again, or as MONOCHROME2",
        )
    return Header(
        dataset=dataset,
        stream=stream,
        length=_pixel_data(stream, syntax),
        syntax=syntax,
        photometric=photometric,
        rows=rows,
        columns=columns,
        samples=samples,
        n_frames=frames,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=int(dataset.PixelRepresentation) == 1,
    )


def read_head(stream: BinaryIO, keywords: Sequence[str]) -> tuple[str, Any, BinaryIO]:
    """Attributes before the pixel data.

    Returns
    -------
    syntax : str
        Transfer Syntax UID.
    dataset : pydicom Dataset
        Those of ``keywords`` that there are.
    stream : binary file
        Stands where reading stopped; another one than was given where the file is deflated.

    Raises
    ------
    SonobreastError
        If the transfer syntax is missing or not read here, or the head is larger than any scan's.
    """
    from pydicom.filereader import read_preamble
    from pydicom.tag import Tag

    read_preamble(stream, force=True)
    meta = _read(stream, implicit=False, little=True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = _syntax(meta)
    if syntax == _DEFLATED:
        stream = _inflated(stream)
    tags: list[Any] = [Tag(k) for k in keywords]
    dataset = _read(
        stream,
        implicit=syntax == "1.2.840.10008.1.2",
        little=syntax != "1.2.840.10008.1.2.2",
        stop_when=lambda tag, vr, length: tag >= 0x7FE00008,
        specific_tags=tags,
    )
    return syntax, dataset, stream


def _read(stream: BinaryIO, *, implicit: bool, little: bool, **options: Any) -> Any:
    from pydicom.filereader import read_dataset

    counted = _Counted(stream)
    try:
        return read_dataset(cast(BinaryIO, counted), implicit, little, **options)
    except Exception:
        if counted.left >= 0:
            raise
    raise refuse("the file has more elements before its pixel data than any scan", "let the PACS send it without them")


class _Counted(BufferedIOBase):
    """A file that is read from no more than so many times."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError("more reads than any scan needs")  # pydicom turns some errors into others
        return self._stream.read(-1 if size is None else size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _check_regions(dataset: Any) -> None:
    """Before pydicom makes datasets of them, where the file gives their length."""
    if "SequenceOfUltrasoundRegions" not in dataset:
        return
    value = dataset.get_item("SequenceOfUltrasoundRegions").value
    if len(value or ()) > (MAX_REGIONS if not isinstance(value, bytes) else MAX_REGIONS << 12):
        raise refuse(
            f"the file names more than {MAX_REGIONS} ultrasound regions (0018,6011), more than a screen has",
            "the file is damaged: export the image again",
        )


def _syntax(meta: Any) -> str:
    from pydicom._uid_dict import UID_dictionary

    syntax = str(meta.get("TransferSyntaxUID") or "").strip("\0 ")
    if not syntax:
        raise refuse(
            "TransferSyntaxUID (0002,0010) is missing: this is not a DICOM file, or one without file meta information",
            "export it as DICOM Part 10 file (with preamble and file meta information)",
        )
    if syntax not in NATIVE and syntax not in COMPRESSED:
        known = UID_dictionary.get(syntax)
        named = known[0].split(":")[0] if known and known[1] == "Transfer Syntax" else "unknown"
        raise refuse(
            f"the transfer syntax is not one that is read here ({named})",
            "let the PACS send it uncompressed (Explicit VR Little Endian), or as JPEG, JPEG-LS, JPEG 2000 or RLE",
        )
    return syntax


def _inflated(stream: BinaryIO) -> BinaryIO:
    inflate, content = zlib.decompressobj(-zlib.MAX_WBITS), BytesIO()
    while not inflate.eof:
        packed = inflate.unconsumed_tail or stream.read(_CHUNK)
        content.write(inflate.decompress(packed, _CHUNK))
        if content.tell() > MAX_INFLATED:
            raise refuse(
                f"the deflated file grows to more than {MAX_INFLATED >> 20} MB", "let the PACS send it uncompressed"
            )
        if not packed:
            raise refuse("the deflated data end too early: the file is truncated", "copy or export the file again")
    content.seek(0)
    return content


def _check_kind(dataset: Any) -> None:
    kind, modality = str(dataset.get("SOPClassUID") or ""), str(dataset.get("Modality") or "")
    if kind == _VOLUME:
        raise refuse(
            "this is a 3D ultrasound volume (Enhanced US Volume Storage), not a 2D image",
            "store the plane that shows the lesion as a 2D image",
        )
    if modality not in ("US", "") or (modality == "" and kind not in _US_CLASSES):
        named = f"{modality} ({_MODALITIES[modality]})" if modality in _MODALITIES else "missing or unknown"
        raise refuse(
            f"the Modality (0008,0060) is {named}, not US: only ultrasound is judged",
            "give the ultrasound series of the study",
        )
    if kind and kind not in _US_CLASSES | _SC_CLASSES:
        raise refuse(
            "the SOP Class (0008,0016) is none of Ultrasound Image, Ultrasound Multi-frame Image and Secondary Capture",
            "give the images of the ultrasound series, not its reports or presentation states",
        )


def _check_size(rows: int, columns: int, frames: int) -> None:
    if rows < 1 or columns < 1 or frames < 1:
        raise refuse(f"the image has {rows} rows, {columns} columns and {frames} frames", "export the image again")
    if rows * columns > MAX_FRAME_PIXELS or frames > MAX_FRAMES:
        raise refuse(
            f"{rows} x {columns} pixels in {frames} frames are more than any scan has",
            "check Rows, Columns and NumberOfFrames; export the image again",
        )


def _check_samples(photometric: str, samples: int, allocated: int, stored: int) -> None:
    if photometric not in _SAMPLES:
        raise refuse(
            "the PhotometricInterpretation (0028,0004) is not one that ultrasound has",
            "let the PACS convert it to MONOCHROME2 or RGB; read are " + ", ".join(_SAMPLES),
        )
    if samples != _SAMPLES[photometric]:
        raise refuse(
            f"SamplesPerPixel (0028,0002) is {samples}, but {photometric} has {_SAMPLES[photometric]}",
            "export the image again",
        )
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise refuse(
            f"BitsAllocated (0028,0100) is {allocated} and BitsStored (0028,0101) {stored}; read are 8 and 16 bits",
            "export the image with 8 bits a sample",
        )
    if samples == 3 and allocated != 8:
        raise refuse("a colour image with 16 bits a sample is not read", "export the image with 8 bits a sample")


def _pixel_data(stream: BinaryIO, syntax: str) -> int | None:
    """Step over the head of Pixel Data, wherever the reader stopped; bytes of its value, None if encapsulated."""
    order = "big" if syntax == "1.2.840.10008.1.2.2" else "little"
    head = stream.read(8)
    tag = (int.from_bytes(head[0:2], order), int.from_bytes(head[2:4], order))  # type: ignore[arg-type]
    if len(head) < 8 or tag != (0x7FE0, 0x0010):
        raise refuse(
            "there are no pixel data (7FE0,0010): the file holds no image, or is truncated", "export the image again"
        )
    if syntax == "1.2.840.10008.1.2":
        length = int.from_bytes(head[4:8], "little")
    else:
        length = int.from_bytes(stream.read(4), order)  # type: ignore[arg-type]
    encapsulated = length == 0xFFFFFFFF
    if encapsulated != (syntax in COMPRESSED):
        says = COMPRESSED.get(syntax, "uncompressed")
        raise refuse(
            f"the transfer syntax says {says}, but the pixel data are {'compressed' if encapsulated else 'not'}",
            "the header was changed without the pixels, or the other way round: export the image again",
        )
    return None if encapsulated else length
