"""What the report takes from the figures: which pictures and pairs, what is said beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.tables import masks, predictions

from sonobreast.evaluation.report import _pairs_shown
from sonobreast.evaluation.segmentation_report import overlay_pictures, segmentation_section
from sonobreast.evaluation.summary import study_metrics


def metrics(networks: int, **options: Any) -> dict[str, Any]:
    table = pd.concat(
        [predictions(architecture=f"net {i}", noise=i, strength=0.4 + 0.03 * i, **options) for i in range(networks)]
    )
    return study_metrics(table, None, masks(table), resamples=100)


@pytest.fixture(scope="module")
def many() -> dict[str, Any]:
    return metrics(9)


def put_pictures(folder: Path, networks: int) -> None:
    for i in range(networks):
        (folder / f"segmentation-net_{i}-adam.png").write_bytes(b"picture")


def test_few_configurations_show_all_their_pictures(tmp_path: Path) -> None:
    put_pictures(tmp_path, 2)
    content = metrics(3)
    shown = overlay_pictures(tmp_path, content)
    assert list(shown) == ["segmentation-net_0-adam", "segmentation-net_1-adam"]
    assert set(shown.values()) == {"cGljdHVyZQ=="}
    section = segmentation_section(content, _pairs_shown(content, "segmentation_comparisons"))
    assert section is not None
    assert len(section["pictures"]) == len(section["configurations"]) == 3
    assert len(section["pairs"]) == section["all_pairs"] == section["family"] == 3


def test_of_many_the_best_on_validation_is_shown(many: dict[str, Any], tmp_path: Path) -> None:
    put_pictures(tmp_path, 9)
    best = max(many["configurations"], key=lambda c: c["subset_accuracy"]["validation"])
    name = f"segmentation-{best['architecture'].replace(' ', '_')}-adam"
    assert list(overlay_pictures(tmp_path, many)) == [name]
    section = segmentation_section(many, _pairs_shown(many, "segmentation_comparisons"))
    assert section is not None
    assert section["pictures"] == [name]
    assert (section["all_pairs"], len(section["pairs"]), section["family"]) == (36, 8, 36)
    assert all(best["architecture"] in (p["a"]["architecture"], p["b"]["architecture"]) for p in section["pairs"])


def test_cautions_about_few_groups_are_one_sentence(many: dict[str, Any]) -> None:
    section = segmentation_section(metrics(1, images=30), [])
    assert section is not None
    few = [c for c in section["cautions"] if "too narrow" in c]
    assert len(few) == 1
    numbers = [f["groups"] for f in section["configurations"][0]["masks"]["metrics"].values() if f is not None]
    assert min(numbers) < 20
    assert "figures rest on" in few[0]
    assert not any("narrow" in c for c in (segmentation_section(metrics(1, images=600), []) or {})["cautions"])


def test_nothing_is_said_where_nothing_segments(tmp_path: Path) -> None:
    content = study_metrics(predictions(), resamples=100)
    assert segmentation_section(content, []) is None
    assert overlay_pictures(tmp_path, content) == {}
    del content["configurations"][0]["segmentation"], content["segmentation_comparisons"]
    assert segmentation_section(content, _pairs_shown(content, "segmentation_comparisons")) is None
