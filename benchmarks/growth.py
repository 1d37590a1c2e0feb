"""Claim: a study's cost grows in step with the images, and much slower than the runs.

    python benchmarks/growth.py [--images 100 400 1600 6400] [--runs 6 60 600]

The time of `run_study`, start to end, in one process after a warm-up: simulated textures of 96 px, MobileNetV2 frozen
with random weights, two views, five epochs. Images grow at 6 runs (3 optimizers x 2 seeds); runs grow at 400 images.
Each image is its own group by a ``groups.csv``: the search for copies is measured by ``audit_growth.py``. Each size is
run several times in turns, and the median taken. The slope is that of log seconds over log n, for all sizes and for the
last step alone, where start-up weighs least. The last line is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do

import numpy as np
import stand_ins

from sonobreast.config import load_recipe
from sonobreast.data.cohort import Sources
from sonobreast.data.groups import Member
from sonobreast.records import write_table
from sonobreast.training.study import run_study

CLASSES = ("benign", "malignant", "normal")
OPTIMIZERS = 3
SIZE = 96


def data_set(folder: Path, n: int) -> Sources:
    """n textures in three classes, each image a group of its own."""
    share = {c: n // 3 + (k < n % 3) for k, c in enumerate(CLASSES)}
    stand_ins.textures(folder / f"images-{n}", share, SIZE)
    names = sorted(str(p.relative_to(folder / f"images-{n}")) for p in (folder / f"images-{n}").rglob("*.png"))
    rows = [Member(image=name, group=name).model_dump() for name in names]
    write_table(folder / f"groups-{n}.csv", tuple(Member.model_fields), rows)
    return Sources(folder / f"images-{n}", groups=folder / f"groups-{n}.csv")


def timed(sources: Sources, runs: int, weights: Path, out: Path) -> tuple[float, float]:
    """Seconds and processor seconds of one study."""
    settings = [
        "data.subsample=null",
        "model.architectures=[mobilenetv2_100]",
        f"preprocess.size={SIZE}",
        "augment.views=2",
        "training.epochs=5",
        "training.early_stopping=null",
        f"training.seeds={list(range(runs // OPTIMIZERS))}",
    ]
    started, processor = time.perf_counter(), time.process_time()
    outcome = run_study(load_recipe("aulia2026", settings), sources, str(weights), out, images=False)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    assert outcome.finished == runs, f"{outcome.finished} runs of {runs}: {outcome.failed}"
    return seconds, processor


def slope(x: list[int], y: list[float]) -> float:
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 400, 1600, 6400])
    parser.add_argument("--runs", type=int, nargs="+", default=[6, 60, 600])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    cases = [("images", n, 6) for n in given.images] + [("runs", 400, k) for k in given.runs]
    found: dict[tuple[str, int, int], list[tuple[float, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["SONOBREAST_HOME"] = str(folder / "home")
        stand_ins.random_weights(folder / "weights", "mobilenetv2_100", SIZE)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import sonobreast.training.study"], check=True)
        imported = time.perf_counter() - started
        sources = {n: data_set(folder, n) for n in sorted({n for _, n, _ in cases})}
        first = timed(sources[min(sources)], 6, folder / "weights", folder / "warm-up")[0]
        for round_ in range(given.rounds):
            for number, case in enumerate(cases):
                out = folder / f"study-{round_}-{number}"
                found[case].append(timed(sources[case[1]], case[2], folder / "weights", out))
    rows = []
    for (grown, n, runs), measured in found.items():
        seconds, processor = (statistics.median(m[k] for m in measured) for k in (0, 1))
        rows.append(
            {
                "grown": grown,
                "images": n,
                "runs": runs,
                "seconds": round(seconds, 2),
                "processor_s": round(processor, 2),
            }
        )
        print(f"{n:6d} images {runs:4d} runs: {seconds:7.2f} s, {processor:7.2f} s of processor", flush=True)
    result: dict[str, object] = {"claim": "cost of a study against images and runs", "rounds": given.rounds}
    for grown, key in (("images", "images"), ("runs", "runs")):
        mine = [r for r in rows if r["grown"] == grown]
        x, y = [int(r[key]) for r in mine], [float(r["seconds"]) for r in mine]
        z = [float(r["processor_s"]) for r in mine]
        if len(x) > 1:
            result[f"slope_{grown}"] = slope(x, y)
            result[f"slope_{grown}_processor"] = slope(x, z)
            result[f"slope_{grown}_last_step"] = slope(x[-2:], y[-2:])
            result[f"slope_{grown}_last_step_processor"] = slope(x[-2:], z[-2:])
    warm = float(rows[0]["seconds"])
    print(
        json.dumps(
            {
                **result,
                "imports_s": round(imported, 2),
                "first_call_more_s": round(first - warm, 2),
                "load": round(os.getloadavg()[0], 1),
                "cores": os.cpu_count(),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
