"""The images of a study as a person gives them: groups by default, lists respected, the search not repeated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.fake import tiny_recipe

from sonobreast.data import exclusions, groups
from sonobreast.data.cohort import Sources, divide, gather
from sonobreast.data.exclusions import Exclusion
from sonobreast.errors import SonobreastError


@pytest.fixture
def with_copy(busi: Path) -> Path:
    shutil.copy(busi / "benign" / "benign (1).png", busi / "benign" / "benign (50).png")
    return busi


def test_copies_are_found_and_kept_together_by_default(with_copy: Path) -> None:
    sources = Sources(with_copy)
    cohort = gather(sources)
    assert {
        c.group for c in cohort.manifest.cases if c.image in ("benign/benign (1).png", "benign/benign (50).png")
    } == {"benign/benign (1).png"}
    for seed in range(8):
        recipe = tiny_recipe({"split.seed": seed, "data.subsample": None, "split.grouping": "group"})
        _, rows = divide(cohort, sources, recipe)
        assert len({r.subset for r in rows if r.group == "benign/benign (1).png"}) == 1


def test_the_search_is_not_repeated_while_the_data_are_the_same(
    with_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gather(Sources(with_copy))
    groups.write(tmp_path / "groups.csv", first.members)
    searched: list[int] = []
    search = groups.search
    monkeypatch.setattr(groups, "search", lambda *a, **k: searched.append(1) or search(*a, **k))
    known = (tmp_path / "groups.csv", first.manifest.fingerprint)
    assert gather(Sources(with_copy), known=known).manifest.fingerprint == first.manifest.fingerprint
    assert not searched
    (with_copy / "benign" / "benign (50).png").unlink()
    assert len(gather(Sources(with_copy), known=known).manifest.cases) == len(first.manifest.cases) - 1
    assert searched, "other data are searched anew"


def test_excluded_images_are_left_out_and_kept_in_the_record(with_copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "exclusions.csv"
    exclusions.write(file, [Exclusion(image="benign/benign (50).png", reason="copy")])
    cohort = gather(Sources(with_copy, exclude=file))
    assert [r.image for r in cohort.left_out] == ["benign/benign (50).png"]
    assert "benign/benign (50).png" not in {c.image for c in cohort.manifest.cases}
    assert "benign/benign (50).png" in {m.image for m in cohort.members}


def test_a_mistake_in_a_list_shows_before_the_search(
    with_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "search", lambda *a, **k: pytest.fail("searched"))
    file = tmp_path / "exclusions.csv"
    exclusions.write(file, [Exclusion(image="benign/none.png", reason="copy")])
    with pytest.raises(SonobreastError, match=r"none\.png"):
        gather(Sources(with_copy, exclude=file))


def test_groups_of_ones_own_replace_the_search(
    with_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "search", lambda *a, **k: pytest.fail("searched"))
    file = tmp_path / "g.csv"
    file.write_text("image,group\nbenign/benign (2).png,x\nnormal/normal (1).png,x\n", encoding="utf-8")
    cohort = gather(Sources(with_copy, groups=file))
    assert {c.image for c in cohort.manifest.cases if c.group == "x"} == {
        "benign/benign (2).png",
        "normal/normal (1).png",
    }
