"""Frames of a DICOM file as 8-bit grey or RGB pictures; only those that are asked for are read and decoded.

Every compressed frame is looked at before a decoder gets it: what it begins with, and how large it says it is. Decoders
are C code that trusts its input more than it should.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sonobreast.data import gdcm_worker
from sonobreast.data.dicom_header import (
    COLOURS,
    COMPRESSED,
    JPEG,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    NATIVE,
    RLE,
    Header,
    refuse,
)

MAX_SAMPLED_BYTES = 1 << 30
_PADDING = 16
"""Bytes behind the pixels that are borne; the standard has one, to an even length."""
_AGAIN = "copy or export the file again"


def read_frames(header: Header, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Decode frames.

    Parameters
    ----------
    header : Header
    indices : sequence of int
        From 0.

    Returns
    -------
    list of ndarray, uint8, (rows, columns) or (rows, columns, 3)
        Grey as displayed (0 is black, whatever the photometric interpretation), or RGB.

    Raises
    ------
    SonobreastError
        If the pixel data are truncated or not what the header says, or have no 8-bit grey scale.
    """
    if header.rows * header.columns * header.samples * len(indices) > MAX_SAMPLED_BYTES:
        raise refuse(f"{len(indices)} frames of this size do not fit into 1 GB", "ask for fewer frames")
    grey_scale = _grey_scale(header)
    raw = _native_frames(header) if header.length is not None else _encapsulated_frames(header)
    return [_displayed(_decode(raw(i), header), header, grey_scale) for i in indices]


def _left(stream: BinaryIO) -> int:
    """Bytes from here to the end of the file."""
    here = stream.tell()
    end = stream.seek(0, os.SEEK_END)
    stream.seek(here)
    return end - here


def _native_frames(header: Header) -> Any:
    stream, start = header.stream, header.stream.tell()
    if _subsampled(header) and header.columns % 2:
        raise refuse("YBR_FULL_422 with an odd number of columns", "let the PACS convert it to RGB")
    samples = 2 if _subsampled(header) else header.samples  # two pixels share their colour
    size = header.rows * header.columns * samples * header.bits_allocated // 8
    there = min(header.length or 0, _left(stream))
    if there < size * header.n_frames:
        raise refuse(
            f"the pixel data end too early: {there} bytes of {size * header.n_frames}, "
            f"{there // size} of {header.n_frames} frame(s)",
            "the file is truncated, or Rows, Columns or NumberOfFrames are wrong: " + _AGAIN,
        )
    if (header.length or 0) > size * header.n_frames + _PADDING:
        raise refuse(
            f"the pixel data are longer than the header says: {header.length} bytes, not {size * header.n_frames} for "
            f"{header.n_frames} frame(s) of {header.columns} x {header.rows}",
            "Rows, Columns, BitsAllocated, SamplesPerPixel or NumberOfFrames are wrong: " + _AGAIN,
        )

    def frame(index: int) -> bytes:
        stream.seek(start + index * size)
        return stream.read(size)

    return frame


def _subsampled(header: Header) -> bool:
    """Whether two pixels share their colour; some archives decompress to three samples a pixel and keep the name."""
    full = header.rows * header.columns * 3 * header.n_frames
    return header.photometric == "YBR_FULL_422" and not full <= (header.length or 0) <= full + _PADDING


