"""How often a test set was looked at: counted over studies, once for each run, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonobreast.evaluation import looks


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SONOBREAST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_name_of_a_test_set_is_that_of_its_images() -> None:
    assert looks.test_set_of(["b", "a"]) == looks.test_set_of(["a", "b"])
    assert looks.test_set_of(["a"]) != looks.test_set_of(["a", "b"])


def test_every_run_counts_once_over_all_studies() -> None:
    assert [(r.here, r.before) for r in looks.record("s1", {"t": ["a", "b"]}, {"t": 63})] == [(2, 0)]
    assert [(r.here, r.before) for r in looks.record("s1", {"t": ["a", "b"]}, {"t": 63})] == [(2, 0)], "called again"
    assert [(r.here, r.before) for r in looks.record("s1", {"t": ["c"]}, {"t": 63})] == [(3, 0)]
    both = looks.record("s2", {"t": ["a"], "u": ["a"]}, {"t": 63, "u": 9})
    assert [(r.test_set, r.images, r.here, r.before) for r in both] == [("t", 63, 1, 3), ("u", 9, 1, 0)]


def test_a_half_written_line_is_no_obstacle(home: Path) -> None:
    looks.record("s1", {"t": ["a"]}, {"t": 1})
    with looks.ledger_file().open("a") as stream:
        stream.write('{"test_set": "t", "stu\n')
    assert looks.record("s2", {"t": ["a"]}, {"t": 1})[0].before == 1


def test_without_a_home_the_study_goes_on(home: Path) -> None:
    home.write_text("a file where the folder should be")
    assert looks.record("s1", {"t": ["a"]}, {"t": 1})[0].here == 1
