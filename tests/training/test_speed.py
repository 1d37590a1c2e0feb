"""The fastest way is measured once a machine, and a damaged memory of it harms nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sonobreast.training.speed import fastest, speed_file


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SONOBREAST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def ways(slow: str, calls: list[str]) -> dict[str, Callable[[], object]]:
    def way(name: str) -> Callable[[], object]:
        def step() -> None:
            calls.append(name)
            time.sleep(0.05 if name == slow else 0.0)

        return step

    return {n: way(n) for n in ("a", "b")}


def test_measured_once(home: Path) -> None:
    calls: list[str] = []
    assert fastest("key", ways("a", calls)) == "b"
    assert sorted(set(calls)) == ["a", "b"]
    calls.clear()
    assert fastest("key", ways("b", calls)) == "b"  # as remembered, though it is slower now
    assert calls == []
    assert fastest("other", ways("b", calls)) == "a"
    assert set(json.loads(speed_file().read_text())["measured"]) == {"key", "other"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema_version": 99, "measured": {"key": {"fastest": "a"}}}',
        '{"schema_version": 1, "measured": [1]}',
        '{"schema_version": 1, "measured": {"key": "a"}}',
        '{"schema_version": 1, "measured": {"key": {"fastest": "c"}}}',
        '{"schema_version": "1", "measured": {}}',
    ],
)
def test_damaged_file_is_ignored(text: str) -> None:
    speed_file().parent.mkdir()
    speed_file().write_text(text, encoding="utf-8")
    assert fastest("key", ways("a", [])) == "b"
    assert json.loads(speed_file().read_text())["measured"]["key"]["fastest"] == "b"


def test_binary_file_is_ignored() -> None:
    speed_file().parent.mkdir()
    speed_file().write_bytes(b"\xff\xfe\x00")
    assert fastest("key", ways("a", [])) == "b"


def test_home_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SONOBREAST_HOME", str(tmp_path / "file"))
    assert fastest("key", ways("a", [])) == "b"
