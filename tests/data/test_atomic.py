"""A file under its own name is whole: what is being written has another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sonobreast.data.atomic import part_path, write_whole


def test_nothing_appears_under_the_name_before_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "image.png"
    target.write_bytes(b"old")
    seen: list[bytes] = []
    real = os.replace

    def look(source: Path, name: Path) -> None:
        seen.extend([Path(source).read_bytes(), target.read_bytes()])
        real(source, name)

    monkeypatch.setattr(os, "replace", look)
    write_whole(target, b"new")
    assert seen == [b"new", b"old"]
    assert target.read_bytes() == b"new"
    assert not part_path(target).exists()
    assert part_path(target).name.startswith(".")
