"""The service: images in over HTTP, predictions out, and a page for people. FastAPI, without PyTorch.

No part of a request becomes a path: the page's files are read once at the start and found by their whole name.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sonobreast import __version__
from sonobreast.data.preprocess import quiet
from sonobreast.serving import counters as counting
from sonobreast.serving import wording
from sonobreast.serving.answer import Answer, BundleName, ErrorAnswer, NetworkFault, Result, Wanted, answer_file
from sonobreast.serving.bundle import SELF_TEST_IMAGE, Bundle
from sonobreast.serving.gate import App, drain, gate
from sonobreast.serving.predictor import Predictor, load_predictor
from sonobreast.serving.readers import READERS, choice_of
from sonobreast.serving.room import Room
from sonobreast.serving.settings import Settings
from sonobreast.serving.upload import Refused, boundary_of, read_upload

_STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/api": ("api.html", "text/html; charset=utf-8"),
    "/api.js": ("api.js", "text/javascript; charset=utf-8"),
}
_ABOUT = (
    "Predictions for images of breast ultrasound from one bundle. Research use only, not a medical device. "
    "Where keys are in use, send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`."
)
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        }
    },
}
_WHY = {
    400: "The upload is damaged, or holds no file.",
    401: "A key is needed.",
    403: "The request comes from a page of another site.",
    408: "The upload took too long.",
    413: "The upload, a file of it, or their number is too large.",
    415: "Not multipart/form-data, or a part is no image by its content type.",
    421: "The service is not known by this name.",
    422: "No file could be predicted: the answer holds an error for each. Or a parameter is not allowed.",
    429: "Too much is waiting: ask again after the seconds in Retry-After.",
    500: "The service failed; its log tells where, by the number of the request.",
    503: "The answer took too long, or there was not enough memory.",
}


class _Full(Exception):
    """An upload does not fit beside the others."""


class State(BaseModel):
    """Whether the service runs."""

    status: str


class Model(BaseModel):
    """The bundle, and what the service takes."""

    title: str
    fingerprint: str
    variant: str | None
    intended_use: str
    sonobreast: str
    classes: list[str]
    outputs: list[str]
    members: list[dict[str, Any]]
    thresholds: dict[str, float]
    calibrated: bool
    temperature: float | None
    coverage: float | None
    domain: str
    unknown: list[str]
    training: dict[str, Any]
    metrics: dict[str, Any] | None
    licences: dict[str, Any]
    formats: list[str]
    limits: dict[str, int]


def create_app(bundle: Bundle | Path | Predictor, settings: Settings | None = None) -> App:
    """The service of one bundle, as an ASGI application.

    Parameters
    ----------
    bundle : Bundle, Path or Predictor
        Its network is opened here and run once.
    settings : Settings or None

    Raises
    ------
    SonobreastError
        If the bundle was altered or its network cannot be run.
    """
    settings = settings or Settings()
    predictor = bundle if isinstance(bundle, Predictor) else load_predictor(bundle, threads=settings.workers)
    opened = predictor.bundle
    predictor.probability(opened.folder / SELF_TEST_IMAGE)  # the first run is the slowest: nobody should wait for it
    counters = counting.Counters(
        {"title": opened.about.title, "fingerprint": opened.fingerprint, "variant": predictor.variant or ""}
    )
    room = Room(settings.images, settings.memory, settings.workers)
    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="predict")
    app = _app(predictor, settings, room, pool, counters)
    routes = frozenset(_STATIC) | {"/v1/predict", "/v1/health", "/v1/ready", "/v1/model", "/metrics", "/openapi.json"}
    return gate(app, settings, counters, routes)


def _app(
    predictor: Predictor, settings: Settings, room: Room, pool: ThreadPoolExecutor, counters: counting.Counters
) -> FastAPI:
    ready = False

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal ready
        with quiet():
            ready = True
            yield
            ready = False
            # What was accepted is finished: uvicorn has waited for the answers, these are what timed out
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)

    app = FastAPI(
        title="sonobreast",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # FastAPI's own page loads its scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    files = {path: ((_folder() / name).read_bytes(), kind) for path, (name, kind) in _STATIC.items()}

    async def static(request: Request) -> Response:
        content, kind = files[request.scope["path"]]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    for path in files:
        app.add_api_route(path, static, methods=["GET"], include_in_schema=False)

    @app.get("/v1/health", summary="Whether the process answers", response_model=State)
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get(
        "/v1/ready",
        summary="Whether images are taken now",
        response_model=State,
        responses={503: {"model": State, "description": "Busy or stopping."}},
    )
    async def is_ready() -> Response:
        if not ready:
            return _json({"status": "stopping"}, 503)
        if room.images >= settings.images:
            return _json({"status": "busy"}, 503, {"retry-after": str(room.retry_after())})
        return _json({"status": "ready"})

    described = json.dumps(_model(predictor, settings)).encode()
    name = BundleName(
        title=predictor.bundle.about.title, fingerprint=predictor.bundle.fingerprint, variant=predictor.variant
    )

    @app.get("/v1/model", summary="The bundle, and what is taken", response_model=Model, responses=_errors(401))
    async def model() -> Response:
        return Response(described, media_type="application/json")

    @app.get("/metrics", summary="Counts, for Prometheus", response_class=Response, responses=_errors(401))
    async def metrics() -> Response:
        waiting = {"sonobreast_images_waiting": float(room.images), "sonobreast_upload_bytes_held": float(room.bytes)}
        return Response(counters.text(waiting), headers={"content-type": counting.TYPE})

    @app.post(
        "/v1/predict",
        summary="Predict images",
        response_model=Answer,
        responses=_errors(*_WHY),
        openapi_extra={"requestBody": _BODY},
    )
    async def predict(
        request: Request,
        overlays: Annotated[bool, Query(description="Also give maps and mask as PNG.")] = False,
        picture: Annotated[bool, Query(description="Also give the image as PNG.")] = False,
        dicom: Annotated[bool, Query(description="Also give report and segmentation of a DICOM file.")] = False,
        frames: Annotated[
            str,
            Query(
                pattern="^(middle|first|last|ends|[1-9][0-9]{0,3})$",
                description="Of a DICOM clip: middle, first, last, ends (all three), or so many spread over it.",
            ),
        ] = "middle",
        region: Annotated[
            str,
            Query(
                pattern="^(largest|each|[1-9][0-9]?)$",
                description="Of a split screen: largest, each, or the n-th from the left.",
            ),
        ] = "largest",
        spacing_mm: Annotated[
            float | None,
            Query(ge=1e-4, le=10.0, allow_inf_nan=False, description="Pixel spacing, where the file states none."),
        ] = None,
    ) -> Response:
        wanted = Wanted(layers=overlays, picture=picture, dicom=dicom, choice=choice_of(frames, region))
        boundary = boundary_of(request.headers.get("content-type", ""))
        length = _length(request)
        if length > settings.body:
            raise Refused(413, f"the upload is larger than {settings.body >> 20} MiB", "send fewer or smaller files")
        if not room.fits(length):
            return await _later(request, room, counters, settings)
        futures: list[Future[list[Result]]] = []
        held = 0

        async def arriving() -> AsyncIterator[bytes]:
            nonlocal held
            async for chunk in request.stream():
                if not room.take_bytes(len(chunk)):
                    raise _Full
                held += len(chunk)
                yield chunk

        try:
            async with asyncio.timeout(settings.seconds):
                contents = await read_upload(
                    arriving(), boundary, body=settings.body, file=settings.file, files=settings.files
                )
                if len(contents) > 1 and wanted.heavy:
                    raise Refused(
                        413, "pictures and DICOM are given for one file at a time", "send one file in an upload"
                    )
                request.scope["state"]["said"] = {"files": len(contents), "bytes": sum(map(len, contents))}
                if not room.take_images(len(contents)):
                    return await _later(request, room, counters, settings)
                for index, content in enumerate(contents):
                    futures.append(_submit(pool, room, predictor, index, content, settings, spacing_mm, wanted))
                del contents
                found = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except _Full:
            return await _later(request, room, counters, settings)
        except TimeoutError:
            for future in futures:
                future.cancel()
            if futures:
                raise Refused(503, "the answer took too long", "send fewer files at a time") from None
            raise Refused(408, "the upload took too long", "send it again, or fewer files at a time") from None
        finally:
            _release(room, held, futures)
        results = [result for group in found for result in group]
        _count(counters, results)
        answer = Answer(
            intended_use=predictor.bundle.about.intended_use,
            sonobreast=__version__,
            bundle=name,
            unknown=wording.unknowns(predictor.bundle.about),
            results=results,
        )
        status = 200 if any(r.error is None for r in results) else 422
        return Response(answer.model_dump_json(), status_code=status, media_type="application/json")

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        if error.status != 408:
            await drain(request.scope, request.receive, settings.body)
        return _problem(request, error.status, error.what, error.remedy)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        await drain(request.scope, request.receive, settings.body)
        what = {405: "this is not done here"}.get(error.status_code, "not possible")
        return _problem(request, error.status_code, what, "see /api for what there is", error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> Response:
        await drain(request.scope, request.receive, settings.body)
        names = sorted({str(e["loc"][-1]) for e in error.errors() if e["loc"][-1] in _PARAMETERS})
        return _problem(request, 422, f"a value is not allowed: {', '.join(names)}", "see /api for what is")

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        del request, error
        return Response(status_code=499)

    @app.exception_handler(NetworkFault)
    async def fault(request: Request, error: NetworkFault) -> Response:
        del error
        counters.add("sonobreast_images_total", outcome="failed")
        request.scope["state"].setdefault("said", {})["fault"] = "the network cannot be run"
        return _problem(request, 500, "the network cannot be run", "run `sonobreast bundle check` where the service is")

    @app.exception_handler(MemoryError)
    async def short(request: Request, error: MemoryError) -> Response:
        del error
        counters.add("sonobreast_images_total", outcome="failed")
        request.scope["state"].setdefault("said", {})["fault"] = "MemoryError"
        what, remedy = "there is not enough memory now", "send it again later, one file at a time"
        return _problem(request, 503, what, remedy, {"retry-after": "10"})

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        del error  # the gate writes its kind and place into the log
        return _problem(request, 500, "the service failed at this request", "tell its keeper the number")

    return app


_PARAMETERS = frozenset({"overlays", "picture", "dicom", "frames", "region", "spacing_mm"})


def _submit(
    pool: ThreadPoolExecutor,
    room: Room,
    predictor: Predictor,
    index: int,
    content: bytes,
    settings: Settings,
    spacing_mm: float | None,
    wanted: Wanted,
) -> Future[list[Result]]:
    """Hand one file to the workers; its place is free again when it is done, also where nobody waits any more."""
    began: list[float] = []

    def work() -> list[Result]:
        began.append(time.monotonic())
        return answer_file(predictor, index, content, limits=settings.limits, spacing_mm=spacing_mm, wanted=wanted)

    future = pool.submit(work)
    future.add_done_callback(lambda _: room.give_image(began[0] if began else None))
    return future


def _release(room: Room, n: int, futures: list[Future[list[Result]]]) -> None:
    """Free the memory of an upload once no worker holds a file of it."""
    running = [f for f in futures if not f.done()]
    if not running:
        room.give_bytes(n)
        return
    left, lock = [len(running)], threading.Lock()

    def one_less(_: Future[list[Result]]) -> None:
        with lock:
            left[0] -= 1
            last = not left[0]
        if last:
            room.give_bytes(n)

    for future in running:
        future.add_done_callback(one_less)


async def _later(request: Request, room: Room, counters: counting.Counters, settings: Settings) -> Response:
    counters.add("sonobreast_overload_total")
    seconds = str(room.retry_after())
    await drain(request.scope, request.receive, settings.body)
    return _problem(
        request, 429, "too many images are waiting", f"send it again in {seconds} s", {"retry-after": seconds}
    )


def _count(counters: counting.Counters, results: list[Result]) -> None:
    for result in results:
        counters.add("sonobreast_images_total", outcome="predicted" if result.error is None else "refused")
        if result.predicted is not None:
            counters.add("sonobreast_predicted_total", predicted=result.predicted)
        if result.abstains:
            counters.add("sonobreast_abstained_total")
        if result.in_domain is False:
            counters.add("sonobreast_outside_domain_total")


def _length(request: Request) -> int:
    """Stated length of the body; 0 where there is none (HTTP has checked that it is a number)."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 1 << 62


