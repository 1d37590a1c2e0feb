"""Stage files appear whole or not at all, and a newer one is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sonobreast.errors import SonobreastError
from sonobreast.records import SCHEMA_VERSION, Run, atomic, read_json, read_table, write_json, write_table


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for content in ("old", "Grüße\r\n"):
        with atomic(path) as stream:
            stream.write(content)
        assert path.read_bytes() == content.encode()
    with atomic(path, "wb") as stream:
        stream.write(b"\0\xff")
    assert path.read_bytes() == b"\0\xff"
    assert names(path.parent) == ["file.txt"]


def test_file_is_readable_by_others_as_usual(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic(tmp_path / "atomic") as stream:
        stream.write("x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_an_error_inside_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic(path) as stream:  # noqa: PT012
        stream.write("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("call", ["fsync", "mkstemp", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    target = {"fsync": "os.fsync", "mkstemp": "tempfile.mkstemp", "replace": "pathlib.Path.replace"}[call]
    monkeypatch.setattr(target, fail)
    with pytest.raises(SonobreastError, match=os.strerror(code)) as caught:
        write_json(path, {"a": 1})
    monkeypatch.undo()
    assert caught.value.file == str(path)
    assert ("free some space" in caught.value.remedy) == (code == errno.ENOSPC)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.skipif(os.name != "posix", reason="limits and SIGKILL are POSIX")
def test_file_larger_than_the_limit(tmp_path: Path) -> None:
    """A real ``write`` that fails after some bytes went through."""
    script = """
import resource, signal, sys
from pathlib import Path
from sonobreast.records import atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from sonobreast.errors import SonobreastError
try:
    with atomic(Path(sys.argv[1])) as stream:
        stream.write("x" * 100_000)
except SonobreastError as error:
    assert error.file == sys.argv[1], error
    sys.exit(3)
"""
    path = tmp_path / "file.txt"
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 3
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.skipif(os.name != "posix", reason="limits and SIGKILL are POSIX")
@pytest.mark.parametrize("where", ["stream.write('new' * 9999); stream.flush(); kill()", "kill_before_rename()"])
def test_kill_leaves_the_old_file(tmp_path: Path, where: str) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
from sonobreast.records import atomic
def kill(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
def kill_before_rename():
    stream.write("new" * 9999)
    Path.replace = kill
with atomic(Path(sys.argv[1])) as stream:
    {where}
"""
    path = tmp_path / "file.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    with atomic(path) as stream:
        stream.write("newer")
    assert path.read_text() == "newer"


# JSON


def test_json_reads_back(tmp_path: Path) -> None:
    content = {"a": [1, np.float32(0.5), np.int64(3)], "b": {"c": (1, 2)}, "d": float("nan"), "e": np.inf, "é": None}
    write_json(tmp_path / "a.json", content)
    found = read_json(tmp_path / "a.json")
    expected = {"a": [1, 0.5, 3], "b": {"c": [1, 2]}, "d": None, "e": None, "é": None}
    assert found == {"schema_version": SCHEMA_VERSION, **expected}
    assert next(iter(found)) == "schema_version"
    assert "NaN" not in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"schema_version": null}', '{"schema_version": 0}', '{"schema_version": "x"}']
)
def test_damaged_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(SonobreastError) as caught:
        read_json(path)
    assert caught.value.file == str(path)
    assert caught.value.remedy


def test_missing_files(tmp_path: Path) -> None:
    for read in (read_json, read_table):
        with pytest.raises(SonobreastError, match="missing"):
            read(tmp_path / "nothing")


def test_newer_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    (tmp_path / "a.csv").write_text(f"a,schema_version\n1,{SCHEMA_VERSION + 1}\n")
    for path, read in ((tmp_path / "a.json", read_json), (tmp_path / "a.csv", read_table)):
        with pytest.raises(SonobreastError, match=f"{SCHEMA_VERSION + 1}") as caught:
            read(path)
        assert "version" in caught.value.remedy


# CSV


def test_table_reads_back(tmp_path: Path) -> None:
    rows = [{"a": 'odd, "name"\nwith a line', "b": 1}, {"a": "", "b": "é"}]
    write_table(tmp_path / "a.csv", ("a", "b"), rows)
    found = read_table(tmp_path / "a.csv", ("b", "a"))
    assert found == [{**{k: str(v) for k, v in r.items()}, "schema_version": str(SCHEMA_VERSION)} for r in rows]
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "a,b,schema_version"


@pytest.mark.parametrize("text", ["", "a,schema_version\n1,1\n", "a,b\n1,2\n"])
def test_table_without_a_column(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(SonobreastError, match="is missing"):
        read_table(path, ("a", "b"))


def test_table_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n\xff\xfe\n")
    with pytest.raises(SonobreastError, match="not a readable CSV"):
        read_table(path)


def test_run_id_is_a_folder_name() -> None:
    run = Run(architecture="hf/some model:é", optimizer="adam", repeat=1, fold=2, seed=3)
    assert run.id == "hf_some_model_é-adam-r1-f2-s3"
