"""How often a test set has been looked at. Every look spends some of it: the best of many looks is partly luck.

A ledger in the user's home counts over all studies of this machine, because the second study of the same images chooses
by what the first one showed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sonobreast.environment import home
from sonobreast.records import Row


class Looks(Row):
    """How often the test set of one fold was looked at.

    Attributes
    ----------
    test_set : str
        Digest of the contents of its images.
    images : int
    here : int
        Trained networks of this study that were scored on it.
    before : int
        Trained networks of other studies on this machine that were scored on it earlier.
    """

    test_set: str
    images: int
    here: int
    before: int


def ledger_file() -> Path:
    """``$SONOBREAST_HOME/looks.jsonl``, or ``~/.sonobreast/looks.jsonl``."""
    return home() / "looks.jsonl"


def test_set_of(digests: Iterable[str]) -> str:
    """Name of a test set from the SHA-256 of its image files: the same for the same images in any order."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()[:16]


test_set_of.__test__ = False  # type: ignore[attr-defined]  # its name begins like a test


def record(study: str, runs: Mapping[str, Sequence[str]], images: Mapping[str, int]) -> list[Looks]:
    """Enter the looks of a study into the ledger and count.

    A run that was entered before (the study was called again) is not counted twice. A ledger that cannot be read or
    written (no home, no room) counts this study alone: it must never stop a study.

    Parameters
    ----------
    study : str
        Digest that tells this study from others.
    runs : mapping of str to sequence of str
        Test set -> runs scored on it.
    images : mapping of str to int
        Test set -> number of images.
    """
    known = _read()
    new = []
    for test_set, names in runs.items():
        entered = known.setdefault(test_set, {}).setdefault(study, set())
        new += [{"test_set": test_set, "study": study, "run": n} for n in names if n not in entered]
        entered.update(names)
    _append(new)
    return [
        Looks(
            test_set=t,
            images=images[t],
            here=len(known[t][study]),
            before=sum(len(names) for other, names in known[t].items() if other != study),
        )
        for t in runs
    ]


def _read() -> dict[str, dict[str, set[str]]]:
    """Test set -> study -> runs."""
    known: dict[str, dict[str, set[str]]] = {}
    try:
        with ledger_file().open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    known.setdefault(entry["test_set"], {}).setdefault(entry["study"], set()).add(entry["run"])
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a power cut left half-written
    except (OSError, UnicodeDecodeError):
        return {}
    return known


def _append(entries: Sequence[Mapping[str, str]]) -> None:
    if not entries:
        return
    time = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        ledger_file().parent.mkdir(parents=True, exist_ok=True)
        with ledger_file().open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps({**e, "time": time}) + "\n" for e in entries))
    except OSError:
        return
