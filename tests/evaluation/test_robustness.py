"""Stress figures: values made by hand, pairing, and tables where little is defined."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sonobreast.errors import SonobreastError
from sonobreast.evaluation import robustness
from sonobreast.evaluation.calibration import expected_calibration_error
from sonobreast.evaluation.metrics import Scored, evaluate
from sonobreast.evaluation.robustness import CLEAN, analyse, overconfidence

CLASSES = ("benign", "malignant", "normal")


def table(p: dict[tuple[str, str, int], list[list[float]]], labels: list[str]) -> pd.DataFrame:
    """Answers from probabilities under (model, kind, strength); every image is a group of its own."""
    rows = []
    for (model, kind, strength), each in p.items():
        for i, (label, q) in enumerate(zip(labels, each, strict=True)):
            row = {"model": model, "kind": kind, "strength": strength, "image": f"i{i:03d}", "group": f"g{i}"}
            rows.append(row | {"label": label} | {f"p_{c}": v for c, v in zip(CLASSES, q, strict=True)})
    return pd.DataFrame(rows)


def noisy(model: str, n: int, noise: float, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """A model that gets worse with strength by ``noise``; the same hard images for all models."""
    hard = np.random.default_rng(5).normal(size=n)
    labels = [CLASSES[i % 3] for i in range(n)]
    rng = np.random.default_rng(seed)
    p = {}
    for kind, strength in [(CLEAN, 0), *(("blur", s) for s in range(1, 6)), *(("gain", s) for s in range(1, 6))]:
        logit = np.zeros((n, 3))
        logit[np.arange(n), [i % 3 for i in range(n)]] = 1.5 + hard - noise * strength
        logit += 0.2 * rng.normal(size=logit.shape)
        e = np.exp(logit)
        p[model, kind, strength] = (e / e.sum(1, keepdims=True)).tolist()
    return table(p, labels), labels


def test_the_mean_drop_by_hand() -> None:
    labels = ["benign", "malignant", "benign", "malignant"]
    right, wrong = {"benign": [0.8, 0.1, 0.1], "malignant": [0.1, 0.8, 0.1]}, [0.1, 0.1, 0.8]
    clean = [right[c] for c in labels]
    p = {("m", CLEAN, 0): clean}
    for kind, misses in (("blur", (0, 0, 1, 1, 2)), ("gain", (0, 0, 0, 0, 4))):
        for s, k in enumerate(misses, start=1):
            p["m", kind, s] = [wrong if i < k else clean[i] for i in range(4)]
    found = analyse(table(p, labels), resamples=200)
    model = found["models"][0]
    # misses of 4 images: (0 + 0 + 1 + 1 + 2) / 5 / 4 and 4 / 5 / 4; over both (4 + 4) / 10 / 4
    assert model["clean"]["accuracy"]["estimate"] == 1.0
    drops = {k["kind"]: k["drop"]["accuracy"]["estimate"] for k in model["kinds"]}
    assert drops == pytest.approx({"blur": 0.2, "gain": 0.2})
    assert model["mean_drop"]["accuracy"]["estimate"] == pytest.approx(0.2)
    # right: 2 x .2^2 - .1 x .1 ... = .04 + .01 + .01 = .06; wrong: .81 + .01 + .64 = 1.46; 8 of 40 answers are wrong
    assert model["clean"]["brier"]["estimate"] == pytest.approx(0.06)
    assert model["mean_drop"]["brier"]["estimate"] == pytest.approx(0.2 * (1.46 - 0.06))
    # all are decided with .8: clean .8 - 1, corrupted .8 - .8 on average
    assert model["clean"]["overconfidence"]["estimate"] == pytest.approx(-0.2)
    assert model["mean_drop"]["overconfidence"]["estimate"] == pytest.approx(0.2)
    # AUC clean 1; under blur 3 one benign image has p .1 as all benign have: 1; under 5 a malignant one ties: .75
    auc = {(c["kind"], c["strength"]): c["value"]["auc_malignant"]["estimate"] for c in model["cells"]}
    assert auc["blur", 4] == 1.0
    assert auc["blur", 5] == pytest.approx(0.75)
    assert auc["gain", 5] == pytest.approx(0.5)
    assert model["mean_drop"]["auc_malignant"]["estimate"] == pytest.approx((0.25 + 0.5) / 10)
    rows = robustness.rows(found)
    assert len(rows) == 11
    assert set(rows[0]) == set(robustness.columns(found))
    assert rows[0]["accuracy_drop"] is None


def test_overconfidence_bounds_the_calibration_error() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3), 200)
    label = rng.integers(0, 3, 200)
    scored = Scored(label, p.argmax(1), p, CLASSES)
    one = float(overconfidence(scored, np.ones((1, 200)))[0])
    assert one == pytest.approx(p.max(1).mean() - evaluate(scored)["accuracy"])
    order = np.argsort(p.max(1))
    gaps = [abs(p.max(1)[b].mean() - scored.correct[b].mean()) for b in np.array_split(order, 10)]
    assert abs(one) <= np.mean(gaps) + 1e-12
    weight = rng.integers(0, 3, (1, 200)).astype(float)
    copies = np.repeat(np.arange(200), weight[0].astype(int))
    again = Scored(label[copies], p[copies].argmax(1), p[copies], CLASSES)
    assert overconfidence(scored, weight)[0] == pytest.approx(overconfidence(again, np.ones((1, len(copies))))[0])


def test_the_binned_error_is_that_of_the_report() -> None:
    """Of each cell the same figure as `expected_calibration_error`, never below the overconfidence; of 40 or more."""
    answers = noisy("m", 60, 0.6, 4)[0]
    found = analyse(answers, resamples=200)
    model = found["models"][0]
    columns = [f"p_{c}" for c in CLASSES]
    cells = {(CLEAN, 0): model["clean"]} | {(c["kind"], c["strength"]): c["value"] for c in model["cells"]}
    for (kind, strength), value in cells.items():
        part = answers[(answers["kind"] == kind) & (answers["strength"] == strength)]
        p = part[columns].to_numpy()
        right = np.array(CLASSES)[p.argmax(1)] == part["label"].to_numpy()
        assert value["ece"]["estimate"] == pytest.approx(expected_calibration_error(p.max(1), right))
        assert value["ece"]["estimate"] >= abs(value["overconfidence"]["estimate"]) - 1e-12
        assert 0 <= value["ece"]["low"] <= value["ece"]["estimate"] <= value["ece"]["high"] <= 1
    rise = np.mean([v["ece"]["estimate"] for k, v in cells.items() if k[1]]) - model["clean"]["ece"]["estimate"]
    assert model["mean_drop"]["ece"]["estimate"] == pytest.approx(rise)
    assert "ece_drop" in robustness.columns(found)
    few = analyse(answers[answers["image"] < "i039"], resamples=200)
    assert "ece" not in few["metrics"]
    assert "ece" not in few["models"][0]["clean"]


def test_the_rise_of_the_calibration_error_holds_the_true_one() -> None:
    """Clean answers are right as often as they say, corrupted ones .15 less often: the true error rises by .15."""
    held = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sure, u = 1.0 - 0.4 * rng.beta(1, 2, 400), rng.random(400)
        rows = []
        for kind, strength, less in ((CLEAN, 0, 0.0), ("blur", 1, 0.15)):
            right = u < sure - less
            p = np.where(right, sure, 1.0 - sure)  # of malignant, which all are: below .5 the decision is wrong
            rows.append(
                pd.DataFrame(
                    {
                        "model": "m",
                        "kind": kind,
                        "strength": strength,
                        "label": "malignant",
                        "image": [f"i{i:03d}" for i in range(400)],
                        "group": [f"g{i:03d}" for i in range(400)],
                        "p_benign": 1.0 - p,
                        "p_malignant": p,
                    }
                )
            )
        drop = analyse(pd.concat(rows), resamples=200, seed=seed)["models"][0]["mean_drop"]["ece"]
        assert drop["method"] == "cluster bootstrap basic"
        assert drop["low"] <= drop["estimate"] <= drop["high"]
        held.append(drop["low"] <= 0.15 <= drop["high"])
    assert sum(held) >= 14


def test_pairs_are_narrower_than_two_models_apart() -> None:
    a, b = noisy("a", 150, 0.5, 1)[0], noisy("b", 150, 0.2, 2)[0]
    found = analyse(pd.concat([a, b]), resamples=400)
    pair = found["pairs"][0]["mean_drop"]["accuracy"]
    each = [m["mean_drop"]["accuracy"] for m in found["models"]]
    assert pair["interval"]["estimate"] == pytest.approx(each[0]["estimate"] - each[1]["estimate"])
    assert pair["interval"]["low"] > 0
    assert pair["p_holm"] == pair["p_value"] <= 0.01
    unpaired = np.hypot(*(e["high"] - e["low"] for e in each))
    assert pair["interval"]["high"] - pair["interval"]["low"] < unpaired
    same = analyse(pd.concat([a, a.assign(model="again")]), resamples=200)["pairs"][0]["mean_drop"]["accuracy"]
    assert same["interval"]["estimate"] == 0.0
    assert same["p_value"] == 1.0
    assert same["interval"]["low"] < 0 < same["interval"]["high"]  # a zero width would be untrue


def test_the_order_of_rows_does_not_matter() -> None:
    answers = pd.concat([noisy("a", 60, 0.4, 1)[0], noisy("b", 60, 0.3, 2)[0]])
    mixed = answers.sample(frac=1.0, random_state=3)
    one, other = analyse(answers, resamples=200), analyse(mixed, resamples=200)
    for name in ("a", "b"):
        first, second = (next(m for m in f["models"] if m["model"] == name) for f in (one, other))
        for metric in one["metrics"]:
            for end in ("estimate", "low", "high"):
                assert first["mean_drop"][metric][end] == pytest.approx(second["mean_drop"][metric][end])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [["benign"] * 5, ["malignant"] * 5, ["benign"]])
def test_one_class_one_image_and_answers_of_one_class(labels: list[str]) -> None:
    n = len(labels)
    p = {("m", CLEAN, 0): [[1.0, 0.0, 0.0]] * n} | {("m", "blur", s): [[1.0, 0.0, 0.0]] * n for s in range(1, 6)}
    found = analyse(table(p, labels), resamples=200)
    model = found["models"][0]
    assert model["clean"]["auc_malignant"]["estimate"] is None
    assert model["clean"]["accuracy"]["estimate"] == float(labels[0] == "benign")
    assert model["clean"]["accuracy"]["low"] < model["clean"]["accuracy"]["high"]
    assert model["mean_drop"]["accuracy"]["estimate"] == 0.0
    assert model["mean_drop"]["accuracy"]["low"] < 0 < model["mean_drop"]["accuracy"]["high"]


def test_tables_that_do_not_fit_are_refused() -> None:
    answers = noisy("a", 12, 0.4, 1)[0]
    with pytest.raises(SonobreastError, match="clean"):
        analyse(answers[answers["kind"] != CLEAN])
    with pytest.raises(SonobreastError, match="same images"):
        analyse(answers.drop(answers.index[-1]))
    with pytest.raises(SonobreastError, match="same corruptions"):
        analyse(pd.concat([answers, answers[answers["kind"] != "gain"].assign(model="b")]))
