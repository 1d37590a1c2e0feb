"""The store of decoded images: what it gives is what decoding gives, and what is damaged is never trusted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.fake import speckle, write_class_folders

from sonobreast.config import Preprocess
from sonobreast.data import mapped, store
from sonobreast.data.mapped import Mapped
from sonobreast.data.pixels import Pixels
from sonobreast.data.preprocess import decode, resize
from sonobreast.data.store import key_of, open_store
from sonobreast.errors import SonobreastError

SMALL = Preprocess(size=32)


def digests(paths: Sequence[Path]) -> list[str]:
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]


def opened(paths: Sequence[Path], folder: Path, settings: Preprocess = SMALL, **options: Any) -> Pixels:
    return open_store(paths, digests(paths), settings, folder=folder, **options)


def plain(paths: Sequence[Path], settings: Preprocess = SMALL) -> np.ndarray:
    return np.stack([resize(decode(p), settings) for p in paths])


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Grey pictures with two coloured ones among them."""
    found = sorted(write_class_folders(tmp_path / "set").glob("*/*.png"))
    for path in (found[3], found[-1]):
        picture = np.asarray(Image.open(path).convert("RGB")).copy()
        picture[5:15, 5:25] = (250, 40, 10)
        Image.fromarray(picture).save(path)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "store"


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every image that is decoded."""
    seen: list[int] = []
    original = store.decode

    def counted(source: Any) -> Any:
        seen.append(1)
        return original(source)

    monkeypatch.setattr(store, "decode", counted)
    return seen


# What it gives


@pytest.mark.parametrize(
    "settings",
    [SMALL, Preprocess(size=47, interpolation="area", aspect="pad"), Preprocess(size=32, interpolation="nearest")],
)
def test_pixels_are_those_of_decoding(paths: list[Path], folder: Path, settings: Preprocess) -> None:
    expected = plain(paths, settings)
    for pixels in (opened(paths, folder, settings), opened(paths, folder, settings)):
        assert pixels.shape == expected.shape
        assert pixels.dtype == expected.dtype
        assert len(pixels) == len(paths)
        np.testing.assert_array_equal(np.asarray(pixels), expected)


@pytest.mark.parametrize(
    "index", [3, -1, np.int64(2), slice(2, 9, 2), [4], [3, 3, 0], np.array([20, 3, 1]), np.empty(0, np.intp)], ids=str
)
def test_it_is_indexed_as_an_array(paths: list[Path], folder: Path, index: Any) -> None:
    part, expected = opened(paths, folder)[index], plain(paths)[index]
    assert type(part) is np.ndarray
    assert (part.shape, part.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(part, expected)
    part[...] = 0  # a copy: neither the store nor the next reader sees it
    np.testing.assert_array_equal(opened(paths, folder)[index], expected)


@pytest.mark.parametrize("kind", ["grey", "colour", "one"])
def test_grey_images_take_a_third_of_the_room(tmp_path: Path, folder: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(1 if kind == "one" else 9)]
    for i, path in enumerate(paths):
        picture = rng.integers(0, 256, (40, 50, 3), np.uint8) if kind == "colour" else speckle(i)[0]
        Image.fromarray(picture).save(path)
    np.testing.assert_array_equal(np.asarray(opened(paths, folder)), plain(paths))
    size = sum(p.stat().st_size for p in folder.glob("*/*.u8"))
    assert size == len(paths) * 32 * 32 * (3 if kind == "colour" else 1)


def test_many_chunks_blocks_and_given_back_pages(
    paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_CHUNK", 1)
    monkeypatch.setattr(store, "_BLOCK", 1000)
    monkeypatch.setattr(store, "_LONG", 0)
    monkeypatch.setattr(mapped, "_HELD", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    steps: list[tuple[str, int, int]] = []
    for _ in range(2):
        pixels = opened(paths, folder, progress=lambda *step: steps.append(step))
        np.testing.assert_array_equal(np.asarray(pixels), plain(paths))
    n = len(paths)
    assert steps[:n] == [("decoding images", i + 1, n) for i in range(n)]
    assert {s[0] for s in steps[n:]} == {"checking decoded images"}
    assert steps[-1][1] == n


def test_no_images(folder: Path) -> None:
    assert opened([], folder).shape == (0, 32, 32, 3)


def test_names_with_spaces_and_other_alphabets(tmp_path: Path, folder: Path) -> None:
    paths = sorted(write_class_folders(tmp_path / "mes données", {"доброкачественное": 3}).rglob("*.png"))
    paths = [p.rename(p.with_name(f"乳房 {i} ü (1).png")) for i, p in enumerate(paths)]
    place = folder.parent / "хранилище 1"
    np.testing.assert_array_equal(np.asarray(opened(paths, place)), plain(paths))
    written = "".join(p.read_text() for p in place.rglob("store.json"))
    assert "ü" not in written, "the store names no image"


# When it decodes


def test_second_opening_does_not_decode(paths: list[Path], folder: Path, decodings: list[int]) -> None:
    first = opened(paths, folder)
    assert len(decodings) == len(paths)
    moved = [p.rename(p.with_name(f"other_{p.name}")) for p in paths]
    second = opened(moved, folder, Preprocess(size=32, scaling="unit"))
    assert len(decodings) == len(paths), "neither names nor scaling change pixels"
    assert first.key == second.key


def changed_image(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> Preprocess:
    Image.fromarray(speckle(99, "malignant", 40, 40)[0]).save(paths[0])
    return SMALL


def changed_order(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> Preprocess:
    paths.reverse()
    return SMALL


def changed_version(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> Preprocess:
    monkeypatch.setattr(store, "VERSION", 2)
    return SMALL


def changed_pillow(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> Preprocess:
    monkeypatch.setattr(store.PIL, "__version__", "99.0")
    return SMALL


@pytest.mark.parametrize(
    "change",
    [
        changed_image,
        changed_order,
        changed_version,
        changed_pillow,
        lambda p, m: Preprocess(size=33),
        lambda p, m: Preprocess(size=32, aspect="pad"),
        lambda p, m: Preprocess(size=32, interpolation="area"),
    ],
)
def test_whatever_changes_pixels_decodes_anew(
    paths: list[Path],
    folder: Path,
    decodings: list[int],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[Path], pytest.MonkeyPatch], Preprocess],
) -> None:
    opened(paths, folder)
    settings = change(paths, monkeypatch)
    pixels = opened(paths, folder, settings)
    assert len(decodings) == 2 * len(paths)
    np.testing.assert_array_equal(np.asarray(pixels), plain(paths, settings))


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def rewrite(place: Path, **changes: Any) -> None:
    """Change the card as an honest writer of something else would: with its right digest."""
    card = json.loads((place / "store.json").read_text())
    del card["sha256"]
    card |= changes
    (place / "store.json").write_text(json.dumps({**card, "sha256": store._digest(card)}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: flip(p / "first.u8", 0),
        lambda p: flip(p / "first.u8", -1),
        lambda p: flip(p / "first.u8", 9000),
        lambda p: flip(p / "others.u8", 1000),
        lambda p: os.truncate(p / "first.u8", 5000),
        lambda p: os.truncate(p / "others.u8", 0),
        lambda p: (p / "first.u8").unlink(),
        lambda p: (p / "store.json").unlink(),
        lambda p: (p / "store.json").write_text("[]"),
        lambda p: (p / "store.json").write_bytes(b"\xff\x00"),
        lambda p: flip(p / "store.json", 30),
        lambda p: rewrite(p, version=0),
        lambda p: rewrite(p, images=3),
        lambda p: rewrite(p, coloured=[]),
    ],
)
def test_damaged_store_is_built_anew(
    paths: list[Path], folder: Path, decodings: list[int], damage: Callable[[Path], None]
) -> None:
    key = opened(paths, folder).key
    damage(folder / key)
    told: list[str] = []
    pixels = opened(paths, folder, say=told.append)
    assert len(told) == 1
    assert "damaged" in told[0]
    assert len(decodings) == 2 * len(paths)
    np.testing.assert_array_equal(np.asarray(pixels), plain(paths))
    opened(paths, folder, say=told.append)
    assert len(told) == 1
    assert len(decodings) == 2 * len(paths)


def test_image_that_is_gone_damaged_or_changed_is_named(paths: list[Path], folder: Path) -> None:
    listed = digests(paths)
    content = paths[3].read_bytes()
    for spoiled, word in ((content[:100], "changed"), (None, "opened")):
        paths[3].unlink()
        if spoiled is not None:
            paths[3].write_bytes(spoiled)
        with pytest.raises(SonobreastError, match=word) as caught:
            open_store(paths, listed, SMALL, folder=folder)
        assert caught.value.file == str(paths[3])
    paths[3].write_bytes(content[:100])
    with pytest.raises(SonobreastError, match="not a readable image") as caught:
        opened(paths, folder)
    assert caught.value.file == str(paths[3])
    assert [p.name for p in folder.iterdir() if not p.name.endswith(".lock")] == []


# Processes

_OTHER = """
import sys, time, hashlib
from pathlib import Path
from sonobreast.config import Preprocess
from sonobreast.data import store
folder, images, wait = Path(sys.argv[1]), sorted(Path(sys.argv[2]).rglob("*.png")), float(sys.argv[3])
decode, seen = store.decode, []
def slow(source):
    seen.append(1)
    time.sleep(wait)
    return decode(source)
