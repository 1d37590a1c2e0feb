"""Can the class be told from properties that are not the tissue: size, border, device, overlays?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sonobreast.data.findings import Finding, finding
from sonobreast.evaluation.intervals import bootstrap
from sonobreast.evaluation.metrics import Scored

Floats = npt.NDArray[np.float64]

FOLDS = 5
MOST = 4000
"""Images that are looked at; of more, a seeded draw."""
LEVEL = 0.99
"""Four families of properties are tried: with 99 % each, all four together are wrong in at most 4 %."""


def check_shortcut(
    family: str, properties: Mapping[str, Sequence[float]], labels: Sequence[str], groups: Sequence[str]
) -> Finding:
    """Train a random forest on one family of properties and see whether it beats chance.

    Balanced accuracy of out-of-fold predictions (5 folds, groups kept together, classes weighted equally); chance is
    1 / classes. It is a warning where the lower end of the 99 % interval (cluster bootstrap over groups) lies above
    chance.

    Parameters
    ----------
    family : {"size", "border", "device", "overlay"}
    properties : mapping of str to sequence of float (n,)
    labels, groups : sequence of str (n,)
    """
    code = f"shortcut-{family}"
    if not properties:
        return finding(code, "nothing of the kind is known of these images", status="not applicable")
    table = np.column_stack([np.asarray(v, np.float64) for v in properties.values()])  # (n, properties)
    if not np.any(table != table[0]):
        return finding(code, "all images are alike in this", status="not applicable")
    keep = _drawn(len(table))
    table, label, group = table[keep], np.asarray(labels)[keep], np.asarray(groups)[keep]
    classes, truth = np.unique(label, return_inverse=True)
    fewest = min((len(set(group[truth == c])) for c in range(len(classes))), default=0)
    if len(classes) < 2 or fewest < FOLDS:
        return finding(
            code,
            f"needs two classes with at least {FOLDS} groups each; the smallest class has {fewest}",
            status="not applicable",
        )
    scored = _out_of_fold(table, truth, group, tuple(str(c) for c in classes))
    interval = bootstrap([scored], group, metrics=["balanced_accuracy"], level=LEVEL)["balanced_accuracy"]
    chance = 1 / len(classes)
    figures = {
        "balanced_accuracy": round(interval.estimate, 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "chance": round(chance, 4),
        "images": float(len(table)),
    }
    found = interval.low > chance
    what = (
        f"{', '.join(properties)}: balanced accuracy {100 * interval.estimate:.1f} % "
        f"(99 % interval {100 * interval.low:.1f}-{100 * interval.high:.1f}), chance {100 * chance:.1f} %"
    )
    return finding(code, what, figures=figures, status="found" if found else "passed")


def _drawn(n: int) -> npt.NDArray[np.intp]:
    return np.sort(np.random.default_rng(0).permutation(n)[:MOST])


def _out_of_fold(
    table: Floats, truth: npt.NDArray[np.intp], group: npt.NDArray[np.str_], classes: tuple[str, ...]
) -> Scored:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    probability = np.zeros((len(table), len(classes)))
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(table, truth, group):
        forest = RandomForestClassifier(60, min_samples_leaf=5, class_weight="balanced", random_state=0)
        forest.fit(table[train], truth[train])
        probability[np.ix_(test, forest.classes_)] = forest.predict_proba(table[test])
    return Scored(truth, probability.argmax(axis=1), probability, classes)