def _model(predictor: Predictor, settings: Settings) -> dict[str, Any]:
    bundle, about = predictor.bundle, predictor.bundle.about
    rule, limits = about.rule, settings.limits
    return Model(
        title=about.title,
        fingerprint=bundle.fingerprint,
        variant=predictor.variant,
        intended_use=about.intended_use,
        sonobreast=__version__,
        classes=about.classes,
        outputs=list(about.outputs),
        members=[m.model_dump() for m in about.members],
        thresholds={t.name: t.value for t in about.thresholds} if rule is None else rule.thresholds,
        calibrated=rule is not None,
        temperature=None if rule is None else rule.temperature,
        coverage=None if rule is None else 1.0 - rule.alpha,
        domain=about.domain_in_words,
        unknown=wording.unknowns(about),
        training=about.training,
        metrics=about.metrics,
        licences=about.licences,
        formats=[r.name for r in READERS],
        limits={
            "upload_bytes": settings.body,
            "file_bytes": min(settings.file, limits.bytes),
            "files": settings.files,
            "pixels": limits.pixels,
            "frames": limits.frames,
            "seconds": int(settings.seconds),
        },
    ).model_dump(mode="json")


def _errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    shared: dict[int | str, dict[str, Any]] = {
        code: {"model": ErrorAnswer, "description": _WHY[code]} for code in codes
    }
    if 422 in shared:
        shared[422] = {"model": Answer, "description": _WHY[422]}
    return shared


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status_code=status, headers=headers, media_type="application/json")


def _problem(request: Request, status: int, what: str, remedy: str, headers: Any = None) -> Response:
    content = {"error": {"what": what, "remedy": remedy}, "request": request.scope["state"]["number"]}
    return _json(content, status, dict(headers) if headers else None)


def _folder() -> Path:
    return Path(__file__).parent / "static"
