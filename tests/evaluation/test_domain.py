"""The training domain in numbers: a distance by hand, a threshold that keeps its promise, figures by counting."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.domain import (
    SHRINKAGE,
    Domain,
    accept_of_each,
    distance,
    fit_domain,
    groups_needed,
    picture_statistics,
    promised,
    read_domain,
    together,
    with_threshold,
    write_domain,
)
from sonobreast.evaluation.domain_figures import domain_figures


def line(threshold: float = 1.0) -> Domain:
    """One feature with mean 0 and variance 1: the distance is its square."""
    one = np.ones(1, np.float32)
    return Domain("picture", np.zeros(1, np.float32), one, one[:, None], one, threshold)


def test_the_distance_by_hand() -> None:
    axes = np.asarray([[0.6, 0.8], [-0.8, 0.6]], np.float32)
    d = Domain(
        "x", np.asarray([1, 2], np.float32), np.asarray([2, 1], np.float32), axes, np.asarray([4, 1], np.float32)
    )
    # standardised (1, 1): along the axes 1.4 and -0.2
    assert distance(d, [[3.0, 3.0]])[0] == pytest.approx((1.4**2 / 4 + 0.2**2) / 2, rel=1e-6)
    assert distance(d, [[1.0, 2.0]])[0] == 0.0


def test_training_images_are_about_one_away_and_strangers_far() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(10, 10))
    x = rng.normal(size=(400, 10)) @ mix
    d = fit_domain(x, "pooled")
    own = np.linalg.eigvalsh(np.corrcoef(x.T))
    shrunk = (1.0 - SHRINKAGE) * own + SHRINKAGE * own.mean()
    assert distance(d, x).mean() == pytest.approx((own / shrunk).mean(), rel=1e-4)
    assert distance(d, x + 40.0 * x.std(axis=0)).min() > 10.0
    # Moving and stretching the features changes nothing.
    assert np.allclose(distance(fit_domain(3.0 * x + 7.0, "pooled"), 3.0 * x + 7.0), distance(d, x), rtol=1e-3)


def test_what_is_not_finite_is_far_and_what_never_varies_is_bounded() -> None:
    x = np.random.default_rng(1).normal(size=(30, 4))
    x[:, 3] = 5.0
    d = fit_domain(x, "stages")
    assert np.isinf(distance(d, [[np.nan, 0, 0, 5], [np.inf, 0, 0, 5]])).all()
    assert np.isfinite(distance(d, [[0.0, 0, 0, 1e6]])).all()


def test_too_little_to_fit_on() -> None:
    for features in (np.zeros((1, 3)), np.zeros((0, 3)), np.full((5, 3), np.nan)):
        with pytest.raises(SonobreastError, match="two images"):
            fit_domain(features, "stages")
    assert distance(fit_domain(np.ones((5, 3)), "stages"), np.ones((2, 3))).tolist() == [0.0, 0.0]


def test_the_threshold_counts_groups_and_not_images() -> None:
    x = np.sqrt(np.arange(1.0, 21.0))[:, None]  # distances 1 to 20
    apart = with_threshold(line(), x, [str(i) for i in range(20)], 0.9)
    assert apart.threshold == pytest.approx(19.0)  # ceil(21 * 0.9) = 19 of 20
    assert apart.calibrated_on == 20
    # The farthest eleven images are copies of one picture: ten groups, ceil(11 * 0.9) = 10 of 10.
    copies = with_threshold(line(), x, [str(min(i, 9)) for i in range(20)], 0.9)
    assert copies.threshold == pytest.approx(20.0)
    assert copies.calibrated_on == 10
    # ceil(11 * 0.8) = 9 of 10 groups: all that stand alone, none of the copies.
    assert with_threshold(line(), x, [str(min(i, 9)) for i in range(20)], 0.8).threshold == pytest.approx(9.0)


def test_the_threshold_keeps_its_promise_on_new_groups() -> None:
    rng = np.random.default_rng(2)
    accepted = []
    for _ in range(300):
        group = rng.normal(size=40)
        size = rng.integers(1, 4, 40)
        x = np.repeat(group, size)[:, None]
        d = with_threshold(line(), x, np.repeat(np.arange(40), size).astype(str).tolist(), 0.9)
        accepted.append(float((rng.normal(size=200) ** 2 <= d.threshold).mean()))
    assert np.mean(accepted) == pytest.approx(np.ceil(41 * 0.9) / 41, abs=3 * np.std(accepted) / np.sqrt(300))


def test_few_groups_are_known_to_be_few() -> None:
    assert groups_needed(0.95) == 19
    assert groups_needed(0.99) == 99
    assert with_threshold(line(), [[1.0], [2.0]], ["a", "b"], 0.95).threshold == pytest.approx(4.0)
    with pytest.raises(SonobreastError, match="validation"):
        with_threshold(line(), np.empty((0, 1)), [], 0.95)
    with pytest.raises(SonobreastError, match="share"):
        with_threshold(line(), [[1.0]], ["a"], 95)


def test_the_file_gives_the_same_distances_and_is_small(tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(size=(200, 2000))
    d = with_threshold(fit_domain(x, "stages"), x[:50], [str(i) for i in range(50)])
    write_domain(tmp_path / "d.npz", d)
    again = read_domain(tmp_path / "d.npz")
    assert (distance(again, x) == distance(d, x)).all()
    assert (again.threshold, again.accept, again.calibrated_on, again.features) == (d.threshold, 0.95, 50, "stages")
    assert (tmp_path / "d.npz").stat().st_size < 1 << 20


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not a file of numbers"])
def test_a_damaged_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(SonobreastError, match=r"d\.npz"):
        read_domain(tmp_path / "d.npz")


def test_a_file_of_other_arrays_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", mean=np.zeros(3))
    with pytest.raises(SonobreastError, match="no statistics"):
        read_domain(tmp_path / "d.npz")


def test_statistics_of_blank_pictures_are_finite_and_colour_shows() -> None:
    blank = np.stack([np.full((32, 32, 3), v, np.uint8) for v in (0, 128, 255)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = picture_statistics(blank)
    assert rows.shape == (3, 21)
    assert np.isfinite(rows).all()
    red = blank[:1].copy()
    red[..., 0] = 255
    assert picture_statistics(red)[0, 0] > rows[0, 0] + 1.0
    assert picture_statistics(blank[:0]).shape == (0, 21)


def table(inside: list[float], outside: list[float], groups: list[str] | None = None) -> pd.DataFrame:
    names = groups or [f"g{i}" for i in range(len(inside))]
    rows = [
        {"set": "test", "kind": "benign", "image": f"i{i}", "group": g, "run": "r", "ratio": v}
        for i, (v, g) in enumerate(zip(inside, names, strict=True))
    ]
    rows += [
        {"set": "outsider", "kind": "noise", "image": f"o{i}", "group": f"o{i}", "run": "r", "ratio": v}
        for i, v in enumerate(outside)
    ]
    return pd.DataFrame(rows)


def test_auc_and_refused_share_by_counting() -> None:
    found = domain_figures(table([0.2, 0.4, 0.6, 1.2], [0.4, 0.8, 2.0, np.inf]), resamples=200)
    # of 16 pairs the outsider is farther in 1 + 3 + 4 + 4, tied in 1
    assert found["outsiders"]["noise"]["auc"]["estimate"] == pytest.approx(12.5 / 16)
    assert found["outsiders"]["noise"]["refused"]["estimate"] == 0.5
    assert found["test"]["refused"]["estimate"] == 0.25
    assert found["test"]["groups"] == 4


def test_two_runs_count_on_their_own_test_images() -> None:
    a = table([0.5, 1.5], [2.0, 2.0])
    b = table([0.5, 0.5], [0.1, 2.0]).assign(run="s")
    b.loc[b["set"] == "test", ["image", "group"]] = [["i8", "g8"], ["i9", "g9"]]
    found = domain_figures(pd.concat([a, b]), resamples=200)
    assert found["test"]["images"] == 4
    assert found["test"]["refused"]["estimate"] == 0.25
    assert found["outsiders"]["noise"]["images"] == 2
    assert found["outsiders"]["noise"]["auc"]["estimate"] == pytest.approx((1.0 + 0.5) / 2)


def test_groups_widen_the_interval_and_no_spread_gives_wilsons() -> None:
    inside = [1.5 if i % 4 == 0 else 0.5 for i in range(40)]
    alone = domain_figures(table(inside, [2.0] * 30), resamples=400)["test"]["refused"]
    sorted_in = sorted(inside)
    together = domain_figures(table(sorted_in, [2.0] * 30, [f"g{i // 4}" for i in range(40)]), resamples=400)
    assert together["test"]["refused"]["high"] > alone["high"]
    sure = domain_figures(table([0.5] * 30, [2.0] * 30), resamples=200)["outsiders"]["noise"]
    assert sure["auc"]["estimate"] == 1.0
    assert sure["auc"]["method"].startswith("wilson")
    assert sure["auc"]["low"] < 0.95


def test_without_test_images_there_is_no_auc() -> None:
    found = domain_figures(table([], [2.0, 0.5]), resamples=100)
    assert "auc" not in found["outsiders"]["noise"]
    assert found["test"]["refused"]["estimate"] is None


def test_half_of_the_say_decides_and_refuses_no_more_than_was_promised() -> None:
    rng = np.random.default_rng(0)
    scores = rng.lognormal(size=(500, 4))
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    found = together(scores, shares)
    np.testing.assert_array_equal(found > 1.0, ((scores > 1.0) * shares).sum(1) >= 0.5)
    np.testing.assert_array_equal(together(scores[:, :1], [1.0]), scores[:, 0])
    np.testing.assert_array_equal(together(scores[:, ::-1], shares[::-1]), found)
    np.testing.assert_array_equal(together(scores[:, :2], [0.5, 0.5]), scores[:, :2].max(1))
    assert together([[np.nan, np.inf, 0.1]], [0.3, 0.3, 0.4])[0] == np.inf
    # the worst that thresholds at 97.5 % can do: three of six networks refuse the same scan, in turns
    refused = np.zeros((1000, 6))
    for k in range(6):
        refused[np.arange(25) + 25 * (k // 3), k] = 2.0
    assert (together(refused, np.full(6, 1 / 6)) > 1.0).mean() == pytest.approx(0.05)
    assert accept_of_each(0.95, 6) == pytest.approx(0.975)
    assert promised([0.975] * 6, [100] * 6, [1 / 6] * 6) == pytest.approx(0.95)
    assert promised([0.95], [100], [1.0]) == accept_of_each(0.95, 1) == 0.95
    assert promised([0.975] * 2, [9, 100], [0.5, 0.5]) == pytest.approx(1 - (0.1 + 0.025))
    assert promised([0.975] * 2, [0, 0], [0.5, 0.5]) == 0.0
