"""The mean of several networks, chosen fold by fold on validation images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tests.tables import predictions

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.ensemble import KEY, ensemble
from sonobreast.evaluation.predictions import whole_repeats
from sonobreast.records import PREDICTION_COLUMNS

COLUMNS = ["p_benign", "p_malignant", "p_normal"]


def with_validation(table: pd.DataFrame) -> pd.DataFrame:
    """The test images of the next fold as validation images."""
    table = table[table["subset"] == "test"]
    folds = int(table["fold"].max()) + 1
    held_out = table.assign(subset="validation", fold=(table["fold"] + 1) % folds)
    held_out = held_out.assign(run=[r.replace(f"-f{(f - 1) % folds}-", f"-f{f}-") for r, f in _runs(held_out)])
    return pd.concat([held_out, table], ignore_index=True)


def _runs(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(table["run"], table["fold"], strict=True))


def study(**strength: float) -> pd.DataFrame:
    parts = [
        with_validation(predictions(images=90, folds=3, noise=k, strength=s, architecture=name))
        for k, (name, s) in enumerate(strength.items())
    ]
    return pd.concat(parts, ignore_index=True)


def log_loss(table: pd.DataFrame) -> float:
    given = [row[f"p_{row['label']}"] for _, row in table.iterrows()]
    return float(-np.log(np.asarray(given)).mean())


def test_all_is_the_plain_mean_of_members_and_of_their_seeds() -> None:
    two = with_validation(predictions(images=30, folds=3, seeds=(0, 1), noise=1, architecture="A"))
    one = with_validation(predictions(images=30, folds=3, seeds=(0, 1), noise=2, architecture="B"))
    rows, choices = ensemble(pd.concat([two, one]), "all")
    image = rows.loc[rows["subset"] == "test", "image"].iloc[0]

    def mean(table: pd.DataFrame) -> np.ndarray:
        return table.loc[(table["image"] == image) & (table["subset"] == "test"), COLUMNS].to_numpy().mean(axis=0)

    got = rows.loc[(rows["image"] == image) & (rows["subset"] == "test"), COLUMNS].to_numpy()[0]
    np.testing.assert_allclose(got, (mean(two) + mean(one)) / 2, atol=1e-12)
    assert [len(c.runs) for c in choices] == [4, 4, 4]
    assert set(rows.columns) >= set(PREDICTION_COLUMNS)


def test_the_choice_is_the_least_validation_loss_of_all_sets() -> None:
    table = study(A=0.9, B=0.8, C=0.1)
    rows, choices = ensemble(table, "validation")
    for choice in choices:
        assert len(choice.candidates) == 7
        assert choice.log_loss == min(choice.candidates.values())
        mine = rows[(rows["fold"] == choice.fold) & (rows["subset"] == "validation")]
        assert log_loss(mine) == pytest.approx(choice.log_loss)
        alone = table[(table["architecture"] == "C") & (table["fold"] == choice.fold)]
        assert choice.candidates["C-adam"] == pytest.approx(log_loss(alone[alone["subset"] == "validation"]))
        assert ("C", "adam") not in choice.members  # guesses; at this strength they only dilute
    tested = whole_repeats(rows)
    assert len(tested.image) == 90


def test_test_labels_have_no_say() -> None:
    table = study(A=0.5, B=0.4, C=0.3)
    turned = table.copy()
    tested = turned["subset"] == "test"
    turned.loc[tested, "label"] = turned.loc[tested, "label"].map(
        {"benign": "malignant", "malignant": "normal", "normal": "benign"}
    )
    assert [c.members for c in ensemble(table, "validation")[1]] == [
        c.members for c in ensemble(turned, "validation")[1]
    ]


def test_a_perfect_member_stands_alone_and_zero_probabilities_are_finite() -> None:
    table = study(A=0.5, B=0.4)
    sure = table["architecture"] == "A"
    for c in ("benign", "malignant", "normal"):
        table.loc[sure, f"p_{c}"] = (table.loc[sure, "label"] == c).astype(float)
    wrong = table["architecture"] == "B"
    for c, other in (("benign", "normal"), ("malignant", "benign"), ("normal", "malignant")):
        table.loc[wrong, f"p_{c}"] = (table.loc[wrong, "label"] == other).astype(float)
    choices = ensemble(table, "validation")[1]
    assert all(c.members == (("A", "adam"),) and c.log_loss == 0.0 for c in choices)
    assert all(np.isfinite(list(c.candidates.values())).all() for c in choices)


def test_a_configuration_that_lost_a_seed_is_no_candidate_there() -> None:
    a = with_validation(predictions(images=30, folds=3, seeds=(0, 1), noise=1, architecture="A"))
    b = with_validation(predictions(images=30, folds=3, seeds=(0, 1), noise=2, architecture="B"))
    c = with_validation(predictions(images=30, folds=3, seeds=(0, 1), noise=3, architecture="C"))
    lost = b[~((b["fold"] == 1) & (b["seed"] == 1))]
    choices = {k.fold: k for k in ensemble(pd.concat([a, lost, c]), "all")[1]}
    assert [m[0] for m in choices[0].members] == ["A", "B", "C"]
    assert [m[0] for m in choices[1].members] == ["A", "C"]


def test_one_configuration_has_no_ensemble_and_nine_are_too_many() -> None:
    rows, choices = ensemble(study(A=0.5), "validation")
    assert rows.empty
    assert choices == []
    nine = study(**{f"N{i}": 0.1 * i for i in range(9)})
    with pytest.raises(SonobreastError, match="at most 8"):
        ensemble(nine, "validation")
    assert len(ensemble(nine, "all")[1]) == 3


def test_an_earlier_ensemble_is_no_member() -> None:
    table = study(A=0.5, B=0.4)
    rows, choices = ensemble(table, "all")
    again = ensemble(pd.concat([table, rows]), "all")
    assert [c.members for c in again[1]] == [c.members for c in choices]
    assert all(KEY not in c.members for c in choices)
