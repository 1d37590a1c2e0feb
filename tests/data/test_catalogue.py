"""The catalogue of public data, and its download with the real kagglehub against a server on this machine."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.fake import COUNTS, write_breast, write_bus_bra, write_bus_uclm, write_busi

from sonobreast.data.catalogue import DATA_SETS, download
from sonobreast.data.clinical_table import read_xlsx
from sonobreast.data.folders import read_layout
from sonobreast.data.manifest import Manifest, build
from sonobreast.errors import SonobreastError


class Kaggle(BaseHTTPRequestHandler):
    """As much of Kaggle's service as a download asks for."""

    archive = b""
    fail_with: int | None = None

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.fail_with is not None:
            self.answer(json.dumps({"code": self.fail_with, "message": "no"}).encode(), "application/json")
        elif self.path.endswith("/GetDataset"):
            self.answer(json.dumps({"currentVersionNumber": 1}).encode(), "application/json")
        elif self.path.endswith("/DownloadDataset"):
            self.answer(self.archive, "application/zip")
        else:
            self.send_error(404)

    def answer(self, content: bytes, kind: str) -> None:
        self.send_response(self.fail_with or 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Kaggle]]:
    kaggle_env = pytest.importorskip("kagglesdk.kaggle_env")
    source = write_busi(tmp_path / "source", nested=True)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(source))
    handler = type("Handler", (Kaggle,), {"archive": stream.getvalue()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # It looks through the source of every loaded module to name itself: seconds, where torch is loaded.
    monkeypatch.setattr("kagglehub.clients.get_user_agent", lambda: "test")
    # kagglehub knows fixed places only; the name of one is pointed to this server.
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setitem(
        kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "no credentials"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    yield handler
    server.shutdown()
    server.server_close()


def test_download(kaggle: type[Kaggle], tmp_path: Path) -> None:
    folder = download("BUSI")
    assert folder.is_relative_to(tmp_path / "cache")
    assert build(folder).counts == COUNTS
    kaggle.fail_with = None
    kaggle.archive = b"not asked for again"
    assert download("busi") == folder


@pytest.mark.parametrize("status", [403, 404, 500])
def test_refused_download(kaggle: type[Kaggle], status: int) -> None:
    kaggle.fail_with = status
    with pytest.raises(SonobreastError, match="could not be downloaded") as caught:
        download("busi")
    assert "sonobreast data check" in caught.value.remedy


def test_damaged_archive(kaggle: type[Kaggle]) -> None:
    kaggle.archive = kaggle.archive[: len(kaggle.archive) // 2]
    with pytest.raises(SonobreastError, match="could not be downloaded"):
        download("busi")


def test_off_line(kaggle: type[Kaggle], monkeypatch: pytest.MonkeyPatch) -> None:
    from kagglesdk import kaggle_env

    # Port 9 is nobody's: the connection is refused at once.
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, "http://127.0.0.1:9")
    with pytest.raises(SonobreastError, match="could not be downloaded") as caught:
        download("busi")
    assert DATA_SETS["busi"].kaggle in caught.value.remedy
    assert DATA_SETS["busi"].licence in caught.value.remedy


def test_unknown_data_set() -> None:
    with pytest.raises(SonobreastError, match="did you mean busi"):
        download("bus")


@pytest.mark.parametrize("name", ["bus_bra", "BUS-BRA", "breast", "bus-uclm"])
def test_sets_that_a_person_downloads(name: str) -> None:
    data_set = DATA_SETS[name.lower().replace("-", "_")]
    with pytest.raises(SonobreastError, match="not fetched by this tool") as caught:
        download(name)
    for part in (data_set.page, data_set.licence, data_set.citation, data_set.layout, "sonobreast data check"):
        assert part in caught.value.remedy


def test_names_are_those_of_the_layouts(tmp_path: Path) -> None:
    writers = {"busi": write_busi, "bus_bra": write_bus_bra, "breast": write_breast, "bus_uclm": write_bus_uclm}
    assert set(DATA_SETS) == set(writers)
    for name, writer in writers.items():
        assert read_layout(writer(tmp_path / name)).layout == name


def test_counts_of_breast_are_those_of_its_spreadsheet(real_data: Path) -> None:
    tables = list((real_data / "breast").glob("*.xlsx"))
    if not tables:
        pytest.skip("no breast/ beside the real BUSI")
    lines = read_xlsx(tables[0], ("classification",)).lines
    assert Counter(line.cells["classification"] for line in lines) == DATA_SETS["breast"].classes
    assert len({line.cells["caseid"] for line in lines}) == DATA_SETS["breast"].patients
    assert sum(bool(line.cells["mask_tumor_filename"]) for line in lines) == DATA_SETS["breast"].masks


@pytest.mark.slow
def test_counts_are_those_of_the_files(real_busi: Manifest) -> None:
    assert DATA_SETS["busi"].classes == real_busi.counts
    assert DATA_SETS["busi"].masks == sum(len(c.masks) for c in real_busi.cases)
