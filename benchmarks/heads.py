"""How long many heads on the features of a frozen backbone take: `fit_heads` against a loop over `fit_head`.

    python benchmarks/heads.py [--jobs 6 60 300] [--features 1280] [--train 291] [--pairs 3] [--loop 6]

Random features in the sizes of the papers' studies, the head of the recipe ``aulia2026`` with its three optimizers, 50
epochs without early stopping. The loop trains a few of the same heads, once with all of PyTorch's threads and once with
one, and its time is extrapolated to all; both take turns, and the medians are compared. Processor time a head is given
beside, because it says more where other processes are at work. On the heads of the loop the weights of the two are
compared, too. Prints one line for each number of heads, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch

from sonobreast.config import load_recipe
from sonobreast.training.fitted import Fitted
from sonobreast.training.frozen import Bank, fit_head
from sonobreast.training.images import Images
from sonobreast.training.many_heads import Job, fit_heads

OPTIMIZERS = ("adam", "rmsprop", "sgdm")
FOLDS = 5


def simulated(n: int, features: int) -> tuple[Bank, Images]:
    """Features as a network's pooled ReLU gives them: three overlapping clouds, cut at 0, and ten views of each."""
    random = torch.Generator().manual_seed(0)
    label = torch.arange(n) % 3
    centre = 0.3 * torch.randn(3, features, generator=random)
    clean = (centre[label] + torch.randn(n, features, generator=random)).relu()
    views = (clean + 0.3 * torch.randn(10, n, features, generator=random)).relu()
    names = tuple(str(i) for i in range(n))
    return Bank(clean, views), Images(np.zeros((n, 1, 1, 3), np.uint8), names, label, ("a", "b", "c"))


def grid(n: int, train: int, jobs: int) -> list[Job]:
    """Optimizers x seeds x folds, the fold last: few heads differ in the optimizer alone."""
    found = []
    for k in range(jobs):
        order = np.random.default_rng(k // len(OPTIMIZERS) % FOLDS).permutation(n)
        seed = k // (len(OPTIMIZERS) * FOLDS)
        validation = (n - train) // 2
        found.append(Job(order[:train], order[train : train + validation], OPTIMIZERS[k % len(OPTIMIZERS)], seed))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, nargs="+", default=[6, 60, 300])
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--train", type=int, default=291)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--loop", type=int, default=6, help="heads that the loop trains")
    arguments = parser.parse_args()
    recipe = load_recipe("aulia2026", ["training.early_stopping=null", f"training.epochs={arguments.epochs}"])
    n = round(arguments.train / 0.7)
    bank, images = simulated(n, arguments.features)
    threads = torch.get_num_threads()

    def loop(jobs: list[Job], cores: int) -> tuple[float, float, list[Fitted]]:
        torch.set_num_threads(cores)
        start, processor = time.perf_counter(), time.process_time()
        found = [fit_head(bank, images, j.train, j.validation, recipe, j.optimizer, j.seed) for j in jobs]
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        torch.set_num_threads(threads)
        return seconds / len(jobs), processor / len(jobs), found

    apart = 0.0
    figures = {}
    for jobs in (grid(n, arguments.train, k) for k in arguments.jobs):
        some = jobs[: arguments.loop]
        list(fit_heads(bank, images, some[:2], recipe))  # the first call loads what is loaded lazily
        seconds: dict[str, list[float]] = {"loop": [], "loop_one_thread": [], "many": []}
        processor: dict[str, list[float]] = {"loop_one_thread": [], "many": []}
        for _ in range(arguments.pairs):
            each, _, wanted = loop(some, threads)
            seconds["loop"].append(each * len(jobs))
            each, processor_each, _ = loop(some, 1)
            seconds["loop_one_thread"].append(each * len(jobs))
            processor["loop_one_thread"].append(processor_each)
            start, of_process = time.perf_counter(), time.process_time()
            found = {}
            for index, fitted in fit_heads(bank, images, jobs, recipe):
                if index < len(some):
                    found[index] = fitted
            seconds["many"].append(time.perf_counter() - start)
            processor["many"].append((time.process_time() - of_process) / len(jobs))
        for index, plain in enumerate(wanted):
            fitted = found[index]
            assert isinstance(fitted, Fitted)
            apart = max(apart, *(float((fitted.state[k] - v).abs().max()) for k, v in plain.state.items()))
        median = {k: statistics.median(v) for k, v in seconds.items()}
        ratio = statistics.median(a / b for a, b in zip(seconds["loop"], seconds["many"], strict=True))
        figures[str(len(jobs))] = {
            "seconds_loop_extrapolated": round(median["loop"], 2),
            "seconds_loop_one_thread_extrapolated": round(median["loop_one_thread"], 2),
            "seconds": round(median["many"], 2),
            "ratio": round(ratio, 1),
            "processor_seconds_a_head_loop": round(statistics.median(processor["loop_one_thread"]), 3),
            "processor_seconds_a_head": round(statistics.median(processor["many"]), 3),
        }
        print(f"{len(jobs)} heads: {figures[str(len(jobs))]}", flush=True)
    print(
        json.dumps(
            {
                "benchmark": "heads",
                "features": arguments.features,
                "train": arguments.train,
                "epochs": arguments.epochs,
                "threads": threads,
                "pairs": arguments.pairs,
                "loop_heads": arguments.loop,
                "jobs": figures,
                "largest_difference": float(f"{apart:.1e}"),
            }
        )
    )


if __name__ == "__main__":
    main()
