"""Claim: `sonobreast --help` answers within half a second, because heavy imports stay inside the commands.

The baseline is what it would cost to import the training code first. Prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

PAIRS = 5


def seconds(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    ours, baseline = [], []
    for _ in range(PAIRS):
        ours.append(seconds(sys.executable, "-m", "sonobreast.cli", "--help"))
        baseline.append(seconds(sys.executable, "-c", "import sonobreast.training.study, sonobreast.cli"))
    mine, theirs = statistics.median(ours), statistics.median(baseline)
    claim = "sonobreast --help against importing everything first"
    print(json.dumps({"claim": claim, "ratio": theirs / mine, "baseline_s": theirs, "ours_s": mine}))


if __name__ == "__main__":
    main()
