"""What the service costs: one image at a time against eager PyTorch, and 32 clients at once.

Needs the training install and httpx.

    python benchmarks/service.py [--bundle BUNDLE] [--images 100] [--rounds 3] [--clients 32] [--seconds 20]
    python benchmarks/service.py --only-crowd --clients 200 --seconds 60    # overload: 429, and memory stays flat

The bundle is MobileNetV2 (no mirror images averaged), fresh and seeded, unless one is given. The service is a process
of its own (``sonobreast serve``); the client sends a 500 x 500 PNG (simulated ultrasound) over a connection that stays
open (``http.client``) and reads the whole answer. Eager PyTorch is what a script does: Pillow decodes and resizes,
timm's network of the same name predicts, softmax; in the benchmark's process, without HTTP. Keras is the same with its
own MobileNetV2 and ``model.predict``, in a process of its own (``make bench-keras`` first; left out where that is
missing). They take turns, round by round, and never run at the same time; each is given all cores. Then many clients
send at once for a while; every answer is compared with the first: one that differs, fails, or is lost is counted. The
clients share the cores with the service.

Prints one JSON line last; ``load`` is the machine's load before the start: on a busy machine read the ratios and the
processor time of an image, which is that of the service's process only.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

SIDE = 500
BOUNDARY = "a-boundary-that-no-image-holds"


def fresh_bundle(folder: Path) -> Path:
    """MobileNetV2 of random weights, trained for one epoch on simulated images: speed does not depend on the values."""
    from sonobreast.config import load_recipe
    from sonobreast.data.phantom import write
    from sonobreast.inspection.evaluate import find_runs
    from sonobreast.serving.export import export
    from sonobreast.training.study import run_study

    write(folder / "images", n=30, seed=0)
    overrides = [
        "preprocess.size=224",
        "model.architectures=[MobileNetV2]",
        "training.optimizers=[adam]",
        "training.learning_rates={}",
        "training.epochs=1",
    ]
    run_study(load_recipe("quick", overrides), folder / "images", "none", folder / "study", images=False)
    export(find_runs([folder / "study"], "MobileNetV2-adam"), folder / "bundle")
    return folder / "bundle"


def picture() -> bytes:
    """A simulated image of 500 x 500, grey values as RGB, as PNG."""
    from sonobreast.data.phantom import write

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), n=3, seed=1)
        found = next(p for p in sorted(Path(folder).rglob("*.png")) if "mask" not in p.stem)
        stream = io.BytesIO()
        Image.open(found).convert("RGB").resize((SIDE, SIDE)).save(stream, "PNG")
    return stream.getvalue()


@contextmanager
def service(bundle: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Address and process of a running service."""
    command = [sys.executable, "-m", "sonobreast.cli", "serve", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        address = ""
        while not address:
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the service did not start")
            address = next((w.rstrip(",;") for w in line.split() if w.startswith("http://")), "")
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(60)


def form(content: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and head of an upload."""
    head = b'Content-Disposition: form-data; name="files"; filename="image"\r\nContent-Type: image/png\r\n\r\n'
    body = b"--" + BOUNDARY.encode() + b"\r\n" + head + content + b"\r\n--" + BOUNDARY.encode() + b"--\r\n"
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def upload(client: httpx.Client, content: bytes) -> httpx.Response:
    return client.post("/v1/predict", files=[("files", ("image", content, "image/png"))])


def eager() -> Callable[[bytes], Any]:
    """The plain way in PyTorch."""
    import timm
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    network = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=3).eval()

    def predict(content: bytes) -> Any:
        image = Image.open(io.BytesIO(content)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 255.0).permute(2, 0, 1)[None].contiguous()
        with torch.inference_mode():
            return network(pixels).softmax(1).numpy()

    return predict


@contextmanager
def keras(content: bytes, folder: Path) -> Iterator[Callable[[int], tuple[list[float], float]] | None]:
    """Milliseconds of each of n predictions in Keras, and the processor's for one; None where it is not installed."""
    python = Path(__file__).parent / ".keras" / "bin" / "python"
    if not python.exists():
        yield None
        return
    (folder / "image.png").write_bytes(content)
    command = [str(python), str(Path(__file__).parent / "keras_predict.py"), str(folder / "image.png")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def predict(n: int) -> tuple[list[float], float]:
        process.send_signal(signal.SIGCONT)
        process.stdin.write(f"{n}\n")
        process.stdin.flush()
        found = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGSTOP)  # its threads would go on polling during the turns of the others
        return found["ms"], found["processor_ms"] / n

    try:
        yield predict
    finally:
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
        process.wait(60)


def timed(call: Callable[[], Any], n: int, pid: int) -> tuple[list[float], float]:
    """Milliseconds of each of n calls, and the processor's of a process for one."""
    found, spent = [], processor_ms(pid)
    for _ in range(n):
        began = time.perf_counter()
        call()
        found.append(1000.0 * (time.perf_counter() - began))
    return found, (processor_ms(pid) - spent) / n


def processor_ms(pid: int) -> float:
    """Processor time of a process so far: unlike the clock's, it hardly depends on what else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000.0 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Memory of a process, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def load(address: str, pid: int, content: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """Many clients at once. One that is told 429 waits as long as it is told."""
    with httpx.Client(base_url=address, timeout=60.0, trust_env=False) as client:
        wanted = upload(client, content).json()["results"][0]["probability"]
    counts: Counter[str] = Counter()
    taken: list[float] = []
    lock, end = threading.Lock(), time.monotonic() + seconds

    def one() -> None:
        with httpx.Client(base_url=address, timeout=60.0, trust_env=False) as client:
            while time.monotonic() < end:
                began = time.perf_counter()
                try:
                    answer = upload(client, content)
                    kind = str(answer.status_code)
                    if kind == "200":
                        found = answer.json()["results"][0]["probability"]
                        kind = "right" if all(abs(found[k] - wanted[k]) < 1e-5 for k in wanted) else "wrong"
                except httpx.HTTPError:
                    kind, answer = "lost", None
                with lock:
                    counts[kind] += 1
                    if kind == "right":
                        taken.append(1000.0 * (time.perf_counter() - began))
                if kind == "429" and answer is not None:
                    time.sleep(float(answer.headers["retry-after"]))

    threads = [threading.Thread(target=one) for _ in range(clients)]
    before, spent, began = resident(pid), processor_ms(pid), time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    middle = resident(pid)
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "images_per_s": round(counts["right"] / took, 1),
        "processor_ms_per_image": round((processor_ms(pid) - spent) / max(1, sum(counts.values())), 1),
        "answers": dict(counts),
        "p50_ms": round(statistics.median(taken), 1),
        "p99_ms": round(float(np.quantile(taken, 0.99)), 1),
        "memory_mb": {"before": round(before), "middle": round(middle), "end": round(resident(pid))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=int, default=100, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only-crowd", action="store_true", help="no comparison; with --clients 200, an overload")
    a = parser.parse_args()
    if a.only_crowd:
        content = picture()
        with tempfile.TemporaryDirectory() as folder, service(a.bundle or fresh_bundle(Path(folder))) as (address, pid):
            crowd = load(address, pid, content, a.clients, a.seconds)
        print(json.dumps({"claim": "none wrong, none lost, memory flat", "crowd": crowd, "cores": os.cpu_count()}))
        return
    busy = os.getloadavg()[0]
    content = picture()
    with tempfile.TemporaryDirectory() as folder, keras(content, Path(folder)) as keras_ms:
        bundle = a.bundle or fresh_bundle(Path(folder))
        network, (body, head) = eager(), form(content)
        with service(bundle) as (address, pid):
            connection = http.client.HTTPConnection(address.removeprefix("http://"))

            def ask() -> None:
                connection.request("POST", "/v1/predict", body, head)
                answer = connection.getresponse()
                if answer.status != 200 or b'"probability":{' not in answer.read():
                    raise SystemExit(f"the service answered {answer.status}")

            def served(n: int) -> tuple[list[float], float]:
                connection.close()  # the service has closed it while the others had their turn
                ask()
                return timed(ask, n, pid)

            ways: dict[str, Callable[[int], tuple[list[float], float]]] = {
                "service": served,
                "eager PyTorch": lambda n: timed(lambda: network(content), n, os.getpid()),
            }
            if keras_ms is not None:
                ways["keras"] = keras_ms
            for way in ways.values():
                way(20)
            found: dict[str, list[float]] = {k: [] for k in ways}
            rounds: dict[str, list[float]] = {k: [] for k in ways}
            processor: dict[str, list[float]] = {k: [] for k in ways}
            for _ in range(a.rounds):
                for name, way in ways.items():
                    taken, spent = way(a.images)
                    processor[name].append(spent)
                    found[name] += taken
                    rounds[name].append(statistics.median(taken))
            connection.close()
            crowd = load(address, pid, content, a.clients, a.seconds)
    ratios = {
        k: round(statistics.median(t / s for t, s in zip(rounds[k], rounds["service"], strict=True)), 2)
        for k in rounds
        if k != "service"
    }
    print(
        json.dumps(
            {
                "claim": "one 500 x 500 PNG through the running service against the plain way in one process",
                "ratio": ratios,
                "ms": {
                    k: {"p50": round(statistics.median(v), 1), "p99": round(float(np.quantile(v, 0.99)), 1)}
                    for k, v in found.items()
                },
                "processor_ms": {k: round(statistics.median(v), 1) for k, v in processor.items()},
                "keras": "measured" if "keras" in found else "not measured: `make bench-keras` first",
                "crowd": crowd,
                "load": round(busy, 1),
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
