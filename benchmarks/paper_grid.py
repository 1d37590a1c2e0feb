"""Claim: the grid of Aulia 2026 in minutes: 2 networks x 3 optimizers, 50 epochs, against the Keras script.

    make bench-keras                              # once: the environment of the Keras script
    python benchmarks/paper_grid.py               # 6 runs
    python benchmarks/paper_grid.py --repeats 50  # 5 folds x 10 seeds of each configuration: 300 runs

Ours is `run_study` in a fresh process with an empty output folder, start to end: start-up, reading, search for copies,
decoding, features, heads, tables. The Keras script (``keras_baseline.py``) reads the very same training and validation
images; a few epochs of each network are timed, the first (which compiles) is left out, and their median is multiplied
by 50 epochs x 3 optimizers x repeats. Its start-up and its test images are not counted. With folds, its epoch is scaled
by the number of images.

Both sides: the same images of 224 px, batches of 32, 50 epochs (no early stopping), frozen base, the same head. What
differs: ours shows the recipe's ten augmented views of each training image in turn, Keras draws a fresh one every
epoch (--views 50 gives ours a fresh one every epoch, too); ours takes the views through the network in bfloat16 where
the processor multiplies it. Keras' ResNet50V2 strides at the end of a stage and costs 3.5 GMAC an image, timm's 4.1:
there the comparison is to our disadvantage.

Images: BUSI (see `stand_ins.busi`), else simulated ones. Weights: a folder (--weights), else random ones: the times are
the same, accuracies then mean nothing and are null. Weights that cover a network in part cut it, and the two sides no
longer do the same work: the JSON says so (``same_networks``). The two sides take turns. The last line is one JSON line.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KERAS = HERE / ".keras" / "bin" / "python"
NETWORKS = ("ResNet50V2", "MobileNetV2")
EPOCHS, OPTIMIZERS = 50, 3
FOLDS = 5


def overrides(repeats: int, views: int) -> list[str]:
    """The recipe's settings that this benchmark changes."""
    fixed = ["training.early_stopping=null", f"training.epochs={EPOCHS}", f"augment.views={views}"]
    if repeats == 1:
        return fixed
    seeds = list(range(repeats // FOLDS))
    return [*fixed, "split.kind=kfold", f"split.folds={FOLDS}", f"training.seeds={seeds}"]


def study(data: str, weights: str, out: str, repeats: int, views: int) -> None:
    """The study, in this process; prints the seconds of its stages as JSON."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do
    started = time.perf_counter()
    from sonobreast.config import load_recipe
    from sonobreast.training.reporter import Reporter
    from sonobreast.training.study import run_study

    class Stages(Reporter):
        def __init__(self) -> None:
            self.rows: list[tuple[str, float]] = []

        def stage(self, title: str, total: int) -> None:
            self.rows.append((title, time.perf_counter()))

    stages = Stages()
    imported = time.perf_counter() - started
    outcome = run_study(
        load_recipe("aulia2026", overrides(repeats, views)), Path(data), weights, Path(out), reporter=stages
    )
    ended = time.perf_counter()
    seconds: dict[str, float] = {"imports": round(imported, 2)}
    for (title, begun), (_, end) in zip(stages.rows, [*stages.rows[1:], ("", ended)], strict=True):
        title = "looking for copies" if title.startswith("looking for copies") else title
        seconds[title] = round(seconds.get(title, 0.0) + end - begun, 2)
    print(json.dumps({"stages": seconds, "finished": outcome.finished, "failed": len(outcome.failed)}))


def measured(command: list[str], **environment: str) -> tuple[float, float, dict[str, Any]]:
    """Seconds, processor seconds, and the last line of a process as JSON."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, processor, json.loads(done.stdout.splitlines()[-1])


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def link_subsets(split: list[dict[str, str]], data: Path, folder: Path) -> None:
    """Class folders of links to the training and validation images of the study's first division."""
    for row in split:
        if row["subset"] != "test" and row["repeat"] == row["fold"] == "0":
            link = folder / row["subset"] / row["label"] / Path(row["image"]).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((data / row["image"]).resolve())


def of_first(split: list[dict[str, str]], subset: str) -> int:
    return sum(r["subset"] == subset and r["repeat"] == r["fold"] == "0" for r in split)


def check_ours(out: Path, runs: int, repeats: int) -> list[dict[str, str]]:
    """The rows of split.csv, once all runs have trained all epochs on the division that the paper counts."""
    split = table(out / "split.csv")
    histories = [len(table(f)) for f in (out / "runs").glob("*/history.csv")]
    assert histories == [EPOCHS] * runs, f"{len(histories)} runs of {runs}, epochs {sorted(set(histories))}"
    if repeats == 1:
        counts = [of_first(split, s) for s in ("train", "validation", "test")]
        assert counts == [291, 63, 63], counts
    return split


def accuracy(out: Path) -> float:
    """Test accuracy of the best configuration, mean over its runs."""
    rows: dict[tuple[str, str], list[float]] = {}
    for row in table(out / "results.csv"):
        rows.setdefault((row["architecture"], row["optimizer"]), []).append(float(row["test_accuracy"]))
    return max(statistics.mean(values) for values in rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=1, help="1, or a multiple of 5: folds x seeds")
    parser.add_argument("--weights", help="a folder of weights; default: random ones")
    parser.add_argument("--views", type=int, default=10, help="augmented views of ours: 10 as in the recipe, 50: fresh")
    parser.add_argument("--simulated", action="store_true", help="simulated images even where BUSI is")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--keras-epochs", type=int, default=3, help="timed epochs of each network in each pair")
    parser.add_argument("--study", nargs=3, metavar=("DATA", "WEIGHTS", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.repeats != 1 and given.repeats % FOLDS:
        parser.error(f"--repeats takes 1 or a multiple of {FOLDS}")
    if given.study:
        study(*given.study, given.repeats, given.views)
        return
    if not KERAS.exists():
        sys.exit("The Keras script needs its environment: make bench-keras")
    import stand_ins

    runs = len(NETWORKS) * OPTIMIZERS * given.repeats
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        real = None if given.simulated else stand_ins.busi()
        data = real or stand_ins.textures(folder / "images", stand_ins.BUSI_DRAW, size=512)
        weights = given.weights or str(folder / "weights")
        if given.weights is None:
            for name in ("resnetv2_50", "mobilenetv2_100"):
                stand_ins.random_weights(folder / "weights", name)
        ours, processor, stages, loads = [], [], [], []
        epochs: dict[str, list[float]] = {n: [] for n in NETWORKS}
        keras_processor: dict[str, list[float]] = {n: [] for n in NETWORKS}
        for pair in range(given.pairs):
            loads.append(round(os.getloadavg()[0], 1))
            out = folder / f"study-{pair}"
            options = ["--repeats", str(given.repeats), "--views", str(given.views)]
            seconds, of_process, told = measured(
                [sys.executable, __file__, *options, "--study", str(data), weights, str(out)],
                SONOBREAST_HOME=str(folder / "home"),
            )
            ours.append(seconds)
            processor.append(of_process)
            stages.append(told["stages"])
            split = check_ours(out, runs, given.repeats)
            if pair == 0:
                link_subsets(split, data, folder / "subsets")
            print(f"ours: {seconds:.1f} s ({of_process:.1f} s of processor) {told['stages']}", flush=True)
            for network in NETWORKS:
                options = [str(folder / "subsets"), "--network", network, "--epochs", str(given.keras_epochs + 1)]
                _, _, done = measured([str(KERAS), str(HERE / "keras_baseline.py"), *options])
                counts = {"train": of_first(split, "train"), "validation": of_first(split, "validation"), "batch": 32}
                assert {k: done[k] for k in counts} == counts, done
                epochs[network] += done["seconds"][1:]
                keras_processor[network] += done["processor_s"][1:]
                print(f"Keras {network}: epochs of {', '.join(f'{s:.1f}' for s in done['seconds'])} s", flush=True)
        covered = [float(r["pretrained_share"]) for r in table(out / "results.csv")]
        epoch = {n: statistics.median(s) for n, s in epochs.items()}
        # every fold has its own number of images, the same within one
        first = sum(of_first(split, s) for s in ("train", "validation"))
        folds = {(r["repeat"], r["fold"]) for r in split}
        scale = sum(r["subset"] != "test" for r in split) / len(folds) / first
        times = EPOCHS * OPTIMIZERS * given.repeats * scale
        baseline, mine = sum(epoch.values()) * times, statistics.median(ours)
        baseline_processor = sum(statistics.median(s) for s in keras_processor.values()) * times
        print(
            json.dumps(
                {
                    "claim": f"the grid of Aulia 2026, {runs} runs of {EPOCHS} epochs, against the Keras script",
                    "ratio": round(baseline / mine, 1),
                    "baseline_s": round(baseline, 1),
                    "ours_s": round(mine, 1),
                    "accuracy_baseline": None,
                    "accuracy_ours": round(accuracy(out), 4) if given.weights and real else None,
                    "ratio_processor": round(baseline_processor / statistics.median(processor), 1),
                    "baseline_processor_s": round(baseline_processor, 1),
                    "ours_processor_s": round(statistics.median(processor), 1),
                    "baseline_is": f"median of {len(epochs[NETWORKS[0]])} epochs of each network, first epochs left "
                    f"out, times {EPOCHS} epochs x {OPTIMIZERS} optimizers x {given.repeats}",
                    "keras_epoch_s": {n: round(s, 2) for n, s in epoch.items()},
                    "ours_stages_s": {k: statistics.median(s.get(k, 0.0) for s in stages) for k in stages[0]},
                    "ours_search_for_copies_s": statistics.median(s.get("looking for copies", 0.0) for s in stages),
                    "views": f"ours: {given.views} of each training image in turn; Keras: fresh ones every epoch",
                    "same_views": given.views >= EPOCHS,
                    "images": "BUSI" if real else "simulated",
                    "weights": "given" if given.weights else "random",
                    "same_networks": min(covered) > 0.999,
                    "pairs": given.pairs,
                    "ours_all_s": [round(s, 1) for s in ours],
                    "load_before": loads,
                    "cores": os.cpu_count(),
                }
            )
        )


if __name__ == "__main__":
    main()