store.decode = slow
digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in images]
pixels = store.open_store(images, digests, Preprocess(size=32), folder=folder, say=lambda text: print(text, flush=True))
print(len(seen), hashlib.sha256(pixels[:].tobytes()).hexdigest())
"""


def other_process(folder: Path, paths: Sequence[Path], wait: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", _OTHER, str(folder), str(paths[0].parent.parent), str(wait)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def until(found: Callable[[], bool]) -> None:
    for _ in range(2000):
        if found():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_two_processes_decode_once(paths: list[Path], folder: Path) -> None:
    first = other_process(folder, paths, 0.1)
    until(lambda: any(folder.glob(".*.partial")))
    second = other_process(folder, paths, 0.1)
    said = [p.communicate(timeout=60)[0].splitlines() for p in (first, second)]
    digest = hashlib.sha256(plain(paths).tobytes()).hexdigest()
    assert said[0] == [f"{len(paths)} {digest}"]
    assert said[1] == ["another process is decoding the same images: waiting for it", f"0 {digest}"]


def test_what_a_killed_process_left_is_removed(paths: list[Path], folder: Path) -> None:
    killed = other_process(folder, paths, 10.0)
    until(lambda: any(folder.glob(".*.partial")))
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert [p.name for p in folder.iterdir() if not p.name.startswith(".")] == []
    opened(paths[:2], folder)  # of another set of images
    assert not list(folder.glob(".*.partial"))
    np.testing.assert_array_equal(np.asarray(opened(paths, folder)), plain(paths))


# Room


def test_least_recently_used_stores_are_removed(
    paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = [p for i, p in enumerate(paths) if i not in (3, len(paths) - 1)][:8]
    sets = [grey[i : i + 2] for i in (0, 2, 4)]
    for files in sets:
        opened(files, folder)
    one = sum(p.stat().st_size for p in next(p for p in folder.iterdir() if p.is_dir()).iterdir())
    opened(sets[0], folder)  # now the second is the one that was not used for longest
    monkeypatch.setenv("SONOBREAST_STORE_GB", str(3.5 * one / 1e9))
    opened(grey[6:8], folder)

    def kept() -> list[bool]:
        return [(folder / key_of(digests(files), SMALL)).exists() for files in (*sets, grey[6:8])]

    assert kept() == [True, False, True, True]
    held = opened(sets[2], folder)
    monkeypatch.setenv("SONOBREAST_STORE_GB", "0")
    newest = opened(sets[0], folder)
    assert kept() == [True, False, True, False], "what this process uses stays"
    np.testing.assert_array_equal(held[:], plain(sets[2]))
    again = opened(sets[2], folder)
    del again  # the first one still reads that store
    opened(sets[0], folder)
    assert kept() == [True, False, True, False]
    del held, newest


@pytest.mark.parametrize("limit", ["much", "-1", "nan"])
def test_limit_that_is_no_number(paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("SONOBREAST_STORE_GB", limit)
    with pytest.raises(SonobreastError, match="SONOBREAST_STORE_GB"):
        opened(paths, folder)


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def test_full_disk_holds_few_images_in_memory(paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch)
    told: list[str] = []
    pixels = opened(paths, folder, say=told.append)
    np.testing.assert_array_equal(np.asarray(pixels), plain(paths))
    np.testing.assert_array_equal(pixels[[3, 1]], plain(paths)[[3, 1]])
    assert "No space left" in told[0]
    assert not [p for p in folder.iterdir() if not p.name.endswith(".lock")]
    assert pixels.key == key_of(digests(paths), SMALL)


def test_full_disk_and_too_many_images_for_memory(
    paths: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch)
    monkeypatch.setattr(store, "available_memory", lambda: 1000)
    with pytest.raises(SonobreastError, match="No space left") as caught:
        opened(paths, folder)
    assert caught.value.file == str(folder)
    assert "SONOBREAST_HOME" in caught.value.remedy


def test_home_that_cannot_be_written(paths: list[Path], folder: Path) -> None:
    folder.parent.write_text("a file where the folder should be")
    told: list[str] = []
    np.testing.assert_array_equal(np.asarray(opened(paths, folder, say=told.append)), plain(paths))
    assert len(told) == 1


def test_store_is_in_the_home_folder(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONOBREAST_HOME", str(tmp_path / "elsewhere"))
    key = open_store(paths, digests(paths), SMALL).key
    assert (tmp_path / "elsewhere" / "store" / key / "store.json").is_file()
    if os.name == "posix":
        assert (tmp_path / "elsewhere" / "store").stat().st_mode & 0o077 == 0, "patient pictures are nobody else's"


def test_mapped_file_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with pytest.raises(OSError, match="too short"):
        Mapped(tmp_path / "file", (101,), np.uint8)
    with pytest.raises(OSError, match="too short"):
        Mapped(tmp_path / "file", (25,), np.float32, offset=4)
