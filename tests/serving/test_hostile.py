"""Clients that the service would be better without: each is kept from costing the others anything."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.serving.live import live, parts, slowed, waiting

from sonobreast.errors import SonobreastError
from sonobreast.serving import answer, logs, server, web
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.gate import LOCKED
from sonobreast.serving.keys import Key, new_key, read_keys
from sonobreast.serving.predictor import Predictor, load_predictor
from sonobreast.serving.room import Room
from sonobreast.serving.settings import Settings

POST = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\n'


@pytest.fixture(scope="module")
def predictor(single: Bundle) -> Predictor:
    return load_predictor(single, threads=1)


def connected(client: httpx.Client) -> socket.socket:
    return socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=20)


def heard(found: socket.socket) -> bytes:
    """Everything until the other end closes, or breaks off."""
    content = b""
    try:
        while chunk := found.recv(1 << 16):
            content += chunk
    except ConnectionError:
        pass
    return content


def held(client: httpx.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return int(next(x for x in lines if x.startswith("sonobreast_upload_bytes_held")).split()[1])


def until_nothing_is_held(client: httpx.Client) -> None:
    for _ in range(1000):
        if held(client) == 0:
            return
        time.sleep(0.01)
    raise AssertionError(client.get("/metrics").text)


SPELLINGS = ("%0a", "%0A%0a", "%0d", "%00", "%20", "/", "//", "?", "#", ";x", "%2f", "%3f", ".")


@pytest.mark.parametrize("path", sorted(LOCKED))
def test_no_spelling_of_a_path_goes_past_the_keys(predictor: Predictor, scan: bytes, path: str) -> None:
    key, _ = new_key("ward-3")
    keys = (Key("ward-3", hashlib.sha256(key.encode()).digest()),)
    with live(predictor, keys=keys) as client:
        address = str(client.base_url).rstrip("/")
        spelt = [path + s for s in SPELLINGS] + ["/" + path, "/." + path, path.upper(), "/%2f" + path[1:]]
        for target in spelt:
            for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE"):
                files = parts(scan) if method == "POST" else None
                assert client.request(method, address + target, files=files).status_code in (401, 404), (method, target)
        described = client.get("/openapi.json").json()["paths"]
    assert set(described) - {"/v1/health", "/v1/ready"} == LOCKED  # what is added needs a key, or is named here


def test_whatever_is_asked_for_is_no_fault(client: httpx.Client) -> None:
    for path in (
        "/app.js%0a",
        "/%0a",
        "/v1/health%0a",
        "/%ff",
        "/" + "a" * 8000,
        "/..%2f..%2fetc/passwd",
        "/app.js?x=%00",
    ):
        for method in ("GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "PATCH"):
            assert client.request(method, path).status_code in (200, 404, 405), (method, path)


def test_head_is_answered_as_get_without_its_body(client: httpx.Client) -> None:
    for path in ("/", "/v1/health", "/v1/ready", "/v1/model", "/app.js"):
        wanted, found = client.get(path), client.head(path)
        assert (found.status_code, found.content) == (200, b"")
        assert found.headers["content-length"] == str(len(wanted.content))
    assert client.head("/v1/predict").status_code == 405
    assert client.get("/v1/health").json() == {"status": "ok"}  # the connection is still in order


def test_whoever_sends_nothing_holds_nothing(predictor: Predictor, scan: bytes) -> None:
    """A stated or missing length reserves no memory: five clients would have kept all others out."""
    with live(predictor, memory=96 << 20) as client, ExitStack() as stack:
        for head in (b"Content-Length: %d\r\n\r\n" % (48 << 20), b"Transfer-Encoding: chunked\r\n\r\n") * 4:
            slow = stack.enter_context(connected(client))
            slow.sendall(POST + head)
        for _ in range(3):
            assert client.post("/v1/predict", files=parts(scan)).status_code == 200


def test_what_arrives_is_held_within_the_limit_and_given_back(predictor: Predictor, scan: bytes) -> None:
    with live(predictor, memory=3 << 20) as client, ExitStack() as stack:
        slow = [stack.enter_context(connected(client)) for _ in range(2)]
        for one in slow:  # each fits alone and when it begins; the second does not fit beside the first
            one.sendall(POST + b"Content-Length: 2500000\r\n\r\n" + PART)
        slow[0].sendall(bytes(2_000_000))
        while held(client) < 2_000_000:
            time.sleep(0.01)
        slow[1].sendall(bytes(2_500_000 - len(PART)))
        assert slow[1].recv(12) == b"HTTP/1.1 429"
        assert held(client) < 3 << 20
        assert "sonobreast_overload_total 1" in client.get("/metrics").text
        slow[0].close()
        until_nothing_is_held(client)
        assert client.post("/v1/predict", files=parts(scan)).status_code == 200


def test_clients_that_leave_give_back_what_they_held(
    predictor: Predictor, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = PART + scan + b"\r\n--b--\r\n"
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with live(predictor, workers=1) as client:
        with connected(client) as within:
            within.sendall(request[:-100])
            while not held(client):
                time.sleep(0.01)
        until_nothing_is_held(client)
        go = slowed(monkeypatch)
        with connected(client) as before_the_answer:
            before_the_answer.sendall(request)
            waiting(client, 1)
        go.set()
        waiting(client, 0)
        until_nothing_is_held(client)
        assert client.post("/v1/predict", files=parts(scan)).status_code == 200


def test_whoever_does_not_take_the_answer_is_cut_off(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the answer, and its place among the connections, would be held for ever."""
    large = {"/app.js": ("app.js", "text/javascript"), "/": ("index.html", "text/html")}
    monkeypatch.setattr(web, "_STATIC", large)
    monkeypatch.setattr(Path, "read_bytes", lambda self: bytes(60 << 20))
    app = web._app(predictor, Settings(), Room(1, 1, 1), ThreadPoolExecutor(1), web.counting.Counters({}))
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(
            "tests.serving.live.create_app",
            lambda *_: web.gate(app, Settings(), web.counting.Counters({}), frozenset(large)),
        )
        with live(predictor, seconds=0.5) as client, connected(client) as lazy:
            lazy.sendall(b"GET /app.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(2.0)
            assert len(heard(lazy)) < 60 << 20


def test_connections_beyond_number_are_closed_at_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_CONNECTIONS", 4)
    monkeypatch.setattr(server, "_REFUSED", 4)
    with live(predictor, header_seconds=20.0) as client:
        with ExitStack() as stack:
            idle = [stack.enter_context(connected(client)) for _ in range(8)]
            for _ in range(20):
                with connected(client) as more:
                    assert heard(more) == b""  # long before its head is late
            idle[0].sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle[0].recv(12) == b"HTTP/1.1 503"
        for _ in range(200):
            try:
                assert client.get("/v1/health").status_code in (200, 503)
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        else:
            raise AssertionError("the service did not come back")


def test_a_connection_can_be_used_again_after_an_error(client: httpx.Client, scan: bytes) -> None:
    body = PART + scan + b"\r\n--b--\r\n"
    whole = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    other = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    wrong = POST.replace(b"multipart/form-data", b"text/plain") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with connected(client) as found:  # also at once, without waiting for answers
        found.sendall(other + wrong + whole + b"DELETE /v1/model HTTP/1.1\r\nHost: localhost\r\n\r\n" + last)
        content = heard(found)
    assert re.findall(rb"HTTP/1.1 (\d+)", content) == [b"404", b"415", b"200", b"405", b"200"]


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"Content-Length: -5\r\n\r\n",
        b"Content-Length: 5, 6\r\n\r\nabcdef",
        b"Content-Length: +5\r\n\r\nabcde",
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Host: evil.example\r\n\r\n",
        b"X: a\nY: b\r\n\x00\r\n\r\n",
        b"X" * 20_000 + b": y\r\n\r\n",
    ],
)
def test_ambiguous_requests_are_refused(client: httpx.Client, head: bytes) -> None:
    with connected(client) as found:
        found.sendall(POST + head)
        found.shutdown(socket.SHUT_WR)
        assert heard(found)[9:12] in (b"400", b"501", b"")
    assert client.get("/v1/health").status_code == 200


