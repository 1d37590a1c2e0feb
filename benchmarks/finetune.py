"""How long fine-tuning takes: `fit_network` with its images decoded once, against a plain PyTorch loop.

    python benchmarks/finetune.py [--network resnetv2_50] [--images 96] [--epochs 4] [--pairs 3] [--weights FOLDER]

The plain loop is what the tutorials show: torchvision's ImageFolder and transforms, a DataLoader, timm, float32, the
default memory layout. Both sides read the same files, begin with the same weights, train everything for the same epochs
with the same batch, optimizer and rate, keep the statistics of batch norm (or both train them: --batch-norm train),
rotate, shift, zoom and flip by the same ranges, and validate after every epoch. Decoding is in the time of both. Each
side is a process of its own, so that neither's settings touch the other; the two take turns. Images are BUSI from
$SONOBREAST_DATA (a few of each class), else simulated. The accuracy is that of the validation images of a fit far too
short to say which side learns better.
Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("benign", "malignant", "normal")
SIZE = 224
RATE, MOMENTUM = 1e-3, 0.9


def link_images(folder: Path, n: int) -> str:
    """Folders train/CLASS and val/CLASS with links to n and n / 3 images; returns where they are from."""
    data = Path(os.environ.get("SONOBREAST_DATA", "")) / "busi"
    source = "BUSI"
    if not data.is_dir():
        from sonobreast.data.phantom import write

        data, source = folder / "simulated", "simulated"
        write(data, n=2 * n, seed=0)
    for label in CLASSES:
        found = sorted(p for p in data.rglob("*.png") if p.parent.name == label and "_mask" not in p.stem)
        chosen = np.random.default_rng(0).permutation(len(found))[: (n + n // 3) // 3]
        for k, i in enumerate(chosen):
            target = folder / ("train" if k < n // 3 else "val") / label / found[i].name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(found[i])
    return source


def plain(a: argparse.Namespace) -> dict[str, Any]:
    """The loop of the tutorials."""
    import timm
    import torch
    from torch.nn import functional
    from torchvision import datasets, transforms

    from sonobreast.models.zoo import load_backbone

    torch.manual_seed(0)
    network = timm.create_model(a.network, num_classes=len(CLASSES))
    backbone = load_backbone(a.network, a.weights or "none", cut_uncovered=False, image_size=SIZE)
    network.load_state_dict(backbone.network.state_dict(), strict=False)
    normalise = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    bilinear = transforms.InterpolationMode.BILINEAR
    augment = [
        transforms.Resize((SIZE, SIZE)),
        transforms.RandomAffine(15, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=bilinear),
        transforms.RandomHorizontalFlip(),
    ]  # fmt: skip
    started, processor = time.perf_counter(), time.process_time()
    train = datasets.ImageFolder(a.folder / "train", transforms.Compose([*augment, *normalise]))
    held = datasets.ImageFolder(a.folder / "val", transforms.Compose([transforms.Resize((SIZE, SIZE)), *normalise]))
    updater = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)
    seen = 0
    for _ in range(a.epochs):
        network.train()
        for module in network.modules():
            if a.batch_norm == "inference" and isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        for images, label in torch.utils.data.DataLoader(train, a.batch, shuffle=True):
            loss = functional.cross_entropy(network(images), label)
            updater.zero_grad()
            loss.backward()
            updater.step()
            seen += len(label)
        network.eval()
        truth, predicted = [], []
        with torch.inference_mode():
            for images, label in torch.utils.data.DataLoader(held, a.batch):
                truth += label.tolist()
                predicted += network(images).argmax(1).tolist()
    return {
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - processor,
        "seen": seen,
        "files": sorted(Path(p).name for p, _ in [*train.samples, *held.samples]),
        "truth": truth,
        "predicted": predicted,
    }


def ours(a: argparse.Namespace) -> dict[str, Any]:
    """`fit_network` as a study calls it; the timing that chooses the precision was made by an earlier call."""
    import torch

    from sonobreast.config import parse_recipe
    from sonobreast.data.store import open_store
    from sonobreast.models.zoo import load_backbone
    from sonobreast.training.images import Images
    from sonobreast.training.module import choose_precision, fit_network

    recipe = parse_recipe(
        {
            "name": "benchmark",
            "preprocess": {"size": SIZE, "scaling": "symmetric"},
            "augment": {"rotation": 15, "zoom": 0.1, "shift": 0.1, "horizontal_flip": True},
            "head": {"hidden": [], "dropout": 0.0},
            "model": {"architectures": [a.network], "backbone": "finetune", "precision": a.precision,
                      "batch_norm": a.batch_norm},
            "training": {
                "optimizers": ["sgdm"], "learning_rate": RATE, "momentum": MOMENTUM, "batch_size": a.batch,
                "epochs": a.epochs, "early_stopping": None, "class_weights": "none",
            },
        },
        "benchmark",
    )  # fmt: skip
    # What the weights do not cover begins on both sides with the same random values, and its norms are treated alike.
    backbone = load_backbone(a.network, a.weights or "none", cut_uncovered=False, image_size=SIZE)
    backbone.coverage = replace(backbone.coverage, missing=())

    def load() -> tuple[Images, np.ndarray, np.ndarray]:
        files = [(s, c, p) for s in ("train", "val") for c in CLASSES for p in sorted((a.folder / s / c).iterdir())]
        paths = [p for *_, p in files]
        digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]
        store = Path(tempfile.mkdtemp(dir=a.folder))  # a new one each time: decoding is in the time
        pixels = open_store(paths, digests, recipe.preprocess, folder=store)
        label = torch.tensor([CLASSES.index(c) for _, c, _ in files])
        of_train = np.asarray([s == "train" for s, *_ in files])
        images = Images(pixels, tuple(f"{c}/{p.name}" for _, c, p in files), label, CLASSES)
        return images, np.flatnonzero(of_train), np.flatnonzero(~of_train)

    images, train, validation = load()
    precision = choose_precision(backbone, images, train, recipe)
    if a.side == "choose":
        return {"precision": precision}
    started, processor = time.perf_counter(), time.process_time()
    images, train, validation = load()
    fitted = fit_network(backbone, images, train, validation, recipe, "sgdm", 0, precision=precision)
    return {
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - processor,
        "seen": len(train) * len(fitted.history),
        "files": sorted(n.rpartition("/")[2] for n in images.names),
        "truth": images.label[validation].tolist(),
        "predicted": fitted.probability[validation].argmax(1).tolist(),
        "precision": precision,
    }


def call(side: str, a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    given = [*sys.argv[1:], "--side", side, "--folder", str(folder)]
    done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def accuracy(result: dict[str, Any]) -> dict[str, float]:
    """Accuracy on the validation images with its 95 % interval."""
    from sonobreast.evaluation.intervals import wilson

    hits = sum(t == p for t, p in zip(result["truth"], result["predicted"], strict=True))
    found = wilson(hits, len(result["truth"]))
    return {k: round(float(getattr(found, k)), 3) for k in ("estimate", "low", "high")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", default="resnetv2_50")
    parser.add_argument("--weights", default="", help="folder of weights; without it both begin with random ones")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-norm", choices=("inference", "train"), default="inference")
    parser.add_argument("--side", choices=("choose", "plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.side:
        print(json.dumps(plain(a) if a.side == "plain" else ours(a)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = link_images(folder, a.images)
        precision = call("choose", a, folder)["precision"]
        found: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
        for k in range(a.pairs):
            for side in ("plain", "ours") if k % 2 == 0 else ("ours", "plain"):
                found[side].append(call(side, a, folder))
                print(
                    f"{side}: {found[side][-1]['seconds']:.1f} s, processor {found[side][-1]['processor']:.1f} s",
                    flush=True,
                )
    for one, other in zip(found["plain"], found["ours"], strict=True):
        if any(one[k] != other[k] for k in ("seen", "files", "truth")):
            raise SystemExit("the two sides did not do the same work")
    middle = {(s, k): statistics.median(r[k] for r in found[s]) for s in found for k in ("seconds", "processor")}
    pairs = list(zip(found["plain"], found["ours"], strict=True))
    seen = found["ours"][0]["seen"]
    print(
        json.dumps(
            {
                "claim": f"fine-tuning {a.network}: images a second against a plain PyTorch loop",
                "ratio": round(statistics.median(p["seconds"] / o["seconds"] for p, o in pairs), 2),
                "ratio_processor": round(statistics.median(p["processor"] / o["processor"] for p, o in pairs), 2),
                "baseline_s": round(middle["plain", "seconds"], 2),
                "ours_s": round(middle["ours", "seconds"], 2),
                "baseline_processor_s": round(middle["plain", "processor"], 2),
                "ours_processor_s": round(middle["ours", "processor"], 2),
                "baseline_images_a_second": round(seen / middle["plain", "seconds"], 2),
                "ours_images_a_second": round(seen / middle["ours", "seconds"], 2),
                "accuracy_baseline": accuracy(found["plain"][0]),
                "accuracy_ours": accuracy(found["ours"][0]),
                "precision": precision,
                "images": source,
                "train": a.images // 3 * 3,
                "validation": len(found["ours"][0]["truth"]),
                "epochs": a.epochs,
                "batch": a.batch,
                "pairs": a.pairs,
                "batch_norm": a.batch_norm,
                "weights": "pre-trained" if a.weights else "random",
            }
        )
    )


if __name__ == "__main__":
    main()
