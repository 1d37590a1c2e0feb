"""The service's log: one JSON object a line on standard error, without names of files or anything of a patient."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_LIBRARIES = ("uvicorn", "uvicorn.error", "fastapi", "asyncio", "python_multipart", "python_multipart.multipart", "PIL")


def write(event: str, **said: Any) -> None:
    """Write one line; where nobody reads it or the disk is full, the service goes on without."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    with suppress(OSError, ValueError):
        sys.stderr.write(json.dumps({"time": moment, "event": event, **said}) + "\n")
        sys.stderr.flush()


class Lines(logging.Handler):
    """Turns what libraries log into such lines: level, logger and the message before its values are put in.

    Values may be parts of requests, and tracebacks their content, so neither is written.
    """

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        said = {"level": record.levelname.lower(), "logger": record.name, "message": str(record.msg)[:200].strip()}
        write("library", **said, **({"fault": kind} if kind else {}))


def take_over() -> None:
    """Send the log of the HTTP libraries here, warnings and worse."""
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [Lines(logging.WARNING)], False
        logger.setLevel(logging.WARNING)
