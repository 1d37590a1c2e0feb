"""What a few bytes make a decoder do for a long time, or in much memory, is refused by its head; nothing is decoded.

A thread that decodes cannot be stopped, so the time limit of a request does not bound it. Limits of bytes, pixels and
frames bound the work of decoders that go over each pixel once. Each check here stands for one that does more, found by
measuring under the service's limits (16 MiB, 16 million pixels; seconds of one core before the check):

======================================================  =======
JPEG of 16 million pixels with 1,100 scans               11 s
JPEG head of 15 million fill bytes, or tiny segments     14 s
PNG of 1.3 million empty chunks                          5 s
TIFF of 100,000 pictures in 10 MB                        46 s
TIFF tiles of one pixel                                  15 s, 1.4 GB
BMP, run-length coded                                    4 s
DICOM sequence of 1.9 million empty items                26 s
deflated DICOM of 40 KB with 3 million attributes        5 s
JPEG 2000 of 10 KB in code-blocks of 4 x 4               5.3 GB
======================================================  =======
"""

from __future__ import annotations

import zlib
from io import BytesIO

from sonobreast.data.dicom import is_dicom
from sonobreast.errors import SonobreastError
from sonobreast.serving.readers import Limits

_SCANS = 100  # of a progressive JPEG: each goes over all pixels again; ordinary ones have about ten
_HEAD = 2 << 20  # bytes before the first scan of a JPEG, which Pillow reads one by one
_SEGMENTS = 2_000
_CHUNKS = 10_000  # of a PNG, and one for each KiB
_ENTRIES = 1_000  # of a directory of a TIFF
_VALUES = 100_000  # of an entry: strips or tiles
_RUNS = 4 << 20  # bytes of a run-length coded BMP
_READS = 200_000  # of a DICOM head: two or three for each attribute
_SEQUENCE = 256 << 10  # bytes of the regions of a DICOM file
_REGIONS = 0x00186011  # SequenceOfUltrasoundRegions
_CODESTREAM = b"\xff\x4f\xff\x51"  # how JPEG 2000 begins
_FRAMES = 5_000  # JPEG 2000 codestreams in a DICOM file
_STYLES = 100  # coding styles in a codestream, beside what is there by chance
_BLOCKS = 100_000  # of a JPEG 2000 codestream; each takes about 5 KB
_PICTURES = 12  # bytes that a deflated DICOM may grow to, for each pixel of the largest picture


class _Costly(Exception):
    """What is too much."""


def refuse_costly(content: bytes, limits: Limits) -> None:
    """Refuse a file that would take long to decode; damaged ones pass, whoever decodes them says what is wrong.

    Parameters
    ----------
    content : bytes
    limits : Limits

    Raises
    ------
    SonobreastError
    """
    try:
        if content.startswith(b"\xff\xd8"):
            _jpeg(content)
        elif content.startswith(b"\x89PNG"):
            _png(content)
        elif content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            _tiff(content, limits)
        elif content.startswith(b"BM"):
            _bmp(content)
        elif is_dicom(content):
            _dicom(content, limits)
    except _Costly as error:
        raise SonobreastError(str(error), remedy="save the picture anew, as plain PNG or JPEG") from None


def _jpeg(content: bytes) -> None:
    if content.count(b"\xff\xda") > _SCANS:  # within compressed data these bytes do not follow each other
        raise _Costly("the picture has too many scans")
    at, segments = 2, 0
    while 0 <= at < len(content) and content[at + 1 : at + 2] != b"\xda":
        segments += 1
        if at > _HEAD or segments > _SEGMENTS:
            raise _Costly("there is too much before the picture itself")
        marker = _number(content, at + 1, 1)
        if marker == 0xFF:  # a byte that fills
            at += 1
        else:
            alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
            at = content.find(b"\xff", at + 2 + (0 if alone else _number(content, at + 2, 2)))


def _png(content: bytes) -> None:
    at, chunks, most = 8, 0, _CHUNKS + (len(content) >> 10)
    while at < len(content):
        at += 12 + _number(content, at, 4)
        chunks += 1
        if chunks > most:
            raise _Costly("the picture is in too many pieces")


def _bmp(content: bytes) -> None:
    if _number(content, 30, 4, "little") in (1, 2) and len(content) > _RUNS:
        raise _Costly(f"a run-length coded BMP of more than {_RUNS >> 20} MiB")


