"""What an ONNX file holds, read from its bytes before anything runs it: no other files, foreign operators or loops.

An ONNX file is a protocol-buffer message (onnx.proto3): fields of a number and a wire type, nested by length. What has
to be known is few fields deep, so it is walked here, and the serving install needs no further library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sonobreast.errors import SonobreastError

LARGEST = 2**31 - 1  # bytes: the limit of a protocol-buffer message
_DOMAINS = ("", "ai.onnx")
_FOREVER = ("Loop", "Scan")  # nothing that is exported here has one, and a loop may never end
_DEEPEST = 16
_REMEDY = "use a bundle that `sonobreast export` wrote"


@dataclass(frozen=True)
class Contents:
    """What a file declares.

    Attributes
    ----------
    opset : int
        Version of ONNX' own operators.
    operators : frozenset of str
        That it uses.
    """

    opset: int
    operators: frozenset[str]


def inspect(content: bytes, name: str) -> Contents:
    """Look through an ONNX file.

    Parameters
    ----------
    content : bytes
    name : str
        Of the file, for messages.

    Raises
    ------
    SonobreastError
        If the file is no ONNX file, keeps weights in other files, or uses operators of its own or loops.
    """
    if len(content) > LARGEST:
        raise _refused("is larger than 2 GiB", name)
    opset, graphs = 0, 0
    operators: set[str] = set()
    try:
        view = memoryview(content)
        for number, value in _fields(view):
            if number == 8:
                domain, version = _operator_set(value)
                if domain in _DOMAINS:
                    opset = version
            elif number == 7:
                graphs += 1
                _graph(_message(value), name, operators, 0)
            elif number in (20, 25):
                raise _refused("carries functions or training graphs of its own", name)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise _refused(f"is no ONNX file ({error})", name) from error
    if graphs != 1 or not opset:
        raise _refused("is no ONNX file (it holds no graph)", name)
    return Contents(opset, frozenset(operators))


def _refused(what: str, name: str) -> SonobreastError:
    return SonobreastError(f"the network's file {what}", file=name, remedy=_REMEDY)


def _graph(view: memoryview, name: str, operators: set[str], depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("graphs within graphs without end")
    for number, value in _fields(view):
        if number == 1:
            _node(_message(value), name, operators, depth)
        elif number == 5:
            _tensor(_message(value), name)
        elif number == 15:
            raise _refused("holds sparse weights", name)


def _node(view: memoryview, name: str, operators: set[str], depth: int) -> None:
    kind, domain = "", ""
    for number, value in _fields(view):
        if number == 4:
            kind = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            _attribute(_message(value), name, operators, depth)
    if domain not in _DOMAINS:
        raise _refused(f"uses an operator of its own ({domain[:60]}.{kind[:60]})", name)
    if kind in _FOREVER:
        raise _refused(f"uses {kind}, which may never end", name)
    operators.add(kind)


def _attribute(view: memoryview, name: str, operators: set[str], depth: int) -> None:
    for number, value in _fields(view):
        if number in (5, 10):
            _tensor(_message(value), name)
        elif number in (6, 11):
            _graph(_message(value), name, operators, depth + 1)
        elif number in (22, 23):
            raise _refused("holds sparse weights", name)


def _tensor(view: memoryview, name: str) -> None:
    for number, value in _fields(view):
        if number == 13 or (number == 14 and value != 0):
            raise _refused("keeps weights in another file", name)


def _operator_set(value: int | memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, inner in _fields(_message(value)):
        if number == 1:
            domain = _text(inner)
        elif number == 2 and isinstance(inner, int):
            version = inner
    return domain, version


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message belongs")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or the bytes of whatever has a length."""
    at, end = 0, len(view)
    while at < end:
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(view, at)
            if length > end - at:
                raise ValueError("it ends too early")
            yield number, view[at : at + length]
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise ValueError("it ends too early")
        else:
            raise ValueError(f"wire type {wire}")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number without end")
