"""The service on a socket: uvicorn, a time limit for the heads of requests, an end that finishes what was taken."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sonobreast.errors import SonobreastError
from sonobreast.serving import logs
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.gate import App
from sonobreast.serving.keys import read_keys
from sonobreast.serving.predictor import load_predictor
from sonobreast.serving.self_test import check
from sonobreast.serving.settings import Settings, is_loopback
from sonobreast.serving.web import create_app

_CONNECTIONS = 512
_REFUSED = 256  # connections beyond those that are told so
_HEAD = 16 << 10  # bytes of the head of a request


def refuse_open_door(settings: Settings) -> None:
    """Other machines may reach the service only with keys.

    Raises
    ------
    SonobreastError
    """
    if not is_loopback(settings.host) and not settings.keys:
        raise SonobreastError(
            f"{settings.host} can be reached from other machines, and no keys are set",
            remedy="make a key with `sonobreast serve-key NAME`, put its line into a file, and give --keys FILE",
        )


def serve(
    bundle: Path,
    *,
    host: str,
    port: int,
    keys: Path | None,
    names: tuple[str, ...],
    workers: int | None,
    tls: tuple[Path | None, Path | None],
    variant: str | None,
    say: Callable[[Bundle, str, bool, bool], None],
) -> None:
    """Check a bundle, open it and serve it until the process is told to stop.

    Parameters
    ----------
    bundle : Path
    host, port, names
        As in `Settings`.
    keys : Path or None
        File of keys.
    workers : int or None
        None: one for each core, up to 8.
    tls : tuple of (Path or None, Path or None)
        Certificate and key; both or neither.
    variant : str or None
        As in `sonobreast.serving.predictor.load_predictor`.
    say : callable
        The bundle, the address, whether a key is needed, and whether others reach it unencrypted.

    Raises
    ------
    SonobreastError
        If the bundle fails its self-test or has no such variant, keys are missing, or the address cannot be listened
        on.
    """
    certificate, key = tls
    if (certificate is None) != (key is None):
        raise SonobreastError(
            "a certificate and its key belong together", remedy="give --tls-certificate and --tls-key"
        )
    settings = Settings(
        host=host,
        port=port,
        names=names,
        keys=() if keys is None else read_keys(keys),
        tls=None if certificate is None or key is None else (certificate, key),
    )
    settings = settings if workers is None else replace(settings, workers=workers)
    refuse_open_door(settings)
    opened = check(bundle).bundle
    predictor = load_predictor(opened, threads=settings.workers, variant=variant)
    server = make_server(create_app(predictor, settings), settings)
    listening = listen(settings)
    scheme = "http" if settings.tls is None else "https"
    shown = f"[{host}]" if ":" in host else host
    address = f"{scheme}://{shown}:{listening.getsockname()[1]}"
    say(opened, address, bool(settings.keys), settings.tls is None and not is_loopback(host))
    logs.write("start", fingerprint=opened.fingerprint, variant=variant, workers=settings.workers)
    server.run(sockets=[listening])
    logs.write("end", forced=server.force_exit)
    if server.force_exit:  # told twice: what still waits would be predicted for nobody before the process ended
        os._exit(1)


def listen(settings: Settings) -> socket.socket:
    """A socket that listens.

    Raises
    ------
    SonobreastError
        If the address is not one of this machine, or is taken.
    """
    kind = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named: answers would take 40 ms longer
    found = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
        found.listen(_CONNECTIONS)  # whoever reads the address may connect at once, and waits until it is answered
    except (OSError, TypeError) as error:  # TypeError: no host name
        found.close()
        raise SonobreastError(
            f"{settings.host} port {settings.port} cannot be listened on "
            f"({getattr(error, 'strerror', None) or 'no address or name'})",
            remedy="name another --port, or stop what listens there",
        ) from error
    return found


def make_server(app: App, settings: Settings) -> Server:
    """A server that is ready to run.

    Raises
    ------
    SonobreastError
        As `refuse_open_door`; if a certificate cannot be used.
    """
    refuse_open_door(settings)
    logs.take_over()
    certificate, key = settings.tls or (None, None)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_patient(settings.header_seconds, settings.seconds),
        ws="none",
        loop="auto",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=_HEAD,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=int(settings.seconds) + 5,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SonobreastError(
            f"the certificate or its key cannot be used ({getattr(error, 'strerror', None) or type(error).__name__})",
            file=certificate,
            remedy="give both as PEM, the key without a password",
        ) from error
    return Server(config)


class Server(uvicorn.Server):
    """Ends quietly once told to: uvicorn's own would raise the signal once more after it has finished its work."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _patient(seconds: float, answer_seconds: float) -> type[asyncio.Protocol]:
    """HTTP/1.1 whose clients must bring the head of a request in so many seconds, and take answers.

    uvicorn itself waits for ever for the one and the other, and holds the answer meanwhile.
    """

    class Patient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _stuck: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > _CONNECTIONS + _REFUSED:  # files that the process may open are not without end
                transport.abort()
                return
            self._deadline = self.loop.call_later(seconds, self._late)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            between = self.cycle is None or self.cycle.response_complete
            if between and self._deadline is None and not self.transport.is_closing():
                self._deadline = self.loop.call_later(seconds, self._late)
            elif not between:
                self._stop()

        def on_response_complete(self) -> None:
            self._stop()
            super().on_response_complete()
            if self.transport.is_closing():
                self._end()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._end()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stuck is None:
                self._stuck = self.loop.call_later(answer_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stuck is not None and not self.transport.is_closing():
                self._stuck.cancel()
                self._stuck = None

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)
            if self._stuck is not None:
                self._stuck.cancel()

        def _end(self) -> None:
            """Closing waits until all is sent, and whoever takes nothing would keep it open."""
            if self._stuck is None:
                self._stuck = self.loop.call_later(answer_seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _late(self) -> None:
            self._deadline = None
            if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
                self.transport.close()
                self._end()

    return Patient
