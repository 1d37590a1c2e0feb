"""How many augmented views are enough? A bank of K views against a fresh view in every epoch, paired image by image.

    python benchmarks/views.py --data BUSI --weights FOLDER          # about 10 minutes on two idle cores

One frozen MobileNetV2, the augmentation of Aulia 2026, 5 folds with copies kept together, three seeds, 50 epochs. The
bank of fresh views has as many as epochs; a bank of K is its first K. The difference in out-of-fold accuracy (K minus
fresh) has a cluster-bootstrap interval over groups. The same for bfloat16 against float32 views (K = 10), and for two
learning rates: the paper's, and one with which the head fits its training images. The last line is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sonobreast.config import Recipe, load_recipe
from sonobreast.data.cohort import Sources, gather
from sonobreast.data.split import divide
from sonobreast.data.store import open_store
from sonobreast.evaluation.compare import paired_difference
from sonobreast.evaluation.metrics import Scored
from sonobreast.evaluation.predictions import scored
from sonobreast.models.zoo import load_backbone
from sonobreast.training.fit import Fold, fold_of
from sonobreast.training.frozen import Bank, compute_bank
from sonobreast.training.images import Images
from sonobreast.training.many_heads import Job, fit_heads

BANKS = (1, 2, 5, 10, 20)
SEEDS = (0, 1, 2)


def out_of_fold(bank: Bank, images: Images, folds: list[Fold], recipe: Recipe, optimizer: str) -> list[Scored]:
    """Predictions of every image by the head that did not see it, one set a seed."""
    jobs = [Job(f.train, f.validation, optimizer, seed) for seed in SEEDS for f in folds]
    probability = np.zeros((len(SEEDS), len(images.names), len(images.classes)), np.float32)
    for index, fitted in fit_heads(bank, images, jobs, recipe):
        if isinstance(fitted, Exception):
            raise fitted
        test = folds[index % len(folds)].test
        probability[index // len(folds), test] = fitted.probability[test]
    return [scored(images.label.numpy(), p, images.classes) for p in probability]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--network", default="MobileNetV2")
    given = parser.parse_args()
    base = [
        "data.subsample=null",
        "split.kind=kfold",
        "split.grouping=group",
        f"training.epochs={given.epochs}",
        "training.early_stopping=null",
        f"model.architectures=[{given.network}]",
    ]
    recipe = load_recipe("aulia2026-normalised", [*base, "augment.views=null"])
    started = time.perf_counter()
    cohort = gather(Sources(given.data))
    cases = sorted(cohort.manifest.cases, key=lambda c: c.image)
    pixels = open_store([cohort.manifest.path(c) for c in cases], [c.sha256 for c in cases], recipe.preprocess)
    classes = recipe.data.classes or ()
    label = torch.tensor([classes.index(c.label) for c in cases])
    images = Images(pixels, tuple(c.image for c in cases), label, classes)
    rows = divide(cases, recipe.split)
    folds = [fold_of(rows, images.names, 0, k) for k in range(recipe.split.folds)]
    group = np.asarray([c.group for c in cases])
    backbone = load_backbone(given.network, given.weights, cut_uncovered=True, image_size=recipe.preprocess.size)
    with tempfile.TemporaryDirectory() as cache:
        fresh = compute_bank(backbone, images, recipe, Path(cache))
        exact = compute_bank(
            backbone,
            images,
            load_recipe("aulia2026-normalised", [*base, "augment.views=10", "model.precision=float32"]),
            Path(cache) / "exact",
        )
        print(
            f"{len(images.names)} images, {len(fresh.views)} views: {time.perf_counter() - started:.0f} s", flush=True
        )
        found = []
        for rate in (1e-4, 1e-3):
            settings = load_recipe(
                "aulia2026-normalised", [*base, "augment.views=null", f"training.learning_rate={rate}"]
            )
            for optimizer in ("adam", "sgdm"):
                reference = out_of_fold(fresh, images, folds, settings, optimizer)
                banks = {f"{k} views": Bank(fresh.clean, fresh.views[:k], fresh.standardise) for k in BANKS}
                banks["10 views, float32, against 10 views"] = exact
                ten: list[Scored] = reference
                for name, bank in banks.items():
                    mine = out_of_fold(bank, images, folds, settings, optimizer)
                    ten = mine if name == "10 views" else ten
                    other = ten if "against" in name else reference
                    gap = paired_difference(mine, other, group, metrics=["accuracy"])["accuracy"]
                    row = {
                        "rate": rate,
                        "optimizer": optimizer,
                        "bank": name,
                        "accuracy": round(gap.a, 4),
                        "fresh" if other is reference else "ten": round(gap.b, 4),
                        "difference": round(gap.interval.estimate, 4),
                        "low": round(gap.interval.low, 4),
                        "high": round(gap.interval.high, 4),
                    }
                    found.append(row)
                    print(row, flush=True)
    print(json.dumps({"claim": "a bank of views", "rows": found}))


if __name__ == "__main__":
    main()