def test_answers_hold_nothing_of_the_request(client: httpx.Client, scan: bytes) -> None:
    word = "EVIL"
    headers = {
        "x-request-id": word,
        "x-forwarded-for": word,
        "origin": f"http://{word}",
        "referer": word,
        "x-api-key": word,
    }
    for found in (
        client.get(f"/{word}%0d%0aSet-Cookie:x", headers=headers),
        client.post(f"/v1/predict?{word}=%0d%0a", files=parts(scan), headers=headers),
        client.post(f"/v1/predict?overlays={word}", files=parts(scan)),
        client.request(word, "/v1/predict"),
    ):
        assert word.lower() not in (str(found.headers) + found.text).lower()
    text = client.get("/metrics").text
    assert word.lower() not in text.lower()
    assert text.count("sonobreast_requests_total{") < 40


def test_a_worker_without_memory_does_not_blame_the_file(
    client: httpx.Client, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.Image.Image.load", short)
    found = client.post("/v1/predict", files=parts(scan))
    assert (found.status_code, found.headers["retry-after"]) == (503, "10")
    assert "memory" in found.json()["error"]["what"]
    monkeypatch.undo()
    monkeypatch.setattr(answer, "read", short)
    assert client.post("/v1/predict", files=parts(scan, scan)).status_code == 503
    monkeypatch.undo()
    waiting(client, 0)
    assert client.post("/v1/predict", files=parts(scan)).status_code == 200


def test_a_log_that_cannot_be_written_stops_nothing(
    predictor: Predictor, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            raise ValueError("I/O operation on closed file")

    with live(predictor) as client:
        monkeypatch.setattr(logs.sys, "stderr", Full())
        for _ in range(3):
            assert client.post("/v1/predict", files=parts(scan)).status_code == 200
        assert client.get("/nothing").status_code == 404
        monkeypatch.undo()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_files_of_keys_from_other_systems(tmp_path: Path, end: str) -> None:
    lines = [new_key(name)[1] for name in ("ward-3", "pacs")]
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbf" + end.join(["# ours", *lines, ""]).encode())
    file.chmod(0o600)
    assert [k.name for k in read_keys(file)] == ["ward-3", "pacs"]


def test_one_key_has_one_name(tmp_path: Path) -> None:
    line, file = new_key("ward-3")[1], tmp_path / "keys"
    file.write_text(f"{line}\n{line}\n{new_key('ward-3')[1]}\n")
    file.chmod(0o600)
    assert [k.name for k in read_keys(file)] == ["ward-3"] * 2  # given twice, and a second one while the first goes
    file.write_text(f"{line}\n{line.replace('ward-3', 'pacs')}\n")
    with pytest.raises(SonobreastError, match="line 2 gives a key to pacs that ward-3 has"):
        read_keys(file)
    file.write_bytes(b"#" * (2 << 20))
    with pytest.raises(SonobreastError, match="too large"):
        read_keys(file)


def test_many_more_than_fit_are_told_to_wait_and_all_are_answered_in_the_end(predictor: Predictor, scan: bytes) -> None:
    wanted = predictor.predict(scan).probability
    found: list[int] = []
    lock = threading.Lock()
    with live(predictor, images=4, workers=1) as client:

        def insist(_: int) -> bool:
            for _ in range(100):
                answered = httpx.post(
                    str(client.base_url.join("/v1/predict")), files=parts(scan), timeout=30.0, trust_env=False
                )
                with lock:
                    found.append(answered.status_code)
                if answered.status_code == 200:
                    shares = list(answered.json()["results"][0]["probability"].values())
                    return bool(np.allclose(shares, wanted, atol=1e-5))
                assert int(answered.headers["retry-after"]) >= 1
                time.sleep(0.05)
            return False

        with ThreadPoolExecutor(24) as threads:
            assert all(threads.map(insist, range(24)))
        waiting(client, 0)
        assert held(client) == 0
    assert set(found) == {200, 429}
    assert found.count(200) == 24


def test_the_variant_that_answers_is_named(predictor: Predictor, scan: bytes) -> None:
    from dataclasses import replace

    with live(replace(predictor, variant="float16")) as client:
        assert client.get("/v1/model").json()["variant"] == "float16"
        assert client.post("/v1/predict", files=parts(scan)).json()["bundle"]["variant"] == "float16"
        assert 'variant="float16"' in client.get("/metrics").text
