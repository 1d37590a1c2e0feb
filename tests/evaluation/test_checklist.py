"""Every item of both checklists is answered from the files, and says done only while its evidence is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.fake import write_busi
from tests.studies import collect_quickly, shifted, write_study

from sonobreast.data import manifest as manifests
from sonobreast.data.manifest import build
from sonobreast.evaluation import checklist
from sonobreast.evaluation.checklist import CHECKLISTS, STATUSES, Item, fill, write
from sonobreast.evaluation.checklist_rules import RULES
from sonobreast.evaluation.evidence import gather
from sonobreast.evaluation.external import analyse
from sonobreast.evaluation.predictions import averaged, read_predictions
from sonobreast.page import anchor_of
from sonobreast.records import read_table, write_json, write_table

TRIPOD = (
    "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 14 15 16 17 "
    "18a 18b 18c 18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("checklist")
    data = build(write_busi(base / "busi", {"benign": 12, "malignant": 12, "normal": 9}))
    out = base / "study" / "out"
    networks = {("joint:a", "adam"): shifted(4), ("plain", "adam"): None}
    collect_quickly(out, write_study(out, data, networks, folds=3))
    environment = {"sonobreast": "0.1.0", "packages": {"torch": "2"}, "git": None}
    write_json(out / "environment.json", environment)
    write_json(out / "looks.json", {"test_sets": [{"test_set": "x", "images": 11, "here": 2, "before": 5}]})
    (out / "model_card.md").write_text("a card")
    manifests.write(base / "audit" / "manifest.csv", data)
    return out


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "here" / "study"))


def items(out: Path, name: str = "CLAIM 2024") -> dict[str, Item]:
    [found] = [c for c in fill(gather(out, subgroups=())) if c.name == name]
    return {i.item: i for i in found.items}


def test_all_items_are_there_once_and_in_order(study: Path) -> None:
    claim, tripod = fill(gather(study))
    assert [i.item for i in claim.items] == [str(n) for n in range(1, 45)]
    assert [i.item for i in tripod.items] == TRIPOD.split()
    assert len(tripod.items) == 52
    for filled in (claim, tripod):
        assert sum(filled.counts.values()) == len(filled.items)
        for i in filled.items:
            assert i.status in STATUSES
            assert i.where.strip(), i.item
            assert i.asks.strip(), i.item
    assert len(claim.counts) > 3, "never a blanket yes"


def test_each_item_has_a_rule_or_is_the_authors() -> None:
    used = set()
    for key in CHECKLISTS:
        for entry in checklist._definition(key)["items"]:
            assert ("rule" in entry) != ("authors" in entry), entry["item"]
            assert set(entry) <= {"item", "section", "asks", "rule", "authors", "people"}
            used |= {entry["rule"]} if "rule" in entry else set()
    assert used == set(RULES), "a rule that nobody asks, or an item without one"


def test_what_only_people_know_is_never_answered_by_a_file(study: Path) -> None:
    claim, tripod = items(study), items(study, "TRIPOD+AI")
    for item in ("2", "3", "4", "15", "16", "34", "41", "44"):
        assert claim[item].status == "for the authors"
    for item in ("5b", "17", "18a", "18b", "18d", "19", "25"):
        assert tripod[item].status == "for the authors"


@pytest.mark.parametrize(
    ("file", "claim", "tripod"),
    [
        ("metrics.json", "6 26 28 29 32 37 38 39", "4 12e 23a"),
        ("split.csv", "19 20 35", "12a 20a 21"),
        ("manifest.csv", "7 8 12 17", "5a 6b 11"),
        ("config.yaml", "9 10 19 22 25 27 42", "7 9a 12c 13 18c"),
        ("environment.json", "23 43", "18f"),
        ("results.csv", "24 25", "9c 22"),
        ("predictions.csv", "32 39", "12g 15"),
        ("model_card.md", "40", "26"),
    ],
)
def test_without_its_evidence_no_item_says_done(study: Path, file: str, claim: str, tripod: str) -> None:
    before = (items(study), items(study, "TRIPOD+AI"))
    (study / file).unlink()
    after = (items(study), items(study, "TRIPOD+AI"))
    for old, new, names in zip(before, after, (claim, tripod), strict=True):
        for name in names.split():
            assert old[name].status in ("in this run", "partly", "not applicable"), name
            assert new[name].status == "not done", (name, new[name])
            assert file.split(".")[0] in new[name].where


def test_an_empty_folder_has_nothing_done(tmp_path: Path) -> None:
    for filled in fill(gather(tmp_path)):
        assert set(filled.counts) <= {"not done", "for the authors"}, [
            i for i in filled.items if i.status not in ("not done", "for the authors")
        ]


def damaged(text: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("spoil", [damaged("{"), damaged(""), damaged("schema_version,x\n9999,1\n")])
def test_a_damaged_file_is_no_evidence(study: Path, spoil: Callable[[Path], object]) -> None:
    spoil(study / "metrics.json")
    spoil(study / "split.csv")
    spoil(study / "config.yaml")
    found = items(study)
    assert {found[i].status for i in ("9", "19", "20", "28", "37")} == {"not done"}


def test_a_torn_group_is_not_disjoint(study: Path) -> None:
    assert items(study)["20"].status == "partly", "patients are not known"
    rows = read_table(study / "split.csv")
    sides = [r for r in rows if r["fold"] == "0"]
    train, test = (next(r for r in sides if r["subset"] == s) for s in ("train", "test"))
    test["group"] = train["group"]
    write_table(
        study / "split.csv", tuple(rows[0])[:-1], [{k: v for k, v in r.items() if k != "schema_version"} for r in rows]
    )
    found = items(study)["20"]
    assert found.status == "not done"
    assert "1 group" in found.where


def test_known_patients_make_it_disjoint_by_patient(study: Path) -> None:
    rows = [{**r, "patient": f"P{i}"} for i, r in enumerate(read_table(study / "manifest.csv"))]
    write_table(
        study / "manifest.csv",
        tuple(rows[0])[:-1],
        [{k: v for k, v in r.items() if k != "schema_version"} for r in rows],
    )
    assert items(study)["20"].status == "in this run"
    assert items(study)["35"].status == "in this run"


def test_what_is_known_of_the_people_is_told_and_the_rest_too(study: Path) -> None:
    assert items(study)["36"].status == "not done"
    assert "sex" in items(study)["36"].where
    rows = [{**r, "age": "50" if i % 2 else ""} for i, r in enumerate(read_table(study / "manifest.csv"))]
    names = [k for k in rows[0] if k != "schema_version"]
    write_table(study / "manifest.csv", names, [{k: r[k] for k in names} for r in rows])
    found = items(study)["36"]
    assert found.status == "partly"
    assert "age of 16 of 33 images" in found.where
    assert "sex" in found.where
    [_, tripod] = fill(gather(study))
    fairness = next(i for i in tripod.items if i.item == "14")
    assert (fairness.status, fairness.anchor) == ("partly", "subgroups")


def outside(study: Path, folder: Path, *, shift: float = 0.0) -> None:
    """An evaluation on other data, as the command leaves it; ``shift`` makes its internal side another study's."""
    table = read_predictions(study / "predictions.csv")
    mine = table[table["architecture"] == "plain"]
    internal = averaged(mine[mine["subset"] == "test"])
    found = analyse(internal.tail(25), internal, averaged(mine[mine["subset"] == "validation"]), resamples=100)
    found["internal"]["decision"]["auc_malignant"]["estimate"] += shift
    about = {"runs": sorted(set(mine["run"])), "name": "Elsewhere", "images": 25, "model": "plain, mean of 3 runs"}
    write_json(folder / "external.json", {"about": about, **found})


