"""What every request passes: which host it calls, who asks, what goes back and what is written down of it.

A plain ASGI application around the service. Nothing of a request is echoed, and no message of an exception leaves.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from sonobreast.serving.counters import Counters
from sonobreast.serving.keys import whose
from sonobreast.serving.logs import write
from sonobreast.serving.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCKED = frozenset({"/v1/predict", "/v1/model", "/metrics"})
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", _CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
_DRAIN_SECONDS = 5.0


def gate(inner: App, settings: Settings, counters: Counters, routes: frozenset[str]) -> App:
    """The service behind its gate.

    Parameters
    ----------
    inner : ASGI application
    settings : Settings
    counters : Counters
    routes : frozenset of str
        Paths that there are, exactly as they are written; all others are answered 404, and counted and logged as
        "other". A router further in that were less exact (Starlette's takes a line feed at the end) would open what
        is locked here.
    """

    async def passed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await inner(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        began, number = time.perf_counter(), secrets.token_hex(8)
        scope.setdefault("state", {})["number"] = number
        status = 0
        route = scope["path"] if scope["path"] in routes else "other"

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message.get("headers", ())}
                own = [*HEADERS, (b"x-request-id", number.encode())]
                if settings.tls is not None:
                    own.append((b"strict-transport-security", b"max-age=31536000"))
                message["headers"] = [*message.get("headers", ()), *(h for h in own if h[0] not in given)]
            await send(message)

        async def hear() -> MutableMapping[str, Any]:
            message = await receive()
            scope["state"]["heard"] = not message.get("more_body")
            return message

        headers = _headers(scope)
        refused = _refuse(scope, headers, settings)
        if refused is None and route == "other":
            refused = (404, "there is nothing here", "see /api for what there is")
        key = None
        if refused is None and settings.keys and route in LOCKED:
            key = whose(_presented(headers), settings.keys)
            if key is None:
                refused = (401, "a key is needed", "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        fault = ""
        try:
            if refused is not None:
                await drain(scope, hear, settings.body)
                await reply(answer, number, *refused)
            else:
                # Whoever asks for the head of an answer gets that of GET: the server leaves the body away
                await inner({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, hear, answer)
        except Exception as error:  # the last resort: the client hears nothing of it, the log its kind and place
            fault = _place(error)
            if not status:
                await reply(answer, number, 500, "the service failed at this request", "tell its keeper the number")
        finally:
            seconds = time.perf_counter() - began
            counters.add("sonobreast_requests_total", route=route, status=str(status))
            if route == "/v1/predict" and status in (200, 422):
                counters.took(seconds)
            said: dict[str, Any] = {"number": number, "route": route, "status": status}
            said["ms"] = round(1000.0 * seconds, 1)
            said |= scope["state"].get("said", {})
            if key is not None:
                said["key"] = key.name
            if fault:
                said["fault"] = fault
            write("request", **said)

    return passed


async def reply(send: Send, number: str, status: int, what: str, remedy: str, *extra: tuple[bytes, bytes]) -> None:
    """An error, as `sonobreast.serving.answer.ErrorAnswer` describes it."""
    body = json.dumps({"error": {"what": what, "remedy": remedy}, "request": number}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *extra]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def drain(scope: Scope, receive: Receive, most: int) -> None:
    """Read what a refused client still sends and drop it: one that is cut off would never see the answer."""
    seen = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while seen <= most and not scope["state"].get("heard"):
                seen += len((await receive()).get("body", b""))
    except TimeoutError:
        return


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """Headers by lower-case name; one that stands there twice counts as empty, so that no two readers differ."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        found[name.lower()] = b"" if name.lower() in found else value
    return found


def _refuse(scope: Scope, headers: dict[bytes, bytes], settings: Settings) -> tuple[int, str, str] | None:
    host = headers.get(b"host", b"").decode("latin-1").lower()
    hosts = settings.hosts
    # A page elsewhere may point its own name at this machine (DNS rebinding); the name then gives it away.
    if hosts is not None and _without_port(host) not in hosts:
        return 421, "the service is not known by this name", "call it by its address, or start it with --name"
    if scope["method"] not in ("GET", "HEAD"):
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        site = headers.get(b"sec-fetch-site", b"same-origin")
        if (b"origin" in headers and _netloc(origin) != host) or site not in (b"same-origin", b"none"):
            return 403, "requests from pages of other sites are not answered", "open the service's own page"
    return None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _presented(headers: dict[bytes, bytes]) -> str:
    kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return key.strip() if kind.lower() == "bearer" else headers.get(b"x-api-key", b"").decode("latin-1").strip()


def _place(error: BaseException) -> str:
    """Kind of an error and the line that raised it, without its message: that may hold anything."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" {trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
    return type(error).__name__ + where
