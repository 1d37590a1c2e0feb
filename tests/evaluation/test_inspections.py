"""Further examinations in the study's report: whose runs they are of, what is said of them, and what if not done."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sonobreast.evaluation import inspections, plots, robustness, shortcuts
from sonobreast.evaluation.domain_figures import domain_figures
from sonobreast.evaluation.evidence import gather
from sonobreast.evaluation.inspections import INSPECTIONS, examined, find, sections
from sonobreast.evaluation.localisation import CENTRE, SCORES, localisation_figures, sanity_figures
from sonobreast.page import write_page
from sonobreast.records import read_json, write_json

CLASSES = ("benign", "malignant", "normal")
LABELS = [CLASSES[i % 3] for i in range(24)]
RUNS = ("net-adam-r0-f0-s0", "net-adam-r0-f1-s0")
CONFIGURATION = "net-adam"
TITLES = ("Where it looked", "Does it know what it should not judge", "Under stress", "Short-cuts")
Content = dict[str, Any]


def answers(model: str, name: str, conditions: list[tuple[str, int]], seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for kind, strength in conditions:
        p = rng.dirichlet(np.ones(3), len(LABELS))
        p[np.arange(len(LABELS)), [CLASSES.index(c) for c in LABELS]] += 1.0 - 0.15 * strength
        p /= p.sum(axis=1, keepdims=True)
        for i, label in enumerate(LABELS):
            row = {"model": model, name: kind, "strength": strength, "image": f"i{i:02d}", "group": f"g{i}"}
            changed = kind != shortcuts.WHOLE
            rows.append(
                row | {"label": label, "changed": changed} | dict(zip(("p_" + c for c in CLASSES), p[i], strict=True))
            )
    return pd.DataFrame(rows)


def domain(models: int) -> Content:
    rng = np.random.default_rng(1)
    rows = [
        {"set": which, "kind": kind, "image": f"{kind}{i}", "group": f"{kind}{i}", "run": run, "ratio": r}
        for which, kind, low in (("test", "benign", 0.5), ("outsider", "blank", 0.8), ("outsider", "noise", 2.0))
        for run in RUNS
        for i, r in enumerate(low + 0.6 * rng.random(12))
    ]
    found = {"accept": 0.95, "groups_needed": 19, "groups_least": 7, "detector": "stages"}
    return {"about": {"model": "Net + Adam"}, **found, "detectors": {"stages": domain_figures(pd.DataFrame(rows))}}


def explain(models: int) -> Content:
    rng = np.random.default_rng(2)
    rows = [
        {
            "image": f"i{i}",
            "group": f"g{i}",
            "method": m,
            "label": LABELS[i],
            "correct": i % 4 > 0,
            "area": 0.1,
            "gain": e - 0.1,
        }
        | dict.fromkeys(SCORES, e)
        for m in ("gradcam", CENTRE)
        for i, e in enumerate(rng.random(24))
    ]
    alike = {"method": "gradcam", "step": "all", "spearman": -0.123, "ssim": 0.1, "gain": 0.0, "gain_trained": 0.2}
    about = {"model": "Net + Adam", "images": 24, "of_all": 60, "with_mask": 24, "target": "malignant"}
    return {
        "about": about,
        "methods": [{"name": "gradcam", "title": "Grad-CAM", "why_not": "", "slow": False, "seconds": 0.1}],
        "localisation": localisation_figures(pd.DataFrame(rows), resamples=100),
        "why_not_scored": "",
        "sanity": sanity_figures([alike]),
    }


def judged() -> Content:
    return {"available": 60, "drawn": 24, "own": 60, "subset": "test", "name": "test", "fills_marks": []}


def stress(models: int) -> Content:
    conditions = [(robustness.CLEAN, 0), *((k, s) for k in ("blur", "gain", "jpeg", "crop") for s in range(1, 6))]
    table = pd.concat([answers(f"Net {m}", "kind", conditions, m) for m in range(models)])
    words = [
        {"name": k, "title": k.title(), "means": "", "unit": "", "labels": list("12345")} for k, s in conditions[1::5]
    ]
    return {"about": judged(), "kinds_in_words": words, **robustness.analyse(table, resamples=100)}


def short_cuts(models: int) -> Content:
    views = [shortcuts.WHOLE, "background-filled", "border", "calipers"]
    table = pd.concat([answers(f"Net {m}", "view", [(v, i) for i, v in enumerate(views)], m) for m in range(models)])
    found = shortcuts.analyse(table, parts=views[1:3], shifts=views[3:], resamples=100)
    return {
        "about": judged(),
        "not_applicable": {"text": "all of these images carry calipers or text already"},
        **found,
    }


MAKERS: dict[str, Callable[[int], Content]] = {
    "domain": domain,
    "explain": explain,
    "stress": stress,
    "shortcuts": short_cuts,
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for run in RUNS:
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "predictions.csv").write_text(f"of {run}\n")
    return tmp_path


def put(out: Path, name: str, content: Content, folder: str = "") -> Path:
    file = out / (folder or name) / f"{name}.json"
    content = {**content, "about": {**content["about"], **examined([out / "runs" / r for r in RUNS])}}
    file.parent.mkdir(exist_ok=True)
    write_json(file, content)
    file.with_suffix(".html").write_text("a page")
    return file


def page(out: Path) -> str:
    content, figures = sections(find(out), out, CONFIGURATION, [CONFIGURATION])
    shown = {"inspections": content, "figures": {n: str(len(plots.png(f))) for n, f in figures.items()}}
    write_page(out / "part.html", "evaluation/inspections.html.j2", shown)
    return (out / "part.html").read_text()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("models", [1, 2])
def test_each_has_sentences_a_table_a_figure_and_a_link(out: Path, models: int) -> None:
    for name, make in MAKERS.items():
        put(out, name, make(models))
    html = page(out)
    assert re.findall("<h2>(.*?)</h2>", html) == list(TITLES)
    for part in html.split("<h2>")[1:]:
        assert part.count("<img") == part.count("<table") == 1
        assert part.count("<p>") >= 1
        [link] = re.findall('href="(.*?)"', part)
        assert (out / link).is_file()
        assert re.search(r"\d–\d|\d to [+−]?\d", part), "an interval"
        assert 3 <= part.count("<tr>") <= 10
    assert "Not done" not in html
    assert "−0.12" in html
    assert "19 independent groups are needed, there are 7" in html
    assert not re.search(r"https?:|\bnan\b|\bNone\b", html)


def test_what_is_not_done_names_its_command(out: Path) -> None:
    html = page(out)
    for name in INSPECTIONS:
        assert f"<code>sonobreast {name} OUT --data DIR --out OUT/{name}</code>" in html
    assert html.count("Not done.") == 4
    content, figures = sections(find(out), out, "ensemble-none", ["a-adam", "b-adam"])
    commands = {s["name"]: s["command"].split("--configuration ")[1] for s in content}
    assert commands == {
        "explain": "a-adam",
        "domain": "ensemble-none",
        "stress": "ensemble-none",
        "shortcuts": "ensemble-none",
    }
    assert figures == {}


@pytest.mark.parametrize("name", INSPECTIONS)
def test_one_of_other_runs_is_named_and_not_shown(out: Path, name: str) -> None:
    """Runs of two studies of one recipe have the same names: their predictions tell them apart."""
    file = put(out, name, MAKERS[name](1))
    assert find(out)[name].content
    assert gather(out).inspections == {name: file}
    (out / "runs" / RUNS[1] / "predictions.csv").write_text("of another study\n")
    assert "another study" in find(out)[name].why
    assert "another study, which have the same names" in page(out)
    (out / "runs" / RUNS[0] / "predictions.csv").unlink()
    assert f"does not have, first {RUNS[0]}" in page(out)
    assert gather(out).inspections == {}


def test_another_folder_serves_where_the_named_one_is_foreign(out: Path) -> None:
    good = put(out, "stress", stress(1), folder="tested")
    put(out, "stress", stress(1))
    bad = read_json(out / "stress" / "stress.json")
    bad["about"]["run_digests"][RUNS[0]] = "0" * 64
    write_json(out / "stress" / "stress.json", bad)
    assert find(out)["stress"].file == good
    assert 'href="tested/stress.html"' in page(out)
    assert gather(out).inspections["stress"] == good


@pytest.mark.parametrize("name", INSPECTIONS)
def test_a_file_of_another_make_is_said_and_spoils_nothing(out: Path, name: str) -> None:
    file = put(out, name, {"about": {}, "models": [], "detectors": {}})
    assert "not as this version writes it" in page(out)
    file.write_text("{")
    assert "it cannot be read" in page(out)
    write_json(file, {"about": {"runs": []}})
    assert "does not say which runs" in page(out)


def test_without_masks_there_is_no_table_of_maps(out: Path) -> None:
    why = "not applicable: no image has a lesion whose outline is known"
    put(out, "explain", {**explain(1), "localisation": [], "why_not_scored": why})
    part = page(out).split("<h2>")[1]
    assert "no image has a lesion" in part
    assert "<table" not in part
    assert "<img" not in part


def test_titles_are_in_the_order_of_the_page() -> None:
    assert tuple(inspections._TITLES.values()) == TITLES
    assert set(inspections._TITLES) == set(INSPECTIONS)
