"""``sonobreast serve`` and ``serve-key`` as commands: what they refuse before they listen, and how they end."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.serving.live import parts
from tests.serving.test_web import fuzz

from sonobreast.errors import SonobreastError
from sonobreast.serving.bundle import SELF_TEST_IMAGE, Bundle
from sonobreast.serving.keys import read_keys, whose
from sonobreast.serving.server import listen
from sonobreast.serving.settings import Settings

COMMAND = (sys.executable, "-m", "sonobreast.cli")


def told(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@contextmanager
def serving(bundle: Path, *options: str, errors: int = subprocess.PIPE) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running service and its address."""
    process = subprocess.Popen(
        [*COMMAND, "serve", str(bundle), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = ""
        while not address:
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            address = next((w.rstrip(",;.") for w in line.split() if w.startswith("http://")), "")
        yield process, address
    finally:
        process.kill()
        process.communicate()


def busy(address: str, scan: bytes, threads: ThreadPoolExecutor) -> Future[httpx.Response]:
    """Large pictures on their way, which the service has taken."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(scan)).convert("L").resize((3000, 2400)).save(stream, "PNG")
    files = parts(*[stream.getvalue()] * 8)
    taken = threads.submit(httpx.post, address + "/v1/predict", files=files, timeout=60.0, trust_env=False)
    while "sonobreast_images_waiting 0\n" in httpx.get(address + "/metrics", trust_env=False).text:
        assert not taken.done()
        time.sleep(0.01)
    return taken


def test_serve_refuses_before_it_listens(single: Bundle, tmp_path: Path) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(single.folder, altered)
    network = altered / "model.onnx"
    network.write_bytes(network.read_bytes()[:-1] + b"x")
    keys = tmp_path / "keys"
    keys.write_text("")
    keys.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, reason in (
            ((tmp_path / "none",), "none"),
            ((altered,), "model.onnx"),
            ((single.folder, "--host", "0.0.0.0"), "no keys are set"),
            ((single.folder, "--keys", keys), "holds no keys"),
            ((single.folder, "--keys", tmp_path / "no-keys"), "cannot be read"),
            ((single.folder, "--variant", "int8"), "no variant 'int8'"),
            ((single.folder, "--tls-key", keys), "belong together"),
            ((single.folder, "--port", taken.getsockname()[1]), "cannot be listened on"),
        ):
            options = () if "--port" in arguments else ("--port", 0)
            done = told("serve", *arguments, *options)
            assert done.returncode == 1, (arguments, done.stderr)
            assert done.stderr.startswith("error: ")
            assert reason in done.stderr
            assert "what to do: " in done.stderr
            assert "http://" not in done.stdout
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["\u00e9" * 100, "192.0.2.1"], ids=["no name", "another machine"])
def test_addresses_that_are_not_of_this_machine(host: str) -> None:
    with pytest.raises(SonobreastError, match="cannot be listened on"):
        listen(Settings(host=host, port=0))


def test_serve_key_makes_a_line_that_lets_its_key_in(single: Bundle, tmp_path: Path) -> None:
    done = told("serve-key", "ward-3")
    assert done.returncode == 0
    key = done.stderr.split()[-1]
    assert key not in done.stdout  # standard output goes into the file
    file = tmp_path / "keys"
    file.write_text(done.stdout)
    file.chmod(0o600)
    found = whose(key, read_keys(file))
    assert found is not None
    assert found.name == "ward-3"
    wrong = told("serve-key", "a b")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    with serving(single.folder, "--keys", str(file)) as (_, address):
        url = address + "/v1/model"
        assert httpx.get(url, trust_env=False).status_code == 401
        assert httpx.get(url, headers={"x-api-key": key}, trust_env=False).json()["variant"] is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_lets_what_was_accepted_finish(single: Bundle, number: signal.Signals) -> None:
    scan = (single.folder / SELF_TEST_IMAGE).read_bytes()
    with serving(single.folder, "--workers", "1") as (process, address), ThreadPoolExecutor(1) as threads:
        taken = busy(address, scan, threads)
        process.send_signal(number)
        answer = taken.result()
        assert answer.status_code == 200
        assert [r["error"] for r in answer.json()["results"]] == [None] * 8
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        lines = [json.loads(line) for line in errors.splitlines()]
        assert (lines[-1]["event"], lines[-1]["forced"]) == ("end", False)


def test_a_second_interrupt_ends_it_at_once(single: Bundle) -> None:
    scan = (single.folder / SELF_TEST_IMAGE).read_bytes()
    with serving(single.folder, "--workers", "1") as (process, address), ThreadPoolExecutor(1) as threads:
        taken = busy(address, scan, threads)
        for _ in range(200):
            process.send_signal(signal.SIGINT)
            if process.poll() is not None:
                break
            time.sleep(0.05)
        _, errors = process.communicate(timeout=60)
        # A third one may find Python taking its leave, where nothing catches it any more
        assert process.returncode in (1, -signal.SIGINT)
        assert json.loads(errors.splitlines()[-1])["forced"] is True
        with suppress(httpx.HTTPError):  # or not even that
            assert taken.result().status_code == 500


def test_a_port_is_free_again_at_once(single: Bundle) -> None:
    with serving(single.folder) as (process, address):
        httpx.get(address + "/v1/health", trust_env=False).raise_for_status()
        port = address.rsplit(":", 1)[1]
        process.terminate()
        process.wait(60)
        with serving(single.folder, "--port", port) as (_, again):
            assert again == address


@pytest.mark.slow
def test_twenty_thousand_mutated_uploads_leave_memory_flat(single: Bundle) -> None:
    """The service is a process of its own: what the client of the test keeps is not counted."""

    def resident(client: httpx.Client) -> float:
        lines = client.get("/metrics").text.splitlines()
        return float(next(x for x in lines if x.startswith("process_resident_memory_bytes")).split()[1])

    scan = (single.folder / SELF_TEST_IMAGE).read_bytes()
    with (
        serving(single.folder, errors=subprocess.DEVNULL) as (_, address),
        httpx.Client(base_url=address, timeout=60.0, trust_env=False) as client,
    ):
        fuzz(client, scan, 2000, 1)
        before = resident(client)
        found = fuzz(client, scan, 18_000, 2)
        assert set(found) <= {200, 400, 413, 415, 422}
        assert resident(client) - before < 60e6
