"""Mutated uploads against the running service: nothing may crash, answer 5xx, or make it grow.

Needs httpx, and pydicom with its decoders (``sonobreast[dicom]``) for DICOM; Debian's dcmtk, where it is installed, for
JPEG Lossless.

    python benchmarks/fuzz_service.py BUNDLE [--n 20000] [--seed 0] [--clients 1] [--workers 1]

The service is a process of its own (``sonobreast serve``). Each upload is drawn from (seed, its number), so a finding
can be sent again with ``--only NUMBER``. Of ten, seven are a damaged file in a whole upload, two a damaged multipart
body, one damaged bytes on the socket. Files are small pictures as PNG, JPEG, BMP, TIFF and DICOM in every compression
at hand; they are cut, flipped, spliced (also across formats), filled with chance, or get hostile heads.

Held: no status of 5xx; no connection closed without an answer where the request itself was whole; every 200 and 422 is
of the described shape; before, between (twenty times) and after, a good image is answered as `load_predictor` in this
process says; the service runs at the end. Memory is that of the service and of its decoder process, after a tenth of
the uploads (which also warms it up), after half, and at the end. Ends with status 1 where something does not hold.
Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import service
from PIL import Image

KINDS = ("image/png", "image/jpeg", "image/bmp", "image/tiff", "application/dicom", "application/octet-stream")
Rng = np.random.Generator


def pictures(scan: Image.Image) -> list[bytes]:
    """A small scan in many formats and modes."""
    grey = scan.convert("L").resize((96, 72))
    colour = grey.convert("RGB")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    asked: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((image, "PNG", {}) for image in (grey, colour, grey.convert("P"), grey.convert("LA"), deep)),
        (colour, "JPEG", {}),
        (colour, "JPEG", {"progressive": True}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "MPO", {"save_all": True, "append_images": [colour]}),
        *((image, "BMP", {}) for image in (grey, colour, grey.convert("1"))),
        *(
            (colour, "TIFF", {"compression": c})
            for c in (None, "tiff_deflate", "tiff_lzw", "packbits", "jpeg", "webp", "zstd")
        ),
        (grey.convert("1"), "TIFF", {"compression": "group4"}),
        (deep, "TIFF", {}),
        (grey, "TIFF", {"save_all": True, "append_images": [grey, grey], "compression": "tiff_deflate"}),
    ]
    found = []
    for image, kind, options in asked:
        stream = io.BytesIO()
        with suppress(OSError):  # not every libtiff has every compression
            image.save(stream, kind, **options)
            found.append(stream.getvalue())
    return found


def dicom() -> list[bytes]:
    """A simulated examination in every transfer syntax that can be written here."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.encoders.base import get_encoder
    from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

    from sonobreast.data.dicom_phantom import dicom_dataset
    from sonobreast.data.phantom import simulate

    def fresh(frames: int = 1) -> Any:
        return dicom_dataset(simulate(1, seed=1, size=96), n_frames=frames)

    made = [fresh(), fresh(3)]
    for uid in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        if get_encoder(UID(uid)).is_available:
            made.append(fresh())
            made[-1].compress(uid, generate_instance_uid=False)
    deflated, jpeg = fresh(), fresh()
    deflated.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    stream = io.BytesIO()
    Image.fromarray(jpeg.pixel_array).save(stream, "JPEG")
    jpeg.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    jpeg.PixelData = encapsulate([stream.getvalue()])
    jpeg["PixelData"].is_undefined_length = True
    found = []
    for ds in (*made, deflated, jpeg):
        stream = io.BytesIO()
        ds.save_as(stream, enforce_file_format=True)
        found.append(stream.getvalue())
    if shutil.which("dcmcjpeg"):
        with tempfile.TemporaryDirectory() as folder:
            plain, lossless = Path(folder) / "a", Path(folder) / "b"
            plain.write_bytes(found[0])
            subprocess.run(["dcmcjpeg", "+e1", plain, lossless], check=True)
            found.append(lossless.read_bytes())
    return found


def head_of(rng: Rng) -> bytes:
    """A head that promises what does not follow."""
    width, height = (int(rng.choice([0, 1, 64, 4000, 65535, 100_000, 2**31 - 1, 2**32 - 1])) for _ in range(2))
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    small = (height & 0xFFFF).to_bytes(2, "big") + (width & 0xFFFF).to_bytes(2, "big")
    rest = rng.bytes(int(rng.integers(0, 400)))
    heads = (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
        + size
        + bytes([int(rng.choice([1, 8, 16])), int(rng.choice([0, 2, 3, 6])), 0, 0]),
        b"\xff\xd8\xff\xc0\0\x11\x08" + small + b"\3\1\x22\0\2\x11\1\3\x11\1\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0",
        b"BM"
        + rng.bytes(12)
        + b"\x28\0\0\0"
        + size[3::-1]
        + size[:3:-1]
        + b"\1\0"
        + bytes([int(rng.choice([1, 4, 8, 24, 32]))]),
        b"II*\0\x08\0\0\0" + rng.bytes(2) + b"\0\1\4\0\1\0\0\0" + size[3::-1] + b"\1\1\4\0\1\0\0\0" + size[:3:-1],
        bytes(128)
        + b"DICM\2\0\0\0UL\4\0"
        + rng.bytes(4)
        + b"\2\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0\x28\0\x10\0US\2\0\xff\xff",
    )
    return heads[int(rng.integers(len(heads)))] + rest


