"""Tables of predictions as a study writes them, without a study."""

from __future__ import annotations

import numpy as np
import pandas as pd

CLASSES = ("benign", "malignant", "normal")


def predictions(
    *,
    images: int = 60,
    folds: int = 1,
    repeats: int = 1,
    seeds: tuple[int, ...] = (0,),
    group_of: int = 1,
    seed: int = 0,
    strength: float = 0.6,
    noise: int = 0,
    optimizer: str = "adam",
    architecture: str = "Net",
    classes: tuple[str, ...] = CLASSES,
) -> pd.DataFrame:
    """Predictions of one configuration: each image is a test image once in each repeat and seed.

    ``seed`` draws labels, folds and probabilities; ``noise`` draws other probabilities for the same images and folds.
    ``strength`` is what the true class is given more.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(classes), images)
    name = np.asarray(classes)
    parts = []
    for repeat in range(repeats):
        # The folds of a repeat are the same for all seeds and configurations.
        fold = np.random.default_rng([seed, repeat]).permutation(images) % folds
        for s in seeds:
            p = np.random.default_rng([seed, repeat, s, noise]).dirichlet(np.ones(len(classes)), images)
            p[np.arange(images), label] += strength
            p /= p.sum(axis=1, keepdims=True)
            columns = {
                "run": [f"{architecture}-{optimizer}-r{repeat}-f{f}-s{s}" for f in fold],
                "architecture": architecture,
                "optimizer": optimizer,
                "repeat": repeat,
                "fold": fold,
                "seed": s,
                "subset": "test",
                "image": [f"image {i:03d}" for i in range(images)],
                "group": [f"group {i // group_of}" for i in range(images)],
                "label": name[label],
                "predicted": name[p.argmax(axis=1)],
                **{f"p_{c}": p[:, k] for k, c in enumerate(classes)},
                "schema_version": 1,
            }
            parts.append(pd.DataFrame(columns))
    table = pd.concat(parts).sample(frac=1, random_state=0)
    return pd.concat([table, *(table.assign(subset=s) for s in ("train", "validation"))], ignore_index=True)


def without(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The table without the runs of which all these columns have these values, as if they had failed."""
    hit = pd.Series(True, table.index)
    for column, value in where.items():
        hit &= table[column] == value
    return table[~hit]


def masks(table: pd.DataFrame, *, noise: int = 0, skill: float = 0.8, spacing: float | None = None) -> pd.DataFrame:
    """Predicted masks of the test rows of `predictions`: normal images are empty, one lesion in seven is not outlined.

    Areas and which images are outlined are drawn from the image's name, Dice and misses from ``noise`` as well.
    """
    test = table[table["subset"] == "test"].reset_index(drop=True)
    rows = []
    for row in test.itertuples():
        number = int(str(row.image).split()[-1])
        fixed = np.random.default_rng(number)
        drawn = np.random.default_rng([number, int(row.repeat), int(row.seed), noise])  # type: ignore[arg-type]
        truth = "empty" if row.label == "normal" else "unknown" if number % 7 == 3 else "lesion"
        true_area = {"empty": 0.0, "lesion": float(fixed.integers(100, 2000))}.get(truth, np.nan)
        overlap = float(np.clip(drawn.normal(skill, 0.15), 0.05, 1)) if drawn.random() < 0.85 else 0.0
        area = int(drawn.integers(50, 900)) if overlap and (truth != "empty" or drawn.random() < 0.4) else 0
        found = truth == "lesion" and area > 0
        distance = 40 * (1.05 - overlap) if found else np.nan
        rows.append(
            {
                "truth": truth,
                "true_area_px": true_area,
                "predicted_area_px": area,
                "dice": overlap if truth == "lesion" else np.nan,
                "iou": overlap / (2 - overlap) if truth == "lesion" else np.nan,
                "hd95_px": distance,
                "hd95_mm": distance * spacing if spacing is not None and number % 2 else np.nan,
                "false_positive_share": area / 10_000 if truth == "empty" else np.nan,
            }
        )
    kept = test[[c for c in test.columns if not c.startswith("p_") and c != "schema_version"]]
    return pd.concat([kept, pd.DataFrame(rows)], axis=1).assign(schema_version=1)
