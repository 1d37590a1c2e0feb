"""Files that would keep a decoder busy are refused by their head, and ordinary ones are not."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sonobreast.errors import SonobreastError
from sonobreast.serving.answer import answer_file
from sonobreast.serving.costly import refuse_costly
from sonobreast.serving.predictor import Predictor
from sonobreast.serving.readers import Limits, read

LIMITS = Limits(bytes=16 << 20, pixels=16_000_000, frames=8)


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), np.uint8)
    Image.fromarray(noise).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def directory(entries: list[tuple[int, int, int, int]], following: int) -> bytes:
    packed = b"".join(struct.pack("<HHII", *e) for e in entries)
    return struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)


def jpeg_with(extra: bytes) -> bytes:
    plain = saved("JPEG")
    return plain[:2] + extra + plain[2:]


def png_with(extra: bytes) -> bytes:
    plain = saved("PNG")
    return plain[:33] + extra + plain[33:]


def many_scans() -> bytes:
    plain = saved("JPEG", progressive=True)
    last = plain[plain.rfind(b"\xff\xc4", 0, plain.rfind(b"\xff\xda")) : -2]
    return plain[:-2] + last * 100 + b"\xff\xd9"


def film(n: int) -> bytes:
    """Directories of one pixel each."""
    tags = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (278, 1), (279, 1))
    entries = [(tag, 4, 1, value) for tag, value in tags]
    size = len(directory(entries, 0))
    return b"II*\0\x08\0\0\0" + b"".join(directory(entries, 8 + size * (k + 1) if k < n - 1 else 0) for k in range(n))


def run_length(n: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 4000, 4000, 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + bytes(12) + head + bytes(1024) + b"\1\0" * n


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (many_scans(), "scans"),
        (jpeg_with(b"\xff\xef\0\2" * 3000), "before the picture"),
        (jpeg_with(b"\xff" * 3000), "before the picture"),
        (
            jpeg_with(b"\xff\xef\xff\xff" + bytes(65533) + (b"\xff\xef\xff\xff" + bytes(65533)) * 40),
            "before the picture",
        ),
        (png_with(chunk(b"tIME") * 12_000), "pieces"),
        (png_with(chunk(b"IDAT") * 12_000), "pieces"),
        (film(9), "more than 8"),
        (b"II*\0\x08\0\0\0" + directory([(256, 4, 1, 1400), (257, 4, 1, 1400), (324, 4, 1_960_000, 8)], 0), "tiles"),
        (b"MM\0*\0\0\0\x08\xff\xff", "directory"),
        (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 40), "directory"),
        (run_length(3 << 20), "run-length"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_would_take_long_is_refused(content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", never)
    with pytest.raises(SonobreastError, match=reason):
        refuse_costly(content, LIMITS)
    [result] = answer_file(None, 0, content, limits=LIMITS)  # type: ignore[arg-type]
    assert result.error is not None
    assert reason in result.error.what


@pytest.mark.parametrize(
    "content",
    [
        *(saved("PNG", mode) for mode in ("L", "RGB", "P", "LA", "1")),
        saved("JPEG", progressive=True),
        saved("JPEG", size=(2000, 1500), quality=95, comment=b"c" * 60_000, icc_profile=b"i" * 200_000),
        saved("MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
        saved("BMP", "L"),
        # Each strip is a JPEG of its own, with scans of its own: 188 of them
        saved("TIFF", "L", size=(64, 3000), compression="jpeg", tiffinfo={278: 16}),
        saved("TIFF", "RGB", compression="tiff_lzw", save_all=True, append_images=[Image.new("RGB", (64, 48))] * 7),
        saved("TIFF", "RGB", big_tiff=True),
        film(8),
        b"",
        b"\xff\xd8",
        b"II*\0",
        b"BM",
        bytes(128) + b"DICM",
    ],
)
def test_ordinary_and_damaged_files_pass(content: bytes) -> None:
    refuse_costly(content, LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_every_cut_and_flip_passes_or_is_refused(kind: str) -> None:
    """Heads are walked by numbers that stand in them: no damage makes that fail, or go on for ever."""
    rng, content = np.random.default_rng(0), saved(kind)
    for cut in range(0, 200, 3):
        refuse_costly(content[:cut], LIMITS)
    for _ in range(300):
        damaged = bytearray(content)
        for at in rng.integers(0, 200, 4):
            damaged[at] = int(rng.integers(256))
        with suppress(SonobreastError):
            refuse_costly(bytes(damaged), LIMITS)


def in_dicom(extra: bytes = b"", frame: bytes = b"", side: int = 96) -> bytes:
    """A simulated ultrasound image with attributes before its own, or with this JPEG 2000 frame."""
    from tests.dicom_files import compressed, content, dataset

    ds = dataset()
    if frame:
        del ds.SequenceOfUltrasoundRegions
        ds.Rows = ds.Columns = side
        return content(compressed(ds, "1.2.840.10008.1.2.4.90", [frame]))
    if extra.startswith(b"\x18\0\x11\x60"):
        del ds.SequenceOfUltrasoundRegions
    plain = content(ds)
    at = plain.index(b"\x10\0\x10\0PN")
    return plain[:at] + extra + plain[at:]


def test_dicom_that_would_take_long_is_refused() -> None:
    pytest.importorskip("pydicom")
    item = b"\xfe\xff\0\xe0\0\0\0\0"
    open_ended = b"\x09\0\x01\x10SQ\0\0\xff\xff\xff\xff" + item * 150_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    regions = b"\x18\0\x11\x60SQ\0\0" + struct.pack("<I", len(item) * 40_000) + item * 40_000
    blocks = saved("JPEG2000", "L", (2000, 2000), no_jp2=True, codeblock_size=(4, 4))
    precincts = saved("JPEG2000", "L", (2000, 2000), no_jp2=True, precinct_size=(4, 4), num_resolutions=1)
    tiles = saved("JPEG2000", "L", (2000, 2000), no_jp2=True, tile_size=(16, 16))
    for content, reason in (
        (in_dicom(open_ended), "attributes"),
        (in_dicom(b"\x09\0\x01\x10LO\0\0" * 250_000), "attributes"),
        (in_dicom(regions), "0018,6011"),
        (in_dicom(frame=blocks, side=2000), "code-blocks"),
        (in_dicom(frame=precincts, side=2000), "code-blocks"),
        (in_dicom(frame=tiles, side=2000), "code-blocks"),
        (in_dicom(frame=b"\xff\x4f\xff\x51" * 6000), "code-blocks"),
        (in_dicom(frame=tiles[:60] + b"\xff\x52" * 9000), "code-blocks"),
    ):
        with pytest.raises(SonobreastError, match=reason):
            refuse_costly(content, LIMITS)


def test_deflated_dicom_may_not_grow_without_end() -> None:
    pytest.importorskip("pydicom")
    from tests.dicom_files import NATIVE, content, dataset, in_syntax

    plain = content(in_syntax(dataset(), NATIVE["deflated"]))
    refuse_costly(plain, LIMITS)
    with pytest.raises(SonobreastError, match="grows"):
        refuse_costly(plain, Limits(pixels=500))
    begin = 144 + int.from_bytes(plain[140:144], "little")
    bomb = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = bomb.compress(b"\x09\0\x01\x10LO\0\0" * 250_000) + bomb.flush()
    assert len(body) < 10_000
    with pytest.raises(SonobreastError, match="attributes"):
        refuse_costly(plain[:begin] + body, LIMITS)


def test_ordinary_dicom_passes() -> None:
    pytest.importorskip("pydicom")
    from tests.dicom_files import NATIVE, content, dataset, in_syntax

    for ds in (dataset(), dataset(n_frames=20), *(in_syntax(dataset(), NATIVE[n]) for n in ("implicit", "deflated"))):
        refuse_costly(content(ds), LIMITS)
    for options in ({}, {"codeblock_size": (32, 32)}, {"precinct_size": (128, 128)}, {"tile_size": (512, 512)}):
        frame = saved("JPEG2000", "L", (2000, 2000), no_jp2=True, **options)
        refuse_costly(in_dicom(frame=frame, side=2000), LIMITS)


def test_it_stands_before_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused here, the reader alone would have begun to decode."""
    assert next(read(many_scans(), LIMITS)).image.shape == (48, 64, 3)
    assert answer_file(Predictor, 0, many_scans(), limits=LIMITS)[0].error is not None  # type: ignore[arg-type]
