"""Files that are there whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sonobreast.errors import SonobreastError


def part_path(path: Path) -> Path:
    """Name of a file while it is being written: hidden, so that no reader takes it for an image."""
    return path.with_name(f".{path.name}.part")


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name, then rename; a reader sees the old content or the new, never half."""
    part_path(path).write_bytes(content)
    os.replace(part_path(path), path)


def encode_png(picture: npt.NDArray[np.uint8], *, compress_level: int = 3) -> bytes:
    """PNG of a grey picture (H, W); speckle hardly compresses, so a low level costs little room and saves much time."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()


def cannot_write(problem: OSError, out: Path) -> SonobreastError:
    """The error for a person whose folder or disk does not take a file."""
    remedy = "choose another folder, or give yourself the right to write there and room on the disk"
    return SonobreastError(f"cannot write: {problem.strerror or problem}", file=problem.filename or out, remedy=remedy)
