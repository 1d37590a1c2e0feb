"""The service over a real socket: what it answers, whom, and what it refuses before it costs anything."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.serving.live import changed, live, parts, slowed, waiting
from tests.serving.test_predictor import png

from sonobreast.errors import SonobreastError
from sonobreast.serving.answer import answer_file
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.keys import new_key, read_keys, whose
from sonobreast.serving.predictor import Predictor, load_predictor
from sonobreast.serving.readers import Limits
from sonobreast.serving.server import listen, refuse_open_door
from sonobreast.serving.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about what was damaged

RULE = {
    "classes": ["benign", "malignant", "normal"],
    "temperature": 2.0,
    "thresholds": {"sensitivity 0.95": 0.2},
    "alpha": 0.1,
    "quantiles": {"benign": None, "malignant": None, "normal": 0.0},
}


@pytest.fixture(scope="module")
def predictor(ensemble: Bundle) -> Predictor:
    return load_predictor(ensemble, threads=1)


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capfd.readouterr().err


def error(response: httpx.Response) -> str:
    content = response.json()
    assert set(content) == {"error", "request"}
    assert response.headers["x-request-id"] == content["request"]
    return str(content["error"]["what"])


def test_an_image_is_answered_as_the_predictor_says(client: httpx.Client, predictor: Predictor, scan: bytes) -> None:
    answer = client.post("/v1/predict", files=parts(scan))
    assert answer.status_code == 200
    content, wanted = answer.json(), predictor.predict(scan)
    [result] = content["results"]
    assert content["intended_use"] == "research use only, not a medical device"
    assert content["bundle"]["fingerprint"] == predictor.bundle.fingerprint
    np.testing.assert_allclose(list(result["probability"].values()), wanted.probability, atol=1e-6)
    assert list(result["probability"]) == list(wanted.classes)
    assert (result["predicted"], result["malignant"]) == (wanted.predicted, wanted.malignant)
    assert wanted.conformal is not None
    assert result["conformal_set"] == list(wanted.conformal)
    assert (result["calibrated"], result["abstains"]) == (True, len(wanted.conformal) != 1)
    assert result["domain_score"] == pytest.approx(wanted.domain_score, abs=1e-6)
    assert result["in_domain"] == wanted.in_domain
    assert (result["width"], result["height"], result["layers"]) == (wanted.width, wanted.height, None)
    assert result["lesion"]["area_px"] == wanted.lesion.area_px  # type: ignore[union-attr]
    assert result["lesion"]["diameter_mm"] is None
    assert content["unknown"] == []  # a rule and a training domain came with the bundle


def test_many_files_keep_their_order_and_errors_stay_beside_theirs(client: httpx.Client, scan: bytes) -> None:
    wide = io.BytesIO()
    Image.open(io.BytesIO(scan)).resize((120, 90)).save(wide, "JPEG")
    answer = client.post("/v1/predict", files=parts(scan, b"no image", wide.getvalue(), scan[: len(scan) // 2]))
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [r["file"] for r in results] == [0, 1, 2, 3]
    assert [r["error"] is None for r in results] == [True, False, True, False]
    assert results[2]["width"] == 120
    assert "known format" in results[1]["error"]["what"]
    alone = client.post("/v1/predict", files=parts(b"no image"))
    assert alone.status_code == 422
    assert alone.json()["results"][0]["predicted"] is None


def test_layers_have_the_shape_of_the_image_and_nothing_where_the_map_is_nothing(
    client: httpx.Client, scan: bytes, predictor: Predictor
) -> None:
    content = client.post("/v1/predict?overlays=true&picture=true", files=parts(scan)).json()
    layers = content["results"][0]["layers"]
    assert set(layers["maps"]) == {"benign", "malignant", "normal"}
    opened = Image.open(io.BytesIO(base64.b64decode(layers["picture"])))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(Image.open(io.BytesIO(scan)).convert("RGB")))
    found = predictor.predict(scan)
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(layers["mask"]))).convert("RGBA"))
    np.testing.assert_array_equal(mask[..., 3] > 0, found.mask)
    for name in found.classes:
        layer = Image.open(io.BytesIO(base64.b64decode(layers["maps"][name]["png"]))).convert("RGBA")
        assert layer.size == opened.size
        assert np.asarray(layer)[..., 3].max() <= 204
        cam = found.cam[found.classes.index(name)]  # type: ignore[index]
        assert layers["maps"][name]["maximum"] <= float(cam.max()) * 1.001
    many = client.post("/v1/predict?overlays=true", files=parts(scan, scan))
    assert many.status_code == 413


def test_words_say_abstention_set_decision_and_size(predictor: Predictor, scan: bytes) -> None:
    ruled = changed(predictor, decision_rule=RULE, mask_threshold=0.0)
    with live(ruled) as client:
        [result] = client.post("/v1/predict?spacing_mm=0.1", files=parts(scan)).json()["results"]
    assert result["calibrated"] is True
    assert result["conformal_set"] == ["benign", "malignant"]
    assert result["abstains"] is True
    assert any("abstains" in w for w in result["warnings"])
    assert result["words"]["set"].startswith("Benign and malignant are in the prediction set: the model abstains")
    assert "90 %" in result["words"]["set"]
    p = result["probability"]["malignant"]
    assert result["words"]["decision"] == ("Called malignant" if p >= 0.2 else "Not called malignant")
    assert " mm (" in result["words"]["size"]


def test_outside_the_domain_is_said_first(predictor: Predictor, scan: bytes) -> None:
    from dataclasses import replace

    from sonobreast.serving import wording

    found = replace(predictor.predict(scan), in_domain=False, conformal=(), predicted="normal")
    said = wording.warnings(found, predictor.bundle.about)
    assert "unlike" in said[0]
    assert "abstains" in said[1]
    assert wording.which_classes(found, predictor.bundle.about).endswith("not for this one.")
    alone = replace(found, in_domain=True, conformal=("benign",), malignant=True)
    assert any("contradict" in w for w in wording.warnings(alone, predictor.bundle.about))
    agreed = replace(alone, malignant=False, predicted="benign")
    assert wording.warnings(agreed, predictor.bundle.about) == []
    near = replace(found, malignant=False, threshold=0.32240)
    near.probability[:] = (0.4, 0.32239, 0.28)
    assert "0.32239, below the threshold 0.32240" in wording.reason(near, predictor.bundle.about)


def test_each_picture_of_a_film_is_answered(client: httpx.Client) -> None:
    frames = [Image.fromarray(np.full((40, 50 + k), 60 * k + 20, np.uint8)) for k in range(3)]
    film = io.BytesIO()
    frames[0].save(film, "TIFF", save_all=True, append_images=frames[1:])
    results = client.post("/v1/predict", files=parts(film.getvalue(), kind="image/tiff")).json()["results"]
    assert [(r["frame"], r["frames"], r["width"]) for r in results] == [(0, 3, 50), (1, 3, 51), (2, 3, 52)]


def test_health_ready_model_and_the_pages(client: httpx.Client, predictor: Predictor) -> None:
    assert client.get("/v1/health").json() == {"status": "ok"}
    assert client.get("/v1/ready").json() == {"status": "ready"}
    model = client.get("/v1/model").json()
    assert model["fingerprint"] == predictor.bundle.fingerprint
    assert model["limits"]["file_bytes"] == 16 << 20
    for path, kind in (
        ("/", "text/html"),
        ("/app.js", "text/javascript"),
        ("/style.css", "text/css"),
        ("/api", "html"),
    ):
        answer = client.get(path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        text = answer.text
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text
        assert " style=" not in text
        assert " onclick" not in text


def test_small_answers_are_not_held_back() -> None:
    with listen(Settings(port=0)) as found:
        assert found.proto == socket.IPPROTO_TCP  # or asyncio leaves Nagle's algorithm on: 40 ms for each answer


def test_the_description_fits_what_is_answered(client: httpx.Client, scan: bytes) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/v1/health", "/v1/ready", "/v1/model", "/metrics", "/v1/predict"}
    assert "multipart/form-data" in described["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    [result] = client.post("/v1/predict", files=parts(scan)).json()["results"]
    assert set(result) == set(described["components"]["schemas"]["Result"]["properties"])


def test_every_answer_has_the_headers_of_safety(client: httpx.Client, scan: bytes) -> None:
    for answer in (client.get("/"), client.get("/nothing"), client.post("/v1/predict", files=parts(scan))):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers


def test_metrics_count_and_name_nobody(predictor: Predictor, scan: bytes) -> None:
    with live(predictor) as client:
        client.post("/v1/predict", files=parts(scan, b"no image"))
        client.get("/secret-path-of-a-patient")
        text = client.get("/metrics").text
    assert 'sonobreast_images_total{outcome="predicted"} 1' in text
    assert 'sonobreast_images_total{outcome="refused"} 1' in text
    assert 'sonobreast_requests_total{route="other",status="404"} 1' in text
    assert "sonobreast_predict_seconds_count 1" in text
    assert "patient" not in text
    for line in text.splitlines():
        assert line.startswith("#") or float(line.rsplit(" ", 1)[1]) >= 0.0


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"x", "", 415),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=" + "y" * 300, 400),
        (b"garbage", "multipart/form-data; boundary=b", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400),
        (b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nabc', "multipart/form-data; boundary=b", 400),
        (
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\na\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            400,
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="files"\r\nContent-Type: text/html\r\n\r\na\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            415,
        ),
        (b"--b\r\n" + b"A: b\r\n" * 50 + b"\r\n\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nA: " + b"b" * 9000 + b"\r\n\r\n\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
    ],
)
def test_damaged_uploads_are_refused_at_once(client: httpx.Client, body: bytes, kind: str, status: int) -> None:
    began = time.monotonic()
    answer = client.post("/v1/predict", content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert error(answer)
    assert time.monotonic() - began < 4.0  # does not wait for a body that has long come


@pytest.mark.parametrize("query", ["spacing_mm=nan", "spacing_mm=-1", "spacing_mm=inf", "overlays=PATIENT"])
def test_values_that_are_not_allowed_are_not_echoed(client: httpx.Client, scan: bytes, query: str) -> None:
    answer = client.post(f"/v1/predict?{query}", files=parts(scan))
    assert answer.status_code == 422
    assert query.partition("=")[2] not in answer.text
    assert query.partition("=")[0] in error(answer)


def test_sizes_and_numbers_are_limited(predictor: Predictor, scan: bytes) -> None:
    limits = Limits(bytes=1 << 16, pixels=70_000, frames=2)
    with live(predictor, body=1 << 18, file=1 << 17, files=3, limits=limits) as client:
        assert client.post("/v1/predict", files=parts(scan)).status_code == 200
        assert "files" in error(client.post("/v1/predict", files=parts(*[scan] * 4)))
        assert "a file is larger" in error(client.post("/v1/predict", files=parts(b"\0" * (1 << 17 | 1))))
        large = client.post("/v1/predict", files=parts(b"\0" * (1 << 19)))
        assert large.status_code == 413
        assert "upload is larger" in error(large)

        def chunks() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\n'
            for _ in range(8):
                yield bytes(1 << 16)

        headers = {"content-type": "multipart/form-data; boundary=b"}
        assert client.post("/v1/predict", content=chunks(), headers=headers).status_code == 413
        small = client.post("/v1/predict", files=parts(png(300, 300), png(100_000, 100_000)))
        assert all(
            "too many pixels" in r["error"]["what"] or "exceeds" in r["error"]["what"] for r in small.json()["results"]
        )


def test_bombs_cost_nothing(predictor: Predictor, client: httpx.Client) -> None:
    answer = client.post("/v1/predict", files=parts(png(100_000, 100_000), png(30_000, 30_000)))
    assert answer.status_code == 422
    head = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    [result] = answer_file(predictor, 0, head + b"\xff\xda\x00\x08" * 5000, limits=Limits())
    assert result.error is not None
    assert "scans" in result.error.what


@pytest.mark.parametrize("size", [(64, 41008), (41008, 64), (1, 300)])
def test_strips_are_no_scans(client: httpx.Client, size: tuple[int, int]) -> None:
    stream = io.BytesIO()
    Image.new("L", size).save(stream, "PNG")
    answer = client.post("/v1/predict", files=parts(stream.getvalue()))
    assert answer.status_code == 422
    assert "narrow" in answer.json()["results"][0]["error"]["what"]


def test_messages_tell_nothing_of_the_machine(client: httpx.Client, predictor: Predictor, scan: bytes) -> None:
    damaged = [scan[:60], b"BM" + b"\xff" * 60, b"II*\0" + b"\xff" * 30, b"\xff\xd8\xff" + b"\0" * 30, scan[:-200]]
    answer = client.post("/v1/predict", files=parts(*damaged))
    for hidden in ("0x", "Traceback", str(predictor.bundle.folder), "site-packages", ".py"):
        assert hidden not in answer.text


def test_a_fault_of_the_network_is_500_without_its_reason(
    predictor: Predictor, scan: bytes, monkeypatch: pytest.MonkeyPatch, log: Callable[[], str]
) -> None:
    with live(predictor) as client:
        client.post("/v1/predict", files=parts(scan))

        def broken(*_: object, **__: object) -> None:
            raise SonobreastError("SECRET")

        monkeypatch.setattr(Predictor, "run", broken)
        answer = client.post("/v1/predict", files=parts(scan))
        assert (answer.status_code, "SECRET" in answer.text) == (500, False)

        def worse(*_: object, **__: object) -> None:
            raise KeyError("SECRET")

        monkeypatch.setattr(Predictor, "run", worse)
        answer = client.post("/v1/predict", files=parts(scan))
        assert (answer.status_code, "SECRET" in answer.text) == (500, False)
        assert error(answer)
        assert "waiting 0" in client.get("/metrics").text
    text = log()
    assert "SECRET" not in text
    assert "KeyError" in text


def test_the_log_is_json_without_names(predictor: Predictor, scan: bytes, log: Callable[[], str]) -> None:
    with live(predictor) as client:
        client.post("/v1/predict?overlays=PATIENT", files=parts(scan))
        client.post("/v1/predict", files=parts(scan))
        client.get("/PATIENT")
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as raw:
            raw.sendall(b"PATIENT\r\n\r\n")
            raw.recv(100)
    text = log()
    lines = [json.loads(line) for line in text.splitlines()]
    assert "PATIENT" not in text
    assert "127.0.0.1" not in text
    assert [(n["route"], n["status"]) for n in lines if n["event"] == "request"] == [
        ("/v1/predict", 422),
        ("/v1/predict", 200),
        ("other", 404),
    ]


def test_other_names_and_other_pages_are_refused(predictor: Predictor, client: httpx.Client, scan: bytes) -> None:
    assert client.get("/v1/health", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/v1/health", headers={"host": "LOCALHOST:1"}).status_code == 200
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/v1/predict", files=parts(scan), headers=headers).status_code == 403
    own = str(client.base_url).rstrip("/")
    assert client.post("/v1/predict", files=parts(scan), headers={"origin": own}).status_code == 200
    assert client.request("OPTIONS", "/v1/predict").status_code == 405
    assert Settings(host="0.0.0.0").hosts is None
    assert Settings(host="0.0.0.0", names=("Scans",)).hosts == {"scans", "localhost", "127.0.0.1", "[::1]"}
    assert Settings(host="10.1.2.3").hosts == {"10.1.2.3"}
    for path in ("/../../etc/passwd", "/%2e%2e/app.js", "/static/app.js", "/app.js/"):
        assert client.get(path).status_code in (404, 421)


def test_keys(tmp_path: Path, predictor: Predictor, scan: bytes) -> None:
    key, line = new_key("ward-3")
    other, _ = new_key("x")
    assert key not in line
    file = tmp_path / "keys"
    file.write_text(f"# who\n\n{line}\n")
    file.chmod(0o600)
    keys = read_keys(file)
    found = whose(key, keys)
    assert found is not None
    assert found.name == "ward-3"
    assert [whose(k, keys) for k in (other, "", key[:-1], key + "x", "é")] == [None] * 5
    with live(predictor, keys=keys) as client:
        for path in ("/", "/v1/health", "/v1/ready", "/openapi.json"):
            assert client.get(path).status_code == 200
        for headers in ({}, {"authorization": f"Bearer {other}"}, {"x-api-key": ""}, {"authorization": f"Basic {key}"}):
            for path in ("/v1/model", "/metrics"):
                answer = client.get(path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert client.post("/v1/predict", files=parts(scan), headers=headers).status_code == 401
        assert client.get("/v1/model?key=" + key).status_code == 401
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
            assert client.post("/v1/predict", files=parts(scan), headers=headers).status_code == 200


@pytest.mark.parametrize("text", ["", "# none\n", "ward-3 sha256:12\n", "sb_a-key-itself\n", "\xff"])
def test_files_of_keys_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SonobreastError) as caught:
        read_keys(file)
    assert "sb_a-key-itself" not in str(caught.value)
    file.chmod(0o666)
    with pytest.raises(SonobreastError, match="others"):
        read_keys(file)
    with pytest.raises(SonobreastError, match="name for a key"):
        new_key("a b")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "scanner"])
def test_no_open_door_without_keys(host: str) -> None:
    with pytest.raises(SonobreastError, match="no keys are set"):
        refuse_open_door(Settings(host=host))
    for own in ("127.0.0.1", "localhost", "::1"):
        refuse_open_door(Settings(host=own))


def test_overload_is_answered_429_and_what_was_taken_is_finished(
    predictor: Predictor, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(predictor, images=3, workers=1) as client, ThreadPoolExecutor(3) as threads:
        go = slowed(monkeypatch)
        taken = [threads.submit(client.post, "/v1/predict", files=parts(scan)) for _ in range(3)]
        waiting(client, 3)
        busy = client.get("/v1/ready")
        assert (busy.status_code, busy.json()) == (503, {"status": "busy"})
        assert client.get("/v1/health").status_code == 200
        for _ in range(5):
            answer = client.post("/v1/predict", files=parts(scan))
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
        go.set()
        assert [t.result().status_code for t in taken] == [200] * 3
        waiting(client, 0)
        text = client.get("/metrics").text
        assert "sonobreast_overload_total 5" in text
        assert "sonobreast_upload_bytes_held 0" in text
    with live(predictor, memory=1000) as client:
        assert client.post("/v1/predict", files=parts(scan)).status_code == 429


def test_a_request_has_a_time_limit_and_its_place_stays_taken_while_it_runs(
    predictor: Predictor, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(predictor, seconds=0.5, workers=1) as client:
        go = slowed(monkeypatch)
        answer = client.post("/v1/predict", files=parts(scan, scan))
        assert answer.status_code == 503
        waiting(client, 1)  # the second was never begun
        go.set()
        waiting(client, 0)
        waiting(client, 0, "upload_bytes_held")


def test_slow_heads_and_slow_bodies_end(predictor: Predictor) -> None:
    with live(predictor, seconds=0.5, header_seconds=0.5) as client:
        address = ("127.0.0.1", client.base_url.port or 0)
        with (
            socket.create_connection(address, timeout=10) as nothing,
            socket.create_connection(address, timeout=10) as some,
        ):
            some.sendall(b"GET / HTTP/1.1\r\nHost: local")
            assert nothing.recv(10) == b""
            assert some.recv(10) == b""
        with socket.create_connection(address, timeout=15) as slow:
            slow.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
            )
            assert b"408" in slow.recv(100)
        assert client.get("/v1/health").status_code == 200


def test_sigterm_finishes_what_was_taken(ensemble: Bundle, scan: bytes) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "sonobreast.cli",
        "serve",
        str(ensemble.folder),
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        assert str(port) in said[1]
        assert "esearch use only" in said[2]
        address = f"http://127.0.0.1:{port}"
        large = io.BytesIO()
        Image.open(io.BytesIO(scan)).convert("L").resize((2000, 1600)).save(large, "PNG")
        with httpx.Client(base_url=address, timeout=60.0, trust_env=False) as first, ThreadPoolExecutor(1) as threads:
            files = parts(*[large.getvalue()] * 8)
            taken = threads.submit(httpx.post, address + "/v1/predict", files=files, timeout=60.0, trust_env=False)
            while "sonobreast_images_waiting 0\n" in first.get("/metrics").text and not taken.done():
                time.sleep(0.01)
            assert not taken.done()
            process.send_signal(signal.SIGTERM)
            answer = taken.result()
        assert answer.status_code == 200
        assert len(answer.json()["results"]) == 8
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(address + "/v1/ready", trust_env=False)
        lines = [json.loads(line) for line in errors.splitlines()]
        assert [lines[0]["event"], lines[-1]["event"]] == ["start", "end"]
    finally:
        process.kill()
        process.wait()


def mutated(rng: np.random.Generator, seeds: list[bytes]) -> bytes:
    """A file that was cut, flipped, spliced, or given a hostile head."""
    content = bytearray(seeds[int(rng.integers(len(seeds)))])
    match rng.integers(6):
        case 0:
            content = content[: int(rng.integers(0, len(content)))]
        case 1:
            for at in rng.integers(0, len(content), int(rng.integers(1, 40))):
                content[at] ^= 1 << int(rng.integers(8))
        case 2:
            for at in rng.integers(0, min(64, len(content)), 6):
                content[at] = int(rng.integers(256))
        case 3:
            return bytes(content[:8]) + rng.bytes(int(rng.integers(0, 3000)))
        case 4:
            return png(int(rng.integers(0, 2**31)), int(rng.integers(0, 2**31)))
        case _:
            cut = int(rng.integers(0, len(content)))
            content = content[:cut] + seeds[int(rng.integers(len(seeds)))][cut // 2 :]
    return bytes(content)


def fuzz(client: httpx.Client, scan: bytes, n: int, seed: int) -> dict[int, int]:
    """Send mutated files, and now and then a mutated upload; how often each status came."""
    image = Image.open(io.BytesIO(scan)).resize((64, 48))
    seeds = []
    for kind in ("PNG", "JPEG", "BMP", "TIFF"):
        stream = io.BytesIO()
        image.save(stream, kind)
        seeds.append(stream.getvalue())
    rng = np.random.default_rng(seed)
    found: dict[int, int] = {}
    for k in range(n):
        if k % 5:
            answer = client.post("/v1/predict?overlays=true", files=parts(mutated(rng, seeds)))
        else:
            body = b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + seeds[0] + b"\r\n--b--\r\n"
            headers = {"content-type": "multipart/form-data; boundary=b"}
            answer = client.post("/v1/predict", content=mutated(rng, [body]), headers=headers)
        answer.json()
        found[answer.status_code] = found.get(answer.status_code, 0) + 1
    return found


def test_mutated_uploads_are_refused_or_predicted(client: httpx.Client, scan: bytes) -> None:
    found = fuzz(client, scan, 300, 0)
    assert set(found) <= {200, 400, 413, 415, 422}
    assert found[200] > 20
    assert found[422] > 100
    assert found[400] > 10
    assert client.get("/v1/health").status_code == 200
