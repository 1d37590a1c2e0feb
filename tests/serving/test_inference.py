"""Many files to one table: every file once, whatever happens in between."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fake import save_mask, speckle

from sonobreast.errors import SonobreastError
from sonobreast.records import read_table
from sonobreast.serving import inference
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.inference import Outcome, find_files, infer, problems_file, shown
from sonobreast.serving.predictor import Predictor, load_predictor
from sonobreast.serving.readers import USUAL, Frame, Limits, Place


@pytest.fixture(scope="module")
def predictor(ensemble: Bundle) -> Predictor:
    return load_predictor(ensemble)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Twelve scans in folders, a film of three pictures, masks, a damaged file, a blank one, a text."""
    folder = tmp_path / "in"
    for k in range(12):
        picture, lesion = speckle(k, ("benign", "malignant")[k % 2])
        place = folder / f"day {k % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"scan {k}{('.png', '.JPG', '.bmp')[k % 3]}")
        save_mask(place / f"scan {k}_mask.png", lesion)
    film = [Image.fromarray(speckle(50 + k)[0]) for k in range(3)]
    film[0].save(folder / "film.tiff", save_all=True, append_images=film[1:])
    (folder / "masks").mkdir()
    save_mask(folder / "masks" / "scan 0.png", speckle(0)[1])
    (folder / "damaged.png").write_bytes((folder / "day 0" / "scan 0.png").read_bytes()[:300])
    Image.new("L", (50, 40)).save(folder / "blank.png")
    (folder / "read me.txt").write_text("no image")
    return folder


def table(out: Path) -> list[dict[str, str]]:
    return read_table(out)


