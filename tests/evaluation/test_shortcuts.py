"""Figures of parts and shifts: values made by hand, chance, and sets where little is defined."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.shortcuts import COLUMNS, analyse, rows

CLASSES = ("benign", "malignant", "normal")


def answers(labels: list[str], views: dict[str, list[tuple[float, float, float] | None]]) -> pd.DataFrame:
    out = []
    for view, each in views.items():
        for i, (label, p) in enumerate(zip(labels, each, strict=True)):
            if p is not None:
                row = {"model": "m", "view": view, "image": f"i{i}", "group": f"g{i}", "label": label}
                row["changed"] = view != "whole"
                out.append(row | {f"p_{c}": v for c, v in zip(CLASSES, p, strict=True)})
    return pd.DataFrame(out)


def test_parts_and_shifts_by_hand() -> None:
    labels = ["benign", "benign", "malignant", "malignant", "normal"]
    whole = [(0.8, 0.1, 0.1), (0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.2, 0.7, 0.1), (0.1, 0.3, 0.6)]
    border = [(0.8, 0.1, 0.1), (0.2, 0.7, 0.1), (0.1, 0.8, 0.1), (0.5, 0.4, 0.1), (0.1, 0.1, 0.8)]
    calipers = [(0.6, 0.3, 0.1), (0.4, 0.5, 0.1), None, None, (0.1, 0.4, 0.5)]
    table = answers(labels, {"whole": whole, "border": border, "calipers": calipers})  # type: ignore[dict-item]
    found = analyse(table, parts=["border"], shifts=["calipers", "text"], resamples=200)
    model = found["models"][0]
    part = model["parts"]["border"]
    # malignant .8 and .4 against benign .1 and .7: three of four pairs; against normal .1 two of two more
    assert part["value"]["auc_lesions"]["estimate"] == pytest.approx(3 / 4)
    assert part["value"]["auc_malignant"]["estimate"] == pytest.approx(5 / 6)
    assert part["value"]["accuracy"]["estimate"] == pytest.approx(3 / 5)
    assert part["loss"]["accuracy"]["estimate"] == pytest.approx(2 / 5)
    assert part["chance"] == {"auc_malignant": 0.5, "auc_lesions": 0.5, "accuracy": 2 / 5}
    assert set(model["shifts"]) == {"calipers"}
    every, benign, normal = model["shifts"]["calipers"]
    assert (every["label"], benign["label"], normal["label"]) == ("", "benign", "normal")
    assert benign["shift"]["estimate"] == pytest.approx((0.2 + 0.3) / 2)
    assert every["shift"]["estimate"] == pytest.approx((0.2 + 0.3 + 0.1) / 3)
    assert every["decisions"]["estimate"] == pytest.approx(1 / 3)
    assert (every["images"], normal["images"]) == (3, 1)
    table_rows = rows(found)
    assert len(table_rows) == 3 + 3 + 3 * 2
    assert all(set(r) <= set(COLUMNS) for r in table_rows)


def test_a_constant_shift_is_certain_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    n = 80
    p = rng.uniform(0.2, 0.7, n)
    labels = ["benign", "malignant"] * (n // 2)
    noise = rng.normal(0.0, 0.05, n)

    def of(values: np.ndarray) -> list[tuple[float, float, float]]:
        return [(0.9 - v, v, 0.1) for v in values]

    moved = of(p + 0.1 + noise - noise.mean())
    table = answers(labels, {"whole": of(p), "calipers": moved, "text": of(p + noise - noise.mean())})  # type: ignore[dict-item]
    shifts = analyse(table, parts=[], shifts=["calipers", "text"], resamples=400)["models"][0]["shifts"]
    one, other = shifts["calipers"][0]["shift"], shifts["text"][0]["shift"]
    assert one["estimate"] == pytest.approx(0.1)
    # the standard error of the mean of independent shifts, which the paired bootstrap has to find
    half = 1.96 * noise.std() / np.sqrt(n)
    assert one["high"] - one["low"] == pytest.approx(2 * half, rel=0.2)
    assert other["low"] < 0 < other["high"]


@pytest.mark.filterwarnings("error")
def test_one_class_and_one_image() -> None:
    table = answers(["benign"], {"whole": [(1.0, 0.0, 0.0)], "border": [(0.0, 0.0, 1.0)], "text": [(1.0, 0.0, 0.0)]})
    model = analyse(table, parts=["border", "lesion"], shifts=["text"], resamples=200)["models"][0]
    assert set(model["parts"]) == {"whole", "border"}
    assert model["parts"]["border"]["value"]["auc_lesions"]["estimate"] is None
    assert model["parts"]["border"]["loss"]["accuracy"]["estimate"] == 1.0
    assert model["shifts"]["text"][0]["shift"]["estimate"] == 0.0
    with pytest.raises(SonobreastError, match="whole"):
        analyse(table[table["view"] != "whole"], parts=["border"], shifts=[])
