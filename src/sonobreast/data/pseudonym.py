"""Identifiers replaced by keyed hashes: the same patient has the same name here, and nobody without the key knows who.

HMAC-SHA-256 (RFC 2104) with a key that belongs to the user. A plain hash would not do: patient numbers are short, and
all of them are hashed in a second. Taken from, in this order,

1. ``$SONOBREAST_PSEUDONYM_KEY``: the key itself, 16 characters or more;
2. ``$SONOBREAST_PSEUDONYM_KEY_FILE``: a file that holds it;
3. ``~/.sonobreast/pseudonym.key`` (or ``$SONOBREAST_HOME/pseudonym.key``): made at first use from 32 random bytes,
   readable by its owner only.

Two hospitals or two studies whose tables are to be joined share a key; whoever deletes the key cuts the tie for good.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from sonobreast.environment import home
from sonobreast.errors import SonobreastError

_SHORTEST = 16
_FORM = re.compile(r"^[a-z]+-[0-9a-f]{20}$")
_NOBODY = frozenset(
    {"", "0", "-", "anon", "anonymous", "anonymized", "anonymised", "deidentified", "none", "null", "unknown", "xxx"}
)
"""What de-identification tools write for every patient alike: it tells nobody from anybody."""


def pseudonym_key() -> bytes:
    """The user's key; made where there is none yet.

    Raises
    ------
    SonobreastError
        If the key is shorter than 16 characters, or its file can be neither read nor made.
    """
    given = os.environ.get("SONOBREAST_PSEUDONYM_KEY")
    if given is not None:
        return _checked(given, "the key in SONOBREAST_PSEUDONYM_KEY", None)
    named = os.environ.get("SONOBREAST_PSEUDONYM_KEY_FILE")
    path = Path(named) if named else home() / "pseudonym.key"
    try:
        if not named and not path.exists():
            _make(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SonobreastError(
            f"the key that replaces patient identifiers cannot be read or made ({reason})",
            file=path,
            remedy="set SONOBREAST_PSEUDONYM_KEY_FILE to a file with a key of 16 characters or more",
        ) from error
    return _checked(text, "the key that replaces patient identifiers", path)


def _checked(text: str, what: str, path: Path | None) -> bytes:
    key = text.strip()
    if len(key) < _SHORTEST:
        raise SonobreastError(
            f"{what} has {len(key)} characters: with a short key everybody can find the patients again",
            file=path,
            remedy='use 32 random bytes, for example from: python -c "import secrets; print(secrets.token_hex(32))"',
        )
    return key.encode()


def _make(path: Path) -> None:
    """Write a random key under another name first, so that two processes that begin at once end with the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(part, path)  # fails where another process was first: its key counts
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not path.exists():
                part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def pseudonym(kind: str, identifier: str, key: bytes) -> str:
    """A name for an identifier: ``kind-`` and 20 hexadecimal digits (80 bits).

    Parameters
    ----------
    kind : {"patient", "study", "series", "image", "group"}
        The same text of another kind has another name.
    identifier : str
        Spaces around it and upper case do not count.
    key : bytes
        From `pseudonym_key`.

    Returns
    -------
    str
        Empty where the identifier tells nobody apart (empty, ``anonymous``, ``unknown`` ...). A name that is a
        pseudonym already is given back as it is, so that a manifest can be read again.
    """
    text = identifier.strip(" \t\r\n\0").casefold()
    if text in _NOBODY:
        return ""
    if _FORM.match(text):
        return text
    digest = hmac.new(key, f"{kind}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256)
    return f"{kind}-{digest.hexdigest()[:20]}"
