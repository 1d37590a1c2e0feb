"""A service on a real socket, in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from sonobreast.serving.predictor import Predictor
from sonobreast.serving.server import listen, make_server
from sonobreast.serving.settings import Settings
from sonobreast.serving.web import create_app


@contextmanager
def live(predictor: Predictor, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a service that runs while the block does; ``client.base_url`` is its address."""
    chosen = Settings(**{"port": 0, "workers": 2, **settings})
    with listen(chosen) as listening:
        server = make_server(create_app(predictor, chosen), chosen)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=address, timeout=30.0, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(20.0)
            assert not thread.is_alive()


def changed(predictor: Predictor, **about: object) -> Predictor:
    """A predictor whose bundle says something else of itself."""
    bundle = replace(predictor.bundle, about=predictor.bundle.about.model_copy(update=about))
    return replace(predictor, bundle=bundle)


def parts(*contents: bytes, kind: str = "image/png") -> list[tuple[str, tuple[str, bytes, str]]]:
    """Files of an upload, for httpx."""
    return [("files", ("NAME-OF-A-PATIENT.png", content, kind)) for content in contents]


def slowed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Every prediction waits for the event."""
    go, run = threading.Event(), Predictor.run

    def wait(self: Predictor, images: list[np.ndarray]) -> dict[str, np.ndarray]:
        go.wait(20.0)
        return run(self, images)

    monkeypatch.setattr(Predictor, "run", wait)
    return go


def waiting(client: httpx.Client, n: int, what: str = "images_waiting") -> None:
    for _ in range(500):
        if f"sonobreast_{what} {n}\n" in client.get("/metrics").text:
            return
        time.sleep(0.01)
    raise AssertionError(client.get("/metrics").text)
