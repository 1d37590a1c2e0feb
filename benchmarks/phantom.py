"""Images per second of both generators, as one JSON line: medians of several rounds.

    python benchmarks/phantom.py

``phantom`` is the whole of ``sonobreast data phantom`` at 256 px: simulation, PNG and manifest. ``texture`` is drawing
alone, at 128 px; ``texture_written`` is drawing and writing.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sonobreast.data import phantom, texture

ROUNDS = 5


def images_per_second(make: Callable[[Path], object], n: int) -> float:
    """Median over the rounds; each writes into a folder of its own."""
    rates = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            make(Path(folder) / "set")
            rates.append(n / (time.perf_counter() - start))
    return round(statistics.median(rates), 1)


def main() -> None:
    phantom.simulate(0, seed=0)  # imports and caches are no part of the rate
    figures = {
        "phantom": images_per_second(lambda out: phantom.write(out, n=48, seed=1, size=256), 48),
        "texture": images_per_second(lambda out: list(texture.generate(400, seed=1, size=128)), 400),
        "texture_written": images_per_second(lambda out: texture.write(out, n=400, seed=1, size=128), 400),
    }
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"unit": "images/s", "rounds": ROUNDS, "cores": os.cpu_count(), "load": load, **figures}))


if __name__ == "__main__":
    main()
