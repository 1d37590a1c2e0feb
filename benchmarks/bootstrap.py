"""How long the cluster bootstrap of all metrics takes, and how much faster it is than a loop over scikit-learn.

    python benchmarks/bootstrap.py [--resamples 2000] [--cases 780] [--loop 20]

The loop computes the same metrics on a few of the same resamples, and its time is extrapolated to all; on those few the
two are compared number by number. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from sklearn import metrics as sk

from sonobreast.evaluation.intervals import bootstrap, draw
from sonobreast.evaluation.metrics import Scored, metric_names

CLASSES = ("benign", "malignant", "normal")
# The mix of BUSI: 437, 210 and 133 of 780.
MIX = (437 / 780, 210 / 780, 133 / 780)


def simulated(cases: int, seed: int = 0) -> tuple[Scored, np.ndarray]:
    """Cases in BUSI's mix and groups of one to three, as near-duplicates come."""
    generator = np.random.default_rng(seed)
    label = generator.choice(3, size=cases, p=MIX)
    logits = generator.normal(size=(cases, 3)) + 2 * np.eye(3)[label]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    group = np.repeat(np.arange(cases), generator.integers(1, 4, size=cases))[:cases]
    return Scored(label, probability.argmax(axis=1), probability, CLASSES), group


def by_scikit_learn(scored: Scored, rows: np.ndarray) -> dict[str, float]:
    """The same metrics of some rows, one call after another."""
    y, p, s = scored.label[rows], scored.predicted[rows], scored.probability[rows]
    each = sk.precision_recall_fscore_support(y, p, labels=[0, 1, 2], zero_division=np.nan)
    macro = sk.precision_recall_fscore_support(y, p, labels=[0, 1, 2], average="macro", zero_division=0)
    fpr, tpr, _ = sk.roc_curve(y == 1, s[:, 1], drop_intermediate=False)
    values = {
        "accuracy": sk.accuracy_score(y, p),
        "balanced_accuracy": sk.balanced_accuracy_score(y, p),
        "precision_macro": macro[0],
        "recall_macro": macro[1],
        "f1_macro": macro[2],
        "sensitivity_malignant": sk.recall_score(y == 1, p == 1),
        "specificity_malignant": sk.recall_score(y != 1, p != 1),
        "sensitivity_at_90_specificity": tpr[fpr <= 0.1 + 1e-9].max(),
        "specificity_at_90_sensitivity": (1 - fpr)[tpr >= 0.9 - 1e-9].max(),
        "auc_malignant": sk.roc_auc_score(y == 1, s[:, 1]),
        "auc_ovr_macro": sk.roc_auc_score(y, s, multi_class="ovr"),
        "brier": float(np.mean(((s - np.eye(3)[y]) ** 2).sum(axis=1))),
        "log_loss": sk.log_loss(y, s, labels=[0, 1, 2]),
    }
    for c, name in enumerate(CLASSES):
        values |= {f"precision_{name}": each[0][c], f"recall_{name}": each[1][c], f"f1_{name}": each[2][c]}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--cases", type=int, default=780)
    parser.add_argument("--loop", type=int, default=20, help="resamples that the loop does")
    arguments = parser.parse_args()
    scored, group = simulated(arguments.cases)
    codes = np.unique(group, return_inverse=True)[1]
    groups = int(codes.max()) + 1
    bootstrap([scored], group, resamples=100)  # the first call loads what is loaded lazily

    seconds = {}
    for method in ("percentile", "bca"):
        start = time.perf_counter()
        bootstrap([scored], group, resamples=arguments.resamples, method=method)
        seconds[method] = time.perf_counter() - start

    chosen = np.random.default_rng(0).integers(groups, size=(arguments.loop, groups))
    start = time.perf_counter()
    loop = [by_scikit_learn(scored, np.concatenate([np.flatnonzero(codes == g) for g in row])) for row in chosen]
    of_loop = (time.perf_counter() - start) / arguments.loop * arguments.resamples

    names = metric_names(CLASSES)
    ours = draw([scored], codes, names, resamples=arguments.loop, seed=0, jackknife=False)
    apart = max(abs(ours[name].resampled[r] - loop[r][name]) for name in names for r in range(arguments.loop))
    print(
        json.dumps(
            {
                "benchmark": "bootstrap",
                "cases": arguments.cases,
                "groups": groups,
                "metrics": len(names),
                "resamples": arguments.resamples,
                "seconds": round(seconds["percentile"], 3),
                "seconds_bca": round(seconds["bca"], 3),
                "seconds_loop_extrapolated": round(of_loop, 1),
                "ratio": round(of_loop / seconds["percentile"], 1),
                "largest_difference": float(f"{apart:.1e}"),
            }
        )
    )


if __name__ == "__main__":
    main()
