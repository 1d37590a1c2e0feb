"""A file's content with its digest; a DICOM clip stays on the disk, because it may be larger than memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sonobreast.data.dicom import is_dicom


def content_and_digest(path: Path) -> tuple[bytes | Path, str]:
    """What `sonobreast.data.preprocess.decode` takes, and the SHA-256 of the file's bytes, hexadecimal.

    Returns
    -------
    content : bytes or Path
        The bytes that the digest is of; of a DICOM file the path, to read only the frames that are needed.
    digest : str

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    if is_dicom(path):
        with path.open("rb") as stream:
            return path, hashlib.file_digest(stream, "sha256").hexdigest()
    content = path.read_bytes()
    return content, hashlib.sha256(content).hexdigest()
