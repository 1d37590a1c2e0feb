"""The folder that a command works in: held by one process, and claimed for one kind of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from sonobreast.errors import SonobreastError
from sonobreast.records import disk_error


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold a folder, made where it is missing: two processes in one folder would spoil each other's files."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        with lock.acquire(timeout=0):
            yield
    except Timeout as error:
        raise SonobreastError(
            "another sonobreast process is working in this folder",
            file=out,
            remedy="wait for it to end, or give another --out",
        ) from error
    except OSError as error:
        raise disk_error(error, out) from error


def refuse_foreign(out: Path, kind: str) -> None:
    """Refuse a folder that holds anything but earlier work of the same kind.

    Parameters
    ----------
    out : Path
    kind : str
        As in the key ``kind`` of ``config.yaml``; a study has none.
    """
    names = [p for p in out.iterdir() if p.name not in (".lock", "cache") and not is_left_over(p)]
    if not names:
        return
    try:
        config = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
        found = config.get("kind", "study") if isinstance(config, dict) else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        found = None
    if found != kind:
        holds = f"holds a {found}" if found else "is not empty"
        raise SonobreastError(f"the folder {holds}", file=out, remedy="give a new or empty folder with --out")


def is_left_over(path: Path) -> bool:
    """A file that a kill left half-written (see `sonobreast.records.atomic`)."""
    return path.name.startswith(".") and path.name.endswith(".partial")