def damaged(content: bytes, seeds: list[bytes], rng: Rng) -> bytes:
    """Cut, flipped, overwritten, spliced, moved, or replaced."""
    work = bytearray(content)
    match int(rng.integers(9)):
        case 0:
            return bytes(work[: int(rng.integers(0, len(work)))])
        case 1:
            for at in rng.integers(0, len(work), int(rng.integers(1, 40))):
                work[at] ^= 1 << int(rng.integers(8))
        case 2:  # heads are where every byte has a meaning
            for at in rng.integers(0, min(256, len(work)), int(rng.integers(1, 9))):
                work[at] = int(rng.integers(256))
        case 3:
            return bytes(work[: int(rng.choice([4, 8, 132, 600]))]) + rng.bytes(int(rng.integers(0, 3000)))
        case 4:
            return head_of(rng)
        case 5:
            cut = int(rng.integers(0, len(work)))
            other = seeds[int(rng.integers(len(seeds)))]
            return bytes(work[:cut]) + other[cut % len(other) :]
        case 6:
            at = int(rng.integers(0, len(work)))
            work[at : at + 4] = [b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\x80"][
                int(rng.integers(4))
            ]
        case 7:
            at, n = int(rng.integers(0, len(work))), int(rng.integers(1, 200))
            if rng.random() < 0.5:
                del work[at : at + n]
            else:
                work[at:at] = work[at : at + n] * int(rng.integers(1, 20))
        case _:  # lengths stay right, so that a decoder gets to see the damage
            for at in rng.integers(len(work) // 2, len(work), int(rng.integers(1, 12))):
                work[at] = int(rng.integers(256))
    return bytes(work)


def whole_body(contents: list[bytes], rng: Rng) -> bytes:
    parts = []
    for content in contents:
        kind = KINDS[int(rng.integers(len(KINDS)))].encode()
        parts += [b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\nContent-Type: ' + kind]
        parts += [b"\r\n\r\n", content, b"\r\n"]
    return b"".join(parts) + b"--b--\r\n"


QUERIES = (
    "",
    "?overlays=true",
    "?picture=true",
    "?overlays=true&picture=true",
    "?spacing_mm=0.1",
    "?spacing_mm=1e999",
    "?overlays=%00",
)
LINES = (
    b"POST /v1/predict HTTP/1.1",
    b"GET /v1/ready HTTP/1.1",
    b"HEAD / HTTP/1.1",
    b"GET /%2e%2e/%00 HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"TRACE / HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"GET http://evil.example/ HTTP/1.1",
)
HEADS = (
    b"Content-Length: 99999999999999999999",
    b"Content-Length: -1",
    b"Content-Length: 0",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Transfer-Encoding: gzip, chunked",
    b"Content-Type: multipart/form-data; boundary=b",
    b"Content-Type: multipart/form-data; boundary=\xff\xfe",
    b"Content-Encoding: gzip",
    b"Expect: 100-continue",
    b"Connection: Upgrade\r\nUpgrade: websocket",
    b"Connection: close",
    b"Range: bytes=0-1,0-2",
    b"Host: localhost\r\nHost: evil.example",
    b"X: " + b"y" * 20_000,
    b"X:\0\1",
    b" folded: line",
)


def raw(rng: Rng, seeds: list[bytes]) -> bytes:
    """A whole request, damaged as bytes on the socket."""
    heads = [b"Host: localhost", *(HEADS[int(i)] for i in rng.integers(0, len(HEADS), int(rng.integers(0, 4))))]
    body = whole_body([seeds[int(rng.integers(len(seeds)))]], rng)
    if rng.random() < 0.5:
        body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    request = LINES[int(rng.integers(len(LINES)))] + b"\r\n" + b"\r\n".join(heads) + b"\r\n\r\n" + body
    if rng.random() < 0.5:
        work = bytearray(request)
        for at in rng.integers(0, min(400, len(work)), int(rng.integers(1, 5))):
            work[at] = int(rng.integers(256))
        request = bytes(work)
    return request * int(rng.choice([1, 1, 3]))  # pipelined


def say_raw(address: httpx.URL, request: bytes) -> list[str]:
    """Statuses of what comes back; ``closed`` where nothing does."""
    assert address.port is not None
    heard = b""
    try:
        with socket.create_connection((address.host, address.port), timeout=60.0) as found:
            found.sendall(request)
            found.shutdown(socket.SHUT_WR)
            while chunk := found.recv(1 << 16):
                heard += chunk
    except TimeoutError:
        heard += b"\r\nHTTP/1.1 hung"
    except OSError:  # it closed while there was still something to send
        pass
    return [f"raw {s.decode()}" for s in re.findall(rb"HTTP/1.1 (\w+)", heard)] or ["raw closed"]


def fits(answer: httpx.Response, classes: int) -> bool:
    """Whether results or an error are there as described."""
    content = answer.json()
    if answer.status_code not in (200, 422) or "error" in content:
        return set(content) == {"error", "request"} and set(content["error"]) == {"what", "remedy"}
    for result in content["results"]:
        if result["error"] is not None:
            continue
        shares = list(result["probability"].values())
        right = (
            len(shares) == classes
            and all(0.0 <= p <= 1.0 for p in shares)
            and math.isclose(sum(shares), 1.0, abs_tol=1e-6)
        )
        if not right or result["width"] < 1 or result["height"] < 1:
            return False
    return bool(content["results"]) or "error" in content


def one(client: httpx.Client, seeds: list[bytes], seed: int, number: int, classes: int) -> list[str]:
    """Send one mutation; what came of it."""
    rng = np.random.default_rng([seed, number])
    kind = number % 10
    if kind == 9:
        return say_raw(client.base_url, raw(rng, seeds))
    contents = [seeds[int(rng.integers(len(seeds)))] for _ in range(1 + int(rng.random() < 0.1))]
    if kind < 7:
        body = whole_body([damaged(c, seeds, rng) for c in contents], rng)
    else:
        body = damaged(whole_body(contents, rng), seeds, rng)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    path = "/v1/predict" + QUERIES[int(rng.integers(len(QUERIES))) if rng.random() < 0.5 else 0]
    try:
        answer = client.post(path, content=body, headers=headers)
    except httpx.HTTPError as error:
        return [f"lost {type(error).__name__}"]
    return [str(answer.status_code)] if fits(answer, classes) else ["misshapen"]


def memory(pid: int) -> dict[str, int]:
    """MB of the service, and of the processes that it started."""
    children = [c for f in Path(f"/proc/{pid}/task").glob("*/children") for c in f.read_text().split()]
    return {"service": round(service.resident(pid)), "decoder": round(sum(service.resident(int(c)) for c in children))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", type=int, help="one upload, by its number")
    a = parser.parse_args()
    from sonobreast.serving.predictor import load_predictor

    good = service.picture()
    predictor = load_predictor(a.bundle)
    wanted = predictor.predict(good).probability
    seeds = [*pictures(Image.open(io.BytesIO(good))), *dicom()]
    print(f"{a.n} uploads from {len(seeds)} files, seed {a.seed}", file=sys.stderr)
    found: Counter[str] = Counter()
    findings: list[tuple[int, str]] = []
    wrong, lock = 0, threading.Lock()
    mb: dict[str, dict[str, int]] = {}
    numbers = range(a.n) if a.only is None else range(a.only, a.only + 1)
    step = max(1, len(numbers) // 20)
    began = time.monotonic()
    with service.service(a.bundle, "--workers", str(a.workers)) as (address, pid):

        def right(client: httpx.Client) -> bool:
            [result] = service.upload(client, good).raise_for_status().json()["results"]
            return bool(np.allclose(list(result["probability"].values()), wanted, atol=1e-5))

        def some(client: httpx.Client, part: range) -> None:
            for number in part:
                outcome = one(client, seeds, a.seed, number, len(wanted))
                with lock:
                    found.update(outcome)
                    bad = [o for o in outcome if o.removeprefix("raw ").startswith(("5", "lost", "misshapen", "hung"))]
                    findings.extend((number, o) for o in bad)

        with (
            httpx.Client(base_url=address, timeout=60.0, trust_env=False) as client,
            ThreadPoolExecutor(a.clients) as pool,
        ):
            wrong += not right(client)
            mb["before"] = memory(pid)
            for start in range(numbers.start, numbers.stop, step):
                block = range(start, min(start + step, numbers.stop))
                list(pool.map(lambda k, block=block: some(client, block[k :: a.clients]), range(a.clients)))
                wrong += not right(client)
                share = round(100 * (block.stop - numbers.start) / len(numbers))
                if share in (10, 50, 100):
                    mb[f"{share} %"] = memory(pid)
                print(f"{share} %: {dict(found)}, {memory(pid)}, {findings[-3:]}", file=sys.stderr)
            metrics = client.get("/metrics").text
        alive = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    given_back = all(f"\nsonobreast_{n} 0\n" in metrics for n in ("images_waiting", "upload_bytes_held"))
    kept = alive and given_back and not wrong and not findings
    print(
        json.dumps(
            {
                "claim": "mutated uploads: no crash, no 5xx, no growth",
                "n": len(numbers),
                "seed": a.seed,
                "seconds": round(time.monotonic() - began),
                "answers": dict(sorted(found.items())),
                "findings": findings[:20],
                "good_image_answered_wrong": wrong,
                "alive": alive,
                "places_given_back": given_back,
                "memory_mb": mb,
                "kept": kept,
            }
        )
    )
    sys.exit(not kept)


if __name__ == "__main__":
    main()
