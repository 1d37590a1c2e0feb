"""A multipart upload to files in memory, limited while it arrives. Names of files are not even read.

Starlette's own parser would write larger files to the disk; here nothing of an upload leaves memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

FIELDS = frozenset({"files", "file"})
TYPES = frozenset({"application/octet-stream", "application/dicom"})


class Refused(Exception):
    """An upload that is not taken: status, what is wrong, what to do."""

    def __init__(self, status: int, what: str, remedy: str) -> None:
        super().__init__(what)
        self.status, self.what, self.remedy = status, what, remedy


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart upload.

    Raises
    ------
    Refused
        415 where it is no ``multipart/form-data``, 400 where it has no boundary.
    """
    try:
        kind, options = parse_options_header(content_type)
    except Exception:  # whatever a hostile header brings
        kind, options = b"", {}
    if kind.lower() != b"multipart/form-data":
        raise Refused(415, "the upload is not multipart/form-data", "send images as parts named `files`")
    boundary = options.get(b"boundary", b"")
    if not boundary or len(boundary) > 200:
        raise Refused(400, "the upload has no usable boundary", "send it as an ordinary form does")
    return boundary


async def read_upload(
    stream: AsyncIterable[bytes], boundary: bytes, *, body: int, file: int, files: int
) -> list[bytes]:
    """Files of an upload in their order.

    Parameters
    ----------
    stream : async iterable of bytes
    boundary : bytes
    body, file, files : int
        As in `sonobreast.serving.settings.Settings`.

    Raises
    ------
    Refused
        413 where something is too large, 415 where a part is no image by its stated type, 400 otherwise.
    """
    parts = _Parts(file, files)
    parser = MultipartParser(boundary, parts.callbacks(), max_header_count=8, max_header_size=4096)
    total = 0
    try:
        async for chunk in stream:
            total += len(chunk)
            if total > body:
                raise Refused(413, f"the upload is larger than {body >> 20} MiB", "send fewer or smaller files")
            if chunk:
                parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, "the upload is damaged", "send it again as multipart/form-data") from error
    if not parts.ended:
        raise Refused(400, "the upload ends too early", "send it again")
    if not parts.files:
        raise Refused(400, "the upload holds no file", "send images as parts named `files`")
    return parts.files


class _Parts:
    """What the parser tells while it reads."""

    def __init__(self, largest: int, most: int) -> None:
        self.files: list[bytes] = []
        self.ended = False
        self._largest, self._most = largest, most
        self._headers: dict[bytes, bytes] = {}
        self._field, self._value = bytearray(), bytearray()
        self._content = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda d, a, b: self._field.extend(d[a:b]),
            "on_header_value": lambda d, a, b: self._value.extend(d[a:b]),
            "on_header_end": self._header,
            "on_headers_finished": self._check,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.files) >= self._most:
            raise Refused(413, f"more than {self._most} files", "send them in several uploads")
        self._headers, self._content = {}, bytearray()

    def _header(self) -> None:
        self._headers[bytes(self._field).strip().lower()] = bytes(self._value).strip()
        self._field.clear()
        self._value.clear()

    def _check(self) -> None:
        try:
            disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        except Exception as error:
            raise Refused(400, "a part of the upload has a damaged head", "send it again") from error
        name = options.get(b"name", b"").decode("latin-1")
        if disposition != b"form-data" or name not in FIELDS:
            raise Refused(400, "a part of the upload is not named `files`", "send images as parts named `files`")
        kind = self._headers.get(b"content-type", b"application/octet-stream").split(b";")[0].strip().lower()
        text = kind.decode("latin-1")
        if not (text.startswith("image/") or text in TYPES):
            raise Refused(415, "a part of the upload is no image by its content type", "send PNG, JPEG, BMP or TIFF")
        if b"content-transfer-encoding" in self._headers:
            raise Refused(400, "a part of the upload is encoded", "send files as they are")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if len(self._content) + end - start > self._largest:
            raise Refused(413, f"a file is larger than {self._largest >> 20} MiB", "export the picture itself")
        self._content += memoryview(data)[start:end]

    def _end(self) -> None:
        self.files.append(bytes(self._content))
        self._content = bytearray()

    def _finish(self) -> None:
        self.ended = True
