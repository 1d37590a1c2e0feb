"""Images decoded and resized once and kept on the disk, so that a study of any size needs little memory.

The store lies in the user's home (``~/.sonobreast/store``, or ``$SONOBREAST_HOME/store``): studies and processes share
it. **It holds patient pictures**, resized and without their names; whoever deletes the folder loses nothing but the
time of the next decoding. Beyond 20 GB (``$SONOBREAST_STORE_GB``) the sets that were not used for longest go.

One folder a set of images, ``store/<key>/``, where the key is a digest of the contents of the image files in their
order, of the settings that change pixels, and of the versions of this format and of Pillow:

- ``first.u8``: the first channel of every image, (n, size, size);
- ``others.u8``: the other two channels of the images that are not grey, (m, size, size, 2). Of BUSI's 780 images 16
  are not, and the whole takes little more than a third of the room of (n, size, size, 3);
- ``store.json``: what is in it, with checksums. The folder gets its name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from sonobreast.config import Preprocess
from sonobreast.data import inpaint
from sonobreast.data.contents import content_and_digest
from sonobreast.data.mapped import Mapped
from sonobreast.data.pixels import Pixels
from sonobreast.data.preprocess import decode, prepare, quiet
from sonobreast.data.store_room import limit_in_bytes, locked, make_room, remove, remove_left_overs
from sonobreast.environment import available_memory, home
from sonobreast.errors import SonobreastError
from sonobreast.records import disk_error

Progress = Callable[[str, int, int], None]

VERSION = 1  # also to be raised when `decode` or `resize` give other pixels than before
_CHUNK = 64 << 20  # bytes of decoded images that wait to be written
_BLOCK = 4 << 20  # bytes under one checksum
_LONG = 256 << 20  # bytes whose check takes long enough to be shown


def open_store(
    paths: Sequence[Path],
    digests: Sequence[str],
    settings: Preprocess,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Pixels:
    """Decode and resize images, or read what an earlier call left.

    A store that is damaged or was written by another version is built anew. Every byte is checked at every opening:
    CRC-32 runs at more than 1 GB/s, the images are needed from the disk anyway, and a sample would miss a lost block.

    Parameters
    ----------
    paths : sequence of Path
    digests : sequence of str
        SHA-256 of each file, hexadecimal, as in the manifest.
    settings : Preprocess
        ``scaling`` is not looked at: it is done later.
    folder : Path or None
        Where the stores are; None: ``store`` in `sonobreast.environment.home`.
    progress : callable or None
        Told the stage, the images done, and of how many.
    say : callable or None
        Told, in a sentence, what a person should know: a wait, a damage, a store without room.

    Returns
    -------
    Pixels
        Where the folder cannot be used (read-only, full) and there is memory enough, images in memory.

    Raises
    ------
    SonobreastError
        If an image cannot be read (any more) or is not the one that was listed; if there is neither room on the disk
        nor in memory; if ``SONOBREAST_STORE_GB`` is not a number.
    """
    folder = home() / "store" if folder is None else folder
    tell = progress or (lambda stage, done, total: None)
    speak = say or (lambda text: None)
    limit = limit_in_bytes()
    key = key_of(digests, settings)
    if not paths:
        nothing = np.empty((0, settings.size, settings.size), np.uint8)
        return Pixels(Mapped.of(nothing), Mapped.of(nothing), np.empty(0, np.intp), key)
    place = folder / key
    try:
        with locked(folder, key, speak):
            found = _read(place, key, len(paths), settings.size, tell)
            if isinstance(found, str):
                if found:
                    speak(f"the store of decoded images is damaged ({found}): the images are decoded anew")
                    remove(place)
                remove_left_overs(folder, key)
                make_room(folder, limit, len(paths) * settings.size**2, _places())
                _build(folder, key, paths, digests, settings, tell)
                found = _read(place, key, len(paths), settings.size, None)
                if isinstance(found, str):
                    raise OSError(f"what was written is read back damaged: {found}")
            _in_use.add(found)
            os.utime(place / "store.json")  # the least recently used one goes first
            make_room(folder, limit, 0, _places())
            return found
    except (OSError, NotImplementedError) as error:  # filelock raises the latter where a file system has no locks
        reason = error if isinstance(error, OSError) else OSError("the file system has no locks")
        return _without_store(paths, digests, settings, key, folder, reason, tell, speak)


def key_of(digests: Sequence[str], settings: Preprocess) -> str:
    """Name of a store, 32 hexadecimal digits: of contents and order of the images, settings and versions."""
    made_with: list[object] = [VERSION, PIL.__version__, settings.size, settings.interpolation, settings.aspect]
    if settings.inpaint_marks:
        import scipy

        made_with += ["inpaint_marks", inpaint.VERSION, scipy.__version__]
    return hashlib.sha256(json.dumps([made_with, list(digests)]).encode()).hexdigest()[:32]


_in_use: weakref.WeakSet[Pixels] = weakref.WeakSet()


def _places() -> set[Path | None]:
    """Stores that this process reads."""
    return {pixels.place for pixels in _in_use}


def _decoded(
    paths: Sequence[Path], digests: Sequence[str], settings: Preprocess, tell: Progress
) -> Iterator[NDArray[np.uint8]]:
    """Chunks of decoded images, each uint8 (k, size, size, 3); the array is used again for the next chunk."""
    cores = os.cpu_count() or 1
    one = 3 * settings.size**2
    step = min(len(paths), max(2 * cores, _CHUNK // one))
    chunk = np.empty((step, settings.size, settings.size, 3), np.uint8)

    def put(start: int, i: int) -> None:
        chunk[i - start] = prepare(_read_image(paths[i], digests[i]), settings)

    with quiet(), ThreadPoolExecutor(cores) as pool:
        try:
            for start in range(0, len(paths), step):
                stop = min(start + step, len(paths))
                for done, _ in enumerate(pool.map(put, [start] * step, range(start, stop)), start=start + 1):
                    tell("decoding images", done, len(paths))
                yield chunk[: stop - start]
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C or a damaged image


def _read_image(path: Path, digest: str) -> NDArray[np.uint8]:
    """Decode the very image that was listed: a store under a digest must hold what the digest says."""
    try:
        content, found = content_and_digest(path)
    except OSError as error:
        raise SonobreastError(
            f"the image cannot be opened ({error.strerror or error})",
            file=path,
            remedy="put the file back, or leave it out",
        ) from error
    if found != digest:
        raise SonobreastError(
            "the image has changed since the data set was read",
            file=path,
            remedy="let no other program write to the data set, then give the same command again",
        )
    try:
        return decode(content)
    except SonobreastError as error:
        raise SonobreastError(error.what, file=path, remedy=error.remedy) from error


def _colours(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which images are not grey, (k,)."""
    first = images[..., 0]
    return np.asarray(
        [bool((c[..., 1] != f).any() or (c[..., 2] != f).any()) for f, c in zip(first, images, strict=True)]
    )


