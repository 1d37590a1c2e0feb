"""Which of several ways is the fastest on this machine: measured once, kept in the user's home."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sonobreast.errors import SonobreastError
from sonobreast.records import SCHEMA_VERSION, atomic

_ROUNDS = 2


def speed_file() -> Path:
    """``$SONOBREAST_HOME/speed.json``, or ``~/.sonobreast/speed.json``."""
    return Path(os.environ.get("SONOBREAST_HOME") or Path.home() / ".sonobreast") / "speed.json"


def fastest(key: str, ways: Mapping[str, Callable[[], object]]) -> str:
    """The fastest of several ways to do the same; measured if no earlier call did.

    Each way is tried once, for what is made at its first call, and then timed ``_ROUNDS`` times in turns with the
    others; the shortest time counts, because other processes can only lengthen it.

    Parameters
    ----------
    key : str
        Everything the answer may depend on.
    ways : mapping of str to callable
        One step of the work in each way. The first wins a draw.

    Returns
    -------
    str
        A key of ``ways``.
    """
    known = _read().get(key)
    if isinstance(known, dict) and known.get("fastest") in ways:
        return str(known["fastest"])
    seconds = dict.fromkeys(ways, float("inf"))
    for step in ways.values():
        step()
    for _ in range(_ROUNDS):
        for name, step in ways.items():
            started = time.perf_counter()
            step()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    best = min(seconds, key=lambda n: seconds[n])
    _remember(key, {"fastest": best, "seconds": {n: round(s, 4) for n, s in seconds.items()}})
    return best


def _read() -> dict[str, Any]:
    """What earlier calls measured; nothing where the file is missing, damaged or of a newer version."""
    try:
        content = json.loads(speed_file().read_text(encoding="utf-8"))
        measured = content["measured"] if content["schema_version"] <= SCHEMA_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(measured) if isinstance(measured, dict) else {}


def _remember(key: str, row: dict[str, Any]) -> None:
    """Add one measurement. Without a home, or room in it, the next call measures again."""
    with suppress(OSError, SonobreastError), atomic(speed_file()) as stream:
        json.dump({"schema_version": SCHEMA_VERSION, "measured": {**_read(), key: row}}, stream, indent=1)