def _encapsulated_frames(header: Header) -> Any:
    """Items of the pixel sequence (PS3.5 A.4) joined to frames, by the offset table where frames have several."""
    stream = header.stream
    end = _left(stream) + stream.tell()
    items: list[tuple[int, int]] = []  # place of the value and bytes
    while True:
        head = stream.read(8)
        tag, length = head[:4], int.from_bytes(head[4:8], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            break
        here = stream.tell()
        if tag != b"\xfe\xff\x00\xe0" or here + length > end:
            raise refuse(
                f"the compressed pixel data end too early or are damaged after {max(0, len(items) - 1)} fragment(s)",
                _AGAIN,
            )
        items.append((here, length))
        stream.seek(here + length)
    table, fragments = items[:1], items[1:]
    if len(fragments) < header.n_frames:
        raise refuse(f"the pixel data hold {len(fragments)} of {header.n_frames} frame(s)", _AGAIN)
    starts = _starts(header, table, fragments)
    if header.syntax == RLE:
        largest = 2 * header.rows * header.columns * header.samples * header.bits_allocated // 8 + (1 << 16)
        ends = [*starts[1:], len(fragments)]
        if any(sum(n for _, n in fragments[a:b]) > largest for a, b in zip(starts, ends, strict=True)):
            raise refuse("a frame takes more bytes in RLE than it has pixels: the data are damaged", _AGAIN)

    def frame(index: int) -> bytes:
        first = starts[index]
        last = starts[index + 1] if index + 1 < len(starts) else len(fragments)
        parts = []
        for place, length in fragments[first:last]:
            stream.seek(place)
            parts.append(stream.read(length))
        return b"".join(parts)

    return frame


def _starts(header: Header, table: list[tuple[int, int]], fragments: list[tuple[int, int]]) -> list[int]:
    """The fragment that each frame begins with."""
    if len(fragments) == header.n_frames:
        return list(range(header.n_frames))
    begun = _begun(header, fragments)
    if header.n_frames == 1 and len(begun) < 2:
        return [0]
    if header.n_frames == 1 or header.n_frames < len(begun):
        raise refuse(
            f"the pixel data hold {len(begun)} pictures, NumberOfFrames (0028,0008) says {header.n_frames}", _AGAIN
        )
    extended = header.dataset.get("ExtendedOffsetTable")
    if extended:
        offsets = np.frombuffer(extended[: len(extended) // 8 * 8], "<u8").tolist()
    else:
        header.stream.seek(table[0][0])
        offsets = np.frombuffer(header.stream.read(table[0][1] // 4 * 4), "<u4").tolist()
    begin = fragments[0][0] - 8
    where = {place - 8 - begin: number for number, (place, _) in enumerate(fragments)}
    if len(offsets) != header.n_frames or not all(o in where for o in offsets) or offsets != sorted(set(offsets)):
        if len(begun) == header.n_frames and begun[0] == 0:
            return begun
        raise refuse(
            f"{header.n_frames} frames lie in {len(fragments)} fragments and no offset table says which",
            "let the PACS send it uncompressed, or with a basic offset table",
        )
    return [where[o] for o in offsets]


def _begun(header: Header, fragments: list[tuple[int, int]]) -> list[int]:
    """Fragments that begin a frame: as a JPEG of any kind does, inside of which these bytes do not occur; RLE has no
    frame of several fragments (PS3.5 A.4.2)."""
    if header.syntax == RLE:
        return list(range(len(fragments)))
    found = []
    for number, (place, length) in enumerate(fragments):
        header.stream.seek(place)
        if length >= 4 and header.stream.read(4).startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0c")):
            found.append(number)
    return found


def _decode(frame: bytes, header: Header) -> NDArray[Any]:
    """One frame as stored, colour as RGB: (rows, columns[, 3])."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    plugin = ""
    if header.syntax in COMPRESSED:
        _look_at(frame, header)
        plugin = _plugin(header)
    decoder = get_decoder(UID(header.syntax))
    photometric = header.photometric
    planar = int(header.dataset.get("PlanarConfiguration") or 0)
    if photometric == "YBR_FULL_422" and header.length is not None:
        planar, photometric = (0, photometric) if _subsampled(header) else (planar, "YBR_FULL")
    options: dict[str, Any] = {
        "raw": header.photometric == "PALETTE COLOR",
        "rows": header.rows,
        "columns": header.columns,
        "number_of_frames": 1,
        "samples_per_pixel": header.samples,
        "planar_configuration": planar if planar in (0, 1) else 0,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": int(header.signed),
        "photometric_interpretation": photometric,
        "pixel_keyword": "PixelData",
        "pixel_vr": "OW" if header.bits_allocated > 8 or header.syntax == "1.2.840.10008.1.2" else "OB",
    }
    source = frame if header.syntax in NATIVE else encapsulate([frame], has_bot=False)
    if plugin == "gdcm":
        array = gdcm_worker.decode(source, header.syntax, options)
    else:
        array, _ = decoder.as_array(source, index=0, decoding_plugin=plugin, **options)
    shape = (header.rows, header.columns, 3)[: 3 if header.samples == 3 else 2]
    if array.shape != shape:
        raise refuse("the decoded picture has another size than the header says", _AGAIN)
    return np.asarray(array)


def _plugin(header: Header) -> str:
    """The decoder that is used; one only, so that two machines do not differ in silence."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    available = get_decoder(UID(header.syntax)).available_plugins
    for name in ("pillow", "pyjpegls", "gdcm", "pydicom", "pylibjpeg"):
        if name in available:
            return name
    raise refuse(
        f"no decoder for {COMPRESSED[header.syntax]} is installed",
        "install sonobreast[dicom], or let the PACS send it uncompressed",
    )


@dataclass(frozen=True)
class _Compressed:
    """What a compressed frame says of itself."""

    kind: str
    rows: int = 0
    columns: int = 0
    samples: int = 0
    bits: int = 0


def _look_at(frame: bytes, header: Header) -> None:
    expected = next(
        kind
        for kind, table in (
            ("RLE", {RLE: ""}),
            ("JPEG", JPEG),
            ("JPEG Lossless", JPEG_LOSSLESS),
            ("JPEG-LS", JPEG_LS),
            ("JPEG 2000", JPEG_2000),
        )
        if header.syntax in table
    )
    found = _identify(frame)
    if expected == "RLE" and found.kind == "unknown":
        return  # RLE has no signature; pydicom checks its segments
    if found.kind != expected:
        begin = f"as {found.kind}" if found.kind != "unknown" else "as none of the formats that are known"
        raise refuse(
            f"the transfer syntax says {COMPRESSED[header.syntax]}, but the pixel data begin {begin}",
            "the header was changed without the pixels, or the file is damaged: export the image again",
        )
    if (found.rows, found.columns) != (header.rows, header.columns) or found.samples != header.samples:
        raise refuse(
            f"the compressed picture is {found.columns} x {found.rows} with {found.samples} sample(s) a pixel, "
            f"the header says {header.columns} x {header.rows} with {header.samples}",
            "the file is damaged, or was changed by a tool: export the image again",
        )
    if not 2 <= found.bits <= header.bits_allocated:
        raise refuse(
            f"the compressed picture has {found.bits} bits a sample, the header says {header.bits_allocated}", _AGAIN
        )


def _identify(frame: bytes) -> _Compressed:
    """Format and size of a compressed frame, from its first frame header (JPEG: SOF, JPEG 2000: SIZ)."""
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096) if frame[4:8] == b"jP  " else 0
    if at >= 0 and frame[at : at + 4] == b"\xff\x4f\xff\x51" and len(frame) >= at + 43:
        word = [int.from_bytes(frame[at + 8 + 4 * i : at + 12 + 4 * i], "big") for i in range(4)]
        samples, bits = int.from_bytes(frame[at + 40 : at + 42], "big"), (frame[at + 42] & 0x7F) + 1
        return _Compressed("JPEG 2000", word[1] - word[3], word[0] - word[2], samples, bits)
    if frame[:2] != b"\xff\xd8":
        return _Compressed("unknown")
    at = 2
    while at + 9 < len(frame):
        if frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        kinds = {0xC0: "JPEG", 0xC1: "JPEG", 0xC2: "JPEG", 0xC3: "JPEG Lossless", 0xF7: "JPEG-LS"}
        if marker in kinds:
            rows, columns = int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
            return _Compressed(kinds[marker], rows, columns, frame[at + 9], frame[at + 4])
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return _Compressed("unknown")


@dataclass(frozen=True)
class _GreyScale:
    """How stored grey values become 0-255: as they are, or through rescale and window."""

    slope: float = 1.0
    intercept: float = 0.0
    center: float = 0.0
    width: float = 0.0


def _grey_scale(header: Header) -> _GreyScale:
    """The window of a grey image that is not 8 bits unsigned; said before anything is decoded.

    An 8-bit image is shown as it is stored: ultrasound is made for the screen, and what a window of a viewer did to it
    is not in the exports that networks learn from.
    """
    if header.samples == 3 or header.photometric == "PALETTE COLOR":
        if header.signed:
            raise refuse("signed colour values have no meaning", "export the image again")
        return _GreyScale()
    ds = header.dataset
    if header.bits_stored == 8 and (_modality_lut(ds) or (_first(ds.get("RescaleSlope")) or 1.0) < 0.0):
        raise refuse(
            "a Modality LUT (0028,3000) or a negative RescaleSlope (0028,1053) on 8 bits is not read",
            "export the image as it is displayed",
        )
    if int(ds.get("HighBit") or header.bits_stored - 1) != header.bits_stored - 1:
        raise refuse("HighBit (0028,0102) is not BitsStored - 1", "export the image with 8 bits a sample")
    if header.bits_stored == 8 and not header.signed:
        return _GreyScale()
    what = f"a grey image with {header.bits_stored} bits{', signed,' if header.signed else ''}"
    if _modality_lut(ds):
        raise refuse(f"{what} and a Modality LUT (0028,3000) is not read", "export the image with 8 bits a sample")
    function = str(ds.get("VOILUTFunction") or "LINEAR").strip()
    center, width = (_first(ds.get(k)) for k in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or not np.isfinite([center, width]).all() or not 1.0 <= width <= 2.0**32:
        raise refuse(
            f"{what} and no WindowCenter (0028,1050) and WindowWidth (0028,1051): its grey scale is not known",
            "export the image with 8 bits a sample, or with the window it was read with",
        )
    if function != "LINEAR":
        raise refuse(f"{what} and a VOI LUT Function other than LINEAR is not read", "export the image with 8 bits")
    slope, intercept = _first(ds.get("RescaleSlope")), _first(ds.get("RescaleIntercept"))
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if not np.isfinite([slope, intercept]).all() or slope == 0.0:
        raise refuse("RescaleSlope (0028,1053) or RescaleIntercept (0028,1052) is no usable number", _AGAIN)
    return _GreyScale(slope, intercept, center, width)


def _modality_lut(ds: Any) -> bool:
    """Whether there is one; pydicom does not get to read it, however many items it says it has."""
    return "ModalityLUTSequence" in ds and bool(ds.get_item("ModalityLUTSequence").value)


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    several = not isinstance(value, str | bytes | int | float) and hasattr(value, "__len__")
    return float(value[0]) if several and len(value) else None if several else float(value)


def _displayed(array: NDArray[Any], header: Header, scale: _GreyScale) -> NDArray[np.uint8]:
    """Stored values as a screen shows them (PS3.3 C.11.2.1.2.1 for the window)."""
    if header.photometric == "PALETTE COLOR":
        return _through_palette(array, header)
    if header.samples == 3:
        return np.ascontiguousarray(array.astype(np.uint8, copy=False))
    if scale.width:
        values = array.astype(np.float64) * scale.slope + scale.intercept
        span = max(scale.width - 1.0, 1e-9)
        grey = np.clip(((values - (scale.center - 0.5)) / span + 0.5) * 255.0, 0.0, 255.0)
        shown = np.floor(grey + 0.5).astype(np.uint8)
    else:
        shown = (array & np.array(0xFF, array.dtype)).astype(np.uint8)  # bits above BitsStored are overlays of old
    return np.ascontiguousarray(255 - shown if header.photometric == "MONOCHROME1" else shown)


def _through_palette(array: NDArray[Any], header: Header) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    parts = [f"{c}PaletteColorLookupTable{part}" for part in ("Descriptor", "Data") for c in COLOURS]
    if not all(k in header.dataset for k in parts):  # a segmented one is no case: it can grow to gigabytes
        raise refuse(
            "PALETTE COLOR without a whole palette (0028,1101 and the following; segmented ones are not read)",
            "export the image again, or as RGB",
        )
    if header.syntax == "1.2.840.10008.1.2.2":
        raise refuse("PALETTE COLOR in big endian is not read", "let the PACS send it as Explicit VR Little Endian")
    descriptor = header.dataset.RedPaletteColorLookupTableDescriptor
    coloured = apply_color_lut(array, header.dataset)
    bits = 16 if coloured.dtype.itemsize == 2 and int(descriptor[2]) == 16 else 8
    if bits == 16 and 0 < int(coloured.max()) < 256:
        raise refuse(
            "the palette has 16 bits, but its colours use the lower 8 only", "export the image again, or as RGB"
        )
    # 16-bit entries carry the colour in their upper byte (PS3.3 C.7.6.3.1.6)
    return np.ascontiguousarray((coloured[..., :3] >> (bits - 8)).astype(np.uint8))
