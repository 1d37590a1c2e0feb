"""An array that stays in its file: the operating system reads what is asked for, and what was read is given back."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Index = int | np.integer[Any] | slice | Sequence[int] | NDArray[np.integer[Any]]
_HELD = 128 << 20  # bytes read before the pages are given back; a fresh read of a cached page costs a few microseconds


class Mapped:
    """A file's numbers as an array.

    Pages that were read count as memory of the process until the system needs them elsewhere, so that a program that
    reads all of a large file looks as large as the file. They are given back after every 128 MiB here; the system's
    cache still holds them.

    Attributes
    ----------
    array : ndarray
        For reading. A write would stay in memory and never reach the file.
    shape : tuple of int
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> None:
        """Map ``shape`` numbers from byte ``offset`` on; the file may be removed afterwards where the system allows it.

        Raises
        ------
        OSError
            If the file cannot be mapped or is too short.
        """
        count = int(np.prod(shape))
        self._map: mmap.mmap | None = None
        if count == 0:  # an empty file cannot be mapped
            array = np.empty(0, dtype)
        else:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            if len(self._map) < offset + count * np.dtype(dtype).itemsize:
                raise OSError(f"{path.name} is too short")
            array = np.frombuffer(self._map, dtype, count, offset)
        self.array: NDArray[Any] = array.reshape(shape)
        self.shape = shape
        self._touched = 0

    @classmethod
    def of(cls, array: NDArray[Any]) -> Mapped:
        """An array in memory, for use in the place of a file."""
        held = cls.__new__(cls)
        held._map, held.array, held.shape, held._touched = None, array, array.shape, 0
        return held

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index: Index) -> NDArray[Any]:
        """A copy of some rows: (..., *shape[1:])."""
        whole = isinstance(index, int | np.integer | slice)
        part: NDArray[Any] = self.array[index].copy() if whole else self.array[np.asarray(index, np.intp)]
        self.touched(part.nbytes)
        return part

    def touched(self, size: int) -> None:
        """Count bytes that were read from ``array``, and give the pages back where they are many."""
        self._touched += size
        if self._touched >= _HELD:
            self.release()

    def release(self) -> None:
        """Give the pages back; the next read finds them in the system's cache, or in the file."""
        self._touched = 0
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows, which trims by itself
            self._map.madvise(mmap.MADV_DONTNEED)
