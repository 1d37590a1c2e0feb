"""Patients, given groups and copies put together; groups.csv read back and refused where it cannot be."""

from __future__ import annotations

import csv
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.fake import write_busi, write_csv

from sonobreast.data import groups
from sonobreast.data.duplicates import Pair
from sonobreast.data.manifest import Manifest, build
from sonobreast.errors import SonobreastError
from sonobreast.records import Case


def case(name: str, patient: str = "", group: str = "", label: str = "benign") -> Case:
    return Case(
        image=name,
        label=label,
        group=group or patient or name,
        patient=patient,
        width=9,
        height=9,
        sha256=name * 8,
        source="csv",
    )


def sets(members: tuple[groups.Member, ...]) -> set[frozenset[str]]:
    inside = defaultdict(set)
    for m in members:
        inside[m.group].add(m.image)
    return {frozenset(v) for v in inside.values()}


def test_whatever_is_connected_is_one_group() -> None:
    cases = [case("a", "P1"), case("b", "P1"), case("c"), case("d", group="G"), case("e", group="G"), case("f")]
    assert sets(groups.join(cases, [])) == {frozenset("ab"), frozenset("c"), frozenset("de"), frozenset("f")}
    pairs = [Pair(1, 2, "near-duplicate", 0.9), Pair(2, 3, "same-view", 0.6)]
    assert sets(groups.join(cases, pairs)) == {frozenset("abcde"), frozenset("f")}


def test_names_and_reasons() -> None:
    cases = [case("b", "P2"), case("a"), case("c"), case("d", group="G7")]
    members = groups.join(cases, [Pair(0, 1, "identical-pixels"), Pair(1, 2, "near-duplicate", 0.8, dx=12.0)])
    assert {m.image: m.group for m in members} == {"b": "P2", "a": "P2", "c": "P2", "d": "G7"}
    reason = {m.image: m.reason for m in members}
    assert reason["b"] == "patient P2; the same pixels as a"
    assert reason["c"] == "near-duplicate of a (shift +12 +0 px)"
    assert reason["d"] == "group of the data set"


def test_two_patients_with_one_picture_are_one_group() -> None:
    members = groups.join([case("a", "P1"), case("b", "P2")], [Pair(0, 1, "identical-file")])
    assert {m.group for m in members} == {"P1+P2"}


def test_no_search_where_all_patients_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(groups, "search", never)
    manifest = Manifest(tmp_path, tuple(case(n, f"P{n}") for n in "abc"))
    assert len(sets(groups.find(manifest))) == 3
    same = manifest.cases[1].model_copy(update={"sha256": manifest.cases[0].sha256})
    assert len(sets(groups.find(Manifest(tmp_path, (manifest.cases[0], same))))) == 1, "the same file is found anyway"
    with pytest.raises(AssertionError, match="searched"):
        groups.find(Manifest(tmp_path, (*manifest.cases, case("d"))))


def test_copies_are_found_in_a_folder(tmp_path: Path) -> None:
    root = write_busi(tmp_path / "b")
    shutil.copy(root / "benign" / "benign (1).png", root / "malignant" / "malignant (99).png")
    moved = Image.open(root / "benign" / "benign (2).png").point(lambda v: min(255, int(v * 1.1)))
    moved.save(root / "benign" / "benign (98).png")
    found = sets(groups.find(build(root)))
    assert frozenset({"benign/benign (1).png", "malignant/malignant (99).png"}) in found
    assert frozenset({"benign/benign (2).png", "benign/benign (98).png"}) in found
    assert len(found) == 21


def test_sixteen_bit_pictures_are_searched_too(tmp_path: Path) -> None:
    root = write_busi(tmp_path / "b")
    grey = np.asarray(Image.open(root / "benign" / "benign (1).png").convert("L")).astype(np.uint16)
    Image.fromarray(grey * np.uint16(257)).save(root / "benign" / "benign (77).png")
    found = sets(groups.find(build(root)))
    assert frozenset({"benign/benign (1).png", "benign/benign (77).png"}) in found


def test_written_and_read_back(tmp_path: Path, busi: Path) -> None:
    manifest = build(busi)
    members = groups.find(manifest)
    groups.write(tmp_path / "groups.csv", members)
    assert groups.read(tmp_path / "groups.csv", manifest) == members
    assert groups.regroup(manifest, members).counts == manifest.counts


def own(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image", "group"), *rows])
    return path


def test_a_table_of_ones_own_needs_two_columns(tmp_path: Path, busi: Path) -> None:
    manifest = build(busi)
    a, b = (c.image for c in manifest.cases[:2])
    members = groups.read(own(tmp_path / "g.csv", [(a, "x"), (b, "x")]), manifest)
    assert len(members) == len(manifest.cases)
    assert {m.image for m in members if m.group == "x"} == {a, b}


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([("benign/benign (1).pgn", "x")], r"line 2 .*benign \(1\)\.png"),
        ([("benign/benign (1).png", "x"), ("benign/benign (1).png", "y")], "line 3 .*again"),
        ([("benign/benign (1).png", " ")], "line 2.*no group"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, busi: Path, rows: list[tuple[str, str]], what: str) -> None:
    with pytest.raises(SonobreastError, match=what):
        groups.read(own(tmp_path / "g.csv", rows), build(busi))


def test_a_patient_in_two_groups_is_refused(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, (case("a", "P1"), case("b", "P1")))
    with pytest.raises(SonobreastError, match="patient 'P1' is in two groups"):
        groups.read(own(tmp_path / "g.csv", [("a", "x"), ("b", "y")]), manifest)


def test_an_unlisted_image_follows_its_patient(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, (case("a", "P1"), case("b", "P1"), case("c", "P2")))
    members = groups.read(own(tmp_path / "g.csv", [("a", "x")]), manifest)
    assert {m.image: m.group for m in members} == {"a": "x", "b": "x", "c": "P2"}


def test_a_data_sets_own_table_keeps_its_groups(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "d")
    manifest = build(file)
    assert sets(groups.find(manifest)) == {
        frozenset(c.image for c in manifest.cases if c.group == g) for g in {c.group for c in manifest.cases}
    }
