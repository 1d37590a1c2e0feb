"""What the timings run on where the real thing is out of reach: random weights and simulated pictures.

The time of a network does not depend on what its weights are, as long as its activations stay ordinary numbers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from sonobreast.data import texture

BUSI_DRAW = {"benign": 138, "malignant": 146, "normal": 133}
"""Images of each class in the study of Aulia 2026: 417."""


def random_weights(folder: Path, name: str, size: int = 224) -> None:
    """Write a seeded random network of timm as a folder of weights holds it.

    The statistics of its batch norms are those of noise sent through it, so that activations neither grow nor sink
    to denormal numbers, which processors multiply slowly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=0).train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean over what was seen
        network(torch.rand(4, 3, size, size))
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / f"{name}.safetensors")
    card = {"model": name, "mean": [0.5] * 3, "std": [0.5] * 3, "licence": "none needed", "origin": "random numbers"}
    (folder / f"{name}.json").write_text(json.dumps(card), encoding="utf-8")


def busi() -> Path | None:
    """The real images, where they are: ``$SONOBREAST_DATA/busi``, else ``../shared/data/busi`` beside the checkout."""
    named = os.environ.get("SONOBREAST_DATA")
    folder = (Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data") / "busi"
    return folder if folder.is_dir() else None


def textures(folder: Path, counts: dict[str, int], size: int) -> Path:
    """Simulated pictures in class folders, so many of each class, no copies among them; returns the folder."""
    labels = [label for label, n in counts.items() for _ in range(n)]
    texture.write(folder, n=len(labels), seed=0, size=size, copies=0.0, labels=labels).unlink()
    return folder
