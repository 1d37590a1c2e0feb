"""The features of one view of all images in a file, and whether a study's views are held in memory or read from there.

A file is a safetensors file with one tensor ``features``, float32 (n, F). Rows of images that are not trained on are
never written: most file systems give them no room.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sonobreast.data.mapped import Mapped
from sonobreast.environment import available_memory
from sonobreast.records import atomic

Part = tuple[NDArray[np.intp], NDArray[np.float32]]
_MEMORY = 1 << 30
_RESERVE = 1 << 30  # bytes of the disk that are left for the results
_ROWS = 4096


@dataclass(frozen=True)
class Plan:
    """How the features of a study are kept.

    Attributes
    ----------
    mapped : bool
        Read from the disk where they are asked for, instead of held in memory.
    cached : bool
        There is room for files.
    views : int
        At least 1; fewer than wanted where there is no room.
    why : str
        A sentence for the person if there are fewer.
    """

    mapped: bool
    cached: bool
    views: int
    why: str = ""


def plan_views(n: int, trained_on: int, features: int, wanted: int, cache: Path | None) -> Plan:
    """Decide where the features go: memory if they are few, else the disk, else fewer views.

    Parameters
    ----------
    n, trained_on : int
        Images, and how many of them need augmented views.
    features : int
        Of each image.
    wanted : int
        Views.
    cache : Path or None
        Folder for the files; None: only memory is to be had.
    """
    row = 4 * features
    memory = available_memory()
    if (wanted + 1) * n * row <= min(memory // 4, _MEMORY):
        return Plan(False, cache is not None, wanted)
    in_memory = memory // 2 // max(1, n * row) - 1
    on_disk, room = 0, f"{memory / 1e9:.1f} GB of memory"
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        finished = sum(getattr(p.stat(), "st_blocks", 0) * 512 for p in cache.iterdir())
        free = shutil.disk_usage(cache).free + finished
        on_disk = (free - _RESERVE - n * row) // max(1, trained_on * row)
        room += f" and {free / 1e9:.1f} GB of the disk"
    views = min(wanted, max(1, on_disk, in_memory))
    mapped = on_disk >= views
    if views == wanted:
        return Plan(mapped, mapped, wanted)
    why = (
        f"the features of {wanted} augmented views would take {wanted * trained_on * row / 1e9:.1f} GB, "
        f"and only {room} are free: {views} of {wanted} views are used"
    )
    return Plan(mapped, mapped, views, why)


def write_view(file: Path, shape: tuple[int, int], parts: Iterator[Part]) -> None:
    """Write a file part by part, so that a view need not fit into memory.

    Parameters
    ----------
    file : Path
    shape : (n, F)
    parts : iterator of (rows, features)
        Row numbers, (k,), and their features, float32 (k, F). An error that it raises leaves no file.

    Raises
    ------
    SonobreastError
        If it cannot be written.
    """
    row = 4 * shape[1]
    described = {"features": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, shape[0] * row]}}
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % 64)  # the numbers begin where a processor likes to find them
    start = 8 + len(header)
    with atomic(file, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for rows, features in parts:
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                if len(run):
                    stream.seek(start + int(rows[run[0]]) * row)
                    stream.write(features[run].astype("<f4", copy=False).tobytes())
        stream.truncate(start + shape[0] * row)


def read_view(file: Path, shape: tuple[int, int]) -> Mapped | None:
    """Map a file; None where it is not there, is damaged, or holds anything but finite features of this shape."""
    try:
        with safe_open(file, "np") as opened:
            part = opened.get_slice("features")
            if tuple(part.get_shape()) != shape or part.get_dtype() != "F32" or len(list(opened.keys())) != 1:
                return None
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
        mapped = Mapped(file, shape, np.dtype("<f4"), start)
    except (OSError, SafetensorError, KeyError):
        return None
    for first in range(0, shape[0], _ROWS):
        if not np.isfinite(mapped.take(slice(first, first + _ROWS))).all():
            return None
    mapped.release()
    return mapped