def test_one_row_an_image_and_the_rest_is_named(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "inference.csv"
    told: list[tuple[int, int]] = []
    found = infer(predictor, [tree], out, progress=lambda _, done, total: told.append((done, total)))
    assert found == Outcome(files=15, kept=0, predicted=15, problems=2, masks=13)
    assert told[-1] == (15, 15)
    rows = table(out)
    assert len({(r["file"], r["frame"]) for r in rows}) == len(rows) == 15
    for row in rows:
        values = [float(row[f"p_{c}"]) for c in ("benign", "malignant", "normal")]
        assert sum(values) == pytest.approx(1.0, abs=1e-5)
        wanted = predictor.predict(Path(row["file"])) if row["frames"] == "1" else None
        if wanted is not None:
            np.testing.assert_allclose(values, wanted.probability, atol=2e-6)
            assert row["malignant"] == ("yes" if wanted.malignant else "no")
    assert [r["frame"] for r in rows if r["file"].endswith("film.tiff")] == ["0", "1", "2"]
    assert {Path(r["file"]).name for r in read_table(problems_file(out))} == {"damaged.png", "blank.png"}


def test_a_second_call_adds_nothing(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "inference.csv"
    infer(predictor, [tree], out)
    before = out.read_bytes()
    again = infer(predictor, [tree, tree / "day 0", tree / "day 0" / "scan 0.png"], out)
    assert (again.predicted, again.kept, again.problems) == (0, 15, 2)
    assert out.read_bytes() == before


def test_a_table_cut_anywhere_is_made_whole(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "inference.csv"
    infer(predictor, [tree], out)
    whole = out.read_bytes()
    rows = table(out)
    rng = np.random.default_rng(3)
    lines = [0, *(i + 1 for i, c in enumerate(whole) if c == 10)]
    cuts = [1, lines[1] - 1, lines[1], lines[-2] - 1, *(int(c) for c in rng.integers(0, len(whole), 6))]
    for cut in cuts:
        for tail in (b"", b"\0" * 40):  # a power cut may leave zeros
            out.write_bytes(whole[:cut] + (tail if cut > lines[1] else b""))
            infer(predictor, [tree], out)
            found = table(out)
            assert sorted((r["file"], r["frame"]) for r in found) == sorted((r["file"], r["frame"]) for r in rows)
            for row in found:
                [same] = [r for r in rows if (r["file"], r["frame"]) == (row["file"], row["frame"])]
                assert row["predicted"] == same["predicted"]


def test_tables_of_others_are_refused(predictor: Predictor, single: Bundle, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "inference.csv"
    infer(predictor, [tree / "day 0"], out, spacing_mm=0.1)
    before = out.read_bytes()
    with pytest.raises(SonobreastError, match="another bundle"):
        infer(load_predictor(single), [tree], out)
    with pytest.raises(SonobreastError, match="spacing"):
        infer(predictor, [tree], out, spacing_mm=0.2)
    assert out.read_bytes() == before
    out.write_text("a,b\n1,2\n")
    with pytest.raises(SonobreastError, match="columns"):
        infer(predictor, [tree], out)
    assert out.read_text() == "a,b\n1,2\n"


def test_two_processes_do_not_share_a_table(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "inference.csv"
    with out.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(SonobreastError, match="another process"):
            infer(predictor, [tree], out)


def test_masks_are_told_by_name_and_place(tree: Path) -> None:
    files, masks = find_files([tree])
    assert masks == 13
    assert not any("mask" in f.as_posix().removeprefix(tree.as_posix()) for f in files)
    alone = tree / "masks" / "scan 0.png"
    assert find_files([alone]) == ([alone], 0)
    lonely = tree / "day 0" / "other_mask.png"
    shutil.copy(tree / "day 0" / "scan 0.png", lonely)
    assert lonely in find_files([tree])[0]  # no image `other`: nothing says that it is a mask but its name
    with pytest.raises(SonobreastError, match="no such file"):
        find_files([tree / "none"])
    (tree / "empty").mkdir()
    with pytest.raises(SonobreastError, match="no images"):
        find_files([tree / "empty"])


def test_overlays_are_drawn_and_never_read(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    out, pictures = tmp_path / "inference.csv", tree / "overlays"
    found = infer(predictor, [tree], out, overlays=pictures)
    drawn = list(pictures.rglob("*.png"))
    assert len(drawn) == found.predicted == 15
    again = infer(predictor, [tree], out, overlays=pictures)
    assert (again.predicted, again.files) == (0, 15)
    for file in drawn:
        with Image.open(file) as picture:
            picture.load()


def test_names_of_any_kind_stay_one_line(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    picture = Image.fromarray(speckle(0)[0])
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ('a,"b".png', "new\nline.png", "ü.png"):
        picture.save(folder / name)
    os.rename(folder / "ü.png", os.fsencode(folder) + b"/\xff.png")
    out = tmp_path / "inference.csv"
    infer(predictor, [folder], out)
    rows = table(out)
    assert len(rows) == 3
    assert len(out.read_bytes().splitlines()) == 4
    assert infer(predictor, [folder], out).predicted == 0


def test_rows_are_told_after_they_are_written(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "inference.csv"
    lines: list[int] = []
    infer(predictor, [tree], out, take=lambda row: lines.append(len(out.read_bytes().splitlines())))
    assert len(lines) == 15
    assert all(n > i + 1 for i, n in enumerate(lines))


def test_a_folder_that_is_closed_is_a_problem_and_the_rest_goes_on(
    predictor: Predictor, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inference.visible

    def visible(folder: Path) -> list[Path]:
        if folder.name == "day 1":
            raise SonobreastError("the folder cannot be read (Permission denied)", file=folder, remedy="check")
        return real(folder)

    monkeypatch.setattr(inference, "visible", visible)
    out = tmp_path / "inference.csv"
    assert infer(predictor, [tree], out).predicted == 15 - 4
    assert str(tree / "day 1") in {r["file"] for r in read_table(problems_file(out))}
    with pytest.raises(SonobreastError, match="cannot be read"):
        infer(predictor, [tree / "day 1"], out)


def test_pipes_devices_and_circles_do_not_hold_it_up(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tree / "pipe.png")
    (tree / "round.png").symlink_to(tree / "round.png")
    (tree / "gone.png").symlink_to(tree / "nowhere.png")
    (tree / "again").symlink_to(tree)
    out = tmp_path / "inference.csv"
    assert infer(predictor, [tree, Path(os.devnull)], out).predicted == 15
    named = {Path(r["file"]).name for r in read_table(problems_file(out))}
    assert {"pipe.png", "round.png", "gone.png", "null"} <= named


def test_a_file_that_vanishes_is_a_problem(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "inference.csv"
    last = sorted(tree.glob("day 2/*.bmp"))[-1]
    done = infer(predictor, [tree], out, progress=lambda *_: last.unlink(missing_ok=True))
    assert done.predicted == 14
    assert str(last) in {r["file"] for r in read_table(problems_file(out))}


def test_the_list_of_problems_is_whole_after_any_call(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    for k in range(40):
        (tree / f"broken {k}.png").write_bytes(b"no image")
    out = tmp_path / "inference.csv"
    wanted = {f"broken {k}.png" for k in range(40)} | {"damaged.png", "blank.png"}

    class Stop(Exception):
        pass

    def stop(_: str, done: int, total: int) -> None:
        if done >= 25:
            raise Stop

    with pytest.raises(Stop):
        infer(predictor, [tree], out, progress=stop)
    assert 0 < len(read_table(problems_file(out))) < len(wanted)  # told as far as it came
    for _ in range(2):
        assert infer(predictor, [tree], out).problems == len(wanted)
        assert {Path(r["file"]).name for r in read_table(problems_file(out))} == wanted
    assert len(table(out)) == 15


def test_nobodys_files_are_written_over(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "inference.csv"
    problems_file(out).write_text("file,mine\nx,y\n")
    with pytest.raises(SonobreastError, match="none") as caught:
        infer(predictor, [tree], out)
    assert caught.value.file == str(problems_file(out))
    assert problems_file(out).read_text() == "file,mine\nx,y\n"
    with pytest.raises(SonobreastError, match="name of an image"):
        infer(predictor, [tree], tree / "day 0" / "scan 0.png")
    images = {p: p.read_bytes() for p in tree.rglob("*") if p.is_file()}
    for folder in (tree, tree.parent):
        with pytest.raises(SonobreastError, match="images lie in the folder"):
            infer(predictor, [tree], tmp_path / "other.csv", overlays=folder)
    assert images == {p: p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def test_pictures_that_are_missing_are_drawn_later(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    out, pictures = tmp_path / "inference.csv", tmp_path / "pictures"
    infer(predictor, [tree], out)
    before = out.read_bytes()
    assert infer(predictor, [tree], out, overlays=pictures).predicted == 0
    assert out.read_bytes() == before
    drawn = sorted(pictures.rglob("*.png"))
    assert len(drawn) == 15
    drawn[3].unlink()
    stamps = {p: p.stat().st_mtime_ns for p in drawn if p.exists()}
    infer(predictor, [tree], out, overlays=pictures)
    assert sorted(pictures.rglob("*.png")) == drawn
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_a_name_that_is_too_long_for_its_picture_is_cut(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for end in "ab":
        Image.fromarray(speckle(0)[0]).save(folder / f"{'ü' * 120}{end}.png")
    for _ in range(2):
        infer(predictor, [folder], tmp_path / "o.csv", overlays=tmp_path / "pictures")
        assert len(list((tmp_path / "pictures").rglob("*.png"))) == 2


def test_from_here_or_from_the_root_a_file_is_the_same(
    predictor: Predictor, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "inference.csv"
    infer(predictor, [Path("in")], out)
    assert infer(predictor, [tree], out).predicted == 0


def test_no_two_names_are_one_in_the_table(tmp_path: Path) -> None:
    names = ["a\nb", "a\\nb", "a\\x0ab", "\udcff", "\\udcff", "\U000f00000", "\uf0000", "\xad00", "ü", "a\u200b"]
    told = [shown(Path(n)) for n in names]
    assert len(set(told)) == len(names)
    assert all(t.isprintable() and t.encode() for t in told)
    assert [t.encode("latin-1", "backslashreplace").decode("unicode_escape") for t in told] == names


def test_a_film_is_decoded_piece_by_piece(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = [Image.fromarray(speckle(k)[0]) for k in range(70)]
    film[0].save(tmp_path / "film.tiff", save_all=True, append_images=film[1:])
    Image.fromarray(speckle(99)[0]).save(tmp_path / "still.png")
    decoded: list[int] = []
    real = inference.read

    def read(*args: object, **kwargs: object) -> Iterator[Frame]:
        for frame in real(*args, **kwargs):  # type: ignore[arg-type]
            decoded.append(frame.index)
            yield frame

    monkeypatch.setattr(inference, "read", read)
    waiting = inference._prepared(predictor, [tmp_path / "film.tiff"], set(), Limits(), USUAL, keep=True)
    first = next(waiting)
    assert isinstance(first, inference._Prepared)
    assert len(decoded) <= 2 * inference.BATCH
    waiting.close()
    decoded.clear()
    out = tmp_path / "o.csv"
    infer(predictor, [tmp_path], out)
    assert [int(r["frame"]) for r in table(out)] == [*range(70), 0]
    assert sorted(decoded) == sorted([*range(70), 0])
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join([*lines[:40], lines[-1]]))
    assert infer(predictor, [tmp_path], out).predicted == 70 - 39
    assert sorted(int(r["frame"]) for r in table(out)) == sorted([*range(70), 0])


def test_spacing_of_the_file_goes_before_the_given_one(
    predictor: Predictor, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inference.read
    stating = tree / "day 0" / "stated.dcm"
    shutil.copy(tree / "day 0" / "scan 0.png", stating)

    def read(file: Path, *args: object, **kwargs: object) -> Iterator[Frame]:
        for frame in real(file, *args, **kwargs):  # type: ignore[arg-type]
            yield replace(frame, spacing_mm=0.05, place=Place(1, 1, 0, 0)) if file == stating else frame

    monkeypatch.setattr(inference, "read", read)
    out = tmp_path / "o.csv"
    for _ in range(2):
        infer(predictor, [tree / "day 0"], out, spacing_mm=0.1)
        assert {r["spacing_mm"] for r in table(out) if r["file"] != str(stating)} == {"0.1"}
        assert [r["spacing_mm"] for r in table(out) if r["file"] == str(stating)] == ["0.05"]
    for other in (0.05, None):  # those that state none would have another one than their rows
        with pytest.raises(SonobreastError, match="spacing"):
            infer(predictor, [tree / "day 0"], out, spacing_mm=other)


def test_who_takes_rows_may_go_away(predictor: Predictor, tree: Path, tmp_path: Path) -> None:
    def gone(_: dict[str, object]) -> None:
        raise BrokenPipeError

    out = tmp_path / "o.csv"
    with pytest.raises(BrokenPipeError):  # not a sentence about the table
        infer(predictor, [tree], out, take=gone)
    assert infer(predictor, [tree], out).kept > 0
    assert len(table(out)) == 15


def test_a_full_disk_is_said(predictor: Predictor, tree: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no full disk at hand")
    with pytest.raises(SonobreastError, match="No space"):
        infer(predictor, [tree], Path("/dev/full"))


@pytest.mark.slow
@pytest.mark.parametrize("overlays", [False, True])
def test_a_killed_command_goes_on(ensemble: Bundle, tmp_path: Path, overlays: bool) -> None:
    """2,000 files, killed at random moments: every file once, and every picture whole."""
    folder, out, pictures = tmp_path / "in", tmp_path / "inference.csv", tmp_path / "pictures"
    folder.mkdir()
    n = 2000
    for k in range(n):
        Image.fromarray(np.roll(speckle(k % 50)[0], k // 50, axis=1)).save(folder / f"{k}.png")
    for k in range(0, 40, 2):
        (folder / f"broken {k}.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "sonobreast.cli", "predict", str(ensemble.folder), str(folder), "--out", str(out)]
    command += ["--overlays", str(pictures)] if overlays else []
    rng = np.random.default_rng(7 + overlays)
    kills, told = 0, [0]
    for rows, more in zip(sorted(rng.integers(1, n - 200, 6).tolist()), rng.uniform(0, 0.2, 6), strict=True):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") <= rows):
            time.sleep(0.002)
        time.sleep(more)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        told.append(out.read_bytes().count(b"\n"))
    assert kills == 6
    assert told == sorted(told)  # what was there stayed
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    rows_found = list(csv.DictReader(out.open()))
    assert sorted(int(Path(r["file"]).stem) for r in rows_found) == list(range(n))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert 0 < len(lines) < n
    assert [line["file"] for line in lines] == [r["file"] for r in rows_found[-len(lines) :]]
    assert len(read_table(problems_file(out))) == 20
    if overlays:
        drawn = [p for p in pictures.rglob("*.png") if not p.name.startswith(".")]
        assert len(drawn) == n
        for file in drawn:
            with Image.open(file) as picture:
                picture.load()
