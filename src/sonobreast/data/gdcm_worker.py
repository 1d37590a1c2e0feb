"""GDCM in a process of its own: on some damaged frames its JPEG decoder ends the process that called it.

The worker is started with the first frame that only GDCM can decode (JPEG Lossless; JPEG-LS where pyjpegls is not
installed), takes one frame at a time and stays. Where it dies or hangs, the frame is refused and the next one gets a
new worker. Its terminal is closed: C libraries write there what they like.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.dicom_header import refuse

_SECONDS = 20.0  # sixteen million pixels take half of one; a request to the service ends after thirty
_lock = threading.Lock()
_worker: tuple[int, subprocess.Popen[bytes]] | None = None


def _after_fork() -> None:
    """A thread of the parent may have held the lock; in the child nobody would ever give it back."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def decode(source: bytes, syntax: str, options: dict[str, Any]) -> NDArray[Any]:
    """Decode one encapsulated frame.

    Parameters
    ----------
    source : bytes
        As `pydicom.encaps.encapsulate` gives it.
    syntax : str
        Transfer Syntax UID.
    options : dict
        Of `pydicom.pixels.Decoder.as_array`; numbers and text only.

    Raises
    ------
    SonobreastError
        If the frame is damaged.
    """
    global _worker
    with _lock:
        if _worker is None or _worker[0] != os.getpid() or _worker[1].poll() is not None:
            _worker = os.getpid(), _start()  # also after a fork: two processes must not share one pipe
        process = _worker[1]
        watch = threading.Timer(_SECONDS, process.kill)
        watch.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            _send(process.stdin, json.dumps({"syntax": syntax, "options": options}).encode())
            _send(process.stdin, source)
            answer, pixels = json.loads(_receive(process.stdout)), _receive(process.stdout)
        except (OSError, ValueError):
            _close(process)
            answer, pixels = {}, b""
        finally:
            watch.cancel()
    if "shape" not in answer:
        raise refuse("the compressed picture cannot be decoded: it is damaged", "copy or export the file again")
    return np.frombuffer(pixels, answer["dtype"]).reshape(answer["shape"])


@atexit.register
def _stop() -> None:
    if _worker is not None and _worker[0] == os.getpid():
        _close(_worker[1])


def _close(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # what was not sent yet has nobody to go to
                pipe.close()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def _send(stream: BinaryIO | Any, content: bytes) -> None:
    stream.write(len(content).to_bytes(8, "little") + content)
    stream.flush()


def _receive(stream: BinaryIO | Any) -> bytes:
    head = stream.read(8)
    content = bytes(stream.read(int.from_bytes(head, "little")))
    if len(head) < 8 or len(content) < int.from_bytes(head, "little"):
        raise OSError("the other end is gone")
    return content


def main() -> None:
    """Answer frames from standard input until it is closed."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            asked, source = json.loads(_receive(sys.stdin.buffer)), _receive(sys.stdin.buffer)
        except OSError:
            return
        try:
            decoder = get_decoder(UID(asked["syntax"]))
            array, _ = decoder.as_array(source, index=0, decoding_plugin="gdcm", **asked["options"])
            array = np.ascontiguousarray(array)
            answer, pixels = {"dtype": array.dtype.str, "shape": array.shape}, array.tobytes()
        except Exception:
            answer, pixels = {}, b""
        _send(answers, json.dumps(answer).encode())
        _send(answers, pixels)


if __name__ == "__main__":
    main()
