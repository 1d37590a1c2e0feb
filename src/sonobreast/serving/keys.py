"""API keys: the file holds SHA-256 digests, never a key.

A line is ``NAME sha256:DIGEST``. Keys are drawn with 256 bits of chance, so that a digest cannot be searched for and
needs no slow hash; for the same reason only keys of `new_key` are taken.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from sonobreast.errors import SonobreastError

PREFIX = "sb_"
_LINE = re.compile(r"([A-Za-z0-9._-]{1,60})\s+sha256:([0-9a-f]{64})")
_KEY = re.compile(r"sb_[A-Za-z0-9_-]{43}")
_LARGEST = 1 << 20
_REMEDY = "make a key with `sonobreast serve-key NAME` and append the line that it prints"


@dataclass(frozen=True)
class Key:
    """Who may come in: a name for the log, and the SHA-256 of the key."""

    name: str
    digest: bytes


def new_key(name: str) -> tuple[str, str]:
    """A fresh key, and the line of the file that lets it in.

    Raises
    ------
    SonobreastError
        If the name is not of letters, digits, dots, hyphens and underscores.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise SonobreastError(
            "this is no name for a key", remedy="use up to 60 letters, digits, dots, hyphens and underscores"
        )
    return key, line


def read_keys(file: Path) -> tuple[Key, ...]:
    """Read a file of keys; empty lines and lines that begin with ``#`` are passed over.

    Raises
    ------
    SonobreastError
        If it cannot be read, others than its owner may write it, it holds no key, a line is none, or one key has two
        names.
    """
    try:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise SonobreastError(
                    "others than its owner may write this file of keys", file=file, remedy="chmod go-w it first"
                )
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise SonobreastError("too large for a file of keys", file=file, remedy=_REMEDY)
        lines = content.decode("utf-8-sig").splitlines()  # editors on Windows begin files with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SonobreastError(f"the keys cannot be read ({reason})", file=file, remedy=_REMEDY) from error
    found: dict[bytes, Key] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:  # the line is not shown: it may be a key that somebody wrote there
            raise SonobreastError(f"line {number} is not NAME sha256:DIGEST", file=file, remedy=_REMEDY)
        key = Key(match[1], bytes.fromhex(match[2]))
        if found.setdefault(key.digest, key).name != key.name:  # the log would name the wrong one
            raise SonobreastError(
                f"line {number} gives a key to {key.name} that {found[key.digest].name} has",
                file=file,
                remedy="make a key for each with `sonobreast serve-key NAME`",
            )
    if not found:
        raise SonobreastError("the file holds no keys", file=file, remedy=_REMEDY)
    return tuple(found.values())


def whose(presented: str, keys: tuple[Key, ...]) -> Key | None:
    """The key that was presented, or None. Takes as long for a wrong one as for a right one, wherever it stands."""
    digest = hashlib.sha256(presented.encode("utf-8", "replace")).digest()
    found = None
    for key in keys:
        if hmac.compare_digest(digest, key.digest):
            found = key
    return found if _KEY.fullmatch(presented) else None
