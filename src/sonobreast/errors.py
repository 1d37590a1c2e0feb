"""The one error that this package shows to a person: what is wrong, in which file, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class SonobreastError(Exception):
    """A problem that the user can mend.

    Parameters
    ----------
    what : str
        What is wrong, one sentence without a full stop at the end.
    file : path or None
        The file or folder that it is about.
    remedy : str
        What to do, one sentence without a full stop at the end.
    """

    def __init__(self, what: str, *, file: str | Path | None = None, remedy: str = "") -> None:
        self.what = what
        self.file = None if file is None else str(file)
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        if self.file is not None:
            lines.append(f"  file: {self.file}")
        if self.remedy:
            lines.append(f"  what to do: {self.remedy}")
        return "\n".join(lines)


class Diverged(SonobreastError):
    """A loss or a weight that is not a finite number: this run cannot go on, others can."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """The known names closest to a mistyped one, as the end of a sentence; all of them where none is close."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    close = [lowered[k] for k in difflib.get_close_matches(name.lower(), lowered, n=n, cutoff=0.5)]
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(known[:40])
