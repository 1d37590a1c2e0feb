"""What the report says of calibration, decisions and abstention, and that any study can be drawn."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.tables import predictions

from sonobreast.evaluation.decision_plots import draw_decisions
from sonobreast.evaluation.decision_report import (
    abstention_sentences,
    calibration_sentences,
    decision_section,
    decision_sentences,
)
from sonobreast.evaluation.plots import png
from sonobreast.evaluation.summary import is_complete, study_metrics
from sonobreast.evaluation.trust import PARTS, trust_metrics
from sonobreast.page import write_page
from sonobreast.records import read_json, write_json


def metrics(folder: Path, *tables: pd.DataFrame) -> list[dict[str, Any]]:
    """Configurations as the report reads them: through the file."""
    entries = []
    for table in tables:
        key = {k: table[k].iloc[0] for k in ("architecture", "optimizer")}
        entries.append({**key, **trust_metrics(table, resamples=100)})
    write_json(folder / "metrics.json", {"configurations": entries})
    found: list[dict[str, Any]] = read_json(folder / "metrics.json")["configurations"]
    return found


def page(folder: Path, configurations: list[dict[str, Any]]) -> str:
    chosen = configurations[-1]
    content = {
        "decisions": decision_section(configurations, chosen),
        "figures": dict.fromkeys(draw_decisions(chosen), "PICTURE"),
        "coverage_line": "Net: all pre-trained.",
        "folds": 3,
    }
    write_page(folder / "part.html", "evaluation/decisions.html.j2", content)
    return (folder / "part.html").read_text(encoding="utf-8")


def test_all_configurations_are_in_the_tables_and_the_chosen_one_in_figures_and_words(tmp_path: Path) -> None:
    tables = [predictions(images=150, folds=3, architecture=f"net {i}", noise=i) for i in range(2)]
    found = metrics(tmp_path, *tables)
    html = page(tmp_path, found)
    assert html.count("PICTURE") == 3
    assert "Figure and sentences are about net 1 + Adam." in html
    for c in found:
        assert f"{c['calibration']['variants']['isotonic']['log_loss']['estimate']:.3f}" in html
        assert f"{100 * c['decisions']['points'][0]['specificity']['estimate']:.1f}" in html
        assert f"{100 * c['conformal']['per_class']['normal']['coverage']['mean']:.1f}" in html
    assert "and with 3 folds put together it holds nearly, not exactly" in html


NONE = predictions(images=60)
TABLES = {
    "no malignant class": predictions(images=60, classes=("a", "b")),
    "two classes": predictions(images=60, classes=("benign", "malignant")),
    "few": predictions(images=12),
    "one image": predictions(images=1),
    "one group": NONE.assign(group="one"),
    "sure": predictions(images=60, strength=1e9),
    "all of one class": NONE.assign(p_benign=1.0, p_malignant=0.0, p_normal=0.0, predicted="benign"),
    "no cancer to fit on": NONE[(NONE["subset"] == "test") | (NONE["label"] != "malignant")],
    "no cancer": NONE[NONE["label"] != "malignant"],
    "no validation": NONE[NONE["subset"] == "test"],
}


DRAWN = ("no malignant class", "one group", "sure", "no cancer to fit on")  # drawing takes most of the time


@pytest.mark.parametrize("name", TABLES)
def test_any_study_has_a_page_without_a_warning(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics(tmp_path, TABLES[name])
        html = page(tmp_path, found)
        for draw in draw_decisions(found[0]).values() if name in DRAWN else ():
            assert png(draw()).startswith(b"\x89PNG")
    assert not re.search(r"\b(None|nan)\b", html)
    said = {
        "no malignant class": "Not applicable: no class is malignant (a, b).",
        "few": "Calibration was not looked at: 12 test images: 40 are needed",
        "one image": "No risk-coverage curve: the test images are of one group.",
        "one group": "No conformal sets: the test images are of one group",
        "no cancer to fit on": "hold no cancer",
        "no cancer": "No decision curve: the test images are of one side.",
        "no validation": "too few validation images for a temperature in 1 of 1 runs (0; 20 are needed)",
    }
    assert said.get(name, "") in html


def test_the_sentences_follow_the_figures() -> None:
    table = predictions(images=300, folds=3)
    good = trust_metrics(table, resamples=100)
    assert "says too" not in " ".join(calibration_sentences(good["calibration"]))
    tilted = table.copy()
    columns = ["p_benign", "p_malignant", "p_normal"]
    p = table[columns].to_numpy() * [1, 4, 1]
    tilted[columns] = p / p.sum(axis=1, keepdims=True)
    off = " ".join(calibration_sentences(trust_metrics(tilted, resamples=100)["calibration"]))
    assert "So these probabilities are off." in off
    assert "it says too much" in off
    point = good["decisions"]["points"][0]
    text = " ".join(decision_sentences(good["decisions"]))
    assert f"{100 * point['sensitivity']['estimate']:.1f}\u00a0%" in text
    assert "The aim is missed" not in text
    missed = {**point, "sensitivity": {**point["sensitivity"], "estimate": 0.7, "low": 0.6, "high": 0.8}}
    assert "The aim is missed" in " ".join(decision_sentences({**good["decisions"], "points": [missed]}))
    words = " ".join(abstention_sentences(good["conformal"], good["abstention"]))
    assert f"name one class for {100 * good['conformal']['single']['mean']:.1f}\u00a0%" in words


def test_a_file_of_an_earlier_version_has_no_such_section() -> None:
    content = study_metrics(predictions(), resamples=100)
    assert is_complete(content)
    for part in PARTS:
        without = {k: v for k, v in content["configurations"][0].items() if k != part}
        assert not is_complete({**content, "configurations": [without]})
        assert decision_section([without], without) is None
        assert set(draw_decisions(without)) <= {"reliability", "decision-curve", "risk-coverage"}


def test_cautions_about_few_groups_are_one_sentence(tmp_path: Path) -> None:
    found = metrics(tmp_path, predictions(images=60, group_of=5))
    section = decision_section(found, found[0])
    assert section is not None
    for part in ("calibration", "decisions", "abstention"):
        few = [c for c in section["cautions"][part] if "too narrow" in c]
        assert len(few) == 1
        assert few[0].startswith("some figures rest on")
