"""Claim: a study keeps to 4 GB of memory at 100,000 images.

Simulated pictures of 64 px, each a group of its own (so that no search for copies runs), a small network with random
weights, two views, one optimizer, two epochs. `--model mobilenetv2_035` gives 1,280 features an image, as the networks
of the recipes do: its views do not fit into the memory that a study allows itself and are read from the disk. Prints
the memory after each stage and one line of JSON. Linux only (it reads /proc).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np

SIZE = 64
CLASSES = ("benign", "malignant", "normal")
LIMIT_GB = 4.0


def write_images(folder: Path, n: int) -> None:
    """Noise whose grain depends on the class; no two pictures are alike."""
    from PIL import Image

    for label in CLASSES:
        (folder / label).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        label = i % len(CLASSES)
        coarse = rng.integers(20, 230, (SIZE >> label, SIZE >> label), np.uint8)
        picture = Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        picture.save(folder / CLASSES[label] / f"{i:06d}.png", compress_level=1)


def write_groups(path: Path, n: int) -> None:
    names = (f"{CLASSES[i % len(CLASSES)]}/{i:06d}.png" for i in range(n))
    path.write_text("image,group\n" + "".join(f"{name},{name}\n" for name in names), encoding="utf-8")


def write_weights(folder: Path, name: str) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir()
    save_file(timm.create_model(name, num_classes=0).state_dict(), folder / f"{name}.safetensors")
    card = {"model": name, "mean": [0.5] * 3, "std": [0.25] * 3, "licence": "random", "origin": "seed 0"}
    (folder / f"{name}.json").write_text(json.dumps(card), encoding="utf-8")


def memory() -> tuple[float, float]:
    """Resident memory of this process now and at most so far, GB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    now, peak = (int(fields[k].split()[0]) / 1e6 * 1.024 for k in ("VmRSS", "VmHWM"))
    return now, peak


def study(place: Path, model: str, views: int) -> None:
    """Run one study in a process of its own and print what it takes."""
    from sonobreast.config import parse_recipe
    from sonobreast.data.cohort import Sources
    from sonobreast.training.reporter import Reporter
    from sonobreast.training.study import run_study

    started = time.perf_counter()
    stage = "start"

    def note() -> None:
        now, peak = memory()
        seconds = time.perf_counter() - started
        print(f"  {seconds:7.1f} s  now {now:5.2f} GB  most {peak:5.2f} GB  after {stage}", flush=True)

    class Told(Reporter):
        def stage(self, title: str, total: int) -> None:
            nonlocal stage
            note()
            stage = title

        def say(self, text: str) -> None:
            print(f"  {text}", flush=True)

    content = {
        "name": "memory",
        "preprocess": {"size": SIZE},
        "augment": {"horizontal_flip": True, "rotation": 10, "views": views},
        "head": {"hidden": [128], "dropout": 0.3},
        "model": {"architectures": [model]},
        "training": {"optimizers": ["adam"], "batch_size": 32, "epochs": max(2, views)},
        "split": {"validation": 0.15, "test": 0.15},
    }
    sources = Sources(place / "images", groups=place / "groups.csv")
    run_study(
        parse_recipe(content, origin="memory"), sources, str(place / "weights"), place / "out", images=False,
        reporter=Told(),
    )  # fmt: skip
    stage = "the end"
    note()
    (place / "peak.json").write_text(json.dumps({"peak_gb": memory()[1], "seconds": time.perf_counter() - started}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[20_000])
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--views", type=int, default=2)
    arguments = parser.parse_args()
    peaks: dict[str, float] = {}
    for n in arguments.n:
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            os.environ["SONOBREAST_HOME"] = str(place / "home")
            write_images(place / "images", n)
            write_groups(place / "groups.csv", n)
            write_weights(place / "weights", arguments.model)
            print(f"{n} images, {arguments.model}, {arguments.views} views", flush=True)
            process = multiprocessing.get_context("spawn").Process(
                target=study, args=(place, arguments.model, arguments.views)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"the study ended with {process.exitcode}")
            found = json.loads((place / "peak.json").read_text())
            peaks[str(n)] = round(found["peak_gb"], 2)
            print(f"{n} images: {found['peak_gb']:.2f} GB, {found['seconds']:.0f} s", flush=True)
    claim = f"a study keeps to {LIMIT_GB:g} GB of memory"
    most = max(peaks.values())
    print(
        json.dumps({"claim": claim, "ratio": LIMIT_GB / most, "baseline_gb": LIMIT_GB, "ours_gb": most, "each": peaks})
    )


if __name__ == "__main__":
    main()
