"""A class that shows in a property is found, one that does not is not, and both come with their figure."""

from __future__ import annotations

import numpy as np
import pytest

from sonobreast.data.shortcut_check import check_shortcut


def labels(n: int) -> list[str]:
    return [("benign", "malignant", "normal")[i % 3] for i in range(n)]


def alone(n: int) -> list[str]:
    return [str(i) for i in range(n)]


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_no_short_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = check_shortcut("size", {"width": rng.normal(size=300).tolist()}, labels(300), alone(300))
    assert found.status == "passed"
    assert found.figures["low"] <= found.figures["chance"] <= found.figures["high"]


def test_a_class_with_a_size_of_its_own_is_found() -> None:
    rng = np.random.default_rng(0)
    width = [float(rng.normal(600 if c == "normal" else 500, 20)) for c in labels(240)]
    found = check_shortcut("size", {"width": width}, labels(240), alone(240))
    assert found.status == "found"
    assert 0.55 < found.figures["balanced_accuracy"] < 0.8  # normal is told apart, the other two are not


def test_copies_do_not_make_a_short_cut() -> None:
    """Random sizes repeated within groups: image-wise folds would learn each group by heart."""
    rng = np.random.default_rng(1)
    width = np.repeat(rng.normal(size=60), 6).tolist()
    label = np.repeat(labels(60), 6).tolist()
    group = np.repeat(alone(60), 6).tolist()
    assert check_shortcut("size", {"width": width}, label, group).status == "passed"
    assert check_shortcut("size", {"width": width}, label, alone(360)).status == "found", "the check would have seen it"


def test_what_cannot_be_checked_is_said() -> None:
    assert check_shortcut("device", {}, labels(30), alone(30)).status == "not applicable"
    assert check_shortcut("size", {"width": [5.0] * 30}, labels(30), alone(30)).status == "not applicable"
    few = check_shortcut("size", {"width": [float(i) for i in range(9)]}, labels(9), alone(9))
    assert few.status == "not applicable"
    assert "5 groups" in few.what
    one = check_shortcut("size", {"width": [1.0, 2.0]}, ["benign", "benign"], alone(2))
    assert one.status == "not applicable"
