"""Who may touch a store of decoded images, and which ones go when there is no room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sonobreast.errors import SonobreastError

_LIMIT_GB = 20.0


def limit_in_bytes() -> float:
    """Bytes that all stores may take together."""
    text = os.environ.get("SONOBREAST_STORE_GB") or str(_LIMIT_GB)
    try:
        limit = float(text) * 1e9
    except ValueError:
        limit = -1.0
    if not limit >= 0.0:
        raise SonobreastError(
            f"SONOBREAST_STORE_GB is {text!r}, not a number from 0 on",
            remedy="set it to the gigabytes that decoded images may take on the disk, or unset it",
        )
    return limit


@contextmanager
def locked(folder: Path, key: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold one store; a second process waits until the first has built it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # patient pictures are nobody else's
    lock = FileLock(folder / f".{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process is decoding the same images: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove(place: Path) -> None:
    """Take a store away in one step, so that no reader finds half of it; where it cannot be, leave it."""
    waste = place.with_name(f".{place.name}.removed.partial")
    shutil.rmtree(waste, ignore_errors=True)
    try:
        place.replace(waste)
    except OSError:
        return  # Windows keeps folders whose files are open
    shutil.rmtree(waste, ignore_errors=True)


def remove_left_overs(folder: Path, key: str) -> None:
    """Remove what a killed process left of this store, and of others that nobody is building."""
    for partial in folder.glob(".*.partial"):
        owner = partial.name[1:].split(".")[0]
        if owner == key:
            shutil.rmtree(partial, ignore_errors=True)
        else:
            with _if_free(folder, owner) as free:
                if free:
                    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _if_free(folder: Path, key: str) -> Iterator[bool]:
    lock = FileLock(folder / f".{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def make_room(folder: Path, limit: float, coming: int, in_use: Collection[Path | None]) -> None:
    """Remove the least recently used stores while all together, with ``coming`` bytes more, take too much room."""
    stores = []
    for place in folder.iterdir():
        if not place.name.startswith(".") and place.is_dir():
            try:
                files = {p.name: p.stat() for p in place.iterdir()}
            except OSError:
                continue  # another process is removing it
            used = files["store.json"].st_mtime_ns if "store.json" in files else 0
            stores.append((used, place, sum(f.st_size for f in files.values())))
    total = coming + sum(size for _, _, size in stores)
    for _, place, size in sorted(stores):
        if total <= limit and coming < shutil.disk_usage(folder).free:
            return
        if place not in in_use:
            with _if_free(folder, place.name) as free:
                if free:
                    remove(place)
                    total -= 0 if place.exists() else size
