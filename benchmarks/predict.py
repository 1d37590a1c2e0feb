"""Claim: `sonobreast predict` takes constant memory, however many files there are.

Small simulated pictures go through a bundle in one call, in a process of its own; its resident memory is read when so
many rows are on the disk. Prints a line for each mark and one line of JSON with the growth from the first mark to the
last, beside what as many pictures of 500 x 500 px would hold if they were kept. Linux only (it reads /proc).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

SIDE = 64
MARKS = (1_000, 5_000, 10_000)


def write_pictures(folder: Path, n: int) -> None:
    """Noise; no two pictures are alike."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(n):
        picture = rng.integers(0, 200, (SIDE, SIDE), np.uint8)
        Image.fromarray(picture).save(folder / f"{i:06d}.png", compress_level=1)


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def predict(bundle: Path, folder: Path, out: Path, overlays: Path | None, answer: Connection) -> None:
    """Predict a folder and send the memory at each mark, the rows at last, and the seconds."""
    from sonobreast.serving.inference import infer
    from sonobreast.serving.predictor import load_predictor

    started = time.perf_counter()
    rows, found = 0, {}

    def take(_: dict[str, object]) -> None:
        nonlocal rows
        rows += 1
        if rows in MARKS:
            found[rows] = resident_mb()
            print(f"  {time.perf_counter() - started:6.1f} s  {rows:6d} files  {found[rows]:7.1f} MB", flush=True)

    infer(load_predictor(bundle), [folder], out, overlays=overlays, take=take)
    answer.send((found, rows, time.perf_counter() - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--overlays", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        folder.mkdir()
        write_pictures(folder, MARKS[-1])
        here, there = multiprocessing.Pipe()
        overlays = Path(place) / "overlays" if given.overlays else None
        arguments = (given.bundle, folder, Path(place) / "out.csv", overlays, there)
        process = multiprocessing.get_context("spawn").Process(target=predict, args=arguments)
        process.start()
        there.close()
        found, rows, seconds = here.recv()
        process.join()
    kept = (MARKS[-1] - MARKS[0]) * 500 * 500 * 3 / 2**20
    growth = found[MARKS[-1]] - found[MARKS[0]]
    content = {
        "claim": "predict: memory does not grow with the number of files",
        "ratio": kept / max(growth, 0.1),
        "baseline_mb": kept,
        "ours_mb": growth,
        "resident_mb": found,
        "rows": rows,
        "files_per_second": rows / seconds,
    }
    print(json.dumps(content))


if __name__ == "__main__":
    main()
