"""What the report says of a recipe that was changed; its errors, subgroups, checklists and contents."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.fake import write_busi
from tests.studies import collect_quickly, shifted, write_study

from sonobreast.config import load_recipe
from sonobreast.data.manifest import Manifest, build
from sonobreast.evaluation.failures import choose, chosen_configuration, map_file, of_configuration
from sonobreast.evaluation.predictions import read_predictions
from sonobreast.evaluation.report import changed_settings, write_report
from sonobreast.page import with_contents
from sonobreast.records import read_json, read_table
from sonobreast.training.failures import draw_failures


def test_a_group_that_is_switched_off_is_one_change() -> None:
    recipe = load_recipe("yadav2024", ["training.early_stopping=null", "training.epochs=3"])
    assert [name for name, _ in changed_settings(recipe)] == ["training.epochs", "training.early_stopping"]


def test_an_unchanged_recipe_has_no_changes() -> None:
    assert changed_settings(load_recipe("yadav2024")) == []


def test_settings_of_a_group_stand_for_themselves() -> None:
    recipe = load_recipe("yadav2024", ["training.early_stopping.patience=3"])
    assert changed_settings(recipe) == [("training.early_stopping.patience", "3")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    base = tmp_path_factory.mktemp("report")
    data = build(write_busi(base / "busi", {"benign": 12, "malignant": 12, "normal": 9}))
    out = base / "alone" / "out"
    collect_quickly(out, write_study(out, data, {("joint:a", "adam"): shifted(4)}, folds=3, strength=0.2))
    draw_failures(out, data)
    return out, data


@pytest.fixture(scope="module")
def page(made: tuple[Path, Manifest]) -> tuple[Path, str]:
    """The study's folder with its report; tests only read it."""
    return made[0], write_report(made[0]).read_text(encoding="utf-8")


@pytest.fixture
def study(made: tuple[Path, Manifest], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "here" / "study"))


def pictures(html: str) -> int:
    return html.split("<h2>Where it fails</h2>")[1].split("<h2>")[0].count("data:image/png")


def test_every_link_of_the_page_leads_somewhere_and_none_leaves_it(page: tuple[Path, str]) -> None:
    study, html = page
    anchors = re.findall(r'<a class="anchor" id="(.*?)">', html)
    assert len(anchors) == len(set(anchors)) == html.count("<h2>")
    links = re.findall(r'href="(.*?)"', html)
    assert {"#where-it-fails", "#subgroups", "#checklists", "#segmentation"} <= set(links)
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (study / link).is_file(), link
    assert not re.search(r"(src|href|action)=.?(https?:|//)|url\(|@import", html)
    assert "{{" not in html


def test_the_report_leaves_its_tables_beside_it(page: tuple[Path, str]) -> None:
    study, html = page
    assert len(read_table(study / "checklist.csv")) == 96
    rows = read_table(study / "subgroups.csv", ("by", "value", "images", "auc_malignant", "auc_malignant_low"))
    assert {r["by"] for r in rows} == {"size"}
    for r in rows:
        assert f"{r['value']}" in html
    assert "By lesion size" in html
    assert (study / "model_card.md").read_text(encoding="utf-8").startswith("---\nlicense: unknown\n")
    answers = {(r["checklist"], r["item"]): r["status"] for r in read_table(study / "checklist.csv")}
    assert answers["CLAIM 2024", "40"] == "partly", "the card was there when the checklist was filled in"


def test_errors_are_shown_with_and_without_pictures(page: tuple[Path, str], study: Path) -> None:
    _, html = page
    key = chosen_configuration(read_json(study / "metrics.json"))
    failures, counts = choose(of_configuration(read_predictions(study / "predictions.csv"), key))
    assert pictures(html) == len(failures) > 3
    for f in failures:
        assert f.image in html
    assert (
        f"Missed cancers: {len([f for f in failures if f.kind == 'missed cancer'])} of {counts['missed cancer']}"
        in html
    )
    assert "% of the image" in html.split("<h2>Where it fails</h2>")[1]
    bare = write_report(study, images=False).read_text(encoding="utf-8")
    assert pictures(bare) == 0
    for f in failures:
        assert f.image in bare
    rows = {(r["checklist"], r["item"]): r["where"] for r in read_table(study / "checklist.csv")}
    assert "0 with a picture" in rows["CLAIM 2024", "39"]


def test_an_explanation_that_somebody_made_stands_beside_its_image(page: tuple[Path, str], study: Path) -> None:
    _, before = page
    key = chosen_configuration(read_json(study / "metrics.json"))
    failures, _ = choose(of_configuration(read_predictions(study / "predictions.csv"), key))
    assert 'class="pair"' not in before
    Image.new("RGB", (8, 6)).save(map_file(study, failures[0]))
    after = write_report(study).read_text(encoding="utf-8")
    assert after.count('class="pair"') == 1
    assert pictures(after) == pictures(before) + 1
    assert f"Explanation of {failures[0].image}" in after


def test_a_study_without_errors_or_subgroups_says_so(study: Path) -> None:
    for name in ("segmentation.csv", "lesions.csv"):
        (study / name).unlink(missing_ok=True)
    table = study / "predictions.csv"
    frame = read_predictions(table)
    frame["predicted"] = frame["label"]
    for c in ("benign", "malignant", "normal"):
        frame[f"p_{c}"] = (frame["label"] == c).astype(float)
    frame.to_csv(table, index=False)
    html = write_report(study).read_text(encoding="utf-8")
    assert "called no test image wrong" in html
    assert "Nothing is known of these images that would tell subgroups apart" in html
    assert read_table(study / "subgroups.csv") == []


def test_a_page_without_a_place_for_contents_stays_as_it_is() -> None:
    assert with_contents("<h2>One</h2>") == "<h2>One</h2>"
    html = with_contents('<nav class="contents"></nav><h2>One &amp; two</h2><h2>Three (3 <em>x</em>)</h2>')
    assert '<a href="#three">Three</a>' in html
    assert html.count("<h2>") == 2
