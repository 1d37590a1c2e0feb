"""Comparisons in words: who is ahead, how sure, and what no test can say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from tests.tables import predictions, without

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.comparison import compare_all, compare_two
from sonobreast.evaluation.comparison_text import check_target, p_text, sentences, texts, write


def table(better: float, worse: float, **options: int) -> pd.DataFrame:
    return pd.concat(
        [predictions(strength=better, **options), predictions(strength=worse, noise=1, optimizer="sgdm", **options)]  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("metric", ["accuracy", "auc_malignant", "brier", "log_loss"])
def test_the_better_one_is_named_whichever_way_the_metric_points(metric: str) -> None:
    for strengths in ((1.5, 0.1), (0.1, 1.5)):
        said = sentences(
            compare_two(table(*strengths, images=120), "Net-adam", "Net-sgdm", metrics=[metric], resamples=300)
        )
        better, other = ("Net + Adam", "Net + SGDM")[:: 1 if strengths[0] > strengths[1] else -1]
        assert said[0].startswith(f"{better} is better than {other}")
        low, high = said[0].split("interval ")[1].split(",")[0].split(" to ")
        assert 0 < float(low) < float(high)


def test_no_difference_is_not_called_equality() -> None:
    said = " ".join(sentences(compare_all(table(0.5, 0.5), resamples=300)))
    assert "No difference" in said
    assert "does not show that there is none" in said
    assert "better" not in said


def test_what_was_left_out_and_not_compared_is_said() -> None:
    study = pd.concat([table(0.6, 0.6, folds=3, repeats=2), predictions(folds=3, repeats=2, optimizer="rmsprop")])
    study = without(study, optimizer="adam", repeat=1, fold=0)
    study = without(study, optimizer="rmsprop", fold=1)
    notes = " ".join(n for t in texts(compare_all(study, resamples=200)) for n in t[3])
    assert "left out of both" in notes
    assert "repeat 1, seed 0" in notes
    assert "Not compared: Net + Adam with Net + RMSprop" in notes


def test_tables_have_a_cell_for_each_column() -> None:
    study = pd.concat([table(0.9, 0.2), predictions(optimizer="rmsprop", noise=2)])
    for family, tables in (
        (compare_two(study, "Net-adam", "Net-sgdm", resamples=200), 1),
        (compare_all(study, resamples=200), 2),
    ):
        made = texts(family)
        assert len(made) == tables
        for _, header, rows, _ in made:
            assert rows
            assert all(len(r) == len(header) for r in rows)


def test_small_p_values_are_not_printed_as_zero() -> None:
    assert p_text(0.0) == "< 0.001"
    assert p_text(0.0421) == "0.042"
    assert p_text(float("nan")) == p_text(None) == "–"


def test_a_written_comparison_is_plain_json(tmp_path: Path) -> None:
    family = compare_two(table(0.9, 0.2), "Net-adam", "Net-sgdm", resamples=200)
    file = tmp_path / "c.json"
    write(file, family)
    write(file, family)  # its own file may be replaced
    content = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda c: pytest.fail(c))
    pair = content["pairs"][0]
    assert pair["a"] == {"architecture": "Net", "optimizer": "adam"}
    assert pair["metrics"]["accuracy"]["p_holm"] >= pair["metrics"]["accuracy"]["p_test"]
    assert pair["mcnemar"]["smallest_p"] > 0
    assert content["sentences"]


def test_a_file_of_the_study_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text('{"schema_version": 1, "configurations": []}', encoding="utf-8")
    with pytest.raises(SonobreastError, match="not a comparison"):
        check_target(file)
    with pytest.raises(SonobreastError, match="JSON"):
        check_target(tmp_path / "c.csv")