@pytest.mark.parametrize("beside", [True, False])
def test_another_hospital_counts_if_it_judged_this_study(study: Path, beside: bool) -> None:
    assert items(study)["33"].status == "not done"
    folder = (study.parent if beside else study) / "elsewhere"
    outside(study, folder, shift=0.01)
    assert items(study)["33"].status == "not done", "runs of the same names, but of another study"
    outside(study, folder)
    found = items(study)["33"]
    assert found.status == "in this run"
    assert "Elsewhere, 25 images" in found.where
    assert items(study, "TRIPOD+AI")["16"].where.count("Elsewhere") == 1


@pytest.mark.parametrize(("name", "item"), [("stress", "30"), ("shortcuts", "30"), ("explain", "31")])
def test_further_examinations_count_if_they_are_of_these_runs(study: Path, name: str, item: str) -> None:
    assert items(study)[item].status != "in this run"
    runs = [r["run"] for r in read_table(study / "results.csv")]
    write_json(study / "more" / f"{name}.json", {"about": {"runs": ["another-run"]}})
    assert items(study)[item].status != "in this run"
    write_json(study / "more" / f"{name}.json", {"about": {"runs": runs[:1]}})
    assert items(study)[item].status == "in this run"
    assert f"more/{name}.json" in items(study)[item].where


def test_an_audit_is_quality_control(study: Path, made: Path) -> None:
    assert items(study, "TRIPOD+AI")["7"].status == "partly"
    audit = study.parent / "audit"
    shutil.copytree(made.parents[1] / "audit", audit)
    write_json(audit / "audit.json", {"findings": []})
    assert items(study, "TRIPOD+AI")["7"].status == "in this run"


def test_simulated_images_have_no_patients(study: Path) -> None:
    config = yaml.safe_load((study / "config.yaml").read_text())
    (study / "config.yaml").write_text(yaml.safe_dump({**config, "source": "phantom"}))
    claim, tripod = items(study), items(study, "TRIPOD+AI")
    for item in (claim["5"], claim["11"], claim["34"], claim["36"], tripod["17"], tripod["6c"], tripod["14"]):
        assert item.status == "not applicable"
        assert "simulated" in item.where
    assert claim["44"].status == "for the authors"


def test_calibration_in_the_metrics_is_seen(study: Path) -> None:
    assert items(study, "TRIPOD+AI")["12e"].status == "in this run"
    content = json.loads((study / "metrics.json").read_text())
    for c in content["configurations"]:
        del c["calibration"]
    (study / "metrics.json").write_text(json.dumps(content))
    item = items(study, "TRIPOD+AI")["12e"]
    assert item.status == "partly"
    assert item.where.endswith("no calibration")


def test_the_table_on_disk_is_the_filled_checklist(study: Path) -> None:
    filled = fill(gather(study))
    write(study / "checklist.csv", filled)
    rows = read_table(study / "checklist.csv", checklist.COLUMNS)
    assert len(rows) == 44 + 52
    assert [r["status"] for r in rows] == [i.status for c in filled for i in c.items]


def test_the_anchor_of_a_heading() -> None:
    assert anchor_of("What an alarm is worth: predictive values") == "what-an-alarm-is-worth"
    assert anchor_of("Per class (Table 4 of the paper)") == "per-class"