def _build(
    folder: Path, key: str, paths: Sequence[Path], digests: Sequence[str], settings: Preprocess, tell: Progress
) -> None:
    """Decode into a folder beside its place; renamed when every byte is on the disk."""
    partial = folder / f".{key}.partial"
    coloured: list[int] = []
    done = 0
    try:
        partial.mkdir()
        with (partial / "first.u8").open("wb") as first, (partial / "others.u8").open("wb") as others:
            sums = {"first.u8": _Checksums(), "others.u8": _Checksums()}
            for images in _decoded(paths, digests, settings, tell):
                own = np.flatnonzero(_colours(images))
                for stream, part in ((first, images[..., 0]), (others, images[own, ..., 1:])):
                    content = np.ascontiguousarray(part).data.cast("B") if part.size else b""
                    stream.write(content)
                    sums[Path(stream.name).name].add(content)
                coloured += [done + int(i) for i in own]
                done += len(images)
            for stream in (first, others):
                stream.flush()
                os.fsync(stream.fileno())
        card = {
            "version": VERSION,
            "key": key,
            "images": len(paths),
            "size": settings.size,
            "coloured": coloured,
            "block": _BLOCK,
            "files": {name: {"bytes": s.bytes, "crc32": s.finished()} for name, s in sums.items()},
        }
        with (partial / "store.json").open("w", encoding="utf-8") as stream_of_card:
            json.dump({**card, "sha256": _digest(card)}, stream_of_card)
            stream_of_card.flush()
            os.fsync(stream_of_card.fileno())
        partial.replace(folder / key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Checksums:
    """CRC-32 of every block of a stream of bytes."""

    def __init__(self) -> None:
        self.bytes = 0
        self._sums: list[int] = []
        self._current = 0

    def add(self, content: bytes | memoryview) -> None:
        """Go on with some bytes."""
        start = 0
        while start < len(content):
            part = content[start : start + _BLOCK - self.bytes % _BLOCK]
            self._current = zlib.crc32(part, self._current)
            self.bytes += len(part)
            start += len(part)
            if self.bytes % _BLOCK == 0:
                self._sums.append(self._current)
                self._current = 0

    def finished(self) -> list[int]:
        """All checksums; the last block may be shorter."""
        return self._sums + ([self._current] if self.bytes % _BLOCK else [])


def _digest(card: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def _read(place: Path, key: str, n: int, size: int, tell: Progress | None) -> Pixels | str:
    """The images of a store that is whole, or what is wrong with it; an empty text if there is none.

    Without ``tell`` the contents are not read again: they were written just now.
    """
    if not place.exists():
        return ""
    try:
        card = json.loads((place / "store.json").read_text(encoding="utf-8"))
        told = card.pop("sha256")
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return "store.json cannot be read"
    if told != _digest(card):
        return "store.json has changed"
    if [card.get(k) for k in ("version", "key", "images", "size")] != [VERSION, key, n, size]:
        return "store.json is that of another store"
    sizes = {"first.u8": n * size**2, "others.u8": len(card["coloured"]) * 2 * size**2}
    total = sum(sizes.values())
    seen = 0
    for name, expected in sizes.items():
        try:
            if (place / name).stat().st_size != expected:
                return f"{name} has another size"
            if tell is None:
                continue
            with (place / name).open("rb") as stream:
                for crc in card["files"][name]["crc32"]:
                    block = stream.read(card["block"])
                    if zlib.crc32(block) != crc:
                        return f"{name} has changed"
                    seen += len(block)
                    if total > _LONG:
                        tell("checking decoded images", seen * n // total, n)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return Pixels(
        Mapped(place / "first.u8", (n, size, size), np.uint8),
        Mapped(place / "others.u8", (len(card["coloured"]), size, size, 2), np.uint8),
        np.asarray(card["coloured"], np.intp),
        key,
        place,
    )


# Without a store


def _without_store(
    paths: Sequence[Path],
    digests: Sequence[str],
    settings: Preprocess,
    key: str,
    folder: Path,
    error: OSError,
    tell: Progress,
    say: Callable[[str], None],
) -> Pixels:
    """Decode into memory where a store cannot be kept and the images are few enough."""
    n, size = len(paths), settings.size
    needed = 3 * n * size**2
    reason = error.strerror or str(error)
    if needed > min(available_memory() // 4, 2 << 30):
        trouble = disk_error(error, folder)
        raise SonobreastError(
            f"the decoded images can neither be kept on the disk ({reason}) nor in memory: they take "
            f"up to {needed / 1e9:.1f} GB",
            file=folder,
            remedy="set SONOBREAST_HOME to a folder that can be written and has room, or use a smaller preprocess.size",
        ) from trouble
    say(f"decoded images cannot be kept in {folder} ({reason}): they are held in memory, and decoded again next time")
    first = np.empty((n, size, size), np.uint8)
    others: list[NDArray[np.uint8]] = []
    coloured: list[int] = []
    done = 0
    for images in _decoded(paths, digests, settings, tell):
        own = np.flatnonzero(_colours(images))
        first[done : done + len(images)] = images[..., 0]
        others.append(images[own, ..., 1:])
        coloured += [done + int(i) for i in own]
        done += len(images)
    rest = np.concatenate(others)
    return Pixels(Mapped.of(first), Mapped.of(rest), np.asarray(coloured, np.intp), key)
