"""What the report says of a recipe that was changed."""

from __future__ import annotations

from sonobreast.config import load_recipe
from sonobreast.evaluation.report import changed_settings


def test_a_group_that_is_switched_off_is_one_change() -> None:
    recipe = load_recipe("yadav2024", ["training.early_stopping=null", "training.epochs=3"])
    assert [name for name, _ in changed_settings(recipe)] == ["training.epochs", "training.early_stopping"]


def test_an_unchanged_recipe_has_no_changes() -> None:
    assert changed_settings(load_recipe("yadav2024")) == []


def test_settings_of_a_group_stand_for_themselves() -> None:
    recipe = load_recipe("yadav2024", ["training.early_stopping.patience=3"])
    assert changed_settings(recipe) == [("training.early_stopping.patience", "3")]