def _tiff(content: bytes, limits: Limits) -> None:
    order = "little" if content[:2] == b"II" else "big"
    large = 0x2B in content[2:4]
    word, size, step, first = (8, 8, 20, 16) if large else (4, 2, 12, 8)
    at, seen = _number(content, first - word, word, order), set()
    while 0 < at < len(content) and at not in seen:
        seen.add(at)
        if len(seen) > limits.frames:
            raise _Costly(f"too many pictures: more than {limits.frames}")
        entries = _number(content, at, size, order)
        if entries > _ENTRIES:
            raise _Costly("a directory of the file is too long")
        for place in range(at + size, at + size + entries * step, step):
            kind, count = _number(content, place + 2, 2, order), _number(content, place + 4, word, order)
            if kind not in (1, 2, 6, 7) and count > _VALUES:  # all but bytes and text, which are not looked at
                raise _Costly("the picture is in too many strips or tiles")
        at = _number(content, at + size + entries * step, word, order)


def _dicom(content: bytes, limits: Limits) -> None:
    if content.count(b"\xff\xda") > _SCANS + (len(content) >> 14):  # by chance it is there once in 64 KiB
        raise _Costly("the picture has too many scans")
    _, *streams = content.split(_CODESTREAM, _FRAMES + 1)
    if len(streams) > _FRAMES or any(_blocks(_CODESTREAM + stream) > _BLOCKS for stream in streams):
        raise _Costly("the JPEG 2000 picture is in too many code-blocks")
    try:
        from pydicom.filereader import read_dataset, read_preamble
    except ImportError:
        return  # the reader says so

    from sonobreast.data.hush import hushed

    stream = _Counted(content)
    try:
        with hushed():
            read_preamble(stream, force=True)
            meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
            syntax = str(meta.get("TransferSyntaxUID") or "").strip("\0 ")
            if syntax == "1.2.840.10008.1.2.1.99":
                stream = _Counted(_inflated(stream.read(), min(512 << 20, _PICTURES * limits.pixels)))
            found = read_dataset(
                stream,
                syntax == "1.2.840.10008.1.2",
                syntax != "1.2.840.10008.1.2.2",
                stop_when=lambda tag, vr, length: tag >= 0x7FE00008,
                specific_tags=[_REGIONS],
            )
            regions = found.get_item(_REGIONS)
    except _Costly:
        raise
    except Exception:  # damaged: the reader says so, and better
        return
    value = getattr(regions, "value", None)
    if isinstance(value, bytes) and len(value) > _SEQUENCE:
        raise _Costly("SequenceOfUltrasoundRegions (0018,6011) is longer than that of any scanner")


class _Counted(BytesIO):
    """Says when it was read too often: pydicom asks once or twice for each attribute."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _READS:
            raise _Costly("the file has more attributes than any scan")
        return super().read(size)


def _inflated(content: bytes, most: int) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    found = inflate.decompress(content, most)
    if inflate.unconsumed_tail:
        raise _Costly(f"the deflated file grows to more than {most >> 20} MiB")
    return found


def _blocks(stream: bytes) -> int:
    """About how many code-blocks and tiles a JPEG 2000 codestream has (ITU-T T.800, A.5.1 and A.6).

    A coding style of one tile or component counts for the whole picture.
    """
    size = [_number(stream, 8 + 4 * k, 4) for k in range(6)]
    samples = _number(stream, 40, 2)
    pixels = max(0, size[0] - size[2]) * max(0, size[1] - size[3]) * samples
    most = 8 * pixels // max(1, size[4] * size[5])  # a tile costs what some blocks do
    if stream.count(b"\xff\x52") + stream.count(b"\xff\x53") > _STYLES + (len(stream) >> 13):
        return pixels
    for marker, start in ((b"\xff\x52", 9), (b"\xff\x53", 6 if samples < 257 else 7)):
        at = stream.find(marker)
        while at >= 0:
            length, levels, wide, high = (
                _number(stream, at + k, n) for k, n in ((2, 2), (start, 1), (start + 1, 1), (start + 2, 1))
            )
            # Such bytes may stand in the compressed data by chance, but not before a length that fits
            if levels <= 32 and length in (start + 3, start + 4 + levels):
                sizes = stream[at + start + 5 : at + 2 + length] or b"\xff" * (levels + 1)
                most = max(most, _in_resolutions(pixels, wide + high + 4, sizes))
            at = stream.find(marker, at + 2)
    return most


def _in_resolutions(pixels: int, block: int, precincts: bytes) -> int:
    """Code-blocks of all resolutions: none is larger than ``2 ** block`` pixels, or than its precinct."""
    found = 0
    for k, exponents in enumerate(precincts):
        area = (exponents & 15) + (exponents >> 4) - (2 if k else 0)
        found += pixels >> 2 * (len(precincts) - 1 - k) >> max(0, min(block, area))
    return found


def _number(content: bytes, at: int, size: int, order: str = "big") -> int:
    """Of ``size`` bytes; what lies behind the end counts as 0."""
    return int.from_bytes(content[at : at + size], "little" if order == "little" else "big")
