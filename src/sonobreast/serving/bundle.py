"""A folder that a hospital gets: the network, what is known of it, and a test that it passes there as it did here.

``BUNDLE/`` holds ``model.onnx``, ``bundle.json`` (`sonobreast.serving.about`), ``model_card.md``, ``self_test/`` (a
simulated image and what must come of it) and ``bundle.sha256``, the digest of ``bundle.json``, which holds those of all
other files. Digests show that a file was altered or damaged on the way; who made a bundle they do not show: compare
`Bundle.fingerprint` with the one that its maker states.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonobreast.errors import SonobreastError
from sonobreast.records import disk_error
from sonobreast.serving.about import ABOUT, MODEL, REMEDY, About, read_about
from sonobreast.serving.onnx_file import LARGEST

DIGEST = "bundle.sha256"
SELF_TEST_IMAGE = "self_test/image.png"
SELF_TEST_EXPECTED = "self_test/expected.json"
MODEL_CARD = "model_card.md"
TOLERANCE = 1e-3
"""Largest difference in probability between PyTorch at export and the bundle anywhere."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those that were written.

    Attributes
    ----------
    folder : Path
    about : About
    fingerprint : str
        SHA-256 of ``bundle.json``: equal if and only if every byte of the bundle is.
    """

    folder: Path
    about: About
    fingerprint: str


def open_bundle(folder: Path, *, only: tuple[str, ...] | None = None) -> Bundle:
    """Read a bundle and compare its files with their digests; nothing of it is run.

    Parameters
    ----------
    folder : Path
    only : tuple of str or None
        Files whose content is compared; None: all. That no file is missing or too many is always looked at.

    Raises
    ------
    SonobreastError
        If it is no bundle, or a file is missing, altered, or not one of its own; the file is named.
    """
    about, content = read_about(folder / ABOUT)
    fingerprint = hashlib.sha256(content).hexdigest()
    try:
        stated = plain_file(folder, DIGEST).read_bytes()
    except OSError as error:
        raise _altered(folder / DIGEST, "cannot be read") from error
    if stated != _digest_line(fingerprint):
        raise _altered(folder / ABOUT, f"is not the one that {DIGEST} belongs to")
    names = {*about.files, ABOUT, DIGEST}
    for found in _files(folder):
        if found not in names:
            raise _altered(folder / found, "does not belong to the bundle")
    for name, file in about.files.items():
        path = plain_file(folder, name)
        if path.stat().st_size != file.bytes:
            raise _altered(path, f"has {path.stat().st_size} bytes, and {file.bytes} were written")
        if (only is None or name in only) and _digest(path) != file.sha256:
            raise _altered(path, "was altered or damaged")
    return Bundle(folder, about, fingerprint)


def network_bytes(bundle: Bundle, name: str = MODEL) -> bytes:
    """The network's file, or a variant's, compared with its digest: what is read is what is run.

    Raises
    ------
    SonobreastError
        If the file was altered.
    """
    path = plain_file(bundle.folder, name)
    try:
        if path.stat().st_size > LARGEST:
            raise _altered(path, "is larger than any network's file can be")
        content = path.read_bytes()
    except OSError as error:
        raise _altered(path, "cannot be read") from error
    if hashlib.sha256(content).hexdigest() != bundle.about.files[name].sha256:
        raise _altered(path, "was altered or damaged")
    return content


def write_bundle(folder: Path, about: Mapping[str, Any], files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle: the folder has its name only when it is complete.

    Parameters
    ----------
    folder : Path
        Must not exist, or be empty.
    about : mapping
        `About` without ``files``.
    files : mapping of str to bytes

    Raises
    ------
    SonobreastError
        If the folder holds something, or cannot be written; nothing half-written stays.
    """
    folder = Path(os.path.abspath(folder))
    refuse_taken(folder)
    listed = {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in files.items()}
    text = json.dumps({**about, "files": listed}, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        digest = _digest_line(hashlib.sha256(text.encode()).hexdigest())
        for name, content in {**files, ABOUT: text.encode(), DIGEST: digest}.items():
            (partial / name).parent.mkdir(exist_ok=True)
            with (partial / name).open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        open_bundle(partial)
        if folder.is_dir():
            folder.rmdir()
        partial.replace(folder)
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_bundle(folder, only=())


def refuse_taken(folder: Path) -> None:
    """Refuse a place for a bundle that holds something already.

    Raises
    ------
    SonobreastError
    """
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise disk_error(error, folder) from error
    if taken:
        raise SonobreastError(
            "there is something already", file=folder, remedy="name a new folder; a bundle is never written over"
        )


def _digest_line(digest: str) -> bytes:
    """As ``sha256sum`` writes it, so that ``sha256sum -c`` reads it."""
    return f"{digest}  {ABOUT}\n".encode()


def plain_file(folder: Path, name: str) -> Path:
    path = folder / name
    # The bundle's own folder may be reached by a link, such as one that is called after the version in use
    if (path.parent != folder and path.parent.is_symlink()) or path.is_symlink() or not path.is_file():
        raise _altered(path, "is missing, or a link to another place")
    return path


def _files(folder: Path) -> list[str]:
    """Names of all files below the folder; links and folders within folders count as files."""
    found = []
    try:
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                found += [f"{entry.name}/{inner.name}" for inner in sorted(entry.iterdir())]
            else:
                found.append(entry.name)
    except OSError as error:
        raise _altered(folder, "cannot be read") from error
    return found


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise _altered(path, "cannot be read") from error
    return digest.hexdigest()


def _altered(path: Path, what: str) -> SonobreastError:
    return SonobreastError(f"the bundle is not as it was written: {path.name} {what}", file=path, remedy=REMEDY)
