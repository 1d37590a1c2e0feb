"""Memory that a network gives back is kept by the process, so that the next layer does not fetch it from the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # names of mallopt in glibc's malloc.h


@cache
def keep_freed_memory() -> bool:
    """Let the allocator keep large blocks; with another C library than glibc nothing happens.

    By default glibc takes each feature map from the kernel and gives it back, and the kernel clears every page of it
    anew: a quarter to a third of the processor time of a ResNet50V2. The process then stays as large as it once was.

    Returns
    -------
    bool
        Whether the setting was made.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries have a mallopt that does nothing
        large = bool(library.mallopt(_MMAP_THRESHOLD, 1 << 30)) or bool(library.mallopt(_MMAP_MAX, 0))
        return large and bool(library.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False
