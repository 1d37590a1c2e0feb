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
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fake import save_mask, speckle

from sonobreast.errors import SonobreastError
from sonobreast.records import read_table
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.inference import Outcome, find_files, infer, problems_file
from sonobreast.serving.predictor import Predictor, load_predictor


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


@pytest.mark.slow
def test_a_killed_command_goes_on(ensemble: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(300):
        Image.fromarray(speckle(k)[0]).save(folder / f"{k}.png")
    out = tmp_path / "inference.csv"
    command = [sys.executable, "-m", "sonobreast.cli", "predict", str(ensemble.folder), str(folder), "--out", str(out)]
    kills = 0
    for at in (1, 60, 150):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") <= at):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    rows = list(csv.DictReader(out.open()))
    assert sorted(int(Path(r["file"]).stem) for r in rows) == list(range(300))
    assert 0 < len([json.loads(line) for line in done.stdout.splitlines()]) < 300
