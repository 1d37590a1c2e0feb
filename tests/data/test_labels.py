"""An institution's own labels: named, asked for, mapped as a person says, never guessed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tests.fake import fake_cases, write_class_folders

from sonobreast.data import exclusions
from sonobreast.data.cohort import Sources, gather
from sonobreast.data.exclusions import Exclusion
from sonobreast.data.labels import advice, map_labels, read_mapping, relabel, unknown_labels
from sonobreast.data.manifest import build, write
from sonobreast.errors import SonobreastError

COUNTS = {"fibroadenoma": 3, "Ca, invasive": 2, "normal": 2}
MAPPING = {"fibroadenoma": "benign", "Ca, invasive": "malignant"}


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", 'label,class\nfibroadenoma,benign\n"Ca, invasive",Malignant\n\n'),
        ("labels.csv", '\ufefflabel,class,remark\nfibroadenoma,benign,\n"Ca, invasive",malignant,biopsy\n'),
        ("labels.csv", "Label;Class\r\nfibroadenoma;benign\r\nCa, invasive;malignant\r\n"),
        ("labels.yaml", "fibroadenoma: benign\nCa, invasive: malignant\n"),
        ("labels.YML", "fibroadenoma: BENIGN\n'Ca, invasive': malignant\n"),
    ],
)
def test_mapping_files(tmp_path: Path, name: str, text: str) -> None:
    assert read_mapping(table(tmp_path / name, text)) == MAPPING


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "label,klass\na,benign\n", "column class is missing"),
        ("l.csv", "label,class\n", "no rows"),
        ("l.csv", "label,class\na,\n", "line 2 has no class for 'a'"),
        ("l.csv", "label,class\n,benign\n", "line 2 has no label"),
        (
            "l.csv",
            "label,class\na,benign\nb,malign\n",
            "line 3 maps 'b' to the unknown class 'malign'; did you",
        ),
        ("l.csv", "label,class\na,benign\n A ,malignant\n", "line 3 maps 'A' to malignant, an earlier line to benign"),
        ("l.csv", "label,class\na,benign,x\n", "line 2 has 3 cells"),
        ("l.yaml", "a: [benign\n", "not a readable YAML"),
        ("l.yaml", "- a\n- b\n", "not a list of `label: class`"),
        ("l.yaml", "a:\n", "entry 1 has no class for 'a'"),
        ("l.yaml", "no: benign\n", "YAML reads False as bool"),
        ("l.yaml", "1.5: benign\n", "YAML reads 1.5 as float"),
        ("l.yaml", "a: b\n", "unknown class 'b'"),
        ("l.yaml", "", "not a list"),
    ],
)
def test_mapping_files_that_are_wrong(tmp_path: Path, name: str, text: str, said: str) -> None:
    file = table(tmp_path / name, text)
    with pytest.raises(SonobreastError, match=said) as caught:
        read_mapping(file)
    assert caught.value.file == str(file)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["none.csv", "none.yaml"])
def test_missing_mapping_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(SonobreastError, match=r"missing|No such file"):
        read_mapping(tmp_path / name)


def test_numbers_are_labels(tmp_path: Path) -> None:
    assert read_mapping(table(tmp_path / "l.yaml", "0: benign\n1: malignant\n")) == {"0": "benign", "1": "malignant"}


def test_map_labels() -> None:
    cases = fake_cases(COUNTS)
    mapped = map_labels(cases, MAPPING)
    assert [c.label for c in mapped] == ["benign"] * 3 + ["malignant"] * 2 + ["normal"] * 2
    assert [c.extra["given_label"] for c in mapped] == [c.label for c in cases]
    for before, after in zip(cases, mapped, strict=True):
        assert after.model_copy(update={"label": before.label, "extra": before.extra}) == before


def test_case_and_spaces_do_not_matter_and_nothing_else_is_guessed() -> None:
    cases = fake_cases({"FIBROADENOMA": 1, "fibro  adenoma": 1, "Benign": 1})
    mapped = map_labels(cases, {"Fibroadenoma": "benign", " Fibro Adenoma ": "malignant"})
    assert [c.label for c in mapped] == ["benign", "malignant", "benign"]
    for near in ("fibroadenomas", "malign", "cancer", "B", "0"):
        with pytest.raises(SonobreastError, match="says nothing of 1 label"):
            map_labels(fake_cases({near: 1}), {"fibroadenoma": "benign"})


def test_cases_without_a_change_stay_what_they_are() -> None:
    cases = tuple(fake_cases({"benign": 2, "malignant": 1}))
    assert map_labels(cases, {"cyst": "benign"}) == cases


def test_a_class_may_be_mapped_too() -> None:
    mapped = map_labels(fake_cases({"normal": 1, "benign": 1}), {"normal": "benign"})
    assert [c.label for c in mapped] == ["benign", "benign"]


def test_labels_that_the_mapping_lacks(tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match=r"2 label\(s\) of 5 image\(s\): 'cyst' \(3\), 'scar' \(2\)") as caught:
        map_labels(fake_cases({"cyst": 3, "scar": 2, "benign": 1}), MAPPING, origin=tmp_path / "labels.csv")
    assert caught.value.file == str(tmp_path / "labels.csv")
    assert "--exclude" in caught.value.remedy
    with pytest.raises(SonobreastError, match="did you mean fibroadenoma"):
        map_labels(fake_cases({"fibroadenom": 3}), MAPPING)


def test_classes_of_another_model() -> None:
    cases = fake_cases({"cyst": 1, "benign": 1})
    assert [c.label for c in map_labels(cases, {"cyst": "b", "benign": "b"}, classes=("b", "m"))] == ["b", "b"]
    with pytest.raises(SonobreastError, match="unknown class 'benign'; known: b, m"):
        map_labels(cases, {"cyst": "benign"}, classes=("b", "m"))


def test_what_is_said_can_be_written_into_a_file(tmp_path: Path) -> None:
    unknown = unknown_labels(fake_cases(COUNTS))
    assert list(unknown.items()) == [("fibroadenoma", 3), ("Ca, invasive", 2)]
    text = advice(unknown)
    assert "'fibroadenoma' (3), 'Ca, invasive' (2)" in text
    assert "normal" not in text.split("labels.csv:")[1]
    rows = list(csv.reader(line.strip() for line in text.splitlines()[1:]))
    assert rows == [["label", "class"], ["fibroadenoma", ""], ["Ca, invasive", ""]]
    assert unknown_labels(fake_cases({"benign": 3})) == {}


# Through the stages


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return table(tmp_path / "labels.csv", 'label,class\nfibroadenoma,benign\n"Ca, invasive",malignant\n')


def test_manifest_keeps_both_labels(tmp_path: Path, labels: Path) -> None:
    manifest = build(write_class_folders(tmp_path / "data", COUNTS))
    mapped = relabel(manifest, labels)
    assert mapped.counts == {"benign": 3, "malignant": 2, "normal": 2}
    assert mapped.fingerprint != manifest.fingerprint
    write(tmp_path / "out" / "manifest.csv", mapped)
    again = build(tmp_path / "out" / "manifest.csv")
    assert again.cases == mapped.cases
    assert {c.extra["given_label"] for c in again.cases} == set(COUNTS)


def test_cohort(tmp_path: Path, labels: Path) -> None:
    folder = write_class_folders(tmp_path / "data", COUNTS)
    groups = tmp_path / "groups.csv"
    groups.write_text("image,group\nnormal/scan_000.png,x\n", encoding="utf-8")
    cohort = gather(Sources(folder, groups, labels=labels))
    assert cohort.manifest.counts == {"benign": 3, "malignant": 2, "normal": 2}
    assert gather(Sources(folder, groups)).manifest.counts == {"normal": 2, "Ca, invasive": 2, "fibroadenoma": 3}


def test_an_image_that_is_left_out_needs_no_class(tmp_path: Path, labels: Path) -> None:
    folder = write_class_folders(tmp_path / "data", {**COUNTS, "lost": 1})
    groups, exclude = tmp_path / "groups.csv", tmp_path / "exclusions.csv"
    groups.write_text("image,group\nnormal/scan_000.png,x\n", encoding="utf-8")
    with pytest.raises(SonobreastError, match=r"1 label\(s\) of 1 image\(s\): 'lost'") as caught:
        gather(Sources(folder, groups, labels=labels))
    assert caught.value.file == str(labels)
    exclusions.write(exclude, [Exclusion(image="lost/scan_000.png", reason="lost to follow-up")])
    cohort = gather(Sources(folder, groups, exclude, labels=labels))
    assert cohort.manifest.counts == {"benign": 3, "malignant": 2, "normal": 2}
    assert [r.image for r in cohort.left_out] == ["lost/scan_000.png"]


def test_a_mistake_in_the_mapping_shows_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="unknown class"):
        gather(Sources(tmp_path / "nowhere", labels=table(tmp_path / "l.csv", "label,class\na,b\n")))
