"""What DICOM libraries say of a file, kept from terminals and logs: their sentences quote values, names among them."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_LIBRARIES = ("pydicom", "highdicom", "gdcm", "PIL")
_OURS = r"(pydicom|highdicom|gdcm|PIL|openjpeg|jpeg_ls|sonobreast\.(data\.dicom|serving\.dicom)\w*)(\..*)?"
_lock = threading.Lock()
_inside = 0
_open = ExitStack()


@contextmanager
def hushed() -> Iterator[None]:
    """Silence warnings and loggers of the DICOM libraries; may be entered by many threads at once.

    Warning filters and loggers belong to the whole process: the first to come changes them, the last to go puts them
    back.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _open.enter_context(_silent())
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _open.close()


@contextmanager
def _silent() -> Iterator[None]:
    before = [(log, log.level, log.propagate) for log in map(logging.getLogger, _LIBRARIES)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_OURS)
        try:
            for log, _, _ in before:
                log.setLevel(logging.CRITICAL + 1)
                log.propagate = False
            yield
        finally:
            for log, level, propagate in before:
                log.setLevel(level)
                log.propagate = propagate
